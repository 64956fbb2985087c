//! Training on drawings, and what a segmenter promises besides.

#![allow(clippy::unwrap_used)]

mod beginning;
mod reference;

use crate::{
    description::Description,
    network::{self, Network},
    options::Options,
    segmenter::{LatentSeg, SdSeg},
    training::{Trainee, dice_error},
};
use candle_core::{Device, Tensor, Var};
use diffaug::{
    BoxDataset, Class, Context, DatasetInfo, Image, Mask, Progress, Silent, metrics::mean_dice,
    prelude::*, segmenting, stage::Segmenter as Stage, with_reporter,
};
use diffaug_models::{Vae, compressor};
use diffaug_nn::{
    DType,
    diffusion::Autoencoder,
    fit::Learner,
    params::Params,
    recompute,
    testing::{assert_all_trained, close, random},
    weights,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

fn parsed(options: &Value) -> Options {
    serde_json::from_value(options.clone()).unwrap()
}

/// A small autoencoder with random weights.
fn vae() -> Vae {
    let config = compressor::architecture(&[8, 8], 1, 3, false, 16);
    let mut params = Params::new(&Device::Cpu, 3);
    Autoencoder::new(params.root(), &config).unwrap();
    let tensors = params
        .all()
        .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
    let mut frozen = Params::frozen(&Device::Cpu, tensors.collect());
    Vae::full(
        Autoencoder::new(frozen.root(), &config).unwrap(),
        DType::F32,
    )
}

/// Small networks.
fn small() -> Value {
    json!({
        "threshold": 0.5,
        "architecture": {
            "width": 8, "multipliers": [1, 2], "layers": 1, "heads": 2, "attention": [2],
            "groups": 4, "vision": [8], "vision_layers": 1, "features": 3, "latent": 3,
            "autoencoder": [8, 8],
        },
    })
}

fn with(mut options: Value, changes: Value) -> Value {
    fn lay(over: &mut Value, changes: Value) {
        match (over, changes) {
            (Value::Object(map), Value::Object(changes)) => {
                for (key, value) in changes {
                    lay(map.entry(key).or_insert(Value::Null), value);
                }
            }
            (over, value) => *over = value,
        }
    }
    lay(&mut options, changes);
    options
}

fn two_classes() -> DatasetInfo {
    let mut info = DatasetInfo::single_class("drawings", "disc");
    info.classes.push(Class {
        label: 2,
        name: "bar".into(),
        target: true,
    });
    info
}

/// Networks without zeros at the ends of their branches, which would hide what is before them.
fn network(options: &Options, info: &DatasetInfo) -> Network {
    let targets = segmenting::targets(info).unwrap();
    let description = Description::new(options, targets, (16, 16), (2, 3)).unwrap();
    let network = Network::new(description, Params::new(&Device::Cpu, 1), vae()).unwrap();
    for (name, var) in network.params.trainable() {
        let values = random(name, var.dims());
        if !name.contains("norm") && var.rank() > 1 {
            var.set(&(values * 0.2).unwrap()).unwrap();
        }
    }
    network
}

#[test]
fn every_trainable_tensor_learns_whatever_is_chosen() {
    let choices = [
        json!({}),
        json!({ "preset": "sdseg", "architecture": { "vision": [8, 8] } }),
        json!({ "vision_input": "pixel", "architecture": { "vision": [8, 8] } }),
        json!({ "prediction": "v_prediction", "zero_terminal_snr": true, "objective": { "last": 0.5 } }),
        json!({ "prediction": "sample", "train": { "recompute": true } }),
    ];
    for choice in choices {
        for info in [DatasetInfo::single_class("drawings", "disc"), two_classes()] {
            let options = parsed(&with(
                with(small(), json!({ "train": { "batch": 2 } })),
                choice.clone(),
            ));
            options.check().unwrap();
            let learner = Trainee {
                network: network(&options, &info),
                options: &options,
                seed: 4,
            };
            let samples = (0..2).map(|index| Drawings::new(4, 1).sample(index).unwrap());
            let batch = learner.prepare(samples.collect(), 0).unwrap();
            let loss = learner.loss(batch, 0).unwrap();
            let grads = recompute::backward(&loss).unwrap();
            assert_all_trained(learner.params().trainable(), &grads);
        }
    }
}

#[test]
fn the_error_of_the_latent_is_that_of_the_noise_weighed() {
    // Once in noise space, and once from the clean latents themselves.
    let options = parsed(&with(
        small(),
        json!({ "objective": { "lambda_dice": 0.0 }, "architecture": { "dropout": 0.0 } }),
    ));
    let learner = Trainee {
        network: network(&options, &DatasetInfo::single_class("drawings", "disc")),
        options: &options,
        seed: 4,
    };
    let samples = (0..3).map(|index| Drawings::new(4, 1).sample(index).unwrap());
    let batch = learner.prepare(samples.collect(), 0).unwrap();
    let output = random("output", batch.z0.dims());
    let (schedule, t) = (&learner.network.schedule, &batch.t);
    let noisy = schedule.add_noise(&batch.z0, &batch.noise, t).unwrap();
    let clean = schedule
        .clean(options.prediction(), &output, &noisy, t)
        .unwrap();
    let mean = |x: Tensor| x.abs().unwrap().flatten_from(1).unwrap().mean(1).unwrap();
    let of_noise = mean((&output - &batch.noise).unwrap());
    let of_latent = mean((clean - &batch.z0).unwrap());
    let ours = learner.latent_losses(&batch, &output, &noisy).unwrap();
    close(&ours, &(of_noise + of_latent).unwrap(), 1e-4);
}

#[test]
fn the_dice_loss_moves_wrong_pixels_that_are_beyond_black_and_white() {
    // Wrong, right, and in range; first where a lesion is, then where none is.
    let pixels = [-4.0f32, 4.0, 0.25, 4.0, -4.0, 0.25];
    let truth = [1.0f32, 1.0, 1.0, 0.0, 0.0, 0.0];
    let channels = Tensor::new(&pixels, &Device::Cpu).unwrap();
    let channels = channels.reshape((1, 1, 2, 3)).unwrap();
    let pixels = Var::from_tensor(&channels.repeat((1, 3, 1, 1)).unwrap()).unwrap();
    let truth = Tensor::new(&truth, &Device::Cpu).unwrap();
    let truth = truth.reshape((1, 1, 2, 3)).unwrap();
    let found = network::grey(&pixels, 1).unwrap();
    let grads = dice_error(&found, &truth).unwrap().backward().unwrap();
    let grad = grads.get(&pixels).unwrap();
    let grad: Vec<f32> = grad
        .narrow(1, 0, 1)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    assert!(grad[0] < 0.0 && grad[3] > 0.0, "wrong: {grad:?}");
    assert_eq!((grad[1], grad[4]), (0.0, 0.0), "right: {grad:?}");
    // In range they are what they are without a clamp beyond it: those of the other pixels of the kind.
    assert_eq!((grad[0], grad[3]), (grad[2], grad[5]));
}

#[test]
fn an_answer_depends_on_its_image_alone() {
    for choice in [
        json!({}),
        json!({ "steps": 3 }),
        json!({ "noise": "zeros" }),
    ] {
        let options = parsed(&with(small(), choice));
        let network = network(&options, &two_classes());
        let samples: Vec<Sample> = (0..3)
            .map(|i| Drawings::new(4, 1).sample(i).unwrap())
            .collect();
        let images: Vec<ImageRef<'_>> = samples.iter().map(|s| s.image.view()).collect();
        let together = network.segment(&images, &options, 7).unwrap();
        let turned: Vec<ImageRef<'_>> = images.iter().rev().copied().collect();
        let turned = network.segment(&turned, &options, 7).unwrap();
        for (i, image) in images.iter().enumerate() {
            let alone = &network.segment(&[*image], &options, 7).unwrap()[0];
            for other in [&together[i], &turned[2 - i]] {
                assert_eq!(alone.mask, other.mask);
                let pairs = alone.probability.iter().zip(&other.probability);
                assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
    }
}

/// The error that segmenting ends in when the weight `name` of the networks is multiplied by `factor`.
fn broken(name: &str, factor: f64) -> String {
    let options = parsed(&with(small(), json!({ "steps": 3 })));
    let network = network(&options, &two_classes());
    let var = network
        .params
        .all()
        .find(|(known, _)| *known == name)
        .unwrap()
        .1;
    var.set(&(var.as_detached_tensor() * factor).unwrap())
        .unwrap();
    let sample = Drawings::new(4, 1).sample(0).unwrap();
    let error = network
        .segment_from(5, &[sample.image.view()], &options, 7)
        .unwrap_err();
    assert!(!error.is_fault());
    error.to_string()
}

#[test]
fn an_answer_that_is_no_number_is_an_error() {
    for factor in [f64::NAN, f64::INFINITY] {
        let text = broken("vision.out.weight", factor);
        assert!(
            text.starts_with("image 5 cannot be segmented: in the condition"),
            "{text}"
        );
        let text = broken("denoiser.out.2.weight", factor);
        assert!(
            text.contains("in denoising step 1 of 3 a value became NaN"),
            "{text}"
        );
    }
}

/// Bright discs and, in a second class, dark bars on a grey ground.
struct Drawings {
    count: u64,
    seed: u64,
    size: u32,
    both: bool,
}

impl Drawings {
    fn new(count: u64, seed: u64) -> Self {
        Drawings {
            count,
            seed,
            size: 16,
            both: true,
        }
    }
}

impl Dataset for Drawings {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(match self.both {
            true => two_classes(),
            false => DatasetInfo::single_class("drawings", "disc"),
        })
    }

    fn items(&self) -> Result<RVec<Item>> {
        let item = |index| Item::new(&format!("drawing-{index}"));
        Ok((0..self.count).map(item).collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let (size, index) = (self.size, index % self.count);
        let chance = |what: &str, below: u32| {
            let key = format!("{what} {index}");
            (diffaug::rng::derive(self.seed, "drawing", &key) % u64::from(below)) as u32
        };
        let radius = 2 + chance("radius", size / 8);
        let (x0, y0) = (
            radius + chance("x", size - 2 * radius),
            radius + chance("y", size - 2 * radius),
        );
        let bar = chance("bar", size - 2);
        let (mut labels, mut pixels) = (Vec::new(), Vec::new());
        for y in 0..size {
            for x in 0..size {
                let inside = x.abs_diff(x0).pow(2) + y.abs_diff(y0).pow(2) <= radius * radius;
                let label = match inside {
                    true => 1,
                    false if self.both && (bar..bar + 2).contains(&y) => 2,
                    false => 0,
                };
                labels.push(label);
                pixels.extend([[110, 110, 110], [230, 200, 40], [20, 30, 60]][usize::from(label)]);
            }
        }
        Ok(Sample {
            id: format!("drawing-{index}").into(),
            image: Image::new(size, size, pixels)?,
            mask: Mask::new(size, size, labels)?,
            attributes: Attributes::new(),
        })
    }
}

fn stage(options: &Value) -> LatentSeg {
    let options = parsed(options);
    LatentSeg::validate(&options).unwrap();
    LatentSeg::from_config(options, &Context::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn fit(options: &Value, both: bool, out: &Path, progress: &impl Progress) -> Result<FitReport> {
    let data = |count, seed| {
        BoxDataset::new(Drawings {
            both,
            ..Drawings::new(count, seed)
        })
    };
    let (train, validation) = (data(24, 1), data(6, 2));
    let out = out.to_str().unwrap();
    with_reporter(progress, |reporter| {
        stage(options).fit(&train, &validation, out.into(), reporter)
    })
}

/// A training of seconds that finds the drawings.
fn quick() -> Value {
    with(
        small(),
        json!({
            "prediction": "sample",
            "architecture": {
                "width": 16, "vision": [16], "autoencoder": [32, 32], "latent": 3, "dropout": 0.0,
            },
            "objective": { "last": 0.8, "lambda_dice": 0.5 },
            "train": {
                "steps": 600, "batch": 8, "accumulate": 1, "lr": 4e-3,
                "evaluate_every": 100, "checkpoint_every": 100,
            },
            "autoencoder": {
                "steps": 600, "batch": 8, "lr": 2e-3, "kl": 1e-5, "gradient": 0.0,
                "evaluate_every": 300,
            },
        }),
    )
}

fn dice(options: &Value, out: &Path, both: bool) -> f64 {
    let options = with(options.clone(), json!({ "weights": out.to_str().unwrap() }));
    let test = Drawings {
        both,
        ..Drawings::new(8, 9)
    };
    let samples: Vec<Sample> = (0..8).map(|i| test.sample(i).unwrap()).collect();
    let images: Vec<ImageRef<'_>> = samples.iter().map(|s| s.image.view()).collect();
    let stage = stage(&options);
    let found = with_reporter(&Silent, |r| stage.segment(images.as_slice().into(), r)).unwrap();
    let labels: Vec<u8> = stage.classes().unwrap().iter().map(|c| c.label).collect();
    let each = samples
        .iter()
        .zip(&found)
        .map(|(sample, found)| mean_dice(sample.mask.view(), found.mask.view(), &labels).unwrap());
    each.sum::<f64>() / 8.0
}

#[test]
fn it_learns_to_find_drawings_of_two_classes() {
    let out = tempfile::tempdir().unwrap();
    fit(&quick(), true, out.path(), &Silent).unwrap();
    let found = dice(&quick(), out.path(), true);
    assert!(found > 0.6, "Dice {found}");
    // More steps are for the ablation; they find much the same.
    let iterative = dice(&with(quick(), json!({ "steps": 5 })), out.path(), true);
    assert!(iterative > 0.5, "Dice {iterative} in five steps");
    // In half precision and without what going on would need, it finds the same.
    let packed = out.path().join("packed");
    LatentSeg::convert(&parsed(&quick()), out.path(), &packed).unwrap();
    assert!((dice(&quick(), &packed, true) - found).abs() < 0.02);
    assert!(!packed.join("log.jsonl").exists() && !packed.join("autoencoder").exists());
}

/// Cancels at the `n`-th report.
struct StopAt(AtomicU64);

impl Progress for StopAt {
    fn progress(&self, _: u64, _: u64, _: &str) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// Every file but those that hold times.
fn files(folder: &Path, below: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, below));
        } else if !path.ends_with("log.jsonl") {
            let name = path.strip_prefix(below).unwrap().to_owned();
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_training_that_was_stopped_anywhere_ends_with_the_same_bytes() {
    let options = with(
        small(),
        json!({ "preset": "sdseg", "architecture": { "vision": [8, 8] }, "train": {
            "steps": 6, "batch": 4, "evaluate_every": 3, "checkpoint_every": 2, "recompute": true,
        }, "objective": { "lambda_dice": 0.1 },
        "autoencoder": { "steps": 4, "batch": 4, "evaluate_every": 2, "checkpoint_every": 1 } }),
    );
    let whole = tempfile::tempdir().unwrap();
    fit(&options, false, whole.path(), &Silent).unwrap();
    let cut = tempfile::tempdir().unwrap();
    for stop in [2, 4, 3] {
        let stopped = fit(&options, false, cut.path(), &StopAt(AtomicU64::new(stop)));
        assert_eq!(stopped.unwrap_err().kind, ErrorKind::Cancelled);
    }
    fit(&options, false, cut.path(), &Silent).unwrap();
    assert_eq!(
        files(whole.path(), whole.path()),
        files(cut.path(), cut.path())
    );
}

#[test]
fn training_begins_with_weights_that_are_there() {
    let options = with(
        small(),
        json!({
            "train": { "steps": 2, "batch": 4, "evaluate_every": 2 },
            "autoencoder": { "steps": 2, "batch": 4, "evaluate_every": 2 },
        }),
    );
    let first = tempfile::tempdir().unwrap();
    fit(&options, false, first.path(), &Silent).unwrap();
    let base = first.path().to_str().unwrap();
    let vae = first.path().join("vae");
    for (init, same) in [("all", true), ("encoder_only", false)] {
        let second = tempfile::tempdir().unwrap();
        let changes = json!({ "base": base, "init": init, "vae": vae.to_str().unwrap(), "seed": 5,
            "train": { "steps": 1, "lr": 1e-12, "weight_decay": 0.0 } });
        fit(
            &with(options.clone(), changes),
            false,
            second.path(),
            &Silent,
        )
        .unwrap();
        let read = |folder: &Path| weights::read(&folder.join("weights.safetensors")).unwrap();
        let (old, new) = (read(first.path()), read(second.path()));
        let name = "denoiser.output_blocks.0.0.in_layers.2.weight";
        let gap = (&old[name] - &new[name])
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        let gap = gap.to_scalar::<f32>().unwrap();
        assert_eq!(gap < 1e-6, same, "{init}: {gap}");
        let name = "denoiser.input_blocks.1.0.in_layers.2.weight";
        close(&old[name], &new[name], 1e-5);
    }
    let nowhere = json!({ "base": "nowhere", "vae": vae.to_str().unwrap() });
    let out = tempfile::tempdir().unwrap();
    let error = fit(&with(options, nowhere), false, out.path(), &Silent).unwrap_err();
    assert_eq!(error.field, "base");
}

#[test]
fn weights_of_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let load = || {
        let options = with(
            small(),
            json!({ "weights": folder.path().to_str().unwrap() }),
        );
        let built = LatentSeg::from_config(parsed(&options), &Context::default());
        built.err().unwrap().to_string()
    };
    assert!(
        load().contains("is no folder that training `latent-seg` left"),
        "{}",
        load()
    );
    fs::write(
        folder.path().join("config.json"),
        r#"{"model": {"plugin": "unet"}}"#,
    )
    .unwrap();
    assert!(load().contains("is no folder that training"), "{}", load());
}

#[test]
fn an_inspection_counts_what_there_will_be() {
    let context = Context {
        size: 256,
        ..Context::default()
    };
    let options = parsed(&json!({ "vae": "org/name" }));
    let needs = SdSeg::inspect(&options, &context).unwrap();
    let parts: Vec<(&str, u64)> = needs
        .components
        .iter()
        .map(|c| (c.name.as_str(), c.parameters))
        .collect();
    // The figures of the reference: 34,163,628 and 294,973,828.
    assert_eq!(parts, [("vision", 34_163_628), ("denoiser", 294_973_828)]);
    let small = LatentSeg::inspect(&parsed(&small()), &context).unwrap();
    assert_eq!(small.components.len(), 3);
    assert!(small.train_bytes > small.run_bytes / 4 && small.missing.is_empty());
    // Weights that are there are counted with the autoencoder beside them.
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../manifests/weights/segmenter"
    );
    let there = LatentSeg::inspect(&parsed(&json!({ "weights": folder })), &context).unwrap();
    let values: u64 = there.components.iter().map(|c| c.parameters).sum();
    assert_eq!(values, 972_803);
    let gone = parsed(&json!({ "weights": "nowhere" }));
    assert_eq!(
        LatentSeg::inspect(&gone, &context).unwrap().missing.len(),
        1
    );
}
