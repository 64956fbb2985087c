//! The loss of Diff-UNet, and how it makes one mask of those of all steps of several runs.

use candle_core::{DType, Result, Tensor, bail};
use diffaug_nn::ops;

/// Least probability whose uncertainty is looked at.
const FLOOR: f32 = 1e-3;

/// MONAI's `DiceLoss` with its defaults.
const DICE: ops::SoftDice = ops::SoftDice {
    smooth: 1e-5,
    squared: false,
    per_image: true,
};

/// The loss of `logits` and `clean` masks (0 or 1), both `[n, masks, height, width]`: Dice (the mean over
/// images and masks), binary cross-entropy, and the mean square of what the probabilities are off by.
///
/// # Errors
/// When the shapes differ.
pub fn loss(logits: &Tensor, clean: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    let clean = clean.to_dtype(DType::F32)?;
    let dice = DICE.binary(&logits, &clean)?;
    let entropy = ops::bce_with_logits(&logits, &clean)?;
    let square = ops::mse(&ops::sigmoid(&logits)?, &clean)?;
    (dice + entropy)? + square
}

/// One map of what the network predicted at each step of each run, step by step from noise on: step-uncertainty
/// fusion. All are `[n, masks, height, width]`, and so is the result, f32: a pixel belongs to a mask where its
/// sigmoid is above 0.5, that is, where it is above 0.
///
/// Of the mean of the runs' logits at step i of S, p is the sigmoid, 0.001 at least, and u = -p ln p the
/// uncertainty. Each run's logits, limited to -1 to 1 as the sampler limits them, count
/// exp(sigmoid(i / S) (1 - u)). The reference has S = 10.
///
/// # Errors
/// When there are no runs, they differ in their numbers of steps, or the shapes do.
pub fn fuse(runs: &[Vec<Tensor>]) -> Result<Tensor> {
    let steps = runs.first().map_or(0, Vec::len);
    if steps == 0 || runs.iter().any(|run| run.len() != steps) {
        bail!("a fusion needs runs of one number of steps, at least 1");
    }
    let part = |step: usize| {
        let outputs = runs.iter().map(|run| run[step].to_dtype(DType::F32));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        weighted(&outputs, (step + 1) as f64 / steps as f64)
    };
    (1..steps).try_fold(part(0)?, |total, step| total + part(step)?)
}

/// The sum of at least one tensor.
fn sum(tensors: &[Tensor]) -> Result<Tensor> {
    match tensors {
        [first, others @ ..] => others
            .iter()
            .try_fold(first.clone(), |sum, next| sum + next),
        [] => bail!("a fusion needs at least one run"),
    }
}

/// The sum of the runs' predictions at a step, weighted; `late` is the share of steps that it completes.
fn weighted(outputs: &[Tensor], late: f64) -> Result<Tensor> {
    let mean = (sum(outputs)? / outputs.len() as f64)?;
    let p = ops::sigmoid(&mean)?.maximum(FLOOR)?;
    let uncertainty = (&p * p.log()?)?.neg()?;
    let trust = 1.0 / (1.0 + (-late).exp());
    let weight = (uncertainty.affine(-1.0, 1.0)? * trust)?.exp()?;
    let limited = outputs.iter().map(|output| output.clamp(-1f32, 1f32));
    weight * sum(&limited.collect::<Result<Vec<_>>>()?)?
}
