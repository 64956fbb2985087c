//! What training leaves: folders in the layout of diffusers.

use crate::{loader::OWN, options::Options};
use diffaug::Result;
use diffaug_models::unshuffle;
use diffaug_nn::{
    diffusion::UNetConfig,
    weights::{self, Source, input},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

/// What PyTorch's readers want to see in a file.
pub const METADATA: &[(&str, &str)] = &[("format", "pt")];

/// Writes `value` with line breaks; folders are made.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        weights::make_folder(folder)?;
    }
    let text = serde_json::to_string_pretty(value)? + "\n";
    weights::write_atomically(path, text.as_bytes())
}

/// Reads a JSON file.
///
/// # Errors
/// When it is missing or broken.
pub fn read_json(path: &Path) -> Result<Value> {
    input::json_file(path, input::CONFIG_BYTES)
}

/// Writes the tensors of `source` whose names begin with `prefix` and a dot, without them.
///
/// # Errors
/// When the file cannot be written.
pub fn part(source: &mut impl Source, prefix: &str, path: &Path) -> Result<()> {
    let prefix = format!("{prefix}.");
    let mut tensors = Vec::new();
    for name in source.names() {
        let Some(short) = name.strip_prefix(&prefix) else {
            continue;
        };
        let short = short.to_owned();
        if let Some(tensor) = source.take(&name)? {
            tensors.push((short, tensor));
        }
    }
    if let Some(folder) = path.parent() {
        weights::make_folder(folder)?;
    }
    weights::save_tensors(path, tensors, METADATA)
}

/// A configuration with the name of its class in diffusers.
///
/// # Errors
/// Never for a configuration.
pub fn named(config: &impl Serialize, class: &str) -> Result<Value> {
    let mut value = serde_json::to_value(config)?;
    value["_class_name"] = json!(class);
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    Ok(value)
}

/// The denoising network's configuration for latents of that side.
pub fn unet_config(config: &UNetConfig, side: usize) -> Value {
    let mut value = named(config, "UNet2DConditionModel").unwrap_or_default();
    value["sample_size"] = json!(side);
    value
}

/// Writes how a model wants to be used: `side` is that of the pictures it was trained on, 0 where
/// that is their own.
///
/// # Errors
/// When the file cannot be written.
pub fn own(out: &Path, options: &Options, side: usize) -> Result<()> {
    let own = json!({
        "window": options.window(),
        "margin": options.margin(),
        "min_window": options.min_window((side > 0).then_some(side as u32)),
        "resolution": if side > 0 { Some(side) } else { None },
    });
    write_json(&out.join(OWN), &own)
}

/// The library and class of an autoencoder.
pub const AUTOENCODER: [&str; 2] = ["diffusers", "AutoencoderKL"];
/// What stands there where blocks of pixels take its place.
pub const UNSHUFFLE: [&str; 2] = ["diffaug", unshuffle::CLASS];

/// Writes `model_index.json`, last of all: with it the folder is a model. `xl` and `force_zeros` are those
/// of the checkpoint, `vae` is the library and class of what makes latents.
///
/// # Errors
/// When the file cannot be written.
pub fn index(
    out: &Path,
    (xl, force_zeros): (bool, bool),
    vae: [&str; 2],
    scheduler: &Value,
) -> Result<()> {
    let mut index = json!({
        "_class_name": "StableDiffusionInpaintPipeline",
        // Readers ask for one; nothing here needs a later version than this.
        "_diffusers_version": "0.27.0",
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": vae,
    });
    match xl {
        true => {
            index["_class_name"] = json!("StableDiffusionXLInpaintPipeline");
            index["force_zeros_for_empty_prompt"] = json!(force_zeros);
            index["requires_aesthetics_score"] = json!(false);
            index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
            index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
        }
        false => {
            index["requires_safety_checker"] = json!(false);
            index["safety_checker"] = json!([null, null]);
        }
    }
    write_json(&out.join("model_index.json"), &index)
}
