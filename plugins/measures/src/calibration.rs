//! The measure `calibration`: whether probabilities are what they say, pixel by pixel.
//!
//! Of all pixels that are given the probability 0.8 of being target, 80 % should be. Pixels are put into `bins`
//! equally wide bins by that probability; a probability on the border of two belongs to the upper one, and 1 to the
//! last. In a bin, mean probability and share of target pixels are compared.
//!
//! - `ece`: the mean difference of the two, weighted by the pixels of the bins (Naeini et al. 2015, AAAI; for the
//!   probability of being target, not of the chosen class).
//! - `mce`: the largest difference of a bin that has pixels.
//! - `brier`: the mean squared difference of probability and truth (Brier 1950).
//! - `nll`: the mean negative natural logarithm of the probability of what is true, clipped to 1e-7 to 1 - 1e-7.
//!
//! Figures of an image are of its pixels, those of all images of all pixels together. An empty truth is nothing
//! special. Undefined: where the segmenter has no probability; of all images, unless each has one.

use crate::region::{Pair, Region, probability};
use diffaug::prelude::*;
use serde::Serialize;

/// Options of the measure `calibration`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CalibrationOptions {
    /// Number of bins, 1 to 1000.
    pub bins: u32,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        CalibrationOptions { bins: 15 }
    }
}

/// Probabilities are kept this far from 0 and 1 for the likelihood.
const CLIP: f64 = 1e-7;

/// Places of [`Measured::sums`]; three numbers for each bin follow: pixels, probabilities, target pixels.
const WITH_PROBABILITY: usize = 0;
const BRIER: usize = 1;
const LIKELIHOOD: usize = 2;
const FIRST_BIN: usize = 3;

/// Compares probabilities with how often they are right.
pub struct Calibration(CalibrationOptions);

impl FromConfig for Calibration {
    type Config = CalibrationOptions;

    fn validate(options: &CalibrationOptions) -> Result<()> {
        match options.bins {
            1..=1000 => Ok(()),
            bins => Err(Error::config(format!("`bins` is {bins}, expected 1 to 1000")).at("bins")),
        }
    }

    fn from_config(options: CalibrationOptions, _: &Context) -> Result<Self> {
        Ok(Calibration(options))
    }
}

impl Calibration {
    fn sums(&self) -> usize {
        FIRST_BIN + 3 * self.0.bins as usize
    }

    fn measure(&self, case: &Case<'_>) -> Result<Measured> {
        let truth = Pair::of(case)?.truth;
        let mut sums = vec![0.0; self.sums()];
        let figures = match probability(case)? {
            None => [RNone; 4],
            Some(probability) => {
                self.add(probability, &truth, &mut sums);
                figures_of(&sums)
            }
        };
        Ok(Measured {
            figures: figures.to_vec().into(),
            sums: sums.into(),
        })
    }

    /// Adds the pixels of an image to the sums.
    fn add(&self, probability: &[f32], truth: &Region, sums: &mut [f64]) {
        let bins = self.0.bins as usize;
        sums[WITH_PROBABILITY] += 1.0;
        for (&p, &target) in probability.iter().zip(&truth.inside) {
            let (p, target) = (f64::from(p), f64::from(u8::from(target)));
            let clipped = p.clamp(CLIP, 1.0 - CLIP);
            let likelihood = match target > 0.0 {
                true => clipped,
                false => 1.0 - clipped,
            };
            sums[BRIER] += (p - target).powi(2);
            sums[LIKELIHOOD] -= likelihood.ln();
            let bin = ((p * bins as f64) as usize).min(bins - 1);
            let bin = &mut sums[FIRST_BIN + 3 * bin..][..3];
            bin[0] += 1.0;
            bin[1] += p;
            bin[2] += target;
        }
    }
}

/// ECE, MCE, Brier score and likelihood, from sums over at least one pixel; undefined of none.
fn figures_of(sums: &[f64]) -> [ROption<f64>; 4] {
    let bins = sums[FIRST_BIN..].chunks_exact(3);
    let pixels: f64 = bins.clone().map(|bin| bin[0]).sum();
    if pixels <= 0.0 {
        return [RNone; 4];
    }
    let (mut ece, mut mce) = (0.0, 0.0_f64);
    for bin in bins.filter(|bin| bin[0] > 0.0) {
        let difference = (bin[1] - bin[2]).abs();
        ece += difference / pixels;
        mce = mce.max(difference / bin[0]);
    }
    [ece, mce, sums[BRIER] / pixels, sums[LIKELIHOOD] / pixels].map(RSome)
}

/// The four figures, which are the same of an image and of all.
fn infos() -> RVec<FigureInfo> {
    let infos = [
        (
            "ece",
            "expected calibration error: mean difference of probability and frequency",
        ),
        (
            "mce",
            "largest difference of probability and frequency in a bin",
        ),
        ("brier", "mean squared error of the probability"),
        ("nll", "mean negative log-likelihood, in nats a pixel"),
    ];
    let info = |(name, about)| FigureInfo::new(name, Better::Lower, about);
    infos.into_iter().map(info).collect()
}

impl Measure for Calibration {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Predictions)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        Ok(infos())
    }

    fn totals(&self) -> Result<RVec<FigureInfo>> {
        Ok(infos())
    }

    fn score(&self, cases: RSlice<'_, Case<'_>>) -> Result<RVec<Measured>> {
        cases.iter().map(|case| self.measure(case)).collect()
    }

    fn total(&self, sums: RSlice<'_, f64>, images: u64) -> Result<RVec<ROption<f64>>> {
        if sums.len() != self.sums() {
            let message = format!(
                "`calibration` was given {} sums, expected {}",
                sums.len(),
                self.sums()
            );
            return Err(Error::internal(message));
        }
        let whole = sums[WITH_PROBABILITY] == images as f64;
        let figures = match whole {
            true => figures_of(&sums),
            false => [RNone; 4],
        };
        Ok(figures.to_vec().into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::testing::{Answers, Sheet, against, measure, wrong_option};

    /// Made by `fixtures/make_calibration.py`.
    #[test]
    fn figures_agree_with_torchmetrics() {
        let fixture = include_str!("../fixtures/calibration.json");
        let all: serde_json::Value = serde_json::from_str(fixture).unwrap();
        for (index, options) in ["{}", r#"{"bins": 4}"#].into_iter().enumerate() {
            against(&all[index].to_string(), "calibration", options, 1e-12);
        }
    }

    #[test]
    fn certainty_is_in_the_last_bin_and_finite() {
        let calibration = measure("calibration", r#"{"bins": 2}"#).unwrap();
        let mut sheet = Sheet::new(4, 1, "1100", "0000");
        sheet.probability = vec![1.0, 0.5, 0.0, 1.0];
        let answers = Answers::of(&calibration, &[sheet]);
        // Upper bin: 1, 0.5, 1 with two of three right; lower bin: exact.
        let close = |name: &str, expected: f64| {
            let found = answers.figure(0, name).unwrap();
            assert!((found - expected).abs() < 1e-9, "{name}: {found}");
        };
        close("ece", 0.5 / 4.0);
        close("mce", 0.5 / 3.0);
        close("brier", 1.25 / 4.0);
        close("nll", (2e-7 + 2.0_f64.ln() - 1e-7_f64.ln()) / 4.0);
    }

    #[test]
    fn without_probabilities_nothing_is_defined() {
        let calibration = measure("calibration", "{}").unwrap();
        let mut with = Sheet::new(2, 1, "10", "10");
        with.probability = vec![0.75, 0.25];
        let sheets = [with, Sheet::new(2, 1, "10", "10")];
        let answers = Answers::of(&calibration, &sheets);
        assert_eq!(answers.figure(0, "ece"), Some(0.25));
        assert_eq!(answers.figure(1, "ece"), None);
        assert_eq!(answers.total("brier"), None);
        assert_eq!(
            Answers::of(&calibration, &sheets[..1]).total("ece"),
            Some(0.25)
        );
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(wrong_option("calibration", r#"{"bins": 0}"#), "bins");
        assert_eq!(wrong_option("calibration", r#"{"bins": 1001}"#), "bins");
    }
}
