//! Autoencoders in the original layout of latent diffusion (`encoder.down.0.block.0…`), whose sizes are
//! told by their tensors alone.

use crate::compressor;
use candle_core::{DType, Tensor};
use diffaug::{Error, Result};
use diffaug_nn::{
    diffusion::{AutoencoderConfig, original::Original},
    weights::{self, Source},
};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// What such an autoencoder has before its names in the checkpoint of a whole model.
const PREFIX: &str = "first_stage_model.";
/// What latents of Stable Diffusion 1.x and 2.x are multiplied by.
const SCALING: f64 = 0.18215;

/// The autoencoder in the file at `path`, alone or as part of a model: its configuration and its
/// tensors as diffusers has them, in f32.
///
/// # Errors
/// When the file is of another kind or the autoencoder incomplete.
pub fn autoencoder(path: &Path) -> Result<(AutoencoderConfig, BTreeMap<String, Tensor>)> {
    let read = || {
        let mut source = weights::open(path)?;
        let part = source.names().iter().any(|name| name.starts_with(PREFIX));
        let prefix = if part { PREFIX } else { "" };
        let mut tensors = HashMap::new();
        for name in source.names() {
            let Some(rest) = name.strip_prefix(prefix) else {
                continue;
            };
            let wanted = ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
            if wanted.iter().any(|start| rest.starts_with(start))
                && let Some(tensor) = source.take(&name)?
            {
                let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
                tensors.insert(rest.to_owned(), tensor);
            }
        }
        let config = AutoencoderConfig {
            scaling_factor: SCALING,
            ..config(&tensors, 256)?
        };
        Ok((config.clone(), renamed(tensors, &config)?))
    };
    read().map_err(|error: Error| error.context(format!("in `{}`", path.display())))
}

/// The configuration that the tensors of an autoencoder tell; `side` is that of its pictures, and its
/// scaling factor is left at 1.
///
/// # Errors
/// When tensors that tell are missing.
pub fn config(tensors: &HashMap<String, Tensor>, side: usize) -> Result<AutoencoderConfig> {
    let (channels, layers) = levels(tensors)?;
    let latent = dim(tensors, "post_quant_conv.weight", 0)?;
    let attention = tensors.contains_key("encoder.mid.attn_1.q.weight");
    Ok(compressor::architecture(
        &channels, layers, latent, attention, side,
    ))
}

/// The tensors of an autoencoder under the names of diffusers.
///
/// # Errors
/// When two come to one name.
pub fn renamed(
    tensors: HashMap<String, Tensor>,
    config: &AutoencoderConfig,
) -> Result<BTreeMap<String, Tensor>> {
    let (levels, layers) = (config.block_out_channels.len(), config.layers_per_block);
    let mut source = Original::autoencoder(tensors, levels, layers)?;
    let mut all = BTreeMap::new();
    for name in source.names() {
        if let Some(tensor) = source.take(&name)? {
            all.insert(name, tensor);
        }
    }
    Ok(all)
}

/// Channels at each resolution of an encoder, and its residual blocks there.
///
/// # Errors
/// When there is no encoder.
pub fn levels(tensors: &HashMap<String, Tensor>) -> Result<(Vec<usize>, usize)> {
    let conv = |level: usize, block: usize| {
        tensors.get(&format!("encoder.down.{level}.block.{block}.conv1.weight"))
    };
    let channels: Vec<usize> = (0..)
        .map_while(|level| conv(level, 0))
        .filter_map(|tensor| tensor.dims().first().copied())
        .collect();
    let layers = (0..).take_while(|block| conv(0, *block).is_some()).count();
    match channels.is_empty() {
        true => Err(Error::model(
            "tensor `encoder.down.0.block.0.conv1.weight` is missing: expected an autoencoder in the original layout",
        )),
        false => Ok((channels, layers)),
    }
}

/// A side of the shape of a tensor.
///
/// # Errors
/// When there is no such tensor.
pub fn dim(tensors: &HashMap<String, Tensor>, name: &str, which: usize) -> Result<usize> {
    let size = tensors
        .get(name)
        .and_then(|tensor| tensor.dims().get(which));
    let missing = || Error::model(format!("tensor `{name}` is missing"));
    size.copied().ok_or_else(missing)
}
