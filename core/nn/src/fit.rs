//! The one training loop.
//!
//! Whatever a run needs to go on is in its folder, and everything random depends on the seed and
//! the step alone: a run that was stopped at any step and started again ends with the same bytes
//! as one that was not.
//!
//! | file | |
//! | --- | --- |
//! | `config.json` | what is trained, how, on how much data; a folder serves one such run |
//! | `last.safetensors` | the checkpoint to go on from; gone when the run is finished |
//! | `weights.safetensors` | the weights with the best validation score so far |
//! | `report.json` | the result; there when the run is finished |

use crate::{
    checkpoint,
    optim::{AdamW, cosine_rate},
    params::Params,
    weights,
};
use candle_core::{DType, Tensor};
use diffaug::{
    BoxDataset, Dataset, Error, ErrorKind, FitReport, Reporter, Result, ResultExt, Sample, rng,
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

/// The configuration in a run's folder.
pub const CONFIG: &str = "config.json";
/// The best weights in a run's folder.
pub const WEIGHTS: &str = "weights.safetensors";
const LAST: &str = "last.safetensors";
const REPORT: &str = "report.json";

/// A model that can be trained.
pub trait Learner: Sync {
    /// What a step computes on, made on a worker thread.
    type Batch: Send;

    /// What is trained and stored.
    fn params(&self) -> &Params;

    /// Makes the batch of `step` from its samples; randomness may depend on `step` alone.
    ///
    /// # Errors
    /// When a sample cannot be used; the message names it.
    fn prepare(&self, samples: Vec<Sample>, step: u64) -> Result<Self::Batch>;

    /// The loss of a batch, a scalar, in training mode.
    ///
    /// # Errors
    /// Those of the model.
    fn loss(&self, batch: Self::Batch, step: u64) -> Result<Tensor>;

    /// How good the present weights are; larger is better.
    ///
    /// # Errors
    /// Those of the model, and cancellation.
    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64>;

    /// What [`Learner::score`] measures: `validation dice`. Its last word goes beside the loss.
    fn metric(&self) -> &str;
}

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Passes over the training samples.
    pub epochs: u64,
    /// Samples of a step, at most: an epoch is cut into steps of equal size, give or take one.
    pub batch: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 is without limit.
    pub clip: f64,
    /// Steps until the learning rate is reached.
    pub warmup: u64,
    /// Evaluations without a better score after which training stops; 0 is never.
    pub patience: u64,
    /// Epochs from one evaluation to the next.
    pub evaluate_every: u64,
    /// Seed of the order of samples.
    pub seed: u64,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Steps made.
    step: u64,
    /// Sum of the losses of the present epoch.
    loss: f64,
    /// The best evaluation.
    best: Option<Best>,
    /// Evaluations since then.
    stale: u64,
    /// Finished epochs.
    history: Vec<Epoch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Best {
    step: u64,
    score: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Epoch {
    step: u64,
    loss: f64,
    rate: f64,
    score: Option<f64>,
}

/// What `report.json` holds.
#[derive(Serialize, Deserialize)]
struct Report {
    steps: u64,
    best_step: u64,
    loss: f64,
    metric: String,
    score: f64,
    epochs: Vec<Epoch>,
}

/// Trains `learner` on `train`, keeps the weights that score best on `validation` in the folder
/// `out`, and goes on from what a run cut short left there. A finished run's report is returned
/// at once. `model` describes what is trained and goes into `config.json`.
///
/// Sample `i` of epoch `e` is number `e * n + i` of `train`, which has `n`.
///
/// # Errors
/// When a dataset is empty or a sample cannot be used; when `out` belongs to a run with other
/// settings; when the loss is no longer finite; and [`ErrorKind::Cancelled`].
pub fn fit<L: Learner>(
    learner: &L,
    settings: &Settings,
    model: &Value,
    train: &BoxDataset,
    validation: &BoxDataset,
    out: &Path,
    reporter: &Reporter<'_>,
) -> Result<FitReport> {
    let ids = |dataset: &BoxDataset, what: &str| -> Result<Vec<String>> {
        let items = dataset.items()?;
        if items.is_empty() {
            return Err(Error::data(format!("there are no samples for {what}")));
        }
        Ok(items.iter().map(|item| item.id.to_string()).collect())
    };
    let (samples, judges) = (ids(train, "training")?, ids(validation, "validation")?);
    let digest = |ids: &[String]| rng::derive(0, "items", &ids.join("\n"));
    claim(
        out,
        &json!({
            "model": model,
            "training": settings,
            "data": {
                "train": { "samples": samples.len(), "digest": digest(&samples) },
                "validation": { "samples": judges.len(), "digest": digest(&judges) },
            },
        }),
    )?;
    if let Some(report) = finished(out, learner.metric())? {
        return Ok(report);
    }
    let trainable = learner.params().trainable();
    let plan = Plan::new(settings, samples.len() as u64);
    let mut run = Run {
        learner,
        settings,
        validation,
        out,
        reporter,
        optimiser: AdamW::new(trainable, settings.weight_decay, settings.clip)?,
        state: State::default(),
        plan,
    };
    let last = out.join(LAST);
    if last.exists() {
        let params = learner.params();
        run.state = checkpoint::load(&last, params, &mut run.optimiser, |s: &State| s.step)?;
        tracing::info!(step = run.state.step, "going on from the last checkpoint");
    }
    run.all(train)?;
    run.finish()
}

/// Makes `out` the folder of the run that `config` describes.
fn claim(out: &Path, config: &Value) -> Result<()> {
    let shown = out.display();
    fs::create_dir_all(out).or_error(ErrorKind::Data, || {
        format!("cannot make the folder `{shown}`")
    })?;
    let path = out.join(CONFIG);
    if !path.exists() {
        let text = serde_json::to_string_pretty(config)?;
        return weights::write_atomically(&path, format!("{text}\n").as_bytes());
    }
    let unreadable = || format!("cannot read `{}`", path.display());
    let text = fs::read_to_string(&path).or_error(ErrorKind::Model, unreadable)?;
    let old: Value = serde_json::from_str(&text).or_error(ErrorKind::Model, unreadable)?;
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
    let read = || -> Result<Report> { Ok(serde_json::from_str(&fs::read_to_string(&path)?)?) };
    let report = read().or_error(ErrorKind::Model, || {
        format!("cannot read `{}`", path.display())
    })?;
    Ok(Some(FitReport {
        steps: report.steps,
        best_step: report.best_step,
        loss: report.loss,
        metric: metric.into(),
        score: report.score,
    }))
}

/// How epochs are cut into steps.
#[derive(Clone, Copy, Debug)]
struct Plan {
    samples: u64,
    steps_per_epoch: u64,
    total: u64,
    seed: u64,
}

impl Plan {
    fn new(settings: &Settings, samples: u64) -> Self {
        let steps_per_epoch = samples.div_ceil(settings.batch.max(1) as u64);
        Plan {
            samples,
            steps_per_epoch,
            total: steps_per_epoch * settings.epochs,
            seed: settings.seed,
        }
    }

    /// The indices (beyond the last one for later epochs) of the samples of `step`.
    fn indices(&self, step: u64) -> Vec<u64> {
        let (epoch, place) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        let mut order: Vec<u64> = (0..self.samples).collect();
        let mut rng = rng::stream(self.seed, "order", epoch);
        for i in (1..order.len()).rev() {
            order.swap(i, rng.random_range(0..=i));
        }
        // Steps of equal size: a last one of a single sample would upset batch normalisation.
        let edge = |place: u64| (place * self.samples / self.steps_per_epoch) as usize;
        let part = &order[edge(place)..edge(place + 1)];
        part.iter().map(|i| epoch * self.samples + i).collect()
    }
}

/// A training run at work.
struct Run<'a, 'r, L> {
    learner: &'a L,
    settings: &'a Settings,
    validation: &'a BoxDataset,
    out: &'a Path,
    reporter: &'a Reporter<'r>,
    optimiser: AdamW,
    state: State,
    plan: Plan,
}

impl<L: Learner> Run<'_, '_, L> {
    /// Makes all steps that are left, while other threads prepare the next batches.
    fn all(&mut self, train: &BoxDataset) -> Result<()> {
        let (start, plan, learner) = (self.state.step, self.plan, self.learner);
        let workers = thread::available_parallelism().map_or(1, |n| n.get().min(4));
        thread::scope(|scope| {
            let mut queues = Vec::new();
            for worker in 0..workers as u64 {
                // One batch waits while the next is made.
                let (sender, receiver) = sync_channel(1);
                queues.push(receiver);
                scope.spawn(move || {
                    let steps = (start + worker..plan.total).step_by(workers);
                    prepare_batches(learner, train, plan, steps, &sender);
                });
            }
            // `queues` goes with the closure's end, and then the workers stop.
            self.steps(start, &queues)
        })
    }

    fn steps(&mut self, start: u64, queues: &[Receiver<Result<L::Batch>>]) -> Result<()> {
        loop {
            let outcome = self.close_epoch();
            self.checkpoint_if_cancelled(outcome)?;
            if self.is_done() {
                return Ok(());
            }
            let queue = &queues[(self.state.step - start) as usize % queues.len()];
            let batch = queue
                .recv()
                .map_err(|_| Error::internal("a thread that prepares batches is gone"))??;
            self.step(batch)?;
            let outcome = self.report();
            self.checkpoint_if_cancelled(outcome)?;
        }
    }

    fn is_done(&self) -> bool {
        let patience = self.settings.patience;
        let due = self.state.step.is_multiple_of(self.plan.steps_per_epoch);
        self.state.step >= self.plan.total || due && patience > 0 && self.state.stale >= patience
    }

    fn rate(&self, step: u64) -> f64 {
        let Settings {
            warmup,
            learning_rate,
            ..
        } = *self.settings;
        cosine_rate(step, self.plan.total, warmup, learning_rate)
    }

    fn step(&mut self, batch: L::Batch) -> Result<()> {
        let step = self.state.step;
        let loss = self.learner.loss(batch, step)?;
        let value = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(self.diverged("the loss", value));
        }
        let grads = loss.backward()?;
        let norm = self.optimiser.step(&grads, self.rate(step))?;
        if !norm.is_finite() {
            return Err(self.diverged("the gradient", norm));
        }
        self.state.step += 1;
        self.state.loss += value;
        Ok(())
    }

    fn diverged(&self, what: &str, value: f64) -> Error {
        let kept = match self.state.best {
            Some(best) => format!("; `{WEIGHTS}` holds those of step {}", best.step),
            None => String::new(),
        };
        Error::model(format!(
            "{what} became {value} at step {} (epoch {}): try a lower learning rate{kept}",
            self.state.step + 1,
            self.state.step / self.plan.steps_per_epoch + 1,
        ))
    }

    fn report(&self) -> Result<()> {
        let done = (self.state.step - 1) % self.plan.steps_per_epoch + 1;
        let mut note = format!("loss {:.3}", self.state.loss / done as f64);
        if let Some(score) = self.state.history.iter().rev().find_map(|e| e.score) {
            let metric = self.learner.metric();
            let short = metric.rsplit(' ').next().unwrap_or(metric);
            note = format!("{note} {short} {score:.3}");
        }
        self.reporter.step(self.state.step, self.plan.total, &note)
    }

    /// At the end of an epoch: evaluates, keeps the best weights and writes the checkpoint.
    fn close_epoch(&mut self) -> Result<()> {
        let per_epoch = self.plan.steps_per_epoch;
        let epoch = self.state.step / per_epoch;
        if epoch as usize == self.state.history.len() {
            // In the midst of an epoch, or closed before the run was stopped.
            return Ok(());
        }
        let mut next = self.state.clone();
        let last = next.step >= self.plan.total;
        let due = last || epoch.is_multiple_of(self.settings.evaluate_every.max(1));
        let score = due.then(|| self.learner.score(self.validation, self.reporter));
        let score = score.transpose()?;
        if let Some(score) = score {
            next.stale += 1;
            if next.best.is_none_or(|best| score > best.score) {
                next.stale = 0;
                let step = next.step;
                next.best = Some(Best { step, score });
                weights::save(&self.out.join(WEIGHTS), self.learner.params())?;
            }
        }
        let entry = Epoch {
            step: next.step,
            loss: next.loss / per_epoch as f64,
            rate: self.rate(next.step - 1),
            score,
        };
        next.history.push(entry);
        next.loss = 0.0;
        self.state = next;
        tracing::info!(
            epoch,
            step = entry.step,
            loss = entry.loss,
            score = entry.score,
            metric = self.learner.metric(),
            lr = entry.rate,
            "epoch"
        );
        self.checkpoint()
    }

    fn checkpoint(&self) -> Result<()> {
        let path = self.out.join(LAST);
        checkpoint::save(&path, self.learner.params(), &self.optimiser, &self.state)
    }

    fn checkpoint_if_cancelled(&self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = &outcome
            && error.kind == ErrorKind::Cancelled
        {
            self.checkpoint()?;
        }
        outcome
    }

    /// Writes the report and removes the checkpoint.
    fn finish(self) -> Result<FitReport> {
        let Some(best) = self.state.best else {
            return Err(Error::config("there is nothing to train in 0 epochs").at("epochs"));
        };
        let report = Report {
            steps: self.state.step,
            best_step: best.step,
            loss: self.state.history.last().map_or(0.0, |epoch| epoch.loss),
            metric: self.learner.metric().to_owned(),
            score: best.score,
            epochs: self.state.history,
        };
        let text = serde_json::to_string_pretty(&report)?;
        weights::write_atomically(&self.out.join(REPORT), format!("{text}\n").as_bytes())?;
        remove(self.out.join(LAST))?;
        Ok(FitReport {
            steps: report.steps,
            best_step: report.best_step,
            loss: report.loss,
            metric: report.metric.into(),
            score: report.score,
        })
    }
}

fn remove(path: PathBuf) -> Result<()> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
            .or_error(ErrorKind::Data, || {
                format!("cannot remove `{}`", path.display())
            }),
        _ => Ok(()),
    }
}

/// Sends the batches of `steps` until one fails or nobody listens any more.
fn prepare_batches<L: Learner>(
    learner: &L,
    train: &BoxDataset,
    plan: Plan,
    steps: impl Iterator<Item = u64>,
    queue: &SyncSender<Result<L::Batch>>,
) {
    for step in steps {
        let samples = plan.indices(step).into_iter().map(|i| train.sample(i));
        let samples: Result<Vec<Sample>> = samples.collect();
        let batch = samples.and_then(|samples| learner.prepare(samples, step));
        let failed = batch.is_err();
        if queue.send(batch).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
