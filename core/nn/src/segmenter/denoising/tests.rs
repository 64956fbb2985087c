//! Masks drawn by networks that know the answer, and the loss of such a network.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::diffusion::scheduler::Prediction;
use crate::{layers::Mode, segmenter::Activations, testing::close};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a network that knows the answer is asked for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Kind {
    /// 0: the noise, 1: the velocity, 2: the mask.
    prediction: u8,
    /// Whether masks are 0 and 1 in place of -1 and 1.
    unit: bool,
    learned: bool,
    /// Sides are padded to multiples.
    multiple: u32,
}

impl Default for Kind {
    fn default() -> Self {
        Kind {
            prediction: 2,
            unit: false,
            learned: false,
            multiple: 1,
        }
    }
}

impl Kind {
    fn diffusion(&self) -> Diffusion {
        Diffusion {
            prediction: [
                Prediction::Epsilon,
                Prediction::Velocity,
                Prediction::Sample,
            ][usize::from(self.prediction)],
            values: if self.unit { (0.0, 1.0) } else { (-1.0, 1.0) },
            learned_variance: self.learned,
            sampler: SamplerName::Ddim,
            steps: 10,
            runs: 2,
            fusion: Fusion::Mean,
        }
    }
}

impl Architecture for Kind {
    const PLUGIN: &'static str = "knows";

    fn tiny() -> Self {
        Kind::default()
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn multiple(&self) -> u32 {
        self.multiple
    }

    fn smallest(&self) -> u32 {
        if self.multiple == 8 { 12 } else { 1 }
    }

    fn activations(&self, load: &super::super::Load) -> Activations {
        Activations::of_values(load, 1)
    }
}

/// The mask of class i is where channel i of the image is above half.
struct Knows {
    kind: Kind,
    masks: usize,
    schedule: NoiseSchedule,
}

impl MaskNetwork for Knows {
    type Architecture = Kind;
    type Condition = Tensor;
    const FUSES_STEPS: bool = true;

    fn new(_: Scope<'_>, kind: &Kind, masks: usize, _: (u32, u32)) -> candle_core::Result<Self> {
        let config = kind.diffusion().scheduler(SamplerName::Ddpm);
        Ok(Knows {
            kind: kind.clone(),
            masks,
            schedule: NoiseSchedule::new(&config).unwrap(),
        })
    }

    fn diffusion(kind: &Kind) -> Diffusion {
        kind.diffusion()
    }

    fn condition(&self, images: &Tensor, _: &Pass<'_>) -> candle_core::Result<Tensor> {
        let masks = images.narrow(1, 0, self.masks)?.gt(0.5)?;
        self.kind.diffusion().scaled(&masks.to_dtype(DType::F32)?)
    }

    fn predict(
        &self,
        _: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        clean: &Tensor,
        _: &Pass<'_>,
    ) -> candle_core::Result<Predicted> {
        // Euler asks between timesteps as well; here at whole ones alone.
        let t: Vec<u32> = t.to_vec1::<f32>()?.iter().map(|t| *t as u32).collect();
        let noise = self.schedule.noise(Prediction::Sample, clean, noisy, &t)?;
        let prediction = self.kind.diffusion().prediction;
        let output = self.schedule.target(prediction, clean, &noise, &t)?;
        Ok(Predicted {
            variance: self.kind.learned.then(|| output.zeros_like()).transpose()?,
            logits: Some(clean.clone()),
            output,
        })
    }

    fn fuse(diffusion: &Diffusion, runs: &[Run]) -> Result<Tensor> {
        assert!(runs.iter().all(|run| run.steps.len() == diffusion.steps));
        Ok(runs[0].logits.clone().unwrap())
    }
}

fn options(json: &str) -> Options<Kind> {
    serde_json::from_str(json).unwrap()
}

/// The network of these options for so many classes and images of 6x5 pixels.
fn described(options: &Options<Kind>, masks: usize) -> (Denoising<Knows>, Description<Kind>) {
    let classes = (1..=masks as u8).map(|label| (label, "x".to_owned()));
    let description = Description::new(options.architecture(), classes.collect(), (6, 5));
    let mut params = Params::new(&Device::Cpu, 0);
    let net = Denoising::new(params.root(), &description).unwrap();
    (net, description)
}

/// Images `[n, 3, height, width]` of 0 and 1.
fn images(count: usize, height: usize, width: usize) -> Tensor {
    let images = crate::testing::random("images", &[count, 3, height, width]);
    images.gt(0.0).unwrap().to_dtype(DType::F32).unwrap()
}

fn answer(options: &Options<Kind>, masks: usize, images: &Tensor, seeds: &[u64]) -> Answer {
    let (net, description) = described(options, masks);
    let setting = Setting {
        description: &description,
        options,
        seed: 0,
        validates: false,
        go_on: &|| Ok(()),
    };
    net.answer(&setting, images, seeds).unwrap()
}

#[test]
fn every_sampler_finds_what_the_network_knows() {
    let images = images(2, 5, 6);
    let truth = images.narrow(1, 0, 1).unwrap();
    for prediction in 0..3 {
        for unit in [false, true] {
            for sampler in ["ddim", "ddpm", "dpmpp-2m", "unipc"] {
                let options = options(&format!(
                    r#"{{"architecture": {{"prediction": {prediction}, "unit": {unit}}},
                        "sampling": {{"sampler": "{sampler}"}}}}"#
                ));
                Denoising::<Knows>::check(&options).unwrap();
                let found = answer(&options, 1, &images, &[1, 2]).probabilities;
                close(&found, &truth, 1e-2);
            }
        }
    }
}

#[test]
fn learned_variances_are_those_of_the_sampler() {
    let images = images(2, 5, 6);
    let learned =
        options(r#"{"architecture": {"learned": true}, "sampling": {"sampler": "ddpm"}}"#);
    let found = answer(&learned, 1, &images, &[1, 2]).probabilities;
    close(&found, &images.narrow(1, 0, 1).unwrap(), 1e-2);
    // The same noise, less of it: in the middle of the bounds in place of at the lower one.
    let plain = options(r#"{"sampling": {"sampler": "ddpm"}}"#);
    let (left, right) = (
        answer(&learned, 1, &images, &[1, 2]).raw,
        answer(&plain, 1, &images, &[1, 2]).raw,
    );
    assert_eq!(left.dims(), right.dims());
    // Where the sampler has no learned variances, they are left out.
    let other = options(r#"{"architecture": {"learned": true}, "sampling": {"sampler": "ddim"}}"#);
    answer(&other, 1, &images, &[1, 2]);
}

#[test]
fn what_is_drawn_follows_from_the_image_alone() {
    let options = options(r#"{"sampling": {"steps": 1, "runs": 1, "sampler": "dpmpp-2m"}}"#);
    let draws = |seeds: &'static [u64], run| {
        let draws = Draws {
            seeds,
            run,
            shape: [1, 5, 6],
            device: &Device::Cpu,
        };
        let values = draws.next("mask", 0).unwrap().flatten_from(1).unwrap();
        values.to_vec2::<f32>().unwrap()
    };
    assert_eq!(draws(&[7, 8], 0)[1], draws(&[8], 0)[0]);
    assert_ne!(draws(&[7, 8], 0)[0], draws(&[7, 8], 0)[1]);
    assert_ne!(draws(&[7], 0), draws(&[7], 1));
    Denoising::<Knows>::check(&options).unwrap();
}

#[test]
fn masks_of_several_runs_are_joined() {
    let images = images(1, 5, 6);
    let truth = images.narrow(1, 0, 1).unwrap();
    for fusion in ["mean", "staple", "published"] {
        let options = options(&format!(
            r#"{{"sampling": {{"runs": 3, "fusion": "{fusion}", "steps": 4}}, "preset": "tiny"}}"#
        ));
        // The network's own way sees the steps, and takes values as they are: -1 and 1.
        if fusion == "published" {
            let published = Options {
                sampling: None,
                preset: None,
                ..options
            };
            let published = Options {
                sampling: Some(Sampling {
                    fusion: Some(Fusion::Published),
                    ..Sampling::default()
                }),
                ..published
            };
            let found = answer(&published, 1, &images, &[1]).probabilities;
            close(&found, &(truth.affine(2.0, -1.0)).unwrap(), 0.0);
        } else {
            close(
                &answer(&options, 1, &images, &[1]).probabilities,
                &truth,
                1e-2,
            );
        }
    }
    // Of three masks, two of which agree.
    let diffusion = Kind::default().diffusion();
    let run = |values: [f32; 4]| Run {
        drawn: Tensor::new(&values, &Device::Cpu)
            .unwrap()
            .reshape((1, 1, 2, 2))
            .unwrap(),
        steps: Vec::new(),
        logits: None,
        sum: Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap(),
    };
    let runs = [
        run([1.0, 1.0, -1.0, -1.0]),
        run([1.0, 1.0, -1.0, -1.0]),
        run([1.0, -1.0, -1.0, -1.0]),
    ];
    let found = mean(&diffusion, &runs).unwrap().flatten_all().unwrap();
    let thirds = Tensor::new(&[1.0f32, 2.0 / 3.0, 0.0, 0.0], &Device::Cpu).unwrap();
    close(&found, &thirds, 1e-6);
    let found = joined(&diffusion, &runs).unwrap().flatten_all().unwrap();
    let found: Vec<f32> = found.to_vec1().unwrap();
    assert!(
        found[0] > 0.99 && found[1] > 0.9 && found[2] < 0.01,
        "{found:?}"
    );
}

#[test]
fn of_several_classes_the_background_is_what_none_is() {
    let images = images(1, 5, 6);
    let found = answer(&options("{}"), 2, &images, &[1]).probabilities;
    assert_eq!(found.dims(), [1, 3, 5, 6]);
    let masks = images.narrow(1, 0, 2).unwrap();
    close(&found.narrow(1, 1, 2).unwrap(), &masks, 1e-2);
    let none = (1.0 - masks.max_keepdim(1).unwrap()).unwrap();
    close(&found.narrow(1, 0, 1).unwrap(), &none, 1e-2);
}

#[test]
fn a_network_that_knows_has_no_loss_and_padding_is_not_judged() {
    let loss = |json: &str, shift: f64| {
        let options = options(json);
        let (net, description) = described(&options, 2);
        let setting = Setting {
            description: &description,
            options: &options,
            seed: 3,
            validates: false,
            go_on: &|| Ok(()),
        };
        let (width, height) = description.frame().whole;
        let images = images(2, height as usize, width as usize);
        let class = |channel| images.get_on_dim(1, channel).unwrap().gt(0.5).unwrap();
        // Where both are, it is the second; the network is to say so, too.
        let (first, second) = (class(0), class(1));
        let ones = second.to_dtype(DType::U32).unwrap();
        let targets = (first.to_dtype(DType::U32).unwrap()
            * (1.0 - ones.to_dtype(DType::F32).unwrap())
                .unwrap()
                .to_dtype(DType::U32)
                .unwrap())
        .unwrap();
        let targets = (targets + (ones * 2.0).unwrap()).unwrap();
        let seen = targets.clone();
        let plane = |class: u32| seen.eq(class).unwrap().to_dtype(DType::F32).unwrap();
        let shown = Tensor::stack(&[plane(1), plane(2), plane(0)], 1).unwrap();
        // Beside the content, what the network sees is something else.
        let content = shown.narrow(2, 0, 5).unwrap().narrow(3, 0, 6).unwrap();
        let shown = content
            .pad_with_zeros(2, 0, height as usize - 5)
            .unwrap()
            .pad_with_zeros(3, 0, width as usize - 6)
            .unwrap();
        let shown = (shown + shift).unwrap();
        let pass = Pass {
            mode: Mode::Train,
            ..Pass::ANSWER
        };
        let loss = net.loss(&setting, &shown, targets, &pass, 5).unwrap();
        loss.to_scalar::<f32>().unwrap()
    };
    for prediction in 0..3 {
        let json = format!(r#"{{"architecture": {{"prediction": {prediction}, "multiple": 8}}}}"#);
        let found = loss(&json, 0.0);
        assert!(found < 1e-5, "{prediction}: {found}");
        // All pixels are taken for both classes.
        assert!(loss(&json, 1.0) > 0.1);
    }
}

#[test]
fn a_wrong_option_is_named() {
    let field = |json: &str| {
        let error = Denoising::<Knows>::check(&options(json)).unwrap_err();
        error.field.to_string()
    };
    assert_eq!(field(r#"{"sampling": {"steps": 0}}"#), "sampling.steps");
    assert_eq!(field(r#"{"sampling": {"steps": 1001}}"#), "sampling.steps");
    assert_eq!(field(r#"{"sampling": {"runs": 65}}"#), "sampling.runs");
    assert_eq!(field(r#"{"train": {"loss": "dice"}}"#), "train.loss");
    let many = r#"{"sampling": {"steps": 500, "runs": 3, "fusion": "published"}}"#;
    assert_eq!(field(many), "sampling.steps");
    let steps = r#"{"sampling": {"steps": 1000, "sampler": "dpmpp-2m"}}"#;
    let error = Denoising::<Knows>::check(&options(steps)).unwrap_err();
    assert_eq!(error.field, "sampling.steps");
    assert!(
        error.message.starts_with("with 1000 steps of `dpmpp-2m`: "),
        "{error}"
    );
}

#[test]
fn the_preset_draws_little_unless_told_otherwise() {
    let drawn = |json: &str| {
        let options = options(json);
        let diffusion = Denoising::<Knows>::diffusion(&options, &options.architecture(), None);
        (diffusion.steps, diffusion.runs, diffusion.sampler)
    };
    assert_eq!(drawn("{}"), (10, 2, SamplerName::Ddim));
    let own = r#"{"preset": "tiny", "sampling": {"steps": 3, "sampler": "euler"}}"#;
    assert_eq!(drawn(own), (3, 2, SamplerName::Euler));
    // What weights were chosen by counts before what was published, and what is said before that.
    let stored = Sampling {
        steps: Some(7),
        runs: Some(1),
        ..Sampling::default()
    };
    let options = options(r#"{"sampling": {"runs": 5}}"#);
    let diffusion = Denoising::<Knows>::diffusion(&options, &options.architecture(), Some(&stored));
    assert_eq!((diffusion.steps, diffusion.runs), (7, 5));
}

#[test]
fn the_channels_of_a_checkpoint_are_masks() {
    let kind = Kind::default();
    let outputs = <Denoising<Knows> as Learned>::outputs(&kind, 2);
    assert_eq!(outputs, Outputs::Masks(2));
}

#[test]
fn what_is_drawn_begins_where_there_is_noise_alone() {
    for sampler in [SamplerName::Ddim, SamplerName::Ddpm] {
        for steps in [1, 2, 7, 10, 350, 600, 1000] {
            let config = Kind::default().diffusion().scheduler(sampler);
            let sampler = Sampler::new(&config, steps).unwrap();
            assert_eq!(sampler.timesteps()[0], 999.0, "{steps}");
        }
    }
}

#[test]
fn a_validation_draws_one_mask_in_few_steps() {
    let published = Diffusion {
        sampler: SamplerName::Ddpm,
        steps: 1000,
        runs: 5,
        fusion: Fusion::Staple,
        ..Kind::default().diffusion()
    };
    let quick = published.quick();
    assert_eq!(
        (quick.sampler, quick.steps, quick.runs),
        (SamplerName::Ddim, 50, 1)
    );
    assert_eq!(quick.fusion, Fusion::Mean);
}

#[test]
fn drawing_ends_when_it_is_to_stop() {
    let options = options("{}");
    let (net, description) = described(&options, 1);
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let go_on = || match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0..3 => Ok(()),
        _ => Err(Error::cancelled()),
    };
    let setting = Setting {
        description: &description,
        options: &options,
        seed: 0,
        validates: false,
        go_on: &go_on,
    };
    let error = net.answer(&setting, &images(1, 5, 6), &[1]).unwrap_err();
    assert_eq!(error.kind, diffaug::ErrorKind::Cancelled);
    assert_eq!(asked.into_inner(), 4);
}

#[test]
fn what_is_no_number_shows_though_it_was_cut_off() {
    let options = options("{}");
    for value in [f32::NAN, f32::INFINITY] {
        let images = images(2, 5, 6);
        // The second image's mask is no number.
        let second = Tensor::full(value, (1, 3, 5, 6), &Device::Cpu).unwrap();
        let images = Tensor::cat(&[&images.narrow(0, 0, 1).unwrap(), &second], 0).unwrap();
        let (net, description) = described(&options, 1);
        let net = Denoising {
            net: Broken(net.net),
            schedule: net.schedule,
        };
        let setting = Setting {
            description: &description,
            options: &options,
            seed: 0,
            validates: false,
            go_on: &|| Ok(()),
        };
        let raw = net.answer(&setting, &images, &[1, 2]).unwrap().raw;
        let raw: Vec<Vec<f32>> = raw.to_vec2().unwrap();
        assert!(raw[0].iter().all(|v| v.is_finite()), "{raw:?}");
        assert!(raw[1].iter().any(|v| !v.is_finite()), "{raw:?}");
    }
}

/// Answers with the first channel of the image.
struct Broken(Knows);

impl MaskNetwork for Broken {
    type Architecture = Kind;
    type Condition = Tensor;

    fn new(
        scope: Scope<'_>,
        kind: &Kind,
        masks: usize,
        size: (u32, u32),
    ) -> candle_core::Result<Self> {
        Knows::new(scope, kind, masks, size).map(Broken)
    }

    fn diffusion(kind: &Kind) -> Diffusion {
        kind.diffusion()
    }

    fn condition(&self, images: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        self.0.condition(images, pass)
    }

    fn predict(
        &self,
        images: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Pass<'_>,
    ) -> candle_core::Result<Predicted> {
        Ok(images.narrow(1, 0, 1)?.into())
    }
}

#[test]
fn small_images_are_padded_to_what_the_network_needs() {
    let kind = Kind {
        multiple: 8,
        ..Kind::default()
    };
    let frame = Description::new(kind, vec![(1, "x".to_owned())], (6, 20)).frame();
    // `smallest` is 12 here, and sides are multiples of 8.
    assert_eq!((frame.content, frame.whole), ((6, 20), (16, 24)));
}
