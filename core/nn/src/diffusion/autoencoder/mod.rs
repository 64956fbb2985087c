//! The autoencoder of Stable Diffusion: images to latents, and back (`AutoencoderKL`).
//!
//! Pixels are -1 to 1. An image becomes a normal distribution for each value of its latents
//! ([`Posterior`]); a sample of it, or its mean, is brought to the scale that a diffusion model
//! works at by [`Autoencoder::to_latent`].

mod config;
mod names;
mod trunk;

pub use config::{AutoencoderConfig, SampleSize};
pub(super) use names::modern_name;

use super::resnet::{Downsample, Upsample};
use crate::{layers::Conv2d, ops::Dropping, params::Scope};
use candle_core::{DType, Result, Tensor, bail};
use trunk::{Step, Trunk, middle, resnets};

/// An encoder and a decoder.
#[derive(Clone, Debug)]
pub struct Autoencoder {
    config: AutoencoderConfig,
    encoder: Encoder,
    decoder: Decoder,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
}

impl Autoencoder {
    /// # Errors
    /// When `config` contradicts itself or asks for what this network does not have, the device
    /// has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, config: &AutoencoderConfig) -> Result<Self> {
        let encoder = Encoder::new(scope.child("encoder"), config)?;
        let decoder = Decoder::new(scope.child("decoder"), config)?;
        let mut conv = |name, wanted: bool, channels| {
            let conv = wanted.then(|| Conv2d::new(scope.child(name), channels, channels, 1, true));
            conv.transpose()
        };
        let channels = config.latent_channels;
        Ok(Autoencoder {
            encoder,
            decoder,
            quant: conv("quant_conv", config.use_quant_conv, 2 * channels)?,
            post_quant: conv("post_quant_conv", config.use_post_quant_conv, channels)?,
            config: config.clone(),
        })
    }

    /// The same with or without activation checkpointing: each block of both halves is computed
    /// again in the backward pass instead of being kept. The loss then has to be differentiated by
    /// [`crate::recompute::backward`]. Of no use, but for a copy of each result, where nothing is
    /// differentiated.
    #[must_use]
    pub fn checkpointing(self, checkpointing: bool) -> Self {
        Autoencoder {
            encoder: self.encoder.checkpointing(checkpointing),
            decoder: self.decoder.checkpointing(checkpointing),
            ..self
        }
    }

    /// What it was made of.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// `x` `[batch, in_channels, height, width]`, values -1 to 1, as distributions of latents of
    /// height and width divided by [`AutoencoderConfig::downsampling`], rounded down.
    ///
    /// # Errors
    /// When `x` does not fit or is too small.
    pub fn encode(&self, x: &Tensor) -> Result<Posterior> {
        let moments = self.encoder.forward(x)?;
        match &self.quant {
            Some(conv) => Posterior::new(&conv.forward(&moments)?),
            None => Posterior::new(&moments),
        }
    }

    /// `z` `[batch, latent_channels, height, width]`, at the scale of [`Posterior`], as images of
    /// [`AutoencoderConfig::downsampling`] times the size, values about -1 to 1.
    ///
    /// # Errors
    /// When `z` does not fit.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        match &self.post_quant {
            Some(conv) => self.decoder.forward(&conv.forward(z)?),
            None => self.decoder.forward(z),
        }
    }

    /// [`AutoencoderConfig::to_latent`] of its configuration.
    ///
    /// # Errors
    /// When `z` does not fit.
    pub fn to_latent(&self, z: &Tensor) -> Result<Tensor> {
        self.config.to_latent(z)
    }

    /// [`AutoencoderConfig::from_latent`] of its configuration.
    ///
    /// # Errors
    /// When `z` does not fit.
    pub fn from_latent(&self, z: &Tensor) -> Result<Tensor> {
        self.config.from_latent(z)
    }
}

/// Images to what [`Posterior`] is made of.
#[derive(Clone, Debug)]
pub struct Encoder(Trunk);

impl Encoder {
    /// The encoder alone, without the 1×1 convolution that follows it in an autoencoder.
    ///
    /// # Errors
    /// Those of [`Autoencoder::new`].
    pub fn new(mut scope: Scope<'_>, config: &AutoencoderConfig) -> Result<Self> {
        config.check()?;
        let channels = &config.block_out_channels;
        let mut steps = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let mut scope = scope.child(&format!("down_blocks.{i}"));
            let sizes = [channels[i.saturating_sub(1)], outputs];
            steps.extend(resnets(&mut scope, config, config.layers_per_block, sizes)?);
            if i + 1 < channels.len() {
                let halve = Downsample::new(scope.child("downsamplers.0"), outputs, true)?;
                steps.push(Step::Halve(halve));
            }
        }
        steps.extend(middle(&mut scope, config)?);
        let enter = [config.in_channels, channels[0]];
        let leave = [channels[channels.len() - 1], 2 * config.latent_channels];
        Ok(Encoder(Trunk::new(
            &mut scope, config, enter, steps, leave,
        )?))
    }

    /// The same with or without activation checkpointing, as [`Autoencoder::checkpointing`].
    #[must_use]
    pub fn checkpointing(self, checkpointing: bool) -> Self {
        Encoder(self.0.checkpointing(checkpointing))
    }

    /// `[batch, in_channels, height, width]` to `[batch, 2 * latent_channels, _, _]`, height and
    /// width divided by [`AutoencoderConfig::downsampling`].
    ///
    /// # Errors
    /// When `x` does not fit or is too small.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }

    /// [`Encoder::forward`] with dropout in every residual block.
    ///
    /// # Errors
    /// When `x` does not fit or is too small.
    pub fn forward_dropping(&self, x: &Tensor, dropping: &Dropping) -> Result<Tensor> {
        self.0.forward_dropping(x, dropping)
    }
}

/// Latents to images.
#[derive(Clone, Debug)]
pub struct Decoder(Trunk);

impl Decoder {
    /// The decoder alone, without the 1×1 convolution that precedes it in an autoencoder.
    ///
    /// # Errors
    /// Those of [`Autoencoder::new`].
    pub fn new(mut scope: Scope<'_>, config: &AutoencoderConfig) -> Result<Self> {
        config.check()?;
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let mut steps = middle(&mut scope, config)?;
        for (i, &outputs) in channels.iter().enumerate() {
            let mut scope = scope.child(&format!("up_blocks.{i}"));
            let (sizes, count) = (
                [channels[i.saturating_sub(1)], outputs],
                config.layers_per_block + 1,
            );
            steps.extend(resnets(&mut scope, config, count, sizes)?);
            if i + 1 < channels.len() {
                let double = Upsample::new(scope.child("upsamplers.0"), outputs)?;
                steps.push(Step::Double(double));
            }
        }
        let enter = [config.latent_channels, channels[0]];
        let leave = [channels[channels.len() - 1], config.out_channels];
        Ok(Decoder(Trunk::new(
            &mut scope, config, enter, steps, leave,
        )?))
    }

    /// The same with or without activation checkpointing, as [`Autoencoder::checkpointing`].
    #[must_use]
    pub fn checkpointing(self, checkpointing: bool) -> Self {
        Decoder(self.0.checkpointing(checkpointing))
    }

    /// `[batch, latent_channels, height, width]` to `[batch, out_channels, _, _]` of
    /// [`AutoencoderConfig::downsampling`] times the size.
    ///
    /// # Errors
    /// When `z` does not fit.
    pub fn forward(&self, z: &Tensor) -> Result<Tensor> {
        self.0.forward(z)
    }
}

/// Independent normal distributions, one for each value of an image's latents
/// (`DiagonalGaussianDistribution`).
#[derive(Clone, Debug)]
pub struct Posterior {
    /// Their means, `[batch, latent_channels, height, width]`.
    pub mean: Tensor,
    /// The logarithms of their variances, of the same shape, -30 to 20.
    pub logvar: Tensor,
}

impl Posterior {
    /// Takes means and logarithms apart: the halves of the channels of `moments` `[batch,
    /// 2 * latent_channels, height, width]`.
    ///
    /// # Errors
    /// When the number of channels is odd.
    pub fn new(moments: &Tensor) -> Result<Self> {
        let (_, channels, _, _) = moments.dims4()?;
        if !channels.is_multiple_of(2) {
            bail!("means and variances need an even number of channels, not {channels}");
        }
        let half = |at| moments.narrow(1, at, channels / 2)?.contiguous();
        Ok(Posterior {
            mean: half(0)?,
            logvar: half(channels / 2)?.clamp(-30.0, 20.0)?,
        })
    }

    /// What `noise`, drawn from the standard normal distribution, becomes; of the shape of the
    /// means. Gradients flow to means and variances.
    ///
    /// # Errors
    /// When `noise` has another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let deviation = (&self.logvar * 0.5)?.exp()?;
        &self.mean + (deviation * noise)?
    }

    /// The likeliest latents: the means.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// The Kullback-Leibler divergence from the standard normal distribution, `[batch]`, f32: for
    /// each image the sum over all its latents of (mean² + variance - 1 - ln variance) / 2.
    ///
    /// # Errors
    /// Those of candle.
    pub fn kl(&self) -> Result<Tensor> {
        let (mean, logvar) = (
            self.mean.to_dtype(DType::F32)?,
            self.logvar.to_dtype(DType::F32)?,
        );
        let each = ((mean.sqr()? + logvar.exp()?)? - (logvar + 1.0)?)?;
        each.flatten_from(1)?.sum(1)? * 0.5
    }
}

#[cfg(test)]
mod tests;
