//! Losses that compare values one by one, as means over all of them.

use super::{same_shape, wide};
use crate::{
    operation::{Apply, Operand, Operation, with_values},
    ops::{fused, like},
};
use candle_core::{Result, Shape, Tensor};
use diffaug_kernels::pointwise::{Absolute, Pointwise, Square, gradient, total};

/// Mean of |`x` - `targets`|, of any one shape.
///
/// The slope where both are equal is 0. In this and the loss below, the result for half precision is
/// f32.
///
/// # Errors
/// When the shapes differ or there are no values.
pub fn l1(x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    mean(Absolute, x, targets, |x, t| {
        let d = (x - t)?;
        // The slope of candle's `abs` at 0 is not 0.
        &d * d.sign()?.detach()
    })
}

/// Mean of (`x` - `targets`)², of any one shape.
///
/// # Errors
/// When the shapes differ or there are no values.
pub fn mse(x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    mean(Square, x, targets, |x, t| (x - t)?.sqr())
}

/// The mean of a loss; `composed` computes it for each value from x and targets.
fn mean<L: Pointwise>(
    loss: L,
    x: &Tensor,
    targets: &Tensor,
    composed: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    same_shape(x, targets)?;
    if fused(x) {
        return [x, targets].apply(Mean(loss));
    }
    composed(&wide(x)?, &wide(targets)?)?.mean_all()
}

struct Mean<L>(L);

impl<L: Pointwise> Operation<2> for Mean<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn forward(&self, [x, targets]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        let total = total(self.0, x.values, targets.values);
        let mean = total / x.values.len() as f64;
        Ok((vec![mean as f32], Shape::from(())))
    }

    fn backward(
        &self,
        [x, targets]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let factor = dy.to_scalar::<f32>()? / x.elem_count() as f32;
        let dx = with_values([x, targets], |[x, targets]| {
            gradient(self.0, x, targets, factor)
        })?;
        let dx = like(dx, x)?;
        // The loss depends on the difference alone.
        let dtargets = match targets.track_op() {
            true => Some(dx.neg()?),
            false => None,
        };
        Ok([Some(dx), dtargets])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, random, same};
    use candle_core::{DType, Device};

    /// A loss of values and targets, in the type of the first.
    type Loss = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor>>;

    fn losses() -> Vec<Loss> {
        vec![Box::new(l1), Box::new(mse)]
    }

    /// The composed form runs in f64, which no fused form takes.
    fn composed(loss: &Loss, x: &Tensor, t: &Tensor) -> Result<Tensor> {
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        loss(&wide(x)?, &wide(t)?)?.to_dtype(DType::F32)
    }

    #[test]
    fn fused_and_composed_agree() {
        let x = (random("x", &[2, 3, 7, 5]) * 3.0).unwrap();
        let t = random("t", &[2, 3, 7, 5]);
        for loss in losses() {
            let inputs = [x.clone(), t.clone()];
            same(
                &inputs,
                |v| loss(&v[0], &v[1]),
                |v| composed(&loss, &v[0], &v[1]),
            );
        }
    }

    #[test]
    fn gradients() {
        let (x, t) = (
            (random("x", &[1, 1, 3, 5]) * 3.0).unwrap(),
            random("t", &[1, 1, 3, 5]),
        );
        // No value near a kink.
        let x = (&x + (x.sub(&t).unwrap().sign().unwrap() * 0.05).unwrap()).unwrap();
        for loss in losses() {
            check_gradients(&[x.clone(), t.clone()], |v| loss(&v[0], &v[1]));
        }
    }

    #[test]
    fn equal_values_have_no_slope() {
        for to in [DType::F32, DType::F64] {
            let x = candle_core::Var::ones(3, to, &Device::Cpu).unwrap();
            let t = Tensor::ones(3, to, &Device::Cpu).unwrap();
            let grads = l1(&x, &t).unwrap().backward().unwrap();
            let grad = grads.get(&x).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(grad.to_vec1::<f32>().unwrap(), [0.0; 3]);
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (x, t) = (random("x", &[100_003]), random("t", &[100_003]));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let loss = pool.build().unwrap().install(|| mse(&x, &t).unwrap());
            loss.to_scalar::<f32>().unwrap()
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn a_misfit_is_named() {
        let (x, t) = (random("x", &[3]), random("t", &[4]));
        let message = |y: Result<Tensor>| y.unwrap_err().to_string();
        assert!(message(l1(&x, &t)).contains("not [3] and [4]"));
        let none = Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap();
        assert!(message(mse(&none, &none)).contains("at least one value"));
    }
}
