//! Tests of `fit`.

#![allow(clippy::unwrap_used)]

use super::{log::Line as Entry, *};
use crate::{
    optim::{Decay, Group, Plateau, Rule, Schedule},
    precision,
};
use candle_core::{DType, Device, Var};
use diffaug::{
    Attributes, DatasetInfo, Image, Item, Mask,
    prelude::RVec,
    stage::{Progress, Silent, with_reporter},
};
use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

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
    precision: Precision,
    /// What the loss is multiplied by.
    loud: f64,
    score_is_nan: AtomicBool,
    /// Whether every score is below the one before.
    worsens: bool,
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
            precision: Precision::F32,
            loud: 1.0,
            score_is_nan: AtomicBool::new(false),
            worsens: false,
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
        let rows = Tensor::from_vec(rows, (count, 2), &Device::Cpu)?;
        let rows = self.precision.cast(&rows)?;
        let y = rows.matmul(&precision::like(&self.weights, &rows)?)?;
        let y = y.to_dtype(DType::F32)?;
        let wanted = Tensor::from_vec(wanted, (count, 1), &Device::Cpu)?;
        let loss = ((y - wanted)?.sqr()?.mean_all()? * self.loud)?;
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
        if self.score_is_nan.load(Ordering::Relaxed) {
            return Ok(f64::NAN);
        }
        if self.worsens {
            return Ok(-f64::from(self.seen.sum_all()?.to_scalar::<f32>()?));
        }
        Ok(10.0 - errors.sum::<Result<f64>>()?)
    }
    fn metric(&self) -> &str {
        "validation closeness"
    }
    fn precision(&self) -> Precision {
        self.precision
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
        ..Settings::default()
    }
}

/// Everything that remembers something switched on.
fn everything() -> Settings {
    Settings {
        epochs: 4,
        batch: 1,
        accumulate: 2,
        optimizer: Rule::sgd(0.9),
        schedule: Schedule::Plateau(Plateau {
            factor: 0.5,
            patience: 0,
            threshold: 0.5,
            cooldown: 1,
            lowest: 0.0,
        }),
        ema: Some(Averaging {
            decay: Decay::Warmup { decay: 0.9 },
            evaluate: true,
            only: None,
        }),
        evaluate_every: 1,
        evaluate_steps: 3,
        checkpoint_every: 5,
        keep_last: true,
        ..settings()
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

/// Names and bytes of a folder's files, but for those that hold times.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let timeless = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name != LOG && name != EVENTS
    };
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(timeless)
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
            fs::copy(from.join(LOG), to.join(LOG)).unwrap();
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
    assert!(report.score > 9.7 && report.loss < 0.01, "{report:?}");
    let names: Vec<String> = files(folder.path()).into_iter().map(|f| f.0).collect();
    assert_eq!(names, [CONFIG, REPORT, WEIGHTS]);
    assert_eq!(log(folder.path()).len(), 360 + 60);
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
fn killed_after_its_report_it_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    train(&Line::new(), &settings(), folder.path(), &Silent).unwrap();
    let whole = files(folder.path());
    fs::write(folder.path().join(LAST), "the checkpoint").unwrap();
    let keeping = Settings {
        keep_last: true,
        ..settings()
    };
    for (settings, kept) in [(keeping, true), (settings(), false)] {
        train(&Line::new(), &settings, folder.path(), &Silent).unwrap();
        assert_eq!(folder.path().join(LAST).exists(), kept);
    }
    assert_eq!(files(folder.path()), whole);
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
fn with_everything_on_it_ends_with_the_same_bytes_stopped_at_any_step() {
    let whole = tempfile::tempdir().unwrap();
    let expected = train(&Line::new(), &everything(), whole.path(), &Silent).unwrap();
    assert_eq!(expected.steps, 16);
    for stop_at in 1..=16 {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch {
            stop_at,
            ..Watch::default()
        };
        train(&Line::new(), &everything(), folder.path(), &watch).unwrap_err();
        let report = train(&Line::new(), &everything(), folder.path(), &Silent).unwrap();
        assert_eq!(report, expected);
        assert_eq!(files(whole.path()), files(folder.path()), "at {stop_at}");
        assert_eq!(log(whole.path()), log(folder.path()), "at {stop_at}");
    }
}

#[test]
fn with_everything_on_it_ends_with_the_same_bytes_killed_at_any_step() {
    let whole = tempfile::tempdir().unwrap();
    train(&Line::new(), &everything(), whole.path(), &Silent).unwrap();
    for at in 1..=16 {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let copy = other.path().join("copy");
        let watch = Watch {
            copy: Some((at, folder.path().to_owned(), copy.clone())),
            ..Watch::default()
        };
        train(&Line::new(), &everything(), folder.path(), &watch).unwrap();
        train(&Line::new(), &everything(), &copy, &Silent).unwrap();
        assert_eq!(files(whole.path()), files(&copy), "killed at {at}");
        assert_eq!(log(whole.path()), log(&copy), "killed at {at}");
    }
}

#[test]
fn a_run_of_so_many_steps_ends_amid_an_epoch_and_with_the_same_bytes() {
    // Two and a third epochs of three steps.
    let limited = Settings {
        steps: Some(7),
        evaluate_every: u64::MAX,
        evaluate_steps: 4,
        checkpoint_every: 3,
        ..settings()
    };
    let whole = tempfile::tempdir().unwrap();
    let expected = train(&Line::new(), &limited, whole.path(), &Silent).unwrap();
    assert_eq!(expected.steps, 7);
    let scored: Vec<u64> = log(whole.path())
        .iter()
        .filter(|line| line.score.is_some())
        .map(|line| line.step)
        .collect();
    assert_eq!(scored, [4, 7]);
    for at in 1..=7 {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let copy = other.path().join("copy");
        let watch = Watch {
            copy: Some((at, folder.path().to_owned(), copy.clone())),
            ..Watch::default()
        };
        train(&Line::new(), &limited, folder.path(), &watch).unwrap();
        train(&Line::new(), &limited, &copy, &Silent).unwrap();
        assert_eq!(files(whole.path()), files(&copy), "killed at {at}");
    }
}

/// Dies at a step, without a chance to close anything.
struct Dies(u64);

impl Progress for Dies {
    fn progress(&self, done: u64, _: u64, _: &str) {
        if done == self.0 {
            std::process::abort();
        }
    }
    fn cancelled(&self) -> bool {
        false
    }
}

const DYING: &str = "DIFFAUG_TEST_DIES_IN";

/// What [`a_process_that_dies_loses_nothing`] starts; by itself it does nothing.
#[test]
fn dying() {
    if let Ok(folder) = std::env::var(DYING) {
        let (folder, at) = folder.rsplit_once(':').unwrap();
        let at = at.parse().unwrap();
        train(&Line::new(), &everything(), Path::new(folder), &Dies(at)).unwrap();
    }
}

#[test]
fn a_process_that_dies_loses_nothing() {
    let whole = tempfile::tempdir().unwrap();
    train(&Line::new(), &everything(), whole.path(), &Silent).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Between checkpoints, twice, and in the step that has one.
    for at in [2, 8, 10, 13] {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fit::tests::dying"])
            .env(DYING, format!("{}:{at}", folder.path().display()))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success());
        assert!(!folder.path().join(REPORT).exists());
    }
    train(&Line::new(), &everything(), folder.path(), &Silent).unwrap();
    assert_eq!(files(whole.path()), files(folder.path()));
    assert_eq!(log(whole.path()), log(folder.path()));
}

/// The log without its times.
fn log(folder: &Path) -> Vec<Entry> {
    let text = fs::read_to_string(folder.join(LOG)).unwrap();
    let line = |line: &str| Entry {
        seconds: 0.0,
        ..serde_json::from_str(line).unwrap()
    };
    text.lines().map(line).collect()
}

#[test]
fn the_log_tells_steps_and_scores() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = everything();
    (settings.log_every, settings.tensorboard) = (2, true);
    train(&Line::new(), &settings, folder.path(), &Silent).unwrap();
    let (scores, steps): (Vec<Entry>, Vec<Entry>) = log(folder.path())
        .into_iter()
        .partition(|l| l.score.is_some());
    let numbers = |lines: &[Entry]| lines.iter().map(|l| l.step).collect::<Vec<_>>();
    assert_eq!(numbers(&steps), [2, 4, 6, 8, 10, 12, 14, 16]);
    // After every third step, and after every epoch of four.
    assert_eq!(numbers(&scores), [3, 4, 6, 8, 9, 12, 15, 16]);
    assert!(
        steps
            .iter()
            .all(|l| l.loss > Some(0.0) && l.grad_norm > Some(0.0))
    );
    assert_eq!((steps[0].epoch, steps[2].epoch), (Some(1), Some(2)));
    // Warm-up is over after two steps, and the plateau lowers the rate then.
    assert_eq!(steps[0].lr, Some(0.05));
    assert!(steps[7].lr < Some(0.05));
    let events: Vec<_> = fs::read_dir(folder.path().join(EVENTS)).unwrap().collect();
    assert_eq!(events.len(), 1);
}

#[test]
fn several_batches_make_the_step_of_a_large_one() {
    let weights = |batch: usize, accumulate: usize| {
        let folder = tempfile::tempdir().unwrap();
        let line = Line::new();
        let settings = Settings {
            batch,
            accumulate,
            ..settings()
        };
        train(&line, &settings, folder.path(), &Silent).unwrap();
        let batches = line.batches.lock().unwrap().len();
        (
            line.weights
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap(),
            batches,
        )
    };
    // Steps of 3 and 4 samples; batches of 1, 2 or 4.
    let (large, batches) = weights(4, 1);
    assert_eq!(batches, 2 * 6);
    for (batch, accumulate) in [(2, 2), (1, 4)] {
        let (small, batches) = weights(batch, accumulate);
        assert!(batches >= 4 * 6);
        for (a, b) in large.iter().zip(&small) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}

#[test]
fn the_running_mean_is_judged_or_stored_beside() {
    let run = |evaluate: bool, only: Option<&'static str>| {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = everything();
        let decay = Decay::Fixed { decay: 0.95 };
        settings.ema = Some(Averaging {
            decay,
            evaluate,
            only,
        });
        settings.schedule = Schedule::Constant;
        train(&Line::new(), &settings, folder.path(), &Silent).unwrap();
        let read = |name| {
            let line = Line::new();
            let loaded = weights::load(&folder.path().join(name), &line.params);
            loaded.ok().map(|()| {
                line.weights
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
            })
        };
        (read(WEIGHTS).unwrap(), read(AVERAGED))
    };
    let (judged, beside) = run(true, None);
    assert!(beside.is_none());
    let (plain, beside) = run(false, None);
    assert_ne!(plain, judged);
    assert_ne!(Some(&plain), beside.as_ref());
    // What the mean is not formed of is judged as it is.
    assert_eq!(run(true, Some("other")).0, plain);
    assert_eq!(run(true, Some("weig")).0, judged);
}

#[test]
fn what_is_frozen_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.groups = vec![Group {
        names: "weights".into(),
        frozen: true,
        ..Group::default()
    }];
    let (line, fresh) = (Line::new(), Line::new());
    train(&line, &settings, folder.path(), &Silent).unwrap();
    let values = |line: &Line| {
        line.weights
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    assert_eq!(values(&line), values(&fresh));
    settings.groups[0].names = "other".into();
    let folder = tempfile::tempdir().unwrap();
    let error = train(&line, &settings, folder.path(), &Silent).unwrap_err();
    assert_eq!(error.field, "groups");
}

#[test]
fn it_learns_in_half_precision() {
    let weights = |precision: Precision| {
        let folder = tempfile::tempdir().unwrap();
        let line = Line {
            precision,
            ..Line::new()
        };
        let mut settings = settings();
        (settings.epochs, settings.learning_rate) = (120, 0.1);
        let report = train(&line, &settings, folder.path(), &Silent).unwrap();
        assert!(report.loss < 0.01, "{report:?}");
        let norms = log(folder.path()).into_iter().filter_map(|l| l.grad_norm);
        norms.fold(0.0, f64::max)
    };
    let exact = weights(Precision::F32);
    for precision in [Precision::Bf16, Precision::F16] {
        let norm = weights(precision);
        assert!((norm - exact).abs() < 0.05 * exact, "{norm} {exact}");
    }
}

#[test]
fn in_half_precision_a_step_too_large_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line {
        precision: Precision::F16,
        loud: 1024.0,
        ..Line::new()
    };
    let report = train(&line, &everything(), folder.path(), &Silent).unwrap();
    assert_eq!(report.steps, 16);
    let steps = log(folder.path()).into_iter().filter(|l| l.loss.is_some());
    let norms: Vec<Option<f64>> = steps.map(|l| l.grad_norm).collect();
    // 65536 times 1024 is too much for f16; the scale is halved until it fits.
    assert!(norms[0].is_none() && norms[15].is_some(), "{norms:?}");
}

#[test]
fn in_half_precision_it_goes_on_with_the_same_bytes() {
    let half = || Line {
        precision: Precision::F16,
        ..Line::new()
    };
    let whole = tempfile::tempdir().unwrap();
    train(&half(), &everything(), whole.path(), &Silent).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let watch = Watch {
        stop_at: 7,
        ..Watch::default()
    };
    train(&half(), &everything(), folder.path(), &watch).unwrap_err();
    train(&half(), &everything(), folder.path(), &Silent).unwrap();
    assert_eq!(files(whole.path()), files(folder.path()));
    let error = train(&Line::new(), &everything(), folder.path(), &Silent).unwrap_err();
    assert!(error.message.contains("training.precision"), "{error}");
}

#[test]
fn a_checkpoint_with_another_order_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let watch = Watch {
        stop_at: 3,
        ..Watch::default()
    };
    train(&Line::new(), &settings(), folder.path(), &watch).unwrap_err();
    let path = folder.path().join(LAST);
    let bytes = fs::read(&path).unwrap();
    let (old, new) = (br#"fisher-yates"#, br#"fisher-yatez"#);
    let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
    let mut changed = bytes.clone();
    changed[at..at + old.len()].copy_from_slice(new);
    fs::write(&path, changed).unwrap();
    let error = train(&Line::new(), &settings(), folder.path(), &Silent).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(r#"`order.scheme` = "order/fisher-yatez""#),
        "{error}"
    );
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
    assert!(
        error
            .message
            .contains("`last.safetensors` holds those of step 9"),
        "{error}"
    );
    // From there it goes on, and comes to the same point.
    let good = fs::read(folder.path().join(WEIGHTS)).unwrap();
    let again = Line {
        nan_at: Some(10),
        ..Line::new()
    };
    let second = train(&again, &settings(), folder.path(), &Silent).unwrap_err();
    assert_eq!(error.message, second.message);
    assert_eq!(again.batches.lock().unwrap().len(), 2);
    assert_eq!(good, fs::read(folder.path().join(WEIGHTS)).unwrap());
}

#[test]
fn a_score_that_is_not_finite_names_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new();
    line.score_is_nan.store(true, Ordering::Relaxed);
    let error = train(&line, &settings(), folder.path(), &Silent).unwrap_err();
    let expected = "the validation score became NaN at step 6 (epoch 2)";
    assert!(error.message.starts_with(expected), "{error}");
}

#[test]
fn a_weight_that_is_no_number_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::new();
    let mut root = line.params.root();
    root.buffer("statistics", &[1], f32::INFINITY).unwrap();
    let error = train(&line, &settings(), folder.path(), &Silent).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Model);
    let expected = "a value of the weight `statistics` became NaN at step 6 (epoch 2)";
    assert!(error.message.starts_with(expected), "{error}");
    assert!(!folder.path().join(WEIGHTS).exists());
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

/// [`Greys`] of which the last four are synthetic.
struct Painted;

impl Dataset for Painted {
    fn info(&self) -> Result<DatasetInfo> {
        Greys(7).info()
    }
    fn items(&self) -> Result<RVec<Item>> {
        let items = Greys(7).items()?.into_iter().zip(0..);
        let item = |(item, at)| Item {
            synthetic: at >= 3,
            ..item
        };
        Ok(items.map(item).collect())
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        Greys(7).sample(index)
    }
}

fn train_on_both(settings: &Settings, out: &Path, progress: &impl Progress) -> Result<FitReport> {
    let (train, validation) = (BoxDataset::new(Painted), BoxDataset::new(Greys(4)));
    with_reporter(progress, |reporter| {
        let model = json!({ "kind": "line" });
        fit(
            &Line::new(),
            settings,
            &model,
            &train,
            &validation,
            out,
            reporter,
        )
    })
}

#[test]
fn a_mixed_run_ends_with_the_same_bytes_stopped_at_any_step() {
    let mixed = Settings {
        steps: Some(12),
        mix: Mix::of(Some(0.3), 0.4),
        ..everything()
    };
    let whole = tempfile::tempdir().unwrap();
    let expected = train_on_both(&mixed, whole.path(), &Silent).unwrap();
    assert_eq!(expected.steps, 12);
    for stop_at in 1..=12 {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch {
            stop_at,
            ..Watch::default()
        };
        train_on_both(&mixed, folder.path(), &watch).unwrap_err();
        let report = train_on_both(&mixed, folder.path(), &Silent).unwrap();
        assert_eq!(report, expected);
        assert_eq!(files(whole.path()), files(folder.path()), "at {stop_at}");
    }
    // Another mixture is another run.
    let other = Settings {
        mix: Mix::of(Some(0.5), 0.4),
        ..mixed
    };
    let error = train_on_both(&other, whole.path(), &Silent).unwrap_err();
    assert!(
        error
            .message
            .contains("`training.mix.share` = 0.3, not 0.5"),
        "{error}"
    );
}

#[test]
fn without_a_mixture_synthetic_samples_are_like_others() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train_on_both(&everything(), ours.path(), &Silent).unwrap();
    train(&Line::new(), &everything(), theirs.path(), &Silent).unwrap();
    assert_eq!(files(ours.path()), files(theirs.path()));
}

#[test]
fn the_last_weights_are_kept_where_it_is_said() {
    let settings = |keep| Settings {
        steps: Some(9),
        evaluate_every: u64::MAX,
        evaluate_steps: 2,
        keep,
        ..settings()
    };
    let run = |keep| {
        let folder = tempfile::tempdir().unwrap();
        let line = Line {
            worsens: true,
            ..Line::new()
        };
        let report = train(&line, &settings(keep), folder.path(), &Silent).unwrap();
        let kept = Line::new();
        weights::load(&folder.path().join(WEIGHTS), &kept.params).unwrap();
        let values = |line: &Line| {
            let weights = line.weights.flatten_all().unwrap();
            weights.to_vec1::<f32>().unwrap()
        };
        (report, values(&kept), values(&line))
    };
    let (best, kept, last) = run(Keep::Best);
    assert!(best.best_step == 2 && kept != last, "{best:?}");
    let (report, kept, last_again) = run(Keep::Last);
    assert_eq!((report.steps, report.best_step), (9, 9));
    assert!(report.score < best.score);
    assert_eq!((&kept, &last), (&last, &last_again));
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
