//! The softmax.

use super::{fused, like, wide};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{D, Result, Shape, Tensor};
use diffaug_kernels::rows;

/// The shares of e^x along dimension `dim`: they sum to 1.
///
/// # Errors
/// When there is no such dimension.
pub fn softmax(x: &Tensor, dim: impl candle_core::shape::Dim) -> Result<Tensor> {
    let dim = dim.to_index(x.shape(), "softmax")?;
    if !fused(x) {
        return composed(x, dim);
    }
    let last = x.rank() - 1;
    let y = [&x.transpose(dim, last)?].apply(Softmax)?;
    y.transpose(dim, last)?.contiguous()
}

/// The same of candle's operations, f32 for half precision.
fn composed(x: &Tensor, dim: usize) -> Result<Tensor> {
    // Candle's own kernel has no gradient.
    if !x.track_op() && dim + 1 == x.rank() && !x.device().is_cpu() {
        return candle_nn::ops::softmax_last_dim(&x.contiguous()?);
    }
    candle_nn::ops::softmax(&wide(x)?, dim)?.to_dtype(x.dtype())
}

struct Softmax;

impl Operation<1> for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let width = x.shape.dims().last().copied().unwrap_or(1);
        Ok((rows::softmax(x.values, width.max(1)), x.shape.clone()))
    }

    fn backward(&self, [x]: [&Tensor; 1], y: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let width = x.dim(D::Minus1)?.max(1);
        let dx = with_values([y, dy], |[y, dy]| rows::softmax_backward(y, dy, width))?;
        Ok([Some(like(dx, x)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};

    #[test]
    fn along_any_dimension() {
        let x = (random("x", &[3, 5, 4]) * 5.0).unwrap();
        for dim in 0..3 {
            let ours = softmax(&x, dim).unwrap();
            close(&ours, &candle_nn::ops::softmax(&x, dim).unwrap(), 1e-6);
            check_gradients(std::slice::from_ref(&x), |v| softmax(&v[0], dim));
        }
    }
}
