//! What the synthesis came to: scores with the threshold, acceptance by group and size, looks of lesions.

use crate::{
    content::Content,
    html::{drawing, figure, plain, share, table},
    svg::Area,
};
use diffaug_run::work::{
    pool_figures::{Outcome, Outcomes},
    pool_measures::{Pool, SHOWN},
    record::{Group, Record, Summary},
    sizes::Size,
};
use maud::{Markup, html};

/// Bars of a histogram.
const BARS: usize = 20;

/// The section.
pub fn section(content: &Content) -> Markup {
    let records = content.painted.as_ref().map(|painted| &painted.records[..]);
    html! {
        h3 { "Painted lesions" }
        @if let Some(records) = records {
            div.drawings { (histogram(records)) }
        }
        @match &content.summary {
            Some(summary) => { (tables(summary)) (measures(&content.measured)) }
            None => { p.note { "The synthesis is not finished." } }
        }
    }
}

/// What each measure says of the pools, a pool a column.
fn measures(measured: &Outcomes) -> Markup {
    let one = |name: &String, outcome: &Outcome| {
        let pools = outcome.pools.iter();
        let mut header = vec!["figure".to_owned()];
        header.extend(
            pools
                .clone()
                .map(|(pool, of)| format!("{pool} ({})", of.images)),
        );
        let row = |name: &String| {
            let values = pools
                .clone()
                .map(|(_, pool)| figure(pool.figures.get(name)));
            std::iter::once(name.clone()).chain(values).collect()
        };
        let figures = outcome.figures.iter();
        let rows: Vec<Vec<String>> = figures.map(|figure| row(&figure.name)).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let caption = format!("{name}: beside {} real training images", outcome.real);
        html! {
            (table(&caption, &header, &rows))
            @for (pool, of) in pools.filter(|(_, of)| !of.note.is_empty()) {
                p.note { (pool) ": " (plain(&of.note)) }
            }
        }
    };
    html! { @for (name, outcome) in measured { (one(name, outcome)) } }
}

/// Scores that a limit decided, and whether they passed.
fn scores(records: &[Record]) -> Vec<(f64, bool)> {
    let judged = records
        .iter()
        .filter(|record| record.painted() && !record.given_up);
    let limited = judged.filter(|record| record.limit.is_some() && record.score.is_finite());
    limited
        .map(|record| (record.score, record.file_name.is_some()))
        .collect()
}

/// The limits that decided, each once.
pub fn limits(records: &[Record]) -> Vec<f64> {
    let mut limits: Vec<f64> = records
        .iter()
        .filter(|record| record.painted() && !record.given_up)
        .filter_map(|record| record.limit)
        .collect();
    limits.sort_by(f64::total_cmp);
    limits.dedup();
    limits
}

/// How many rejected and accepted scores fall on each bar between `low` and `high`, the last one included.
fn bars(scores: &[(f64, bool)], [low, high]: [f64; 2]) -> [[u64; 2]; BARS] {
    let mut bars = [[0; 2]; BARS];
    for (score, accepted) in scores {
        let share = (score - low) / (high - low);
        let bar = ((share * BARS as f64) as usize).min(BARS - 1);
        bars[bar][usize::from(*accepted)] += 1;
    }
    bars
}

fn histogram(records: &[Record]) -> Markup {
    let scores = scores(records);
    if scores.is_empty() {
        return html! { p.note { "No score was compared with a threshold." } };
    }
    let shown = scores.iter().map(|(score, _)| *score);
    let shown = shown.chain(limits(records));
    let range = shown.fold([0.0, 1.0], |[low, high]: [f64; 2], value| {
        [low.min(value), high.max(value)]
    });
    let bars = bars(&scores, range);
    let highest = bars.iter().map(|[no, yes]| no + yes).max().unwrap_or(1);
    let area = Area {
        height: 200.0,
        left: 44.0,
        x: range,
        y: [0.0, highest as f64 * 1.05],
    };
    let limits = limits(records);
    let accepted = scores.iter().filter(|(_, accepted)| *accepted).count();
    let at: Vec<String> = limits.iter().map(|limit| format!("{limit}")).collect();
    let words = format!(
        "Histogram of the scores of {} candidates, of which {accepted} were accepted; threshold {}",
        scores.len(),
        at.join(", ")
    );
    let edge = |bar: usize| range[0] + (range[1] - range[0]) * bar as f64 / BARS as f64;
    let rect = |class: &str, bar: usize, from: u64, to: u64| {
        let (left, right) = (area.at_x(edge(bar)), area.at_x(edge(bar + 1)));
        let (top, bottom) = (area.at_y(to as f64), area.at_y(from as f64));
        html! {
            @if to > from {
                rect class=(class) x=(left + 0.5) y=(top) width=(right - left - 1.0) height=(bottom - top) {}
            }
        }
    };
    let drawn = html! {
        (area.y_axis())
        (area.x_axis("score (IoU where it is one)"))
        @for (bar, [no, yes]) in bars.iter().enumerate() {
            (rect("bar-rejected", bar, 0, *no))
            (rect("bar-accepted", bar, *no, no + yes))
        }
        @for limit in &limits { (area.mark(*limit, "threshold")) }
    };
    let note = html! {
        (area.drawing(&words, &drawn))
        ul.legend {
            li { svg.sample viewBox="0 0 36 10" aria-hidden="true" { rect.bar-accepted x="0" y="0" width="36" height="10" {} } "accepted (filled)" }
            li { svg.sample viewBox="0 0 36 10" aria-hidden="true" { rect.bar-rejected x="1" y="1" width="34" height="8" {} } "rejected (hollow)" }
            li { svg.sample viewBox="0 0 36 10" aria-hidden="true" { line.threshold x1="0" x2="36" y1="5" y2="5" {} } "threshold " (at.join(", ")) }
        }
    };
    drawing("Scores of the candidates", &note, "")
}

fn tables(summary: &Summary) -> Markup {
    html! {
        div.tables {
            (by_size(summary))
            (looks(summary))
            (sweep(summary))
            (by_group(summary))
            (by_class(summary))
        }
        @for sentence in sentences(summary) { p.note { (sentence) } }
    }
}

fn by_size(summary: &Summary) -> Markup {
    let real = summary.real_acceptance.as_ref();
    let row = |size: &Size| {
        let mut row = vec![
            size.size.clone(),
            size.candidates.to_string(),
            size.accepted.to_string(),
            share(size.accepted, size.candidates),
        ];
        if let Some(real) = real {
            let same = real.by_size.iter().find(|one| one.size == size.size);
            row.push(same.map_or_else(String::new, |one| share(one.accepted, one.candidates)));
        }
        row
    };
    let rows: Vec<Vec<String>> = summary.by_size.iter().map(row).collect();
    let mut header = vec!["size of the lesion", "painted", "accepted", "acceptance"];
    header.extend(real.map(|_| "real lesions that pass"));
    table("Acceptance by size", &header, &rows)
}

fn by_group(summary: &Summary) -> Markup {
    let row = |(name, group): (&String, &Group)| {
        vec![
            name.clone(),
            group.candidates.to_string(),
            group.accepted.to_string(),
            share(group.accepted, group.candidates),
        ]
    };
    let rows: Vec<Vec<String>> = summary.by_group.iter().map(row).collect();
    let header = ["group", "painted", "accepted", "acceptance"];
    html! {
        @if !rows.is_empty() { (table("Acceptance by facts of the mask and words of the prompt", &header, &rows)) }
    }
}

fn by_class(summary: &Summary) -> Markup {
    let row = |(name, class): (&String, &diffaug_run::work::record::Class)| {
        vec![
            name.clone(),
            class.candidates.to_string(),
            figure(Some(class.iou)),
        ]
    };
    let rows: Vec<Vec<String>> = summary.by_class.iter().map(row).collect();
    html! {
        @if !rows.is_empty() { (table("How well each class is found", &["class", "painted", "mean IoU"], &rows)) }
    }
}

fn looks(summary: &Summary) -> Markup {
    let Some(pools) = &summary.pools else {
        return Markup::default();
    };
    let row = |(name, pool): (&str, &Pool)| {
        let mut row = vec![name.to_owned(), pool.images.to_string()];
        row.extend(SHOWN.iter().map(|(measure, _)| {
            let found = pool.measures.get(*measure);
            found.map_or_else(|| figure(None), |s| format!("{:.2} ± {:.2}", s.mean, s.std))
        }));
        row
    };
    let rows = [
        ("real", &pools.real),
        ("accepted", &pools.accepted),
        ("rejected", &pools.rejected),
    ]
    .map(row);
    let mut header = vec!["lesions", "images"];
    header.extend(SHOWN.iter().map(|(_, title)| *title));
    table("How lesions look", &header, &rows)
}

fn sweep(summary: &Summary) -> Markup {
    let row = |at: &diffaug_run::work::record::Threshold| {
        vec![
            format!("{:.2}", at.threshold),
            at.accepted.to_string(),
            format!("{:.1} %", 100.0 * at.acceptance),
            figure(at.score_accepted),
            figure(at.score_rejected),
        ]
    };
    let rows: Vec<Vec<String>> = summary.sweep.iter().map(row).collect();
    let header = [
        "threshold",
        "would pass",
        "share",
        "mean score above",
        "mean score below",
    ];
    html! {
        @if !rows.is_empty() { (table("Other thresholds", &header, &rows)) }
    }
}

fn sentences(summary: &Summary) -> Vec<String> {
    let mut all = Vec::new();
    if summary.skipped > 0 {
        all.push(format!(
            "On {} backgrounds nothing could be placed.",
            summary.skipped
        ));
    }
    if summary.passed_over > 0 {
        let over = summary.passed_over;
        all.push(format!(
            "{over} candidates were passed over, for there were enough lesions of their size."
        ));
    }
    if let Some(found) = &summary.backgrounds {
        all.push(format!(
            "Lesions were painted away in {} of {} training images; {} are left out.",
            found.cleared, found.images, found.failed
        ));
    }
    if let Some(found) = &summary.preview {
        let given = match found.lost {
            Some(lost) => {
                format!("would be given up, of which {lost} passed when they were finished")
            }
            None => "were given up".to_owned(),
        };
        all.push(format!(
            "{} candidates scored below {} after {:.0} % of the steps and {given}.",
            found.given_up,
            found.below,
            100.0 * found.at
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_score_falls_on_one_bar() {
        let scores = [
            (0.0, false),
            (0.049, false),
            (0.05, false),
            (0.7, true),
            (1.0, true),
        ];
        let bars = bars(&scores, [0.0, 1.0]);
        assert_eq!((bars[0], bars[1], bars[19]), ([2, 0], [1, 0], [0, 1]));
        let all: u64 = bars.iter().flatten().sum();
        assert_eq!((all, bars[14][1]), (5, 1));
    }
}
