//! MedSegDiff: networks that find a mask by taking the noise out of it, guided by the image.
//!
//! [`v1`] is the first (Wu et al., MedSegDiff, 2022), [`v2`] the second (Wu et al., MedSegDiff-V2, 2024) and
//! what was released under its name. All have two networks side by side: a [`Denoiser`] that sees image and
//! noisy mask, and a U-Net of the image alone ([`Highway`]), whose own answer is the calibration. Names of
//! tensors are those of the published checkpoints.
//!
//! Images are 0 to 1, masks 0 and 1; the loss and what becomes of drawn masks stand in [`loss`], [`fuse`] and
//! [`staple`].

mod denoiser;
mod highway;
mod loss;
mod published;
mod sizes;
pub mod v1;
pub mod v2;

#[cfg(test)]
mod testing;

pub use denoiser::{Denoiser, Descent};
pub use highway::{Findings, Highway};
pub use loss::{Rule, fuse, loss, staple};
pub use sizes::{DenoiserSizes, HighwaySizes};

use candle_core::{Result, Tensor, bail};
use diffaug_nn::segmenter::{Budget, Optimizer, Predicted, Schedule};

/// What a network says of noisy masks: of a denoiser's `answer` the noise, then variances if there are as many
/// channels again; and `logits` of the masks by the image alone, whose sigmoid is the calibration.
fn predicted(answer: &Tensor, masks: usize, logits: &Tensor) -> Result<Predicted> {
    let part = |first: usize| answer.narrow(1, first, masks)?.contiguous();
    let variance = (answer.dim(1)? == 2 * masks).then(|| part(masks));
    Ok(Predicted {
        output: part(0)?,
        variance: variance.transpose()?,
        logits: Some(logits.clone()),
    })
}

/// The training of the reference on images of 256x256: AdamW at a steady 1e-4 without decay, 8 images and
/// 100,000 steps, a running mean of the weights.
fn reference() -> Budget {
    Budget {
        steps: Some(100_000),
        batch: 8,
        lr: 1e-4,
        warmup: 0,
        schedule: Schedule::Constant,
        optimizer: Optimizer::AdamW,
        weight_decay: 0.0,
        clip: 0.0,
        ema: 0.9999,
        patience: 0,
        evaluate_epochs: u64::MAX,
        evaluate_every: 5_000,
        checkpoint_every: 1_000,
        ..Budget::default()
    }
}

/// Checks what a network is given: images `[n, 3, height, width]`, masks of their sides and number, a
/// timestep for each, and sides that can be halved as often as it has levels.
fn fits(images: &Tensor, noisy: &Tensor, t: &Tensor, masks: usize, multiple: usize) -> Result<()> {
    let (count, _, height, width) = images.dims4()?;
    if noisy.dims() != [count, masks, height, width] {
        bail!(
            "images of shape {:?} need masks of shape [{count}, {masks}, {height}, {width}], not {:?}",
            images.dims(),
            noisy.dims()
        );
    }
    if t.dims() != [count] {
        bail!("{count} images need as many timesteps, not {:?}", t.dims());
    }
    sides(images, multiple)
}

/// Checks that images have three channels and sides that are multiples of `multiple`.
fn sides(images: &Tensor, multiple: usize) -> Result<()> {
    let (_, channels, height, width) = images.dims4()?;
    if channels != 3 {
        bail!("images have 3 channels, not {channels}");
    }
    if height == 0 || width == 0 || height % multiple != 0 || width % multiple != 0 {
        bail!("sides have to be multiples of {multiple}, not {height}×{width}");
    }
    Ok(())
}
