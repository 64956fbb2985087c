//! The measure `detection`: lesions that were found and invented, one by one.
//!
//! Lesions are the connected components of the truth. A lesion is found when a predicted component is matched with it:
//! the two overlap with an intersection over union of at least `iou`, and no component is matched with two lesions or
//! two components with one. Of all such matchings one with the most pairs is taken (where `iou` is above 0.5 there
//! is only one; below, taking the best overlap first may find fewer). Components that are not matched are false
//! positives, also when they lie on a lesion.
//!
//! Free-response figures go by probability, as in PI-CAI's evaluation: candidates are the components of the pixels whose
//! probability is at least `candidates`, each with its largest probability as score. At every threshold of the
//! score as many candidates above it as possible are matched; the rest are false positives. Scores are counted
//! in 512 bins of log odds (`froc`), so that the curve is one of sums. `froc` is the mean of LUNA16: the
//! sensitivities at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image.
//!
//! Undefined: sensitivities without a lesion, precision without a predicted component, F1 without either;
//! free-response figures unless every image has a probability.

use crate::{
    components::{Components, Connectivity},
    froc,
    matching::{matched, partners},
    options::check_share,
    region::{Pair, Region, probability},
};
use diffaug::prelude::*;
use serde::Serialize;

/// Options of the measure `detection`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionOptions {
    /// Least intersection over union of a predicted component and the lesion that it finds, above 0, at most 1.
    pub iou: f64,
    /// Which pixels belong together: those that share a side (4), or a side or a corner (8).
    pub connectivity: u8,
    /// Components of fewer pixels count nowhere, neither in the truth nor in the prediction.
    pub min_area: u32,
    /// Least probability of the pixels of a candidate of the free-response figures, above 0, at most 1.
    pub candidates: f64,
}

impl Default for DetectionOptions {
    fn default() -> Self {
        DetectionOptions {
            iou: 0.5,
            connectivity: 8,
            min_area: 1,
            candidates: 0.1,
        }
    }
}

/// Places of [`Measured::sums`]; the two histograms follow one another.
const LESIONS: usize = 0;
const FOUND: usize = 1;
const INVENTED: usize = 2;
const WITH_PROBABILITY: usize = 3;
const MATCHED: usize = 4;
const UNMATCHED: usize = MATCHED + froc::BINS;
const SUMS: usize = UNMATCHED + froc::BINS;

/// Counts lesions that were found and invented.
pub struct Detection(DetectionOptions);

impl FromConfig for Detection {
    type Config = DetectionOptions;

    fn validate(options: &DetectionOptions) -> Result<()> {
        check_share("iou", options.iou)?;
        check_share("candidates", options.candidates)?;
        if !matches!(options.connectivity, 4 | 8) {
            let message = format!(
                "`connectivity` is {}, expected 4 or 8",
                options.connectivity
            );
            return Err(Error::config(message).at("connectivity"));
        }
        match options.min_area {
            0 => Err(Error::config("`min_area` is 0, expected at least 1 pixel").at("min_area")),
            _ => Ok(()),
        }
    }

    fn from_config(options: DetectionOptions, _: &Context) -> Result<Self> {
        Ok(Detection(options))
    }
}

impl Detection {
    fn components(&self, region: &Region) -> Components {
        let connectivity = match self.0.connectivity {
            4 => Connectivity::Four,
            _ => Connectivity::Eight,
        };
        Components::of(region, connectivity, self.0.min_area as usize)
    }

    fn measure(&self, case: &Case<'_>) -> Result<Measured> {
        let pair = Pair::of(case)?;
        let (lesions, predicted) = (self.components(&pair.truth), self.components(&pair.found));
        let order: Vec<usize> = (0..predicted.len()).collect();
        let hits = matched(
            &partners(&predicted, &lesions, self.0.iou),
            &order,
            lesions.len(),
        );
        let found = hits.iter().filter(|hit| **hit).count();
        let invented = hits.len() - found;
        let mut sums = vec![0.0; SUMS];
        sums[LESIONS] = lesions.len() as f64;
        sums[FOUND] = found as f64;
        sums[INVENTED] = invented as f64;
        if let Some(probability) = probability(case)? {
            sums[WITH_PROBABILITY] = 1.0;
            self.count_candidates(probability, &pair.truth, &lesions, &mut sums);
        }
        let figures = vec![
            ratio(found as f64, lesions.len() as f64),
            RSome(invented as f64),
        ];
        Ok(Measured {
            figures: figures.into(),
            sums: sums.into(),
        })
    }

    /// Adds the candidates to the histograms of scores.
    fn count_candidates(
        &self,
        probability: &[f32],
        truth: &Region,
        lesions: &Components,
        sums: &mut [f64],
    ) {
        let least = self.0.candidates;
        let likely = Region {
            inside: probability.iter().map(|&p| f64::from(p) >= least).collect(),
            ..*truth
        };
        let candidates = self.components(&likely);
        let mut scores = vec![0.0_f32; candidates.len()];
        for (member, &p) in candidates.member.iter().zip(probability) {
            if let Some(candidate) = member {
                scores[*candidate] = scores[*candidate].max(p);
            }
        }
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let partners = partners(&candidates, lesions, self.0.iou);
        let hits = matched(&partners, &order, lesions.len());
        for (hit, score) in hits.into_iter().zip(scores) {
            let histogram = if hit { MATCHED } else { UNMATCHED };
            sums[histogram + froc::bin(score)] += 1.0;
        }
    }
}

/// A ratio, undefined where there is nothing to divide by.
fn ratio(part: f64, whole: f64) -> ROption<f64> {
    match whole > 0.0 {
        true => RSome(part / whole),
        false => RNone,
    }
}

impl Measure for Detection {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Predictions)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        let figures = vec![
            FigureInfo::new(
                "lesion_sensitivity",
                Better::Higher,
                "share of the lesions that were found",
            ),
            FigureInfo::new(
                "false_positives",
                Better::Lower,
                "predicted components that are no lesion",
            ),
        ];
        Ok(figures.into())
    }

    fn totals(&self) -> Result<RVec<FigureInfo>> {
        let mut totals = vec![
            FigureInfo::new(
                "lesion_sensitivity",
                Better::Higher,
                "share of all lesions that were found",
            ),
            FigureInfo::new(
                "lesion_precision",
                Better::Higher,
                "share of all predicted components that are lesions",
            ),
            FigureInfo::new(
                "lesion_f1",
                Better::Higher,
                "harmonic mean of sensitivity and precision of lesions",
            ),
            FigureInfo::new(
                "false_positives_per_image",
                Better::Lower,
                "predicted components that are no lesion, an image",
            ),
        ];
        totals.extend(froc::RATES.map(|(rate, name)| {
            let about = format!("lesions found at {rate} false positives an image, by probability");
            FigureInfo::new(name, Better::Higher, &about)
        }));
        totals.push(FigureInfo::new(
            "froc",
            Better::Higher,
            "mean of the sensitivities at 1/8 to 8 false positives an image",
        ));
        Ok(totals.into())
    }

    fn score(&self, cases: RSlice<'_, Case<'_>>) -> Result<RVec<Measured>> {
        cases.iter().map(|case| self.measure(case)).collect()
    }

    fn total(&self, sums: RSlice<'_, f64>, images: u64) -> Result<RVec<ROption<f64>>> {
        if sums.len() != SUMS {
            let message = format!("`detection` was given {} sums, expected {SUMS}", sums.len());
            return Err(Error::internal(message));
        }
        let images = images as f64;
        let (lesions, found, invented) = (sums[LESIONS], sums[FOUND], sums[INVENTED]);
        let mut totals = vec![
            ratio(found, lesions),
            ratio(found, found + invented),
            ratio(2.0 * found, lesions + found + invented),
            ratio(invented, images),
        ];
        let whole = sums[WITH_PROBABILITY] == images;
        let curve = whole.then(|| {
            let (matched, unmatched) = (&sums[MATCHED..UNMATCHED], &sums[UNMATCHED..]);
            froc::sensitivities(matched, unmatched, lesions, images)
        });
        match curve.flatten() {
            Some(curve) => {
                totals.extend(curve.map(RSome));
                totals.push(RSome(curve.iter().sum::<f64>() / curve.len() as f64));
            }
            None => totals.extend([RNone; froc::RATES.len() + 1]),
        }
        Ok(totals.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::testing::{Answers, Sheet, against, measure, wrong_option};

    /// Made by `fixtures/make_detection.py`.
    #[test]
    fn figures_agree_with_scipy_and_monai() {
        let fixture = include_str!("../fixtures/detection.json");
        let all: serde_json::Value = serde_json::from_str(fixture).unwrap();
        for (index, options) in [
            "{}",
            r#"{"iou": 0.2, "connectivity": 4, "min_area": 3, "candidates": 0.3}"#,
        ]
        .into_iter()
        .enumerate()
        {
            against(&all[index].to_string(), "detection", options, 1e-12);
        }
    }

    #[test]
    fn a_component_over_two_lesions_finds_one_at_most() {
        // The prediction joins two lesions of two pixels: 2 of 5 with each.
        let answers = |options: &str| {
            let measure = measure("detection", options).unwrap();
            let sheet = Sheet::new(5, 1, "11011", "11111");
            let answers = Answers::of(&measure, &[sheet]);
            (
                answers.figure(0, "lesion_sensitivity"),
                answers.figure(0, "false_positives"),
            )
        };
        assert_eq!(answers("{}"), (Some(0.0), Some(1.0)));
        assert_eq!(answers(r#"{"iou": 0.4}"#), (Some(0.5), Some(0.0)));
    }

    #[test]
    fn what_is_undefined_is_not_a_number() {
        let detection = measure("detection", "{}").unwrap();
        let nothing = Answers::of(&detection, &[Sheet::new(2, 1, "00", "00")]);
        assert_eq!(nothing.figure(0, "lesion_sensitivity"), None);
        assert_eq!(nothing.figure(0, "false_positives"), Some(0.0));
        assert_eq!(nothing.total("lesion_f1"), None);
        assert_eq!(nothing.total("lesion_precision"), None);
        assert_eq!(nothing.total("false_positives_per_image"), Some(0.0));
        // One of two images has no probability: there is no curve.
        let mut with = Sheet::new(2, 1, "10", "10");
        with.probability = vec![0.75, 0.0];
        let both = [with, Sheet::new(2, 1, "10", "10")];
        assert_eq!(Answers::of(&detection, &both).total("froc"), None);
        assert_eq!(Answers::of(&detection, &both[..1]).total("froc"), Some(1.0));
    }

    #[test]
    fn options_are_checked() {
        for (options, field) in [
            (r#"{"iou": 0}"#, "iou"),
            (r#"{"candidates": 1.5}"#, "candidates"),
            (r#"{"min_area": 0}"#, "min_area"),
            (r#"{"connectivity": 6}"#, "connectivity"),
        ] {
            assert_eq!(wrong_option("detection", options), field);
        }
    }
}
