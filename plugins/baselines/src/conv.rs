//! Convolutions that differ from [`diffaug_nn::layers::Conv2d`] in what their weights are drawn from, or in
//! that each window of weights is standardised before it is used.

use candle_core::{DType, Result, Tensor};
use diffaug_nn::{
    noise,
    ops::{self, Convolution},
    params::Scope,
    precision::like,
};

/// What the weights of a convolution are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Draw {
    /// Normal numbers that keep the variance of gradients behind a ReLU (He et al., 2015).
    KaimingNormal,
    /// Even numbers that keep the variance of values behind a ReLU (He et al., 2015).
    KaimingUniform,
    /// Normal numbers that keep the variance of values behind a leaky ReLU of this slope (He et al., 2015).
    Leaky(f32),
    /// Even numbers between both without a ReLU (Glorot & Bengio, 2010).
    Xavier,
    /// PyTorch's default.
    Default,
}

/// A convolution with its weights.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    spec: Convolution,
    /// One and zero for each value of a window, where weights are standardised.
    standard: Option<[Tensor; 2]>,
}

impl Conv {
    /// Added to the variance of a window's weights.
    const EPSILON: f32 = 1e-5;

    /// `inputs` to `outputs` channels, a window of `side` × `side`; a bias begins with zeros.
    pub fn new(
        mut scope: Scope<'_>,
        [inputs, outputs]: [usize; 2],
        side: usize,
        spec: Convolution,
        draw: Draw,
        bias: bool,
    ) -> Result<Self> {
        let shape = [outputs, inputs, side, side];
        let (fan_in, fan_out) = (inputs * side * side, outputs * side * side);
        let root = |square: f32, fan: usize| (square / fan.max(1) as f32).sqrt();
        let normal = |deviation: f32| {
            move |seed| {
                let values = noise::normal(seed, "kaiming", 0, shape.iter().product());
                values.into_iter().map(|v| v * deviation).collect()
            }
        };
        let weight = match draw {
            Draw::KaimingNormal => scope.drawn("weight", &shape, normal(root(2.0, fan_out))),
            Draw::Leaky(slope) => {
                let gain = 2.0 / (1.0 + slope * slope);
                scope.drawn("weight", &shape, normal(root(gain, fan_in)))
            }
            Draw::KaimingUniform => scope.uniform("weight", &shape, root(6.0, fan_in)),
            Draw::Xavier => scope.uniform("weight", &shape, root(6.0, fan_in + fan_out)),
            Draw::Default => scope.uniform("weight", &shape, root(1.0, fan_in)),
        }?;
        let bias = bias.then(|| scope.constant("bias", &[outputs], 0.0));
        Ok(Conv {
            weight,
            bias: bias.transpose()?,
            spec,
            standard: None,
        })
    }

    /// The same where the weights of each output have mean 0 and variance 1 when they are used (Qiao et al.,
    /// Weight standardization, 2019).
    pub fn standardised(mut self) -> Result<Self> {
        let (_, inputs, k, l) = self.weight.dims4()?;
        let (count, device) = (inputs * k * l, self.weight.device());
        self.standard = Some([
            Tensor::ones(count, DType::F32, device)?,
            Tensor::zeros(count, DType::F32, device)?,
        ]);
        Ok(self)
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, places, places]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = match &self.standard {
            None => like(&self.weight, x)?,
            Some([one, zero]) => {
                let rows = self.weight.flatten_from(1)?;
                let rows = ops::layer_norm(&rows, one, zero, Self::EPSILON)?;
                like(&rows.reshape(self.weight.shape())?, x)?
            }
        };
        let bias = self.bias.as_ref().map(|bias| like(bias, x)).transpose()?;
        self.spec.forward(x, &weight, bias.as_ref())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use diffaug_nn::{params::Params, testing};

    fn deviation(t: &Tensor) -> f64 {
        let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
        let squares = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        (squares / values.len() as f64).sqrt()
    }

    #[test]
    fn weights_have_the_deviation_of_their_rule() {
        // Even numbers up to a bound have a deviation of the bound by the root of 3.
        for (draw, expected) in [
            (Draw::KaimingNormal, (2.0f64 / (32.0 * 9.0)).sqrt()),
            (Draw::KaimingUniform, (2.0f64 / (48.0 * 9.0)).sqrt()),
            (Draw::Leaky(0.5), (1.6f64 / (48.0 * 9.0)).sqrt()),
            (Draw::Xavier, (2.0f64 / (80.0 * 9.0)).sqrt()),
            (Draw::Default, (1.0f64 / (3.0 * 48.0 * 9.0)).sqrt()),
        ] {
            let mut params = Params::new(&Device::Cpu, 1);
            let spec = Convolution::same(3);
            let conv = Conv::new(params.root(), [48, 32], 3, spec, draw, false).unwrap();
            let found = deviation(&conv.weight);
            assert!((found / expected - 1.0).abs() < 0.03, "{draw:?}: {found}");
        }
    }

    #[test]
    fn standardised_weights_have_mean_0_and_variance_1() {
        let mut params = Params::new(&Device::Cpu, 1);
        let spec = Convolution::square(2, 1);
        let conv = Conv::new(params.root(), [3, 2], 3, spec, Draw::Default, false).unwrap();
        let conv = conv.standardised().unwrap();
        // Eleven times the weights, and any number more, are the same.
        let x = testing::random("x", &[2, 3, 9, 8]);
        let y = conv.forward(&x).unwrap();
        let var = Var::from_tensor(&conv.weight).unwrap();
        var.set(&conv.weight.affine(11.0, 3.0).unwrap()).unwrap();
        testing::close(&conv.forward(&x).unwrap(), &y, 1e-3);
        testing::check_gradients(&[x, testing::random("w", &[2, 3, 3, 3])], |inputs| {
            let conv = Conv {
                weight: inputs[1].clone(),
                ..conv.clone()
            };
            conv.forward(&inputs[0])
        });
    }
}
