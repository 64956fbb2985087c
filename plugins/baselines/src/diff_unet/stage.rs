//! The segmenter: its loss, and masks of several runs joined by their uncertainty.

use super::{Architecture, Net, fuse, loss};
use candle_core::{Result, Tensor};
use diffaug_nn::{
    diffusion::scheduler::{Prediction, SamplerName},
    ops,
    params::Scope,
    segmenter::{Diffusion, Fusion, MaskNetwork, Noised, Pass, Predicted, Run},
};

impl MaskNetwork for Net {
    type Architecture = Architecture;
    type Condition = Vec<Tensor>;
    const FUSES_STEPS: bool = true;

    fn new(
        scope: Scope<'_>,
        architecture: &Architecture,
        masks: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        Net::new(scope, architecture, masks)
    }

    /// Four runs of ten steps, as the reference tests; its steps are at other timesteps: 999, 888 to 0, where
    /// these are at 999, 899 to 99.
    fn diffusion(_: &Architecture) -> Diffusion {
        Diffusion {
            prediction: Prediction::Sample,
            values: (-1.0, 1.0),
            learned_variance: false,
            sampler: SamplerName::Ddim,
            steps: 10,
            runs: 4,
            fusion: Fusion::Published,
        }
    }

    fn condition(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        self.condition(images, pass)
    }

    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        condition: &Vec<Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Predicted> {
        Ok(self.predict(images, noisy, t, condition, pass)?.into())
    }

    fn loss(&self, predicted: &Predicted, noised: &Noised<'_>) -> diffaug::Result<Tensor> {
        Ok(loss(&predicted.output, &noised.masks)?)
    }

    fn fuse(_: &Diffusion, runs: &[Run]) -> diffaug::Result<Tensor> {
        let steps: Vec<Vec<Tensor>> = runs.iter().map(|run| run.steps.clone()).collect();
        // The sum over all maps as their mean, of whose sigmoids none is 1: the same pixels are above 0.5.
        let maps: usize = steps.iter().map(Vec::len).sum();
        Ok(ops::sigmoid(&(fuse(&steps)? / maps as f64)?)?)
    }
}
