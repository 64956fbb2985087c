//! What goes in and out of networks that denoise masks, and masks of several runs joined.

use super::Diffusion;
use crate::diffusion::scheduler::{NoiseSchedule, Prediction};
use candle_core::{Device, Tensor};
use diffaug::{Result, staple::staple_of_probabilities};
use rayon::prelude::*;

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
    pub(super) fn channels(&self, learned: bool) -> candle_core::Result<Tensor> {
        match &self.variance {
            Some(variance) if learned => Tensor::cat(&[&self.output, variance], 1),
            _ => Ok(self.output.clone()),
        }
    }

    pub(super) fn map(
        &self,
        f: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Self> {
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
    pub(super) sum: Tensor,
}

impl Run {
    /// The run without what lies beside the first `width` and `height` pixels.
    pub(super) fn content(self, (width, height): (u32, u32)) -> candle_core::Result<Self> {
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

/// Probabilities that STAPLE forms of the masks of all runs, each image and class alone.
pub(super) fn joined(diffusion: &Diffusion, runs: &[Run]) -> Result<Tensor> {
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
