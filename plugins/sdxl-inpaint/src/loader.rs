//! From what `weights` names to a model that can paint.

use crate::{
    lora::{LoraFile, Loras, Part},
    options::{Options, Window},
    pipeline::Pipeline,
    text::{ClipConfig, ClipText, TextEncoder, TextEncoders, Tokenizer},
    training::{BASE, TRAINING},
};
use candle_core::{DType, Device};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_models::{
    Vae,
    checkpoint::{self, Checkpoint, Component},
    hub, packing, pickled,
};
use diffaug_nn::{
    diffusion::{
        UNet, UNetConfig,
        original::Names,
        scheduler::{Sampler, SchedulerConfig},
    },
    ops,
    params::Params,
    weights::{Cast, Source, input},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The file of an adapter that was trained here.
pub const ADAPTER: &str = "pytorch_lora_weights.safetensors";
/// How a model that was trained here wants to be used.
pub const OWN: &str = "diffaug.json";

/// A model and how it wants to be used.
pub struct Model {
    /// The model.
    pub pipeline: Pipeline,
    /// What it was trained for, if that was here.
    pub own: Own,
    /// The side of the pictures that its configuration speaks of.
    pub side: Option<u32>,
}

/// How a model that was trained here wants to be used.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Own {
    /// What it sees.
    #[serde(default)]
    pub window: Option<Window>,
    /// The margin of its windows.
    #[serde(default)]
    pub margin: Option<f64>,
    /// Their size.
    #[serde(default)]
    pub resolution: Option<u32>,
    /// Their least side in pixels of the image.
    #[serde(default)]
    pub min_window: Option<u32>,
}

impl Own {
    /// Checks that the numbers are such as options may be.
    fn check(&self) -> Result<()> {
        let within =
            |what: &str, value: f64, low: f64, high: f64| match (low..=high).contains(&value) {
                true => Ok(()),
                false => Err(Error::model(format!(
                    "`{what}` in `{OWN}` is {value}, expected {low} to {high}"
                ))),
            };
        within("margin", self.margin.unwrap_or(0.0), 0.0, 10.0)?;
        within(
            "min_window",
            f64::from(self.min_window.unwrap_or(16)),
            1.0,
            4096.0,
        )?;
        within(
            "resolution",
            f64::from(self.resolution.unwrap_or(16)),
            16.0,
            4096.0,
        )
    }
}

/// What a name in `weights` or `base` stands for.
pub struct Found {
    /// The model on disk.
    pub checkpoint: Checkpoint,
    /// Adapters to be added: those that were trained here, then those of the options.
    pub loras: Vec<LoraFile>,
    /// How it wants to be used.
    pub own: Own,
}

/// What an adapter that was trained here says of the model that it belongs to.
#[derive(Deserialize)]
struct Base {
    base: String,
    #[serde(default)]
    variant: Option<String>,
}

/// Finds the model that `weights` names, from the hub if need be.
///
/// # Errors
/// Naming what is missing or of another kind; the errors are about the option `field`.
pub fn find(weights: &str, field: &str, options: &Options) -> Result<Found> {
    let find = || -> Result<Found> {
        let path = hub::locate(weights, &opening(options, None))?;
        let mut loras = Vec::new();
        let mut own = Own::default();
        if path.join(OWN).exists() {
            own = parse(&checkpoint::read_json(&path.join(OWN))?, OWN)?;
            own.check()?;
        }
        let (mut path, mut variant) = (path, options.variant.clone());
        if path.join(BASE).exists() {
            let base: Base = parse(&checkpoint::read_json(&path.join(BASE))?, BASE)?;
            loras.push(LoraFile {
                path: path.join(ADAPTER),
                scale: 1.0,
            });
            variant = variant.or(base.variant);
            path = hub::locate(&base.base, &opening(options, variant.as_deref()))?;
        }
        loras.extend(options.lora.iter().cloned());
        let checkpoint = Checkpoint::open(&path, &opening(options, variant.as_deref()))?;
        Ok(Found {
            checkpoint,
            loras,
            own,
        })
    };
    find().map_err(|error| match error.field.is_empty() {
        true => error.at(field),
        false => error,
    })
}

/// How a checkpoint is opened; `variant` is that of the options unless given.
fn opening(options: &Options, variant: Option<&str>) -> checkpoint::OpenOptions {
    checkpoint::OpenOptions {
        variant: variant.map(str::to_owned).or(options.variant.clone()),
        tokenizer: options.tokenizer.clone(),
    }
}

/// Whether the model that `weights` names is on this machine, so that [`find`] asks no hub.
pub fn is_there(weights: &str, options: &Options) -> bool {
    hub::is_there(weights, &opening(options, None))
}

/// Makes the folder `to`: of weights in PyTorch's files one with safetensors; of the folder that training
/// left one without what only going on with it needs, in half precision.
///
/// # Errors
/// When `from` is neither, or broken, or `to` cannot be written.
pub fn convert(from: &Path, to: &Path) -> Result<String> {
    if pickled::is_pickled(from) {
        return Ok(pickled::convert(from, to)?.to_string());
    }
    if !["model_index.json", BASE]
        .iter()
        .any(|name| from.join(name).is_file())
    {
        return Err(Error::model(format!(
            "`{}` is no folder that training left, with `model_index.json` or `{BASE}` in it, and no file or folder with weights of PyTorch's (`.bin`, `.ckpt`)",
            from.display()
        )));
    }
    Ok(packing::pack(from, to, &[TRAINING])?.to_string())
}

/// Loads the model that `weights` names.
///
/// # Errors
/// Naming what is missing, broken or does not fit.
pub fn load(weights: &str, options: &Options, device: &Device) -> Result<Model> {
    let Found {
        checkpoint,
        loras,
        own,
    } = find(weights, "weights", options)?;
    let mut loras = Loras::open(&loras).map_err(|error| error.at("lora"))?;
    let dtype = options.dtype.dtype();
    let scheduler = options.scheduler(scheduler(&checkpoint)?);
    // Says now what a sampler would say with the first picture.
    Sampler::new(&scheduler, options.steps).map_err(|error| error.at("scheduler"))?;
    let config = unet_config(&checkpoint)?;
    let texts = encoder_parts(&checkpoint, &mut loras)?;
    let source = checkpoint.unet.source()?;
    let source = loras.fuse(Part::Unet, source, Some(&Names::unet(&config)))?;
    loras.finish().map_err(|error| error.at("lora"))?;
    // Bringing weights into order takes most of a start, and one network does not wait for another.
    let (text, others) = rayon::join(
        || encoders(texts, dtype, device),
        || {
            let unet = build(
                "unet",
                device,
                Box::new(Cast::new(source, dtype)),
                |params| UNet::new(params.root(), &config),
            )?;
            Ok::<_, Error>((unet, autoencoder(&checkpoint, options, device)?))
        },
    );
    let (text, (unet, vae)) = (text?, others?);
    check(&config, &vae, &text)?;
    let side = side(&checkpoint, vae.factor())?;
    let pipeline = Pipeline {
        text,
        unet,
        channels: config.in_channels,
        added: config.addition_embed_type.is_some(),
        force_zeros: checkpoint.force_zeros_for_empty_prompt,
        scheduler,
        device: device.clone(),
        dtype: computing(dtype, device),
        vae: vae.into(),
    };
    Ok(Model {
        pipeline,
        own,
        side,
    })
}

/// The side of the pictures that the denoising network's configuration speaks of.
fn side(checkpoint: &Checkpoint, factor: usize) -> Result<Option<u32>> {
    let Some(latent) = checkpoint.unet.config["sample_size"].as_u64() else {
        return Ok(None);
    };
    let side = latent
        .checked_mul(factor as u64)
        .filter(|side| (1..=16_384).contains(side));
    match side {
        Some(side) => Ok(Some(side as u32)),
        None => Err(Error::model(format!(
            "`sample_size` of `unet` is {latent}, which stands for pictures of more than 16384 pixels or none"
        ))),
    }
}

/// The type of activations: on a processor f32, whatever the weights are.
fn computing(dtype: DType, device: &Device) -> DType {
    match ops::has_kernels(device) {
        true => DType::F32,
        false => dtype,
    }
}

/// The sampler that the model names.
///
/// # Errors
/// When its configuration cannot be read.
pub fn scheduler(checkpoint: &Checkpoint) -> Result<SchedulerConfig> {
    SchedulerConfig::parse(&checkpoint.scheduler.to_string())
}

/// The denoising network's configuration.
///
/// # Errors
/// When it takes another number of channels than a pipeline can give it.
pub fn unet_config(checkpoint: &Checkpoint) -> Result<UNetConfig> {
    let config = checkpoint.unet.unet_config()?;
    let (inputs, latent) = (config.in_channels, config.out_channels);
    if inputs != latent && inputs != 2 * latent + 1 {
        return Err(Error::unsupported(format!(
            "the UNet takes {inputs} channels, expected {} (inpainting) or {latent}",
            2 * latent + 1
        )));
    }
    Ok(config)
}

/// A text encoder that is about to be built.
struct EncoderPart {
    part: Part,
    config: ClipConfig,
    source: Box<dyn Source>,
    tokenizer: PathBuf,
}

/// The text encoders, with what `loras` change.
///
/// # Errors
/// Naming what is missing or does not fit.
pub fn text(
    checkpoint: &Checkpoint,
    loras: &mut Loras,
    dtype: DType,
    device: &Device,
) -> Result<TextEncoders> {
    encoders(encoder_parts(checkpoint, loras)?, dtype, device)
}

/// What the text encoders are built of, the first one first.
fn encoder_parts(checkpoint: &Checkpoint, loras: &mut Loras) -> Result<Vec<EncoderPart>> {
    let mut encoder = |component: &Component, tokenizer: &Path, part: Part| -> Result<_> {
        let mut config = component.config.clone();
        if part == Part::TextEncoder2 {
            // Whatever its own file says or leaves out: the second one projects.
            config["architectures"] = json!(["CLIPTextModelWithProjection"]);
        }
        let config: ClipConfig = parse(&config, part.name())?;
        config.check().or_error(ErrorKind::Model, || {
            format!("the configuration of `{part}` cannot be used")
        })?;
        Ok(EncoderPart {
            part,
            config,
            source: Box::new(loras.fuse(part, component.source()?, None)?),
            tokenizer: tokenizer.to_owned(),
        })
    };
    let (first, tokenizer) = (&checkpoint.text_encoder, &checkpoint.tokenizer);
    let mut parts = vec![encoder(first, tokenizer, Part::TextEncoder)?];
    if let (Some(second), Some(tokenizer)) = (&checkpoint.text_encoder_2, &checkpoint.tokenizer_2) {
        parts.push(encoder(second, tokenizer, Part::TextEncoder2)?);
    }
    Ok(parts)
}

fn encoders(parts: Vec<EncoderPart>, dtype: DType, device: &Device) -> Result<TextEncoders> {
    let mut built = Vec::new();
    for part in parts {
        let source: Box<dyn Source> = Box::new(Cast::new(part.source, dtype));
        let clip = build(part.part.name(), device, source, |params| {
            ClipText::new(params.root(), &part.config)
        })?;
        built.push(TextEncoder::new(Tokenizer::open(&part.tokenizer)?, clip)?);
    }
    let mut built = built.into_iter();
    let first = built
        .next()
        .ok_or_else(|| Error::internal("a model without a text encoder"))?;
    TextEncoders::new(first, built.next())
}

/// The autoencoder: the model's own, or what the options name.
///
/// # Errors
/// Naming what is missing or does not fit.
pub fn autoencoder(checkpoint: &Checkpoint, options: &Options, device: &Device) -> Result<Vae> {
    let dtype = options.dtype.dtype();
    match &options.vae {
        None => Vae::of(&checkpoint.vae, dtype, device),
        Some(name) => Vae::open(name, dtype, device).map_err(|error| error.at("vae")),
    }
}

/// Builds a network of all that `source` has.
fn build<T>(
    name: &str,
    device: &Device,
    source: Box<dyn Source>,
    make: impl FnOnce(&mut Params) -> candle_core::Result<T>,
) -> Result<T> {
    let misfit = || format!("the weights of `{name}` do not fit its configuration");
    let mut params = Params::from_source(device, source);
    let net = make(&mut params).or_error(ErrorKind::Model, misfit)?;
    match params.left_over().first() {
        None => Ok(net),
        Some(left) => {
            Err(Error::model(format!("tensor `{left}` is no part of it")).context(misfit()))
        }
    }
}

/// Checks that the parts of a model fit each other.
fn check(config: &UNetConfig, vae: &Vae, text: &TextEncoders) -> Result<()> {
    let width: usize = text.encoders().map(|e| e.clip().config().hidden_size).sum();
    let pairs = [
        (
            "latents of the autoencoder",
            vae.channels(),
            "`out_channels`",
            config.out_channels,
        ),
        (
            "tokens of the text encoders",
            width,
            "`cross_attention_dim`",
            config.cross_attention_dim,
        ),
    ];
    match pairs
        .into_iter()
        .find(|(_, ours, _, wanted)| ours != wanted)
    {
        None => Ok(()),
        Some((what, ours, field, wanted)) => Err(Error::model(format!(
            "{what} have {ours} channels, but {field} of the UNet is {wanted}"
        ))),
    }
}

fn parse<T: DeserializeOwned>(value: &Value, name: &str) -> Result<T> {
    input::typed(value).or_error(ErrorKind::Model, || {
        format!("the configuration of `{name}` cannot be used")
    })
}
