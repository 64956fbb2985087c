//! The autoencoder of a pipeline: the model's own or a tiny one, with latents scaled as the
//! denoising network wants them, and with what was encoded last kept at hand.

use crate::noise::Source;
use candle_core::{DType, Device, Tensor};
use diffaug::Result;
use diffaug_nn::diffusion::{Autoencoder as Full, Posterior, TinyAutoencoder};
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

/// Moments that are kept: the variants of a source come one after the other.
const KEPT: usize = 32;

/// Either kind.
pub enum Kind {
    /// Of Stable Diffusion.
    Full(Box<Full>),
    /// Its small copy, which encodes without chance.
    Tiny(TinyAutoencoder),
}

/// What a latent is drawn from.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `[n, channels, h, w]`, not yet scaled; the latent itself where there is no variance.
    pub mean: Tensor,
    /// Logarithm of the variance.
    pub logvar: Option<Tensor>,
}

/// The autoencoder of a pipeline.
pub struct Autoencoder {
    kind: Kind,
    /// The type that it computes in.
    dtype: DType,
    factor: usize,
    channels: usize,
    recent: Mutex<VecDeque<([u8; 32], Moments)>>,
}

impl Autoencoder {
    /// Computes in `dtype`, on `device`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(kind: Kind, dtype: DType, device: &Device) -> Result<Self> {
        let (factor, channels) = match &kind {
            Kind::Full(full) => {
                let config = full.config();
                (config.downsampling(), config.latent_channels)
            }
            Kind::Tiny(tiny) => {
                const SIDE: usize = 64;
                let probe = Tensor::zeros((1, 3, SIDE, SIDE), DType::F32, device)?;
                let (_, channels, height, _) = tiny.encode(&probe)?.dims4()?;
                (SIDE / height, channels)
            }
        };
        Ok(Autoencoder {
            kind,
            dtype,
            factor,
            channels,
            recent: Mutex::default(),
        })
    }

    /// Pixels along a side of a latent pixel.
    pub fn factor(&self) -> usize {
        self.factor
    }

    /// Channels of a latent.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The latent of `pixels` `[1, 3, height, width]`, drawn from its posterior, scaled.
    ///
    /// # Errors
    /// Those of the device.
    pub fn encode(&self, pixels: &Tensor, noise: &mut Source) -> Result<Tensor> {
        let key = digest(pixels)?;
        let lock = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().iter().find(|(known, _)| *known == key).cloned();
        let moments = match known {
            Some((_, moments)) => moments,
            None => self.moments(pixels)?,
        };
        let latent = self.latent(&moments, |shape| noise.draw(shape, pixels.device()))?;
        let mut recent = lock();
        if recent.iter().all(|(known, _)| *known != key) {
            recent.push_back((key, moments));
            if recent.len() > KEPT {
                recent.pop_front();
            }
        }
        Ok(latent)
    }

    /// What the latents of `pixels` `[n, 3, height, width]` are drawn from.
    ///
    /// # Errors
    /// Those of the device.
    pub fn moments(&self, pixels: &Tensor) -> Result<Moments> {
        match &self.kind {
            Kind::Tiny(tiny) => Ok(Moments {
                mean: tiny.encode(pixels)?,
                logvar: None,
            }),
            Kind::Full(full) => {
                let posterior = full.encode(&pixels.to_dtype(self.dtype)?)?;
                Ok(Moments {
                    mean: posterior.mean.to_dtype(DType::F32)?,
                    logvar: Some(posterior.logvar.to_dtype(DType::F32)?),
                })
            }
        }
    }

    /// A scaled latent; `noise` is asked for normal numbers of a shape, once at most.
    ///
    /// # Errors
    /// Those of the device, and of `noise`.
    pub fn latent(
        &self,
        moments: &Moments,
        noise: impl FnOnce(&[usize]) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        match (&self.kind, &moments.logvar) {
            (Kind::Full(full), Some(logvar)) => {
                let posterior = Posterior {
                    mean: moments.mean.clone(),
                    logvar: logvar.clone(),
                };
                let noise = noise(moments.mean.dims())?;
                Ok(full.to_latent(&posterior.sample(&noise)?)?)
            }
            _ => Ok(moments.mean.clone()),
        }
    }

    /// Pixels of a scaled latent, about -1 to 1, f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        let pixels = match &self.kind {
            Kind::Full(full) => full.decode(&full.from_latent(latent)?.to_dtype(self.dtype)?)?,
            Kind::Tiny(tiny) => tiny.decode(latent)?,
        };
        Ok(pixels.to_dtype(DType::F32)?)
    }
}

/// What identifies a tensor of f32.
fn digest(pixels: &Tensor) -> Result<[u8; 32]> {
    let values: Vec<f32> = pixels.flatten_all()?.to_vec1()?;
    let mut hash = Sha256::new();
    for side in pixels.dims() {
        hash.update(side.to_le_bytes());
    }
    for value in values {
        hash.update(value.to_le_bytes());
    }
    Ok(hash.finalize().into())
}
