//! The segmenter `unet` from outside: it agrees with PyTorch, learns, answers for any size, and goes on
//! where it was stopped.

use crate::data::{Discs, SIDE, StopAfter, dice, discs, enlarge, files};
use diffaug::stage::{Progress, Segmenter as _, Silent, with_reporter};
use diffaug::{Context, prelude::*};
use diffaug_baselines::unet::{Architecture, UNet};
use diffaug_nn::segmenter::{Direct, Network, Pass, Trained};
use diffaug_nn::{Device, layers::Mode, ops, params::Params, testing::close, weights};
use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

type Segmenter = Trained<Direct<UNet>>;
type Options = diffaug_nn::segmenter::Options<Architecture>;

/// The network of that width and depth.
fn unet(params: &mut Params, outputs: usize, width: usize, depth: usize) -> UNet {
    let architecture = Architecture {
        width,
        depth,
        ..Architecture::default()
    };
    UNet::new(params.root(), &architecture, outputs, (SIDE, SIDE)).unwrap()
}

/// Discs, of which the last half is synthetic and far brighter.
struct Painted(u64);

impl Dataset for Painted {
    fn info(&self) -> Result<DatasetInfo> {
        discs(1, 1, 1).info()
    }

    fn items(&self) -> Result<RVec<Item>> {
        let items = discs(self.0, 1, 1).items()?.into_iter().zip(0..);
        let half = self.0 / 2;
        let item = |(item, at)| Item {
            synthetic: at >= half,
            ..item
        };
        Ok(items.map(item).collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let mut sample = discs(self.0, 1, 1).sample(index)?;
        if index % self.0 >= self.0 / 2 {
            let bytes = sample.image.bytes_mut();
            bytes
                .iter_mut()
                .for_each(|value| *value = value.saturating_add(60));
        }
        Ok(sample)
    }
}

#[test]
fn statistics_formed_anew_are_of_real_images() {
    let options = |more: &str| {
        format!(
            r#"{{"architecture": {{"width": 4, "depth": 1}},
                 "train": {{"steps": 6, "batch": 4, "lr": 0.01{more}}}}}"#
        )
    };
    let run = |more: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (train, validation) = (BoxDataset::new(Painted(16)), discs(4, 1, 2));
        let fit = || {
            let out = folder.path().to_str().unwrap();
            with_reporter(&Silent, |reporter| {
                segmenter(&options(more)).fit(&train, &validation, out.into(), reporter)
            })
        };
        fit().unwrap();
        let once = files(folder.path());
        // Again, as after a kill: what is there is found to be done, or done again.
        fit().unwrap();
        assert_eq!(once, files(folder.path()));
        weights::read(&folder.path().join("weights.safetensors")).unwrap()
    };
    let (mixed, real) = (run(""), run(r#", "real_statistics": true"#));
    // What was trained is the same.
    let (mut statistics, mut means) = (0, Vec::new());
    for (name, tensor) in &mixed {
        let same = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            == real[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(same, !name.contains("running"), "{name}");
        statistics += usize::from(!same);
        if name.ends_with("running_mean") {
            means.push(name.clone());
        }
    }
    assert_eq!(statistics, 2 * means.len());

    // The first layer's mean is that of its convolution over the real images.
    let (first, weight) = (
        &real["entry.norm1.running_mean"],
        &real["entry.conv1.weight"],
    );
    let images: Vec<Image> = (0..8)
        .map(|i| Painted(16).sample(i).unwrap().image)
        .collect();
    let views: Vec<ImageRef<'_>> = images.iter().map(Image::view).collect();
    let frame = diffaug_nn::batch::Frame::padded((SIDE, SIDE), 2);
    let input = diffaug_nn::batch::images(&views, frame, &Device::Cpu).unwrap();
    let y = ops::conv2d(&input, weight, None).unwrap();
    let expected = y.mean((0, 2, 3)).unwrap();
    close(first, &expected, 1e-4);
}

fn segmenter(options: &str) -> Segmenter {
    let options: Options = serde_json::from_str(options).unwrap();
    Segmenter::from_config(options, &Context::default()).unwrap()
}

fn fit(options: &str, classes: u8, out: &Path, progress: &impl Progress) -> Result<FitReport> {
    let (train, validation) = (discs(24, classes, 1), discs(8, classes, 2));
    let out = out.to_str().unwrap();
    with_reporter(progress, |reporter| {
        segmenter(options).fit(&train, &validation, out.into(), reporter)
    })
}

fn trained(options: &str, folder: &Path) -> Segmenter {
    let mut options: serde_json::Value = serde_json::from_str(options).unwrap();
    options["weights"] = folder.to_str().unwrap().into();
    segmenter(&options.to_string())
}

fn segment(segmenter: &Segmenter, images: &[&Image]) -> Vec<Segmentation> {
    let views: Vec<ImageRef<'_>> = images.iter().map(|image| image.view()).collect();
    let answers = with_reporter(&Silent, |reporter| {
        segmenter.segment(RSlice::from_slice(&views), reporter)
    });
    answers.unwrap().into()
}

const SMALL: &str = r#"{"architecture": {"width": 4, "depth": 2},
    "train": {"epochs": 12, "batch": 4, "lr": 0.01, "warmup": 5}}"#;

#[test]
fn an_answer_that_is_no_number_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for (classes, factor) in [
        ("[[1, \"a\"]]", f64::NAN),
        ("[[1, \"a\"], [2, \"b\"]]", f64::INFINITY),
    ] {
        let config = format!(
            r#"{{"model": {{"plugin": "unet", "architecture": {{"width": 4, "depth": 2}}, "input": [32, 32], "classes": {classes}}}}}"#
        );
        fs::write(folder.path().join("config.json"), config).unwrap();
        let outputs = if classes.contains("2") { 3 } else { 1 };
        let mut params = Params::new(&Device::Cpu, 0);
        unet(&mut params, outputs, 4, 2);
        let head = params
            .all()
            .find(|(name, _)| *name == "head.weight")
            .unwrap()
            .1;
        head.set(&(head.as_detached_tensor() * factor).unwrap())
            .unwrap();
        weights::save(&folder.path().join("weights.safetensors"), &params).unwrap();
        let segmenter = trained(r#"{"images_at_once": 1}"#, folder.path());
        let image = discs(1, 1, 0).sample(0).unwrap().image;
        let views = [image.view(); 2];
        let error = with_reporter(&Silent, |reporter| {
            segmenter.segment(RSlice::from_slice(&views), reporter)
        });
        let error = error.unwrap_err();
        assert!(!error.is_fault());
        let text = error.to_string();
        assert!(text.starts_with("image 0 cannot be segmented"), "{text}");
    }
}

#[test]
fn claims_larger_than_the_weights_take_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"model": {"plugin": "unet", "architecture": {"width": 350, "depth": 5},
        "input": [32, 32], "classes": [[1, "a"]]}}"#;
    fs::write(folder.path().join("config.json"), config).unwrap();
    let mut params = Params::new(&Device::Cpu, 0);
    unet(&mut params, 1, 4, 2);
    weights::save(&folder.path().join("weights.safetensors"), &params).unwrap();
    let options = serde_json::json!({"weights": folder.path()});
    let options: Options = serde_json::from_value(options).unwrap();
    let error = Segmenter::from_config(options, &Context::default())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("values, but the network has"),
        "{error}"
    );
}

#[test]
fn it_learns_discs_and_finds_them_at_any_size() {
    let folder = tempfile::tempdir().unwrap();
    let report = fit(SMALL, 1, folder.path(), &Silent).unwrap();
    assert!(report.score > 0.9, "{report:?}");
    assert_eq!(report.metric.as_str(), "validation dice");
    let segmenter = trained(SMALL, folder.path());
    let classes = segmenter.classes().unwrap();
    assert_eq!(
        (classes.len(), classes[0].label, classes[0].name.as_str()),
        (1, 1, "disc")
    );

    let unseen = discs(6, 1, 3);
    let samples: Vec<Sample> = (0..6).map(|i| unseen.sample(i).unwrap()).collect();
    // The last image is three times as large, so the batch mixes sizes.
    let large = enlarge(&samples[5], 3);
    let mut images: Vec<&Image> = samples.iter().map(|sample| &sample.image).collect();
    images.push(&large.image);
    let answers = segment(&segmenter, &images);
    for (answer, sample) in answers.iter().zip(samples.iter().chain([&large])) {
        assert_eq!(answer.mask.size(), sample.mask.size());
        let dice = dice(&answer.mask, &sample.mask, 1);
        assert!(dice > 0.85, "{}: {dice}", sample.id);
        let over = |(p, label): (&f32, &u8)| (0.0..=1.0).contains(p) && (*p > 0.5) == (*label == 1);
        assert!(
            answer
                .probability
                .iter()
                .zip(answer.mask.labels())
                .all(over)
        );
    }
    // Alone, every image gets the same answer.
    assert_eq!(segment(&segmenter, &images[2..3])[0], answers[2]);
}

#[test]
fn several_classes_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let options = SMALL.replace("\"width\": 4, \"depth\": 2", "\"width\": 6, \"depth\": 2");
    let options = options.replace("\"epochs\": 12", "\"epochs\": 25");
    let report = fit(&options, 2, folder.path(), &Silent).unwrap();
    assert!(report.score > 0.9, "{report:?}");
    let segmenter = trained(SMALL, folder.path());
    assert_eq!(segmenter.classes().unwrap().len(), 2);
    let unseen = discs(4, 2, 3);
    for (index, label) in [(0, 1), (1, 2)] {
        let sample = unseen.sample(index).unwrap();
        let answer = &segment(&segmenter, &[&sample.image])[0];
        assert!(dice(&answer.mask, &sample.mask, label) > 0.9);
    }
}

#[test]
fn runs_are_equal_to_the_last_bit_stopped_or_not() {
    let options = r#"{"architecture": {"width": 4, "depth": 1}, "size": 20,
        "train": {"epochs": 3, "batch": 8, "warmup": 2}}"#;
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let expected = fit(options, 1, folders[0].path(), &Silent).unwrap();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    pool.install(|| fit(options, 1, folders[1].path(), &Silent))
        .unwrap();
    assert!(files(folders[0].path()) == files(folders[1].path()));
    let stop = StopAfter(5, AtomicBool::new(false));
    let error = fit(options, 1, folders[2].path(), &stop).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert!(
        files(folders[2].path())
            .iter()
            .any(|file| file.0 == "last.safetensors")
    );
    assert_eq!(
        fit(options, 1, folders[2].path(), &Silent).unwrap(),
        expected
    );
    assert!(files(folders[0].path()) == files(folders[2].path()));
}

#[test]
fn with_other_options_runs_are_equal_to_the_last_bit_too() {
    let options = r#"{"architecture": {"width": 4, "depth": 1}, "size": 20,
        "train": {"epochs": 3, "batch": 4, "accumulate": 2, "warmup": 2, "optimizer": "sgd",
        "schedule": "plateau", "plateau_patience": 0, "lr": 0.05, "ema": 0.9, "evaluate_every": 2,
        "checkpoint_every": 4, "recompute": true}}"#;
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = fit(options, 1, folders[0].path(), &Silent).unwrap();
    let stop = StopAfter(5, AtomicBool::new(false));
    fit(options, 1, folders[1].path(), &stop).unwrap_err();
    assert_eq!(
        fit(options, 1, folders[1].path(), &Silent).unwrap(),
        expected
    );
    assert!(files(folders[0].path()) == files(folders[1].path()));
}

#[test]
fn in_half_precision_it_learns_as_well() {
    let loss = |precision: &str| {
        let folder = tempfile::tempdir().unwrap();
        let options = format!(
            r#"{{"architecture": {{"width": 2, "depth": 1}}, "size": 16,
                 "train": {{"epochs": 2, "precision": "{precision}"}}}}"#
        );
        fit(&options, 1, folder.path(), &Silent).unwrap().loss
    };
    let exact = loss("f32");
    let half = loss("f16");
    assert!((half - exact).abs() < 0.02 * exact, "{half} {exact}");
}

#[test]
fn progress_tells_step_and_loss() {
    struct Steps(AtomicU64);
    impl Progress for Steps {
        fn progress(&self, done: u64, total: u64, note: &str) {
            assert_eq!(total, 6);
            assert!(note.starts_with("loss "), "{note}");
            assert_eq!(done > 3, note.contains(" dice "), "{note}");
            self.0.fetch_max(done, Ordering::Relaxed);
        }
        fn cancelled(&self) -> bool {
            false
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let options =
        r#"{"architecture": {"width": 1, "depth": 1}, "size": 8, "train": {"epochs": 2}}"#;
    let steps = Steps(AtomicU64::new(0));
    fit(options, 1, folder.path(), &steps).unwrap();
    assert_eq!(steps.0.into_inner(), 6);
}

#[test]
fn without_weights_it_says_so() {
    let segmenter = segmenter("{}");
    assert!(segmenter.classes().unwrap().is_empty());
    let error = with_reporter(&Silent, |reporter| {
        segmenter.segment(RSlice::EMPTY, reporter)
    });
    let error = error.unwrap_err();
    assert_eq!(error.field, "weights");
    assert!(error.message.contains("has no weights"));
}

#[test]
fn a_folder_without_weights_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let message = |config: &str| {
        fs::write(folder.path().join("config.json"), config).unwrap();
        let options = format!(r#"{{"weights": {:?}}}"#, folder.path());
        let options: Options = serde_json::from_str(&options).unwrap();
        let Err(error) = Segmenter::from_config(options, &Context::default()) else {
            panic!("accepted {config}");
        };
        assert_eq!(error.field, "weights");
        error.to_string()
    };
    assert!(message("{}").contains("is no folder that training `unet` left"));
    let other = r#"{"model": {"plugin": "x", "architecture": {"width": 1, "depth": 1}, "input": [8, 8], "classes": [[1, "a"]]}}"#;
    assert!(message(other).contains("holds a network of the plugin `x`, not of `unet`"));
    let wide = other
        .replace("\"x\"", "\"unet\"")
        .replace("\"width\": 1", "\"width\": 0");
    assert!(message(&wide).contains("`architecture.width` is 0"));
    assert!(message(&other.replace("\"x\"", "\"unet\"")).contains("cannot read the weights"));
}

#[test]
fn images_of_different_sizes_need_a_size() {
    struct Odd(Discs);
    impl Dataset for Odd {
        fn info(&self) -> Result<DatasetInfo> {
            self.0.info()
        }
        fn items(&self) -> Result<RVec<Item>> {
            self.0.items()
        }
        fn sample(&self, index: u64) -> Result<Sample> {
            let sample = self.0.sample(index)?;
            Ok(if index % 4 == 2 {
                enlarge(&sample, 2)
            } else {
                sample
            })
        }
    }
    let odd = || {
        BoxDataset::new(Odd(Discs {
            count: 4,
            classes: 1,
            seed: 1,
            side: SIDE,
        }))
    };
    let run = |options: &str| {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().to_str().unwrap();
        with_reporter(&Silent, |reporter| {
            segmenter(options).fit(&odd(), &odd(), out.into(), reporter)
        })
    };
    let error =
        run(r#"{"architecture": {"width": 1, "depth": 1}, "train": {"epochs": 1}}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image `disc-2` is 64x64, others are 32x32: set the option `size`"
    );
    run(r#"{"architecture": {"width": 1, "depth": 1}, "train": {"epochs": 1}, "size": 16}"#)
        .unwrap();
}

#[test]
fn the_network_agrees_with_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/unet.safetensors");
    let fixture = weights::read(&path).unwrap();
    let part = |prefix: &str| {
        let named = fixture.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(prefix)?.strip_prefix('.')?;
            Some((name.to_owned(), tensor.clone()))
        });
        named.collect::<HashMap<_, _>>()
    };
    let mut params = Params::new(&Device::Cpu, 0);
    let net = unet(&mut params, 1, 4, 2);
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("weights.safetensors");
    let tensors: Vec<_> = part("weights").into_iter().collect();
    fs::write(&own, safetensors::serialize(tensors, None).unwrap()).unwrap();
    weights::load(&own, &params).unwrap();

    let images = &fixture["images"];
    close(
        &net.forward(images, &Pass::ANSWER).unwrap(),
        &fixture["eval"],
        1e-5,
    );
    let learning = Pass {
        mode: Mode::Train,
        ..Pass::ANSWER
    };
    let logits = net.forward(images, &learning).unwrap();
    close(&logits, &fixture["train"], 1e-5);
    let targets = images.narrow(1, 0, 1).unwrap().gt(0.5).unwrap();
    let targets = targets.to_dtype(logits.dtype()).unwrap();
    let loss = ops::bce_with_logits(&logits, &targets).unwrap();
    let grads = loss.backward().unwrap();
    let expected = part("gradients");
    for (name, var) in params.trainable() {
        close(grads.get(var).unwrap(), &expected[name], 1e-4);
    }
    let after = part("after");
    for (name, var) in params.all().filter(|(name, _)| name.contains("running")) {
        close(var, &after[name], 1e-5);
    }
}
