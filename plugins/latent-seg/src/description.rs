//! What a folder of weights says of the networks in it.

use crate::{
    begin::BEGINNING,
    denoiser::DenoiserConfig,
    options::{Options, VisionInput},
};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_models::compressor;
use diffaug_nn::{
    batch::Frame,
    diffusion::{
        AutoencoderConfig,
        scheduler::{NoiseSchedule, Prediction, SamplerName, SchedulerConfig},
    },
    fit::CONFIG,
    limits,
    weights::input,
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// With the weights, all that answering needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The plugin's name, so that the weights of another are not taken for ours.
    pub plugin: String,
    /// Width and height that images are resized to.
    pub input: (u32, u32),
    /// The target classes: label and name. Each has a latent of its own.
    pub classes: Vec<(u8, String)>,
    /// The frozen autoencoder; without it, the one in the folder `vae`.
    pub vae: Option<String>,
    /// Pixels along a side of a latent pixel.
    pub factor: usize,
    /// Channels of a latent.
    pub latent: usize,
    /// What latents of masks are multiplied by, so that they spread like the noise.
    pub scale: f64,
    /// The trainable encoder.
    pub vision: Vision,
    /// Whether its features are fused with the frozen latent.
    pub fused: bool,
    /// The denoising network.
    pub denoiser: DenoiserConfig,
    /// What it predicts.
    pub prediction: Prediction,
    /// The noise.
    pub noise: Betas,
}

/// The trainable encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vision {
    /// What it sees.
    pub input: VisionInput,
    /// Channels at each resolution.
    pub channels: Vec<usize>,
    /// Residual blocks there.
    pub layers: usize,
    /// Whether there is attention at the lowest.
    pub attention: bool,
    /// Channels of the result.
    pub features: usize,
}

/// The noise of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Betas {
    /// Variance that the first timestep adds.
    pub start: f64,
    /// And the last.
    pub end: f64,
    /// Whether the last holds no signal.
    pub zero_terminal_snr: bool,
}

impl Betas {
    /// The schedule of a thousand timesteps.
    ///
    /// # Errors
    /// When a number is out of range.
    pub fn schedule(&self) -> Result<NoiseSchedule> {
        let config = SchedulerConfig {
            beta_schedule: Some("scaled_linear".to_owned()),
            beta_start: Some(self.start),
            beta_end: Some(self.end),
            num_train_timesteps: Some(TIMESTEPS as usize),
            rescale_betas_zero_snr: Some(self.zero_terminal_snr),
            ..SchedulerConfig::new(SamplerName::Ddpm)
        };
        NoiseSchedule::new(&config)
    }
}

/// Timesteps of training.
pub const TIMESTEPS: u32 = 1000;

impl Description {
    /// The networks that find `classes` in images of the size `input`, on the latents of an autoencoder
    /// that shrinks sides by `factor` to `latent` channels.
    ///
    /// # Errors
    /// When the options do not fit the autoencoder.
    pub fn new(
        options: &Options,
        classes: Vec<(u8, String)>,
        input: (u32, u32),
        (factor, latent): (usize, usize),
    ) -> Result<Self> {
        let (a, resolved) = (&options.architecture(), options.resolved());
        let vision = Vision {
            input: resolved.vision_input,
            channels: options.vision(),
            layers: a.vision_layers,
            attention: a.vision_attention,
            features: a.features,
        };
        let shrinks = match vision.input {
            VisionInput::Latent => factor,
            VisionInput::Pixel => 1 << (vision.channels.len() - 1),
        };
        if shrinks != factor {
            return Err(Error::config(format!(
                "`architecture.vision` has {} resolutions, which shrink images by {shrinks}, but the autoencoder shrinks them by {factor}",
                vision.channels.len(),
            ))
            .at("architecture.vision"));
        }
        // Fused features take the channels of a latent, so that the denoising network has the shape
        // that published weights have.
        let condition = match resolved.fused {
            true => latent,
            false => vision.features,
        };
        let latents = latent * classes.len();
        Ok(Description {
            plugin: PLUGIN.to_owned(),
            input,
            classes,
            vae: options.vae.clone(),
            factor,
            latent,
            scale: 1.0,
            vision,
            fused: resolved.fused,
            denoiser: DenoiserConfig {
                inputs: latents + condition,
                outputs: latents,
                width: a.width,
                multipliers: a.multipliers.clone(),
                layers: a.layers,
                heads: a.heads,
                attention: a.attention.clone(),
                groups: a.groups,
            },
            prediction: options.prediction(),
            noise: Betas {
                start: options.beta_start,
                end: options.beta_end,
                zero_terminal_snr: options.zero_terminal_snr(),
            },
        })
    }

    /// What the folder `weights` says.
    ///
    /// # Errors
    /// When it is not one that training or conversion left.
    pub fn read(weights: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            model: Description,
        }
        let path = weights.join(CONFIG);
        if !path.exists() && weights.join(BEGINNING).exists() {
            return Err(Error::model(format!(
                "`{}` is a beginning for training, no trained segmenter: name it by the option `base`",
                weights.display()
            )));
        }
        let no_folder = || {
            let shown = weights.display();
            format!("`{shown}` is no folder that training `{PLUGIN}` left")
        };
        let file: Result<File> = input::json_file(&path, input::CONFIG_BYTES);
        let model = file.or_error(ErrorKind::Model, no_folder)?.model;
        model.check_sizes().or_error(ErrorKind::Model, || {
            format!("`{}` cannot be used", path.display())
        })?;
        let sides =
            model.input.0.min(model.input.1) >= 1 && model.input.0.max(model.input.1) <= 4096;
        let sound = sides
            && !model.classes.is_empty()
            && (1..=64).contains(&model.factor)
            && model.scale.is_finite()
            && model.scale != 0.0
            && !model.vision.channels.is_empty();
        if model.plugin != PLUGIN || !sound {
            return Err(Error::model(format!(
                "`{}` does not describe a network of the plugin `{PLUGIN}`",
                path.display()
            )));
        }
        Ok(model)
    }

    /// Checks that the sizes are such as networks have.
    fn check_sizes(&self) -> candle_core::Result<()> {
        let vision = &self.vision;
        limits::all_within(
            "vision.channels",
            &vision.channels,
            limits::LEVELS,
            1..=limits::CHANNELS,
        )?;
        limits::within("vision.layers", vision.layers, 1..=limits::LAYERS)?;
        limits::within("vision.features", vision.features, 1..=limits::CHANNELS)?;
        limits::within("latent", self.latent, 1..=limits::CHANNELS)?;
        limits::within("classes", self.classes.len(), 1..=255)?;
        limits::within("scale", self.scale, 1e-12..=1e12)?;
        self.denoiser.check()
    }

    /// How images are laid out: both sides of their latents can be halved as often as the denoising
    /// network does.
    pub fn frame(&self) -> Frame {
        Frame::padded(
            self.input,
            (self.factor * self.denoiser.downsampling()) as u32,
        )
    }

    /// The labels of the target classes.
    pub fn labels(&self) -> Vec<u8> {
        self.classes.iter().map(|(label, _)| *label).collect()
    }

    /// The trainable encoder, up to the convolution behind it.
    pub fn encoder(&self) -> AutoencoderConfig {
        let Vision {
            input,
            channels,
            layers,
            attention,
            ..
        } = &self.vision;
        let config = compressor::architecture(channels, *layers, self.latent, *attention, 0);
        AutoencoderConfig {
            in_channels: match input {
                VisionInput::Latent => self.latent,
                VisionInput::Pixel => 3,
            },
            ..config
        }
    }
}

/// The plugin's name in folders of weights.
pub const PLUGIN: &str = "latent-seg";
