//! What every segmenter of this crate has to do: train, go on where it was stopped, answer for images of any
//! size and several classes, and refuse the weights of another.

use crate::data::{StopAfter, discs_of, enlarge, files};
use diffaug::stage::{Segmenter, Silent, with_reporter};
use diffaug::{Context, prelude::*};
use diffaug_baselines::*;
use diffaug_nn::segmenter::{Architecture, Denoising, Direct, Learned, Options, Trained};
use serde_json::{Value, json};
use std::{path::Path, sync::atomic::AtomicBool};

/// A segmenter of type `L`, small, on images of side `side`.
struct Case<L: Learned> {
    side: u32,
    options: Value,
    learned: std::marker::PhantomData<L>,
}

impl<L: Learned> Case<L> {
    fn new(side: u32) -> Self {
        Case {
            side,
            options: json!({
                "preset": "tiny",
                "images_at_once": 2,
                "train": {"steps": 3, "batch": 2, "ema": 0.9, "checkpoint_every": 1, "evaluate_every": 3},
            }),
            learned: std::marker::PhantomData,
        }
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.options[key] = value;
        self
    }

    fn stage(&self, more: Value) -> Result<Trained<L>> {
        let mut options = self.options.clone();
        let fields = more.as_object().unwrap().clone();
        options.as_object_mut().unwrap().extend(fields);
        let options: Options<L::Architecture> = serde_json::from_value(options).unwrap();
        Trained::<L>::validate(&options)?;
        Trained::from_config(options, &Context::default())
    }

    fn fit(
        &self,
        classes: u8,
        out: &Path,
        progress: &impl diffaug::stage::Progress,
    ) -> Result<FitReport> {
        let (train, validation) = (
            discs_of(self.side, 6, classes, 1),
            discs_of(self.side, 2, classes, 2),
        );
        let out = out.to_str().unwrap();
        let stage = self.stage(json!({}))?;
        with_reporter(progress, |reporter| {
            stage.fit(&train, &validation, out.into(), reporter)
        })
    }

    /// Learns for so many steps, and says how well it finds discs that it has not seen: the mean Dice of the
    /// validation.
    fn learned(&self, steps: u64) -> f64 {
        let options = json!({"preset": "tiny", "train": {"steps": steps, "evaluate_every": steps, "evaluate_epochs": steps}});
        let case = Case::<L> {
            side: self.side,
            options,
            learned: std::marker::PhantomData,
        };
        let (train, validation) = (discs_of(self.side, 48, 1, 1), discs_of(self.side, 8, 1, 2));
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().to_str().unwrap();
        let stage = case.stage(json!({})).unwrap();
        let report = with_reporter(&Silent, |reporter| {
            stage.fit(&train, &validation, out.into(), reporter)
        });
        report.unwrap().score
    }

    /// Everything that holds for all segmenters.
    fn check(&self) {
        let whole = tempfile::tempdir().unwrap();
        let report = self.fit(2, whole.path(), &Silent).unwrap();
        assert!(report.loss.is_finite(), "{report:?}");
        let stopped = tempfile::tempdir().unwrap();
        let stop = StopAfter(2, AtomicBool::new(false));
        let error = self.fit(2, stopped.path(), &stop).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
        assert_eq!(self.fit(2, stopped.path(), &Silent).unwrap(), report);
        assert!(
            files(whole.path()) == files(stopped.path()),
            "stopped or not, the bytes are the same"
        );
        self.learns_in_half_precision();
        self.answers(whole.path());
        self.is_inspected();
        self.is_its_own(whole.path());
    }

    /// In f16, with maps computed again, the loss of a step is near what it is in f32.
    fn learns_in_half_precision(&self) {
        let loss = |more: Value| {
            let mut train = json!({"steps": 1, "batch": 2, "keep": "last"});
            let fields = more.as_object().unwrap().clone();
            train.as_object_mut().unwrap().extend(fields);
            let case = Case::<L>::new(self.side).set("train", train);
            let case = match self.options.get("sampling") {
                Some(sampling) => case.set("sampling", sampling.clone()),
                None => case,
            };
            let folder = tempfile::tempdir().unwrap();
            case.fit(1, folder.path(), &Silent).unwrap().loss
        };
        let exact = loss(json!({}));
        let half = loss(json!({"precision": "f16", "recompute": true}));
        assert!((half - exact).abs() < 0.05 * exact.abs(), "{half} {exact}");
    }

    /// Images of their own and of other sizes, each with the answer that it has alone.
    fn answers(&self, weights: &Path) {
        let stage = self.stage(json!({"weights": weights})).unwrap();
        assert_eq!(stage.classes().unwrap().len(), 2);
        let data = discs_of(self.side, 3, 2, 3);
        let samples: Vec<Sample> = (0..3).map(|i| data.sample(i).unwrap()).collect();
        let large = enlarge(&samples[2], 2);
        let images = [&samples[0].image, &samples[1].image, &large.image];
        let views: Vec<ImageRef<'_>> = images.iter().map(|image| image.view()).collect();
        let segment = |views: &[ImageRef<'_>]| {
            let answers = with_reporter(&Silent, |reporter| {
                stage.segment(RSlice::from_slice(views), reporter)
            });
            Vec::from(answers.unwrap())
        };
        let answers = segment(&views);
        for (answer, image) in answers.iter().zip(images) {
            assert_eq!(answer.mask.size(), image.size());
            assert!(answer.probability.iter().all(|p| (0.0..=1.0).contains(p)));
            assert!(answer.mask.labels().iter().all(|label| *label <= 2));
        }
        assert_eq!(segment(&views[1..2])[0].mask, answers[1].mask);
    }

    /// Its parameters are counted, for the published network as well.
    fn is_inspected(&self) {
        let context = Context {
            size: self.side,
            ..Context::default()
        };
        let options: Options<L::Architecture> =
            serde_json::from_value(self.options.clone()).unwrap();
        let needs = Trained::<L>::inspect(&options, &context).unwrap();
        assert!(needs.components[0].parameters > 0);
        assert!(needs.train_bytes > needs.components[0].bytes);
        let published = Options::<L::Architecture>::default();
        let context = Context {
            size: 256,
            ..Context::default()
        };
        let full = Trained::<L>::inspect(&published, &context).unwrap();
        assert!(full.components[0].parameters >= needs.components[0].parameters);
        published.check().unwrap();
    }

    /// Weights of another segmenter are refused by name.
    fn is_its_own(&self, weights: &Path) {
        let other = if L::Architecture::PLUGIN == "unet" {
            Trained::<Direct<mean_mask::MeanMask>>::from_config(
                serde_json::from_value(json!({"weights": weights})).unwrap(),
                &Context::default(),
            )
            .err()
        } else {
            Trained::<Direct<unet::UNet>>::from_config(
                serde_json::from_value(json!({"weights": weights})).unwrap(),
                &Context::default(),
            )
            .err()
        };
        let error = other.unwrap().to_string();
        let expected = format!(
            "holds a network of the plugin `{}`",
            L::Architecture::PLUGIN
        );
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn unet() {
    Case::<Direct<unet::UNet>>::new(32).check();
}

#[test]
fn unet_computed_again() {
    let train = json!({"steps": 3, "batch": 2, "recompute": true, "precision": "f16"});
    Case::<Direct<unet::UNet>>::new(32)
        .set("train", train)
        .check();
}

#[test]
fn mean_mask() {
    Case::<Direct<mean_mask::MeanMask>>::new(32).check();
}

#[test]
fn unet_resnet() {
    Case::<Direct<unet_resnet::UNet>>::new(64).check();
}

#[test]
fn transunet() {
    Case::<Direct<transunet::TransUNet>>::new(64).check();
}

/// Options with which masks are drawn in few steps.
fn drawing() -> Value {
    json!({"steps": 2, "runs": 2})
}

#[test]
fn medsegdiff_v1() {
    Case::<Denoising<medsegdiff::v1::Net>>::new(64)
        .set("sampling", drawing())
        .check();
}

#[test]
fn medsegdiff_v2() {
    Case::<Denoising<medsegdiff::v2::Net>>::new(64)
        .set("sampling", drawing())
        .check();
}

#[test]
fn diff_unet() {
    Case::<Denoising<diff_unet::Net>>::new(32)
        .set("sampling", drawing())
        .check();
}

#[test]
fn diff_trans() {
    Case::<Denoising<diff_trans::Net>>::new(32)
        .set("sampling", drawing())
        .check();
}

#[test]
fn what_learns_from_images_beats_one_mask_for_all() {
    let floor = Case::<Direct<mean_mask::MeanMask>>::new(32).learned(100);
    for (name, dice) in [
        (
            "unet-resnet50",
            Case::<Direct<unet_resnet::UNet>>::new(32).learned(60),
        ),
        (
            "transunet",
            Case::<Direct<transunet::TransUNet>>::new(32).learned(60),
        ),
        (
            "diff-unet",
            Case::<Denoising<diff_unet::Net>>::new(32).learned(60),
        ),
        (
            "diff-trans",
            Case::<Denoising<diff_trans::Net>>::new(32).learned(150),
        ),
    ] {
        println!("{name}: {dice:.3}, one mask for all: {floor:.3}");
        assert!(
            dice > floor + 0.2,
            "{name}: {dice}, one mask for all {floor}"
        );
    }
}
