//! What training begins with: a folder of weights, be it whole or made by `diffaug convert` of published
//! weights that are no segmenter's. Those are latent diffusion (Rombach et al., 2022) and Stable Diffusion
//! 1.x and 2.x, as one file in the original layout or as a folder in that of diffusers.
//!
//! A tensor is taken where its name, in the original layout, and its shape fit. The first convolution is
//! taken for the noisy latent alone and is zero for what the segmenter sees besides, so that it computes
//! at first what it did (as the code of Lin et al., 2024, has it).

use crate::{
    convert::{as_map, mean_name},
    description::Description,
    network::{Network, VAE},
    options::{Init, Options, VisionInput},
    shares::Shares,
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, Result};
use diffaug_models::{Vae, checkpoint::Component, compressor, original};
use diffaug_nn::{
    diffusion::{Autoencoder, AutoencoderConfig, original::Names},
    fit::WEIGHTS,
    params::Params,
    weights::{self, Source},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

/// What the folder of a beginning says of it.
pub const BEGINNING: &str = "beginning.json";
/// What the denoising network's tensors begin with in the checkpoint of a whole model.
const DENOISER: &str = "model.diffusion_model.";
/// The convolution that sees the noisy latent.
const FIRST: &str = "input_blocks.0.0.weight";

/// Checks that `folder` is one to begin with, before the time is spent that comes before training.
///
/// # Errors
/// When it holds no weights.
pub fn check_there(folder: &Path) -> Result<()> {
    if folder.join(WEIGHTS).exists() {
        return Ok(());
    }
    let shown = folder.display();
    Err(Error::model(format!(
        "`{shown}` has no `{WEIGHTS}`: expected a folder that training or `diffaug convert` left\nof published weights `diffaug convert segmenter latent-seg {shown} FOLDER` makes one"
    )))
}

/// Gives the networks what a folder of weights has of them, and says how much that is.
///
/// # Errors
/// When there is no such folder, or nothing in it fits.
pub fn begin_with(folder: &Path, init: Init, params: &Params) -> Result<Shares> {
    check_there(folder)?;
    let path = folder.join(WEIGHTS);
    let mut source = weights::Files::open(&[&path])?;
    let mut shares = Shares::default();
    for (name, var) in params.trainable() {
        let anew = init == Init::EncoderOnly
            && (name.starts_with("denoiser.output_blocks.") || name.starts_with("denoiser.out."));
        let fits = !anew && source.shape(name).as_deref() == Some(var.dims());
        let tensor = if fits { source.take(name)? } else { None };
        let values = var.elem_count();
        shares.add(name, values, if tensor.is_some() { values } else { 0 });
        if let Some(tensor) = tensor {
            var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
        }
    }
    match shares.taken() {
        0 => Err(Error::model(format!(
            "no tensor of `{}` fits the networks",
            path.display()
        ))),
        _ => Ok(shares),
    }
}

/// Makes the folder `to` of published weights at `from`: what fits the networks of `options` with one
/// target class, and the autoencoder.
///
/// # Errors
/// When the weights are of another kind, nothing of them fits, or `to` cannot be written.
pub fn convert(options: &Options, from: &Path, to: &Path) -> Result<String> {
    let mut published = match from.is_dir() {
        true => Published::folder(from),
        false => Published::file(from),
    }?;
    let network = published.network(options)?;
    let sees_pixels = network.description.vision.input == VisionInput::Pixel;
    let (mut tensors, mut shares) = (BTreeMap::new(), Shares::default());
    for (name, var) in network.params.trainable() {
        let found = published.fitting(name, var.dims(), sees_pixels)?;
        let taken = found.as_ref().map_or(0, |found| found.taken);
        shares.add(name, var.elem_count(), taken);
        tensors.extend(found.map(|found| (name.to_owned(), found.tensor)));
    }
    if shares.taken() == 0 {
        return Err(Error::model(format!(
            "no tensor of `{}` fits the networks: see the options `architecture.width`, `multipliers`, `layers` and `attention`",
            from.display()
        ))
        .at("architecture"));
    }
    compressor::save(&to.join(VAE), &published.vae, &published.autoencoder)?;
    weights::save_tensors(&to.join(WEIGHTS), tensors, &[])?;
    let text = serde_json::to_string_pretty(&shares)? + "\n";
    weights::write_atomically(&to.join(BEGINNING), text.as_bytes())?;
    let kind = if published.averaged {
        " (running means)"
    } else {
        ""
    };
    Ok(format!(
        "a beginning for training (`base`), and its autoencoder in `{VAE}` (`vae`); {shares}{kind}"
    ))
}

/// A tensor of the networks, and how many of its values were taken.
struct Found {
    tensor: Tensor,
    taken: usize,
}

/// Weights of latent diffusion.
struct Published {
    source: Box<dyn Source>,
    /// The denoising network's tensors: their names in the original layout and in `source`.
    names: HashMap<String, String>,
    vae: AutoencoderConfig,
    /// The autoencoder's tensors under the names of diffusers, in f32.
    autoencoder: BTreeMap<String, Tensor>,
    /// Whether the denoising network's tensors are running means.
    averaged: bool,
}

impl Published {
    /// A file in the original layout.
    fn file(path: &Path) -> Result<Self> {
        let source = weights::open(path)?;
        let all: HashSet<String> = source.names().into_iter().collect();
        let mut averaged = false;
        let mut names = HashMap::new();
        for name in &all {
            if let Some(rest) = name.strip_prefix(DENOISER) {
                let mean = mean_name(rest);
                let found = all.get(&mean);
                averaged |= found.is_some();
                names.insert(rest.to_owned(), found.unwrap_or(name).clone());
            }
        }
        if names.is_empty() {
            return Err(Error::model(format!(
                "in `{}`: no tensor begins with `{DENOISER}`: expected a checkpoint of latent diffusion, Stable Diffusion or Stable Diffusion Segmentation",
                path.display()
            )));
        }
        let (vae, autoencoder) = original::autoencoder(path)?;
        Ok(Published {
            source,
            names,
            vae,
            autoencoder,
            averaged,
        })
    }

    /// A folder in the layout of diffusers, of which `unet` and `vae` are looked at.
    fn folder(path: &Path) -> Result<Self> {
        let (unet, vae) = (Component::unet_of(path)?, Component::vae_of(path)?);
        let known = Names::unet(&unet.unet_config()?);
        let source = unet.source()?;
        let names = source.names().into_iter();
        let names = names.filter_map(|name| Some((known.to_original(&name)?, name)));
        let names = names.collect();
        let mut stored = vae.source()?;
        let mut autoencoder = BTreeMap::new();
        for name in stored.names() {
            if let Some(tensor) = stored.take(&name)? {
                let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
                autoencoder.insert(name, tensor);
            }
        }
        Ok(Published {
            source,
            names,
            vae: vae.autoencoder_config()?,
            autoencoder,
            averaged: false,
        })
    }

    /// The networks of `options` on this autoencoder, for one target class.
    fn network(&self, options: &Options) -> Result<Network> {
        let side = options.size.unwrap_or(crate::convert::SIDE);
        let latents = (self.vae.downsampling(), self.vae.latent_channels);
        let target = vec![(1, "target".to_owned())];
        let description = Description::new(options, target, (side, side), latents)?;
        let own = self.autoencoder.clone().into_iter().collect();
        let mut frozen = Params::frozen(&Device::Cpu, own);
        let vae = Autoencoder::new(frozen.root(), &self.vae)?;
        if let Some(left) = frozen.left_over().first() {
            return Err(Error::model(format!(
                "tensor `{left}` is no part of an autoencoder of this kind"
            )));
        }
        let params = Params::new(&Device::Cpu, 0);
        Network::new(description, params, Vae::full(vae, DType::F32))
    }

    /// The tensor `name` of the networks, if there is one of the shape `wanted`. The vision encoder is
    /// that of the autoencoder, where both see pixels.
    fn fitting(
        &mut self,
        name: &str,
        wanted: &[usize],
        sees_pixels: bool,
    ) -> Result<Option<Found>> {
        let whole = |tensor: Tensor| {
            let taken = tensor.elem_count();
            (tensor.dims() == wanted).then_some(Found { tensor, taken })
        };
        if let Some(rest) = name.strip_prefix("vision.").filter(|_| sees_pixels) {
            return Ok(self.autoencoder.get(rest).cloned().and_then(whole));
        }
        let Some(rest) = name.strip_prefix("denoiser.") else {
            return Ok(None);
        };
        let Some(stored) = self.names.get(rest).filter(|_| self.is_alike(rest)) else {
            return Ok(None);
        };
        let Some(tensor) = self.source.take(stored)? else {
            return Ok(None);
        };
        let tensor = as_map(rest, tensor.to_dtype(DType::F32)?.contiguous()?)?;
        if rest == FIRST {
            return first_convolution(&tensor, self.vae.latent_channels, wanted);
        }
        Ok(whole(tensor))
    }

    /// Whether a tensor of attention is there of attention of the same kind. A transformer over pixels
    /// and text has tensors of the same names that mean other things.
    fn is_alike(&self, name: &str) -> bool {
        let parts = [".norm.", ".qkv.", ".proj_out."];
        let module = parts.iter().find_map(|part| name.split_once(part));
        module.is_none_or(|(module, _)| self.names.contains_key(&format!("{module}.qkv.weight")))
    }
}

/// The first convolution for as many channels as `wanted` has: as it is where it has as many, otherwise
/// its `latent` channels for the noisy latent, and zeros for all others.
///
/// # Errors
/// Those of candle.
fn first_convolution(weight: &Tensor, latent: usize, wanted: &[usize]) -> Result<Option<Found>> {
    let (&[outputs, inputs, height, width], [_, channels, ..]) = (weight.dims(), wanted) else {
        return Ok(None);
    };
    if wanted != [outputs, *channels, height, width] {
        return Ok(None);
    }
    let kept = match inputs == *channels {
        true => inputs,
        false => latent.min(inputs).min(*channels),
    };
    let weight = weight.narrow(1, 0, kept)?;
    let taken = weight.elem_count();
    let tensor = weight.pad_with_zeros(1, 0, channels - kept)?.contiguous()?;
    Ok(Some(Found { tensor, taken }))
}
