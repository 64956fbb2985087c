//! The one training loop.
//!
//! Whatever a run needs to go on is in its folder, and everything random depends on the seed and
//! the step alone: a run that was stopped or killed at any step and started again ends with the
//! same bytes as one that was not.
//!
//! | file | |
//! | --- | --- |
//! | `config.json` | what is trained, how, on how much data; a folder serves one such run |
//! | `last.safetensors` | the checkpoint to go on from; gone when the run is finished, unless kept |
//! | `weights.safetensors` | the weights with the best validation score so far, or the last ones |
//! | `ema.safetensors` | their running mean at that time, where it is not itself what is judged |
//! | `log.jsonl` | loss, learning rate, norm of the gradient and scores, by step; times |
//! | `tensorboard/` | the same for TensorBoard, if wanted |
//! | `report.json` | the result; there when the run is finished |

mod events;
mod log;
mod mix;
mod plan;
mod run;
mod settings;
mod state;

pub use events::EVENTS;
pub use log::LOG;
pub use mix::Mix;
pub use run::{AVERAGED, LAST};
pub use settings::{Averaging, Keep, Settings};

use crate::{
    params::Params,
    precision::Precision,
    weights::{self, input},
};
use candle_core::Tensor;
use diffaug::{
    BoxDataset, Dataset, Error, ErrorKind, FitReport, Item, Reporter, Result, ResultExt, Sample,
    prelude::RVec, rng,
};
use plan::Plan;
use run::Run;
use serde::Serialize;
use serde_json::{Value, json};
use state::Report;
use std::{fs, path::Path};

/// The configuration in a run's folder.
pub const CONFIG: &str = "config.json";
/// The best weights in a run's folder.
pub const WEIGHTS: &str = "weights.safetensors";
const REPORT: &str = "report.json";

/// A model that can be trained.
pub trait Learner: Sync {
    /// What is computed on at once, made on a worker thread.
    type Batch: Send;

    /// What is trained and stored.
    fn params(&self) -> &Params;

    /// Makes a batch from its samples. `batch` counts the batches of all steps; without
    /// accumulation it is the step. Randomness may depend on it alone.
    ///
    /// # Errors
    /// When a sample cannot be used; the message names it.
    fn prepare(&self, samples: Vec<Sample>, batch: u64) -> Result<Self::Batch>;

    /// The loss of a batch, a scalar, in training mode; a mean over its samples, so that batches
    /// can be put together to steps.
    ///
    /// # Errors
    /// Those of the model.
    fn loss(&self, prepared: Self::Batch, batch: u64) -> Result<Tensor>;

    /// How good the present weights are; larger is better.
    ///
    /// # Errors
    /// Those of the model, and cancellation.
    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64>;

    /// What [`Learner::score`] measures: `validation dice`. Its last word goes beside the loss.
    fn metric(&self) -> &str;

    /// The type that [`Learner::loss`] computes in; in f16 the loss is scaled before it is
    /// differentiated.
    fn precision(&self) -> Precision {
        Precision::F32
    }
}

/// Trains `learner` on `train`, keeps the weights that score best on `validation` (or the last ones,
/// [`Keep`]) in the folder `out`, and goes on from what a run cut short left there. A finished run's report is returned
/// at once. `model` describes what is trained and goes into `config.json`.
///
/// Sample `i` of epoch `e` is number `e * n + i` of `train`, which has `n`; where real and synthetic
/// samples are mixed ([`Mix`]), `e` counts the passes over its kind.
///
/// # Errors
/// When a setting is out of range; when a dataset is empty, a sample cannot be used, or synthetic samples
/// are to be mixed with real ones and there are none; when `out`
/// belongs to a run with other settings, or its checkpoint does not fit; when the loss is no longer
/// finite, or the gradient, the score, or a weight that is to be kept (the best weights and the last
/// checkpoint stay); and [`ErrorKind::Cancelled`].
pub fn fit<L: Learner>(
    learner: &L,
    settings: &Settings,
    model: &Value,
    train: &BoxDataset,
    validation: &BoxDataset,
    out: &Path,
    reporter: &Reporter<'_>,
) -> Result<FitReport> {
    settings.check()?;
    let items = |dataset: &BoxDataset, what: &str| -> Result<RVec<Item>> {
        let items = dataset.items()?;
        match items.is_empty() {
            true => Err(Error::data(format!("there are no samples for {what}"))),
            false => Ok(items),
        }
    };
    let (samples, judges) = (items(train, "training")?, items(validation, "validation")?);
    let digest = |items: &[Item]| {
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        rng::derive(0, "items", &ids.join("\n"))
    };
    let mut config = json!({
        "model": model,
        "training": settings,
        "data": {
            "train": { "samples": samples.len(), "digest": digest(&samples) },
            "validation": { "samples": judges.len(), "digest": digest(&judges) },
        },
    });
    if learner.precision() != Precision::F32 {
        config["training"]["precision"] = serde_json::to_value(learner.precision())?;
    }
    claim(out, &config)?;
    if let Some(report) = finished(out, learner.metric())? {
        // The run may have been killed after its report was written.
        drop_checkpoint(settings, out)?;
        return Ok(report);
    }
    settings.check_total(samples.len() as u64)?;
    let synthetic: Vec<bool> = samples.iter().map(|item| item.synthetic).collect();
    let plan = Plan::new(settings, &synthetic)?;
    let mut run = Run::new(learner, settings, validation, plan, out, reporter)?;
    run.all(train)?;
    run.finish()
}

/// Makes `out` the folder of the run that `config` describes.
fn claim(out: &Path, config: &Value) -> Result<()> {
    let shown = out.display();
    weights::make_folder(out)?;
    let path = out.join(CONFIG);
    if !path.exists() {
        return write_json(&path, config);
    }
    let unreadable = || format!("cannot read `{}`", path.display());
    let old: Value =
        input::read_json(&path, input::CONFIG_BYTES).or_error(ErrorKind::Model, unreadable)?;
    match difference(&old, config, "") {
        None => Ok(()),
        Some((name, old, new)) => Err(Error::model(format!(
            "`{shown}` belongs to a training run with `{name}` = {old}, not {new}: choose another folder or remove it"
        ))),
    }
}

/// The first value in which two configurations differ: its name and both values.
fn difference(old: &Value, new: &Value, path: &str) -> Option<(String, String, String)> {
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let names = a
            .keys()
            .chain(b.keys().filter(|name| !a.contains_key(*name)));
        let below = |name: &String| {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let value = |map: &serde_json::Map<_, _>| map.get(name).cloned().unwrap_or_default();
            difference(&value(a), &value(b), &path)
        };
        return names.into_iter().find_map(below);
    }
    (old != new).then(|| (path.to_owned(), old.to_string(), new.to_string()))
}

/// The report of a run that is finished.
fn finished(out: &Path, metric: &str) -> Result<Option<FitReport>> {
    let path = out.join(REPORT);
    if !path.exists() || !out.join(WEIGHTS).exists() {
        return Ok(None);
    }
    let report: Result<Report> = input::read_json(&path, input::VOCABULARY_BYTES);
    let report = report.or_error(ErrorKind::Model, || {
        format!("cannot read `{}`", path.display())
    })?;
    Ok(Some(report.summary(metric)))
}

/// Writes `value` with line breaks.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    weights::write_atomically(path, format!("{text}\n").as_bytes())
}

/// Removes the checkpoint of a finished run, unless it is to be kept.
fn drop_checkpoint(settings: &Settings, out: &Path) -> Result<()> {
    if settings.keep_last {
        return Ok(());
    }
    let path = out.join(LAST);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
            .or_error(ErrorKind::Data, || {
                format!("cannot remove `{}`", path.display())
            }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
