//! The training of a small autoencoder (Rombach et al., 2022): absolute errors of pixels and of
//! their gradients, a little divergence from the normal distribution, and perceptual distance where
//! its weights are at hand.

use super::{holes::inside, options::above, views::Views};
use crate::options::{refuse, within};
use candle_core::{Device, Tensor};
use diffaug::{BoxDataset, Dataset, Error, Reporter, Result, Sample, rng};
use diffaug_nn::{
    diffusion::Autoencoder,
    fit::{Learner, Settings},
    noise, ops,
    optim::Schedule,
    params::Params,
    perceptual::Lpips,
};
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the autoencoder is trained.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AutoencoderTraining {
    /// Steps of the optimizer.
    pub steps: u64,
    /// Pictures of a step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Weight of the divergence of a latent value from the normal distribution.
    pub kl: f64,
    /// Weight of the error of horizontal and of vertical differences.
    pub gradient: f64,
    /// Weights of LPIPS (AlexNet), for a loss that minds what is seen; without them it is left out.
    pub lpips: Option<PathBuf>,
    /// Weight of LPIPS.
    pub perceptual: f64,
    /// Share of pictures that have their lesion cut out, as painting will show them.
    pub cut: f64,
    /// Steps from one validation to the next.
    pub evaluate_every: u64,
    /// Steps from one checkpoint to the next.
    pub checkpoint_every: u64,
}

impl Default for AutoencoderTraining {
    fn default() -> Self {
        AutoencoderTraining {
            steps: 2000,
            batch: 16,
            lr: 1e-3,
            kl: 3e-3,
            gradient: 0.5,
            lpips: None,
            perceptual: 0.1,
            cut: 0.2,
            evaluate_every: 250,
            checkpoint_every: 250,
        }
    }
}

impl AutoencoderTraining {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Naming the one that is out of range.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("steps", self.steps), ("batch", self.batch as u64)] {
            if value == 0 {
                return refuse(&format!("train.autoencoder.{name}"), 0, "at least 1");
            }
        }
        above("train.autoencoder.lr", self.lr)?;
        for (name, value) in [
            ("kl", self.kl),
            ("gradient", self.gradient),
            ("perceptual", self.perceptual),
        ] {
            within(&format!("train.autoencoder.{name}"), value, 0.0..=1e6)?;
        }
        within("train.autoencoder.cut", self.cut, 0.0..=1.0)
    }

    /// How the training loop is to go about it.
    pub fn settings(&self, seed: u64, tensorboard: bool) -> Settings {
        Settings {
            steps: Some(self.steps),
            batch: self.batch,
            learning_rate: self.lr,
            schedule: Schedule::Cosine {
                last: 0.05 * self.lr,
            },
            warmup: 50,
            clip: 1.0,
            evaluate_every: u64::MAX,
            evaluate_steps: self.evaluate_every,
            checkpoint_every: self.checkpoint_every,
            tensorboard,
            seed,
            ..Settings::default()
        }
    }
}

/// An autoencoder in training.
pub struct Compressor {
    /// What is trained.
    pub params: Params,
    /// The network.
    pub net: Autoencoder,
    /// Pictures to views.
    pub views: Views,
    /// How to train.
    pub training: AutoencoderTraining,
    /// Where it lives.
    pub lpips: Option<Lpips>,
    /// All randomness.
    pub seed: u64,
}

impl Compressor {
    /// The view of a sample for a draw: chance view, perhaps with its lesion cut out.
    fn picture(&self, sample: &Sample, draw: u64) -> Result<Tensor> {
        let mut rng = rng::stream(self.seed, "autoencoder's view", draw);
        let view = self
            .views
            .view(sample, rng.random_range(0..self.views.count))?;
        if rng.random::<f64>() >= self.training.cut {
            return Ok(view.pixels);
        }
        let kept = inside(view.mask.view());
        let kept: Vec<f32> = kept.iter().map(|cut| f32::from(u8::from(!cut))).collect();
        let (_, _, height, width) = view.pixels.dims4()?;
        let kept = Tensor::from_vec(kept, (1, 1, height, width), &Device::Cpu)?;
        Ok(view.pixels.broadcast_mul(&kept)?)
    }

    fn join(&self, pictures: &[Tensor]) -> Result<Tensor> {
        if let Some(odd) = pictures.iter().find(|p| p.dims() != pictures[0].dims()) {
            let ((_, _, h, w), (_, _, height, width)) = (odd.dims4()?, pictures[0].dims4()?);
            return Err(Error::data(format!(
                "training pictures are {width}x{height} and {w}x{h}: set `images.size`, or `window` and `resolution` of the generator"
            )));
        }
        Ok(Tensor::cat(pictures, 0)?.to_device(self.params.device())?)
    }

    /// Mean and standard deviation of each channel of the latents as they are drawn, over views of
    /// `count` samples.
    ///
    /// # Errors
    /// When a sample cannot be used.
    pub fn statistics(&self, train: &BoxDataset, count: u64) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut sums, mut values) = (Vec::new(), 0.0);
        for index in 0..count {
            let view = self.views.view(&train.sample(index)?, 0)?;
            let pixels = view.pixels.to_device(self.params.device())?;
            let posterior = self.net.encode(&pixels)?;
            let channels = |x: &Tensor| x.detach().flatten_from(2)?.squeeze(0)?.to_vec2::<f32>();
            let means = channels(&posterior.mean)?;
            let variances = channels(&posterior.logvar.exp()?)?;
            sums.resize(means.len(), [0.0f64; 2]);
            for (sums, (means, variances)) in sums.iter_mut().zip(means.iter().zip(&variances)) {
                for (mean, variance) in means.iter().zip(variances) {
                    sums[0] += f64::from(*mean);
                    sums[1] += f64::from(*mean).powi(2) + f64::from(*variance);
                }
            }
            values += means.first().map_or(0.0, |channel| channel.len() as f64);
        }
        let mean = |sums: &[f64; 2]| sums[0] / values;
        let deviation = |sums: &[f64; 2]| (sums[1] / values - mean(sums).powi(2)).max(1e-12).sqrt();
        Ok((
            sums.iter().map(mean).collect(),
            sums.iter().map(deviation).collect(),
        ))
    }
}

/// Mean absolute error of the differences of neighbours along `dim`.
fn gradient_error(x: &Tensor, y: &Tensor, dim: usize) -> candle_core::Result<Tensor> {
    let step = |x: &Tensor| {
        let length = x.dim(dim)? - 1;
        x.narrow(dim, 1, length)? - x.narrow(dim, 0, length)?
    };
    ops::l1(&step(y)?, &step(x)?)
}

impl Learner for Compressor {
    type Batch = Tensor;

    fn params(&self) -> &Params {
        &self.params
    }

    fn prepare(&self, samples: Vec<Sample>, batch: u64) -> Result<Tensor> {
        let first = batch * self.training.batch as u64;
        let pictures = samples.iter().zip(first..);
        let pictures = pictures.map(|(sample, draw)| self.picture(sample, draw));
        self.join(&pictures.collect::<Result<Vec<_>>>()?)
    }

    fn loss(&self, x: Tensor, batch: u64) -> Result<Tensor> {
        let posterior = self.net.encode(&x)?;
        let shape = posterior.mean.shape();
        let drawn = noise::normal(self.seed, "autoencoder's noise", batch, shape.elem_count());
        let drawn = Tensor::from_vec(drawn, shape, x.device())?;
        let y = self.net.decode(&posterior.sample(&drawn)?)?;
        let mut loss = ops::l1(&y, &x)?;
        for dim in [2, 3] {
            loss = (loss + (gradient_error(&x, &y, dim)? * self.training.gradient)?)?;
        }
        let each = shape.elem_count() as f64 / x.dim(0)? as f64;
        let divergence = (posterior.kl()?.mean_all()? / each)?;
        loss = (loss + (divergence * self.training.kl)?)?;
        if let Some(lpips) = &self.lpips {
            let seen = lpips.distance(&y, &x)?.mean_all()?;
            loss = (loss + (seen * self.training.perceptual)?)?;
        }
        Ok(loss)
    }

    fn score(&self, validation: &BoxDataset, reporter: &Reporter<'_>) -> Result<f64> {
        let count = validation.items()?.len() as u64;
        let mut total = 0.0;
        for index in 0..count {
            if reporter.cancelled() {
                return Err(Error::cancelled());
            }
            let view = self.views.view(&validation.sample(index)?, 0)?;
            let x = view.pixels.to_device(self.params.device())?;
            let y = self.net.decode(self.net.encode(&x)?.mode())?;
            let error = (y - x)?.sqr()?.mean_all()?.detach().to_scalar::<f32>()?;
            // Pixels span 2.
            total += 10.0 * (4.0 / f64::from(error).max(1e-10)).log10();
        }
        Ok(total / count as f64)
    }

    fn metric(&self) -> &str {
        "validation psnr"
    }
}
