//! STAPLE: one mask of several (Warfield et al., Simultaneous truth and performance level estimation,
//! 2004).
//!
//! Each mask is taken for the answer of a rater with a sensitivity and a specificity of its own.
//! Expectation maximisation finds these and the probability that a pixel belongs to the target. It begins
//! and ends as ITK's `STAPLEImageFilter` does: with the mean of the masks as probabilities and their mean
//! over all pixels as prior, which stays, until no sensitivity and no specificity moves by more than 1e-7.
//!
//! Where ITK's answer is no number, this one is defined. Masks that are all empty or all full are right;
//! a rater of whom nothing can be said has a sensitivity or specificity of 1; a pixel that all raters
//! together rule out either way keeps the prior.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Raters at most: what they say of a pixel is kept in one number.
const RATERS: usize = 64;
/// Iterations at most. Where raters hardly differ the last digits may move for long.
const MOST: usize = 10_000;
/// Square of the largest movement at which nothing moves any more.
const STILL: f64 = 1e-14;

/// What is known after the last iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct Staple {
    /// The probability of each pixel, 0 to 1, that it belongs to the target.
    pub probability: Vec<f32>,
    /// Share of the target's pixels that each rater found, in the order of the masks.
    pub sensitivity: Vec<f64>,
    /// Share of the background's pixels that each rater left alone.
    pub specificity: Vec<f64>,
    /// Iterations that were made; 0 where all masks are empty or all are full.
    pub iterations: usize,
}

/// Joins `masks` of one size, true where a pixel belongs to the target.
///
/// # Errors
/// When there are none or more than 64, they have no pixels, or their sizes differ.
pub fn staple(masks: &[&[bool]]) -> Result<Staple> {
    let pixels = masks.first().map_or(0, |mask| mask.len());
    if !(1..=RATERS).contains(&masks.len()) {
        let count = masks.len();
        let message = format!("{count} masks are to be joined, expected 1 to {RATERS}");
        return Err(Error::data(message));
    }
    if pixels == 0 {
        return Err(Error::data("masks without pixels cannot be joined"));
    }
    if let Some(other) = masks.iter().find(|mask| mask.len() != pixels) {
        let message = format!(
            "a mask of {} pixels cannot be joined with one of {pixels}",
            other.len()
        );
        return Err(Error::data(message));
    }
    let patterns: Vec<u64> = (0..pixels).map(|pixel| pattern(masks, pixel)).collect();
    let mut counts = BTreeMap::new();
    for pattern in &patterns {
        *counts.entry(*pattern).or_insert(0.0) += 1.0;
    }
    let mut estimate = Estimate::new(counts, masks.len(), pixels);
    let iterations = estimate.run();
    let probability: BTreeMap<u64, f32> = estimate
        .groups
        .iter()
        .map(|group| (group.pattern, group.probability as f32))
        .collect();
    Ok(Staple {
        probability: patterns
            .iter()
            .map(|pattern| probability[pattern])
            .collect(),
        sensitivity: estimate
            .raters
            .iter()
            .map(|rater| rater.sensitivity)
            .collect(),
        specificity: estimate
            .raters
            .iter()
            .map(|rater| rater.specificity)
            .collect(),
        iterations,
    })
}

/// [`staple`] of maps of probabilities, of which a pixel belongs to the target above 0.5.
///
/// # Errors
/// Those of [`staple`].
pub fn staple_of_probabilities(maps: &[&[f32]]) -> Result<Staple> {
    let above = |map: &&[f32]| map.iter().map(|p| *p > 0.5).collect();
    let masks: Vec<Vec<bool>> = maps.iter().map(above).collect();
    let masks: Vec<&[bool]> = masks.iter().map(Vec::as_slice).collect();
    staple(&masks)
}

/// Bit i is what rater i says of the pixel.
fn pattern(masks: &[&[bool]], pixel: usize) -> u64 {
    let bits = masks.iter().enumerate();
    bits.fold(0, |all, (rater, mask)| {
        all | u64::from(mask[pixel]) << rater
    })
}

/// The pixels of which all raters say the same.
struct Group {
    pattern: u64,
    pixels: f64,
    probability: f64,
}

#[derive(Clone, Copy, PartialEq)]
struct Rater {
    sensitivity: f64,
    specificity: f64,
}

struct Estimate {
    groups: Vec<Group>,
    raters: Vec<Rater>,
    prior: f64,
}

impl Estimate {
    /// What is assumed at first, for so many pixels of each pattern.
    fn new(counts: BTreeMap<u64, f64>, raters: usize, pixels: usize) -> Self {
        let group = |(pattern, pixels): (u64, f64)| Group {
            pattern,
            pixels,
            probability: f64::from(pattern.count_ones()) / raters as f64,
        };
        let groups: Vec<Group> = counts.into_iter().map(group).collect();
        let total: f64 = groups.iter().map(|g| g.pixels * g.probability).sum();
        let certain = Rater {
            sensitivity: 1.0,
            specificity: 1.0,
        };
        Estimate {
            groups,
            raters: vec![certain; raters],
            prior: total / pixels as f64,
        }
    }

    /// Iterates until nothing moves; the number of iterations.
    fn run(&mut self) -> usize {
        let certain = |group: &Group| group.probability == 0.0 || group.probability == 1.0;
        if self.groups.len() == 1 && self.groups.iter().all(certain) {
            return 0;
        }
        for iteration in 1..=MOST {
            let raters = (0..self.raters.len()).map(|rater| self.rate(rater));
            let raters = raters.collect();
            let before = std::mem::replace(&mut self.raters, raters);
            for at in 0..self.groups.len() {
                self.groups[at].probability = self.probability(self.groups[at].pattern);
            }
            if iteration > 1 && self.is_still(&before) {
                return iteration;
            }
        }
        MOST
    }

    /// How well a rater does if the probabilities are right.
    fn rate(&self, rater: usize) -> Rater {
        // Of target and background: what there is, and what the rater got right.
        let (mut target, mut found) = (0.0, 0.0);
        let (mut background, mut left) = (0.0, 0.0);
        for group in &self.groups {
            let inside = group.pixels * group.probability;
            let outside = group.pixels * (1.0 - group.probability);
            target += inside;
            background += outside;
            match group.pattern >> rater & 1 {
                1 => found += inside,
                _ => left += outside,
            }
        }
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 1.0 };
        Rater {
            sensitivity: share(found, target),
            specificity: share(left, background),
        }
    }

    /// The probability of a pixel of that pattern if the raters are as they seem.
    fn probability(&self, pattern: u64) -> f64 {
        let (mut inside, mut outside) = (1.0, 1.0);
        for (i, rater) in self.raters.iter().enumerate() {
            if pattern >> i & 1 == 1 {
                inside *= rater.sensitivity;
                outside *= 1.0 - rater.specificity;
            } else {
                inside *= 1.0 - rater.sensitivity;
                outside *= rater.specificity;
            }
        }
        let (inside, outside) = (self.prior * inside, (1.0 - self.prior) * outside);
        if inside + outside > 0.0 {
            inside / (inside + outside)
        } else {
            self.prior
        }
    }

    fn is_still(&self, before: &[Rater]) -> bool {
        let moved = |now: f64, before: f64| (now - before).powi(2) > STILL;
        let pairs = self.raters.iter().zip(before);
        !pairs.into_iter().any(|(now, before)| {
            moved(now.sensitivity, before.sensitivity) || moved(now.specificity, before.specificity)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bits(text: &str) -> Vec<bool> {
        text.bytes().map(|byte| byte == b'1').collect()
    }

    fn join(masks: &[&str]) -> Staple {
        let masks: Vec<Vec<bool>> = masks.iter().map(|text| bits(text)).collect();
        let masks: Vec<&[bool]> = masks.iter().map(Vec::as_slice).collect();
        staple(&masks).unwrap()
    }

    /// Made by `fixtures/make_staple.py`.
    #[test]
    fn estimates_agree_with_itk() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../fixtures/staple.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert_eq!(cases.len(), 13);
        for case in cases {
            let masks = case["masks"].as_array().unwrap();
            let masks: Vec<&str> = masks.iter().map(|mask| mask.as_str().unwrap()).collect();
            let ours = join(&masks);
            let close = |name: &str, ours: Vec<f64>, tolerance: f64| {
                let theirs = case[name].as_array().unwrap();
                assert_eq!(ours.len(), theirs.len());
                for (a, b) in ours.iter().zip(theirs) {
                    let b = b.as_f64().unwrap();
                    assert!((a - b).abs() <= tolerance, "{name}: {a}, expected {b}");
                }
            };
            close("sensitivity", ours.sensitivity, 1e-9);
            close("specificity", ours.specificity, 1e-9);
            let wide = ours.probability.into_iter().map(f64::from);
            close("probability", wide.collect(), 1e-6);
            // ITK counts the iterations before the last.
            assert_eq!(
                ours.iterations as u64,
                case["iterations"].as_u64().unwrap() + 1
            );
        }
    }

    #[test]
    fn masks_that_agree_are_right() {
        for (text, probability) in [("0000", 0.0), ("1111", 1.0)] {
            for count in [1, 3] {
                let joined = join(&vec![text; count]);
                assert_eq!(joined.probability, [probability; 4]);
                assert_eq!(joined.sensitivity, vec![1.0; count]);
                assert_eq!(joined.specificity, vec![1.0; count]);
                assert_eq!(joined.iterations, 0);
            }
        }
        let single = join(&["0110"]);
        assert_eq!(single.probability, [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(
            (single.sensitivity, single.specificity),
            (vec![1.0], vec![1.0])
        );
        assert_eq!(single.iterations, 2);
    }

    #[test]
    fn a_pixel_that_is_ruled_out_either_way_keeps_the_prior() {
        let perfect = Rater {
            sensitivity: 1.0,
            specificity: 1.0,
        };
        let estimate = Estimate {
            groups: vec![],
            raters: vec![perfect; 2],
            prior: 0.25,
        };
        assert_eq!(estimate.probability(0b11), 1.0);
        assert_eq!(estimate.probability(0b01), 0.25);
    }

    #[test]
    fn no_answer_is_no_number() {
        for masks in [
            &["0000", "1111"][..],
            &["0000", "0001", "0001"],
            &["1111", "0111", "0111"],
            &["1010", "0101"],
            &["1000", "0100", "0010", "0001"],
        ] {
            let joined = join(masks);
            let numbers = [joined.sensitivity, joined.specificity].concat();
            assert!(numbers.iter().all(|v| (0.0..=1.0).contains(v)), "{masks:?}");
            assert!(
                joined.probability.iter().all(|v| (0.0..=1.0).contains(v)),
                "{masks:?}"
            );
        }
    }

    #[test]
    fn probabilities_count_above_one_half() {
        let joined = staple_of_probabilities(&[&[0.5, 0.51, 0.9], &[0.2, 0.6, 1.0]]);
        assert_eq!(joined.unwrap(), join(&["011", "011"]));
    }

    #[test]
    fn misfits_are_named() {
        let error = |masks: &[&[bool]]| staple(masks).unwrap_err().to_string();
        assert!(error(&[]).contains("0 masks"));
        assert!(error(&vec![&[true][..]; 65]).contains("expected 1 to 64"));
        assert!(error(&[&[]]).contains("without pixels"));
        assert!(error(&[&[true], &[true, false]]).contains("of 2 pixels"));
    }
}
