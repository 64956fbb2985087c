//! The options of trained segmenters.

use super::{Architecture, Budget, Loss, Recipe, Train};
use crate::diffusion::scheduler::SamplerName;
use diffaug::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Options that were at the top once, and where they are now.
pub const MOVED: &[(&str, &str)] = &[
    ("width", "`architecture.width`"),
    ("depth", "`architecture.depth`"),
    ("epochs", "`train.epochs`"),
    ("steps", "`train.steps`"),
    ("batch", "`train.batch` (when answering: `images_at_once`)"),
    ("lr", "`train.lr`"),
    ("final_lr", "`train.lr_end` (a share of `train.lr`)"),
    ("weight_decay", "`train.weight_decay`"),
    ("patience", "`train.patience`"),
    ("loss", "`train.loss`"),
    ("clip", "`train.clip`"),
    ("warmup", "`train.warmup`"),
    ("optimizer", "`train.optimizer`"),
    ("momentum", "`train.momentum`"),
    ("schedule", "`train.schedule`"),
    ("power", "`train.power`"),
    ("plateau_factor", "`train.plateau_factor`"),
    ("plateau_patience", "`train.plateau_patience`"),
    ("accumulate", "`train.accumulate`"),
    ("ema", "`train.ema`"),
    ("evaluate_every", "`train.evaluate_epochs`"),
    ("evaluate_steps", "`train.evaluate_every`"),
    ("keep", "`train.keep`"),
    ("synthetic_share", "`train.synthetic_share`"),
    ("real_last", "`train.real_last`"),
    ("real_statistics", "`train.real_statistics`"),
    ("checkpoint_every", "`train.checkpoint_every`"),
    ("tensorboard", "`train.tensorboard`"),
    ("precision", "`train.precision`"),
];

/// How a network looks, is trained and answers.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, bound = "A: Architecture")]
#[schemars(bound = "A: Architecture")]
pub struct Options<A> {
    /// `tiny`: a small network that learns within a minute on a processor, and a training of that
    /// length. Without it the network is the published one.
    pub preset: Option<Preset>,
    /// The network, in place of the preset's.
    pub architecture: Option<A>,
    /// Side of the square that images are resized to; without it, the size of the training images.
    /// Sides that do not suit the network are padded with the border's pixels.
    pub size: Option<u32>,
    /// Images at once when answering.
    pub images_at_once: usize,
    /// Probability from which on (exclusive) a pixel belongs to the target; with several target
    /// classes the most probable class is taken instead.
    pub threshold: f32,
    /// How segmenters that denoise masks draw them; others have no such table.
    pub sampling: Option<Sampling>,
    /// Seed of initial weights and order of samples; without it, the run's.
    pub seed: Option<u64>,
    /// Where training begins: a folder that training or `diffaug convert` left, or, for networks with an
    /// encoder that others publish, a file of its weights.
    pub base: Option<PathBuf>,
    /// A folder that training left. The network is then that of the weights.
    pub weights: Option<PathBuf>,
    /// How it is trained.
    pub train: Train,
}

/// A network with its training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Small, for tests and first looks.
    Tiny,
}

/// How masks are drawn.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// What goes back from noise to a mask; without it that of the published network.
    pub sampler: Option<SamplerName>,
    /// Steps from noise to a mask; without it those of the published network.
    pub steps: Option<usize>,
    /// Masks that are drawn for an image; without it as many as the published network's.
    pub runs: Option<usize>,
    /// What becomes of several masks; without it that of the published network.
    pub fusion: Option<Fusion>,
}

/// What becomes of several masks of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// Their mean.
    Mean,
    /// The most probable truth behind several raters (STAPLE, Warfield et al., 2004).
    Staple,
    /// What the network was published with.
    Published,
}

impl<A: Architecture> Default for Options<A> {
    fn default() -> Self {
        Options {
            preset: None,
            architecture: None,
            size: None,
            images_at_once: 8,
            threshold: 0.5,
            sampling: None,
            seed: None,
            base: None,
            weights: None,
            train: Train::default(),
        }
    }
}

impl<A: Architecture> Options<A> {
    /// The network.
    pub fn architecture(&self) -> A {
        match (&self.architecture, self.preset) {
            (Some(architecture), _) => architecture.clone(),
            (None, Some(Preset::Tiny)) => A::tiny(),
            (None, None) => A::default(),
        }
    }

    /// All numbers of the training.
    pub fn budget(&self) -> Budget {
        let architecture = self.architecture();
        self.train.budget(|recipe| match (recipe, self.preset) {
            (Some(Recipe::Reference), _) => architecture.reference(),
            (Some(Recipe::Common), _) => architecture.common(),
            (None, Some(Preset::Tiny)) => architecture.tiny_budget(),
            (None, None) => architecture.small(),
        })
    }

    /// What is minimised.
    pub fn loss(&self) -> Loss {
        self.budget().loss
    }

    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the option and what it may be.
    pub fn check(&self) -> Result<()> {
        let fail = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(field))
        };
        self.architecture().check()?;
        if let Some(size) = self.size
            && !(8..=4096).contains(&size)
        {
            return fail("size", &size, "8 to 4096");
        }
        if !(1..=65_536).contains(&self.images_at_once) {
            return fail("images_at_once", &self.images_at_once, "1 to 65536");
        }
        if !(0.0..1.0).contains(&self.threshold) {
            return fail("threshold", &self.threshold, "a number from 0 to below 1");
        }
        self.train.check()?;
        self.train.check_together(&self.budget())
    }
}
