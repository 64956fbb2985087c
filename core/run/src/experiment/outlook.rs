//! What an experiment would do: the steps of all cells, each once, and what is known of their times.

use super::Experiment;
use crate::{layout, runs::Known, steps::Plan};
use serde::Serialize;
use std::collections::BTreeSet;

/// A step of an experiment.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// The first cell that needs it.
    pub cell: String,
    /// What it leaves in the folder of the run.
    pub place: String,
    /// What is done.
    pub step: String,
    /// The name of its result in the store.
    pub key: String,
    /// Whether its result is there.
    pub done: bool,
    /// What it takes, judged by those of its kind that were done; of what is there, nothing.
    pub seconds: Option<f64>,
}

/// The steps of an experiment whose cells have these `plans`. A pool of painted images has no end, and
/// belongs to the synthesis.
pub fn outlook(experiment: &Experiment, plans: &[Plan], known: &Known) -> Vec<Planned> {
    let mut seen = BTreeSet::new();
    let cells = experiment.cells.iter().zip(plans);
    let steps = cells.flat_map(|(cell, plan)| plan.steps().map(move |step| (cell, step)));
    steps
        .filter(|(_, (place, step))| *place != layout::POOL && seen.insert(step.key.clone()))
        .map(|(cell, (place, step))| {
            let done = known.has(step);
            Planned {
                cell: cell.name(),
                place: place.to_owned(),
                step: step.kind().to_owned(),
                key: step.key.clone(),
                done,
                seconds: known.seconds(step).filter(|_| !done),
            }
        })
        .collect()
}
