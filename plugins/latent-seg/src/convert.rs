//! Folders of weights made of other things: of checkpoints of the reference (Stable Diffusion
//! Segmentation, latent-diffusion's layout) the running means of the denoising network, its vision
//! encoder and its autoencoder; of a folder that training left a small one for sharing; of other published
//! weights a beginning ([`crate::begin`]).

use crate::{
    begin,
    denoiser::DenoiserConfig,
    description::{Betas, Description, PLUGIN, Vision},
    network::{Network, VAE},
    options::{Options, Preset, VisionInput},
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_models::{Vae, compressor, original, packing};
use diffaug_nn::{
    diffusion::AutoencoderConfig,
    diffusion::scheduler::Prediction,
    fit::{AVERAGED, CONFIG, EVENTS, LAST, LOG, WEIGHTS},
    params::Params,
    weights::{self, Source},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// Side of the images that the published models were trained on.
pub(crate) const SIDE: u32 = 256;

/// What only going on with a training needs.
const TRAINING: [&str; 5] = ["autoencoder", LAST, AVERAGED, LOG, EVENTS];

/// Makes the folder `to` of the checkpoint or folder `from`.
///
/// # Errors
/// When the weights are of another kind, none of them fits, or `to` cannot be written.
pub fn convert(options: &Options, from: &Path, to: &Path) -> Result<String> {
    if from.join("unet").is_dir() {
        return begin::convert(options, from, to);
    }
    if from.is_dir() {
        Description::read(from)?;
        return Ok(packing::pack(from, to, &TRAINING)?.to_string());
    }
    if options.preset() != Preset::SdSeg || !has_vision_encoder(from)? {
        return begin::convert(options, from, to);
    }
    let name = || format!("in `{}`", from.display());
    let mut parts = Parts::read(weights::open(from)?.as_mut()).or_error(ErrorKind::Model, name)?;
    let vision = parts.vision_config().or_error(ErrorKind::Model, name)?;
    let vae = original::config(&parts.vae, SIDE as usize).or_error(ErrorKind::Model, name)?;
    let description = Description {
        plugin: PLUGIN.to_owned(),
        input: options.size.map_or((SIDE, SIDE), |side| (side, side)),
        classes: vec![(1, "target".to_owned())],
        vae: None,
        factor: vae.downsampling(),
        latent: vae.latent_channels,
        scale: parts.scale,
        denoiser: parts
            .denoiser_config(options)
            .or_error(ErrorKind::Model, name)?,
        vision,
        fused: false,
        prediction: Prediction::Epsilon,
        noise: Betas {
            start: options.beta_start,
            end: options.beta_end,
            zero_terminal_snr: false,
        },
    };
    let tensors = parts.tensors(&description)?;
    let autoencoder = original::renamed(parts.vae, &vae)?;
    let frozen = Params::frozen(&Device::Cpu, autoencoder.clone().into_iter().collect());
    check(&description, &tensors, frozen, &vae).or_error(ErrorKind::Model, name)?;
    compressor::save(&to.join(VAE), &vae, &autoencoder)?;
    weights::save_tensors(&to.join(WEIGHTS), tensors, &[])?;
    let config = serde_json::to_string_pretty(&json!({ "model": description }))? + "\n";
    // Last of all: with it the folder is one of weights.
    weights::write_atomically(&to.join(CONFIG), config.as_bytes())?;
    Ok(format!(
        "{} values of the denoising network ({}), scale factor {}",
        description.denoiser.count()?,
        if parts.averaged {
            "running means"
        } else {
            "no running means"
        },
        description.scale
    ))
}

/// Whether a checkpoint is one of the reference: what others have in this place is a text encoder.
fn has_vision_encoder(path: &Path) -> Result<bool> {
    let names = weights::open(path)?.names();
    Ok(names
        .iter()
        .any(|name| name.starts_with("cond_stage_model.encoder.")))
}

/// What the running mean of a tensor of the denoising network is called: names without dots.
pub(crate) fn mean_name(rest: &str) -> String {
    format!("model_ema.diffusion_model{}", rest.replace('.', ""))
}

/// Builds the networks, so that a folder is only written where they fit.
fn check(
    description: &Description,
    tensors: &BTreeMap<String, Tensor>,
    mut frozen: Params,
    vae: &AutoencoderConfig,
) -> Result<()> {
    let net = diffaug_nn::diffusion::Autoencoder::new(frozen.root(), vae)?;
    let left = |params: &Params| match params.left_over().first() {
        None => Ok(()),
        Some(name) => Err(Error::model(format!("tensor `{name}` is no part of it"))),
    };
    left(&frozen)?;
    let own: HashMap<String, Tensor> = tensors.clone().into_iter().collect();
    let params = Params::frozen(&Device::Cpu, own);
    let network = Network::new(description.clone(), params, Vae::full(net, DType::F32))?;
    left(&network.params)
}

/// The tensors of a checkpoint, by part, in its own names.
struct Parts {
    denoiser: HashMap<String, Tensor>,
    vision: HashMap<String, Tensor>,
    vae: HashMap<String, Tensor>,
    scale: f64,
    averaged: bool,
}

impl Parts {
    fn read(source: &mut dyn Source) -> Result<Self> {
        let mut parts = Parts {
            denoiser: HashMap::new(),
            vision: HashMap::new(),
            vae: HashMap::new(),
            scale: 1.0,
            averaged: false,
        };
        for name in source.names() {
            if let Some(rest) = name.strip_prefix("model.diffusion_model.") {
                let mean = mean_name(rest);
                let averaged = source.shape(&mean).is_some();
                parts.averaged |= averaged;
                let name = if averaged { &mean } else { &name };
                insert(source, name, rest, |name, tensor| {
                    parts.denoiser.insert(name, tensor);
                })?;
            } else if let Some(rest) = name.strip_prefix("cond_stage_model.") {
                insert(source, &name, rest, |name, tensor| {
                    parts.vision.insert(name, tensor);
                })?;
            } else if let Some(rest) = name.strip_prefix("first_stage_model.") {
                insert(source, &name, rest, |name, tensor| {
                    parts.vae.insert(name, tensor);
                })?;
            } else if name == "scale_factor"
                && let Some(scale) = source.take(&name)?
            {
                let scale: f64 = scale
                    .to_dtype(DType::F64)?
                    .flatten_all()?
                    .mean_all()?
                    .to_scalar()?;
                if !(1e-12..=1e12).contains(&scale) {
                    return Err(Error::model(format!(
                        "`scale_factor` is {scale}, expected a number above 0"
                    )));
                }
                parts.scale = scale;
            }
        }
        for (prefix, missing) in [
            ("model.diffusion_model.", parts.denoiser.is_empty()),
            ("cond_stage_model.", parts.vision.is_empty()),
            ("first_stage_model.", parts.vae.is_empty()),
        ] {
            if missing {
                return Err(Error::model(format!(
                    "no tensor begins with `{prefix}`: expected a checkpoint of Stable Diffusion Segmentation"
                )));
            }
        }
        Ok(parts)
    }

    fn vision_config(&self) -> Result<Vision> {
        let (channels, layers) = original::levels(&self.vision)?;
        Ok(Vision {
            input: VisionInput::Pixel,
            channels,
            layers,
            attention: self.vision.contains_key("encoder.mid.attn_1.q.weight"),
            features: original::dim(&self.vision, "out.weight", 0)?,
        })
    }

    /// The denoising network, as far as its tensors tell; heads and groups are those of the options.
    fn denoiser_config(&self, options: &Options) -> Result<DenoiserConfig> {
        let of = |name: &str, which: usize| original::dim(&self.denoiser, name, which);
        let width = of("input_blocks.0.0.weight", 0)?;
        let blocks = (0..)
            .take_while(|i| self.has(&format!("output_blocks.{i}.0.in_layers.2.weight")))
            .count();
        // The last block of a level has a second residual block, which doubles the sides.
        let doubles = |i: &usize| {
            let second = |part| self.has(&format!("output_blocks.{i}.{part}.in_layers.2.weight"));
            second(1) || second(2)
        };
        let layers = (0..blocks)
            .find(doubles)
            .unwrap_or(blocks.saturating_sub(1));
        let levels = blocks / (layers + 1).max(1);
        let (mut multipliers, mut attention) = (Vec::new(), Vec::new());
        for level in 0..levels {
            let first = 1 + level * (layers + 1);
            let channels = of(&format!("input_blocks.{first}.0.out_layers.3.weight"), 0)?;
            multipliers.push(channels / width.max(1));
            if self.has(&format!("input_blocks.{first}.1.qkv.weight")) {
                attention.push(1 << level);
            }
        }
        Ok(DenoiserConfig {
            inputs: of("input_blocks.0.0.weight", 1)?,
            outputs: of("out.2.weight", 0)?,
            width,
            multipliers,
            layers,
            heads: options.architecture().heads,
            attention,
            groups: options.architecture().groups,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.denoiser.contains_key(name)
    }

    /// The trained tensors under our names.
    fn tensors(&mut self, description: &Description) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (name, tensor) in std::mem::take(&mut self.denoiser) {
            all.insert(format!("denoiser.{name}"), as_map(&name, tensor)?);
        }
        let mut encoder = HashMap::new();
        for (name, tensor) in std::mem::take(&mut self.vision) {
            match name.strip_prefix("out.") {
                Some(rest) => {
                    all.insert(format!("vision.out.{rest}"), tensor);
                }
                None => {
                    encoder.insert(name, tensor);
                }
            }
        }
        for (name, tensor) in original::renamed(encoder, &description.encoder())? {
            all.insert(format!("vision.{name}"), tensor);
        }
        Ok(all)
    }
}

/// Takes the tensor `name` and hands it on as `rest`, in f32.
fn insert(
    source: &mut dyn Source,
    name: &str,
    rest: &str,
    put: impl FnOnce(String, Tensor),
) -> Result<()> {
    if let Some(tensor) = source.take(name)? {
        put(rest.to_owned(), tensor.to_dtype(DType::F32)?.contiguous()?);
    }
    Ok(())
}

/// Attention's one-dimensional convolutions are linear maps here.
pub(crate) fn as_map(name: &str, tensor: Tensor) -> Result<Tensor> {
    let attention = name.ends_with(".qkv.weight") || name.ends_with(".proj_out.weight");
    match attention && tensor.rank() == 3 {
        true => Ok(tensor.squeeze(2)?),
        false => Ok(tensor),
    }
}
