//! Training: a small model from nothing, adapters and whole networks of a model that there is;
//! stopped and gone on with, and used afterwards.

#![allow(clippy::unwrap_used)]

use diffaug::{
    Context, Image, Job, Mask, PromptQuery,
    prelude::*,
    rng,
    stage::{Progress, Silent, with_reporter},
};
use diffaug_sdxl_inpaint::{Options, SdxlInpaint};
use rand::RngExt;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

const SIDE: u32 = 64;

/// Red or green discs on brown noise.
struct Discs {
    count: u64,
    seed: u64,
}

impl Dataset for Discs {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(DatasetInfo::single_class("discs", "polyp"))
    }

    fn items(&self) -> Result<RVec<Item>> {
        Ok((0..self.count)
            .map(|i| Item::new(&format!("disc-{i}")))
            .collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let index = index % self.count;
        let mut rng = rng::stream(self.seed, "disc", index);
        let mut centre = || rng.random_range(20.0..44.0f32);
        let (cx, cy) = (centre(), centre());
        let radius = rng.random_range(8.0..14.0f32);
        let red = index.is_multiple_of(2);
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for i in 0..SIDE * SIDE {
            let (x, y) = ((i % SIDE) as f32, (i / SIDE) as f32);
            let inside = (x - cx).hypot(y - cy) < radius;
            let colour = match (inside, red) {
                (false, _) => [120, 90, 60],
                (true, true) => [200, 40, 40],
                (true, false) => [40, 180, 40],
            };
            let noise = rng.random_range(-10..=10i32);
            pixels.extend(colour.map(|c: i32| (c + noise) as u8));
            labels.push(u8::from(inside));
        }
        let mut attributes = Attributes::new();
        attributes.set_text("colour", if red { "red" } else { "green" });
        Ok(Sample {
            id: format!("disc-{index}").into(),
            image: Image::new(SIDE, SIDE, pixels)?,
            mask: Mask::new(SIDE, SIDE, labels)?,
            attributes,
        })
    }
}

/// Names the colour.
struct Colours;

impl PromptBank for Colours {
    fn draw(&self, queries: RSlice<'_, PromptQuery<'_>>, _: u64) -> Result<RVec<Prompt>> {
        let prompt = |query: &PromptQuery<'_>| Prompt {
            positive: format!("{} polyp", query.attributes.text("colour").unwrap_or("any")).into(),
            negative: "healthy mucosa".into(),
            tags: RVec::new(),
        };
        Ok(queries.iter().map(prompt).collect())
    }
}

fn generator(options: &Value) -> SdxlInpaint {
    let options: Options = serde_json::from_value(options.clone()).unwrap();
    SdxlInpaint::validate(&options).unwrap();
    SdxlInpaint::from_config(options, &Context::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn fit(options: &Value, out: &Path, progress: &impl Progress) -> Result<FitReport> {
    let train = BoxDataset::new(Discs { count: 12, seed: 1 });
    let validation = BoxDataset::new(Discs { count: 5, seed: 2 });
    let bank = BoxPromptBank::new(Colours);
    let out = out.to_str().unwrap();
    with_reporter(progress, |reporter| {
        generator(options).fit(&train, &validation, &bank, out.into(), reporter)
    })
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

fn paint(options: &Value, prompt: &str) -> Image {
    let sample = Discs { count: 1, seed: 3 }.sample(0).unwrap();
    let job = Job {
        source: "disc-0".into(),
        image: sample.image.view(),
        mask: sample.mask.view(),
        prompt: prompt.into(),
        negative: "".into(),
        seed: 5,
    };
    let painted = with_reporter(&Silent, |r| {
        generator(options).generate([job][..].into(), r)
    });
    painted.unwrap().into_iter().next().unwrap()
}

/// Every file but those that hold times.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("log.jsonl") {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn assert_same(a: &Path, b: &Path) {
    let short = |folder: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let files = files(folder).into_iter();
        files
            .map(|(path, bytes)| (path.strip_prefix(folder).unwrap().to_owned(), bytes))
            .collect()
    };
    let (a, b) = (short(a), short(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (path, bytes) in &a {
        assert!(b[path] == *bytes, "`{}` differs", path.display());
    }
}

fn log(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("training/denoiser/log.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The loss on validation pictures, the same draws every time: first and best.
fn losses(folder: &Path) -> (f64, f64) {
    let scores = log(folder)
        .into_iter()
        .filter_map(|line| line["score"].as_f64());
    let losses: Vec<f64> = scores.map(|score| -score).collect();
    let best = losses[1..].iter().copied().fold(f64::INFINITY, f64::min);
    (losses[0], best)
}

fn scratch(steps: u64) -> Value {
    json!({
        "window": "mask",
        "resolution": 32,
        "steps": 4,
        "guidance": 1.0,
        "train": {
            "init": "scratch", "steps": steps, "batch": 4, "lr": 2e-3, "warmup": 5, "views": 3,
            "evaluate_every": 6, "checkpoint_every": 5, "ema": 0.9, "loss": "mse", "min_snr": 5.0,
            "architecture": {
                "autoencoder": [8, 8, 16], "unet": [16, 32], "unet_layers": 1, "head": 8,
                "text": 16, "text_layers": 1, "tokens": 8,
            },
            "autoencoder": {"steps": 24, "batch": 4, "evaluate_every": 12, "checkpoint_every": 5},
        },
    })
}

#[test]
fn a_small_model_from_nothing_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let report = fit(&scratch(60), folder.path(), &Silent).unwrap();
    assert_eq!(report.steps, 60);
    let (first, last) = losses(folder.path());
    assert!(last < 0.96 * first, "{first} {last}");
    assert!(!folder.path().join("training/kept").exists());
    for file in [
        "model_index.json",
        "diffaug.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
    ] {
        assert!(folder.path().join(file).is_file(), "{file}");
    }
    // How windows are cut need not be said again.
    let options = json!({"weights": folder.path(), "steps": 4, "guidance": 2.0});
    let painted = paint(&options, "red polyp");
    let source = Discs { count: 1, seed: 3 }.sample(0).unwrap().image;
    assert_ne!(painted, source);
    assert_ne!(painted, paint(&options, "green polyp"));
    // In half precision and without what going on would need, it paints much the same.
    let packed = folder.path().join("packed");
    let from = Options::default();
    let found = SdxlInpaint::convert(&from, folder.path(), &packed).unwrap();
    assert!(found.contains("half precision"), "{found}");
    assert!(!packed.join("training").exists());
    let small = json!({"weights": packed, "steps": 4, "guidance": 2.0});
    let difference = painted
        .pixels()
        .iter()
        .zip(paint(&small, "red polyp").pixels())
        .map(|(a, b)| f64::from(a.abs_diff(*b)))
        .sum::<f64>()
        / painted.pixels().len() as f64;
    assert!(difference < 1.0, "{difference}");
    fs::remove_dir_all(packed).unwrap();
    let none = SdxlInpaint::convert(&from, Path::new("/"), folder.path()).unwrap_err();
    assert!(
        none.to_string().contains("no folder that training left"),
        "{none}"
    );
    // A finished training is not repeated.
    let before = files(folder.path());
    fit(&scratch(60), folder.path(), &Silent).unwrap();
    assert!(before.keys().eq(files(folder.path()).keys()));
}

#[test]
fn stopped_at_any_time_it_ends_with_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    fit(&scratch(12), whole.path(), &Silent).unwrap();
    let cut = tempfile::tempdir().unwrap();
    // In the midst of the autoencoder, at its end, and in the midst of the network.
    for stop in [7, 17, 4, 5] {
        let error = fit(&scratch(12), cut.path(), &StopAt(AtomicU64::new(stop))).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }
    fit(&scratch(12), cut.path(), &Silent).unwrap();
    assert_same(whole.path(), cut.path());
}

#[test]
fn blocks_of_pixels_take_the_place_of_an_autoencoder() {
    let mut options = scratch(60);
    options["train"]["architecture"]["autoencoder"] = json!("unshuffle");
    options["train"]["architecture"]["noise_shift"] = json!(1.5);
    let whole = tempfile::tempdir().unwrap();
    fit(&options, whole.path(), &Silent).unwrap();
    let (first, last) = losses(whole.path());
    assert!(last < 0.96 * first, "{first} {last}");
    let used = |weights: &Path| json!({"weights": weights, "steps": 4, "guidance": 2.0});
    let painted = paint(&used(whole.path()), "red polyp");
    assert_ne!(painted, paint(&used(whole.path()), "green polyp"));
    // Nothing is lost on the way to latents and back: what is not forgotten stays as it is.
    let mut kept = used(whole.path());
    kept["strength"] = json!(0.0);
    kept["window"] = json!("full");
    let source = Discs { count: 1, seed: 3 }.sample(0).unwrap().image;
    let same = paint(&kept, "red polyp");
    let pairs = same.pixels().iter().zip(source.pixels());
    assert!(pairs.clone().all(|(a, b)| a.abs_diff(*b) <= 1));
    let cut = tempfile::tempdir().unwrap();
    for stop in [3, 6] {
        let error = fit(&options, cut.path(), &StopAt(AtomicU64::new(stop))).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }
    fit(&options, cut.path(), &Silent).unwrap();
    assert_same(whole.path(), cut.path());
}

#[test]
fn without_guidance_no_text_is_used() {
    let folder = tempfile::tempdir().unwrap();
    fit(&scratch(12), folder.path(), &Silent).unwrap();
    let with = |guidance: f64, prompt: &str| {
        let options = json!({"weights": folder.path(), "steps": 3, "guidance": guidance});
        paint(&options, prompt)
    };
    assert_eq!(with(0.0, "red polyp"), with(0.0, "green polyp"));
    assert_eq!(with(0.0, "red polyp"), with(1.0, ""));
    assert_ne!(with(1.0, "red polyp"), with(1.0, "green polyp"));
}

fn xl() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/xl")
}

fn finetune(method: &str, more: Value) -> Value {
    let mut train = json!({
        "method": method, "steps": 24, "batch": 3, "lr": 3e-3, "warmup": 2, "views": 2,
        "evaluate_every": 4, "checkpoint_every": 12, "final_lr": 1.0, "rank": 4,
    });
    for (name, value) in more.as_object().unwrap() {
        train[name] = value.clone();
    }
    json!({"base": xl(), "steps": 3, "train": train})
}

#[test]
fn an_adapter_lowers_the_loss_and_changes_what_is_painted() {
    let folder = tempfile::tempdir().unwrap();
    let more =
        json!({"checkpointing": true, "targets": ["to_q", "to_k", "to_v", "to_out.0", "conv_in"]});
    fit(&finetune("lora", more), folder.path(), &Silent).unwrap();
    let (first, last) = losses(folder.path());
    assert!(last < first, "{first} {last}");
    let painted = |weights: &Path| paint(&json!({"weights": weights, "steps": 3}), "red polyp");
    assert_ne!(painted(folder.path()), painted(&xl()));
    assert!(
        folder
            .path()
            .join("pytorch_lora_weights.safetensors")
            .is_file()
    );
    // The same file can be added to the model by hand.
    let by_hand = json!({
        "weights": xl(), "steps": 3,
        "lora": [{"path": folder.path().join("pytorch_lora_weights.safetensors")}],
    });
    assert_eq!(paint(&by_hand, "red polyp"), painted(folder.path()));
}

#[test]
fn a_whole_network_lowers_the_loss_and_is_a_model_again() {
    for loss in ["paper", "mse", "masked"] {
        let folder = tempfile::tempdir().unwrap();
        let more = json!({"loss": loss, "noise_offset": 0.05, "accumulate": 2});
        fit(&finetune("full", more), folder.path(), &Silent).unwrap();
        let (first, last) = losses(folder.path());
        assert!(last < first, "{loss}: {first} {last}");
        let painted = |weights: &Path| paint(&json!({"weights": weights, "steps": 3}), "red polyp");
        assert_ne!(painted(folder.path()), painted(&xl()));
    }
}

#[test]
fn a_base_that_gives_no_numbers_ends_the_training_at_its_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    copy(&xl(), &base);
    let path = base.join("unet/diffusion_pytorch_model.safetensors");
    let mut tensors = diffaug_nn::weights::read(&path).unwrap();
    let weight = tensors.get_mut("conv_in.weight").unwrap();
    *weight = (&*weight * f64::NAN).unwrap();
    diffaug_nn::weights::save_tensors(&path, tensors, &[]).unwrap();
    for method in ["lora", "full"] {
        let mut options = finetune(method, json!({}));
        options["base"] = json!(base);
        let error = fit(&options, &folder.path().join(method), &Silent).unwrap_err();
        assert!(!error.is_fault(), "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with("the loss became NaN at step 1 (epoch 1)"),
            "{text}"
        );
        assert!(
            text.contains("look whether the weights that it begins with"),
            "{text}"
        );
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn what_cannot_be_trained_is_told_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let message = |options: &Value| fit(options, folder.path(), &Silent).unwrap_err();
    let error = message(&json!({}));
    assert_eq!(error.field, "base");
    assert!(
        error.to_string().contains("there is nothing to fine-tune"),
        "{error}"
    );
    let error = message(&finetune("lora", json!({"targets": ["to_x"]})));
    assert_eq!(error.field, "train.targets");
    let options: Options =
        serde_json::from_value(json!({"train": {"prompt_dropout": 2.0}})).unwrap();
    assert_eq!(
        SdxlInpaint::validate(&options).unwrap_err().field,
        "train.prompt_dropout"
    );
}
