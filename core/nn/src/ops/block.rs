//! Convolution, batch normalisation and ReLU as one operation: the step that convolutional
//! networks spend their time in.
//!
//! One node of the graph instead of two saves what candle does for every node: it fills a
//! gradient with zeros and then adds to it.

use super::{Statistics, batch_norm, conv::Conv, conv::kernel_side, conv2d, fused, like};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Error, Result, Shape, Tensor, bail};
use diffaug_kernels::norm::{Moments, Norm};
use std::sync::{Arc, OnceLock};

/// max(0, [`batch_norm`] of [`conv2d`] without bias), normalised by the batch's own statistics.
///
/// Returns the result and the mean and biased variance of each channel of the convolution.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn conv_batch_norm_relu(
    x: &Tensor,
    weight: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    epsilon: f32,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (outputs, ..) = weight.dims4()?;
    kernel_side(x.shape(), weight.shape())?;
    if !fused(x) || scale.dims() != [outputs] || shift.dims() != [outputs] {
        let y = conv2d(x, weight, None)?;
        return batch_norm(&y, scale, shift, Statistics::Batch, epsilon, true);
    }
    let between = Arc::new(OnceLock::new());
    let op = Block {
        epsilon,
        between: between.clone(),
    };
    let affine = Tensor::stack(&[scale, shift], 0)?;
    let y = [x, weight, &affine].apply(op)?;
    let Some(Between { moments, .. }) = between.get() else {
        bail!("a fused block did not run");
    };
    let mean = Tensor::from_slice(&moments.mean, outputs, x.device())?;
    let variance = Tensor::from_slice(&moments.variance, outputs, x.device())?;
    Ok((y, mean, variance))
}

struct Block {
    epsilon: f32,
    between: Arc<OnceLock<Between>>,
}

/// What the backward pass needs of the forward pass.
struct Between {
    /// The convolution's result.
    values: Vec<f32>,
    moments: Moments,
}

impl Block {
    fn norm<'a>(&self, values: &'a [f32], shape: &Shape, affine: &'a [f32]) -> Result<Norm<'a>> {
        let (_, channels, height, width) = shape.dims4()?;
        Ok(Norm {
            x: values,
            channels,
            size: height * width,
            affine,
            epsilon: self.epsilon,
            relu: true,
        })
    }
}

impl Operation<3> for Block {
    fn name(&self) -> &'static str {
        "conv_batch_norm_relu"
    }

    fn forward(&self, [x, weight, affine]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let (values, shape) = Conv::forward(x, weight, &[])?;
        let norm = self.norm(&values, &shape, affine.values)?;
        let moments = norm.moments();
        let y = norm.forward(&moments);
        let between = Between { values, moments };
        if self.between.set(between).is_err() {
            bail!("a fused block runs once only");
        }
        Ok((y, shape))
    }

    fn backward(
        &self,
        [x, weight, affine]: [&Tensor; 3],
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(Between { values, moments }) = self.between.get() else {
            bail!("a fused block went backward before it went forward");
        };
        let shape = y.shape();
        let (inner, daffine) = with_values([affine, y, dy], |[affine, y, dy]| {
            let norm = self.norm(values, shape, affine)?;
            Ok::<_, Error>(norm.backward(moments, y, dy, true))
        })??;
        let [dx, dw] = Conv::backward(x, weight, &inner)?;
        Ok([dx, dw, Some(like(daffine, affine)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use candle_core::Var;

    #[test]
    fn it_is_the_two_operations_in_turn() {
        let vars = [
            random("x", &[3, 4, 9, 7]),
            random("weight", &[6, 4, 3, 3]),
            random("scale", &[6]),
            random("shift", &[6]),
        ];
        let [x, w, scale, shift] = vars.map(|t| Var::from_tensor(&t).unwrap());
        let dy = random("dy", &[3, 6, 9, 7]);
        let ours = conv_batch_norm_relu(&x, &w, &scale, &shift, 1e-5).unwrap();
        let y = conv2d(&x, &w, None).unwrap();
        let theirs = batch_norm(&y, &scale, &shift, Statistics::Batch, 1e-5, true).unwrap();
        close(&ours.0, &theirs.0, 0.0);
        close(&ours.1, &theirs.1, 0.0);
        close(&ours.2, &theirs.2, 0.0);
        let grads = |y: Tensor| (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        let (ours, theirs) = (grads(ours.0), grads(theirs.0));
        for var in [&x, &w, &scale, &shift] {
            close(ours.get(var).unwrap(), theirs.get(var).unwrap(), 1e-6);
        }
    }
}
