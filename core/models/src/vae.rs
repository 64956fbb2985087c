//! The autoencoder of a latent diffusion model, whichever it is: pixels to latents at the scale that
//! denoising networks work at, and back.

use crate::{
    checkpoint::{self, Component},
    hub, original,
    unshuffle::Unshuffle,
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::{
    diffusion::{Autoencoder, AutoencoderConfig, Posterior, TinyAutoencoder},
    ops,
    params::Params,
    weights::{Cast, Source},
};
use std::{collections::HashMap, path::Path};

/// The tiny autoencoder's name in options, and where it is to be had.
const TINY: (&str, &str) = ("taesdxl", "madebyollin/taesdxl");

/// Either kind.
#[derive(Debug)]
enum Kind {
    /// Of Stable Diffusion.
    Full(Box<Autoencoder>),
    /// Its small copy, which encodes without chance.
    Tiny(TinyAutoencoder),
    /// Blocks of pixels.
    Blocks(Unshuffle),
}

/// What a latent is drawn from.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `[n, channels, h, w]`, not yet scaled; the latent itself where there is no variance.
    pub mean: Tensor,
    /// Logarithm of the variance.
    pub logvar: Option<Tensor>,
}

/// An autoencoder, ready to be used.
#[derive(Debug)]
pub struct Vae {
    kind: Kind,
    /// The type that it computes in.
    dtype: DType,
    factor: usize,
    channels: usize,
}

impl Vae {
    /// The autoencoder that `name` names: a folder, a file in the original layout of latent diffusion,
    /// a model of the hub, or `taesdxl`. It computes in `dtype` where its configuration and the device
    /// allow that.
    ///
    /// # Errors
    /// Naming what is missing or does not fit.
    pub fn open(name: &str, dtype: DType, device: &Device) -> Result<Self> {
        let name = if name == TINY.0 { TINY.1 } else { name };
        let folder = hub::locate_autoencoder(name)?;
        if folder.is_file() {
            let (config, tensors) = original::autoencoder(&folder)?;
            return Vae::built(
                &config,
                Box::new(HashMap::from_iter(tensors)),
                dtype,
                device,
            );
        }
        if is_tiny(&folder)? {
            return Vae::tiny(TinyAutoencoder::open(&folder, device)?, device);
        }
        Vae::of(&Component::autoencoder(&folder)?, dtype, device)
    }

    /// The autoencoder of a checkpoint.
    ///
    /// # Errors
    /// Naming what is missing or does not fit.
    pub fn of(component: &Component, dtype: DType, device: &Device) -> Result<Self> {
        if Unshuffle::is(&component.config) {
            return Ok(Vae::blocks(Unshuffle::open(component, device)?));
        }
        let config = component.autoencoder_config()?;
        Vae::built(&config, component.source()?, dtype, device)
    }

    fn built(
        config: &AutoencoderConfig,
        source: Box<dyn Source>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let misfit = || "the weights of `vae` do not fit its configuration".to_owned();
        // Some overflow in f16; on a processor all is f32 anyway.
        let dtype = match config.force_upcast || ops::has_kernels(device) {
            true => DType::F32,
            false => dtype,
        };
        let source: Box<dyn Source> = Box::new(Cast::new(source, dtype));
        let mut params = Params::from_source(device, source);
        let net = Autoencoder::new(params.root(), config).or_error(ErrorKind::Model, misfit)?;
        match params.left_over().first() {
            None => Ok(Vae::full(net, dtype)),
            Some(left) => {
                Err(Error::model(format!("tensor `{left}` is no part of it")).context(misfit()))
            }
        }
    }

    /// A network whose weights are of `dtype`.
    pub fn full(net: Autoencoder, dtype: DType) -> Self {
        let config = net.config();
        Vae {
            factor: config.downsampling(),
            channels: config.latent_channels,
            kind: Kind::Full(Box::new(net)),
            dtype,
        }
    }

    /// Latents that are blocks of pixels.
    pub fn blocks(unshuffle: Unshuffle) -> Self {
        Vae {
            factor: unshuffle.factor(),
            channels: unshuffle.channels(),
            kind: Kind::Blocks(unshuffle),
            dtype: DType::F32,
        }
    }

    fn tiny(net: TinyAutoencoder, device: &Device) -> Result<Self> {
        const SIDE: usize = 64;
        let probe = Tensor::zeros((1, 3, SIDE, SIDE), DType::F32, device)?;
        let (_, channels, height, _) = net.encode(&probe)?.dims4()?;
        Ok(Vae {
            kind: Kind::Tiny(net),
            dtype: DType::F32,
            factor: SIDE / height,
            channels,
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

    /// What the latents of `pixels` `[n, 3, height, width]`, values -1 to 1, are drawn from.
    ///
    /// # Errors
    /// Those of the device.
    pub fn moments(&self, pixels: &Tensor) -> Result<Moments> {
        match &self.kind {
            Kind::Tiny(tiny) => Ok(Moments {
                mean: tiny.encode(pixels)?,
                logvar: None,
            }),
            Kind::Blocks(blocks) => Ok(Moments {
                mean: blocks.encode(pixels)?,
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

    /// The likeliest latent, scaled.
    ///
    /// # Errors
    /// Those of the device.
    pub fn mode(&self, moments: &Moments) -> Result<Tensor> {
        match &self.kind {
            Kind::Full(full) => Ok(full.to_latent(&moments.mean)?),
            Kind::Tiny(_) | Kind::Blocks(_) => Ok(moments.mean.clone()),
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
            Kind::Blocks(blocks) => blocks.decode(latent)?,
        };
        Ok(pixels.to_dtype(DType::F32)?)
    }
}

/// Whether a folder holds a tiny autoencoder, in its author's layout or that of diffusers.
fn is_tiny(folder: &Path) -> Result<bool> {
    let config = folder.join("config.json");
    if !config.is_file() {
        return Ok(true);
    }
    Ok(checkpoint::read_json(&config)?["_class_name"] == "AutoencoderTiny")
}
