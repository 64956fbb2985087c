//! Maximum over 2×2 windows.
//!
//! Candle's own gradient of it is wrong: a window with one largest value gets a quarter.

use super::{fused, like};
use crate::kernels::{pool, values, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Halves height and width by the maximum over 2×2 windows; an odd last row or column is left
/// out. The gradient goes to the first largest value of a window.
///
/// # Errors
/// When `x` is not `[batch, channels, height, width]`.
pub fn max_pool2x2(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if fused(x) {
        return x.contiguous()?.apply_op1(MaxPool);
    }
    let x = x
        .narrow(2, 0, height / 2 * 2)?
        .narrow(3, 0, width / 2 * 2)?;
    composed(&x)
}

/// The same of candle's operations. Equal largest values share the gradient evenly.
fn composed(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let windows = (batch, channels, height / 2, 2, width / 2, 2);
    let rows = x.reshape(windows)?;
    let pick = |i: usize, j: usize| rows.narrow(3, i, 1)?.narrow(5, j, 1);
    let upper = pick(0, 0)?.maximum(&pick(0, 1)?)?;
    let lower = pick(1, 0)?.maximum(&pick(1, 1)?)?;
    let peaks = upper.maximum(&lower)?;
    peaks.reshape((batch, channels, height / 2, width / 2))
}

struct MaxPool;

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2x2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let out = pool::forward(values(x, layout)?, height, width);
        let shape = Shape::from((batch, channels, height / 2, width / 2));
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let dx = with_values(x, |x| {
            with_values(y, |y| {
                with_values(dy, |dy| Ok(pool::backward(x, y, dy, height, width)))
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
    use candle_core::{Device, Var};

    #[test]
    fn the_whole_gradient_goes_to_the_largest() {
        let x = Tensor::new(&[1f32, 2., 3., 4.], &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.reshape((1, 1, 2, 2)).unwrap()).unwrap();
        for pool in [max_pool2x2, composed] {
            let grads = pool(&x).unwrap().sum_all().unwrap().backward().unwrap();
            let grad = grads.get(&x).unwrap().flatten_all().unwrap();
            assert_eq!(grad.to_vec1::<f32>().unwrap(), [0., 0., 0., 1.]);
        }
    }

    #[test]
    fn equal_values_get_the_gradient_once() {
        let x = Var::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        for pool in [max_pool2x2, composed] {
            let grads = pool(&x).unwrap().sum_all().unwrap().backward().unwrap();
            let grad = grads.get(&x).unwrap().sum_all().unwrap();
            assert_eq!(grad.to_scalar::<f32>().unwrap(), 1.0);
        }
    }

    #[test]
    fn odd_sides_and_gradients() {
        let x = random("x", &[2, 3, 5, 7]);
        let y = max_pool2x2(&x).unwrap();
        close(&y, &x.max_pool2d(2).unwrap(), 0.0);
        check_gradients(&[x], |v| max_pool2x2(&v[0]));
        check_gradients(&[random("x", &[1, 2, 4, 6])], |v| composed(&v[0]));
    }
}
