//! How to train.

use super::mix::Mix;
use crate::optim::{self, Decay, Group, Rule, Schedule};
use diffaug::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Steps, or epochs, of a training at most.
const MOST_STEPS: u64 = 1_000_000_000;
/// Samples of a batch, or batches of a step, at most: so the number of a sample fits into 64 bits.
const MOST_BATCH: u64 = 65_536;

/// How to train.
///
/// What is added to it later has a default that changes nothing, and is left out of `config.json`
/// where it has that value, so that folders of earlier versions stay usable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Passes over the training samples.
    pub epochs: u64,
    /// Steps after which training ends, in place of `epochs`. Then no checkpoint is made merely
    /// because an epoch is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Samples that are computed on at once, at most: an epoch is cut into parts of equal size,
    /// give or take one.
    pub batch: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Weight decay of tensors of two and more dimensions.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 is without limit.
    pub clip: f64,
    /// Steps until the learning rate is reached.
    pub warmup: u64,
    /// Evaluations without a better score after which training stops; 0 is never.
    pub patience: u64,
    /// Epochs from one evaluation to the next.
    pub evaluate_every: u64,
    /// Seed of the order of samples.
    pub seed: u64,
    /// How gradients become changes of the weights.
    #[serde(skip_serializing_if = "is_default")]
    pub optimizer: Rule,
    /// Tensors for which learning rate or weight decay differ, or that are frozen.
    #[serde(skip_serializing_if = "is_default")]
    pub groups: Vec<Group>,
    /// How the learning rate moves after warm-up.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// Batches whose gradients make one step: for losses that are means over samples, the step of
    /// a batch that many times as large.
    #[serde(skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// Running mean of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<Averaging>,
    /// Steps from one evaluation to the next, besides those after epochs; 0 is never.
    #[serde(skip_serializing_if = "is_default")]
    pub evaluate_steps: u64,
    /// Which weights are kept.
    #[serde(skip_serializing_if = "is_default")]
    pub keep: Keep,
    /// How real and synthetic samples are mixed; without it every epoch visits every sample once. With it
    /// each step has `batch` times `accumulate` samples, and an epoch is as many steps as one pass over
    /// all samples would take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    /// Steps from one checkpoint to the next, besides those after epochs and evaluations; 0 is
    /// never. What is not yet in a checkpoint is done again after a kill.
    #[serde(skip)]
    pub checkpoint_every: u64,
    /// Whether the last checkpoint stays when training is finished.
    #[serde(skip)]
    pub keep_last: bool,
    /// Steps from one line of the log to the next; 0 is without log.
    #[serde(skip)]
    pub log_every: u64,
    /// Whether the log is written for TensorBoard, too.
    #[serde(skip)]
    pub tensorboard: bool,
}

/// Which weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Those with the best score on the validation set.
    #[default]
    Best,
    /// Those after the last step, so that no training has more of them to choose from than another.
    Last,
}

/// A running mean of the weights, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Averaging {
    /// How slowly it follows.
    pub decay: Decay,
    /// Whether it is the mean that is evaluated and stored as the best weights; otherwise it is
    /// stored beside them.
    pub evaluate: bool,
    /// The tensors whose mean is formed, by how their names begin; without it all of them.
    #[serde(skip)]
    pub only: Option<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            epochs: 1,
            steps: None,
            batch: 1,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            clip: 0.0,
            warmup: 0,
            patience: 0,
            evaluate_every: 1,
            seed: 0,
            optimizer: Rule::default(),
            groups: Vec::new(),
            schedule: Schedule::default(),
            accumulate: 1,
            ema: None,
            evaluate_steps: 0,
            keep: Keep::Best,
            mix: None,
            checkpoint_every: 0,
            keep_last: false,
            log_every: 1,
            tensorboard: false,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

impl Settings {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the setting and what it may be.
    pub fn check(&self) -> Result<()> {
        let fail = |field: &str, value: f64, expected: &str| {
            Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(field))
        };
        let counts = [
            ("epochs", self.epochs),
            ("steps", self.steps.unwrap_or(1)),
            ("batch", self.batch as u64),
            ("accumulate", self.accumulate as u64),
            ("evaluate_every", self.evaluate_every),
        ];
        for (field, value) in counts {
            if value == 0 {
                return fail(field, 0.0, "at least 1");
            }
        }
        let most = [
            ("epochs", self.epochs, MOST_STEPS),
            ("steps", self.steps.unwrap_or(1), MOST_STEPS),
            ("batch", self.batch as u64, MOST_BATCH),
            ("accumulate", self.accumulate as u64, MOST_BATCH),
        ];
        for (field, value, most) in most {
            if value > most {
                return fail(field, value as f64, &format!("at most {most}"));
            }
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return fail("learning_rate", self.learning_rate, "a number above 0");
        }
        let groups = self.groups.iter().flat_map(|group| {
            let decay = group.weight_decay.unwrap_or_default();
            [("groups.rate", group.rate), ("groups.weight_decay", decay)]
        });
        let own = [("weight_decay", self.weight_decay), ("clip", self.clip)];
        for (field, value) in own.into_iter().chain(groups) {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(field, value, "0 or a number above it");
            }
        }
        if self.keep == Keep::Last && self.patience > 0 {
            let expected = "0, for the last weights are those after all steps";
            return fail("patience", self.patience as f64, expected);
        }
        if let Some(mix) = self.mix {
            mix.check("mix.share", "mix.real_last")?;
        }
        self.optimizer.check()?;
        self.schedule.check()?;
        self.ema.map_or(Ok(()), |ema| ema.decay.check())
    }

    /// Checks that the epochs over so many samples are no more steps than can be counted.
    pub(super) fn check_total(&self, samples: u64) -> Result<()> {
        let batch = (self.batch.max(1) * self.accumulate.max(1)) as u64;
        let each = samples.div_ceil(batch);
        match (self.steps, each.saturating_mul(self.epochs)) {
            (None, total) if total > MOST_STEPS => Err(Error::config(format!(
                "`epochs` is {}, which makes {total} steps, expected at most {MOST_STEPS}",
                self.epochs
            ))
            .at("epochs")),
            _ => Ok(()),
        }
    }

    /// The optimiser that this describes.
    pub(super) fn optimizer(&self) -> optim::Config {
        optim::Config {
            rule: self.optimizer,
            weight_decay: self.weight_decay,
            clip: self.clip,
            groups: self.groups.clone(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_has_its_default_is_not_written() {
        let text = serde_json::to_string(&Settings::default()).unwrap();
        let expected = r#"{"epochs":1,"batch":1,"learning_rate":0.001,"weight_decay":0.0,"clip":0.0,"warmup":0,"patience":0,"evaluate_every":1,"seed":0}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_wrong_value_names_its_setting() {
        let field = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().field.to_string()
        };
        assert!(Settings::default().check().is_ok());
        assert_eq!(field(|s| s.accumulate = 0), "accumulate");
        assert_eq!(field(|s| s.accumulate = 65_537), "accumulate");
        assert_eq!(field(|s| s.batch = usize::MAX), "batch");
        assert_eq!(field(|s| s.epochs = u64::MAX), "epochs");
        assert_eq!(field(|s| s.steps = Some(1_000_000_001)), "steps");
        let long = Settings {
            epochs: 1_000_000_000,
            ..Settings::default()
        };
        assert!(long.check_total(1).is_ok());
        let error = long.check_total(2).unwrap_err();
        assert!(error.message.contains("makes 2000000000 steps"), "{error}");
        assert_eq!(field(|s| s.clip = f64::NAN), "clip");
        assert_eq!(field(|s| s.mix = Mix::of(Some(1.0), 0.0)), "mix.share");
        assert_eq!(field(|s| s.mix = Mix::of(None, -0.1)), "mix.real_last");
        assert_eq!(
            field(|s| (s.keep, s.patience) = (Keep::Last, 1)),
            "patience"
        );
        assert_eq!(
            field(|s| s.optimizer = Rule::sgd(2.0)),
            "optimizer.momentum"
        );
        assert_eq!(
            field(|s| s.schedule = Schedule::Cosine { last: -1.0 }),
            "schedule.last"
        );
        let decay = Decay::Fixed { decay: 1.0 };
        let ema = Averaging {
            decay,
            evaluate: true,
            only: None,
        };
        let settings = Settings {
            ema: Some(ema),
            ..Settings::default()
        };
        assert_eq!(settings.check().unwrap_err().field, "ema.decay");
    }
}
