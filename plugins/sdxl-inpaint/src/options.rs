//! The options of `sdxl-inpaint`.

use crate::{lora::LoraFile, picture, training::Training};
use diffaug::{Error, Result};
use diffaug_nn::{
    DType,
    diffusion::scheduler::{SamplerName, SchedulerConfig},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt::Display, path::PathBuf};

/// LoRAs that are added to one model at most.
const MOST_LORAS: usize = 64;

/// Which model paints, how it paints, and how it is trained.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The model: a folder in the layout of diffusers (what training leaves is one), a single
    /// `.safetensors` file in the original layout, or a hub id such as
    /// `diffusers/stable-diffusion-xl-1.0-inpainting-0.1`, with `@` and a revision behind it.
    pub weights: Option<String>,
    /// The model that `fit` fine-tunes, given as for `weights`; with `weights` nothing is trained.
    pub base: Option<String>,
    /// Which variant of the files to take, such as `fp16`; without it the plain ones, or the
    /// variant that is there.
    pub variant: Option<String>,
    /// Folder of the tokenizer, for single files, which have none.
    pub tokenizer: Option<PathBuf>,
    /// Another autoencoder: a folder or hub id of one of the same latent space, or `taesdxl`, the
    /// tiny one for quick previews.
    pub vae: Option<String>,
    /// LoRAs that are added to the weights.
    pub lora: Vec<LoraFile>,
    /// The type in which the denoising network and the text encoders keep their weights. On a
    /// processor sums are formed in f32 whatever it is.
    pub dtype: Type,
    /// The sampler; without it the one that the model names.
    pub scheduler: Option<SamplerName>,
    /// How the sampler's steps are spread, in place of what the model says.
    pub timestep_spacing: Option<Spacing>,
    /// What the network predicts, in place of what the model says.
    pub prediction_type: Option<Target>,
    /// Whether the noise schedule is scaled so that its last step is pure noise, in place of what
    /// the model says.
    pub rescale_betas_zero_snr: Option<bool>,
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance scale (Eq. 8): how far the text pulls. At 1 or below the negative text is not used
    /// and a step costs half; at 0 no text is used at all, so that the model paints without guidance.
    pub guidance: f64,
    /// Brings the contrast that guidance exaggerates back, 0 (off) to 1.
    pub guidance_rescale: f64,
    /// Noise that `ddim` adds at each step, 0 (none) to 1.
    pub eta: f64,
    /// How much of the source under the mask is forgotten, 0 to 1; at 1 painting begins with noise alone, at
    /// 0 the source only passes through the autoencoder, which tells its loss from the network's. Without
    /// it 0.9999, and one step at least.
    pub strength: Option<f64>,
    /// What the model sees: the whole image, or a square window around the mask. Without it what
    /// the model was trained for here, or the whole image.
    pub window: Option<Window>,
    /// Share of the lesion's longer side that a window shows on every side of it; without it what
    /// the model was trained for here, or 0.35.
    pub margin: Option<f64>,
    /// Least side of a window in pixels of the image, for small lesions; without it what the model was
    /// trained for here, or half of the side at which is painted.
    pub min_window: Option<u32>,
    /// Longer side, in pixels, at which is painted. Without it: with `window = "full"` the image's
    /// own, with `"mask"` the model's.
    pub resolution: Option<u32>,
    /// What is taken from the painting: all of it (`none`), only what is under the mask (`hard`),
    /// that and a soft seam around it (`feather`), or that with its light matched to what lies
    /// beyond the seam (`poisson`).
    pub composite: Composite,
    /// Width of that seam in pixels, 0 to 64.
    pub feather: u32,
    /// Size (height, width) that SDXL is told the image once had; without it the painted one's.
    pub original_size: Option<[u32; 2]>,
    /// Corner (top, left) that SDXL is told the image was cut out at.
    pub crop_top_left: [u32; 2],
    /// Size (height, width) that SDXL is told is wanted; without it the painted one's.
    pub target_size: Option<[u32; 2]>,
    /// Images that are painted at once.
    pub batch: usize,
    /// Where noise comes from. `torch-cpu` and `torch-cuda` make the images that diffusers makes
    /// with a generator of that device and the same seed.
    pub rng: Noise,
    /// How `fit` trains.
    pub train: Training,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            weights: None,
            base: None,
            variant: None,
            tokenizer: None,
            vae: None,
            lora: Vec::new(),
            dtype: Type::F32,
            scheduler: None,
            timestep_spacing: None,
            prediction_type: None,
            rescale_betas_zero_snr: None,
            steps: 50,
            guidance: 7.5,
            guidance_rescale: 0.0,
            eta: 0.0,
            strength: None,
            window: None,
            margin: None,
            min_window: None,
            resolution: None,
            composite: Composite::Feather,
            feather: 3,
            original_size: None,
            crop_top_left: [0, 0],
            target_size: None,
            batch: 4,
            rng: Noise::Native,
            train: Training::default(),
        }
    }
}

/// The type of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits with more precision and less range.
    F16,
}

impl Type {
    /// The type for tensors.
    pub fn dtype(self) -> DType {
        match self {
            Type::F32 => DType::F32,
            Type::Bf16 => DType::BF16,
            Type::F16 => DType::F16,
        }
    }
}

/// How a sampler's steps are spread over the timesteps of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Evenly, both ends included.
    Linspace,
    /// Evenly from the lowest on.
    Leading,
    /// Evenly from the highest on: what a schedule with zero terminal SNR needs.
    Trailing,
}

/// What a network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The noise.
    Epsilon,
    /// The velocity.
    VPrediction,
}

/// What the model sees of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// All of it.
    Full,
    /// A square around the mask, which is put back where it was.
    Mask,
}

/// What is taken from the painting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Composite {
    /// All of it; pixels outside the mask change by what the autoencoder loses.
    None,
    /// What is under the mask.
    Hard,
    /// That, and around it a seam in which the painting fades.
    Feather,
    /// What is under the mask and in the seam, with its colours moved so that they meet those of
    /// the image beyond (Pérez, Gangnet, Blake 2003).
    Poisson,
}

/// Where noise comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// DiffAug's own streams: 53 bits of the job's seed count, and nothing but the seed.
    Native,
    /// `torch.Generator("cpu").manual_seed(seed)`.
    TorchCpu,
    /// `torch.Generator("cuda").manual_seed(seed)`, as on an A100.
    TorchCuda,
}

impl Options {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the option and what it may be.
    pub fn check(&self) -> Result<()> {
        within("steps", self.steps, 1..=1000)?;
        within("guidance", self.guidance, 0.0..=100.0)?;
        within("guidance_rescale", self.guidance_rescale, 0.0..=1.0)?;
        within("eta", self.eta, 0.0..=1.0)?;
        if let Some(strength) = self.strength {
            self.check_strength(strength)?;
        }
        within("margin", self.margin.unwrap_or(0.0), 0.0..=10.0)?;
        if let Some(side) = self.resolution {
            within("resolution", side, 16..=4096)?;
        }
        if let Some(side) = self.min_window {
            within("min_window", side, 8..=4096)?;
        }
        within("feather", self.feather, 0..=64)?;
        within("batch", self.batch, 1..=1024)?;
        if self.lora.len() > MOST_LORAS {
            return refuse(
                "lora",
                self.lora.len(),
                &format!("at most {MOST_LORAS} files"),
            );
        }
        for (index, lora) in self.lora.iter().enumerate() {
            within(&format!("lora[{index}].scale"), lora.scale, -1e6..=1e6)?;
        }
        let sizes = [
            ("original_size", self.original_size.unwrap_or_default()),
            ("crop_top_left", self.crop_top_left),
            ("target_size", self.target_size.unwrap_or_default()),
        ];
        for (field, sides) in sizes {
            for side in sides {
                within(field, side, 0..=1 << 20)?;
            }
        }
        self.train.check()
    }

    fn check_strength(&self, strength: f64) -> Result<()> {
        within("strength", strength, 0.0..=1.0)?;
        match strength > 0.0 && self.steps as f64 * strength < 1.0 {
            false => Ok(()),
            true => refuse(
                "strength",
                strength,
                &format!(
                    "0 or at least 1 / `steps` = {:.4}, so that a step is left",
                    1.0 / self.steps as f64
                ),
            ),
        }
    }

    /// How much of the source is forgotten.
    pub fn strength(&self) -> f64 {
        self.strength.unwrap_or(0.9999)
    }

    /// What the model sees, where neither options nor model say it.
    pub fn window(&self) -> Window {
        self.window.unwrap_or(Window::Full)
    }

    /// The least side of a window at `resolution`, where the model does not say it.
    pub fn min_window(&self, resolution: Option<u32>) -> u32 {
        self.min_window
            .unwrap_or_else(|| picture::smallest_window(resolution))
    }

    /// The margin of a window, where neither options nor model say it.
    pub fn margin(&self) -> f64 {
        self.margin.unwrap_or(0.35)
    }
}

impl Options {
    /// A model's sampler with what the options say otherwise.
    pub fn scheduler(&self, mut config: SchedulerConfig) -> SchedulerConfig {
        if let Some(name) = self.scheduler {
            config = config.with_sampler(name);
        }
        let word = |spacing| match spacing {
            Spacing::Linspace => "linspace",
            Spacing::Leading => "leading",
            Spacing::Trailing => "trailing",
        };
        if let Some(spacing) = self.timestep_spacing {
            config.timestep_spacing = Some(word(spacing).to_owned());
        }
        if let Some(target) = self.prediction_type {
            let word = match target {
                Target::Epsilon => "epsilon",
                Target::VPrediction => "v_prediction",
            };
            config.prediction_type = Some(word.to_owned());
        }
        if let Some(on) = self.rescale_betas_zero_snr {
            config.rescale_betas_zero_snr = Some(on);
        }
        if self.eta > 0.0 {
            config.eta = Some(self.eta);
        }
        config
    }
}

/// Checks that `value` lies in `range`.
pub(crate) fn within<T: PartialOrd + Display>(
    field: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<()> {
    match range.contains(&value) {
        true => Ok(()),
        false => refuse(
            field,
            value,
            &format!("{} to {}", range.start(), range.end()),
        ),
    }
}

/// An error that names an option and what it may be.
pub(crate) fn refuse<T>(field: &str, value: impl Display, expected: &str) -> Result<T> {
    Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(field))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_fine() {
        Options::default().check().unwrap();
    }

    #[test]
    fn a_wrong_value_names_its_option() {
        let message = |json: &str| {
            let options: Options = serde_json::from_str(json).unwrap();
            let error = options.check().unwrap_err();
            (error.field.to_string(), error.to_string())
        };
        let (field, text) = message(r#"{"steps": 0}"#);
        assert_eq!(
            (field.as_str(), text.as_str()),
            ("steps", "`steps` is 0, expected 1 to 1000")
        );
        assert_eq!(message(r#"{"strength": -0.1}"#).0, "strength");
        let nothing: Options = serde_json::from_str(r#"{"strength": 0.0}"#).unwrap();
        nothing.check().unwrap();
        assert_eq!(message(r#"{"strength": 0.9999, "steps": 1}"#).0, "strength");
        let one: Options = serde_json::from_str(r#"{"steps": 1}"#).unwrap();
        one.check().unwrap();
        assert_eq!(message(r#"{"resolution": 2147483648}"#).0, "resolution");
        assert_eq!(message(r#"{"batch": 1000000000}"#).0, "batch");
        let lora = r#"{"lora": [{"path": "x", "scale": 1e300}]}"#;
        assert_eq!(message(lora).0, "lora[0].scale");
        assert_eq!(
            message(r#"{"target_size": [64, 4294967295]}"#).0,
            "target_size"
        );
        for (field, value) in [
            ("rank", "1000000000"),
            ("steps", "1000000000000"),
            ("views", "4000000000"),
            ("batch", "100000"),
            ("accumulate", "100000"),
            ("alpha", "1e300"),
        ] {
            let json = format!(r#"{{"train": {{"{field}": {value}}}}}"#);
            assert_eq!(message(&json).0, format!("train.{field}"));
        }
        for (field, value) in [
            ("unet_layers", "1000000000"),
            ("transformers", "1000000000"),
            ("text_layers", "4096"),
            ("unet", "[64, 100000]"),
            ("unet", "[8192, 8192]"),
            ("autoencoder", "[32, 4294967296]"),
            ("latent", "100000"),
            ("text", "1048576"),
        ] {
            let json = format!(r#"{{"train": {{"architecture": {{"{field}": {value}}}}}}}"#);
            assert_eq!(message(&json).0, format!("train.architecture.{field}"));
        }
        let (_, text) = message(r#"{"strength": 0.01, "steps": 10}"#);
        assert!(
            text.contains("0 or at least 1 / `steps` = 0.1000"),
            "{text}"
        );
        assert_eq!(message(r#"{"feather": 65}"#).0, "feather");
        assert_eq!(message(r#"{"resolution": 8}"#).0, "resolution");
    }
}
