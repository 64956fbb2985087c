//! The table `train` of all segmenters: how a network is trained. What is left out follows from the
//! recipe.

use crate::{
    fit::{Averaging, Keep, Mix, Settings},
    optim::{self, Decay, Plateau, Rule},
    precision::Precision,
};
use diffaug::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// Images or batches at once, at most.
const MOST_BATCH: u64 = 65_536;
/// Steps or epochs, at most.
const MOST_STEPS: u64 = 1_000_000_000;

/// How a network is trained.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// What counts where an option is left out: `reference`, what the network was published with, or
    /// `common`, one budget for all (AdamW at 1e-4 with weight decay 0.01, cosine, 100 epochs of batches
    /// of 16, Dice and cross-entropy). Without it the numbers that are named at each option, which suit
    /// small networks and small data.
    pub recipe: Option<Recipe>,
    /// Passes over the training samples; 50.
    pub epochs: Option<u64>,
    /// Steps of the optimizer after which training ends, in place of `epochs`: arms of a comparison
    /// that differ in their number of images then train alike. Where both are set, `steps` counts, and
    /// a warning says so.
    pub steps: Option<u64>,
    /// Images of a training step; 8.
    pub batch: Option<usize>,
    /// Batches whose gradients make one step, for the step of a larger batch in less memory; 1.
    pub accumulate: Option<usize>,
    /// Highest learning rate; it rises over `warmup` steps and then follows `schedule`; 1e-3.
    pub lr: Option<f64>,
    /// Share of `lr` that the learning rate ends at (`cosine`, `polynomial`) or falls no lower than
    /// (`plateau`); 0.
    pub lr_end: Option<f64>,
    /// Steps until the learning rate is reached; 20.
    pub warmup: Option<u64>,
    /// How the learning rate moves after `warmup`; `cosine`.
    pub schedule: Option<Schedule>,
    /// Exponent of `polynomial`; 1 is a straight line, 0.9 with the recipe `reference` of those that
    /// were published with one.
    pub power: Option<f64>,
    /// What `plateau` multiplies the learning rate by, above 0 and below 1; 0.1.
    pub plateau_factor: Option<f64>,
    /// Evaluations without a better validation Dice that `plateau` waits for; 5.
    pub plateau_patience: Option<u64>,
    /// How gradients become changes of the weights; `adamw`.
    pub optimizer: Option<Optimizer>,
    /// Share of the last change that goes on, 0 to below 1, for `sgd` (0.9) and `rmsprop` (0).
    pub momentum: Option<f64>,
    /// Weight decay: AdamW takes it off the weights, the other optimizers add it to the gradient; 1e-4.
    pub weight_decay: Option<f64>,
    /// Largest norm of the gradient, 0 is without limit; 1.
    pub clip: Option<f64>,
    /// Decay of a running mean of the weights, which is then what is validated and kept, 0 is without;
    /// 0.999, say. Step n uses at most (1 + n) / (10 + n).
    pub ema: Option<f64>,
    /// What is minimised by networks that answer with a mask at once; `dice+bce`. Those that denoise
    /// masks have their own losses.
    pub loss: Option<Loss>,
    /// Evaluations without a better validation Dice after which training stops, 0 is never; 15.
    pub patience: Option<u64>,
    /// Epochs from one validation to the next; 1.
    pub evaluate_epochs: Option<u64>,
    /// Steps from one validation to the next, besides those after epochs; 0 is never, and what is left out.
    pub evaluate_every: Option<u64>,
    /// Which weights are kept: `best` by validation, or `last`, those after all steps. With `last` no
    /// training stops early, so `patience` does not count.
    pub keep: Keep,
    /// Share of each step's images that are synthetic, 0 to below 1, whatever there are of both kinds;
    /// 0.3, say. Without it every epoch visits every image once. Where there are no synthetic
    /// images, all are real.
    pub synthetic_share: Option<f64>,
    /// Share of all steps, those at the end, that see real images alone, 0 to 1.
    pub real_last: f64,
    /// Whether the statistics of batch normalisation are formed anew after training, of real training
    /// images alone: the means over at most 64 batches from all over the set. The reported score is
    /// that before.
    pub real_statistics: bool,
    /// Steps from one checkpoint to the next, besides those after epochs; 0 is never, and what is left out. A
    /// killed training goes on from the last one.
    pub checkpoint_every: Option<u64>,
    /// Whether event files for TensorBoard are written beside `log.jsonl`.
    pub tensorboard: bool,
    /// What training computes in; `bf16` and `f16` are for graphics cards. Weights stay `f32`.
    pub precision: Precision,
    /// Whether maps of the forward pass are computed again in the backward pass in place of being kept,
    /// where the network can do so: less memory, a third more time.
    pub recompute: bool,
}

/// What counts where an option of training is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// What the network was published with.
    Reference,
    /// One budget for all networks.
    Common,
}

/// How gradients become changes of the weights, with PyTorch's definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW with betas 0.9 and 0.999.
    AdamW,
    /// Stochastic gradient descent.
    Sgd,
    /// RMSprop with alpha 0.99.
    RmsProp,
}

/// How the learning rate moves after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Along half a cosine.
    Cosine,
    /// Along a power of what is left of the steps.
    Polynomial,
    /// It falls when validation has stopped getting better.
    Plateau,
}

/// What training minimises. With several target classes cross-entropy takes the place of its
/// binary form and Dice is the mean over all classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Loss {
    /// 1 - Dice over the batch, plus binary cross-entropy.
    #[serde(rename = "dice+bce")]
    DiceBce,
    /// 1 - Dice over the batch.
    #[serde(rename = "dice")]
    Dice,
    /// Binary cross-entropy.
    #[serde(rename = "bce")]
    Bce,
    /// Half of each, Dice with squares in its denominator (TransUNet).
    #[serde(rename = "half-dice+bce")]
    HalfDiceBce,
}

/// Numbers of a training, decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Passes over the training samples.
    pub epochs: u64,
    /// Steps in their place.
    pub steps: Option<u64>,
    /// Images of a step.
    pub batch: usize,
    /// Batches of a step.
    pub accumulate: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Share of it at the end.
    pub lr_end: f64,
    /// Steps until it is reached.
    pub warmup: u64,
    /// How it moves.
    pub schedule: Schedule,
    /// Exponent of [`Schedule::Polynomial`].
    pub power: f64,
    /// Factor of [`Schedule::Plateau`].
    pub plateau_factor: f64,
    /// Patience of [`Schedule::Plateau`].
    pub plateau_patience: u64,
    /// How gradients become changes.
    pub optimizer: Optimizer,
    /// Share of the last change that goes on.
    pub momentum: Option<f64>,
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 is without limit.
    pub clip: f64,
    /// Decay of a running mean of the weights; 0 is without.
    pub ema: f64,
    /// What is minimised.
    pub loss: Loss,
    /// Evaluations without a better score until training stops; 0 is never.
    pub patience: u64,
    /// Epochs from one evaluation to the next.
    pub evaluate_epochs: u64,
    /// Steps from one evaluation to the next; 0 is never.
    pub evaluate_every: u64,
    /// Steps from one checkpoint to the next; 0 is never.
    pub checkpoint_every: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            epochs: 50,
            steps: None,
            batch: 8,
            accumulate: 1,
            lr: 1e-3,
            lr_end: 0.0,
            warmup: 20,
            schedule: Schedule::Cosine,
            power: 1.0,
            plateau_factor: 0.1,
            plateau_patience: 5,
            optimizer: Optimizer::AdamW,
            momentum: None,
            weight_decay: 1e-4,
            clip: 1.0,
            ema: 0.0,
            loss: Loss::DiceBce,
            patience: 15,
            evaluate_epochs: 1,
            evaluate_every: 0,
            checkpoint_every: 0,
        }
    }
}

impl Budget {
    /// One budget for all networks.
    pub fn common() -> Self {
        Budget {
            epochs: 100,
            batch: 16,
            lr: 1e-4,
            warmup: 0,
            weight_decay: 1e-2,
            clip: 0.0,
            patience: 0,
            ..Budget::default()
        }
    }
}

impl Budget {
    /// The same, validated after every tenth epoch alone: for networks whose answers take long.
    #[must_use]
    pub fn rarely_validated(self) -> Self {
        Budget {
            evaluate_epochs: 10,
            ..self
        }
    }
}

impl Loss {
    /// Weights of Dice and cross-entropy.
    pub fn weights(self) -> (f32, f32) {
        match self {
            Loss::DiceBce => (1.0, 1.0),
            Loss::Dice => (1.0, 0.0),
            Loss::Bce => (0.0, 1.0),
            Loss::HalfDiceBce => (0.5, 0.5),
        }
    }

    /// Whether the denominator of Dice has squares.
    pub fn squared(self) -> bool {
        self == Loss::HalfDiceBce
    }
}

impl Train {
    /// All numbers: those that are set, the others `of` the recipe.
    pub fn budget(&self, of: impl FnOnce(Option<Recipe>) -> Budget) -> Budget {
        let from = of(self.recipe);
        let optimizer = self.optimizer.unwrap_or(from.optimizer);
        Budget {
            epochs: self.epochs.unwrap_or(from.epochs),
            // Set epochs say how long training takes, whatever steps the recipe has.
            steps: self.steps.or(from.steps.filter(|_| self.epochs.is_none())),
            batch: self.batch.unwrap_or(from.batch),
            accumulate: self.accumulate.unwrap_or(from.accumulate),
            lr: self.lr.unwrap_or(from.lr),
            lr_end: self.lr_end.unwrap_or(from.lr_end),
            warmup: self.warmup.unwrap_or(from.warmup),
            schedule: self.schedule.unwrap_or(from.schedule),
            power: self.power.unwrap_or(from.power),
            plateau_factor: self.plateau_factor.unwrap_or(from.plateau_factor),
            plateau_patience: self.plateau_patience.unwrap_or(from.plateau_patience),
            optimizer,
            // The recipe's momentum belongs to its optimizer.
            momentum: self
                .momentum
                .or(from.momentum.filter(|_| optimizer == from.optimizer)),
            weight_decay: self.weight_decay.unwrap_or(from.weight_decay),
            clip: self.clip.unwrap_or(from.clip),
            ema: self.ema.unwrap_or(from.ema),
            loss: self.loss.unwrap_or(from.loss),
            patience: self.patience.unwrap_or(from.patience),
            evaluate_epochs: self.evaluate_epochs.unwrap_or(from.evaluate_epochs),
            evaluate_every: self.evaluate_every.unwrap_or(from.evaluate_every),
            checkpoint_every: self.checkpoint_every.unwrap_or(from.checkpoint_every),
        }
    }

    /// What the training loop is told.
    pub fn settings(&self, budget: &Budget, seed: u64) -> Settings {
        let averaging = |decay| Averaging {
            decay: Decay::Warmup { decay },
            evaluate: true,
            only: None,
        };
        Settings {
            epochs: budget.epochs,
            steps: budget.steps,
            batch: budget.batch,
            learning_rate: budget.lr,
            weight_decay: budget.weight_decay,
            clip: budget.clip,
            warmup: budget.warmup,
            patience: match self.keep {
                Keep::Best => budget.patience,
                Keep::Last => 0,
            },
            keep: self.keep,
            mix: self.mix(),
            evaluate_every: budget.evaluate_epochs,
            seed,
            optimizer: budget.rule(),
            schedule: budget.schedule(),
            accumulate: budget.accumulate,
            ema: (budget.ema > 0.0).then(|| averaging(budget.ema)),
            evaluate_steps: budget.evaluate_every,
            checkpoint_every: budget.checkpoint_every,
            tensorboard: self.tensorboard,
            ..Settings::default()
        }
    }

    /// What of the options does not count because of another, if any.
    pub fn unused(&self) -> Option<String> {
        let (epochs, steps) = (self.epochs?, self.steps?);
        Some(format!(
            "`train.epochs` = {epochs} is not used: `train.steps` = {steps} says how long training takes"
        ))
    }

    fn mix(&self) -> Option<Mix> {
        Mix::of(self.synthetic_share, self.real_last)
    }

    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the option and what it may be.
    pub fn check(&self) -> Result<()> {
        for (field, value, most) in [
            ("epochs", self.epochs, MOST_STEPS),
            ("steps", self.steps, MOST_STEPS),
            ("batch", self.batch.map(|n| n as u64), MOST_BATCH),
            ("accumulate", self.accumulate.map(|n| n as u64), MOST_BATCH),
            ("evaluate_epochs", self.evaluate_epochs, MOST_STEPS),
        ] {
            match value {
                Some(0) => return refuse(field, 0, "at least 1"),
                Some(value) if value > most => {
                    return refuse(field, value, &format!("at most {most}"));
                }
                _ => {}
            }
        }
        for (field, value) in [("lr", self.lr), ("power", self.power)] {
            if let Some(value) = value
                && !(value > 0.0 && value.is_finite())
            {
                return refuse(field, value, "a number above 0");
            }
        }
        for (field, value) in [("weight_decay", self.weight_decay), ("clip", self.clip)] {
            if let Some(value) = value
                && !(value >= 0.0 && value.is_finite())
            {
                return refuse(field, value, "0 or a number above it");
            }
        }
        for (field, value) in [("momentum", self.momentum), ("ema", self.ema)] {
            if let Some(value) = value
                && !(0.0..1.0).contains(&value)
            {
                return refuse(field, value, "a number from 0 to below 1");
            }
        }
        if let Some(share) = self.lr_end
            && !(0.0..=1.0).contains(&share)
        {
            return refuse("lr_end", share, "a share of `train.lr`, 0 to 1");
        }
        if let Some(factor) = self.plateau_factor
            && !(factor > 0.0 && factor < 1.0)
        {
            return refuse("plateau_factor", factor, "a number between 0 and 1");
        }
        match self.mix() {
            Some(mix) => mix.check("train.synthetic_share", "train.real_last"),
            None => Ok(()),
        }
    }

    /// Checks options together with what the recipe decided.
    ///
    /// # Errors
    /// When momentum is set for an optimizer that has none.
    pub fn check_together(&self, budget: &Budget) -> Result<()> {
        if self.momentum.is_some() && budget.optimizer == Optimizer::AdamW {
            return Err(Error::config(
                "`train.momentum` is for the optimizers `sgd` and `rmsprop`, not `adamw`",
            )
            .at("train.momentum"));
        }
        Ok(())
    }
}

impl Budget {
    fn rule(&self) -> Rule {
        match self.optimizer {
            Optimizer::AdamW => Rule::default(),
            Optimizer::Sgd => Rule::sgd(self.momentum.unwrap_or(0.9)),
            Optimizer::RmsProp => Rule::RmsProp {
                alpha: 0.99,
                epsilon: 1e-8,
                momentum: self.momentum.unwrap_or(0.0),
                centered: false,
            },
        }
    }

    fn schedule(&self) -> optim::Schedule {
        let last = self.lr_end * self.lr;
        match self.schedule {
            Schedule::Constant => optim::Schedule::Constant,
            Schedule::Cosine => optim::Schedule::Cosine { last },
            Schedule::Polynomial => optim::Schedule::Polynomial {
                power: self.power,
                last,
            },
            Schedule::Plateau => optim::Schedule::Plateau(Plateau {
                factor: self.plateau_factor,
                patience: self.plateau_patience,
                lowest: last,
                ..Plateau::default()
            }),
        }
    }
}

fn refuse(field: &str, value: impl Display, expected: &str) -> Result<()> {
    let field = format!("train.{field}");
    Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(&field))
}
