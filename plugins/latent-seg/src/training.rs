//! The training of the segmenter (Eq. 10 to 12), and of a small autoencoder before it where there is
//! none.

use crate::{
    network::{Network, Seen},
    options::Options,
};
use candle_core::{DType, Device, Tensor};
use diffaug::{
    BoxDataset, Dataset, Error, MaskRef, Reporter, Result, Sample, prelude::ImageRef, rng,
    segmenting,
};
use diffaug_models::{Vae, compressor::Pictures};
use diffaug_nn::{
    batch::{self, Frame},
    diffusion::scheduler::Prediction,
    fit::Learner,
    noise,
    ops::Dropping,
    params::Params,
    precision::Precision,
};
use rand::RngExt;

/// Samples over which latents of masks are measured.
const MEASURED: u64 = 16;

/// A segmenter in training.
pub struct Trainee<'a> {
    /// The networks.
    pub network: Network,
    /// How to train.
    pub options: &'a Options,
    /// All randomness.
    pub seed: u64,
}

/// A batch, ready for the networks.
pub struct Batch {
    seen: Seen,
    /// Latents of the masks, `[n, classes * latent, h, w]`.
    pub z0: Tensor,
    /// Noise of their shape.
    pub noise: Tensor,
    /// Timesteps.
    pub t: Vec<u32>,
    /// The masks, 0 or 1, `[n, classes, height, width]`; padding included.
    truth: Tensor,
}

/// Where each of `labels` is in a mask, as 1, `[labels, height, width]`, row by row.
fn planes(mask: MaskRef<'_>, frame: Frame, labels: &[u8]) -> Vec<f32> {
    let all = batch::labels(mask, frame);
    let plane = |label: u8| {
        all.iter()
            .map(move |found| f32::from(u8::from(*found == label)))
    };
    let planes: Vec<Vec<f32>> = labels.iter().map(|l| plane(*l).collect()).collect();
    planes.concat()
}

/// Masks, 0 or 1, `[n, classes, height, width]`, as pictures that an autoencoder takes: `[n *
/// classes, 3, height, width]`, -1 or 1.
fn pictures(truth: &Tensor) -> candle_core::Result<Tensor> {
    let (count, classes, height, width) = truth.dims4()?;
    let grey = truth.reshape((count * classes, 1, height, width))?;
    grey.affine(2.0, -1.0)?.repeat((1, 3, 1, 1))
}

impl Trainee<'_> {
    fn truth(&self, samples: &[Sample]) -> Result<Tensor> {
        let description = &self.network.description;
        truth(
            samples,
            description.frame(),
            &description.labels(),
            self.network.device(),
        )
    }

    /// The timestep of draw `index`.
    fn timestep(&self, index: u64) -> u32 {
        let last = crate::description::TIMESTEPS;
        let mut rng = rng::stream(self.seed, "timestep", index);
        match rng.random::<f64>() < self.options.objective().last {
            true => last - 1,
            false => rng.random_range(0..last),
        }
    }

    /// The error of noise and clean latent (Eq. 12, without Dice), `[n]`.
    ///
    /// For predicted noise, |z0 - ẑ0| is √(1/ᾱ - 1) |ε - ε̂|: the second term only weighs timesteps.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn latent_losses(&self, batch: &Batch, output: &Tensor, noisy: &Tensor) -> Result<Tensor> {
        let (schedule, t) = (&self.network.schedule, &batch.t);
        let prediction = self.network.description.prediction;
        let per_sample = |x: Tensor| x.abs()?.flatten_from(1)?.mean(1);
        let found = schedule.noise(prediction, output, noisy, t)?;
        let noise = per_sample((&found - &batch.noise)?)?;
        let lambda = self.options.objective().lambda_latent;
        if self.network.description.prediction == Prediction::Epsilon {
            let weights: Vec<f32> = schedule
                .snr(t)?
                .into_iter()
                .map(|snr| (1.0 + lambda / snr.sqrt()) as f32)
                .collect();
            let weights = Tensor::from_vec(weights, t.len(), noise.device())?;
            return Ok((noise * weights)?);
        }
        let clean = schedule.clean(prediction, output, noisy, t)?;
        Ok((noise + (per_sample((clean - &batch.z0)?)? * lambda)?)?)
    }

    /// 1 - Dice of the decoded clean latent and the masks, a mean over images and classes.
    fn dice_loss(&self, batch: &Batch, output: &Tensor, noisy: &Tensor) -> Result<Tensor> {
        let prediction = self.network.description.prediction;
        let schedule = &self.network.schedule;
        let clean = schedule.clean(prediction, output, noisy, &batch.t)?;
        let recompute = self.options.train.recompute;
        let found = self.network.probabilities(&clean, recompute)?;
        dice_error(&found, &batch.truth)
    }
}

/// 1 - Dice of probabilities and the masks `truth`, both `[n, classes, height, width]`: a mean over
/// images and classes.
///
/// # Errors
/// When the shapes differ.
pub(crate) fn dice_error(probabilities: &Tensor, truth: &Tensor) -> Result<Tensor> {
    let (found, truth) = (probabilities.flatten_from(2)?, truth.flatten_from(2)?);
    let both = (&found * &truth)?.sum(2)?;
    let sizes = (found.sum(2)? + truth.sum(2)?)?;
    let dice = ((both * 2.0)? + 1.0)?.div(&(sizes + 1.0)?)?;
    Ok((1.0 - dice.mean_all()?)?)
}

/// The masks of samples, 0 or 1, `[n, labels, height, width]`.
fn truth(samples: &[Sample], frame: Frame, labels: &[u8], device: &Device) -> Result<Tensor> {
    let values: Vec<Vec<f32>> = samples
        .iter()
        .map(|sample| planes(sample.mask.view(), frame, labels))
        .collect();
    let (width, height) = (frame.whole.0 as usize, frame.whole.1 as usize);
    let shape = (samples.len(), labels.len(), height, width);
    Ok(Tensor::from_vec(values.concat(), shape, device)?)
}

/// Latents of masks, drawn, `[n, classes * latent, h, w]`, not yet scaled.
fn mask_latents(vae: &Vae, truth: &Tensor, seed: u64, index: u64) -> Result<Tensor> {
    let moments = vae.moments(&pictures(truth)?)?;
    let latents = vae.latent(&moments, |shape| {
        let values = noise::normal(seed, "posterior", index, shape.iter().product());
        Tensor::from_vec(values, shape, truth.device())
    })?;
    let (count, classes, _, _) = truth.dims4()?;
    let (_, channels, height, width) = latents.dims4()?;
    Ok(latents
        .reshape((count, classes * channels, height, width))?
        .detach())
}

/// What latents of the training set's masks are multiplied by, so that their deviation is 1.
///
/// # Errors
/// When a sample cannot be used.
pub fn mask_scale(
    vae: &Vae,
    train: &BoxDataset,
    frame: Frame,
    labels: &[u8],
    device: &Device,
) -> Result<f64> {
    let count = MEASURED.min(train.items()?.len() as u64);
    let (mut sum, mut squares, mut values) = (0.0, 0.0, 0usize);
    for index in 0..count {
        let sample = train.sample(index)?;
        let truth = truth(std::slice::from_ref(&sample), frame, labels, device)?;
        // Drawn as in training; one seed for all runs, for this is a property of the data.
        let latents = mask_latents(vae, &truth, 0, index)?;
        for value in latents.flatten_all()?.to_vec1::<f32>()? {
            sum += f64::from(value);
            squares += f64::from(value).powi(2);
            values += 1;
        }
    }
    if !f64::is_finite(squares) {
        return Err(Error::model(
            "the autoencoder makes latents of the masks that are NaN or infinite: its weights are broken",
        )
        .at("vae"));
    }
    let mean = sum / values.max(1) as f64;
    let variance = squares / values.max(1) as f64 - mean.powi(2);
    Ok(1.0 / variance.max(1e-12).sqrt())
}

impl Learner for Trainee<'_> {
    type Batch = Batch;

    fn params(&self) -> &Params {
        &self.network.params
    }

    fn prepare(&self, samples: Vec<Sample>, batch: u64) -> Result<Batch> {
        let description = &self.network.description;
        let content = description.frame().content;
        segmenting::check_sizes(&samples, self.options.size, content)?;
        let images: Vec<ImageRef<'_>> = samples.iter().map(|s| s.image.view()).collect();
        let seen = self.network.see(&images)?;
        let truth = self.truth(&samples)?;
        let z0 = mask_latents(&self.network.vae, &truth, self.seed, batch)?;
        let z0 = (z0 * description.scale)?;
        let values = noise::normal(self.seed, "noise", batch, z0.elem_count());
        let first = batch * self.options.budget().batch as u64;
        let draws = first..first + samples.len() as u64;
        Ok(Batch {
            seen,
            noise: Tensor::from_vec(values, z0.shape(), z0.device())?,
            z0,
            t: draws.map(|draw| self.timestep(draw)).collect(),
            truth,
        })
    }

    fn loss(&self, batch: Batch, index: u64) -> Result<Tensor> {
        let train = &self.options.train;
        let noisy = self
            .network
            .schedule
            .add_noise(&batch.z0, &batch.noise, &batch.t)?;
        let dropout = self.options.architecture().dropout;
        let dropping = Dropping::new(dropout, self.seed, index);
        let dropping = (dropout > 0.0).then_some(&dropping);
        let enter = |x: &Option<Tensor>| -> Result<Option<Tensor>> {
            let cast = x.as_ref().map(|x| train.precision.cast(x));
            Ok(cast.transpose()?)
        };
        let seen = Seen {
            latent: enter(&batch.seen.latent)?,
            pixels: enter(&batch.seen.pixels)?,
        };
        let condition = self.network.condition(&seen, dropping)?;
        let output = self
            .network
            .predict(&noisy, &condition, &batch.t, dropping)?;
        let loss = self.latent_losses(&batch, &output, &noisy)?.mean_all()?;
        let lambda = self.options.resolved().lambda_dice;
        if lambda == 0.0 || !index.is_multiple_of(self.options.objective().dice_every) {
            return Ok(loss);
        }
        Ok((loss + (self.dice_loss(&batch, &output, &noisy)? * lambda)?)?)
    }

    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64> {
        let labels = self.network.description.labels();
        let batch = self.options.images_at_once;
        segmenting::validation_dice(validation, &labels, batch, reporter, |images| {
            self.network.segment(images, self.options, self.seed)
        })
    }

    fn metric(&self) -> &str {
        "validation dice"
    }

    fn precision(&self) -> Precision {
        self.options.train.precision
    }
}

/// What the small autoencoder learns from: images and, for a share of the draws, masks.
pub struct ImagesAndMasks {
    /// How both are laid out.
    pub frame: Frame,
    /// The labels of the target classes.
    pub labels: Vec<u8>,
    /// Share of masks.
    pub masks: f64,
    /// All randomness.
    pub seed: u64,
}

impl Pictures for ImagesAndMasks {
    fn draw(&self, sample: &Sample, draw: u64) -> Result<Tensor> {
        let mut rng = rng::stream(self.seed, "picture of the autoencoder", draw);
        if rng.random::<f64>() >= self.masks {
            return self.plain(sample);
        }
        let class = rng.random_range(0..self.labels.len());
        let label = &self.labels[class..=class];
        let truth = truth(
            std::slice::from_ref(sample),
            self.frame,
            label,
            &Device::Cpu,
        )?;
        Ok(pictures(&truth)?)
    }

    fn plain(&self, sample: &Sample) -> Result<Tensor> {
        let image = [sample.image.view()];
        let pixels = batch::images(&image, self.frame, &Device::Cpu)?;
        Ok(pixels.affine(2.0, -1.0)?.to_dtype(DType::F32)?)
    }
}
