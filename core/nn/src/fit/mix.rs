//! Steps of real and synthetic samples in a stated proportion, whatever there are of each, and a last
//! phase of real samples alone.
//!
//! Each kind is gone through in passes of its own, every one a permutation, so that samples of a kind are
//! seen equally often. How many of a step are synthetic follows from the step alone.

use super::plan::{PURPOSE, permutation};
use diffaug::{Error, Result, rng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How real and synthetic samples are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Share of each step's samples that are synthetic, 0 to below 1, over many steps exactly; without
    /// it, their share of all samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Share of all steps, those at the end, that see real samples alone, 0 to 1.
    #[serde(default)]
    pub real_last: f64,
}

impl Mix {
    /// The mixture of a plugin's options; none where both are left as they are.
    pub fn of(share: Option<f64>, real_last: f64) -> Option<Self> {
        (share.is_some() || real_last != 0.0).then_some(Mix { share, real_last })
    }

    /// Checks the numbers, which the options `share` and `real_last` hold.
    ///
    /// # Errors
    /// Naming the one that is out of range.
    pub fn check(&self, share: &str, real_last: &str) -> Result<()> {
        if let Some(value) = self.share
            && !(0.0..1.0).contains(&value)
        {
            return Err(Error::config(format!(
                "`{share}` is {value}, expected a number from 0 to below 1, for training needs real images"
            ))
            .at(share));
        }
        if !(0.0..=1.0).contains(&self.real_last) {
            let value = self.real_last;
            let message = format!("`{real_last}` is {value}, expected a number from 0 to 1");
            return Err(Error::config(message).at(real_last));
        }
        Ok(())
    }
}

/// The samples of each kind, and how steps are made of them.
#[derive(Debug)]
pub(super) struct Mixture {
    /// Indices of the samples.
    real: Vec<u64>,
    synthetic: Vec<u64>,
    /// Share of synthetic samples in the first phase.
    share: f64,
    /// Samples of a step.
    size: u64,
    /// Steps of the first phase.
    mixed: u64,
    seed: u64,
}

impl Mixture {
    /// Steps of `size` samples, `total` of them; `synthetic` says of every sample whether it is.
    ///
    /// # Errors
    /// When none of them is real.
    pub fn new(mix: Mix, synthetic: &[bool], size: u64, total: u64, seed: u64) -> Result<Self> {
        let of_kind = |kind: bool| {
            let all = synthetic.iter().zip(0..);
            all.filter_map(move |(is, index)| (*is == kind).then_some(index))
        };
        let (real, made): (Vec<u64>, Vec<u64>) =
            (of_kind(false).collect(), of_kind(true).collect());
        if real.is_empty() {
            return Err(Error::data(
                "none of the training images is real, so synthetic ones cannot be mixed with them",
            ));
        }
        let natural = made.len() as f64 / synthetic.len() as f64;
        let share = if made.is_empty() {
            0.0
        } else {
            mix.share.unwrap_or(natural)
        };
        let last = (mix.real_last * total as f64).round() as u64;
        Ok(Mixture {
            real,
            synthetic: made,
            share,
            size,
            mixed: total.saturating_sub(last),
            seed,
        })
    }

    /// Synthetic samples of all steps before `step`: the remainder of one is for the next.
    fn synthetic_before(&self, step: u64) -> u64 {
        let samples = step.min(self.mixed) as f64 * self.size as f64;
        // A product just below a whole number is that number.
        (samples * self.share + 1e-6).floor() as u64
    }

    /// The indices of the samples of `step`, both kinds spread evenly: sample `i` in pass `p` over its
    /// kind is `p` times the number of all samples, plus `i`.
    pub fn indices(&self, step: u64) -> Vec<u64> {
        let (first, end) = (self.synthetic_before(step), self.synthetic_before(step + 1));
        let count = end - first;
        let mut made = self
            .visits(&self.synthetic, "synthetic", first, count)
            .into_iter();
        let before = step * self.size - first;
        let mut real = self
            .visits(&self.real, "real", before, self.size - count)
            .into_iter();
        let places = 0..self.size;
        let is_made = |place: u64| (place + 1) * count / self.size > place * count / self.size;
        let of_place = |place| {
            if is_made(place) {
                made.next()
            } else {
                real.next()
            }
        };
        places.filter_map(of_place).collect()
    }

    /// Visits `first` to `first + count` of the samples `kind`, in passes.
    fn visits(&self, kind: &[u64], name: &str, first: u64, count: u64) -> Vec<u64> {
        let (length, all) = (
            kind.len() as u64,
            (self.real.len() + self.synthetic.len()) as u64,
        );
        let seed = rng::derive(self.seed, PURPOSE, name);
        let mut order: Option<(u64, Vec<u64>)> = None;
        let visit = |number: u64| {
            let (pass, place) = (number / length, number % length);
            let known = order.take().filter(|(known, _)| *known == pass);
            let (_, places) =
                order.insert(known.unwrap_or_else(|| (pass, permutation(seed, length, pass))));
            pass * all + kind[places[place as usize] as usize]
        };
        (first..first + count).map(visit).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// 5 real samples and 13 synthetic ones, in turns as far as possible.
    const KINDS: [bool; 18] = [
        false, true, false, true, false, true, false, true, false, true, true, true, true, true,
        true, true, true, true,
    ];

    fn mixture(share: Option<f64>, real_last: f64, total: u64) -> Mixture {
        let mix = Mix { share, real_last };
        Mixture::new(mix, &KINDS, 8, total, 7).unwrap()
    }

    fn is_synthetic(index: u64) -> bool {
        KINDS[(index % KINDS.len() as u64) as usize]
    }

    #[test]
    fn the_share_is_exact_over_many_steps_and_near_in_each() {
        for share in [0.0, 0.3, 0.5, 0.99] {
            let mixture = mixture(Some(share), 0.0, 1000);
            let mut found = 0;
            for step in 0..1000 {
                let indices = mixture.indices(step);
                assert_eq!(indices.len(), 8);
                let count = indices.iter().filter(|i| is_synthetic(**i)).count();
                assert!(
                    (count as f64 - 8.0 * share).abs() < 1.0,
                    "{count} of {share}"
                );
                found += count;
            }
            assert_eq!(found as f64, (8000.0 * share).round());
        }
        // Without a share it is that of the set.
        let natural = mixture(None, 0.0, 9);
        let all: Vec<u64> = (0..9).flat_map(|step| natural.indices(step)).collect();
        assert_eq!(all.iter().filter(|i| is_synthetic(**i)).count(), 4 * 13);
    }

    #[test]
    fn both_kinds_are_spread_over_a_step() {
        let mixture = mixture(Some(0.5), 0.0, 10);
        for step in 0..10 {
            let indices = mixture.indices(step);
            for half in indices.chunks(4) {
                assert_eq!(half.iter().filter(|i| is_synthetic(**i)).count(), 2);
            }
        }
    }

    #[test]
    fn the_last_phase_is_real() {
        let mixture = mixture(Some(0.3), 0.4, 50);
        let synthetic = |step| mixture.indices(step).into_iter().any(is_synthetic);
        assert!((0..30).all(synthetic));
        assert!(!(30..50).any(synthetic));
        assert!((30..50).all(|step| mixture.indices(step).len() == 8));
    }

    #[test]
    fn samples_of_a_kind_are_seen_equally_often_and_never_under_one_index() {
        // 650 visits of 13 synthetic samples, and 1350 of 5 real ones.
        let mixture = mixture(Some(0.325), 0.0, 250);
        let all: Vec<u64> = (0..250).flat_map(|step| mixture.indices(step)).collect();
        let mut visits: BTreeMap<u64, u64> = BTreeMap::new();
        for index in &all {
            *visits.entry(index % KINDS.len() as u64).or_default() += 1;
        }
        for (sample, count) in &visits {
            let expected = if is_synthetic(*sample) { 50 } else { 270 };
            assert_eq!(*count, expected, "sample {sample}");
        }
        assert_eq!(visits.len(), KINDS.len());
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all.len());
    }

    #[test]
    fn without_synthetic_samples_all_are_real_and_without_real_ones_it_fails() {
        let mix = Mix {
            share: Some(0.3),
            real_last: 0.0,
        };
        let real = Mixture::new(mix, &[false; 3], 8, 10, 7).unwrap();
        let all: Vec<u64> = (0..3).flat_map(|step| real.indices(step)).collect();
        assert_eq!(all.len(), 24);
        for pass in 0..8u64 {
            let mut part = all[pass as usize * 3..][..3].to_vec();
            part.sort_unstable();
            assert_eq!(part, [3 * pass, 3 * pass + 1, 3 * pass + 2]);
        }
        let error = Mixture::new(mix, &[true; 3], 8, 10, 7).unwrap_err();
        assert!(
            error
                .message
                .contains("none of the training images is real")
        );
        assert_eq!(Mix::of(None, 0.0), None);
        let field = |share, real_last| {
            let mix = Mix::of(share, real_last).unwrap();
            mix.check("s", "r").unwrap_err().field.to_string()
        };
        assert_eq!(
            (field(Some(1.0), 0.0).as_str(), field(None, 1.5).as_str()),
            ("s", "r")
        );
    }
}
