//! Where a run stands, and what it reports in the end.

use super::plan::Order;
use crate::{optim::PlateauState, precision::LossScale};
use diffaug::FitReport;
use serde::{Deserialize, Serialize};

/// Where a run stands: with the tensors beside it in a checkpoint, all that going on needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// Steps made.
    pub step: u64,
    /// Those that changed the weights: in f16 some do not.
    pub updates: u64,
    /// Updates of the running mean of the weights.
    pub averaged: u64,
    /// Sum of the losses of the present epoch.
    pub loss: f64,
    /// The evaluation whose weights are kept: the best, or the last.
    pub best: Option<Evaluation>,
    /// Evaluations since then.
    pub stale: u64,
    /// The step of the last evaluation.
    pub evaluated: u64,
    /// Evaluations in the midst of epochs.
    pub evaluations: Vec<Evaluation>,
    /// Finished epochs.
    pub history: Vec<Epoch>,
    /// What the schedule remembers.
    pub plateau: PlateauState,
    /// What the loss is multiplied by.
    pub scale: Option<LossScale>,
    /// How the samples are ordered.
    pub order: Option<Order>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Evaluation {
    pub step: u64,
    pub score: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Epoch {
    pub step: u64,
    pub loss: f64,
    pub rate: f64,
    pub score: Option<f64>,
}

/// What `report.json` holds.
#[derive(Serialize, Deserialize)]
pub(super) struct Report {
    pub steps: u64,
    pub best_step: u64,
    pub loss: f64,
    pub metric: String,
    pub score: f64,
    pub epochs: Vec<Epoch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<Evaluation>,
}

impl Report {
    /// The part of it that goes to the host.
    pub fn summary(&self, metric: &str) -> FitReport {
        FitReport {
            steps: self.steps,
            best_step: self.best_step,
            loss: self.loss,
            metric: metric.into(),
            score: self.score,
        }
    }
}
