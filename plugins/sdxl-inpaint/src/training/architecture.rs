//! The networks of a model that is trained from nothing, as diffusers writes them down.

use crate::options::{refuse, within};
use diffaug::Result;
use diffaug_models::{
    compressor::{self, groups},
    unshuffle,
};
use diffaug_nn::{
    diffusion::{
        AutoencoderConfig, PerBlock, UNetConfig,
        scheduler::{NoiseSchedule, SamplerName, SchedulerConfig},
    },
    limits,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How pixels become latents.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected channels such as `[32, 64, 96]`, or `\"unshuffle\"`"
)]
pub enum Latents {
    /// By an autoencoder of these channels.
    Network(Vec<usize>),
    /// By no network.
    Fixed(Fixed),
}

impl Latents {
    /// The channels of the autoencoder, where there is one.
    pub fn channels(&self) -> Option<&Vec<usize>> {
        match self {
            Latents::Network(channels) => Some(channels),
            Latents::Fixed(_) => None,
        }
    }
}

/// Latents that are not learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fixed {
    /// Blocks of pixels as channels.
    Unshuffle,
}

/// The sizes of an autoencoder, a text encoder and a denoising network.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Channels of the autoencoder at each resolution, of which every one but the first halves the sides;
    /// or `"unshuffle"`: no autoencoder but blocks of pixels as channels, which lose nothing. diffusers
    /// cannot read such a model.
    pub autoencoder: Latents,
    /// Pixels along a side of a block, 2, 4 or 8, for `autoencoder = "unshuffle"`.
    pub block: usize,
    /// How much more noise the schedule has, for latents in which neighbours are alike: signal to noise is
    /// divided by its square (Hoogeboom et al., 2023). 1 leaves it as it is.
    pub noise_shift: f64,
    /// Residual blocks of the autoencoder at each resolution.
    pub autoencoder_layers: usize,
    /// Whether the autoencoder's lowest resolution has attention.
    pub autoencoder_attention: bool,
    /// Channels of the autoencoder's latents.
    pub latent: usize,
    /// Channels of the denoising network at each resolution; all but the first attend to the text.
    pub unet: Vec<usize>,
    /// Residual blocks of the denoising network at each resolution.
    pub unet_layers: usize,
    /// Transformer blocks behind each of them.
    pub transformers: usize,
    /// Channels of an attention head.
    pub head: usize,
    /// Width of a token of the text.
    pub text: usize,
    /// Layers of the text encoder.
    pub text_layers: usize,
    /// Tokens of a text, its beginning and end included; what is longer is cut.
    pub tokens: usize,
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            autoencoder: Latents::Network(vec![32, 64, 96]),
            block: 4,
            noise_shift: 1.0,
            autoencoder_layers: 1,
            autoencoder_attention: false,
            latent: 8,
            unet: vec![64, 128, 192],
            unet_layers: 2,
            transformers: 1,
            head: 32,
            text: 64,
            text_layers: 2,
            tokens: 32,
        }
    }
}

impl Architecture {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// Naming the one that does not.
    pub fn check(&self) -> Result<()> {
        let autoencoder = self.autoencoder.channels();
        for (name, channels) in autoencoder
            .map(|channels| ("autoencoder", channels))
            .into_iter()
            .chain([("unet", &self.unet)])
        {
            let field = format!("train.architecture.{name}");
            let sizes = 1..=limits::CHANNELS;
            if !(1..=6).contains(&channels.len()) || channels.iter().any(|c| !sizes.contains(c)) {
                let shown = format!("{channels:?}");
                let expected = format!("one to six numbers from 1 to {}", limits::CHANNELS);
                return refuse(&field, shown, &expected);
            }
        }
        for (name, value, most) in [
            (
                "autoencoder_layers",
                self.autoencoder_layers,
                limits::LAYERS,
            ),
            ("latent", self.latent, 1024),
            ("unet_layers", self.unet_layers, limits::LAYERS),
            ("transformers", self.transformers, limits::DEPTH),
            ("text", self.text, limits::CHANNELS),
            ("text_layers", self.text_layers, limits::DEPTH),
        ] {
            within(&format!("train.architecture.{name}"), value, 1..=most)?;
        }
        let networks = [
            ("unet", &self.unet, self.unet_layers + self.transformers),
            ("text", &vec![self.text], self.text_layers),
        ];
        let autoencoder = autoencoder.map(|c| ("autoencoder", c, self.autoencoder_layers));
        for (name, channels, layers) in autoencoder.into_iter().chain(networks) {
            let most = limits::at_most(channels, layers);
            if most > limits::PARAMETERS {
                let field = format!("train.architecture.{name}");
                let shown = format!("{channels:?}");
                let limit = limits::PARAMETERS;
                let expected =
                    format!("sizes of a network of at most {limit} parameters, not {most}");
                return refuse(&field, shown, &expected);
            }
        }
        if ![2, 4, 8].contains(&self.block) {
            return refuse("train.architecture.block", self.block, "2, 4 or 8");
        }
        within(
            "train.architecture.noise_shift",
            self.noise_shift,
            0.1..=10.0,
        )?;
        within("train.architecture.tokens", self.tokens, 8..=1024)?;
        let field = "train.architecture.head";
        let uneven = self.unet[1..].iter().chain([&self.text]);
        match uneven
            .into_iter()
            .find(|width| self.head == 0 || !width.is_multiple_of(self.head))
        {
            Some(width) => refuse(field, self.head, &format!("a divisor of {width}")),
            None => Ok(()),
        }
    }

    /// The autoencoder's configuration, where there is one.
    pub fn autoencoder(&self, side: usize) -> Option<AutoencoderConfig> {
        let (layers, latent) = (self.autoencoder_layers, self.latent);
        let attention = self.autoencoder_attention;
        let channels = self.autoencoder.channels()?;
        Some(compressor::architecture(
            channels, layers, latent, attention, side,
        ))
    }

    /// Pixels along a side of a latent's pixel.
    pub fn downsampling(&self) -> usize {
        self.autoencoder(1)
            .map_or(self.block, |config| config.downsampling())
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match &self.autoencoder {
            Latents::Network(_) => self.latent,
            Latents::Fixed(Fixed::Unshuffle) => unshuffle::channels(self.block),
        }
    }

    /// The denoising network's configuration.
    pub fn unet(&self) -> UNetConfig {
        let kind = |i: usize, way: &str| match i {
            0 => format!("{way}Block2D"),
            _ => format!("CrossAttn{way}Block2D"),
        };
        let levels = self.unet.len();
        UNetConfig {
            in_channels: 2 * self.latent_channels() + 1,
            out_channels: self.latent_channels(),
            block_out_channels: self.unet.clone(),
            down_block_types: (0..levels).map(|i| kind(i, "Down")).collect(),
            up_block_types: (0..levels).rev().map(|i| kind(i, "Up")).collect(),
            layers_per_block: self.unet_layers,
            transformer_layers_per_block: PerBlock::All(self.transformers),
            attention_head_dim: PerBlock::Each(
                self.unet
                    .iter()
                    .map(|channels| (channels / self.head).max(1))
                    .collect(),
            ),
            cross_attention_dim: self.text,
            use_linear_projection: true,
            norm_num_groups: groups(&self.unet),
            ..UNetConfig::default()
        }
    }

    /// The text encoder's configuration, in the words of transformers, for a vocabulary of that
    /// size, whose last two ids are those of beginning and end.
    pub fn text(&self, vocabulary: usize) -> Value {
        json!({
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "hidden_size": self.text,
            "intermediate_size": 4 * self.text,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text / self.head,
            "max_position_embeddings": self.tokens,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": self.text,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
            "torch_dtype": "float32",
        })
    }

    /// The noise: of Stable Diffusion, shifted by `noise_shift`, with a last step that is nothing else
    /// (Lin et al., 2023), and a network that predicts velocities, as it needs.
    ///
    /// # Errors
    /// When the shift leaves a step without noise.
    pub fn scheduler(&self) -> Result<SchedulerConfig> {
        let plain = Self::plain_scheduler();
        if self.noise_shift == 1.0 {
            return Ok(plain);
        }
        let unscaled = SchedulerConfig {
            rescale_betas_zero_snr: Some(false),
            ..plain.clone()
        };
        let shifted = |alpha_bar: &f64| {
            let snr = alpha_bar / (1.0 - alpha_bar) / self.noise_shift.powi(2);
            snr / (1.0 + snr)
        };
        let schedule = NoiseSchedule::new(&unscaled)?;
        let mut before = 1.0;
        let betas = schedule.alpha_bars().iter().map(shifted).map(|alpha_bar| {
            let beta = 1.0 - alpha_bar / before;
            before = alpha_bar;
            beta
        });
        let config = SchedulerConfig {
            trained_betas: Some(betas.collect()),
            ..plain
        };
        NoiseSchedule::new(&config).map_err(|error| error.at("train.architecture.noise_shift"))?;
        Ok(config)
    }

    fn plain_scheduler() -> SchedulerConfig {
        SchedulerConfig {
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some("scaled_linear".to_owned()),
            prediction_type: Some("v_prediction".to_owned()),
            timestep_spacing: Some("trailing".to_owned()),
            rescale_betas_zero_snr: Some(true),
            steps_offset: Some(1),
            clip_sample: Some(false),
            num_train_timesteps: Some(1000),
            ..SchedulerConfig::new(SamplerName::Ddim)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::Device;
    use diffaug_nn::{
        diffusion::{Autoencoder, UNet},
        params::Params,
    };

    #[test]
    fn the_default_networks_can_be_built() {
        let architecture = Architecture::default();
        architecture.check().unwrap();
        let mut params = Params::new(&Device::Cpu, 0);
        let mut root = params.root();
        UNet::new(root.child("unet"), &architecture.unet()).unwrap();
        let unet = params.count();
        assert!((8_000_000..16_000_000).contains(&unet), "{unet}");
        let config = architecture.autoencoder(64).unwrap();
        assert_eq!(config.downsampling(), 4);
        Autoencoder::new(params.root().child("vae"), &config).unwrap();
        let vae = params.count() - unet;
        assert!((500_000..2_500_000).contains(&vae), "{vae}");
    }

    #[test]
    fn blocks_of_pixels_need_no_autoencoder() {
        let architecture: Architecture =
            serde_json::from_value(json!({"autoencoder": "unshuffle"})).unwrap();
        architecture.check().unwrap();
        assert_eq!(architecture.downsampling(), 4);
        let unet = architecture.unet();
        assert_eq!((unet.in_channels, unet.out_channels), (97, 48));
        assert_eq!(architecture.autoencoder(64), None);
        let wrong = serde_json::from_value::<Architecture>(json!({"autoencoder": "shuffle"}));
        let error = wrong.unwrap_err().to_string();
        assert!(
            error.contains("`[32, 64, 96]`, or `\"unshuffle\"`"),
            "{error}"
        );
    }

    #[test]
    fn a_shift_divides_signal_to_noise_by_its_square() {
        let of = |noise_shift: f64| {
            let architecture = Architecture {
                noise_shift,
                ..Architecture::default()
            };
            NoiseSchedule::new(&architecture.scheduler().unwrap()).unwrap()
        };
        let (plain, shifted) = (of(1.0), of(2.0));
        // Where the end is far, bringing it to pure noise changes little.
        let t = [0, 100, 300];
        for (plain, shifted) in plain.snr(&t).unwrap().iter().zip(shifted.snr(&t).unwrap()) {
            assert!(
                (plain / shifted / 4.0 - 1.0).abs() < 0.05,
                "{plain} {shifted}"
            );
        }
        assert_eq!(shifted.alpha_bars().last(), Some(&0.0));
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let field = |change: fn(&mut Architecture)| {
            let mut architecture = Architecture::default();
            change(&mut architecture);
            architecture.check().unwrap_err().field.to_string()
        };
        assert_eq!(field(|a| a.unet = vec![]), "train.architecture.unet");
        assert_eq!(field(|a| a.head = 48), "train.architecture.head");
        assert_eq!(field(|a| a.tokens = 1), "train.architecture.tokens");
    }
}
