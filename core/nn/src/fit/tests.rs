//! Tests of `fit`.

#![allow(clippy::unwrap_used)]

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
