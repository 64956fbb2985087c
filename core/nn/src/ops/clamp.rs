//! A clamp out of which gradients lead back: that of candle gives none to a value beyond the range, so
//! that a wrong value that is beyond it stays wrong.

use crate::{
    given::Given,
    operation::{ApplyComputed, Computed},
};
use candle_core::{Result, Tensor, bail};

/// `x` between `low` and `high`. A value within the range passes its gradient on. A value above it does
/// so only where the gradient is positive, so that descending lowers the value, and one below it only
/// where the gradient is negative: what leads further out is dropped.
///
/// # Errors
/// When `low` is not below `high`, and those of candle.
pub fn clamp_leading_back(x: &Tensor, low: f32, high: f32) -> Result<Tensor> {
    if low.partial_cmp(&high) != Some(std::cmp::Ordering::Less) {
        bail!("a clamp needs a range, not {low} to {high}");
    }
    let clamped = x.detach().clamp(low, high)?;
    if !x.track_op() {
        return Ok(clamped);
    }
    [x].apply_computed(LeadingBack(Given::new(clamped)))
}

struct LeadingBack(Given);

impl Computed<1> for LeadingBack {
    fn name(&self) -> &'static str {
        "clamp leading back"
    }

    fn result(&self) -> &Given {
        &self.0
    }

    fn backward(
        &self,
        [x]: [&Tensor; 1],
        clamped: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        let grad = grad.detach();
        // 1 above the range, -1 below it, 0 within.
        let side = (x.detach() - clamped.detach())?.sign()?;
        let passes = (side * &grad)?.ge(0.0)?;
        Ok([Some(passes.where_cond(&grad, &grad.zeros_like()?)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random, same};
    use candle_core::{Device, Var};

    /// The results for `x` and the gradients of `x` when those of the results are `grad`.
    fn both_ways(x: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let x = Var::new(x, &Device::Cpu).unwrap();
        let grad = Tensor::new(grad, &Device::Cpu).unwrap();
        let y = clamp_leading_back(&x, 0.0, 1.0).unwrap();
        let grads = (&y * grad).unwrap().sum_all().unwrap().backward().unwrap();
        let found = grads.get(&x).unwrap();
        (y.to_vec1().unwrap(), found.to_vec1().unwrap())
    }

    #[test]
    fn beyond_the_range_only_what_leads_back_is_passed_on() {
        let x = [-3.0, -3.0, 0.0, 0.0, 0.25, 0.25, 1.0, 1.0, 5.0, 5.0];
        let grad = [2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0, -2.0];
        let (y, found) = both_ways(&x, &grad);
        assert_eq!(y, [0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 1.0, 1.0, 1.0, 1.0]);
        let expected = [0.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0, 0.0];
        assert_eq!(found, expected);
    }

    #[test]
    fn products_too_small_for_a_float_do_not_turn_the_side() {
        let (_, found) = both_ways(&[-1e-30, -1e-30], &[1e-30, -1e-30]);
        assert_eq!(found, [0.0, -1e-30]);
    }

    #[test]
    fn within_the_range_it_is_the_clamp_of_candle() {
        let x = [random("x", &[2, 3, 4, 5])];
        let ours = |v: &[Tensor]| clamp_leading_back(&v[0], -1.5, 1.5);
        same(&x, ours, |v| v[0].clamp(-1.5f32, 1.5f32));
        check_gradients(&x, ours);
    }

    #[test]
    fn what_has_no_gradient_is_clamped_all_the_same() {
        let x = (random("x", &[3, 7]) * 2.0).unwrap();
        let found = clamp_leading_back(&x, -0.5, 0.5).unwrap();
        close(&found, &x.clamp(-0.5f32, 0.5f32).unwrap(), 0.0);
        assert!(clamp_leading_back(&x, 0.5, 0.5).is_err());
        assert!(clamp_leading_back(&x, f32::NAN, 0.5).is_err());
    }
}
