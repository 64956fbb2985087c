//! How predicted masks are scored: pixel counts, the ratios made of them, and their averages.
//!
//! Conventions (the field has several, so ours are stated):
//! * Truth and prediction are binary: a pixel counts when its label is one of the target labels.
//! * Both empty: Dice and IoU are 1, for nothing was missed and nothing invented. One empty: 0.
//!   (MedPy's `dc` answers 0 when both are empty; everywhere else the figures agree.)
//! * Sensitivity and the false negative rate need positives, specificity needs negatives: without
//!   them they are undefined and left out of means.
//! * *Per-image mean* averages over images; *dataset-level* adds up all pixels first.
//! * Spread is the sample standard deviation (n - 1), 0 for a single value.

use crate::{
    data::MaskRef,
    error::{Error, Result},
};
use serde::Serialize;

/// Pixel counts of a binary comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    /// Target in truth and prediction.
    pub true_positive: u64,
    /// Target in the prediction alone.
    pub false_positive: u64,
    /// Target in the truth alone.
    pub false_negative: u64,
    /// Background in both.
    pub true_negative: u64,
}

/// A ratio, or `None` where its denominator is zero.
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole != 0).then(|| part as f64 / whole as f64)
}

impl Confusion {
    /// Compares two masks of one size; a pixel is positive when its label is among `targets`.
    ///
    /// # Errors
    /// When the sizes differ.
    pub fn of(truth: MaskRef<'_>, prediction: MaskRef<'_>, targets: &[u8]) -> Result<Self> {
        if truth.size() != prediction.size() {
            return Err(Error::data(format!(
                "the prediction is {}x{}, but its truth is {}x{}",
                prediction.width(),
                prediction.height(),
                truth.width(),
                truth.height()
            )));
        }
        let mut positive = [false; 256];
        for &label in targets {
            positive[label as usize] = true;
        }
        // Index: bit 1 = truth, bit 0 = prediction.
        let mut counts = [0u64; 4];
        for (&t, &p) in truth.labels().iter().zip(prediction.labels()) {
            let cell = 2 * usize::from(positive[t as usize]) + usize::from(positive[p as usize]);
            counts[cell] += 1;
        }
        Ok(Confusion {
            true_negative: counts[0],
            false_positive: counts[1],
            false_negative: counts[2],
            true_positive: counts[3],
        })
    }

    /// Adds the counts of another image.
    pub fn add(&mut self, other: &Confusion) {
        self.true_positive += other.true_positive;
        self.false_positive += other.false_positive;
        self.false_negative += other.false_negative;
        self.true_negative += other.true_negative;
    }

    /// Dice coefficient, 2 TP / (2 TP + FP + FN); 1 when both masks are empty.
    pub fn dice(&self) -> f64 {
        let twice = 2 * self.true_positive;
        ratio(twice, twice + self.false_positive + self.false_negative).unwrap_or(1.0)
    }

    /// Intersection over union, TP / (TP + FP + FN); 1 when both masks are empty.
    pub fn iou(&self) -> f64 {
        let union = self.true_positive + self.false_positive + self.false_negative;
        ratio(self.true_positive, union).unwrap_or(1.0)
    }

    /// TP / (TP + FN); undefined without positives in the truth.
    pub fn sensitivity(&self) -> Option<f64> {
        ratio(self.true_positive, self.true_positive + self.false_negative)
    }

    /// FN / (TP + FN); undefined without positives in the truth.
    pub fn false_negative_rate(&self) -> Option<f64> {
        ratio(
            self.false_negative,
            self.true_positive + self.false_negative,
        )
    }

    /// TN / (TN + FP); undefined without background in the truth.
    pub fn specificity(&self) -> Option<f64> {
        ratio(self.true_negative, self.true_negative + self.false_positive)
    }

    /// All five figures.
    pub fn scores(&self) -> Scores {
        Scores {
            dice: Some(self.dice()),
            iou: Some(self.iou()),
            sensitivity: self.sensitivity(),
            fnr: self.false_negative_rate(),
            specificity: self.specificity(),
        }
    }
}

/// The figures of one image, or their average; `None` where undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Dice coefficient.
    pub dice: Option<f64>,
    /// Intersection over union.
    pub iou: Option<f64>,
    /// Share of the target's pixels that were found.
    pub sensitivity: Option<f64>,
    /// Share of the target's pixels that were missed (false negative rate).
    pub fnr: Option<f64>,
    /// Share of the background's pixels that were left alone.
    pub specificity: Option<f64>,
}

impl Scores {
    /// Names and values, in the order of every table and CSV file.
    pub fn named(&self) -> [(&'static str, Option<f64>); 5] {
        [
            ("dice", self.dice),
            ("iou", self.iou),
            ("sensitivity", self.sensitivity),
            ("fnr", self.fnr),
            ("specificity", self.specificity),
        ]
    }

    /// Folds each figure over `all` by itself, leaving out where it is undefined.
    pub fn fold(all: &[Scores], fold: impl Fn(&[f64]) -> Option<f64>) -> Scores {
        let column = |pick: fn(&Scores) -> Option<f64>| {
            let values: Vec<f64> = all.iter().filter_map(pick).collect();
            fold(&values)
        };
        Scores {
            dice: column(|s| s.dice),
            iou: column(|s| s.iou),
            sensitivity: column(|s| s.sensitivity),
            fnr: column(|s| s.fnr),
            specificity: column(|s| s.specificity),
        }
    }
}

/// The Dice coefficient of each of `labels`, averaged; 1 for a label that neither mask has.
///
/// # Errors
/// When the sizes differ.
pub fn mean_dice(truth: MaskRef<'_>, prediction: MaskRef<'_>, labels: &[u8]) -> Result<f64> {
    let dice = |label: &u8| Ok(Confusion::of(truth, prediction, &[*label])?.dice());
    let each: Vec<f64> = labels.iter().map(dice).collect::<Result<_>>()?;
    Ok(mean(&each).unwrap_or(1.0))
}

/// The mean, or `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The value below which the share `at` (0 to 1) of `ascending` values lies, linear between neighbours
/// (definition 7 of Hyndman and Fan, as in NumPy); `None` of nothing.
pub fn quantile(ascending: &[f64], at: f64) -> Option<f64> {
    let place = at * ascending.len().checked_sub(1)? as f64;
    let below = *ascending.get(place.floor() as usize)?;
    let above = *ascending.get(place.ceil() as usize)?;
    Some(below + place.fract() * (above - below))
}

/// The sample standard deviation (n - 1); 0 of a single value, `None` of nothing.
pub fn std_dev(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    if values.len() == 1 {
        return Some(0.0);
    }
    let sum: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Some((sum / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::Mask;

    fn mask(labels: &[u8]) -> Mask {
        Mask::new(labels.len() as u32, 1, labels.to_vec()).unwrap()
    }

    fn compare(truth: &[u8], prediction: &[u8]) -> Confusion {
        Confusion::of(mask(truth).view(), mask(prediction).view(), &[1]).unwrap()
    }

    #[test]
    fn figures_of_a_small_example() {
        let c = compare(&[1, 1, 1, 0, 0], &[1, 0, 0, 1, 0]);
        assert_eq!(
            (
                c.true_positive,
                c.false_positive,
                c.false_negative,
                c.true_negative
            ),
            (1, 1, 2, 1)
        );
        assert!((c.dice() - 2.0 / 5.0).abs() < 1e-15);
        assert!((c.iou() - 1.0 / 4.0).abs() < 1e-15);
        assert!((c.sensitivity().unwrap() - 1.0 / 3.0).abs() < 1e-15);
        assert!((c.false_negative_rate().unwrap() - 2.0 / 3.0).abs() < 1e-15);
        assert!((c.specificity().unwrap() - 1.0 / 2.0).abs() < 1e-15);
    }

    #[test]
    fn empty_masks_follow_the_stated_conventions() {
        let both = compare(&[0, 0], &[0, 0]);
        assert_eq!((both.dice(), both.iou()), (1.0, 1.0));
        assert_eq!(both.sensitivity(), None);
        let invented = compare(&[0, 0], &[1, 0]);
        assert_eq!((invented.dice(), invented.iou()), (0.0, 0.0));
        let missed = compare(&[1, 1], &[0, 0]);
        assert_eq!((missed.dice(), missed.specificity()), (0.0, None));
    }

    #[test]
    fn labels_that_are_not_targets_are_background() {
        let c = Confusion::of(mask(&[1, 2]).view(), mask(&[2, 2]).view(), &[2]).unwrap();
        assert_eq!((c.true_positive, c.false_positive), (1, 1));
    }

    #[test]
    fn averages_leave_out_what_is_undefined() {
        let all = [compare(&[0], &[0]).scores(), compare(&[1], &[1]).scores()];
        let mean = Scores::fold(&all, mean);
        assert_eq!((mean.dice, mean.sensitivity), (Some(1.0), Some(1.0)));
        assert_eq!(std_dev(&[1.0, 2.0, 3.0]), Some(1.0));
        assert_eq!(std_dev(&[5.0]), Some(0.0));
        assert_eq!(super::mean(&[]), None);
    }

    #[test]
    fn sizes_must_agree() {
        let error = Confusion::of(mask(&[1]).view(), mask(&[1, 1]).view(), &[1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the prediction is 2x1, but its truth is 1x1"
        );
    }

    /// Made by `fixtures/make_medpy.py`.
    #[test]
    fn figures_agree_with_medpy() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../fixtures/medpy.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert_eq!(cases.len(), 20);
        for case in cases {
            let side = |name: &str| case[name].as_u64().unwrap() as u32;
            let mask = |name: &str| {
                let labels = case[name].as_str().unwrap().bytes().map(|c| c - b'0');
                Mask::new(side("width"), side("height"), labels.collect()).unwrap()
            };
            let counts = Confusion::of(mask("truth").view(), mask("prediction").view(), &[1]);
            for (name, ours) in counts.unwrap().scores().named() {
                if let Some(theirs) = case[name].as_f64() {
                    assert!((ours.unwrap() - theirs).abs() < 1e-12, "{name}");
                }
            }
        }
    }
}
