//! What training leaves: folders in the layout of diffusers.

use crate::{loader::OWN, options::Options};
use candle_core::Tensor;
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::{
    diffusion::UNetConfig,
    weights::{self, Source},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

/// What PyTorch's readers want to see in a file.
pub const METADATA: &[(&str, &str)] = &[("format", "pt")];

/// Writes `value` with line breaks; folders are made.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).or_error(ErrorKind::Data, || {
            format!("cannot make the folder `{}`", folder.display())
        })?;
    }
    let text = serde_json::to_string_pretty(value)? + "\n";
    weights::write_atomically(path, text.as_bytes())
}

/// Reads a JSON file.
///
/// # Errors
/// When it is missing or broken.
pub fn read_json(path: &Path) -> Result<Value> {
    let read = || -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    read().or_error(ErrorKind::Model, || {
        format!("cannot read `{}`", path.display())
    })
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
        fs::create_dir_all(folder)?;
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
        "resolution": if side > 0 { Some(side) } else { None },
    });
    write_json(&out.join(OWN), &own)
}

/// Writes `model_index.json`, last of all: with it the folder is a model.
///
/// # Errors
/// When the file cannot be written.
pub fn index(out: &Path, xl: bool, force_zeros: bool, scheduler: &Value) -> Result<()> {
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
        "vae": ["diffusers", "AutoencoderKL"],
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

/// The tensors of an autoencoder whose latents are shifted and scaled to mean 0 and variance 1 of
/// each channel.
///
/// diffusers can keep means and deviations in the configuration, too, but its inpainting pipelines
/// mind them when they decode and not when they encode. The 1×1 convolutions between encoder,
/// latents and decoder can do it for every pipeline.
///
/// # Errors
/// When there are no such convolutions.
pub fn normalised(
    tensors: BTreeMap<String, Tensor>,
    means: &[f64],
    deviations: &[f64],
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = tensors;
    let channels = means.len();
    let row = |values: Vec<f64>| -> Result<Tensor> {
        let count = values.len();
        let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        let device = tensors.values().next().map(Tensor::device);
        let device = device.ok_or_else(|| Error::internal("an autoencoder without tensors"))?;
        Ok(Tensor::from_vec(values, count, device)?)
    };
    // Means, then logarithms of variances.
    let twice = |of: &dyn Fn(usize) -> f64, rest: &dyn Fn(usize) -> f64| {
        (0..channels)
            .map(of)
            .chain((0..channels).map(rest))
            .collect::<Vec<_>>()
    };
    let scale = row(twice(&|c| 1.0 / deviations[c], &|_| 1.0))?;
    let shift = row(twice(&|c| -means[c] / deviations[c], &|c| {
        -2.0 * deviations[c].ln()
    }))?;
    let (mean, deviation) = (row(means.to_vec())?, row(deviations.to_vec())?);
    let find = |name: &str| {
        let tensor = tensors.get(name);
        tensor.ok_or_else(|| Error::internal(format!("the autoencoder has no `{name}`")))
    };
    let weight = find("quant_conv.weight")?.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
    let bias = ((find("quant_conv.bias")? * &scale)? + shift)?;
    let old = find("post_quant_conv.weight")?;
    let moved = old
        .flatten_from(1)?
        .broadcast_mul(&mean.reshape((1, ()))?)?
        .sum(1)?;
    let post_bias = (find("post_quant_conv.bias")? + moved)?;
    let post = old.broadcast_mul(&deviation.reshape((1, (), 1, 1))?)?;
    for (name, tensor) in [
        ("quant_conv.weight", weight),
        ("quant_conv.bias", bias),
        ("post_quant_conv.weight", post),
        ("post_quant_conv.bias", post_bias),
    ] {
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::training::architecture::Architecture;
    use candle_core::Device;
    use diffaug_nn::{
        diffusion::Autoencoder,
        params::Params,
        testing::{close, random},
    };

    #[test]
    fn latents_are_shifted_and_scaled_and_images_stay() {
        let architecture = Architecture {
            autoencoder: vec![8, 8],
            ..Architecture::default()
        };
        let config = architecture.autoencoder(16);
        let mut params = Params::new(&Device::Cpu, 1);
        let plain = Autoencoder::new(params.root(), &config).unwrap();
        let tensors: BTreeMap<String, Tensor> = params
            .all()
            .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()))
            .collect();
        let (means, deviations) = ([0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 3.0]);
        let scaled = normalised(tensors, &means, &deviations).unwrap();
        let mut frozen = Params::frozen(&Device::Cpu, scaled.into_iter().collect());
        let scaled = Autoencoder::new(frozen.root(), &config).unwrap();
        let x = random("x", &[1, 3, 16, 16]);
        let (a, b) = (plain.encode(&x).unwrap(), scaled.encode(&x).unwrap());
        let row = |values: [f64; 4]| {
            let values = values.map(|v| v as f32);
            Tensor::new(&values, &Device::Cpu)
                .unwrap()
                .reshape((1, 4, 1, 1))
                .unwrap()
        };
        let expected = a.mean.broadcast_sub(&row(means)).unwrap();
        let expected = expected.broadcast_div(&row(deviations)).unwrap();
        close(&b.mean, &expected, 1e-5);
        let narrower = a
            .logvar
            .broadcast_sub(&(row(deviations).log().unwrap() * 2.0).unwrap());
        close(&b.logvar, &narrower.unwrap(), 1e-5);
        close(
            &scaled.decode(&b.mean).unwrap(),
            &plain.decode(&a.mean).unwrap(),
            1e-5,
        );
    }
}
