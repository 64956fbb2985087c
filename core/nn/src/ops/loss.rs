//! Losses, as means: that of one mask here, and in modules of their own those of several classes or
//! channels and those of regression. Of inputs in half precision they are f32.

mod cross_entropy;
mod dice;
mod pointwise;

pub use cross_entropy::cross_entropy;
pub use dice::SoftDice;
pub use pointwise::{l1, mse};

use super::{fused, like, wide};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{DType, Result, Shape, Tensor, bail};
use diffaug_kernels::loss::{Sums, gradient, sums};
use std::sync::OnceLock;

/// Keeps Dice defined where neither prediction nor target has a pixel: it is 1 then.
const EPSILON: f64 = 1e-6;

/// Mean binary cross-entropy of sigmoid(`logits`) and `targets` (0 to 1), of any one shape.
///
/// # Errors
/// When the shapes differ.
pub fn bce_with_logits(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    dice_bce_with_logits(logits, targets, 0.0, 1.0)
}

/// `dice` times 1 - Dice of sigmoid(`logits`) and `targets` (0 to 1) over the whole batch, plus
/// `cross_entropy` times [`bce_with_logits`].
///
/// # Errors
/// When the shapes differ.
pub fn dice_bce_with_logits(
    logits: &Tensor,
    targets: &Tensor,
    dice: f32,
    cross_entropy: f32,
) -> Result<Tensor> {
    if logits.dims() != targets.dims() {
        bail!(
            "a loss needs logits and targets of one shape, not {:?} and {:?}",
            logits.dims(),
            targets.dims()
        );
    }
    if !fused(logits) {
        return composed(logits, targets, f64::from(dice), f64::from(cross_entropy));
    }
    let op = DiceBce {
        weights: (cross_entropy, dice),
        sums: OnceLock::new(),
    };
    [logits, targets].apply(op)
}

fn composed(logits: &Tensor, targets: &Tensor, dice: f64, cross_entropy: f64) -> Result<Tensor> {
    let (logits, targets) = (&wide(logits)?, &wide(targets)?);
    let small = logits.abs()?.neg()?.exp()?;
    let log = (small + 1.0)?.log()?;
    let bce = ((logits.relu()? - (logits * targets)?)? + log)?.mean_all()?;
    let probability = candle_nn::ops::sigmoid(logits)?;
    let overlap = (&probability * targets)?.sum_all()?;
    let total = (probability.sum_all()? + targets.sum_all()?)?;
    let share = ((overlap * 2.0)? + EPSILON)?.div(&(total + EPSILON)?)?;
    share.affine(-dice, dice)? + (bce * cross_entropy)?
}

/// Checks that a mean over both is defined.
fn same_shape(x: &Tensor, targets: &Tensor) -> Result<()> {
    if x.dims() != targets.dims() {
        bail!(
            "a loss needs values and targets of one shape, not {:?} and {:?}",
            x.dims(),
            targets.dims()
        );
    }
    if x.elem_count() == 0 {
        bail!("a loss needs at least one value, not {:?}", x.dims());
    }
    Ok(())
}

/// Images, classes, and the labels of all pixels.
fn labels_of(logits: &Tensor, labels: &Tensor) -> Result<(usize, usize, Vec<u32>)> {
    let (dims, pixels) = (logits.dims(), labels.dims());
    if dims.len() < 2 || pixels.first() != dims.first() || pixels[1..] != dims[2..] {
        bail!(
            "a loss needs `[batch, classes, ..]` logits and `[batch, ..]` labels, not {dims:?} and {pixels:?}"
        );
    }
    if logits.elem_count() == 0 {
        bail!("a loss needs at least one value, not {dims:?}");
    }
    let labels: Vec<u32> = labels.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
    let wrong = labels.iter().position(|label| *label as usize >= dims[1]);
    if let Some(index) = wrong {
        bail!(
            "label {} at index {index} is none of {} classes",
            labels[index],
            dims[1]
        );
    }
    Ok((dims[0], dims[1], labels))
}

struct DiceBce {
    /// Of cross-entropy and of Dice.
    weights: (f32, f32),
    /// What the forward pass found.
    sums: OnceLock<Sums>,
}

impl Operation<2> for DiceBce {
    fn name(&self) -> &'static str {
        "dice_bce_with_logits"
    }

    fn forward(&self, [logits, targets]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        let (logits, targets) = (logits.values, targets.values);
        let sums = self.sums.get_or_init(|| sums(logits, targets));
        let bce = sums.cross_entropy / logits.len() as f64;
        let dice = 1.0 - (2.0 * sums.overlap + EPSILON) / (sums.total + EPSILON);
        let loss = f64::from(self.weights.0) * bce + f64::from(self.weights.1) * dice;
        Ok((vec![loss as f32], Shape::from(())))
    }

    fn backward(
        &self,
        [logits, targets]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let Some(&sums) = self.sums.get() else {
            bail!("dice_bce_with_logits went backward before it went forward");
        };
        let dy = dy.to_scalar::<f32>()?;
        let weights = (self.weights.0 * dy, self.weights.1 * dy);
        let values = with_values([logits, targets], |[logits, targets]| {
            gradient(logits, targets, sums, weights, EPSILON)
        })?;
        Ok([Some(like(values, logits)?), None])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};
    use candle_core::Device;

    fn case() -> (Tensor, Tensor) {
        let logits = (random("logits", &[2, 1, 6, 7]) * 4.0).unwrap();
        let targets = random("targets", &[2, 1, 6, 7]).ge(0.2).unwrap();
        (logits, targets.to_dtype(DType::F32).unwrap())
    }

    #[test]
    fn fused_and_composed_agree() {
        let (logits, targets) = case();
        for (dice, bce) in [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)] {
            let ours = dice_bce_with_logits(&logits, &targets, dice, bce).unwrap();
            let theirs = composed(&logits, &targets, dice.into(), bce.into()).unwrap();
            close(&ours, &theirs, 1e-5);
        }
    }

    #[test]
    fn gradients() {
        let (logits, targets) = case();
        check_gradients(std::slice::from_ref(&logits), |v| {
            dice_bce_with_logits(&v[0], &targets, 1.0, 0.0)
        });
        check_gradients(&[logits], |v| bce_with_logits(&v[0], &targets));
    }

    #[test]
    fn known_values() {
        let zeros = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let value = |t: Result<Tensor>| t.unwrap().to_scalar::<f32>().unwrap();
        assert!((value(bce_with_logits(&zeros, &zeros)) - 2f32.ln()).abs() < 1e-6);
        // Nothing wanted, nothing found: no loss.
        let none = (&zeros - 100.0).unwrap();
        assert!(value(dice_bce_with_logits(&none, &zeros, 1.0, 0.0)).abs() < 1e-6);
        // A logit of any size gives a finite loss.
        let sure = (&zeros + 1e4).unwrap();
        assert_eq!(value(bce_with_logits(&sure, &zeros)), 1e4);
    }
}
