//! The options of `latent-seg` and `sdseg`. What a preset decides is left open here and filled in by
//! [`Options::resolved`].

mod architecture;
#[cfg(test)]
mod tests;

pub use architecture::Architecture;

use diffaug::{Error, Result};
use diffaug_models::compressor::AutoencoderTraining;
use diffaug_nn::{
    diffusion::scheduler::Prediction,
    fit::Settings,
    segmenter::{Budget, Recipe, Schedule, Train},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt::Display, path::PathBuf};

/// Options that stood elsewhere once, and where they are now.
pub const MOVED: &[(&str, &str)] = &[
    ("batch", "`images_at_once`"),
    ("train.final_lr", "`train.lr_end`"),
    ("train.dropout", "`architecture.dropout`"),
    ("train.lambda_latent", "`objective.lambda_latent`"),
    ("train.lambda_dice", "`objective.lambda_dice`"),
    ("train.dice_every", "`objective.dice_every`"),
    ("train.last", "`objective.last`"),
    ("train.checkpointing", "`train.recompute`"),
    ("train.autoencoder", "`autoencoder`"),
    ("train.masks", "`autoencoder_masks`"),
];

/// Options of the latent segmenter.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What is not said otherwise: `diffaug` (without this, that of `latent-seg`) is the paper's
    /// segmenter, `sdseg` (that of `sdseg`) the one that it builds on (Lin et al., 2024). `tiny` and `sdseg-tiny`
    /// (that of `sdseg` where it is told `tiny`) are small ones that learn within a minute or two on a processor,
    /// with their training.
    pub preset: Option<Preset>,
    /// The frozen autoencoder: a folder in the layout of diffusers, a file in the original one (kl-f8),
    /// a model of the hub as `org/name@revision`, or `taesdxl`. Without it a small one is trained first, on images and masks.
    pub vae: Option<String>,
    /// What the trainable encoder sees: `latent` (Eq. 9) or `pixel`. Without it that of the preset.
    pub vision_input: Option<VisionInput>,
    /// Side of the square that images are resized to; without it, the size of the training images.
    pub size: Option<u32>,
    /// Steps of the answer: 1 estimates the clean latent at once (Eq. 11), more go back step by step
    /// (DDIM).
    pub steps: usize,
    /// What an answer begins with: noise that depends on the image alone, or zeros.
    pub noise: Noise,
    /// Probability from which on (exclusive) a pixel belongs to a target.
    pub threshold: f32,
    /// Images at once when answering.
    pub images_at_once: usize,
    /// What the denoising network predicts; `epsilon`, and `v_prediction` where the preset is small. Small ones
    /// learn `v_prediction` or `sample` far faster than `epsilon`, whose errors one step magnifies.
    pub prediction: Option<Prediction>,
    /// Variance that the first timestep adds; the last adds `beta_end`, and between them their
    /// roots grow evenly.
    pub beta_start: f64,
    /// See `beta_start`.
    pub beta_end: f64,
    /// Whether the noise is rescaled so that the last timestep holds no signal; not for `epsilon`. Without it
    /// only where the preset is small.
    pub zero_terminal_snr: Option<bool>,
    /// The networks, in place of the preset's.
    pub architecture: Option<Architecture>,
    /// A folder that training or `diffaug convert` left, whose weights training begins with. Of weights of
    /// latent diffusion or Stable Diffusion `diffaug convert` makes such a folder.
    pub base: Option<PathBuf>,
    /// What of `base` is taken.
    pub init: Init,
    /// Seed of weights, order, noise; without it, the run's.
    pub seed: Option<u64>,
    /// A folder that training or `diffaug convert` left. The networks are then those of the weights.
    pub weights: Option<PathBuf>,
    /// What is minimised, in place of the preset's.
    pub objective: Option<Objective>,
    /// The training of the small autoencoder, where `vae` names none, in place of the preset's.
    pub autoencoder: Option<AutoencoderTraining>,
    /// Share of the small autoencoder's pictures that are masks.
    pub autoencoder_masks: f64,
    /// How it is trained. What is left out follows from the preset: 100,000 steps of 4 images with a
    /// validation every 2,000 and a checkpoint every 500; for `diffaug` 4 batches a step, a learning rate of 1e-5
    /// along a cosine to a tenth; for `sdseg` one batch, 4e-5 after 10,000 steps of warm-up, and a running mean
    /// of 0.9999 of the denoising network. `loss` and `real_statistics` are for other networks.
    pub train: Train,
}

/// What is not said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Latent and vision encoder, fused; three losses (Eq. 9 to 13).
    DiffAug,
    /// A vision encoder of pixels, two losses, a running mean of the weights.
    SdSeg,
    /// A small `diffaug` that sees pixels.
    Tiny,
    /// A small `sdseg`.
    #[serde(rename = "sdseg-tiny")]
    SdSegTiny,
}

impl Preset {
    /// Whether it is a small one.
    pub fn is_small(self) -> bool {
        matches!(self, Preset::Tiny | Preset::SdSegTiny)
    }

    /// Whether it is the segmenter that the paper builds on.
    pub fn is_sdseg(self) -> bool {
        matches!(self, Preset::SdSeg | Preset::SdSegTiny)
    }
}

/// What the trainable encoder sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VisionInput {
    /// The frozen autoencoder's latent.
    Latent,
    /// The image.
    Pixel,
}

/// What an answer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Noise {
    /// Normal numbers that follow from the image and the seed.
    Seeded,
    /// Their mean.
    Zeros,
}

/// What of `base` is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// All tensors that the network has under the same name and in the same shape.
    All,
    /// Of the denoising network only the way down and the middle; the way up begins anew.
    EncoderOnly,
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Weight of the error of the clean latent (lambda_latent of Eq. 12).
    pub lambda_latent: f64,
    /// Weight of the Dice loss of the decoded latent (lambda_dice); without it 0.1 for `diffaug`, 0 for
    /// `sdseg`.
    pub lambda_dice: Option<f64>,
    /// Batches from one with the Dice loss to the next: the gradient through the decoder is what
    /// takes time and memory.
    pub dice_every: u64,
    /// Share of samples that are noised to the last timestep, from which answers start; the others
    /// are spread evenly over all.
    pub last: f64,
}

impl Default for Objective {
    fn default() -> Self {
        Objective {
            lambda_latent: 1.0,
            lambda_dice: None,
            dice_every: 4,
            last: 0.0,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            preset: None,
            vae: None,
            vision_input: None,
            size: None,
            steps: 1,
            noise: Noise::Seeded,
            threshold: 0.5,
            images_at_once: 8,
            prediction: None,
            beta_start: 0.0015,
            beta_end: 0.0155,
            zero_terminal_snr: None,
            architecture: None,
            base: None,
            init: Init::All,
            seed: None,
            weights: None,
            objective: None,
            autoencoder: None,
            autoencoder_masks: 0.5,
            train: Train::default(),
        }
    }
}

/// What the preset decides, decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resolved {
    /// What the vision encoder sees.
    pub vision_input: VisionInput,
    /// Whether the frozen latent of the image is fused with what the vision encoder finds.
    pub fused: bool,
    /// Weight of the Dice loss.
    pub lambda_dice: f64,
}

impl Options {
    /// The preset.
    pub fn preset(&self) -> Preset {
        self.preset.unwrap_or(Preset::DiffAug)
    }

    /// What the preset decides.
    pub fn resolved(&self) -> Resolved {
        let (input, dice) = match self.preset() {
            Preset::DiffAug => (VisionInput::Latent, 0.1),
            Preset::Tiny => (VisionInput::Pixel, 1.0),
            Preset::SdSeg | Preset::SdSegTiny => (VisionInput::Pixel, 0.0),
        };
        Resolved {
            vision_input: self.vision_input.unwrap_or(input),
            fused: !self.preset().is_sdseg(),
            lambda_dice: self.objective().lambda_dice.unwrap_or(dice),
        }
    }

    /// The networks.
    pub fn architecture(&self) -> Architecture {
        let preset = || match self.preset().is_small() {
            true => Architecture::tiny(),
            false => Architecture::default(),
        };
        self.architecture.clone().unwrap_or_else(preset)
    }

    /// What is minimised.
    pub fn objective(&self) -> Objective {
        let preset = || match self.preset().is_small() {
            true => Objective {
                dice_every: 2,
                last: 0.6,
                ..Objective::default()
            },
            false => Objective::default(),
        };
        self.objective.clone().unwrap_or_else(preset)
    }

    /// The training of the small autoencoder.
    pub fn autoencoder(&self) -> AutoencoderTraining {
        let preset = || match self.preset().is_small() {
            true => AutoencoderTraining {
                steps: 300,
                batch: 8,
                lr: 2e-3,
                kl: 1e-4,
                evaluate_every: 150,
                ..AutoencoderTraining::default()
            },
            false => AutoencoderTraining::default(),
        };
        self.autoencoder.clone().unwrap_or_else(preset)
    }

    /// What the denoising network predicts.
    pub fn prediction(&self) -> Prediction {
        self.prediction.unwrap_or(match self.preset().is_small() {
            true => Prediction::Velocity,
            false => Prediction::Epsilon,
        })
    }

    /// Whether the last timestep holds no signal.
    pub fn zero_terminal_snr(&self) -> bool {
        let small = self.preset().is_small() && self.prediction() != Prediction::Epsilon;
        self.zero_terminal_snr.unwrap_or(small)
    }

    /// Channels of the vision encoder at each resolution.
    pub fn vision(&self) -> Vec<usize> {
        let given = self.architecture().vision;
        let (input, small) = (self.resolved().vision_input, self.preset().is_small());
        given.unwrap_or_else(|| match (input, small) {
            (VisionInput::Latent, false) => vec![128],
            (VisionInput::Latent, true) => vec![48],
            (VisionInput::Pixel, false) => vec![128, 256, 512, 512],
            (VisionInput::Pixel, true) => vec![16, 32, 48],
        })
    }

    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the option and what it may be.
    pub fn check(&self) -> Result<()> {
        if let Some(size) = self.size {
            within("size", size, 8, 4096)?;
        }
        within("steps", self.steps, 1, 1000)?;
        within("images_at_once", self.images_at_once, 1, 65_536)?;
        if !(0.0..1.0).contains(&self.threshold) {
            return refuse("threshold", self.threshold, "a number from 0 to below 1");
        }
        within("beta_start", self.beta_start, 1e-8, 0.999)?;
        within("beta_end", self.beta_end, 1e-8, 0.999)?;
        if self.zero_terminal_snr() && self.prediction() == Prediction::Epsilon {
            return refuse(
                "zero_terminal_snr",
                true,
                "`prediction` to be `v_prediction` or `sample`, for noise alone says nothing of the latent",
            );
        }
        let input = self.resolved().vision_input;
        self.architecture().check(input, &self.vision())?;
        self.check_objective()?;
        self.autoencoder().check("autoencoder")?;
        self.check_train()
    }

    fn check_objective(&self) -> Result<()> {
        let objective = &self.objective();
        within("objective.dice_every", objective.dice_every, 1, u64::MAX)?;
        within("objective.last", objective.last, 0.0, 1.0)?;
        within("objective.lambda_latent", objective.lambda_latent, 0.0, 1e6)?;
        let dice = objective.lambda_dice.unwrap_or(0.0);
        within("objective.lambda_dice", dice, 0.0, 1e6)?;
        within("autoencoder_masks", self.autoencoder_masks, 0.0, 1.0)
    }

    fn check_train(&self) -> Result<()> {
        for (name, set, why) in [
            (
                "loss",
                self.train.loss.is_some(),
                "`objective` says what is minimised",
            ),
            (
                "real_statistics",
                self.train.real_statistics,
                "these networks have no batch normalisation",
            ),
        ] {
            if set {
                let field = format!("train.{name}");
                return Err(Error::config(format!("`{field}` is of no use here: {why}")).at(&field));
            }
        }
        self.train.check()?;
        self.train.check_together(&self.budget())
    }

    /// All numbers of the training.
    pub fn budget(&self) -> Budget {
        let both = Budget {
            steps: Some(100_000),
            batch: 4,
            accumulate: 4,
            lr: 1e-5,
            lr_end: 0.1,
            warmup: 0,
            weight_decay: 0.01,
            clip: 0.0,
            patience: 0,
            evaluate_epochs: u64::MAX,
            evaluate_every: 2000,
            checkpoint_every: 500,
            ..Budget::default()
        };
        let preset = match self.preset() {
            Preset::DiffAug => both,
            Preset::SdSeg => Budget {
                accumulate: 1,
                lr: 4e-5,
                schedule: Schedule::Constant,
                warmup: 10_000,
                ema: 0.9999,
                ..both
            },
            Preset::Tiny | Preset::SdSegTiny => Budget {
                steps: Some(400),
                batch: 8,
                accumulate: 1,
                lr: 1e-3,
                warmup: 50,
                clip: 1.0,
                ema: 0.99,
                evaluate_every: 200,
                checkpoint_every: 100,
                ..both
            },
        };
        self.train.budget(|recipe| match recipe {
            Some(Recipe::Common) => Budget::common(),
            Some(Recipe::Reference) | None => preset,
        })
    }

    /// What the training loop is told.
    pub fn settings(&self, seed: u64) -> Settings {
        let mut settings = self.train.settings(&self.budget(), seed);
        if let Some(ema) = &mut settings.ema {
            // As the reference: the vision encoder's weights are used as they are.
            ema.only = self.preset().is_sdseg().then_some("denoiser.");
        }
        settings
    }
}

/// Checks that `value` lies from `low` to `high`.
fn within<T: PartialOrd + Display>(field: &str, value: T, low: T, high: T) -> Result<()> {
    match value >= low && value <= high {
        true => Ok(()),
        false => refuse(field, value, &format!("{low} to {high}")),
    }
}

fn refuse(field: &str, value: impl Display, expected: &str) -> Result<()> {
    Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(field))
}
