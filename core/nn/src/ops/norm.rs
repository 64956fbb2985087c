//! Batch normalisation.

use super::{fused, like, wide};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Error, Result, Shape, Tensor, bail};
use diffaug_kernels::norm::{Moments, Norm};
use std::sync::{Arc, OnceLock};

/// What [`batch_norm`] normalises by.
#[derive(Clone, Copy, Debug)]
pub enum Statistics<'a> {
    /// Mean and variance of the batch itself, as in training.
    Batch,
    /// Given mean and variance, `[channels]` each, as in inference.
    Given(&'a Tensor, &'a Tensor),
}

/// Normalises every channel, scales it by `weight` and shifts it by `bias` (`[channels]` each);
/// with `relu` negative results become 0.
///
/// Returns the result and the mean and biased variance that were used, both f32 for half precision.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn batch_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    statistics: Statistics<'_>,
    epsilon: f32,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (_, channels, _, _) = x.dims4()?;
    if weight.dims() != [channels] || bias.dims() != [channels] {
        bail!(
            "a batch normalisation of {channels} channels needs as many scales and shifts, not {:?} and {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    if !fused(x) {
        return composed(x, weight, bias, statistics, epsilon, relu);
    }
    let moments = Arc::new(OnceLock::new());
    let batch = match statistics {
        Statistics::Batch => true,
        Statistics::Given(mean, variance) => {
            let (mean, variance) = (mean.to_vec1()?, variance.to_vec1()?);
            moments.get_or_init(|| Moments { mean, variance });
            false
        }
    };
    let op = BatchNorm {
        epsilon,
        relu,
        batch,
        moments: moments.clone(),
    };
    let affine = Tensor::stack(&[weight, bias], 0)?;
    let y = [x, &affine].apply(op)?;
    let moments = moments.get().cloned().unwrap_or_default();
    let mean = Tensor::from_vec(moments.mean, channels, x.device())?;
    let variance = Tensor::from_vec(moments.variance, channels, x.device())?;
    Ok((y, mean, variance))
}

fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    statistics: Statistics<'_>,
    epsilon: f32,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let dtype = x.dtype();
    let x = wide(x)?;
    let of_channels = |t: &Tensor| t.to_dtype(x.dtype())?.reshape((1, (), 1, 1));
    let (mean, variance) = match statistics {
        Statistics::Batch => {
            let mean = x.mean_keepdim((0, 2, 3))?;
            let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
            (mean, variance)
        }
        Statistics::Given(mean, variance) => (of_channels(mean)?, of_channels(variance)?),
    };
    // NaN where the variance is infinite, which would make zeros and hide it.
    let root = ((&variance + f64::from(epsilon))?.sqrt()? + (&variance * 0.0)?)?;
    let y = x.broadcast_sub(&mean)?.broadcast_div(&root)?;
    let y = y.broadcast_mul(&of_channels(weight)?)?;
    let y = y.broadcast_add(&of_channels(bias)?)?.to_dtype(dtype)?;
    let y = if relu { y.relu()? } else { y };
    let flat = |t: Tensor| t.detach().flatten_all();
    Ok((y, flat(mean)?, flat(variance)?))
}

struct BatchNorm {
    epsilon: f32,
    relu: bool,
    /// Whether `moments` come from the input.
    batch: bool,
    moments: Arc<OnceLock<Moments>>,
}

impl BatchNorm {
    fn norm<'a>(&self, x: &'a [f32], shape: &Shape, affine: &'a [f32]) -> Result<Norm<'a>> {
        let (_, channels, height, width) = shape.dims4()?;
        Ok(Norm {
            x,
            channels,
            size: height * width,
            affine,
            epsilon: self.epsilon,
            relu: self.relu,
        })
    }
}

impl Operation<2> for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, [x, affine]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        let norm = self.norm(x.values, x.shape, affine.values)?;
        let moments = self.moments.get_or_init(|| norm.moments());
        Ok((norm.forward(moments), x.shape.clone()))
    }

    fn backward(
        &self,
        [x, affine]: [&Tensor; 2],
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let Some(moments) = self.moments.get() else {
            bail!("batch_norm went backward before it went forward");
        };
        let shape = x.shape();
        let (dx, daffine) = with_values([x, affine, y, dy], |[x, affine, y, dy]| {
            let norm = self.norm(x, shape, affine)?;
            Ok::<_, Error>(norm.backward(moments, y, dy, self.batch))
        })??;
        Ok([Some(like(dx, x)?), Some(like(daffine, affine)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};

    fn inputs(shape: &[usize]) -> [Tensor; 3] {
        let x = (random("x", shape) * 3.0).unwrap();
        [
            (x + 5.0).unwrap(),
            random("weight", &shape[1..2]),
            random("bias", &shape[1..2]),
        ]
    }

    #[test]
    fn fused_and_composed_agree() {
        let [x, w, b] = inputs(&[3, 5, 7, 9]);
        let (mean, variance) = (random("mean", &[5]), random("var", &[5]).sqr().unwrap());
        for relu in [false, true] {
            for statistics in [Statistics::Batch, Statistics::Given(&mean, &variance)] {
                let ours = batch_norm(&x, &w, &b, statistics, 1e-5, relu).unwrap();
                let theirs = composed(&x, &w, &b, statistics, 1e-5, relu).unwrap();
                close(&ours.0, &theirs.0, 1e-5);
                close(&ours.1, &theirs.1, 1e-5);
                close(&ours.2, &theirs.2, 1e-5);
            }
        }
    }

    #[test]
    fn gradients_with_and_without_batch_statistics() {
        let inputs = inputs(&[2, 3, 4, 5]);
        check_gradients(&inputs, |v| {
            Ok(batch_norm(&v[0], &v[1], &v[2], Statistics::Batch, 1e-5, false)?.0)
        });
        let (mean, variance) = (random("mean", &[3]), Tensor::ones_like(&inputs[1]).unwrap());
        check_gradients(&inputs, |v| {
            let given = Statistics::Given(&mean, &variance);
            Ok(batch_norm(&v[0], &v[1], &v[2], given, 1e-5, true)?.0)
        });
    }

    #[test]
    fn fused_and_composed_gradients_agree_behind_the_relu() {
        let vars = inputs(&[3, 4, 5, 6]).map(|t| candle_core::Var::from_tensor(&t).unwrap());
        let dy = random("dy", &[3, 4, 5, 6]);
        let [ours, theirs] = [batch_norm, composed].map(|f| {
            let y = f(&vars[0], &vars[1], &vars[2], Statistics::Batch, 1e-5, true);
            let loss = (y.unwrap().0 * &dy).unwrap().sum_all().unwrap();
            loss.backward().unwrap()
        });
        for var in &vars {
            close(ours.get(var).unwrap(), theirs.get(var).unwrap(), 1e-4);
        }
    }

    #[test]
    fn a_constant_channel_stays_finite() {
        let x = Tensor::full(1e4f32, (2, 1, 4, 4), &candle_core::Device::Cpu).unwrap();
        let one = Tensor::ones(1, candle_core::DType::F32, x.device()).unwrap();
        let y = batch_norm(&x, &one, &one, Statistics::Batch, 1e-5, true).unwrap();
        assert_eq!(
            y.0.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [1.0; 32]
        );
    }
}
