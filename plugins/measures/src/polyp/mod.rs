//! The measure `polyp`: the figures of PraNet's evaluation (Fan et al. 2020, arXiv:2006.11392), which most papers on
//! polyps report.
//!
//! Predictions are maps from 0 to 1. With `normalise` they are made as PraNet saves them: stretched from the smallest
//! to the largest probability of the image and rounded to 8 bits, a constant map becoming 0 everywhere. Without it,
//! and where a segmenter has no probability (its mask is then a map of 0 and 1), they are taken as they are. For the
//! thresholds a map is cut down to 256 levels, and a pixel counts when its level is at least the threshold.
//!
//! - `mean_dice`, `mean_iou`, `mean_e_measure`: means over the 256 thresholds. The lowest threshold takes the whole
//!   image, so that even a perfect prediction stays below 1.
//! - `max_dice`, `max_iou`, `max_e_measure`, of all images: the largest value of the mean curve over images.
//! - `s_measure`: Fan et al. 2017 (ICCV), object and region parts of equal weight. A quarter of the image without
//!   pixels counts nothing (in PraNet's code the figure is then not a number).
//! - `e_measure`: Fan et al. 2018 (IJCAI). It sums over all pixels and divides by one pixel less, so that it may be
//!   slightly above 1.
//! - `weighted_f`: Margolin et al. 2014 (CVPR), beta² = 1. Of equally near lesion pixels, the leftmost, then the
//!   uppermost counts.
//! - `mae`: the mean absolute error of the map.
//!
//! Empty truth: Dice, IoU and weighted F-measure are 0 whatever was predicted (they differ in that from
//! `diffaug::metrics`); S- and E-measure are 1 less what is predicted, the E-measure by pixels. Where the truth is
//! the whole image they are what is predicted.

mod curves;
mod structure;
mod weighted;

use crate::region::{Pair, Region, probability};
use curves::{Curves, LEVELS};
use diffaug::prelude::*;
use serde::Serialize;

/// Options of the measure `polyp`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolypOptions {
    /// Whether probabilities are stretched to the whole range from 0 to 1 and rounded to 8 bits, image by image, as
    /// PraNet does.
    pub normalise: bool,
}

impl Default for PolypOptions {
    fn default() -> Self {
        PolypOptions { normalise: true }
    }
}

/// PraNet's protocol.
pub struct Polyp(PolypOptions);

impl FromConfig for Polyp {
    type Config = PolypOptions;

    fn from_config(options: PolypOptions, _: &Context) -> Result<Self> {
        Ok(Polyp(options))
    }
}

/// Probabilities as PraNet's maps: stretched to 0 to 1 in steps of 1/255; 0 everywhere where they are all the same.
fn stretched(probability: &[f32]) -> Vec<f64> {
    let values = || probability.iter().map(|&p| f64::from(p));
    let least = values().fold(f64::INFINITY, f64::min);
    let range = values().fold(f64::NEG_INFINITY, f64::max) - least;
    if range <= 0.0 {
        return vec![0.0; probability.len()];
    }
    let level = |p: f64| ((p - least) * (255.0 / range) + 0.5).floor();
    values().map(|p| level(p) / 255.0).collect()
}

/// The mean absolute difference of a map and a mask.
fn absolute_error(map: &[f64], truth: &Region) -> f64 {
    let pairs = map.iter().zip(&truth.inside);
    let sum: f64 = pairs
        .map(|(value, inside)| (value - f64::from(u8::from(*inside))).abs())
        .sum();
    sum / map.len() as f64
}

impl Polyp {
    /// The map of a prediction, one value from 0 to 1 a pixel.
    fn map(&self, case: &Case<'_>, found: &Region) -> Result<Vec<f64>> {
        Ok(match probability(case)? {
            None => found
                .inside
                .iter()
                .map(|on| f64::from(u8::from(*on)))
                .collect(),
            Some(values) if self.0.normalise => stretched(values),
            Some(values) => values.iter().map(|&p| f64::from(p)).collect(),
        })
    }

    fn measure(&self, case: &Case<'_>) -> Result<Measured> {
        let Pair { truth, found } = Pair::of(case)?;
        if truth.inside.len() < 2 {
            let message = format!("image `{}` has one pixel, `polyp` needs two", case.id);
            return Err(Error::data(message));
        }
        let map = self.map(case, &found)?;
        let curves = Curves::of(&map, &truth);
        let mean = |curve: &[f64; LEVELS]| curve.iter().sum::<f64>() / LEVELS as f64;
        let figures = vec![
            mean(&curves.dice),
            mean(&curves.iou),
            structure::s_measure(&map, &truth),
            mean(&curves.alignment),
            weighted::f_measure(&map, &truth),
            absolute_error(&map, &truth),
        ];
        Ok(Measured {
            figures: figures.into_iter().map(RSome).collect(),
            sums: [curves.dice, curves.iou, curves.alignment].concat().into(),
        })
    }
}

impl Measure for Polyp {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Predictions)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        use Better::{Higher, Lower};
        let figures = [
            (
                "mean_dice",
                Higher,
                "Dice coefficient, mean over 256 thresholds",
            ),
            ("mean_iou", Higher, "IoU, mean over 256 thresholds"),
            ("s_measure", Higher, "structure measure, alpha 0.5"),
            (
                "mean_e_measure",
                Higher,
                "enhanced alignment measure, mean over 256 thresholds",
            ),
            ("weighted_f", Higher, "weighted F-measure, beta² 1"),
            ("mae", Lower, "mean absolute error of the map"),
        ];
        let figure = |(name, better, about)| FigureInfo::new(name, better, about);
        Ok(figures.into_iter().map(figure).collect())
    }

    fn totals(&self) -> Result<RVec<FigureInfo>> {
        let totals = [
            ("max_dice", "Dice coefficient at the best of 256 thresholds"),
            ("max_iou", "IoU at the best of 256 thresholds"),
            (
                "max_e_measure",
                "enhanced alignment measure at the best of 256 thresholds",
            ),
        ];
        let figure = |(name, about)| FigureInfo::new(name, Better::Higher, about);
        Ok(totals.into_iter().map(figure).collect())
    }

    fn score(&self, cases: RSlice<'_, Case<'_>>) -> Result<RVec<Measured>> {
        cases.iter().map(|case| self.measure(case)).collect()
    }

    fn total(&self, sums: RSlice<'_, f64>, images: u64) -> Result<RVec<ROption<f64>>> {
        if sums.len() != 3 * LEVELS {
            let message = format!(
                "`polyp` was given {} sums, expected {}",
                sums.len(),
                3 * LEVELS
            );
            return Err(Error::internal(message));
        }
        let best = |curve: &[f64]| {
            let best = curve.iter().copied().fold(0.0, f64::max);
            match images {
                0 => RNone,
                images => RSome(best / images as f64),
            }
        };
        Ok(sums.chunks_exact(LEVELS).map(best).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Answers, Sheet, against, measure};

    /// Made by `fixtures/make_polyp.py`.
    #[test]
    fn figures_agree_with_pysodmetrics() {
        let fixture = include_str!("../../fixtures/polyp.json");
        let all: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let options = ["{}", r#"{"normalise": false}"#];
        for (index, options) in options.into_iter().enumerate() {
            against(&all[index].to_string(), "polyp", options, 1e-9);
        }
    }

    #[test]
    fn maps_are_stretched_to_whole_levels() {
        assert_eq!(stretched(&[0.25, 0.75, 0.5]), [0.0, 1.0, 128.0 / 255.0]);
        assert_eq!(stretched(&[0.3, 0.3]), [0.0, 0.0]);
    }

    #[test]
    fn a_lesion_in_the_last_row_and_column_has_figures() {
        let polyp = measure("polyp", "{}").unwrap();
        let answers = Answers::of(&polyp, &[Sheet::new(3, 2, "000001", "000001")]);
        let structure = answers.figure(0, "s_measure").unwrap();
        assert!((structure - 1.0).abs() < 1e-12, "{structure}");
        assert_eq!(answers.figure(0, "mae"), Some(0.0));
    }

    #[test]
    fn an_image_of_one_pixel_is_refused() {
        let sheet = Sheet::new(1, 1, "1", "1");
        let polyp = Polyp(PolypOptions::default());
        assert_eq!(
            polyp.measure(&sheet.case()).unwrap_err().to_string(),
            "image `7` has one pixel, `polyp` needs two"
        );
    }
}
