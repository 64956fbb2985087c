//! The softmax.

use super::{fused, like, wide};
use crate::kernels::{values, with_values};
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

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
    let turned = x.transpose(dim, last)?.contiguous()?;
    turned
        .apply_op1(Softmax)?
        .transpose(dim, last)?
        .contiguous()
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

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let y = crate::kernels::rows::softmax(values(x, layout)?, width.max(1));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dim(D::Minus1)?;
        let dx = with_values(y, |y| {
            with_values(dy, |dy| {
                Ok(crate::kernels::rows::softmax_backward(y, dy, width.max(1)))
            })
        })?;
        Ok(Some(like(dx, x)?))
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
