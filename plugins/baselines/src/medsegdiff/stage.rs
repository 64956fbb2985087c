//! The segmenters of [`v1`] and [`v2`]: what they are trained with, and how masks are drawn and joined.

use super::{Output, Rule, fuse, loss, v1, v2};
use crate::learned_range::LearnedRange;
use candle_core::{Result, Tensor};
use diffaug_nn::{
    diffusion::scheduler::{Prediction, SamplerName},
    ops,
    params::Scope,
    segmenter::{Diffusion, Fusion, MaskNetwork, Noised, Pass, Predicted, Run},
};

impl From<Output> for Predicted {
    fn from(output: Output) -> Self {
        Predicted {
            output: output.noise,
            variance: output.variance,
            logits: output.logits,
        }
    }
}

/// The loss by `rule` of what a network says of noisy masks.
fn judged(rule: Rule, predicted: &Predicted, noised: &Noised<'_>) -> diffaug::Result<Tensor> {
    let output = Output {
        noise: predicted.output.clone(),
        variance: predicted.variance.clone(),
        calibration: predicted.logits.as_ref().map(ops::sigmoid).transpose()?,
        logits: predicted.logits.clone(),
    };
    let schedule = LearnedRange::of_alpha_bars(noised.schedule.alpha_bars())?;
    let (clean, target) = (&noised.clean, noised.target()?);
    Ok(loss(
        rule,
        &output,
        clean,
        &noised.noisy,
        &target,
        noised.t,
        &schedule,
    )?)
}

impl MaskNetwork for v1::Net {
    type Architecture = v1::Architecture;
    /// The network of the image sees what the other has found: nothing follows from the image alone.
    type Condition = ();

    fn new(
        scope: Scope<'_>,
        architecture: &v1::Architecture,
        masks: usize,
        (width, height): (u32, u32),
    ) -> Result<Self> {
        v1::Net::new(
            scope,
            architecture,
            masks,
            [height as usize, width as usize],
        )
    }

    /// Five masks of a thousand steps each, as the reference tests.
    fn diffusion(_: &v1::Architecture) -> Diffusion {
        Diffusion {
            prediction: Prediction::Epsilon,
            values: (0.0, 1.0),
            learned_variance: true,
            sampler: SamplerName::Ddpm,
            steps: 1000,
            runs: 5,
            fusion: Fusion::Published,
        }
    }

    fn condition(&self, _: &Tensor, _: &Pass<'_>) -> Result<()> {
        Ok(())
    }

    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        (): &(),
        pass: &Pass<'_>,
    ) -> Result<Predicted> {
        Ok(self.forward(images, noisy, t, pass)?.into())
    }

    fn loss(&self, predicted: &Predicted, noised: &Noised<'_>) -> diffaug::Result<Tensor> {
        judged(Rule::Released, predicted, noised)
    }

    /// Each mask with what the network of the image says beside it, joined by [`staple`].
    fn fuse(_: &Diffusion, runs: &[Run]) -> diffaug::Result<Tensor> {
        let fused = runs.iter().map(|run| match &run.logits {
            Some(logits) => fuse(&run.drawn, &ops::sigmoid(logits)?),
            None => run.drawn.clamp(0f32, 1f32),
        });
        Ok(staple(&fused.collect::<Result<Vec<_>>>()?)?)
    }
}

/// The square of the mean of several masks: what the reference's function of this name makes of them, which weighs
/// each by the mean and takes the mean again. A pixel is above 0.5 where the mean is above 0.71.
fn staple(masks: &[Tensor]) -> Result<Tensor> {
    Tensor::stack(masks, 0)?.mean(0)?.sqr()
}

impl MaskNetwork for v2::Net {
    type Architecture = v2::Architecture;
    type Condition = v2::Condition;

    fn new(
        scope: Scope<'_>,
        architecture: &v2::Architecture,
        masks: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        v2::Net::new(scope, architecture, masks)
    }

    /// As the paper says, ten masks of a hundred steps each, joined by STAPLE; the variance of a step, of which it
    /// says nothing, is the smaller one of Ho et al. (2020). As what was released tests, five masks of a thousand
    /// steps each, joined by [`staple`].
    fn diffusion(architecture: &v2::Architecture) -> Diffusion {
        let (learned_variance, steps, runs, fusion) = match architecture.variant {
            v2::Variant::Published => (false, 100, 10, Fusion::Staple),
            v2::Variant::Released => (true, 1000, 5, Fusion::Published),
        };
        Diffusion {
            prediction: architecture.prediction,
            values: (0.0, 1.0),
            learned_variance,
            sampler: SamplerName::Ddpm,
            steps,
            runs,
            fusion,
        }
    }

    fn condition(&self, images: &Tensor, pass: &Pass<'_>) -> Result<v2::Condition> {
        self.condition(images, pass)
    }

    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        condition: &v2::Condition,
        pass: &Pass<'_>,
    ) -> Result<Predicted> {
        Ok(self.predict(images, noisy, t, condition, pass)?.into())
    }

    fn loss(&self, predicted: &Predicted, noised: &Noised<'_>) -> diffaug::Result<Tensor> {
        // Variances are learned by the variational bound.
        let rule = match predicted.variance {
            Some(_) => Rule::Released,
            None => Rule::Published,
        };
        judged(rule, predicted, noised)
    }

    fn fuse(diffusion: &Diffusion, runs: &[Run]) -> diffaug::Result<Tensor> {
        let drawn = runs.iter().map(|run| diffusion.probabilities(&run.drawn));
        Ok(staple(&drawn.collect::<Result<Vec<_>>>()?)?)
    }
}
