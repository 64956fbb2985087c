//! The memory that `inspect` foretells is that which a process takes, within a factor of two.
//!
//! Every case runs in a process of its own, for the largest size of a process never falls. The
//! factors in `src/unet.rs` and `src/maps.rs` were chosen with the figures that this prints:
//!
//! ```sh
//! cargo test -p diffaug-baselines --test it memory -- --nocapture
//! ```

use diffaug::stage::{Segmenter as _, Silent, with_reporter};
use diffaug::{Context, human_bytes, prelude::*};
use diffaug_baselines::*;
use diffaug_nn::segmenter::{Denoising, Direct, Learned, Options, Trained};
use std::{env, fs, path::Path, process::Command};

/// Segmenter, options, and the side of the images: maps take most, then weights and their checkpoint, for one
/// padded image at a time, then another type than the weights'.
const CASES: [(&str, &str, u32); 16] = [
    (
        "unet",
        r#"{"architecture": {"width": 12, "depth": 3}, "images_at_once": 6, "train": {"batch": 6}}"#,
        96,
    ),
    (
        "unet",
        r#"{"architecture": {"width": 48, "depth": 4}, "images_at_once": 2,
            "train": {"batch": 2, "ema": 0.9}}"#,
        32,
    ),
    (
        "unet",
        r#"{"architecture": {"width": 8, "depth": 2}, "images_at_once": 1,
            "train": {"batch": 1, "optimizer": "sgd"}}"#,
        253,
    ),
    (
        "unet",
        r#"{"architecture": {"width": 6, "depth": 2}, "images_at_once": 4,
            "train": {"batch": 4, "precision": "f16"}}"#,
        96,
    ),
    (
        "unet-resnet50",
        r#"{"architecture": {"width": 16, "decoder": [64, 48, 32, 24, 16]}, "images_at_once": 4,
            "train": {"batch": 4}}"#,
        128,
    ),
    (
        "unet-resnet50",
        r#"{"architecture": {"encoder": "resnet18", "width": 40}, "images_at_once": 2,
            "train": {"batch": 2, "ema": 0.9}}"#,
        64,
    ),
    (
        "unet-resnet50",
        r#"{"architecture": {"encoder": "resnet18", "width": 8, "decoder": [16, 16, 16, 16, 16]},
            "images_at_once": 4, "train": {"batch": 4, "precision": "f16"}}"#,
        96,
    ),
    (
        "transunet",
        r#"{"architecture": {"width": 16, "groups": 8, "units": [3, 4, 3], "hidden": 64, "heads": 4, "mlp": 256,
            "blocks": 4, "bridge": 64, "decoder": [64, 48, 32, 16]}, "images_at_once": 4, "train": {"batch": 4}}"#,
        128,
    ),
    (
        "transunet",
        r#"{"architecture": {"width": 16, "groups": 8, "units": [1, 1, 1], "hidden": 256, "mlp": 1024, "heads": 8,
            "blocks": 6, "bridge": 64, "decoder": [32, 32, 16, 16]}, "images_at_once": 2,
            "train": {"batch": 2, "optimizer": "sgd"}}"#,
        64,
    ),
    (
        "transunet",
        r#"{"architecture": {"width": 8, "groups": 4, "units": [1, 1, 1], "hidden": 48, "mlp": 96, "heads": 4,
            "blocks": 2, "bridge": 48, "decoder": [32, 32, 16, 16]}, "images_at_once": 4,
            "train": {"batch": 4, "precision": "f16"}}"#,
        96,
    ),
    (
        "diff-unet",
        r#"{"architecture": {"widths": [16, 16, 32, 64, 128], "last": 16}, "images_at_once": 4, "train": {"batch": 4},
            "sampling": {"steps": 2, "runs": 2}}"#,
        96,
    ),
    (
        "diff-unet",
        r#"{"architecture": {"widths": [12, 12, 24, 24, 24], "last": 12}, "images_at_once": 2,
            "train": {"batch": 2, "precision": "f16"}, "sampling": {"steps": 2, "runs": 2}}"#,
        96,
    ),
    (
        "diff-trans",
        r#"{"architecture": {"width": 48}, "images_at_once": 2, "train": {"batch": 2},
            "sampling": {"steps": 2, "runs": 2}}"#,
        128,
    ),
    (
        "diff-trans",
        r#"{"architecture": {"width": 24, "depths": [2, 2]}, "images_at_once": 2,
            "train": {"batch": 2, "precision": "f16"}, "sampling": {"steps": 2, "runs": 2}}"#,
        128,
    ),
    (
        "medsegdiff-v1",
        r#"{"architecture": {"denoiser": {"width": 16, "groups": 8}, "highway": {"width": 8}}, "images_at_once": 4,
            "train": {"batch": 4}, "sampling": {"steps": 2, "runs": 2}}"#,
        128,
    ),
    (
        "medsegdiff-v2",
        r#"{"architecture": {"denoiser": {"width": 16, "groups": 8}, "highway": {"width": 8}}, "images_at_once": 2,
            "train": {"batch": 2}, "sampling": {"steps": 2, "runs": 2}}"#,
        192,
    ),
];

/// Tells a child process its case, and whether it trains or answers.
const CASE: &str = "DIFFAUG_MEMORY_CASE";
/// Tells it where the weights are.
const WEIGHTS: &str = "DIFFAUG_MEMORY_WEIGHTS";

/// Grey images with a square.
struct Squares {
    side: u32,
    count: u64,
}

impl Dataset for Squares {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(DatasetInfo::single_class("squares", "square"))
    }

    fn items(&self) -> Result<RVec<Item>> {
        let ids = (0..self.count).map(|i| Item::new(&i.to_string()));
        Ok(ids.collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let pixels = (self.side * self.side) as usize;
        let mut labels = vec![0; pixels];
        labels[pixels / 2..][..20].fill(1);
        Ok(Sample {
            id: (index % self.count).to_string().into(),
            image: Image::new(self.side, self.side, vec![90; 3 * pixels])?,
            mask: Mask::new(self.side, self.side, labels)?,
            attributes: Attributes::new(),
        })
    }
}

fn squares(side: u32, count: u64) -> BoxDataset {
    BoxDataset::new(Squares { side, count })
}

/// A line of this process's status, in bytes.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.unwrap().trim().split(' ').next().unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// Lets a child process work: the memory that it took at most, and the estimate.
fn child(case: usize, what: &str, weights: &Path) -> [u64; 2] {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "--ignored", "--nocapture", "memory::one_case"]);
    child
        .env(CASE, format!("{what} {case}"))
        .env(WEIGHTS, weights);
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let figures = text.lines().find_map(|line| line.split_once("peak "));
    let (peak, estimate) = figures.unwrap().1.split_once(' ').unwrap();
    [peak, estimate].map(|bytes| bytes.parse().unwrap())
}

#[test]
fn estimates_are_within_a_factor_of_two() {
    for (case, (name, options, side)) in CASES.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        for what in ["training", "answering"] {
            let [peak, estimate] = child(case, what, folder.path());
            let ratio = estimate as f64 / peak as f64;
            println!(
                "{name} {options} at {side}x{side}: {what} takes {}, estimated {} ({ratio:.2})",
                human_bytes(peak),
                human_bytes(estimate)
            );
            assert!(
                (0.5..=2.0).contains(&ratio),
                "{name} {options}, {what}: {ratio:.2}"
            );
        }
    }
}

/// Trains or answers, and prints what that took at most beyond what there was before.
#[test]
#[ignore = "runs in a process of its own"]
fn one_case() {
    let Ok(case) = env::var(CASE) else { return };
    let (what, case) = case.split_once(' ').unwrap();
    let (name, json, side) = CASES[case.parse::<usize>().unwrap()];
    let work = match name {
        "unet" => measured::<Direct<unet::UNet>>,
        "unet-resnet50" => measured::<Direct<unet_resnet::UNet>>,
        "transunet" => measured::<Direct<transunet::TransUNet>>,
        "medsegdiff-v1" => measured::<Denoising<medsegdiff::v1::Net>>,
        "medsegdiff-v2" => measured::<Denoising<medsegdiff::v2::Net>>,
        "diff-unet" => measured::<Denoising<diff_unet::Net>>,
        "diff-trans" => measured::<Denoising<diff_trans::Net>>,
        other => panic!("{other}"),
    };
    let [peak, estimate] = work(what, json, side);
    println!("peak {peak} {estimate}");
}

/// What a segmenter took at most, and the estimate.
fn measured<L: Learned>(what: &str, json: &str, side: u32) -> [u64; 2] {
    let mut options: Options<L::Architecture> = serde_json::from_str(json).unwrap();
    let context = Context {
        size: side,
        ..Context::default()
    };
    let needs = Trained::<L>::inspect(&options, &context).unwrap();
    let (folder, batch) = (env::var(WEIGHTS).unwrap(), options.images_at_once);
    let start = status("VmRSS:");
    let estimate = if what == "training" {
        (options.train.epochs, options.train.steps) = (Some(2), None);
        let segmenter = Trained::<L>::from_config(options, &context).unwrap();
        let data = [squares(side, 2 * batch as u64), squares(side, 1)];
        let out = folder.as_str().into();
        with_reporter(&Silent, |r| segmenter.fit(&data[0], &data[1], out, r)).unwrap();
        needs.train_bytes
    } else {
        options.weights = Some(folder.into());
        let segmenter = Trained::<L>::from_config(options, &context).unwrap();
        let sample = squares(side, 1).sample(0).unwrap();
        let images = vec![sample.image.view(); 2 * batch];
        with_reporter(&Silent, |r| segmenter.segment(images.as_slice().into(), r)).unwrap();
        needs.run_bytes
    };
    [status("VmHWM:") - start, estimate]
}
