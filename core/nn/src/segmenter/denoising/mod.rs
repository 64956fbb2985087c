//! Networks that denoise masks, guided by an image: their training, and answers drawn from noise once or
//! several times.

#[cfg(test)]
mod tests;

use super::{
    Answer, Architecture, Description, Fusion, Learned, Options, Outputs, Pass, Preset, Sampling,
    Setting,
};
use crate::{
    diffusion::scheduler::{NoiseSchedule, Prediction, Sampler, SamplerName, SchedulerConfig},
    noise,
    params::{Params, Scope},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, Result, rng, staple::staple_of_probabilities};
use rand::RngExt;
use rayon::prelude::*;
use std::path::Path;

/// Most steps from noise to a mask: as many as the schedules of training have.
const MOST_STEPS: usize = 1000;
/// Most masks that are drawn for an image: as many as STAPLE joins.
const MOST_RUNS: usize = 64;
/// Most maps of an image that are kept where the way of joining looks at all steps of all runs.
const MOST_KEPT: usize = 1000;
/// Most steps of a mask that is drawn to choose weights by.
const VALIDATION_STEPS: usize = 50;

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

/// Noise, and the way back from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diffusion {
    /// What the network predicts.
    pub prediction: Prediction,
    /// Values of a mask, outside and inside: -1 and 1, or 0 and 1.
    pub values: (f64, f64),
    /// Whether the network predicts variances as well, in as many channels again.
    pub learned_variance: bool,
    /// What goes back from noise to a mask.
    pub sampler: SamplerName,
    /// Steps from noise to a mask.
    pub steps: usize,
    /// Masks that are drawn for an image.
    pub runs: usize,
    /// What becomes of several masks.
    pub fusion: Fusion,
}

impl Diffusion {
    /// Noise that grows linearly from 1e-4 to 0.02 over 1,000 timesteps (Ho et al., 2020), sampled by `sampler`.
    pub fn scheduler(&self, sampler: SamplerName) -> SchedulerConfig {
        let prediction = match self.prediction {
            Prediction::Epsilon => "epsilon",
            Prediction::Velocity => "v_prediction",
            Prediction::Sample => "sample",
        };
        let mut config = SchedulerConfig::new(sampler);
        config.prediction_type = Some(prediction.to_owned());
        // What is drawn begins with noise alone, which is what the last timestep holds, and no other.
        if matches!(sampler, SamplerName::Ddim | SamplerName::Ddpm) {
            config.timestep_spacing = Some("trailing".to_owned());
        }
        match sampler {
            // As guided-diffusion has it.
            SamplerName::Ddim => config.use_clipped_model_output = Some(true),
            SamplerName::Ddpm if self.learned_variance => {
                config.variance_type = Some("learned_range".to_owned());
            }
            _ => {}
        }
        config
    }

    /// What a sampler is given: masks that were predicted are cut off at -1 and 1, which not all samplers do.
    fn limited(&self, output: Tensor) -> candle_core::Result<Tensor> {
        match self.prediction {
            Prediction::Sample => output.clamp(-1f32, 1f32),
            Prediction::Epsilon | Prediction::Velocity => Ok(output),
        }
    }

    /// The options that say this.
    fn sampling(&self) -> Sampling {
        Sampling {
            sampler: Some(self.sampler),
            steps: Some(self.steps),
            runs: Some(self.runs),
            fusion: Some(self.fusion),
        }
    }

    /// One mask in few steps, for a validation while training.
    fn quick(self) -> Self {
        Diffusion {
            sampler: match self.sampler {
                SamplerName::Ddpm => SamplerName::Ddim,
                other => other,
            },
            steps: self.steps.min(VALIDATION_STEPS),
            runs: 1,
            fusion: Fusion::Mean,
            ..self
        }
    }

    /// Checks that masks can be drawn so; `keeps` where joining them looks at all steps.
    ///
    /// # Errors
    /// Naming the option.
    fn check(&self, keeps: bool) -> Result<()> {
        for (field, value, most) in [
            ("steps", self.steps, MOST_STEPS),
            ("runs", self.runs, MOST_RUNS),
        ] {
            if !(1..=most).contains(&value) {
                let field = format!("sampling.{field}");
                let message = format!("`{field}` is {value}, expected 1 to {most}");
                return Err(Error::config(message).at(&field));
            }
        }
        let (steps, runs) = (self.steps, self.runs);
        if keeps && self.fusion == Fusion::Published && steps * runs > MOST_KEPT {
            return Err(Error::config(format!(
                "`sampling.steps` times `sampling.runs` is {}, expected at most {MOST_KEPT} where the fusion is `published`, which looks at all of them",
                steps * runs
            ))
            .at("sampling.steps"));
        }
        // Not every sampler can take any number of steps.
        let sampler = Sampler::new(&self.scheduler(self.sampler), steps);
        sampler.map(drop).map_err(|error| {
            let message = format!(
                "with {steps} steps of `{}`: {}",
                self.sampler, error.message
            );
            Error::config(message).at("sampling.steps")
        })
    }

    /// With what the user said in place of what was published.
    fn with(self, sampling: &Sampling) -> Self {
        Diffusion {
            sampler: sampling.sampler.unwrap_or(self.sampler),
            steps: sampling.steps.unwrap_or(self.steps),
            runs: sampling.runs.unwrap_or(self.runs),
            fusion: sampling.fusion.unwrap_or(self.fusion),
            ..self
        }
    }

    /// Masks of 0 and 1 as noise is added to them.
    fn scaled(&self, masks: &Tensor) -> candle_core::Result<Tensor> {
        masks.affine(self.values.1 - self.values.0, self.values.0)
    }

    /// How probable the classes are in what was drawn.
    ///
    /// # Errors
    /// Those of candle.
    pub fn probabilities(&self, drawn: &Tensor) -> candle_core::Result<Tensor> {
        let (outside, inside) = self.values;
        let width = inside - outside;
        drawn
            .affine(1.0 / width, -outside / width)?
            .clamp(0f32, 1f32)
    }
}

/// What a network answers.
#[derive(Clone, Debug)]
pub struct Predicted {
    /// What it predicts, `[n, masks, height, width]`.
    pub output: Tensor,
    /// Where the logarithm of the variance lies between its bounds, -1 to 1; of the same shape.
    pub variance: Option<Tensor>,
    /// Logits of the masks that a part of it finds by the image alone, of the same shape.
    pub logits: Option<Tensor>,
}

impl From<Tensor> for Predicted {
    fn from(output: Tensor) -> Self {
        Predicted {
            output,
            variance: None,
            logits: None,
        }
    }
}

impl Predicted {
    /// What a scheduler is given.
    fn channels(&self, learned: bool) -> candle_core::Result<Tensor> {
        match &self.variance {
            Some(variance) if learned => Tensor::cat(&[&self.output, variance], 1),
            _ => Ok(self.output.clone()),
        }
    }

    fn map(&self, f: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> candle_core::Result<Self> {
        Ok(Predicted {
            output: f(&self.output)?,
            variance: self.variance.as_ref().map(&f).transpose()?,
            logits: self.logits.as_ref().map(&f).transpose()?,
        })
    }
}

/// Masks of a step of training, all f32 `[n, masks, height, width]` and without padding.
#[derive(Debug)]
pub struct Noised<'a> {
    /// 0 and 1.
    pub masks: Tensor,
    /// The same at the values of [`Diffusion::values`].
    pub clean: Tensor,
    /// What was added.
    pub noise: Tensor,
    /// What the network saw.
    pub noisy: Tensor,
    /// Timestep of each image.
    pub t: &'a [u32],
    /// How much noise the timesteps hold.
    pub schedule: &'a NoiseSchedule,
    /// What is predicted.
    pub prediction: Prediction,
}

impl Noised<'_> {
    /// What a network should predict.
    ///
    /// # Errors
    /// Those of [`NoiseSchedule::target`].
    pub fn target(&self) -> candle_core::Result<Tensor> {
        self.schedule
            .target(self.prediction, &self.clean, &self.noise, self.t)
    }
}

/// A mask that was drawn for each image.
#[derive(Clone, Debug)]
pub struct Run {
    /// What came out in the end, at the values of [`Diffusion::values`], `[n, masks, height, width]`.
    pub drawn: Tensor,
    /// What the network predicted in each step, where the fusion of the network asks for it.
    pub steps: Vec<Tensor>,
    /// The last step's [`Predicted::logits`].
    pub logits: Option<Tensor>,
    /// The sum of all that the network answered for each image, `[n]`: in it shows what is no number.
    sum: Tensor,
}

impl Run {
    /// The run without what lies beside the first `width` and `height` pixels.
    fn content(self, (width, height): (u32, u32)) -> candle_core::Result<Self> {
        let content = |x: Tensor| {
            x.narrow(2, 0, height as usize)?
                .narrow(3, 0, width as usize)?
                .contiguous()
        };
        let steps = self.steps.into_iter().map(content);
        Ok(Run {
            drawn: content(self.drawn)?,
            steps: steps.collect::<candle_core::Result<_>>()?,
            logits: self.logits.map(content).transpose()?,
            sum: self.sum,
        })
    }
}

/// The mean of what was drawn, as probabilities.
///
/// # Errors
/// When there is no run.
pub fn mean(diffusion: &Diffusion, runs: &[Run]) -> Result<Tensor> {
    let drawn = runs.iter().map(|run| diffusion.probabilities(&run.drawn));
    let drawn = drawn.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::stack(&drawn, 0)?.mean(0)?)
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

/// Probabilities that STAPLE forms of the masks of all runs, each image and class alone.
fn joined(diffusion: &Diffusion, runs: &[Run]) -> Result<Tensor> {
    let first = &runs[0].drawn;
    let maps = runs.iter().map(|run| {
        let maps = diffusion.probabilities(&run.drawn)?;
        maps.to_device(&Device::Cpu)?
            .flatten(0, 1)?
            .flatten_from(1)?
            .to_vec2::<f32>()
    });
    let maps: Vec<Vec<Vec<f32>>> = maps.collect::<candle_core::Result<_>>()?;
    let join = |plane: usize| {
        let maps: Vec<&[f32]> = maps.iter().map(|run| run[plane].as_slice()).collect();
        Ok(staple_of_probabilities(&maps)?.probability)
    };
    let planes = (0..maps[0].len()).into_par_iter().map(join);
    let values = planes.collect::<Result<Vec<Vec<f32>>>>()?.concat();
    Ok(Tensor::from_vec(values, first.shape(), first.device())?)
}
