//! Losses that compare values one by one, as means over all of them.

use super::{same_shape, wide};
use crate::{
    kernels::{
        pointwise::{Absolute, Bent, CrossEntropy, Focal, Pointwise, Square, gradient, total},
        values, with_values,
    },
    ops::{fused, like},
};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// Mean of |`x` - `targets`|, of any one shape.
///
/// The slope where both are equal is 0. In this and the losses below, the result for half precision
/// is f32.
///
/// # Errors
/// When the shapes differ or there are no values.
pub fn l1(x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    mean(Absolute, x, targets, None, |x, t| {
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
    mean(Square, x, targets, None, |x, t| (x - t)?.sqr())
}

/// Mean of d² / 2 where d = |`x` - `targets`| is at most `delta`, and of `delta` (d - `delta` / 2)
/// elsewhere (Huber, Robust estimation of a location parameter, 1964).
///
/// # Errors
/// When the shapes differ, there are no values, or `delta` is not positive.
pub fn huber(x: &Tensor, targets: &Tensor, delta: f32) -> Result<Tensor> {
    bent(x, targets, delta, 1.0)
}

/// [`huber`] divided by its bend `beta`, so that the slope far away is 1 (Girshick, Fast R-CNN,
/// 2015).
///
/// # Errors
/// When the shapes differ, there are no values, or `beta` is not positive.
pub fn smooth_l1(x: &Tensor, targets: &Tensor, beta: f32) -> Result<Tensor> {
    bent(x, targets, beta, 1.0 / beta)
}

fn bent(x: &Tensor, targets: &Tensor, knee: f32, scale: f32) -> Result<Tensor> {
    if !(knee > 0.0 && knee.is_finite()) {
        bail!("a bend of a loss must be positive, not {knee}");
    }
    mean(Bent { knee, scale }, x, targets, None, |x, t| {
        let (knee, scale) = (f64::from(knee), f64::from(scale));
        let d = (x - t)?;
        // Clamped to the bend, and what lies beyond: c²/2 + knee |d - c|.
        // Not by `clamp`, whose slope at the bend itself is one half.
        let bend = (d.sign()?.detach() * knee)?;
        let near = d.abs()?.le(knee)?.where_cond(&d, &bend)?;
        let beyond = (&d - &near)?;
        let beyond = (&beyond * beyond.sign()?.detach())?;
        ((near.sqr()? * 0.5)? + (beyond * knee)?)? * scale
    })
}

/// Mean of -`positive_weight` t ln s(x) - (1 - t) ln(1 - s(x)) for the logistic function s, `logits`
/// x and `targets` t (0 to 1) of any one shape; each term is multiplied by its weight, if there are
/// `weights`, whose shape may be stretched to that of the logits. The divisor is the number of
/// values, whatever they weigh.
///
/// No gradient goes to the targets or weights.
///
/// # Errors
/// When the shapes do not fit each other, there are no values, or `positive_weight` is negative.
pub fn weighted_bce_with_logits(
    logits: &Tensor,
    targets: &Tensor,
    positive_weight: f32,
    weights: Option<&Tensor>,
) -> Result<Tensor> {
    if !(positive_weight >= 0.0 && positive_weight.is_finite()) {
        bail!("the weight of the positive class must be at least 0, not {positive_weight}");
    }
    let loss = CrossEntropy {
        positive: positive_weight,
    };
    mean(loss, logits, targets, weights, |x, t| {
        let positive = ((t * f64::from(positive_weight))? * softplus(&x.neg()?)?)?;
        positive + (t.affine(-1.0, 1.0)? * softplus(x)?)?
    })
}

/// Mean of a (1 - q)^`gamma` times binary cross-entropy of `logits` and `targets` (0 or 1) of any
/// one shape, where q is the probability of what is true, and a is `alpha` for positive and 1 -
/// `alpha` for negative targets, or 1 without it (Lin et al., Focal loss for dense object
/// detection, 2017: `alpha` 0.25, `gamma` 2).
///
/// For more than two classes there is [`super::CrossEntropy`].
///
/// # Errors
/// When the shapes differ, there are no values, `alpha` is not from 0 to 1, or `gamma` is negative.
pub fn focal_with_logits(
    logits: &Tensor,
    targets: &Tensor,
    alpha: Option<f32>,
    gamma: f32,
) -> Result<Tensor> {
    super::check_gamma(gamma)?;
    if let Some(alpha) = alpha
        && !(0.0..=1.0).contains(&alpha)
    {
        bail!("the alpha of a focal loss must be from 0 to 1, not {alpha}");
    }
    let weights = alpha.map_or((1.0, 1.0), |alpha| (alpha, 1.0 - alpha));
    mean(Focal { weights, gamma }, logits, targets, None, |x, t| {
        let other = t.affine(-1.0, 1.0)?;
        let negative = x.neg()?;
        let entropy = ((t * softplus(&negative)?)? + (&other * softplus(x)?)?)?;
        let sigmoid = candle_nn::ops::sigmoid;
        let missed = ((t * sigmoid(&negative)?)? + (&other * sigmoid(x)?)?)?;
        let (positive, negative) = (f64::from(weights.0), f64::from(weights.1));
        let weight = ((t * positive)? + (other * negative)?)?;
        (super::power(&missed, gamma)? * entropy)? * weight
    })
}

/// ln(1 + e^x) without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// The mean of a loss; `composed` computes it for each value from x and targets.
fn mean<L: Pointwise>(
    loss: L,
    x: &Tensor,
    targets: &Tensor,
    weights: Option<&Tensor>,
    composed: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    same_shape(x, targets)?;
    let weights = match weights {
        Some(weights) => {
            let weights = weights.detach().to_dtype(x.dtype())?;
            Some(weights.broadcast_as(x.shape())?.contiguous()?)
        }
        None => None,
    };
    if fused(x) {
        let op = Mean { loss, weights };
        return x.contiguous()?.apply_op2(&targets.contiguous()?, op);
    }
    composed_mean::<L>(x, targets, weights.as_ref(), composed)
}

fn composed_mean<L: Pointwise>(
    x: &Tensor,
    targets: &Tensor,
    weights: Option<&Tensor>,
    composed: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let targets = if L::OF_DIFFERENCE {
        wide(targets)?
    } else {
        wide(&targets.detach())?
    };
    let terms = composed(&wide(x)?, &targets)?;
    match weights {
        Some(weights) => (terms * wide(weights)?)?.mean_all(),
        None => terms.mean_all(),
    }
}

struct Mean<L> {
    loss: L,
    weights: Option<Tensor>,
}

impl<L> Mean<L> {
    fn with_weights<R>(&self, work: impl FnOnce(Option<&[f32]>) -> Result<R>) -> Result<R> {
        match &self.weights {
            Some(weights) => with_values(weights, |weights| work(Some(weights))),
            None => work(None),
        }
    }
}

impl<L: Pointwise> CustomOp2 for Mean<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, targets) = (values(x, x_layout)?, values(targets, targets_layout)?);
        let total = self.with_weights(|weights| Ok(total(self.loss, x, targets, weights)))?;
        let mean = (total / x.len() as f64) as f32;
        Ok((CpuStorage::F32(vec![mean]), Shape::from(())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let factor = dy.to_scalar::<f32>()? / x.elem_count() as f32;
        let dx = with_values(x, |x| {
            with_values(targets, |targets| {
                self.with_weights(|weights| Ok(gradient(self.loss, x, targets, weights, factor)))
            })
        })?;
        let dx = like(dx, x)?;
        let dtargets = if L::OF_DIFFERENCE && targets.track_op() {
            Some(dx.neg()?)
        } else {
            None
        };
        Ok((Some(dx), dtargets))
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

    fn regressions() -> Vec<Loss> {
        vec![
            Box::new(l1),
            Box::new(mse),
            Box::new(|x, t| huber(x, t, 0.7)),
            Box::new(|x, t| smooth_l1(x, t, 0.4)),
            Box::new(|x, t| smooth_l1(x, t, 1.5)),
        ]
    }

    fn classifications() -> Vec<Loss> {
        let weights = || (random("weights", &[2, 1, 1, 5]) + 1.5).unwrap();
        vec![
            Box::new(|x, t| weighted_bce_with_logits(x, t, 1.0, None)),
            Box::new(move |x, t| weighted_bce_with_logits(x, t, 3.0, Some(&weights()))),
            Box::new(|x, t| focal_with_logits(x, t, None, 0.0)),
            Box::new(|x, t| focal_with_logits(x, t, Some(0.25), 2.0)),
            Box::new(|x, t| focal_with_logits(x, t, None, 0.5)),
        ]
    }

    fn hard() -> Tensor {
        let targets = random("targets", &[2, 3, 7, 5]).ge(0.1).unwrap();
        targets.to_dtype(DType::F32).unwrap()
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
        for loss in regressions() {
            let inputs = [x.clone(), t.clone()];
            same(
                &inputs,
                |v| loss(&v[0], &v[1]),
                |v| composed(&loss, &v[0], &v[1]),
            );
        }
        for loss in classifications() {
            let inputs = [x.clone()];
            same(
                &inputs,
                |v| loss(&v[0], &hard()),
                |v| composed(&loss, &v[0], &hard()),
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
        for loss in regressions() {
            check_gradients(&[x.clone(), t.clone()], |v| loss(&v[0], &v[1]));
        }
        let x = (random("x", &[2, 3, 7, 5]) * 3.0).unwrap();
        for loss in classifications() {
            check_gradients(std::slice::from_ref(&x), |v| loss(&v[0], &hard())? * 50.0);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let values = [-1e4f32, 1e4, -1e4, 1e4, 0.0];
        let x = Tensor::new(&values, &Device::Cpu).unwrap();
        let t = Tensor::new(&[0f32, 1., 1., 0., 0.], &Device::Cpu).unwrap();
        for to in [DType::F32, DType::F64] {
            let x = candle_core::Var::from_tensor(&x.to_dtype(to).unwrap()).unwrap();
            let t = t.to_dtype(to).unwrap();
            for loss in [
                weighted_bce_with_logits(&x, &t, 2.0, None),
                focal_with_logits(&x, &t, Some(0.3), 0.5),
                focal_with_logits(&x, &t, None, 2.0),
            ] {
                let loss = loss.unwrap();
                let grads = loss.backward().unwrap();
                let grad = grads.get(&x).unwrap().to_dtype(DType::F32).unwrap();
                let grad = grad.to_vec1::<f32>().unwrap();
                assert!(grad.iter().all(|v| v.is_finite()), "{grad:?}");
                let loss = loss.to_dtype(DType::F32).unwrap();
                assert!(loss.to_scalar::<f32>().unwrap().is_finite());
            }
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
    fn the_slope_at_the_bend_is_that_of_the_line() {
        for to in [DType::F32, DType::F64] {
            let x = Tensor::new(&[0.5f32, -0.5], &Device::Cpu).unwrap();
            let x = candle_core::Var::from_tensor(&x.to_dtype(to).unwrap()).unwrap();
            let loss = huber(&x, &x.zeros_like().unwrap(), 0.5).unwrap();
            let grads = loss.backward().unwrap();
            let grad = grads.get(&x).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(grad.to_vec1::<f32>().unwrap(), [0.25, -0.25]);
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
        assert!(message(huber(&x, &x, 0.0)).contains("positive, not 0"));
        let error = message(focal_with_logits(&x, &x, Some(2.0), 1.0));
        assert!(error.contains("from 0 to 1, not 2"), "{error}");
        let none = Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap();
        assert!(message(mse(&none, &none)).contains("at least one value"));
    }
}
