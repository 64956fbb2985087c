//! Several runs beside each other: every arm of each with its figures and how it differs from the first.

use crate::{
    content::Content,
    html::{drawing, plain, share, table},
    scores::{METRIC, RESAMPLING, difference_table, intervals, names, shown},
};
use diffaug_run::{
    compare,
    reader::{Arm, Run},
};
use maud::{Markup, html};

/// The section; `runs` are those of `contents`.
pub fn section(contents: &[Content], runs: &[Run]) -> Markup {
    let arms: Vec<(usize, Arm)> = contents
        .iter()
        .enumerate()
        .flat_map(|(place, content)| content.arms.iter().map(move |arm| (place, arm)))
        .map(|(place, arm)| (place, renamed(&contents[place], arm)))
        .collect();
    let names = names(contents.iter().flat_map(|content| &content.arms));
    let row = |(place, arm): &(usize, Arm)| {
        let content = &contents[*place];
        let mut row = vec![arm.name.clone(), arm.trainings.len().to_string()];
        row.push(
            content
                .summary
                .as_ref()
                .map_or_else(String::new, |summary| {
                    share(summary.accepted, summary.candidates)
                }),
        );
        row.extend(names.iter().map(|name| shown(arm, name)));
        row
    };
    let rows: Vec<Vec<String>> = arms.iter().map(row).collect();
    let mut header = vec!["run: arm", "trainings", "acceptance"];
    header.extend(&names);
    // Scores on other images are another figure.
    let (alike, other) = comparable(contents, runs, arms);
    html! {
        section #comparison {
            h2 { "Comparison" }
            @if rows.is_empty() {
                p.note { "No run has scores yet." }
            } @else {
                (table("Mean over test images, ± deviation over trainings", &header, &rows))
                @for sentence in other { p.note { (plain(&sentence)) } }
                (differences(&alike))
                @if alike.len() > 1 {
                    div.drawings { (drawing("Dice by arm", &intervals(&alike), "")) }
                }
            }
        }
    }
}

fn renamed(content: &Content, arm: &Arm) -> Arm {
    Arm {
        name: format!("{}: {}", content.label, arm.name),
        ..arm.clone()
    }
}

/// The arms that were scored as those of the first run, and why others were not.
fn comparable(
    contents: &[Content],
    runs: &[Run],
    arms: Vec<(usize, Arm)>,
) -> (Vec<Arm>, Vec<String>) {
    let first = arms.first().map(|(place, _)| *place);
    let differs = |place: usize| runs.get(first?)?.differs(runs.get(place)?);
    let sentences = contents.iter().enumerate().filter_map(|(place, content)| {
        let what = differs(place)?;
        Some(format!(
            "{} is not compared with the first run: it has {what}.",
            content.label
        ))
    });
    let sentences = sentences.collect();
    let alike = arms
        .into_iter()
        .filter(|(place, _)| differs(*place).is_none());
    (alike.map(|(_, arm)| arm).collect(), sentences)
}

fn differences(arms: &[Arm]) -> Markup {
    let Some(first) = arms.first().filter(|_| arms.len() > 1) else {
        return Markup::default();
    };
    match compare::compare(arms, METRIC, RESAMPLING) {
        Ok(rows) => {
            let caption = format!(
                "Difference in Dice from {}, image by image",
                plain(&first.name)
            );
            difference_table(&caption, &rows)
        }
        Err(error) => html! { p.note { (plain(&error.to_string())) } },
    }
}
