//! What a model needs, from its configurations and the headers of its files.
//!
//! Weights are counted exactly. Activations are estimates, in maps of a network's first level
//! (`c` channels, `p` pixels of a batch, in f32): an answer holds about 16 of them for the denoising
//! network and 8 for the autoencoder, which works picture by picture but at their full size;
//! training keeps the results of every layer, [`RESNET`] maps for a residual block and [`BLOCK`] for
//! a transformer's, of which recomputation leaves one for each.

use crate::{
    loader::{self, Found},
    options::Options,
    training::{Init, Method, architecture::Architecture},
};
use candle_core::Device;
use diffaug::{Component, Context, Inspection, Result};
use diffaug_models::{
    checkpoint::{Checkpoint, Component as Part},
    unshuffle::Unshuffle,
};
use diffaug_nn::{
    budget::{self, F32, TrainingMemory},
    diffusion::{Autoencoder, AutoencoderConfig, PerBlock, UNet, UNetConfig},
    optim::Rule,
    params::Params,
};

/// Side of the pictures where nothing tells it.
const ASSUMED: u64 = 256;
/// Maps that a residual block keeps for the backward pass.
const RESNET: u64 = 8;
/// Those of a transformer block: three normalisations, two attentions, a gated map of four times
/// the width.
const BLOCK: u64 = 24;
/// Maps of the first level that are in use at once for an answer.
const ANSWER: u64 = 16;
/// The same for the autoencoder.
const DECODE: u64 = 8;

/// What a generator of these options needs.
pub fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
    let mut inspection = budget::inspection(&context.device);
    let side = side(options, context);
    match (&options.weights, options.train.init, &options.base) {
        (Some(weights), ..) => {
            if let Some(found) = find(weights, "weights", options, &mut inspection) {
                model(&found, options, side, false, &mut inspection)?;
            }
        }
        (None, Init::Scratch, _) => {
            scratch(&options.train.architecture, options, side, &mut inspection)?
        }
        (None, Init::Base, Some(base)) => {
            if let Some(found) = find(base, "base", options, &mut inspection) {
                model(&found, options, side, true, &mut inspection)?;
            }
        }
        (None, Init::Base, None) => inspection
            .miss("neither `weights` nor `base` names a model, and `train.init` is not `scratch`"),
    }
    inspection.note("memory for activations is an estimate from the sizes of the networks");
    Ok(inspection)
}

/// The side of the pictures that the model sees.
fn side(options: &Options, context: &Context) -> u64 {
    match (options.resolution, context.size) {
        (Some(side), _) => u64::from(side),
        (None, 0) => ASSUMED,
        // Larger ones are no pictures, and their squares no numbers.
        (None, side) => u64::from(side).min(1 << 16),
    }
}

/// The model, if it is there; says so if not.
fn find(name: &str, field: &str, options: &Options, inspection: &mut Inspection) -> Option<Found> {
    if !loader::is_there(name, options) {
        inspection.miss(format!(
            "{field} `{name}` are not there: a hub id is fetched when the model is loaded, anything else has to be put there"
        ));
        return None;
    }
    match loader::find(name, field, options) {
        Ok(found) => Some(found),
        Err(error) => {
            inspection.miss(error);
            None
        }
    }
}

/// A model that there is, to be used or trained.
fn model(
    found: &Found,
    options: &Options,
    side: u64,
    trained: bool,
    inspection: &mut Inspection,
) -> Result<()> {
    let checkpoint = &found.checkpoint;
    let bytes = options.dtype.dtype().size_in_bytes() as u64;
    let config = loader::unet_config(checkpoint)?;
    let unet = count(&checkpoint.unet)?;
    let adapters = adapter_values(checkpoint, options)?;
    let trainable = match (trained, options.train.method) {
        (false, _) => 0,
        (true, Method::Lora) => adapters,
        (true, Method::Full) => unet,
    };
    let mut push = |name: &str, parameters: u64, trainable: u64, bytes: u64| {
        inspection.components.push(Component {
            name: name.into(),
            parameters,
            trainable,
            bytes: parameters * bytes,
        });
    };
    let text = [
        Some(&checkpoint.text_encoder),
        checkpoint.text_encoder_2.as_ref(),
    ];
    for (name, part) in ["text_encoder", "text_encoder_2"].iter().zip(text) {
        if let Some(part) = part {
            push(name, count(part)?, 0, bytes);
        }
    }
    push("vae", count(&checkpoint.vae)?, 0, F32);
    push("unet", unet, trainable, bytes);
    let weights: u64 = inspection.components.iter().map(|part| part.bytes).sum();
    let maps = match Unshuffle::is(&checkpoint.vae.config) {
        true => Maps::blocks(checkpoint.vae.config["factor"].as_u64().unwrap_or(1)),
        false => Maps::of(&checkpoint.vae.autoencoder_config()?),
    };
    memory(
        &config,
        maps,
        options,
        (side, weights, trainable),
        inspection,
    );
    Ok(())
}

/// A small model that there will be.
fn scratch(
    architecture: &Architecture,
    options: &Options,
    side: u64,
    inspection: &mut Inspection,
) -> Result<()> {
    let side = options.resolution.map_or(side, u64::from);
    let (config, vae) = (architecture.unet(), architecture.autoencoder(side as usize));
    let maps = match &vae {
        Some(vae) => Maps::of(vae),
        None => Maps::blocks(architecture.downsampling() as u64),
    };
    // Small enough to be built.
    let mut params = Params::new(&Device::Cpu, 0);
    UNet::new(params.root(), &config)?;
    let unet = params.count() as u64;
    let mut params = Params::new(&Device::Cpu, 0);
    if let Some(vae) = &vae {
        Autoencoder::new(params.root(), vae)?;
    }
    let parts = [("vae", params.count() as u64), ("unet", unet)];
    for (name, parameters) in parts {
        inspection.components.push(Component {
            name: name.into(),
            parameters,
            trainable: parameters,
            bytes: F32 * parameters,
        });
    }
    inspection.note("the text encoder is not counted: its vocabulary comes from the prompts");
    let weights: u64 = inspection.components.iter().map(|part| part.bytes).sum();
    memory(&config, maps, options, (side, weights, unet), inspection);
    Ok(())
}

/// How large the maps of an autoencoder are.
#[derive(Clone, Copy)]
struct Maps {
    /// Pixels along a side of a latent's pixel.
    factor: u64,
    /// Channels of the first level.
    channels: u64,
}

impl Maps {
    fn of(config: &AutoencoderConfig) -> Self {
        Maps {
            factor: config.downsampling() as u64,
            channels: config.block_out_channels.first().copied().unwrap_or(0) as u64,
        }
    }

    /// Of blocks of pixels, which have no maps but the picture.
    fn blocks(factor: u64) -> Self {
        Maps {
            factor: factor.max(1),
            channels: 3,
        }
    }
}

/// Estimates the memory for answers and, if anything is trained, for training.
fn memory(
    config: &UNetConfig,
    vae: Maps,
    options: &Options,
    (side, weights, trainable): (u64, u64, u64),
    inspection: &mut Inspection,
) {
    let first = |channels: &[usize]| channels.first().copied().unwrap_or(0) as u64;
    let latent = side.div_ceil(vae.factor).pow(2);
    let guided = if options.guidance > 1.0 { 2 } else { 1 };
    let batch = options.batch as u64 * guided;
    let unet = ANSWER * F32 * first(&config.block_out_channels) * latent * batch;
    let decode = DECODE * F32 * vae.channels * side.pow(2);
    inspection.run_bytes = weights + unet.max(decode);
    if trainable == 0 {
        return;
    }
    let train = &options.train;
    let memory = TrainingMemory::new(trainable, trainable, &Rule::default(), train.ema.is_some());
    let maps = kept(config, latent * train.batch as u64, train.checkpointing);
    inspection.train_bytes = weights.saturating_add(memory.peak(maps.saturating_add(decode), true));
}

/// What the denoising network keeps for the backward pass, in bytes; `pixels` are those of a
/// batch's latents.
fn kept(config: &UNetConfig, pixels: u64, checkpointing: bool) -> u64 {
    let levels = config.block_out_channels.iter().enumerate();
    let layers = levels.map(|(level, channels)| {
        let values = (*channels as u128 * u128::from(pixels)) >> (2 * level);
        let blocks = match &config.transformer_layers_per_block {
            PerBlock::All(layers) => *layers,
            PerBlock::Each(layers) => layers.get(level).copied().unwrap_or(0),
        };
        let attends = config
            .down_block_types
            .get(level)
            .is_some_and(|kind| kind.starts_with("Cross"));
        let blocks = if attends { blocks as u128 } else { 0 };
        // Down, and once more up.
        let stages = 2 * config.layers_per_block as u128 + 1;
        let of_stage = match checkpointing {
            true => 1,
            false => u128::from(RESNET) + u128::from(BLOCK) * blocks,
        };
        u128::from(F32) * values * stages * of_stage
    });
    u64::try_from(layers.sum::<u128>()).unwrap_or(u64::MAX)
}

/// Values of all tensors of a network.
fn count(part: &Part) -> Result<u64> {
    let source = part.source()?;
    let sizes = source
        .names()
        .into_iter()
        .filter_map(|name| source.shape(&name));
    Ok(sizes
        .map(|shape| shape.iter().product::<usize>() as u64)
        .sum())
}

/// Values of the adapters that would be trained.
fn adapter_values(checkpoint: &Checkpoint, options: &Options) -> Result<u64> {
    let train = &options.train;
    let source = checkpoint.unet.source()?;
    let adapters = diffaug_nn::params::Adapters {
        rank: train.rank,
        alpha: 1.0,
        targets: train.targets.clone(),
    };
    let values = source.names().into_iter().filter_map(|name| {
        let layer = name.strip_suffix(".weight")?;
        let shape = source.shape(&name)?;
        let (outputs, inputs) = (shape.first()?, shape[1..].iter().product::<usize>());
        adapters
            .fits(layer)
            .then(|| train.rank * (outputs + inputs))
    });
    Ok(values.sum::<usize>() as u64)
}
