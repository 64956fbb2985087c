//! `diffaug run`, `train`, `generate`, `evaluate`: the pipeline, whole or up to a step.

use crate::{
    cli::{Global, ManifestArgs},
    ui::{Ui, table},
};
use diffaug::Error;
use diffaug_run::{
    failure::Failure,
    session::Session,
    work::{
        self, Goal, RunOutcome,
        pool_figures::Outcome,
        pool_measures::{Pool, SHOWN},
        record::Summary,
        scoring::{self, Figures},
        sizes::Size,
    },
};
use serde_json::{Value, json};

/// Runs a manifest up to `goal` and prints what came of it.
pub fn run(args: &ManifestArgs, goal: Goal, global: &Global, ui: Ui) -> Result<(), Failure> {
    let (manifest, document, registry) = super::open(args, global, ui)?;
    let outcome = work::run(&manifest, &document, &registry, goal, &Session::new(&ui))?;
    if goal == Goal::Scores {
        super::report::leave(&outcome.folder);
    }
    let result = outcome.result.clone().unwrap_or_else(|| {
        json!({
            "folder": outcome.folder,
            "fit": outcome.fit,
            "synthesis": outcome.summary,
            "measures": outcome.measured,
        })
    });
    ui.result(|| text(&outcome, &result), &result);
    ui.say(format!("\neverything is in {}", outcome.folder.display()));
    Ok(())
}

/// Runs a manifest up to the synthetic images and prints what each threshold would have come to.
pub fn sweep(args: &ManifestArgs, global: &Global, ui: Ui) -> Result<(), Failure> {
    let (manifest, document, registry) = super::open(args, global, ui)?;
    let outcome = work::run(
        &manifest,
        &document,
        &registry,
        Goal::Synthesis,
        &Session::new(&ui),
    )?;
    let sweep = outcome.summary.map(|s| s.sweep).unwrap_or_default();
    if sweep.is_empty() {
        let name = &manifest.validator.name;
        return Err(Error::unsupported(format!(
            "the validator `{name}` compares no IoU with a threshold, so there is nothing to sweep"
        ))
        .into());
    }
    let shown = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let rows: Vec<Vec<String>> = sweep
        .iter()
        .map(|row| {
            vec![
                format!("{:.2}", row.threshold),
                row.accepted.to_string(),
                format!("{:.1} %", 100.0 * row.acceptance),
                shown(row.score_accepted),
                shown(row.score_rejected),
            ]
        })
        .collect();
    let header = [
        "threshold",
        "accepted",
        "acceptance",
        "mean IoU accepted",
        "mean IoU rejected",
    ];
    ui.result(|| table(&header, &rows), &json!(sweep));
    Ok(())
}

fn text(outcome: &RunOutcome, result: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(fit) = &outcome.fit {
        let score = fit.score.map_or("-".into(), |s| format!("{s:.3}"));
        parts.push(format!("{} steps, {} {score}", fit.steps, fit.metric));
    }
    if let Some(s) = &outcome.summary {
        let mut line = format!(
            "{} candidates: {} accepted, {} rejected",
            s.candidates, s.accepted, s.rejected
        );
        if s.skipped > 0 {
            line += &format!(", {} backgrounds skipped", s.skipped);
        }
        if let (Some(yes), Some(no)) = (s.score_accepted, s.score_rejected) {
            line += &format!(" (mean score {yes:.2} and {no:.2})");
        }
        if s.passed_over > 0 {
            line += &format!(", {} passed over for their size", s.passed_over);
        }
        parts.push(line);
        parts.extend(synthesis(s));
        if let Some(p) = &s.preview {
            let lost = p.lost.map_or(String::new(), |lost| {
                format!("; {lost} of them passed when finished")
            });
            parts.push(format!(
                "{} candidates below {:.2} at {:.0} % of the steps, which {} {:.0} % of all{lost}",
                p.given_up,
                p.below,
                100.0 * p.at,
                if p.lost.is_some() {
                    "would save"
                } else {
                    "saved"
                },
                100.0 * p.saved
            ));
        }
    }
    parts.extend(outcome.summary.iter().map(pool_measures));
    parts.extend(outcome.measured.iter().map(pool_figures));
    if !outcome.arms.is_empty() {
        parts.push(scores(outcome, result));
        parts.push(further(outcome, result));
        parts.push(groups(outcome));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// Further lines on a synthesis, where there is something to say.
fn synthesis(s: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(b) = &s.backgrounds {
        lines.push(format!(
            "lesions were painted away in {} of {} training images; {} are left out",
            b.cleared, b.images, b.failed
        ));
    }
    let sizes = |all: &[Size]| {
        let each = all
            .iter()
            .filter(|size| size.candidates > 0 || size.wanted > Some(0));
        let each = each.map(|size| {
            let wanted = size.wanted.map(|wanted| format!(" ({wanted} wanted)"));
            let wanted = wanted.unwrap_or_default();
            format!(
                "{}: {} of {}{wanted}",
                size.size, size.accepted, size.candidates
            )
        });
        each.collect::<Vec<_>>().join(", ")
    };
    if s.candidates > 0 || s.passed_over > 0 {
        lines.push(format!(
            "accepted by size of the lesion: {}",
            sizes(&s.by_size)
        ));
    }
    if let Some(real) = s.real_acceptance.as_ref().filter(|real| real.n > 0) {
        lines.push(format!(
            "{} of {} real lesions of the validation part pass the same validator: {}",
            real.accepted,
            real.n,
            sizes(&real.by_size)
        ));
    }
    lines
}

/// How lesions of each pool look.
fn pool_measures(summary: &Summary) -> String {
    let Some(pool_measures) = &summary.pools else {
        return String::new();
    };
    let row = |(name, pool): (&str, &Pool)| {
        let mut row = vec![name.to_owned(), pool.images.to_string()];
        row.extend(SHOWN.iter().map(|(measure, _)| {
            let found = pool.measures.get(*measure);
            found.map_or("-".into(), |s| format!("{:.2} ± {:.2}", s.mean, s.std))
        }));
        row
    };
    let rows: Vec<Vec<String>> = [
        ("real", &pool_measures.real),
        ("accepted", &pool_measures.accepted),
        ("rejected", &pool_measures.rejected),
    ]
    .map(row)
    .to_vec();
    let mut header = vec!["lesions", "images"];
    header.extend(SHOWN.iter().map(|(_, title)| *title));
    table(&header, &rows)
}

/// What a measure says of each pool, a pool a column.
fn pool_figures((name, outcome): (&String, &Outcome)) -> String {
    let mut header = vec![name.as_str()];
    header.extend(outcome.pools.keys().map(String::as_str));
    let mut rows = vec![vec!["images".to_owned()]];
    rows[0].extend(outcome.pools.values().map(|pool| pool.images.to_string()));
    for figure in &outcome.figures {
        let values = outcome.pools.values();
        let values = values.map(|pool| pool.figures.get(&figure.name));
        let mut row = vec![figure.name.clone()];
        row.extend(values.map(|value| value.map_or("-".into(), |value| format!("{value:.4}"))));
        rows.push(row);
    }
    let notes = outcome
        .pools
        .iter()
        .filter(|(_, pool)| !pool.note.is_empty());
    let notes = notes.map(|(name, pool)| format!("\n{name}: {}", pool.note));
    format!(
        "beside {} real training images:\n{}{}",
        outcome.real,
        table(&header, &rows),
        notes.collect::<String>()
    )
}

/// The figures of measures, an arm a column: the mean over images, or of all images together.
fn further(outcome: &RunOutcome, result: &Value) -> String {
    let basic: Vec<String> = scoring::basic()
        .into_iter()
        .map(|figure| figure.name)
        .collect();
    let Some(first) = outcome.arms.first() else {
        return String::new();
    };
    let runs = result["arms"][0]["runs"].as_array().map_or(1, Vec::len);
    let further = |figures: &Figures| -> Vec<String> {
        let names = figures.0.keys();
        names
            .filter(|name| !basic.contains(name))
            .cloned()
            .collect()
    };
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let mut rows = Vec::new();
    for name in further(&first.mean) {
        let mut row = vec![format!("{name}, mean over images")];
        row.extend(outcome.arms.iter().map(|arm| {
            let spread = arm.std.get(&name).filter(|_| runs > 1);
            let spread = spread.map_or_else(String::new, |std| format!(" ± {std:.4}"));
            shown(arm.mean.get(&name)) + &spread
        }));
        rows.push(row);
    }
    for name in further(&first.dataset_level) {
        let mut row = vec![format!("{name}, of all images")];
        row.extend(
            outcome
                .arms
                .iter()
                .map(|arm| shown(arm.dataset_level.get(&name))),
        );
        rows.push(row);
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut header = vec!["measure"];
    header.extend(outcome.arms.iter().map(|arm| arm.name));
    table(&header, &rows)
}

/// Mean over images, then over trainings; with a spread where there are several trainings.
fn scores(outcome: &RunOutcome, result: &Value) -> String {
    let runs = result["arms"][0]["runs"].as_array().map_or(1, Vec::len);
    let cell = |mean: &Figures, std: &Figures, name: &str| match (mean.get(name), std.get(name)) {
        (Some(mean), Some(std)) if runs > 1 => format!("{mean:.3} ± {std:.3}"),
        (Some(mean), _) => format!("{mean:.3}"),
        _ => "-".into(),
    };
    let rows: Vec<Vec<String>> = outcome
        .arms
        .iter()
        .map(|arm| {
            let mut row = vec![arm.name.to_owned(), arm.training_images.to_string()];
            for name in ["dice", "iou", "sensitivity", "fnr", "specificity"] {
                row.push(cell(&arm.mean, &arm.std, name));
            }
            row.push(
                arm.dataset_level
                    .get("dice")
                    .map_or("-".into(), |d| format!("{d:.3}")),
            );
            row
        })
        .collect();
    let header = [
        "trained on",
        "images",
        "Dice",
        "IoU",
        "sensitivity",
        "FNR",
        "specificity",
        "Dice (pixels)",
    ];
    let split = &result["split"];
    format!(
        "{} on {}, {} test images (split `{}`), mean over images{}:\n{}",
        result["segmenter"].as_str().unwrap_or_default(),
        result["dataset"].as_str().unwrap_or_default(),
        split["test"],
        split["name"].as_str().unwrap_or_default(),
        if runs > 1 {
            format!(" and {runs} trainings")
        } else {
            String::new()
        },
        table(&header, &rows)
    )
}

/// Dice of each group, an arm a column.
fn groups(outcome: &RunOutcome) -> String {
    let Some(first) = outcome.arms.first().filter(|a| !a.groups.is_empty()) else {
        return String::new();
    };
    let rows: Vec<Vec<String>> = first
        .groups
        .iter()
        .map(|(name, group)| {
            let mut row = vec![name.clone(), group.images.to_string()];
            for arm in &outcome.arms {
                let dice = arm
                    .groups
                    .get(name)
                    .and_then(|g| g.per_image_mean.get("dice"));
                row.push(dice.map_or("-".into(), |d| format!("{d:.3}")));
            }
            row
        })
        .collect();
    let mut header = vec!["Dice by group", "images"];
    header.extend(outcome.arms.iter().map(|arm| arm.name));
    table(&header, &rows)
}
