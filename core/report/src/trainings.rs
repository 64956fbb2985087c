//! How the trainings went: loss and validation of each, those of one arm in one drawing.

use crate::{
    content::Content,
    curves::{self, Curve},
    html::{drawing, figure, table},
};
use diffaug_run::reader::{Point, TrainingLog};
use maud::{Markup, html};

/// Curves in one drawing at most; more of an arm go into the next one.
const TOGETHER: usize = 6;

/// The section.
pub fn section(content: &Content) -> Markup {
    html! {
        h3 { "Trainings" }
        @if content.logs.is_empty() {
            p.note { "No training has left a log." }
        } @else {
            p.note {
                "Loss of each step, averaged where steps are many; score on the validation part, larger is better. \
                 A ring marks the step whose weights were kept."
            }
            div.drawings {
                @for together in groups(&content.logs) { (drawings(together)) }
            }
            (results(&content.logs))
        }
    }
}

/// Where a training belongs to, and what it is called there: `evaluate/real` and `seed-0`.
fn names(log: &TrainingLog) -> (&str, &str) {
    let folder = log.folder.as_str();
    let folder = folder.strip_suffix("/weights").unwrap_or(folder);
    folder.rsplit_once('/').unwrap_or((folder, folder))
}

/// Trainings that belong together, side by side in their order.
fn groups(logs: &[TrainingLog]) -> Vec<&[TrainingLog]> {
    let alike = logs.chunk_by(|one, other| names(one).0 == names(other).0);
    alike.flat_map(|group| group.chunks(TOGETHER)).collect()
}

fn drawings(logs: &[TrainingLog]) -> Markup {
    let Some(first) = logs.first() else {
        return Markup::default();
    };
    let group = names(first).0;
    let metric = logs.iter().find_map(|log| log.fit.as_ref());
    let metric = metric.map_or("score", |fit| fit.metric.as_str());
    let draw = |what: &str, points: fn(&TrainingLog) -> &[Point], marks: bool| {
        let curves: Vec<Curve<'_>> = logs
            .iter()
            .map(|log| Curve {
                name: names(log).1,
                points: points(log),
                best: log.fit.as_ref().filter(|_| marks).map(|fit| fit.best_step),
            })
            .collect();
        let title = format!("{group}: {what}");
        let svg = curves::draw(&format!("{title}, by step"), &curves)?;
        Some(drawing(&title, &svg, ""))
    };
    html! {
        @if let Some(loss) = draw("loss", |log| &log.loss, false) { (loss) }
        @if let Some(score) = draw(metric, |log| &log.score, true) { (score) }
    }
}

fn results(logs: &[TrainingLog]) -> Markup {
    let row = |log: &TrainingLog| {
        let name = log.folder.trim_end_matches("/weights");
        let mut row = vec![name.to_owned()];
        match &log.fit {
            None => {
                let state = if log.done { "" } else { "under way" };
                row.extend([state, "", "", "", ""].map(str::to_owned));
            }
            Some(fit) => row.extend([
                fit.steps.to_string(),
                fit.best_step.to_string(),
                figure(fit.loss),
                figure(fit.score),
                fit.metric.clone(),
            ]),
        }
        row
    };
    let rows: Vec<Vec<String>> = logs.iter().map(row).collect();
    let header = [
        "training",
        "steps",
        "kept",
        "loss of the last epoch",
        "best score",
        "score is",
    ];
    table("What each training came to", &header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &str) -> TrainingLog {
        TrainingLog {
            folder: folder.to_owned(),
            loss: Vec::new(),
            score: Vec::new(),
            fit: None,
            done: false,
        }
    }

    #[test]
    fn trainings_of_an_arm_are_drawn_together() {
        let all: Vec<TrainingLog> = [
            "generator",
            "generator/autoencoder",
            "evaluate/real/seed-0/weights",
            "evaluate/real/seed-1/weights",
            "evaluate/augmented/seed-0/weights",
        ]
        .map(log)
        .into();
        let sizes: Vec<usize> = groups(&all).iter().map(|group| group.len()).collect();
        assert_eq!(sizes, [2, 2, 1]);
        assert_eq!(names(&all[2]), ("evaluate/real", "seed-0"));
        let many: Vec<TrainingLog> = (0..8)
            .map(|seed| log(&format!("evaluate/real/seed-{seed}/weights")))
            .collect();
        let sizes: Vec<usize> = groups(&many).iter().map(|group| group.len()).collect();
        assert_eq!(sizes, [6, 2]);
    }
}
