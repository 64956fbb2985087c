//! The segmenter `mean-mask`: it gives every image the same answer, the mask that serves the training images
//! best. It looks at no image: what learns from images has to be better.

use candle_core::{Result, Tensor};
use diffaug_nn::{
    params::Scope,
    segmenter::{Activations, Architecture as Sizes, Budget, Load, Network, Pass},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// There is nothing to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "mean-mask";

    fn tiny() -> Self {
        Architecture {}
    }

    fn check(&self) -> diffaug::Result<()> {
        Ok(())
    }

    fn activations(&self, load: &Load) -> Activations {
        Activations::of_values(load, 4 * load.outputs as u64)
    }

    fn small(&self) -> Budget {
        budget()
    }

    fn reference(&self) -> Budget {
        budget()
    }

    fn tiny_budget(&self) -> Budget {
        budget()
    }

    fn head(&self) -> &'static str {
        "logits"
    }
}

/// The logits are all there is, so that they can move fast.
fn budget() -> Budget {
    Budget {
        steps: Some(300),
        lr: 0.1,
        weight_decay: 0.0,
        patience: 0,
        evaluate_epochs: u64::MAX,
        evaluate_every: 100,
        ..Budget::default()
    }
}

/// A logit for each pixel.
pub struct MeanMask(Tensor);

impl Network for MeanMask {
    type Architecture = Architecture;

    fn new(
        mut scope: Scope<'_>,
        _: &Architecture,
        outputs: usize,
        (width, height): (u32, u32),
    ) -> Result<Self> {
        let shape = [1, outputs, height as usize, width as usize];
        Ok(MeanMask(scope.constant("logits", &shape, 0.0)?))
    }

    fn forward(&self, images: &Tensor, _: &Pass<'_>) -> Result<Tensor> {
        let (count, _, height, width) = images.dims4()?;
        let logits = self.0.to_dtype(images.dtype())?;
        let outputs = logits.dim(1)?;
        logits
            .broadcast_as((count, outputs, height, width))?
            .contiguous()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_nn::{
        Device, ops,
        optim::{Config, Optimizer},
        params::Params,
    };

    #[test]
    fn it_becomes_where_most_masks_are() {
        // Of four pixels one is in all masks, one in two of three, one in one, and one in none.
        let masks = [
            [1.0f32, 1.0, 0.0, 0.0],
            [1.0, 1.0, 1.0, 0.0],
            [1.0, 0.0, 0.0, 0.0],
        ];
        let targets = Tensor::new(&masks, &Device::Cpu).unwrap();
        let targets = targets.reshape((3, 1, 2, 2)).unwrap();
        let images = Tensor::zeros((3, 3, 2, 2), targets.dtype(), &Device::Cpu).unwrap();
        let mut params = Params::new(&Device::Cpu, 0);
        let net = MeanMask::new(params.root(), &Architecture {}, 1, (2, 2)).unwrap();
        let config = Config {
            weight_decay: 0.0,
            ..Config::default()
        };
        let mut optimizer = Optimizer::new(params.trainable(), &config).unwrap();
        for _ in 0..200 {
            let logits = net.forward(&images, &Pass::ANSWER).unwrap();
            let loss = ops::dice_bce_with_logits(&logits, &targets, 1.0, 1.0).unwrap();
            let grads = loss.backward().unwrap();
            optimizer.step(&grads, 0.1).unwrap();
        }
        let logits = net.0.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(
            logits[0] > 1.0 && logits[1] > 0.0 && logits[3] < -1.0,
            "{logits:?}"
        );
        assert!(logits[1] > logits[2]);
    }
}
