//! Losses, as means: those of segmentation in their plainest form here, and in modules of their own
//! those with options and those of regression. Of inputs in half precision they are f32.

mod cross_entropy;
mod dice;
mod pointwise;

pub use cross_entropy::CrossEntropy;
pub use dice::SoftDice;
pub use pointwise::{focal_with_logits, huber, l1, mse, smooth_l1, weighted_bce_with_logits};

use super::{fused, wide};
use crate::kernels::{
    cross_entropy::IGNORED,
    loss::{Sums, gradient, sums},
    values, with_values,
};
use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
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

/// 1 - Dice of sigmoid(`logits`) and `targets` (0 to 1) over the whole batch.
///
/// # Errors
/// When the shapes differ.
pub fn dice_with_logits(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    dice_bce_with_logits(logits, targets, 1.0, 0.0)
}

/// `dice` times [`dice_with_logits`] plus `cross_entropy` times [`bce_with_logits`].
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
    logits.contiguous()?.apply_op2(&targets.contiguous()?, op)
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

/// Mean cross-entropy of `logits` `[batch, classes, height, width]` and class indices `targets`
/// `[batch, height, width]` (u32).
///
/// # Errors
/// When the shapes do not fit each other.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let log = candle_nn::ops::log_softmax(&wide(logits)?, 1)?;
    log.gather(&targets.unsqueeze(1)?.contiguous()?, 1)?
        .mean_all()?
        .neg()
}

/// 1 - the mean over classes of Dice of softmax(`logits`) and the class indices `targets`, over
/// the whole batch; shapes as for [`cross_entropy`].
///
/// # Errors
/// When the shapes do not fit each other.
pub fn soft_dice(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let classes = logits.dim(1)?;
    let probability = candle_nn::ops::softmax(&wide(logits)?, 1)?;
    let per_class = |t: &Tensor| {
        t.transpose(0, 1)?
            .contiguous()?
            .flatten_from(1)?
            .sum(D::Minus1)
    };
    let known = (0..classes)
        .map(|class| targets.eq(class as u32)?.to_dtype(probability.dtype()))
        .collect::<Result<Vec<_>>>()?;
    let known = Tensor::stack(&known, 1)?;
    let overlap = per_class(&(&probability * &known)?)?;
    let total = (per_class(&probability)? + per_class(&known)?)?;
    let share = ((overlap * 2.0)? + EPSILON)?.div(&(total + EPSILON)?)?;
    share.mean_all()?.affine(-1.0, 1.0)
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

/// Checks the power of a focal loss.
fn check_gamma(gamma: f32) -> Result<()> {
    if !(gamma >= 0.0 && gamma.is_finite()) {
        bail!("the gamma of a focal loss must be at least 0, not {gamma}");
    }
    Ok(())
}

/// `x`, from 0 to 1, to a power, with a slope that is finite at 0.
fn power(x: &Tensor, exponent: f32) -> Result<Tensor> {
    if exponent == 0.0 {
        return x.ones_like();
    }
    x.maximum(1e-12)?.powf(f64::from(exponent))
}

/// Images, classes, and the labels of all pixels, with `ignore` as [`IGNORED`].
fn labels_of(
    logits: &Tensor,
    labels: &Tensor,
    ignore: Option<u32>,
) -> Result<(usize, usize, Vec<u32>)> {
    let (dims, pixels) = (logits.dims(), labels.dims());
    if dims.len() < 2 || pixels.first() != dims.first() || pixels[1..] != dims[2..] {
        bail!(
            "a loss needs `[batch, classes, ..]` logits and `[batch, ..]` labels, not {dims:?} and {pixels:?}"
        );
    }
    if logits.elem_count() == 0 {
        bail!("a loss needs at least one value, not {dims:?}");
    }
    let mut labels = labels.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
    for (index, label) in labels.iter_mut().enumerate() {
        if Some(*label) == ignore {
            *label = IGNORED;
        } else if *label as usize >= dims[1] {
            bail!(
                "label {label} at index {index} is none of {} classes",
                dims[1]
            );
        }
    }
    Ok((dims[0], dims[1], labels))
}

struct DiceBce {
    /// Of cross-entropy and of Dice.
    weights: (f32, f32),
    /// What the forward pass found.
    sums: OnceLock<Sums>,
}

impl CustomOp2 for DiceBce {
    fn name(&self) -> &'static str {
        "dice_bce_with_logits"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let logits = values(logits, logits_layout)?;
        let targets = values(targets, targets_layout)?;
        let sums = self.sums.get_or_init(|| sums(logits, targets));
        let bce = sums.cross_entropy / logits.len() as f64;
        let dice = 1.0 - (2.0 * sums.overlap + EPSILON) / (sums.total + EPSILON);
        let loss = f64::from(self.weights.0) * bce + f64::from(self.weights.1) * dice;
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(&sums) = self.sums.get() else {
            bail!("dice_bce_with_logits went backward before it went forward");
        };
        let dy = dy.to_scalar::<f32>()?;
        let weights = (self.weights.0 * dy, self.weights.1 * dy);
        let values = with_values(logits, |logits| {
            with_values(targets, |targets| {
                Ok(gradient(logits, targets, sums, weights, EPSILON))
            })
        })?;
        Ok((Some(super::like(values, logits)?), None))
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
            dice_with_logits(&v[0], &targets)
        });
        check_gradients(&[logits], |v| bce_with_logits(&v[0], &targets));
        let logits = random("logits", &[2, 3, 4, 5]);
        let targets = Tensor::arange(0u32, 40, &Device::Cpu).unwrap();
        let targets = (targets.to_dtype(DType::F32).unwrap() * 0.07).unwrap();
        let targets = targets
            .to_dtype(DType::U32)
            .unwrap()
            .reshape((2, 4, 5))
            .unwrap();
        check_gradients(std::slice::from_ref(&logits), |v| {
            cross_entropy(&v[0], &targets)
        });
        check_gradients(&[logits], |v| soft_dice(&v[0], &targets));
    }

    #[test]
    fn known_values() {
        let zeros = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let value = |t: Result<Tensor>| t.unwrap().to_scalar::<f32>().unwrap();
        assert!((value(bce_with_logits(&zeros, &zeros)) - 2f32.ln()).abs() < 1e-6);
        // Nothing wanted, nothing found: no loss.
        let none = (&zeros - 100.0).unwrap();
        assert!(value(dice_with_logits(&none, &zeros)).abs() < 1e-6);
        // A logit of any size gives a finite loss.
        let sure = (&zeros + 1e4).unwrap();
        assert_eq!(value(bce_with_logits(&sure, &zeros)), 1e4);
    }
}
