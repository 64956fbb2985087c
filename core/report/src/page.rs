//! The frame of a page: head, navigation, sections, styles and script.

use crate::{
    comparison, content::Content, gallery, html::plain, overview, painted, scores, trainings,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use diffaug::{Error, Result};
use diffaug_run::reader::Run;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("../assets/report.css");
const SCRIPT: &str = include_str!("../assets/report.js");

/// Where a page is shown.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// As a file: pictures of these runs stand in it.
    File(&'a [Run]),
    /// By a server, which has the pictures; it is in the state of this name.
    Live(&'a [Run], &'a str),
}

impl<'a> Kind<'a> {
    fn runs(self) -> &'a [Run] {
        match self {
            Kind::File(runs) | Kind::Live(runs, _) => runs,
        }
    }

    /// What the page may load and run: its own script, pictures that it holds, and, where it is served, what the
    /// server has.
    pub fn policy(self) -> String {
        let script = STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
        let (images, more) = match self {
            Kind::File(_) => ("data:", ""),
            Kind::Live(..) => ("data: 'self'", "; connect-src 'self'"),
        };
        format!(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; img-src {images}{more}; \
             base-uri 'none'; form-action 'none'"
        )
    }
}

/// The page of runs, of which `contents` has what is shown.
///
/// # Errors
/// When there is no run, or the data of the script cannot be made.
pub fn render(contents: &[Content], kind: Kind<'_>) -> Result<String> {
    let Some(first) = contents.first() else {
        return Err(Error::config(
            "a report needs a run: name the folder of one",
        ));
    };
    let title = match contents.len() {
        1 => first.label.clone(),
        count => format!("{count} runs"),
    };
    let sections: Vec<Markup> = contents
        .iter()
        .enumerate()
        .map(|(place, content)| section(place, content, contents.len(), kind))
        .collect::<Result<_>>()?;
    let state = match kind {
        Kind::File(_) => None,
        Kind::Live(_, state) => Some(state),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(kind.policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Without one a browser would ask a server for it.
                link rel="icon" href="data:,";
                title { (plain(&title)) " – DiffAug" }
                style { (PreEscaped(STYLE)) }
            }
            body data-state=[state] {
                a.skip href="#main" { "To the content" }
                header {
                    h1 { (plain(&title)) }
                    @if state.is_some() { p.live role="status" { } }
                    (navigation(contents))
                }
                main #main tabindex="-1" {
                    @if contents.len() > 1 { (comparison::section(contents, kind.runs())) }
                    @for section in sections { (section) }
                }
                (viewer())
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

/// The sections of a run, with the ends of their addresses.
const SECTIONS: [(&str, &str); 6] = [
    ("scores", "Scores"),
    ("painted", "Painted lesions"),
    ("gallery", "Gallery"),
    ("trainings", "Trainings"),
    ("images", "Test images"),
    ("made-of", "Made of"),
];

fn navigation(contents: &[Content]) -> Markup {
    html! {
        nav aria-label="Sections" {
            @if contents.len() == 1 {
                ul {
                    @for (end, name) in SECTIONS { li { a href={ "#run-0-" (end) } { (name) } } }
                }
            } @else {
                ul {
                    li { a href="#comparison" { "Comparison" } }
                    @for (place, content) in contents.iter().enumerate() {
                        li { a href={ "#run-" (place) } { (plain(&content.label)) } }
                    }
                }
            }
        }
    }
}

fn section(place: usize, content: &Content, runs: usize, kind: Kind<'_>) -> Result<Markup> {
    let gallery = gallery::section(place, content, kind)?;
    // The name of a single run is the title of its page.
    let title = match runs {
        1 => "Overview",
        _ => &content.label,
    };
    let parts = [
        scores::section(content),
        painted::section(content),
        gallery,
        trainings::section(content),
        scores::images(&content.arms),
        overview::made_of(content),
    ];
    Ok(html! {
        section id={ "run-" (place) } {
            h2 { (plain(title)) }
            (overview::head(content))
            @for ((end, _), part) in SECTIONS.iter().zip(parts) {
                div.part id={ "run-" (place) "-" (end) } { (part) }
            }
        }
    })
}

/// A candidate at a larger size; the script fills it.
fn viewer() -> Markup {
    html! {
        dialog.viewer aria-label="A candidate" {
            div.bar {
                button type="button" data-go="previous" { "Previous" }
                button type="button" data-go="next" { "Next" }
                button type="button" data-go="close" { "Close" }
            }
            div.shown { }
        }
    }
}
