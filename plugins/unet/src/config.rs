//! The options of `unet`, and what a folder of weights says about the network in it.

use crate::UNet;
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::{
    batch::Frame,
    budget,
    fit::{Averaging, CONFIG, Keep, Mix, Settings},
    limits,
    optim::{self, Decay, Plateau, Rule},
    precision::Precision,
    weights::input,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Passes over the training samples where neither `epochs` nor `steps` is set.
const EPOCHS: u64 = 50;

/// How the network looks and how it is trained.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Channels of the first level; every level below has twice as many.
    pub width: usize,
    /// How often height and width are halved, 1 to 5.
    pub depth: usize,
    /// Side of the square that images are resized to; without it, the size of the training images.
    /// Sides that are no multiple of 2^depth are padded with the border's pixels.
    pub size: Option<u32>,
    /// Passes over the training samples; without it and `steps`, 50.
    pub epochs: Option<u64>,
    /// Steps of the optimizer after which training ends, in place of `epochs`: arms of a comparison
    /// that differ in their number of images then train alike. Where both are set, `steps` counts, and
    /// a warning says so.
    pub steps: Option<u64>,
    /// Images of a training step, and at most as many at once afterwards.
    pub batch: usize,
    /// Highest learning rate; it rises over `warmup` steps and then follows `schedule`.
    pub lr: f64,
    /// Weight decay: AdamW takes it off the weights, the other optimizers add it to the gradient.
    pub weight_decay: f64,
    /// Evaluations without a better validation Dice after which training stops; 0 is never.
    pub patience: u64,
    /// What is minimised.
    pub loss: Loss,
    /// Largest norm of the gradient; 0 is without limit.
    pub clip: f64,
    /// Steps until the learning rate is reached.
    pub warmup: u64,
    /// How gradients become changes of the weights.
    pub optimizer: Optimizer,
    /// Share of the last change that goes on, 0 to below 1, for `sgd` (without it 0.9) and
    /// `rmsprop` (without it 0).
    pub momentum: Option<f64>,
    /// How the learning rate moves after `warmup`.
    pub schedule: Schedule,
    /// Where the learning rate ends (`cosine`, `polynomial`) or falls no lower (`plateau`).
    pub final_lr: f64,
    /// Exponent of `polynomial`; 1 is a straight line.
    pub power: f64,
    /// What `plateau` multiplies the learning rate by, above 0 and below 1.
    pub plateau_factor: f64,
    /// Evaluations without a better validation Dice that `plateau` waits for.
    pub plateau_patience: u64,
    /// Batches whose gradients make one step, for the step of a larger batch in less memory.
    pub accumulate: usize,
    /// Decay of a running mean of the weights, which is then what is validated and kept: 0.999, say.
    /// Step n uses at most (1 + n) / (10 + n).
    pub ema: Option<f64>,
    /// Epochs from one validation to the next.
    pub evaluate_every: u64,
    /// Steps from one validation to the next, besides those after epochs; 0 is never.
    pub evaluate_steps: u64,
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
    /// Steps from one checkpoint to the next, besides those after epochs; 0 is never. A killed
    /// training goes on from the last one.
    pub checkpoint_every: u64,
    /// Whether event files for TensorBoard are written beside `log.jsonl`.
    pub tensorboard: bool,
    /// What training computes in; `bf16` and `f16` are for graphics cards. Weights stay `f32`.
    pub precision: Precision,
    /// Seed of initial weights and order of samples; without it, the run's.
    pub seed: Option<u64>,
    /// A folder that training left. Width, depth, size and classes are then those of the weights.
    pub weights: Option<PathBuf>,
    /// Probability from which on (exclusive) a pixel belongs to the target; with several target
    /// classes the most probable class is taken instead.
    pub threshold: f32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            width: 64,
            depth: 4,
            size: None,
            epochs: None,
            steps: None,
            batch: 8,
            lr: 1e-3,
            weight_decay: 1e-4,
            patience: 15,
            loss: Loss::DiceBce,
            clip: 1.0,
            warmup: 20,
            optimizer: Optimizer::AdamW,
            momentum: None,
            schedule: Schedule::Cosine,
            final_lr: 0.0,
            power: 1.0,
            plateau_factor: 0.1,
            plateau_patience: 5,
            accumulate: 1,
            ema: None,
            evaluate_every: 1,
            evaluate_steps: 0,
            keep: Keep::Best,
            synthetic_share: None,
            real_last: 0.0,
            real_statistics: false,
            checkpoint_every: 0,
            tensorboard: false,
            precision: Precision::F32,
            seed: None,
            weights: None,
            threshold: 0.5,
        }
    }
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
}

impl Loss {
    /// Weights of Dice and cross-entropy.
    pub fn weights(self) -> (f32, f32) {
        match self {
            Loss::DiceBce => (1.0, 1.0),
            Loss::Dice => (1.0, 0.0),
            Loss::Bce => (0.0, 1.0),
        }
    }
}

impl Options {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the option and what it may be.
    pub fn check(&self) -> Result<()> {
        let fail = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(field))
        };
        if !(1..=1024).contains(&self.width) {
            return fail("width", &self.width, "1 to 1024");
        }
        if !(1..=5).contains(&self.depth) {
            return fail("depth", &self.depth, "1 to 5");
        }
        if let Some(size) = self.size
            && !(8..=4096).contains(&size)
        {
            return fail("size", &size, "8 to 4096");
        }
        let (parameters, _) = UNet::count(1, self.width, self.depth);
        if u128::from(parameters) > limits::PARAMETERS {
            let expected = format!(
                "a `width` and `depth` of at most {} parameters, not {parameters}",
                limits::PARAMETERS
            );
            return fail("width", &self.width, &expected);
        }
        for (field, value, most) in [
            ("epochs", self.epochs.unwrap_or(1), 1_000_000_000),
            ("steps", self.steps.unwrap_or(1), 1_000_000_000),
            ("batch", self.batch as u64, 65_536),
            ("accumulate", self.accumulate as u64, 65_536),
        ] {
            if value > most {
                return fail(field, &value, &format!("at most {most}"));
            }
        }
        let counts = [
            ("epochs", self.epochs.unwrap_or(1)),
            ("steps", self.steps.unwrap_or(1)),
            ("batch", self.batch as u64),
            ("accumulate", self.accumulate as u64),
            ("evaluate_every", self.evaluate_every),
        ];
        for (field, value) in counts {
            if value == 0 {
                return fail(field, &value, "at least 1");
            }
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return fail("lr", &self.lr, "a number above 0");
        }
        let not_negative = [
            ("weight_decay", self.weight_decay),
            ("clip", self.clip),
            ("final_lr", self.final_lr),
        ];
        for (field, value) in not_negative {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(field, &value, "0 or a number above it");
            }
        }
        if !(0.0..1.0).contains(&self.threshold) {
            return fail("threshold", &self.threshold, "a number from 0 to below 1");
        }
        let shares = [("momentum", self.momentum), ("ema", self.ema)];
        for (field, value) in shares {
            if let Some(value) = value
                && !(0.0..1.0).contains(&value)
            {
                return fail(field, &value, "a number from 0 to below 1");
            }
        }
        if let Some(mix) = self.mix() {
            mix.check("synthetic_share", "real_last")?;
        }
        if self.momentum.is_some() && self.optimizer == Optimizer::AdamW {
            return Err(Error::config(
                "`momentum` is for the optimizers `sgd` and `rmsprop`, not `adamw`",
            )
            .at("momentum"));
        }
        if !(self.power > 0.0 && self.power.is_finite()) {
            return fail("power", &self.power, "a number above 0");
        }
        if !(self.plateau_factor > 0.0 && self.plateau_factor < 1.0) {
            let expected = "a number between 0 and 1";
            return fail("plateau_factor", &self.plateau_factor, expected);
        }
        Ok(())
    }

    /// What of the options does not count because of another, if any.
    pub fn unused(&self) -> Option<String> {
        let (epochs, steps) = (self.epochs?, self.steps?);
        Some(format!(
            "`epochs` = {epochs} is not used: `steps` = {steps} says how long training takes"
        ))
    }

    /// What the training loop is told.
    pub fn settings(&self, seed: u64) -> Settings {
        let averaging = |decay| Averaging {
            decay: Decay::Warmup { decay },
            evaluate: true,
            only: None,
        };
        Settings {
            epochs: self.epochs.unwrap_or(EPOCHS),
            steps: self.steps,
            batch: self.batch,
            learning_rate: self.lr,
            weight_decay: self.weight_decay,
            clip: self.clip,
            warmup: self.warmup,
            patience: match self.keep {
                Keep::Best => self.patience,
                Keep::Last => 0,
            },
            keep: self.keep,
            mix: self.mix(),
            evaluate_every: self.evaluate_every,
            seed,
            optimizer: self.rule(),
            schedule: self.schedule(),
            accumulate: self.accumulate,
            ema: self.ema.map(averaging),
            evaluate_steps: self.evaluate_steps,
            checkpoint_every: self.checkpoint_every,
            tensorboard: self.tensorboard,
            ..Settings::default()
        }
    }

    fn mix(&self) -> Option<Mix> {
        Mix::of(self.synthetic_share, self.real_last)
    }

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
        let last = self.final_lr;
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

/// What a network is: with its weights, all that answering needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Architecture {
    /// The plugin's name, so that the weights of another are not taken for ours.
    pub plugin: String,
    /// Channels of the first level.
    pub width: usize,
    /// Number of halvings.
    pub depth: usize,
    /// Width and height that images are resized to.
    pub input: (u32, u32),
    /// The target classes: label and name. With one the network says how probable it is; with
    /// several it chooses among them and background.
    pub classes: Vec<(u8, String)>,
}

impl Architecture {
    /// The network that finds `classes` in images of that size.
    pub fn new(options: &Options, classes: Vec<(u8, String)>, input: (u32, u32)) -> Self {
        Architecture {
            plugin: "unet".into(),
            width: options.width,
            depth: options.depth,
            input,
            classes,
        }
    }

    /// What the folder `weights` says about the network in it.
    ///
    /// # Errors
    /// When it is not a folder that training left.
    pub fn read(weights: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            model: Architecture,
        }
        let path = weights.join(CONFIG);
        let file: Result<File> = input::json_file(&path, input::CONFIG_BYTES);
        let file = file.or_error(ErrorKind::Model, || {
            format!(
                "`{}` is no folder that training `unet` left",
                weights.display()
            )
        })?;
        let model = file.model;
        let sound = (1..=1024).contains(&model.width)
            && (1..=5).contains(&model.depth)
            && (1..=4096).contains(&model.input.0)
            && (1..=4096).contains(&model.input.1)
            && (1..=255).contains(&model.classes.len());
        if model.plugin != "unet" || !sound {
            return Err(Error::model(format!(
                "`{}` does not describe a network of the plugin `unet`",
                path.display()
            )));
        }
        Ok(model)
    }

    /// Checks that the file at `path` holds as many values as the network has, before there is one.
    ///
    /// # Errors
    /// When it does not, or cannot be read.
    pub fn check_stored(&self, path: &Path) -> Result<()> {
        let (parameters, statistics) = UNet::count(self.outputs(), self.width, self.depth);
        let (stored, expected) = (budget::stored(path)?.values, parameters + statistics);
        match stored == expected {
            true => Ok(()),
            false => Err(Error::model(format!(
                "`{}` holds {stored} values, but the network has {expected}",
                path.display()
            ))),
        }
    }

    /// Number of channels of the network's answer.
    pub fn outputs(&self) -> usize {
        match self.classes.len() {
            1 => 1,
            several => several + 1,
        }
    }

    /// How images are laid out for it.
    pub fn frame(&self) -> Frame {
        Frame::padded(self.input, 1 << self.depth)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Class, DatasetInfo, segmenting};

    #[test]
    fn a_wrong_value_names_its_option() {
        let field = |json: &str| {
            let options: Options = serde_json::from_str(json).unwrap();
            options.check().unwrap_err().field.to_string()
        };
        assert!(Options::default().check().is_ok());
        let both: Options = serde_json::from_str(r#"{"epochs": 2, "steps": 500}"#).unwrap();
        assert!(
            both.unused()
                .unwrap()
                .starts_with("`epochs` = 2 is not used")
        );
        assert_eq!(Options::default().unused(), None);
        assert_eq!(field(r#"{"depth": 6}"#), "depth");
        assert_eq!(field(r#"{"width": 0}"#), "width");
        assert_eq!(field(r#"{"width": 1024, "depth": 5}"#), "width");
        assert_eq!(field(r#"{"epochs": 18446744073709551615}"#), "epochs");
        assert_eq!(field(r#"{"batch": 1000000000}"#), "batch");
        assert_eq!(field(r#"{"accumulate": 1000000000}"#), "accumulate");
        assert_eq!(field(r#"{"size": 2147483648}"#), "size");
        assert_eq!(field(r#"{"size": 4}"#), "size");
        assert_eq!(field(r#"{"lr": 0}"#), "lr");
        assert_eq!(field(r#"{"threshold": 1}"#), "threshold");
        assert_eq!(field(r#"{"clip": -1}"#), "clip");
        assert_eq!(field(r#"{"accumulate": 0}"#), "accumulate");
        assert_eq!(field(r#"{"evaluate_every": 0}"#), "evaluate_every");
        assert_eq!(field(r#"{"steps": 0}"#), "steps");
        assert_eq!(field(r#"{"ema": 1}"#), "ema");
        assert_eq!(field(r#"{"momentum": 0.9}"#), "momentum");
        let sgd = r#"{"optimizer": "sgd", "momentum": 1}"#;
        assert_eq!(field(sgd), "momentum");
        assert_eq!(field(r#"{"synthetic_share": 1.0}"#), "synthetic_share");
        assert_eq!(field(r#"{"real_last": 1.1}"#), "real_last");
        assert_eq!(field(r#"{"final_lr": -1}"#), "final_lr");
        assert_eq!(field(r#"{"power": 0}"#), "power");
        assert_eq!(field(r#"{"plateau_factor": 1}"#), "plateau_factor");
        assert!(serde_json::from_str::<Options>(r#"{"schedule": "step"}"#).is_err());
        assert!(serde_json::from_str::<Options>(r#"{"loss": "l2"}"#).is_err());
    }

    #[test]
    fn every_choice_fits_the_training_loop() {
        let mixed = r#"{"synthetic_share": 0.3, "real_last": 0.4, "keep": "last"}"#;
        let mixed: Options = serde_json::from_str(mixed).unwrap();
        mixed.check().unwrap();
        let settings = mixed.settings(1);
        settings.check().unwrap();
        assert_eq!(
            (settings.keep, settings.mix),
            (Keep::Last, Mix::of(Some(0.3), 0.4))
        );
        for optimizer in ["adamw", "sgd", "rmsprop"] {
            for schedule in ["constant", "cosine", "polynomial", "plateau"] {
                let json = format!(
                    r#"{{"optimizer": "{optimizer}", "schedule": "{schedule}", "ema": 0.99}}"#
                );
                let options: Options = serde_json::from_str(&json).unwrap();
                options.check().unwrap();
                options.settings(1).check().unwrap();
            }
        }
    }

    #[test]
    fn defaults_leave_the_description_of_a_run_as_it_was() {
        let settings = serde_json::to_value(Options::default().settings(7)).unwrap();
        let expected = serde_json::json!({
            "epochs": 50, "batch": 8, "learning_rate": 1e-3, "weight_decay": 1e-4, "clip": 1.0,
            "warmup": 20, "patience": 15, "evaluate_every": 1, "seed": 7
        });
        assert_eq!(settings, expected);
    }

    #[test]
    fn several_targets_get_a_channel_each_and_one_for_background() {
        let mut info = DatasetInfo::single_class("d", "cup");
        let network = |info: &DatasetInfo| {
            let targets = segmenting::targets(info).unwrap();
            Architecture::new(&Options::default(), targets, (100, 60))
        };
        let one = network(&info);
        assert_eq!((one.outputs(), one.frame().whole), (1, (112, 64)));
        let class = |label, target| Class {
            label,
            name: "x".into(),
            target,
        };
        info.classes.push(class(4, true));
        info.classes.push(class(3, false));
        let two = network(&info);
        let labels: Vec<u8> = segmenting::classes(&two.classes)
            .map(|class| class.label)
            .collect();
        assert_eq!((two.outputs(), labels), (3, vec![1, 4]));
    }
}
