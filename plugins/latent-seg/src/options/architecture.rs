//! The sizes of the networks, and what they may be.

use super::{VisionInput, refuse, within};
use diffaug::Result;
use diffaug_nn::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The networks. Defaults are those of the published models.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Channels of the denoising network's first resolution.
    pub width: usize,
    /// What `width` is multiplied by at each resolution; every one but the first halves the sides.
    pub multipliers: Vec<usize>,
    /// Residual blocks at each resolution.
    pub layers: usize,
    /// Heads of an attention.
    pub heads: usize,
    /// How often smaller than the latent a map with attention is.
    pub attention: Vec<usize>,
    /// Groups of the denoising network's normalisations.
    pub groups: usize,
    /// Channels of the vision encoder at each resolution; without it those of Stable Diffusion's
    /// autoencoder for pixels, 128 for latents, and fewer where the preset is small. Pixels need as many resolutions as bring them to the
    /// latent's size, latents one.
    pub vision: Option<Vec<usize>>,
    /// Residual blocks of the vision encoder at each resolution.
    pub vision_layers: usize,
    /// Whether the vision encoder has attention at its lowest resolution.
    pub vision_attention: bool,
    /// Channels that the vision encoder answers with (d' of Eq. 9).
    pub features: usize,
    /// Channels of the small autoencoder at each resolution, where `vae` names none; every one but
    /// the first halves the sides.
    pub autoencoder: Vec<usize>,
    /// Residual blocks of the small autoencoder at each resolution.
    pub autoencoder_layers: usize,
    /// Channels of its latent.
    pub latent: usize,
    /// Share of values that are dropped in the residual blocks when it learns.
    pub dropout: f32,
}

impl Architecture {
    /// A small one: latents of a quarter of the images' sides.
    pub(super) fn tiny() -> Self {
        Architecture {
            width: 32,
            multipliers: vec![1, 2],
            layers: 1,
            heads: 4,
            attention: vec![2],
            groups: 8,
            vision_layers: 1,
            vision_attention: false,
            features: 8,
            autoencoder: vec![16, 24, 32],
            dropout: 0.0,
            ..Architecture::default()
        }
    }
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            width: 192,
            multipliers: vec![1, 2, 2, 4, 4],
            layers: 2,
            heads: 8,
            attention: vec![1, 2, 4, 8],
            groups: 32,
            vision: None,
            vision_layers: 2,
            vision_attention: true,
            features: 4,
            autoencoder: vec![32, 64, 96, 96],
            autoencoder_layers: 1,
            latent: 4,
            dropout: 0.2,
        }
    }
}

impl Architecture {
    /// Checks the sizes of networks whose vision encoder sees `input` and has `vision` channels at each
    /// resolution.
    pub(super) fn check(&self, input: VisionInput, vision: &[usize]) -> Result<()> {
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse(
                "architecture.dropout",
                self.dropout,
                "a number from 0 to below 1",
            );
        }
        for (name, value) in [
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("groups", self.groups),
            ("vision_layers", self.vision_layers),
            ("features", self.features),
            ("autoencoder_layers", self.autoencoder_layers),
            ("latent", self.latent),
        ] {
            within(&format!("architecture.{name}"), value, 1, 4096)?;
        }
        for (name, value) in [
            ("layers", self.layers),
            ("vision_layers", self.vision_layers),
            ("autoencoder_layers", self.autoencoder_layers),
        ] {
            within(&format!("architecture.{name}"), value, 1, limits::LAYERS)?;
        }
        for (name, list) in [
            ("multipliers", self.multipliers.as_slice()),
            ("vision", vision),
            ("autoencoder", self.autoencoder.as_slice()),
        ] {
            let sizes = 1..=if name == "multipliers" {
                64
            } else {
                limits::CHANNELS
            };
            if !(1..=8).contains(&list.len()) || list.iter().any(|n| !sizes.contains(n)) {
                let field = format!("architecture.{name}");
                let expected = format!("one to eight numbers from 1 to {}", sizes.end());
                return refuse(&field, format!("{list:?}"), &expected);
            }
        }
        let widest = self
            .multipliers
            .iter()
            .map(|multiplier| self.width * multiplier);
        let widest: Vec<usize> = widest.collect();
        for (name, channels, layers) in [
            ("width", widest.as_slice(), self.layers),
            ("vision", vision, self.vision_layers),
            (
                "autoencoder",
                self.autoencoder.as_slice(),
                self.autoencoder_layers,
            ),
        ] {
            let most = limits::at_most(channels, layers);
            if most > limits::PARAMETERS {
                let field = format!("architecture.{name}");
                let limit = limits::PARAMETERS;
                let expected = format!("a network of at most {limit} parameters, not {most}");
                return refuse(&field, format!("{channels:?} channels"), &expected);
            }
        }
        if self.attention.len() > 16 {
            let shown = format!("{} numbers", self.attention.len());
            return refuse("architecture.attention", shown, "at most 16");
        }
        for multiplier in &self.multipliers {
            let channels = self.width * multiplier;
            for (name, value) in [("groups", self.groups), ("heads", self.heads)] {
                if !channels.is_multiple_of(value) {
                    let field = format!("architecture.{name}");
                    return refuse(&field, value, &format!("a divisor of {channels}"));
                }
            }
        }
        if input == VisionInput::Latent && vision.len() != 1 {
            let shown = format!("{vision:?}");
            let expected = "one number, as `vision_input` is `latent`";
            return refuse("architecture.vision", shown, expected);
        }
        Ok(())
    }
}
