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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use diffaug::{
        Attributes, DatasetInfo, Image, Item, Mask,
        prelude::RVec,
        stage::{Progress, Silent, with_reporter},
    };
    use std::sync::Mutex;

    /// Samples whose brightness tells their index; every epoch is a little brighter.
    struct Greys(u64);

    impl Dataset for Greys {
        fn info(&self) -> Result<DatasetInfo> {
            Ok(DatasetInfo::single_class("greys", "grey"))
        }
        fn items(&self) -> Result<RVec<diffaug::Item>> {
            Ok((0..self.0).map(|i| Item::new(&i.to_string())).collect())
        }
        fn sample(&self, index: u64) -> Result<Sample> {
            let value = (index % self.0 * 20 + index / self.0).min(255) as u8;
            Ok(Sample {
                id: index.to_string().into(),
                image: Image::new(1, 1, vec![value; 3])?,
                mask: Mask::new(1, 1, vec![1])?,
                attributes: Attributes::new(),
            })
        }
    }

    /// Learns y = a x + b with a buffer that counts.
    struct Line {
        params: Params,
        weights: Tensor,
        seen: Var,
        /// Loss at that step is NaN.
        nan_at: Option<u64>,
        batches: Mutex<Vec<usize>>,
    }

    impl Line {
        fn new() -> Self {
            let mut params = Params::new(&Device::Cpu, 3);
            let weights = params.root().uniform("weights", &[2, 1], 1.0).unwrap();
            let seen = params.root().buffer("seen", &[1], 0.0).unwrap();
            Line {
                params,
                weights,
                seen,
                nan_at: None,
                batches: Mutex::default(),
            }
        }
    }

    impl Learner for Line {
        type Batch = Vec<f32>;
        fn params(&self) -> &Params {
            &self.params
        }
        fn prepare(&self, samples: Vec<Sample>, _: u64) -> Result<Vec<f32>> {
            let value = |s: &Sample| f32::from(s.image.pixels()[0]) / 255.0;
            Ok(samples.iter().map(value).collect())
        }
        fn loss(&self, batch: Vec<f32>, step: u64) -> Result<Tensor> {
            let count = batch.len();
            self.batches.lock().unwrap().push(count);
            self.seen
                .set(&(self.seen.as_detached_tensor() + count as f64)?)?;
            let rows: Vec<f32> = batch.iter().flat_map(|x| [*x, 1.0]).collect();
            let wanted: Vec<f32> = batch.iter().map(|x| 2.0 * x - 0.5).collect();
            let y = Tensor::from_vec(rows, (count, 2), &Device::Cpu)?.matmul(&self.weights)?;
            let wanted = Tensor::from_vec(wanted, (count, 1), &Device::Cpu)?;
            let loss = (y - wanted)?.sqr()?.mean_all()?;
            let nan = self.nan_at == Some(step);
            Ok(if nan { (loss * f64::NAN)? } else { loss })
        }
        fn score(&self, validation: &BoxDataset, _: &Reporter<'_>) -> Result<f64> {
            let samples = (0..validation.items()?.len() as u64).map(|i| validation.sample(i));
            let batch = self.prepare(samples.collect::<Result<_>>()?, 0)?;
            let errors = batch.iter().map(|x| {
                let w = self.weights.flatten_all()?.to_vec1::<f32>()?;
                Ok(f64::from(w[0] * x + w[1] - (2.0 * x - 0.5)).abs())
            });
            Ok(-errors.sum::<Result<f64>>()?)
        }
        fn metric(&self) -> &str {
            "validation closeness"
        }
    }

    fn settings() -> Settings {
        Settings {
            epochs: 6,
            batch: 3,
            learning_rate: 0.05,
            weight_decay: 0.01,
            clip: 1.0,
            warmup: 2,
            patience: 0,
            evaluate_every: 2,
            seed: 5,
        }
    }

    fn train(
        line: &Line,
        settings: &Settings,
        out: &Path,
        progress: &impl Progress,
    ) -> Result<FitReport> {
        let (train, validation) = (BoxDataset::new(Greys(7)), BoxDataset::new(Greys(4)));
        let model = json!({ "kind": "line" });
        with_reporter(progress, |reporter| {
            fit(line, settings, &model, &train, &validation, out, reporter)
        })
    }

    /// Names and bytes of a folder's files.
    fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    /// Asks to stop at a step and copies the folder at another.
    #[derive(Default)]
    struct Watch {
        stop_at: u64,
        copy: Option<(u64, PathBuf, PathBuf)>,
        done: Mutex<u64>,
    }

    impl Progress for Watch {
        fn progress(&self, done: u64, total: u64, note: &str) {
            assert!(done <= total && note.starts_with("loss "), "{note}");
            *self.done.lock().unwrap() = done;
            if let Some((at, from, to)) = &self.copy
                && *at == done
            {
                fs::create_dir_all(to).unwrap();
                for (name, bytes) in files(from) {
                    fs::write(to.join(name), bytes).unwrap();
                }
            }
        }
        fn cancelled(&self) -> bool {
            *self.done.lock().unwrap() == self.stop_at && self.stop_at > 0
        }
    }

    #[test]
    fn it_learns_and_leaves_what_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let line = Line::new();
        let mut settings = settings();
        (settings.epochs, settings.learning_rate) = (120, 0.1);
        let report = train(&line, &settings, folder.path(), &Silent).unwrap();
        // 7 samples in batches of at most 3: three steps of 2, 2 and 3.
        assert_eq!(report.steps, 360);
        let batches = line.batches.lock().unwrap().clone();
        assert!(batches.iter().all(|n| *n == 2 || *n == 3));
        assert_eq!(batches.iter().sum::<usize>(), 7 * 120);
        assert!(report.score > -0.3 && report.loss < 0.01, "{report:?}");
        let names: Vec<String> = files(folder.path()).into_iter().map(|f| f.0).collect();
        assert_eq!(names, [CONFIG, REPORT, WEIGHTS]);
        let kept = Line::new();
        weights::load(&folder.path().join(WEIGHTS), &kept.params).unwrap();
        let score = with_reporter(&Silent, |r| kept.score(&BoxDataset::new(Greys(4)), r));
        assert_eq!(score.unwrap(), report.score);
    }

    #[test]
    fn a_finished_run_is_not_trained_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = train(&Line::new(), &settings(), folder.path(), &Silent).unwrap();
        let before = files(folder.path());
        let line = Line::new();
        let second = train(&line, &settings(), folder.path(), &Silent).unwrap();
        assert_eq!(first, second);
        assert_eq!(before, files(folder.path()));
        assert!(line.batches.lock().unwrap().is_empty());
    }

    #[test]
    fn stopped_at_any_step_it_ends_with_the_same_bytes() {
        let whole = tempfile::tempdir().unwrap();
        let expected = train(&Line::new(), &settings(), whole.path(), &Silent).unwrap();
        for stop_at in [1, 2, 3, 7, 9, 17, 18] {
            let folder = tempfile::tempdir().unwrap();
            let watch = Watch {
                stop_at,
                ..Watch::default()
            };
            let error = train(&Line::new(), &settings(), folder.path(), &watch).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Cancelled);
            let report = train(&Line::new(), &settings(), folder.path(), &Silent).unwrap();
            assert_eq!(report, expected);
            assert_eq!(
                files(whole.path()),
                files(folder.path()),
                "stopped at {stop_at}"
            );
        }
    }

    #[test]
    fn killed_at_any_step_it_ends_with_the_same_bytes() {
        let whole = tempfile::tempdir().unwrap();
        train(&Line::new(), &settings(), whole.path(), &Silent).unwrap();
        for at in [1, 4, 6, 11] {
            let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let copy = other.path().join("copy");
            let watch = Watch {
                copy: Some((at, folder.path().to_owned(), copy.clone())),
                ..Watch::default()
            };
            train(&Line::new(), &settings(), folder.path(), &watch).unwrap();
            train(&Line::new(), &settings(), &copy, &Silent).unwrap();
            assert_eq!(files(whole.path()), files(&copy), "killed at {at}");
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_names_its_step_and_keeps_the_best() {
        let folder = tempfile::tempdir().unwrap();
        let line = Line {
            nan_at: Some(10),
            ..Line::new()
        };
        let error = train(&line, &settings(), folder.path(), &Silent).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Model);
        assert!(
            error
                .message
                .starts_with("the loss became NaN at step 11 (epoch 4)"),
            "{error}"
        );
        assert!(error.message.contains("holds those of step 6"), "{error}");
        assert!(folder.path().join(WEIGHTS).exists());
    }

    #[test]
    fn a_folder_serves_one_run() {
        let folder = tempfile::tempdir().unwrap();
        train(&Line::new(), &settings(), folder.path(), &Silent).unwrap();
        let mut other = settings();
        other.learning_rate = 0.5;
        let error = train(&Line::new(), &other, folder.path(), &Silent).unwrap_err();
        assert!(
            error
                .message
                .contains("`training.learning_rate` = 0.05, not 0.5"),
            "{error}"
        );
    }

    #[test]
    fn without_progress_it_stops() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings();
        (settings.learning_rate, settings.patience) = (1e-12, 2);
        settings.evaluate_every = 1;
        settings.epochs = 50;
        let report = train(&Line::new(), &settings, folder.path(), &Silent).unwrap();
        assert!(report.steps < 60, "{report:?}");
    }

    #[test]
    fn every_epoch_visits_every_sample_once() {
        let plan = Plan::new(&settings(), 7);
        for epoch in 0..3 {
            let steps = epoch * 3..(epoch + 1) * 3;
            let mut seen: Vec<u64> = steps.flat_map(|step| plan.indices(step)).collect();
            let first = seen.clone();
            seen.sort_unstable();
            assert_eq!(seen, (epoch * 7..(epoch + 1) * 7).collect::<Vec<_>>());
            assert_ne!(seen, first);
        }
    }

    #[test]
    fn an_empty_dataset_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (train, none) = (BoxDataset::new(Greys(3)), BoxDataset::new(Greys(0)));
        let error = with_reporter(&Silent, |reporter| {
            let model = json!({});
            fit(
                &Line::new(),
                &settings(),
                &model,
                &train,
                &none,
                folder.path(),
                reporter,
            )
        });
        let message = error.unwrap_err().to_string();
        assert_eq!(message, "there are no samples for validation");
    }
}
