//! Every painted candidate, to be looked at: filters and a threshold, for the script; and the contact sheet.

use crate::{
    cards::{Card, script_json},
    content::Content,
    html::plain,
    page::Kind,
    painted::limits,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use diffaug::Result;
use diffaug_run::reader::Run;
use maud::{Markup, PreEscaped, html};
use serde::Serialize;
use std::collections::BTreeSet;

/// How JPEG files begin.
const JPEG: [u8; 3] = [0xff, 0xd8, 0xff];
/// The threshold of the slider where the run has none, or several.
const USUAL: f64 = 0.7;

/// What the script is given.
#[derive(Serialize)]
struct Data<'a> {
    cards: Vec<Card<'a>>,
    /// The threshold of the run, where it has one.
    threshold: Option<f64>,
}

/// The section of the run of that number.
///
/// # Errors
/// When the data cannot be serialised.
pub fn section(place: usize, content: &Content, kind: Kind<'_>) -> Result<Markup> {
    let sheet = content.sheet.as_ref().map(|sheet| sheet_of(sheet));
    let records = content.painted.iter().flat_map(|painted| &painted.records);
    let picture = |index| match kind {
        Kind::File(runs) => runs.get(place).and_then(|run| inline(run, index)),
        Kind::Live(runs, _) => {
            let there = runs.get(place).is_some_and(|run| run.has_strip(index));
            there.then(|| format!("strip/{place}/{index}.jpg"))
        }
    };
    let cards: Vec<Card<'_>> = records
        .filter_map(|record| Card::of(record, picture))
        .collect();
    let shown = match cards.is_empty() {
        true => html! { p.note { "No candidate is painted." } },
        false => candidates(place, content, cards)?,
    };
    Ok(html! {
        h3 { "Gallery" }
        (shown)
        @if let Some(sheet) = sheet { (sheet) }
    })
}

/// The small picture of a candidate as an address that holds it; `None` where there is none.
fn inline(run: &Run, index: u64) -> Option<String> {
    let bytes = run.strip(index).filter(|bytes| bytes.starts_with(&JPEG))?;
    Some(address(&bytes))
}

fn address(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))
}

fn sheet_of(jpeg: &[u8]) -> Markup {
    html! {
        details.sheet {
            summary { "Contact sheet" }
            p.note {
                "Of each candidate: background, wanted mask, painted image, and the same with the outlines of what \
                 was wanted (cyan) and found (yellow). The last is framed green where the candidate was accepted \
                 and red where not; accepted ones come first."
            }
            img src=(address(jpeg)) alt="Contact sheet: candidates that were accepted, then some that were rejected" loading="lazy";
        }
    }
}

fn candidates(place: usize, content: &Content, cards: Vec<Card<'_>>) -> Result<Markup> {
    let id = |name: &str| format!("run-{place}-{name}");
    let sizes: BTreeSet<&str> = cards.iter().map(|card| card.size).collect();
    let tags: BTreeSet<String> = cards
        .iter()
        .flat_map(|card| &card.tags)
        .map(|tag| tag.to_string())
        .collect();
    let pictures = cards.iter().filter(|card| card.picture.is_some()).count();
    let without = cards.len() - pictures;
    let records = content.painted.as_ref().map(|painted| &painted.records[..]);
    let limits = limits(records.unwrap_or_default());
    let threshold = match limits[..] {
        [one] => Some(one),
        _ => None,
    };
    let scores = cards.iter().filter(|card| card.limit.is_some());
    let ends = scores.filter_map(|card| card.score);
    let ends = ends.chain(limits.iter().copied());
    let ends = ends.fold([0.0, 1.0], |[low, high]: [f64; 2], score| {
        [low.min(score.floor()), high.max(score.ceil())]
    });
    let slider = (!limits.is_empty()).then(|| slider(&id, ends, threshold));
    let data = script_json(&Data { cards, threshold })?;
    Ok(html! {
        p.note {
            "Each picture shows, from left to right: background, outline of the wanted lesion on it, what was painted, \
             and that with the outlines of the wanted lesion (cyan, solid) and of what the segmenter found \
             (yellow, dashed)."
            @if without > 0 { " " (without) " candidates have no picture (synthesis.gallery, previews)." }
        }
        div.gallery data-run=(place) {
            form.filters {
                (select(&id("verdict"), "verdict", "Verdict", &[
                    ("all", "all"),
                    ("accepted", "accepted"),
                    ("rejected", "rejected"),
                    ("passes", "would pass at the slider"),
                    ("fails", "would not pass at the slider"),
                ]))
                (select(&id("size"), "size", "Size of the lesion", &options(sizes)))
                (select(&id("tag"), "tag", "Word of the prompt", &options(tags.iter().map(String::as_str))))
                (select(&id("sort"), "sort", "Order", &[
                    ("index", "as painted"),
                    ("best", "highest score first"),
                    ("worst", "lowest score first"),
                ]))
                div.field {
                    label for=(id("search")) { "Search in prompt, id, seed, reason" }
                    input #(id("search")) name="search" type="search" autocomplete="off";
                }
                @if let Some(slider) = slider { (slider) }
            }
            p.count role="status" aria-live="polite" { }
            noscript { p { "The gallery needs scripts to be allowed; the rest of the page does not." } }
            ul.cards { }
            nav.pager aria-label="Pages of the gallery" {
                button type="button" data-go="first" { "First" }
                button type="button" data-go="previous" { "Previous" }
                span.page { }
                button type="button" data-go="next" { "Next" }
                button type="button" data-go="last" { "Last" }
            }
            script type="application/json" { (PreEscaped(data)) }
        }
    })
}

/// A threshold in place of the run's own, and what it would come to.
fn slider(id: &impl Fn(&str) -> String, [low, high]: [f64; 2], own: Option<f64>) -> Markup {
    let value = own.unwrap_or(USUAL);
    html! {
        div.field.wide {
            label for=(id("threshold")) { "Another threshold: scores above it would pass" }
            input #(id("threshold")) name="threshold" type="range" min=(low) max=(high) step="any" value=(value);
            output.passing for=(id("threshold")) { }
            span.note {
                @match own {
                    Some(own) => { "The run's own is " (own) "; what was painted is what it took to fill the quota there." }
                    None => { "The run has several thresholds." }
                }
            }
        }
    }
}

/// All values of a filter, after the one that filters nothing.
fn options<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<(&'a str, &'a str)> {
    let values = values.into_iter().filter(|value| !value.is_empty());
    let values = values.map(|value| (value, value));
    [("all", "all")].into_iter().chain(values).collect()
}

fn select(id: &str, name: &str, label: &str, options: &[(&str, &str)]) -> Markup {
    html! {
        div.field {
            label for=(id) { (label) }
            select #(id) name=(name) {
                @for (value, text) in options { option value=(value) { (plain(text)) } }
            }
        }
    }
}
