//! What the networks are trained with, and what becomes of a drawn mask.

use crate::learned_range::LearnedRange;
use candle_core::{D, DType, Result, Tensor, bail};
use diffaug_nn::{
    ops::{self, SoftDice},
    segmenter::{Noised, Predicted},
};

/// Weight of the calibration's error in [`Rule::Released`].
const CALIBRATION: f64 = 10.0;
/// In [`Rule::Published`] the image's own answer counts at every step that is a multiple of this one.
const INTERVAL: u32 = 5;
/// Weight of cross-entropy beside Dice in [`Rule::Published`].
const CROSS_ENTROPY: f64 = 10.0;
/// Dice below which a drawn mask and the calibration disagree.
const AGREED: f32 = 0.65;

/// What is added to the squared error of the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The variational bound, and 10 times the squared error of the calibration: the reference's code.
    Released,
    /// At the steps that are multiples of 5, Dice of the calibration and 10 times its cross-entropy: the second
    /// paper.
    Published,
}

/// The loss of what a network says of noisy masks of 0 and 1: a mean over the images.
///
/// # Errors
/// When the shapes do not fit each other, or there are no logits or variances where `rule` asks for them.
pub fn loss(rule: Rule, predicted: &Predicted, noised: &Noised<'_>) -> Result<Tensor> {
    let (clean, t) = (&noised.clean, noised.t);
    let error = ops::mse(&wide(&predicted.output)?, &noised.target()?)?;
    let Some(logits) = &predicted.logits else {
        bail!("the loss needs the logits of the calibration");
    };
    match (rule, &predicted.variance) {
        (Rule::Published, _) => match anchor(logits, clean, t)? {
            Some(anchor) => error + anchor,
            None => Ok(error),
        },
        (Rule::Released, Some(variance)) => {
            let calibration = ops::mse(&wide(&ops::sigmoid(logits)?)?, clean)?;
            let schedule = LearnedRange::of_alpha_bars(noised.schedule.alpha_bars())?;
            let (noise, noisy) = (&predicted.output, &noised.noisy);
            let bound = schedule.variational_bound(noise, variance, clean, noisy, t)?;
            (error + bound.mean_all()?)? + (calibration * CALIBRATION)?
        }
        (Rule::Released, None) => bail!("the loss needs variances"),
    }
}

/// As f32, one value behind the other.
fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.contiguous()
}

/// The loss of the image's own answer, a mean over all images, of which those count whose steps are multiples
/// of [`INTERVAL`]; `None` where there are none.
fn anchor(logits: &Tensor, clean: &Tensor, t: &[u32]) -> Result<Option<Tensor>> {
    let counted: Vec<u32> = (0u32..)
        .zip(t)
        .filter(|(_, t)| *t % INTERVAL == 0)
        .map(|(image, _)| image)
        .collect();
    if counted.is_empty() {
        return Ok(None);
    }
    let share = counted.len() as f64 / t.len() as f64;
    let counted = Tensor::new(counted, clean.device())?;
    let logits = logits.to_dtype(DType::F32)?.index_select(&counted, 0)?;
    let targets = clean.index_select(&counted, 0)?;
    let dice = SoftDice {
        per_image: true,
        ..SoftDice::default()
    };
    let dice = dice.binary(&logits, &targets)?;
    let entropy = ops::bce_with_logits(&logits, &targets)?;
    Ok(Some(((dice + (entropy * CROSS_ENTROPY)?)? * share)?))
}

/// The map that becomes of a drawn mask and the calibration, `[n, masks, height, width]` each, 0 to 1, as the
/// first MedSegDiff has it: their mean, or where the two disagree, the calibration and a quarter of what was
/// drawn. Each mask is looked at by itself.
///
/// They disagree where Dice of the pixels that are drawn above 0, and the calibration, is below 0.65.
///
/// # Errors
/// When the shapes differ.
pub fn fuse(sample: &Tensor, calibration: &Tensor) -> Result<Tensor> {
    let (sample, calibration) = (
        sample.to_dtype(DType::F32)?,
        calibration.to_dtype(DType::F32)?,
    );
    let drawn = sample.gt(0f32)?.to_dtype(DType::F32)?;
    let sum = |x: Tensor| x.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2);
    let overlap = (sum((&drawn * &calibration)?)? * 2.0)?;
    let whole = sum((&drawn + &calibration)?)?;
    // Where both are empty there is no Dice, which is not below anything.
    let apart = overlap.lt(&(whole * f64::from(AGREED))?)?;
    let apart = apart.broadcast_as(sample.shape())?;
    let trusting = ((&sample + &calibration)? * 0.5)?;
    let doubting = (calibration + (sample * 0.25)?)?;
    apart.where_cond(&doubting, &trusting)?.clamp(0f32, 1f32)
}

/// The square of the mean of several masks: what the reference's function of this name makes of them, which weighs
/// each by the mean and takes the mean again. A pixel is above 0.5 where the mean is above 0.71.
pub fn staple(masks: &[Tensor]) -> Result<Tensor> {
    Tensor::stack(masks, 0)?.mean(0)?.sqr()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing;
    use super::*;
    use diffaug_nn::testing::{close, random};

    #[test]
    fn maps_are_fused_as_the_reference_does() {
        let fixture = testing::fixture("medsegdiff_fused");
        let fused = fuse(&fixture["sample"], &fixture["calibration"]).unwrap();
        close(&fused, &fixture["fused"], 1e-6);
    }

    #[test]
    fn the_calibration_counts_at_every_fifth_step_only() {
        let [logits, noise] = ["logits", "noise"].map(|name| random(name, &[2, 1, 4, 4]));
        let clean = random("clean", &[2, 1, 4, 4]).gt(0f32).unwrap();
        let clean = clean.to_dtype(DType::F32).unwrap();
        let output = super::super::predicted(&noise, 1, &logits).unwrap();
        assert!(output.variance.is_none());
        let of = |t: [u32; 2]| {
            let judged = testing::judged(Rule::Published, &output, &clean, &noise, &noise, &t);
            judged.unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!(of([1, 999]), 0.0);
        let (first, second, both) = (of([0, 1]), of([1, 5]), of([10, 995]));
        assert!(first > 0.0 && second > 0.0);
        assert!((first + second - both).abs() < 1e-4 * both);
    }
}
