//! The segmenter: how much noise its masks get, and how they are drawn.

use super::{Architecture, Net};
use candle_core::{Result, Tensor};
use diffaug_nn::{
    diffusion::scheduler::{Prediction, SamplerName},
    params::Scope,
    segmenter::{Diffusion, Fusion, MaskNetwork, Pass, Predicted},
};

impl MaskNetwork for Net {
    type Architecture = Architecture;
    type Condition = Vec<Tensor>;

    fn new(
        scope: Scope<'_>,
        architecture: &Architecture,
        masks: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        Net::new(scope, architecture, masks)
    }

    /// The mean of five masks of a hundred steps each. The paper says none of it.
    fn diffusion(_: &Architecture) -> Diffusion {
        Diffusion {
            prediction: Prediction::Epsilon,
            values: (-1.0, 1.0),
            learned_variance: false,
            sampler: SamplerName::Ddim,
            steps: 100,
            runs: 5,
            fusion: Fusion::Mean,
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
}
