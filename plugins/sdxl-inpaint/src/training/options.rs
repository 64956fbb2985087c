//! How `sdxl-inpaint` is trained.

use super::{architecture::Architecture, holes::Holes};
use crate::options::{refuse, within};
use diffaug::Result;
use diffaug_models::compressor::AutoencoderTraining;
use diffaug_nn::{
    fit::{Averaging, Settings},
    optim::{Decay, Schedule},
    precision::Precision,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How `fit` trains: an adapter of a model (`method = "lora"`), all of its denoising network
/// (`"full"`), or a small model from nothing (`init = "scratch"`).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// What is trained of a model that there is.
    pub method: Method,
    /// Whether there is a model to begin with.
    pub init: Init,
    /// Steps of the optimizer.
    pub steps: u64,
    /// Images of a batch.
    pub batch: usize,
    /// Batches whose gradients make one step.
    pub accumulate: usize,
    /// Highest learning rate; without it 1e-4 for `lora`, 1e-5 for `full`, 4e-4 from scratch.
    pub lr: Option<f64>,
    /// Where the cosine of the learning rate ends, as a share of `lr`; 1 keeps it constant.
    pub final_lr: f64,
    /// Steps until the learning rate is reached.
    pub warmup: u64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 is without limit.
    pub clip: f64,
    /// Largest decay of a running mean of the weights, which is then what is validated and kept;
    /// it follows 1 - (1 + step)^(-3/4), as diffusers has it.
    pub ema: Option<f64>,
    /// What is minimised.
    pub loss: Loss,
    /// Weight of what must be preserved outside the mask (lambda of Eq. 7), for `loss = "paper"`. Either
    /// error is the mean over its own region, so that small lesions count like large ones.
    pub preserve: f64,
    /// Limit of the signal-to-noise ratio in the weight of a timestep (Hang et al., 2023), 5 say;
    /// without it every timestep weighs the same, which small models paint better with.
    pub min_snr: Option<f64>,
    /// What is added to that limited ratio for networks that predict velocities: without it a schedule
    /// that ends in pure noise has steps of no weight.
    pub snr_floor: f64,
    /// Share of noise that is equal over a whole channel, 0 (none) to 1.
    pub noise_offset: f64,
    /// How often the text is left out, 0 to 1, so that guidance has something to push away from.
    pub prompt_dropout: f64,
    /// Different views (window, mirroring) of each image, whose latents are kept on disk.
    pub views: u32,
    /// Whether views may be mirrored, too; switch it off for anatomy with a fixed orientation.
    pub flip: bool,
    /// How far, as a share of `margin`, a view's margin may differ from it.
    pub jitter: f64,
    /// Where the holes that are painted in training come from.
    pub holes: Holes,
    /// Rank of an adapter.
    pub rank: usize,
    /// Scale of an adapter times its rank; without it the rank.
    pub alpha: Option<f64>,
    /// The layers that get an adapter: those whose names end in one of these.
    pub targets: Vec<String>,
    /// Whether the text encoders are trained along, for `init = "scratch"`.
    pub text: bool,
    /// The networks of `init = "scratch"`.
    pub architecture: Architecture,
    /// The training of the autoencoder of `init = "scratch"`.
    pub autoencoder: AutoencoderTraining,
    /// Share of the autoencoder's pictures that have their lesion cut out, as painting will show
    /// them.
    pub cut: f64,
    /// Whether blocks of the network are computed again in the backward pass, which costs a third
    /// more time and saves most of the memory.
    pub checkpointing: bool,
    /// What is computed in; weights stay f32.
    pub precision: Precision,
    /// Steps from one validation to the next.
    pub evaluate_every: u64,
    /// Steps from one checkpoint to the next. A killed training goes on from the last one.
    pub checkpoint_every: u64,
    /// Whether event files for TensorBoard are written beside `log.jsonl`.
    pub tensorboard: bool,
    /// Seed of everything random; without it, the run's.
    pub seed: Option<u64>,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            method: Method::Lora,
            init: Init::Base,
            steps: 1000,
            batch: 8,
            accumulate: 1,
            lr: None,
            final_lr: 0.1,
            warmup: 50,
            weight_decay: 0.01,
            clip: 1.0,
            ema: None,
            loss: Loss::Paper,
            preserve: 1.0,
            min_snr: None,
            snr_floor: 0.25,
            noise_offset: 0.0,
            prompt_dropout: 0.1,
            views: 4,
            flip: true,
            jitter: 0.5,
            holes: Holes::default(),
            rank: 16,
            alpha: None,
            targets: ["to_q", "to_k", "to_v", "to_out.0"]
                .map(str::to_owned)
                .to_vec(),
            text: true,
            architecture: Architecture::default(),
            autoencoder: AutoencoderTraining::default(),
            cut: 0.2,
            checkpointing: false,
            precision: Precision::F32,
            evaluate_every: 250,
            checkpoint_every: 250,
            tensorboard: false,
            seed: None,
        }
    }
}

/// What is trained of a model that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Small matrices beside those of the denoising network (Hu et al., 2021).
    Lora,
    /// The whole denoising network.
    Full,
}

/// What training begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The model in `base`.
    Base,
    /// Nothing: a small autoencoder, text encoder and denoising network of `architecture`.
    Scratch,
}

/// What the denoising network minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Eq. 7: the noise under the mask (the velocity, for networks that predict it), and outside of it
    /// the distance of the clean latent, as the network sees it, from the true one, times `preserve`.
    /// (The printed formula has the noisy latent there, which does not depend on the network, and the
    /// latent of the masked image, whose cells at the border are tinged with the grey of the hole.)
    Paper,
    /// The squared error of the network's target over the whole latent, as diffusers trains.
    Mse,
    /// The noise (or velocity) under the mask alone.
    Masked,
}

impl Training {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the option and what it may be.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [
            ("train.steps", self.steps),
            ("train.batch", self.batch as u64),
            ("train.accumulate", self.accumulate as u64),
            ("train.views", u64::from(self.views)),
            ("train.rank", self.rank as u64),
        ] {
            if value == 0 {
                return refuse(field, 0, "at least 1");
            }
        }
        within("train.steps", self.steps, 1..=1_000_000_000)?;
        within("train.batch", self.batch, 1..=65_536)?;
        within("train.accumulate", self.accumulate, 1..=65_536)?;
        within("train.views", self.views, 1..=10_000)?;
        within("train.rank", self.rank, 1..=4096)?;
        if let Some(lr) = self.lr {
            above("train.lr", lr)?;
        }
        if let Some(decay) = self.ema {
            within("train.ema", decay, 0.0..=0.999_999)?;
        }
        if let Some(gamma) = self.min_snr {
            above("train.min_snr", gamma)?;
        }
        if let Some(alpha) = self.alpha {
            above("train.alpha", alpha)?;
        }
        for (field, value) in [
            ("train.final_lr", self.final_lr),
            ("train.noise_offset", self.noise_offset),
            ("train.prompt_dropout", self.prompt_dropout),
            ("train.jitter", self.jitter),
            ("train.cut", self.cut),
        ] {
            within(field, value, 0.0..=1.0)?;
        }
        for (field, value) in [
            ("train.weight_decay", self.weight_decay),
            ("train.clip", self.clip),
            ("train.preserve", self.preserve),
            ("train.snr_floor", self.snr_floor),
        ] {
            within(field, value, 0.0..=1e6)?;
        }
        if self.targets.is_empty() && self.method == Method::Lora {
            return refuse("train.targets", "empty", "names such as `to_q`");
        }
        self.holes.check()?;
        self.architecture.check()?;
        self.autoencoder.check("train.autoencoder")
    }

    /// How the training loop is to go about the denoising network.
    pub fn settings(&self, seed: u64) -> Settings {
        let learning_rate = self.lr.unwrap_or(match (self.init, self.method) {
            (Init::Scratch, _) => 4e-4,
            (_, Method::Lora) => 1e-4,
            (_, Method::Full) => 1e-5,
        });
        Settings {
            steps: Some(self.steps),
            batch: self.batch,
            accumulate: self.accumulate,
            learning_rate,
            schedule: match self.final_lr {
                1.0 => Schedule::Constant,
                share => Schedule::Cosine {
                    last: share * learning_rate,
                },
            },
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            clip: self.clip,
            ema: self.ema.map(|decay| Averaging {
                decay: Decay::Power {
                    decay,
                    inv_gamma: 1.0,
                    power: 0.75,
                },
                evaluate: true,
                only: None,
            }),
            evaluate_every: u64::MAX,
            evaluate_steps: self.evaluate_every,
            checkpoint_every: self.checkpoint_every,
            tensorboard: self.tensorboard,
            seed,
            ..Settings::default()
        }
    }
}

/// Checks that `value` is a number above 0.
pub(super) fn above(field: &str, value: f64) -> Result<()> {
    match value > 0.0 && value <= 1e9 {
        true => Ok(()),
        false => refuse(field, value, "a number above 0, at most 1000000000"),
    }
}
