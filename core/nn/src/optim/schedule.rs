//! The learning rate over a run. All but one kind are functions of the step alone; [`Plateau`]
//! also looks at the scores, and what it remembers ([`PlateauState`]) belongs into checkpoints.

use diffaug::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate moves once warm-up is over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Along half a cosine (Loshchilov & Hutter, 2017) down to `last`.
    Cosine {
        /// Learning rate at the end, 0 or more.
        last: f64,
    },
    /// `last + (peak - last) (1 - t)^power` for `t` from 0 to 1.
    Polynomial {
        /// 1 is a straight line; above 0.
        power: f64,
        /// Learning rate at the end, 0 or more.
        last: f64,
    },
    /// It falls whenever the validation score has stopped rising.
    Plateau(Plateau),
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::Cosine { last: 0.0 }
    }
}

/// When and how far [`Schedule::Plateau`] falls; the rules are those of PyTorch's
/// `ReduceLROnPlateau` with `mode="max"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Plateau {
    /// What the rate is multiplied by, above 0 and below 1.
    pub factor: f64,
    /// Evaluations without a better score that are waited for.
    pub patience: u64,
    /// A score is better when it exceeds the best by this share of it, 0 or more; scores below 0
    /// need 0.
    pub threshold: f64,
    /// Evaluations after a fall that do not count.
    pub cooldown: u64,
    /// The rate falls no lower.
    pub lowest: f64,
}

impl Default for Plateau {
    fn default() -> Self {
        Plateau {
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            cooldown: 0,
            lowest: 0.0,
        }
    }
}

/// What [`Plateau`] remembers between evaluations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    best: Option<f64>,
    bad: u64,
    cooling: u64,
    scale: f64,
}

impl Default for PlateauState {
    fn default() -> Self {
        PlateauState {
            best: None,
            bad: 0,
            cooling: 0,
            scale: 1.0,
        }
    }
}

impl PlateauState {
    /// What the learning rate is multiplied by, 1 at first.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Takes in the score of an evaluation; larger is better.
    pub fn observe(&mut self, plateau: &Plateau, score: f64) {
        let better = |best: f64| score > best * (1.0 + plateau.threshold);
        if self.best.is_none_or(better) {
            self.best = Some(score);
            self.bad = 0;
        } else {
            self.bad += 1;
        }
        if self.cooling > 0 {
            self.cooling -= 1;
            self.bad = 0;
        }
        if self.bad > plateau.patience {
            self.scale *= plateau.factor;
            self.cooling = plateau.cooldown;
            self.bad = 0;
        }
    }
}

impl Schedule {
    /// The learning rate of `step` (from 0) of `total`: from near 0 up to `peak` over the first
    /// `warmup` steps, then as the schedule says. `plateau` matters to [`Schedule::Plateau`] alone.
    pub fn rate(
        &self,
        step: u64,
        total: u64,
        warmup: u64,
        peak: f64,
        plateau: &PlateauState,
    ) -> f64 {
        if step < warmup {
            return peak * (step + 1) as f64 / warmup as f64;
        }
        let share = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        let share = share.min(1.0);
        match *self {
            Schedule::Constant => peak,
            Schedule::Cosine { last } => {
                last + (peak - last) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
            Schedule::Polynomial { power, last } => {
                last + (peak - last) * (1.0 - share).powf(power)
            }
            Schedule::Plateau(Plateau { lowest, .. }) => (peak * plateau.scale).max(lowest),
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Naming the one that is out of range as `schedule.NAME`.
    pub fn check(&self) -> Result<()> {
        let fail = |field: &str, value: f64, expected: &str| {
            let field = format!("schedule.{field}");
            Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(&field))
        };
        let not_negative = |field: &str, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(()),
            false => fail(field, value, "0 or a number above it"),
        };
        match *self {
            Schedule::Constant => Ok(()),
            Schedule::Cosine { last } => not_negative("last", last),
            Schedule::Polynomial { power, .. } if !(power > 0.0 && power.is_finite()) => {
                fail("power", power, "a number above 0")
            }
            Schedule::Polynomial { last, .. } => not_negative("last", last),
            Schedule::Plateau(plateau) => {
                if !(plateau.factor > 0.0 && plateau.factor < 1.0) {
                    return fail("factor", plateau.factor, "a number between 0 and 1");
                }
                not_negative("threshold", plateau.threshold)?;
                not_negative("lowest", plateau.lowest)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule) -> impl Fn(u64) -> f64 {
        move |step| schedule.rate(step, 110, 10, 1.0, &PlateauState::default())
    }

    #[test]
    fn every_kind_warms_up() {
        let plateau = Schedule::Plateau(Plateau::default());
        let polynomial = Schedule::Polynomial {
            power: 2.0,
            last: 0.1,
        };
        for schedule in [Schedule::Constant, Schedule::default(), polynomial, plateau] {
            let rate = rates(schedule);
            assert_eq!((rate(0), rate(4), rate(9), rate(10)), (0.1, 0.5, 1.0, 1.0));
        }
    }

    #[test]
    fn they_end_where_they_should() {
        let rate = rates(Schedule::default());
        assert!((rate(60) - 0.5).abs() < 1e-12);
        assert!(rate(109) < 1e-3 && rate(109) > 0.0);
        let rate = rates(Schedule::Cosine { last: 0.2 });
        assert!((rate(60) - 0.6).abs() < 1e-12);
        assert_eq!((rate(110), rate(500)), (0.2, 0.2));
        let rate = rates(Schedule::Polynomial {
            power: 2.0,
            last: 0.2,
        });
        assert!((rate(60) - 0.4).abs() < 1e-12);
        assert_eq!(rate(110), 0.2);
        assert_eq!(rates(Schedule::Constant)(109), 1.0);
        let one = Schedule::default().rate(0, 0, 0, 1.0, &PlateauState::default());
        assert_eq!(one, 1.0);
    }

    /// Scores, and the rates that `torch.optim.lr_scheduler.ReduceLROnPlateau` sets after each with
    /// `mode="max", factor=0.5, patience=1, cooldown=1, threshold=1e-2, min_lr=0.2` from 1.
    #[test]
    fn the_plateau_is_pytorchs() {
        let plateau = Plateau {
            factor: 0.5,
            patience: 1,
            threshold: 1e-2,
            cooldown: 1,
            lowest: 0.2,
        };
        let scores = [
            0.5, 0.6, 0.601, 0.6, 0.6, 0.6, 0.6, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6,
        ];
        let expected = [
            1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2, 0.2,
        ];
        let mut state = PlateauState::default();
        for (score, rate) in scores.into_iter().zip(expected) {
            state.observe(&plateau, score);
            let ours = Schedule::Plateau(plateau).rate(0, 1, 0, 1.0, &state);
            assert!((ours - rate).abs() < 1e-12, "{ours}, expected {rate}");
        }
    }

    #[test]
    fn a_wrong_number_is_named() {
        let field = |schedule: Schedule| schedule.check().unwrap_err().field.to_string();
        assert_eq!(field(Schedule::Cosine { last: -1.0 }), "schedule.last");
        let plateau = Plateau {
            factor: 1.0,
            ..Plateau::default()
        };
        assert_eq!(field(Schedule::Plateau(plateau)), "schedule.factor");
        assert!(Schedule::default().check().is_ok());
    }
}
