//! Networks that denoise masks, guided by an image: their training, and answers drawn from noise once or
//! several times.

mod diffusion;
mod masks;
#[cfg(test)]
mod tests;

pub use diffusion::Diffusion;
pub use masks::{Noised, Predicted, Run, mean};

use masks::joined;

use super::{
    Answer, Architecture, Description, Fusion, Learned, Options, Outputs, Pass, Preset, Sampling,
    Setting,
};
use crate::{
    diffusion::scheduler::{NoiseSchedule, Sampler, SamplerName},
    noise,
    params::{Params, Scope},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, Result, rng};
use rand::RngExt;
use rayon::prelude::*;
use std::path::Path;

/// A network that goes from noise to masks, a channel for each target class, guided by an image.
pub trait MaskNetwork: Send + Sync + Sized + 'static {
    /// Its sizes.
    type Architecture: Architecture;
    /// What it makes of an image alone, once for all steps of drawing.
    type Condition;

    /// Whether its way of joining masks ([`MaskNetwork::fuse`]) looks at the steps that led to them.
    const FUSES_STEPS: bool = false;

    /// The network for `masks` target classes and images of `size`, width and height, in `scope`.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    fn new(
        scope: Scope<'_>,
        architecture: &Self::Architecture,
        masks: usize,
        size: (u32, u32),
    ) -> candle_core::Result<Self>;

    /// The noise that it was published with, and how masks are drawn.
    fn diffusion(architecture: &Self::Architecture) -> Diffusion;

    /// What depends on `images`, `[n, 3, height, width]`, alone.
    ///
    /// # Errors
    /// When the sides do not suit the network.
    fn condition(&self, images: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Self::Condition>;

    /// What it predicts of `noisy` masks, `[n, masks, height, width]`, at the timesteps `t`, f32 `[n]`.
    ///
    /// # Errors
    /// When the sides do not suit the network.
    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        condition: &Self::Condition,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Predicted>;

    /// What training minimises; the mean squared error of what is predicted.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn loss(&self, predicted: &Predicted, noised: &Noised<'_>) -> Result<Tensor> {
        Ok((&predicted.output - noised.target()?)?.sqr()?.mean_all()?)
    }

    /// Joins the masks of several runs as it was published: probabilities `[n, masks, height, width]`.
    ///
    /// # Errors
    /// When there is none.
    fn fuse(diffusion: &Diffusion, runs: &[Run]) -> Result<Tensor> {
        mean(diffusion, runs)
    }
}

/// A network that denoises masks.
pub struct Denoising<N> {
    net: N,
    schedule: NoiseSchedule,
}

impl<N: MaskNetwork> Denoising<N> {
    /// How masks are drawn with these options, by a network of which `stored` says how they were drawn when
    /// its weights were chosen. The preset draws fewer and takes fewer steps.
    fn diffusion(
        options: &Options<N::Architecture>,
        architecture: &N::Architecture,
        stored: Option<&Sampling>,
    ) -> Diffusion {
        let published = N::diffusion(architecture);
        let from = match (stored, options.preset) {
            (Some(stored), _) => published.with(stored),
            (None, Some(Preset::Tiny)) => Diffusion {
                sampler: SamplerName::Ddim,
                steps: published.steps.min(10),
                runs: published.runs.min(3),
                ..published
            },
            (None, None) => published,
        };
        match &options.sampling {
            Some(sampling) => from.with(sampling),
            None => from,
        }
    }

    /// Draws one mask for each image.
    fn run(
        &self,
        diffusion: &Diffusion,
        images: &Tensor,
        condition: &N::Condition,
        draws: &Draws<'_>,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Run> {
        let config = diffusion.scheduler(diffusion.sampler);
        let learned = config.variance_type.is_some();
        let mut sampler = Sampler::new(&config, diffusion.steps)?;
        let timesteps = sampler.timesteps().to_vec();
        let mut x = (draws.next("mask", 0)? * sampler.init_noise_sigma())?;
        let keeps = N::FUSES_STEPS && diffusion.fusion == Fusion::Published;
        let (mut steps, mut logits) = (Vec::new(), None);
        let mut sum = Tensor::zeros(images.dim(0)?, DType::F32, images.device())?;
        for (i, t) in timesteps.iter().enumerate() {
            go_on()?;
            let input = sampler.scale_input(&x, i)?.to_dtype(images.dtype())?;
            let t = Tensor::full(*t as f32, images.dim(0)?, images.device())?;
            let pass = Pass::ANSWER;
            let predicted = self.net.predict(images, &input, &t, condition, &pass)?;
            // Without `detach` the graph of every step would be kept until the last.
            let predicted = predicted.map(|x| Ok(x.to_dtype(DType::F32)?.detach()))?;
            // Samplers cut off what is infinite and, on some devices, what is no number.
            sum = (sum + predicted.output.flatten_from(1)?.sum(1)?)?;
            let noise = || draws.next("step", i as u64);
            if keeps {
                steps.push(predicted.output.clone());
            }
            logits = predicted.logits.clone();
            let output = Predicted {
                output: diffusion.limited(predicted.output)?,
                ..predicted
            };
            x = sampler.step(&output.channels(learned)?, i, &x, noise)?.x;
        }
        Ok(Run {
            drawn: x,
            steps,
            logits,
            sum,
        })
    }
}

/// Noise of a run: for each image it follows from the image's seed.
struct Draws<'a> {
    seeds: &'a [u64],
    run: usize,
    /// Masks, height, width.
    shape: [usize; 3],
    device: &'a Device,
}

impl Draws<'_> {
    /// Noise `[n, masks, height, width]` for a `purpose`.
    fn next(&self, purpose: &str, index: u64) -> candle_core::Result<Tensor> {
        let [masks, height, width] = self.shape;
        let purpose = format!("{purpose} of run {}", self.run);
        let draw = |seed: &u64| noise::normal(*seed, &purpose, index, masks * height * width);
        let values: Vec<Vec<f32>> = self.seeds.par_iter().map(draw).collect();
        let shape = (self.seeds.len(), masks, height, width);
        Tensor::from_vec(values.concat(), shape, self.device)
    }
}

impl<N: MaskNetwork> Learned for Denoising<N> {
    type Architecture = N::Architecture;
    const DRAWS: bool = true;

    fn new(
        scope: Scope<'_>,
        description: &Description<N::Architecture>,
    ) -> candle_core::Result<Self> {
        let architecture = &description.architecture;
        let (masks, size) = (description.classes.len(), description.frame().whole);
        let config = N::diffusion(architecture).scheduler(SamplerName::Ddpm);
        Ok(Denoising {
            net: N::new(scope, architecture, masks, size)?,
            schedule: NoiseSchedule::new(&config).map_err(candle_core::Error::msg)?,
        })
    }

    fn check(options: &Options<N::Architecture>) -> Result<()> {
        if options.train.loss.is_some() {
            let message = format!(
                "`train.loss` is for segmenters that answer at once; `{}` denoises masks and has a loss of its own",
                N::Architecture::PLUGIN
            );
            return Err(Error::config(message).at("train.loss"));
        }
        Self::diffusion(options, &options.architecture(), None).check(N::FUSES_STEPS)
    }

    fn sampling(options: &Options<N::Architecture>) -> Option<Sampling> {
        Some(Self::diffusion(options, &options.architecture(), None).sampling())
    }

    fn check_stored(
        options: &Options<N::Architecture>,
        description: &Description<N::Architecture>,
    ) -> Result<()> {
        let stored = description.sampling.as_ref();
        Self::diffusion(options, &description.architecture, stored).check(N::FUSES_STEPS)
    }

    fn loss(
        &self,
        setting: &Setting<'_, N::Architecture>,
        images: &Tensor,
        targets: Tensor,
        pass: &Pass<'_>,
        step: u64,
    ) -> Result<Tensor> {
        let description = setting.description;
        let diffusion = N::diffusion(&description.architecture);
        let masks = planes(&targets, description.classes.len(), images.device())?;
        let clean = diffusion.scaled(&masks)?;
        let seed = rng::derive(setting.seed, "part", "noise of masks");
        let values = noise::normal(seed, "noise", step, clean.elem_count());
        let noise = Tensor::from_vec(values, clean.shape(), images.device())?;
        let mut draw = rng::stream(seed, "timestep", step);
        let last = self.schedule.alpha_bars().len() as u32;
        let t: Vec<u32> = (0..images.dim(0)?)
            .map(|_| draw.random_range(0..last))
            .collect();
        let noisy = self.schedule.add_noise(&clean, &noise, &t)?;
        let condition = self.net.condition(images, pass)?;
        let times = Tensor::new(t.as_slice(), images.device())?.to_dtype(DType::F32)?;
        let input = noisy.to_dtype(images.dtype())?;
        let predicted = self.net.predict(images, &input, &times, &condition, pass)?;
        // Padding is not judged.
        let (width, height) = description.frame().content;
        let content = |x: &Tensor| {
            x.to_dtype(DType::F32)?
                .narrow(2, 0, height as usize)?
                .narrow(3, 0, width as usize)?
                .contiguous()
        };
        let noised = Noised {
            masks: content(&masks)?,
            clean: content(&clean)?,
            noise: content(&noise)?,
            noisy: content(&noisy)?,
            t: &t,
            schedule: &self.schedule,
            prediction: diffusion.prediction,
        };
        self.net.loss(&predicted.map(content)?, &noised)
    }

    fn answer(
        &self,
        setting: &Setting<'_, N::Architecture>,
        images: &Tensor,
        seeds: &[u64],
    ) -> Result<Answer> {
        let description = setting.description;
        let (architecture, stored) = (&description.architecture, description.sampling.as_ref());
        let mut diffusion = Self::diffusion(setting.options, architecture, stored);
        if setting.validates {
            diffusion = diffusion.quick();
        }
        let condition = self.net.condition(images, &Pass::ANSWER)?;
        let (_, _, height, width) = images.dims4()?;
        // Padding is not looked at when masks are joined.
        let content = description.frame().content;
        let run = |run| {
            let draws = Draws {
                seeds,
                run,
                shape: [description.classes.len(), height, width],
                device: images.device(),
            };
            let run = self.run(&diffusion, images, &condition, &draws, &setting.go_on)?;
            Ok(run.content(content)?)
        };
        let runs = (0..diffusion.runs).map(run).collect::<Result<Vec<_>>>()?;
        let sums: Vec<&Tensor> = runs.iter().map(|run| &run.sum).collect();
        let raw = Tensor::stack(&sums, 1)?;
        let masks = match diffusion.fusion {
            Fusion::Mean => mean(&diffusion, &runs)?,
            Fusion::Staple => joined(&diffusion, &runs)?,
            Fusion::Published => N::fuse(&diffusion, &runs)?,
        };
        let masks = masks
            .pad_with_zeros(2, 0, height - content.1 as usize)?
            .pad_with_zeros(3, 0, width - content.0 as usize)?;
        let probabilities = match masks.dim(1)? {
            1 => masks,
            // The background is as probable as the likeliest class is not.
            _ => {
                let background = masks.max_keepdim(1)?.affine(-1.0, 1.0)?;
                Tensor::cat(&[&background, &masks], 1)?
            }
        };
        Ok(Answer { probabilities, raw })
    }

    fn begin(_: &Params, _: &N::Architecture, file: &Path, _: &Device) -> Result<String> {
        Err(super::no_published_part::<N::Architecture>(file))
    }

    fn outputs(_: &N::Architecture, channels: usize) -> Outputs {
        Outputs::Masks(channels)
    }
}

/// A plane of 0 and 1 for each of the classes 1 to `masks`, f32 `[n, masks, height, width]`, of indices of
/// classes `[n, height, width]`.
fn planes(targets: &Tensor, masks: usize, device: &Device) -> candle_core::Result<Tensor> {
    let plane = |class: usize| targets.eq(class as u32)?.to_dtype(DType::F32);
    let planes = (1..=masks).map(plane);
    let planes = planes.collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::stack(&planes, 1)?.to_device(device)
}
