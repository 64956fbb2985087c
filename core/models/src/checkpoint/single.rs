//! One file of everything, in the layout that Stable Diffusion was published in.

use super::{Checkpoint, Component, Kind, OpenOptions, Weights, families::Family, folder};
use diffaug::{Error, Result};
use diffaug_nn::weights::{Files, Source};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const CLIP_ONE: &str = "cond_stage_model.transformer.";
const OPEN_CLIP_TWO: &str = "cond_stage_model.model.";
const CLIP_XL: &str = "conditioner.embedders.0.transformer.";
const OPEN_CLIP_XL: &str = "conditioner.embedders.1.model.";
const OPEN_CLIP_REFINER: &str = "conditioner.embedders.0.model.";

/// The architectures of the networks in a file.
pub(super) struct Configs {
    pub family: Family,
    pub unet: Value,
    pub vae: Value,
    pub text_encoder: Value,
    pub text_encoder_2: Option<Value>,
    pub scheduler: Value,
}

pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let files = Files::open(&[path])?;
    let configs = recognise(&files)
        .map_err(|error| error.context(format!("`{}` cannot be used", path.display())))?;
    assemble(path, configs, options)
}

/// The pipeline in the file `path` that has these architectures.
pub(super) fn assemble(path: &Path, configs: Configs, options: &OpenOptions) -> Result<Checkpoint> {
    let family = configs.family;
    let part = |config: Value, prefix: &'static str, kind: Kind| Component {
        config,
        variant: None,
        weights: Weights::Part {
            file: path.to_owned(),
            prefix,
            kind,
        },
    };
    let layers = |config: &Value| config["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    let open_clip = |config: &Value, projection| Kind::OpenClip {
        layers: layers(config),
        projection,
    };
    let (prefix, kind) = match family {
        Family::One => (CLIP_ONE, Kind::Clip { projection: false }),
        Family::Xl => (CLIP_XL, Kind::Clip { projection: false }),
        Family::Two => (OPEN_CLIP_TWO, open_clip(&configs.text_encoder, false)),
    };
    let (tokenizer, tokenizer_2) = tokenizers(path, family, options)?;
    Ok(Checkpoint {
        xl: family == Family::Xl,
        force_zeros_for_empty_prompt: family == Family::Xl,
        scheduler: configs.scheduler,
        tokenizer,
        tokenizer_2,
        text_encoder: part(configs.text_encoder, prefix, kind),
        text_encoder_2: configs.text_encoder_2.map(|config| {
            let kind = open_clip(&config, true);
            part(config, OPEN_CLIP_XL, kind)
        }),
        unet: part(configs.unet, UNET, Kind::Unet),
        vae: part(configs.vae, VAE, Kind::Autoencoder),
    })
}

/// Which model it is, by its names and shapes.
pub(super) fn recognise(files: &Files) -> Result<Configs> {
    let names = files.names();
    let any = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    if !any(UNET) {
        return Err(stranger(&any));
    }
    if any("edm_mean") {
        return Err(Error::unsupported(
            "it is trained by EDM's scheme (Playground 2.5)",
        ));
    }
    let family = match () {
        () if any(OPEN_CLIP_XL) => Family::Xl,
        () if any(OPEN_CLIP_REFINER) => {
            return Err(Error::unsupported(
                "it is SDXL's refiner, not a model that paints",
            ));
        }
        () if any(OPEN_CLIP_TWO) => Family::Two,
        () if any(CLIP_ONE) => Family::One,
        () => return Err(Error::model("it has no text encoder that is known")),
    };
    if !any(VAE) {
        return Err(Error::model(format!(
            "it has no autoencoder: no tensor begins with `{VAE}`"
        )));
    }
    let in_channels = dim(files, "input_blocks.0.0.weight", 1)?;
    if in_channels != 4 && in_channels != 9 {
        return Err(Error::unsupported(format!(
            "its UNet takes {in_channels} channels, expected 9 (inpainting) or 4"
        )));
    }
    let first = names
        .iter()
        .find(|name| name.ends_with(".attn2.to_k.weight"));
    let key = first
        .and_then(|name| name.strip_prefix(UNET))
        .unwrap_or_default();
    let context = dim(files, key, 1)?;
    if context != family.context() {
        return Err(Error::unsupported(format!(
            "its text encoders are those of {}, but its UNet takes texts of width {context}, expected {}",
            family.name(),
            family.context()
        )));
    }
    Ok(Configs {
        family,
        unet: family.unet(in_channels),
        vae: family.vae(),
        text_encoder: family.text_encoder(),
        text_encoder_2: family.text_encoder_2(),
        scheduler: scheduler(family, in_channels, &any),
    })
}

/// The scheduler of `family`; some files say by tensors of one number that they predict v, or that
/// their last step is noise alone.
fn scheduler(family: Family, in_channels: usize, any: &impl Fn(&str) -> bool) -> Value {
    let mut config = family.scheduler(in_channels);
    if any("v_pred") {
        config["prediction_type"] = json!("v_prediction");
    }
    if any("ztsnr") {
        config["rescale_betas_zero_snr"] = json!(true);
    }
    if family == Family::Two && in_channels == 4 {
        tracing::info!("a Stable Diffusion 2.x file does not say what it predicts; v is assumed");
    }
    config
}

/// Why a file without a UNet in the original layout cannot be used.
fn stranger(any: &impl Fn(&str) -> bool) -> Error {
    let lora = ["lora_unet", "unet.", "lora_te"]
        .iter()
        .any(|prefix| any(prefix));
    let alone = any("down_blocks.") || any("text_model.") || any("decoder.");
    Error::model(if lora {
        "it is a LoRA, not a whole model".to_owned()
    } else if alone {
        "it holds one network in the layout of diffusers: give the folder of the whole pipeline"
            .to_owned()
    } else {
        format!("no tensor begins with `{UNET}`: it is no Stable Diffusion checkpoint")
    })
}

/// Dimension `index` of a tensor of the UNet.
fn dim(files: &Files, name: &str, index: usize) -> Result<usize> {
    let shape = files.shape(&format!("{UNET}{name}")).unwrap_or_default();
    let found = shape.get(index).copied();
    found.ok_or_else(|| Error::model(format!("its UNet lacks `{name}`")))
}

/// The folders of the tokenizers, which a file does not bring.
fn tokenizers(
    path: &Path,
    family: Family,
    options: &OpenOptions,
) -> Result<(PathBuf, Option<PathBuf>)> {
    let find = || {
        let Some(folder) = &options.tokenizer else {
            return Err(Error::config(format!(
                "`{}` brings no tokenizer: name the folder of one, or of a pipeline that has it",
                path.display()
            )));
        };
        if family == Family::Xl {
            let second = folder::tokenizer(folder, "tokenizer_2")?;
            return Ok((folder::tokenizer(folder, "tokenizer")?, Some(second)));
        }
        if folder::is_tokenizer(folder) {
            return Ok((folder.clone(), None));
        }
        Ok((folder::tokenizer(folder, "tokenizer")?, None))
    };
    find().map_err(|error| error.at("tokenizer"))
}
