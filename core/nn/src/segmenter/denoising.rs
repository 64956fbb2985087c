//! Networks that denoise a mask on the condition of an image: schedule, losses, sampling, and what becomes of
//! several masks of one image.

use super::{
    Answer, Architecture, Description, Fusion, Learned, Options, Pass, Sampling, Setting,
};
use super::ddim::Ddim;
use crate::{
    diffusion::{
        learned_range::LearnedRange,
        scheduler::{NoiseSchedule, Prediction, Sampler, SamplerName, SchedulerConfig},
    },
    layers::Mode,
    noise,
    params::{Params, Scope},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, Result, rng, staple::staple};
use rand::RngExt;
use std::{marker::PhantomData, path::Path};

/// Timesteps of training.
pub const TIMESTEPS: u32 = 1000;
/// Masks of an image at most: as many raters as [`staple`] takes.
const MOST_RUNS: usize = 64;

/// How a network was published to go from noise to masks.
#[derive(Clone, Debug, PartialEq)]
pub struct Diffusion {
    /// Values of background and target in masks that are noised.
    pub range: (f32, f32),
    /// What the network predicts.
    pub prediction: Prediction,
    /// Variance that the first of a thousand timesteps adds; it grows linearly.
    pub beta_start: f64,
    /// And the last.
    pub beta_end: f64,
    /// What goes back from noise to a mask.
    pub sampler: SamplerName,
    /// Its steps.
    pub steps: usize,
    /// Masks that are drawn for an image.
    pub runs: usize,
    /// Whether the network predicts variances, with which DDPM then steps.
    pub learned_variance: bool,
}

impl Default for Diffusion {
    fn default() -> Self {
        Diffusion {
            range: (-1.0, 1.0),
            prediction: Prediction::Epsilon,
            beta_start: 1e-4,
            beta_end: 0.02,
            sampler: SamplerName::Ddim,
            steps: 50,
            runs: 5,
            learned_variance: false,
        }
    }
}

/// What a network makes of noisy masks.
#[derive(Clone, Debug)]
pub struct Predicted {
    /// The prediction, of the masks' shape.
    pub output: Tensor,
    /// How far each variance lies between the smallest and the largest, where the network predicts them.
    pub variance: Option<Tensor>,
    /// Masks, as probabilities, that a part of the network finds without noise.
    pub calibration: Option<Tensor>,
}

/// Masks of training with their noise.
#[derive(Clone, Debug)]
pub struct Noised {
    /// Images `[n, 3, height, width]`, scaled.
    pub images: Tensor,
    /// Masks `[n, masks, height, width]`, 0 or 1.
    pub truth: Tensor,
    /// The same in the range of the network.
    pub clean: Tensor,
    /// Noise of their shape.
    pub noise: Tensor,
    /// Both mixed.
    pub noisy: Tensor,
    /// Timesteps.
    pub t: Vec<u32>,
}

/// What a way from noise to masks came by.
#[derive(Clone, Debug)]
pub struct Run {
    /// The network's output at each step, where [`MaskNetwork::KEEPS`] says so.
    pub outputs: Vec<Tensor>,
    /// The masks at the end, in the range of the network.
    pub masks: Tensor,
    /// What the network found without noise, in the last step.
    pub calibration: Option<Tensor>,
}

/// A network that denoises masks.
pub trait MaskNetwork: Send + Sync + Sized + 'static {
    /// Its sizes.
    type Architecture: Architecture;
    /// What it makes of images once for all timesteps.
    type Condition;

    /// Whether [`MaskNetwork::fuse`] looks at the outputs of all steps.
    const KEEPS: bool = false;

    /// How it was published to go from noise to masks.
    fn diffusion(architecture: &Self::Architecture) -> Diffusion;

    /// The network for so many masks at once, one for each class, and images of `size`, width and height.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    fn new(
        scope: Scope<'_>,
        architecture: &Self::Architecture,
        masks: usize,
        size: (u32, u32),
    ) -> candle_core::Result<Self>;

    /// What does not depend on noise or timestep.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn condition(
        &self,
        images: &Tensor,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Self::Condition>;

    /// What it makes of `noisy` masks `[n, masks, height, width]` at the timesteps `t`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn predict(
        &self,
        images: &Tensor,
        condition: &Self::Condition,
        noisy: &Tensor,
        t: &[u32],
        pass: &Pass<'_>,
    ) -> candle_core::Result<Predicted>;

    /// The loss of a batch.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn loss(
        &self,
        batch: &Noised,
        predicted: &Predicted,
        schedule: &NoiseSchedule,
    ) -> Result<Tensor>;

    /// Probabilities `[n, masks, height, width]` of all runs, as published; without a way of its own the mean
    /// of the masks.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn fuse(&self, runs: &[Run], range: (f32, f32)) -> Result<Tensor> {
        mean(runs, range)
    }
}

/// A segmenter that denoises masks.
pub struct Denoising<N> {
    net: N,
    schedule: NoiseSchedule,
}

impl<N: MaskNetwork> Learned for Denoising<N> {
    type Architecture = N::Architecture;
    const DRAWS: bool = true;

    fn new(
        scope: Scope<'_>,
        description: &Description<N::Architecture>,
    ) -> candle_core::Result<Self> {
        let architecture = &description.architecture;
        let diffusion = N::diffusion(architecture);
        let config = config(&diffusion, SamplerName::Ddpm);
        let size = description.frame().whole;
        let masks = description.classes.len();
        Ok(Denoising {
            net: N::new(scope, architecture, masks, size)?,
            schedule: NoiseSchedule::new(&config).map_err(candle_core::Error::wrap)?,
        })
    }

    fn check(options: &Options<N::Architecture>) -> Result<()> {
        if options.train.loss.is_some() {
            return Err(Error::config(format!(
                "`train.loss` is for networks that answer at once; `{}` has its own",
                N::Architecture::PLUGIN
            ))
            .at("train.loss"));
        }
        let sampling = options.sampling.clone().unwrap_or_default();
        for (name, value, most) in [
            ("steps", sampling.steps, TIMESTEPS as usize),
            ("runs", sampling.runs, MOST_RUNS),
        ] {
            // DDIM goes from the last timestep to the first.
            let least = if name == "steps" { 2 } else { 1 };
            if let Some(value) = value
                && !(least..=most).contains(&value)
            {
                let field = format!("sampling.{name}");
                let message = format!("`{field}` is {value}, expected {least} to {most}");
                return Err(Error::config(message).at(&field));
            }
        }
        Ok(())
    }

    fn loss(
        &self,
        setting: &Setting<'_, N::Architecture>,
        images: &Tensor,
        targets: Tensor,
        pass: &Pass<'_>,
        step: u64,
    ) -> Result<Tensor> {
        let batch = self.noised(setting, images, &targets, step)?;
        let condition = self.net.condition(images, pass)?;
        let noisy = batch.noisy.to_dtype(images.dtype())?;
        let predicted = self
            .net
            .predict(images, &condition, &noisy, &batch.t, pass)?;
        self.net.loss(&batch, &predicted.wide()?, &self.schedule)
    }

    fn answer(
        &self,
        setting: &Setting<'_, N::Architecture>,
        images: &Tensor,
        seeds: &[u64],
    ) -> Result<Answer> {
        let diffusion = N::diffusion(&setting.description.architecture);
        let way = Way::new(&diffusion, setting.options.sampling.as_ref());
        let masks = setting.description.classes.len();
        let condition = self.net.condition(images, &Pass::ANSWER)?;
        let runs: Vec<Run> = (0..way.runs)
            .map(|run| self.run(&way, &diffusion, images, &condition, masks, (run, seeds)))
            .collect::<Result<_>>()?;
        let found = match way.fusion {
            Fusion::Published => self.net.fuse(&runs, diffusion.range)?,
            Fusion::Mean => mean(&runs, diffusion.range)?,
            Fusion::Staple => agreed(&runs, diffusion.range)?,
        };
        let raw: Vec<Tensor> = runs
            .iter()
            .map(|run| run.masks.flatten_from(1))
            .collect::<candle_core::Result<_>>()?;
        Ok(Answer {
            raw: Tensor::cat(&raw, 1)?,
            probabilities: match masks {
                1 => found,
                _ => with_background(&found)?,
            },
        })
    }

    fn begin(
        _: &Params,
        _: &N::Architecture,
        file: &Path,
        _: &Device,
    ) -> Result<String> {
        Err(super::no_beginning::<N::Architecture>(file))
    }
}

impl Predicted {
    /// The same in f32.
    fn wide(self) -> candle_core::Result<Self> {
        let wide = |x: Option<Tensor>| x.map(|x| x.to_dtype(DType::F32)).transpose();
        Ok(Predicted {
            output: self.output.to_dtype(DType::F32)?,
            variance: wide(self.variance)?,
            calibration: wide(self.calibration)?,
        })
    }
}

/// How masks are drawn, decided.
struct Way {
    sampler: SamplerName,
    steps: usize,
    runs: usize,
    fusion: Fusion,
}

impl Way {
    fn new(published: &Diffusion, sampling: Option<&Sampling>) -> Self {
        let said = sampling.cloned().unwrap_or_default();
        Way {
            sampler: said.sampler.unwrap_or(published.sampler),
            steps: said.steps.unwrap_or(published.steps),
            runs: said.runs.unwrap_or(published.runs),
            fusion: said.fusion.unwrap_or(Fusion::Published),
        }
    }
}

/// The schedule as diffusers describes it. Samplers are given the clean masks.
fn config(diffusion: &Diffusion, sampler: SamplerName) -> SchedulerConfig {
    SchedulerConfig {
        num_train_timesteps: Some(TIMESTEPS as usize),
        beta_schedule: Some("linear".to_owned()),
        beta_start: Some(diffusion.beta_start),
        beta_end: Some(diffusion.beta_end),
        prediction_type: Some("sample".to_owned()),
        clip_sample: Some(false),
        ..SchedulerConfig::new(sampler)
    }
}

impl<N: MaskNetwork> Denoising<N> {
    /// Masks of training with the noise of draw `step`.
    fn noised(
        &self,
        setting: &Setting<'_, N::Architecture>,
        images: &Tensor,
        targets: &Tensor,
        step: u64,
    ) -> Result<Noised> {
        let device = images.device();
        let (low, high) = N::diffusion(&setting.description.architecture).range;
        let classes = setting.description.classes.len();
        let planes: Vec<Tensor> = (1..=classes as u32)
            .map(|class| targets.eq(class)?.to_dtype(DType::F32))
            .collect::<candle_core::Result<_>>()?;
        let truth = Tensor::stack(&planes, 1)?.to_device(device)?;
        let clean = truth.affine(f64::from(high - low), f64::from(low))?;
        let values = noise::normal(setting.seed, "noise", step, clean.elem_count());
        let noise = Tensor::from_vec(values, clean.shape(), device)?;
        let mut rng = rng::stream(setting.seed, "timestep", step);
        let t: Vec<u32> = (0..clean.dim(0)?)
            .map(|_| rng.random_range(0..TIMESTEPS))
            .collect();
        Ok(Noised {
            images: images.to_dtype(DType::F32)?,
            noisy: self.schedule.add_noise(&clean, &noise, &t)?,
            truth,
            clean,
            noise,
            t,
        })
    }

    /// A way from noise to masks. What is drawn for an image follows from its seed and the number of the run.
    fn run(
        &self,
        way: &Way,
        diffusion: &Diffusion,
        images: &Tensor,
        condition: &N::Condition,
        masks: usize,
        (run, seeds): (usize, &[u64]),
    ) -> Result<Run> {
        let (count, _, height, width) = images.dims4()?;
        let each = masks * height * width;
        let draw = |index: u64| {
            let values = seeds.iter().flat_map(|seed| {
                let seed = rng::derive(*seed, "run", &run.to_string());
                noise::normal(seed, "mask", index, each)
            });
            let shape = (count, masks, height, width);
            Tensor::from_vec(values.collect::<Vec<f32>>(), shape, images.device())
        };
        let predict = |x: &Tensor, t: u32| -> Result<Predicted> {
            let t = vec![t; count];
            let found = self
                .net
                .predict(images, condition, x, &t, &Pass::ANSWER)?;
            Ok(found.wide()?)
        };
        let mut kept = Kept::<N>::default();
        let masks = match way.sampler {
            SamplerName::Ddim => self.ddim(way, diffusion, draw(0)?, predict, &mut kept)?,
            sampler => self.noisy(way, diffusion, sampler, draw, predict, &mut kept)?,
        };
        Ok(Run {
            outputs: kept.outputs,
            masks,
            calibration: kept.calibration,
        })
    }

    /// DDIM from `x`, noise at the last timestep.
    fn ddim(
        &self,
        way: &Way,
        diffusion: &Diffusion,
        mut x: Tensor,
        predict: impl Fn(&Tensor, u32) -> Result<Predicted>,
        kept: &mut Kept<N>,
    ) -> Result<Tensor> {
        let ddim = Ddim::new(&self.schedule, way.steps, diffusion.prediction)?;
        for (i, t) in ddim.timesteps().iter().enumerate() {
            let found = predict(&x, *t)?;
            x = ddim.step(i, &x, &found.output)?.x;
            kept.keep(found);
        }
        Ok(x)
    }

    /// Samplers that may draw noise in every step: `draw(i)` is the noise of place `i`, 0 that of the
    /// beginning.
    fn noisy(
        &self,
        way: &Way,
        diffusion: &Diffusion,
        name: SamplerName,
        draw: impl Fn(u64) -> candle_core::Result<Tensor>,
        predict: impl Fn(&Tensor, u32) -> Result<Predicted>,
        kept: &mut Kept<N>,
    ) -> Result<Tensor> {
        let mut x = draw(0)?;
        if name == SamplerName::Ddpm && diffusion.learned_variance {
            let range = LearnedRange::evenly(&self.schedule, way.steps)?;
            for (i, t) in range.timesteps().iter().enumerate().rev() {
                let found = predict(&x, *t)?;
                let variance = (found.variance.as_ref())
                    .ok_or_else(|| Error::internal("the network predicts no variance"))?;
                x = range
                    .step([&found.output, variance], &x, i, || draw(i as u64 + 1))?
                    .x;
                kept.keep(found);
            }
            return Ok(x);
        }
        let mut sampler = Sampler::new(&config(diffusion, name), way.steps)?;
        x = (x * sampler.init_noise_sigma())?;
        for i in 0..sampler.timesteps().len() {
            let t = sampler.timesteps()[i].round() as u32;
            let input = sampler.scale_input(&x, i)?;
            let found = predict(&input, t)?;
            let times = vec![t; x.dim(0)?];
            let clean = self
                .schedule
                .clean(diffusion.prediction, &found.output, &input, &times)?;
            let clean = clean.clamp(-1f32, 1f32)?;
            x = sampler.step(&clean, i, &x, || draw(i as u64 + 1))?.x;
            kept.keep(found);
        }
        Ok(x)
    }
}

/// What is kept of the steps of a run.
struct Kept<N> {
    outputs: Vec<Tensor>,
    calibration: Option<Tensor>,
    net: PhantomData<N>,
}

impl<N> Default for Kept<N> {
    fn default() -> Self {
        Kept {
            outputs: Vec::new(),
            calibration: None,
            net: PhantomData,
        }
    }
}

impl<N: MaskNetwork> Kept<N> {
    fn keep(&mut self, found: Predicted) {
        if N::KEEPS {
            self.outputs.push(found.output);
        }
        self.calibration = found.calibration;
    }
}

/// How probable each pixel of masks in the range of a network is.
fn probable(masks: &Tensor, (low, high): (f32, f32)) -> candle_core::Result<Tensor> {
    let scale = 1.0 / f64::from(high - low);
    masks
        .affine(scale, -f64::from(low) * scale)?
        .clamp(0f32, 1f32)
}

/// The mean over runs.
///
/// # Errors
/// When there is none.
pub fn mean(runs: &[Run], range: (f32, f32)) -> Result<Tensor> {
    let all: Vec<Tensor> = runs
        .iter()
        .map(|run| probable(&run.masks, range))
        .collect::<candle_core::Result<_>>()?;
    Ok(Tensor::stack(&all, 0)?.mean(0)?)
}

/// The most probable truth behind the masks of all runs, each taken for a rater's.
fn agreed(runs: &[Run], range: (f32, f32)) -> Result<Tensor> {
    let first = &runs
        .first()
        .ok_or_else(|| Error::internal("no mask was drawn"))?
        .masks;
    let (count, masks, height, width) = first.dims4()?;
    let raters: Vec<Vec<f32>> = runs
        .iter()
        .map(|run| probable(&run.masks, range)?.flatten_all()?.to_vec1::<f32>())
        .collect::<candle_core::Result<_>>()?;
    let each = height * width;
    let mut values = Vec::with_capacity(count * masks * each);
    for plane in 0..count * masks {
        let part = plane * each..(plane + 1) * each;
        let marked: Vec<Vec<bool>> = raters
            .iter()
            .map(|rater| rater[part.clone()].iter().map(|p| *p > 0.5).collect())
            .collect();
        let views: Vec<&[bool]> = marked.iter().map(Vec::as_slice).collect();
        values.extend(staple(&views)?.probability);
    }
    Ok(Tensor::from_vec(values, first.shape(), first.device())?)
}

/// The background's probability before those of the classes: what the most probable class leaves.
fn with_background(found: &Tensor) -> candle_core::Result<Tensor> {
    let rest = found.max_keepdim(1)?.affine(-1.0, 1.0)?;
    Tensor::cat(&[&rest, found], 1)
}
