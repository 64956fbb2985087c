//! Addition of a small tensor to a large one of half precision. The small one's gradient is a sum over
//! many values; candle forms it in the type of the large one, and f16 and bf16 lose it.

use super::wide;
use crate::{
    given::Given,
    operation::{ApplyComputed, Computed},
};
use candle_core::{DType, Result, Tensor};

/// `x` plus `y`, whose dimensions are those of `x` or 1. The result has the type of `x`, the gradient
/// of `y` that of `y`, and the sum in it is formed in f32 at least.
pub(super) fn add_stretched(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let narrow = y.to_dtype(x.dtype())?;
    if !matches!(x.dtype(), DType::F16 | DType::BF16) || !y.track_op() {
        return x.broadcast_add(&narrow);
    }
    let sum = x.detach().broadcast_add(&narrow.detach())?;
    [x, y].apply_computed(Stretched(Given::new(sum)))
}

struct Stretched(Given);

impl Computed<2> for Stretched {
    fn name(&self) -> &'static str {
        "add stretched"
    }

    fn result(&self) -> &Given {
        &self.0
    }

    fn backward(
        &self,
        [_, y]: [&Tensor; 2],
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let grad = grad.detach();
        let stretched: Vec<usize> = (0..y.rank())
            .filter(|dim| y.dims()[*dim] != grad.dims()[*dim])
            .collect();
        let sum = wide(&grad)?.sum_keepdim(stretched)?.to_dtype(y.dtype())?;
        Ok([Some(grad), Some(sum)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use candle_core::{Device, Var};

    #[test]
    fn a_sum_beyond_f16_is_kept() {
        let x = random("x", &[1, 2, 300, 300]).to_dtype(DType::F16).unwrap();
        let y = Var::zeros((1, 2, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let sum = add_stretched(&x, &y).unwrap();
        assert_eq!(sum.dtype(), DType::F16);
        let loss = sum.to_dtype(DType::F32).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let expected = Tensor::full(90_000f32, (1, 2, 1, 1), &Device::Cpu).unwrap();
        close(grads.get(&y).unwrap(), &expected, 0.0);
    }
}
