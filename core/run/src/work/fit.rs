//! One training of one stage, done once for a run folder.

use crate::{session::Session, store::Store};
use diffaug::{ErrorKind, FitReport, Reporter, Result, with_reporter};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A [`FitReport`] as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fit {
    /// Optimiser steps.
    pub steps: u64,
    /// The step whose weights were kept.
    pub best_step: u64,
    /// Mean training loss of the last epoch.
    pub loss: Option<f64>,
    /// What `score` measures.
    pub metric: String,
    /// The best value of that metric.
    pub score: Option<f64>,
}

impl From<FitReport> for Fit {
    fn from(report: FitReport) -> Self {
        // JSON has no NaN.
        let finite = |value: f64| value.is_finite().then_some(value);
        Fit {
            steps: report.steps,
            best_step: report.best_step,
            loss: finite(report.loss),
            metric: report.metric.to_string(),
            score: finite(report.score),
        }
    }
}

/// Runs `work`, which leaves `folder`, unless `marker` says that it was done; `None` when there is
/// nothing to train.
///
/// # Errors
/// Whatever the stage reports, [`ErrorKind::Unsupported`] excepted; when it was done, but what it
/// left is no longer what it was.
pub fn fit(
    store: &Store,
    (marker, folder): (&str, &str),
    label: &str,
    session: &Session<'_>,
    work: impl FnOnce(&Reporter<'_>) -> Result<FitReport>,
) -> Result<Option<Fit>> {
    if let Some(done) = store.read_marker::<Option<Fit>>(marker)? {
        return Ok(done);
    }
    let start = Instant::now();
    let step = session.begin(label);
    let fit = match session.stage(|| with_reporter(&step, work)) {
        Ok(report) => Some(Fit::from(report)),
        Err(error) if error.kind == ErrorKind::Unsupported => None,
        Err(error) => return Err(error),
    };
    store.write_marker(marker, &fit, &[folder])?;
    if let Some(fit) = &fit {
        let score = fit
            .score
            .map_or_else(String::new, |s| format!(", {} {s:.3}", fit.metric));
        let steps = fit.steps;
        step.finish(&format!("{steps} steps{score}"));
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(steps, seconds, "{label}: done");
    }
    Ok(fit)
}
