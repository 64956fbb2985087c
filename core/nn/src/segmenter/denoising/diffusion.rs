//! The noise that masks are trained with, and how they are drawn.

use crate::{
    diffusion::scheduler::{Prediction, Sampler, SamplerName, SchedulerConfig},
    segmenter::{Fusion, Sampling},
};
use candle_core::Tensor;
use diffaug::{Error, Result};

/// Most steps from noise to a mask: as many as the schedules of training have.
const MOST_STEPS: usize = 1000;
/// Most masks that are drawn for an image: as many as STAPLE joins.
const MOST_RUNS: usize = 64;
/// Most maps of an image that are kept where the way of joining looks at all steps of all runs.
const MOST_KEPT: usize = 1000;
/// Most steps of a mask that is drawn to choose weights by.
const VALIDATION_STEPS: usize = 50;

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
    pub(super) fn limited(&self, output: Tensor) -> candle_core::Result<Tensor> {
        match self.prediction {
            Prediction::Sample => output.clamp(-1f32, 1f32),
            Prediction::Epsilon | Prediction::Velocity => Ok(output),
        }
    }

    /// The options that say this.
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            sampler: Some(self.sampler),
            steps: Some(self.steps),
            runs: Some(self.runs),
            fusion: Some(self.fusion),
        }
    }

    /// One mask in few steps, for a validation while training.
    pub(super) fn quick(self) -> Self {
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
    pub(super) fn check(&self, keeps: bool) -> Result<()> {
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
    pub(super) fn with(self, sampling: &Sampling) -> Self {
        Diffusion {
            sampler: sampling.sampler.unwrap_or(self.sampler),
            steps: sampling.steps.unwrap_or(self.steps),
            runs: sampling.runs.unwrap_or(self.runs),
            fusion: sampling.fusion.unwrap_or(self.fusion),
            ..self
        }
    }

    /// Masks of 0 and 1 as noise is added to them.
    pub(super) fn scaled(&self, masks: &Tensor) -> candle_core::Result<Tensor> {
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
