//! The measure `sizes`: whether the lesions that pass the validator are as large as real ones.
//!
//! A validator that turns down small lesions more often than large ones shifts the sizes that a segmenter learns
//! from. Sizes are the share of the image that a lesion covers (`area`). Distances between the sizes of accepted and
//! real lesions are those of the natural logarithm of the area, of which a step means as much for a small lesion as
//! for a large one:
//!
//! - `ks_accepted`: Kolmogorov-Smirnov distance, the largest difference of the two distribution functions, 0 to 1;
//! - `wasserstein_accepted`: Wasserstein-1 distance, the mean shift from one to the other; 0.1 is about 10 %.
//!
//! Images without lesion (area 0) have no size and are left out of all figures of areas; the note says how many. A
//! figure of a group without members is undefined: medians and mean scores of that group, and distances unless there
//! are real and accepted lesions. `acceptance` is undefined where nothing was judged.

use diffaug::{
    metrics::{mean, quantile},
    prelude::*,
};
use serde::Serialize;

/// Options of the measure `sizes`: there are none.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SizesOptions {}

/// Compares areas.
pub struct Sizes;

impl FromConfig for Sizes {
    type Config = SizesOptions;

    fn from_config(_: SizesOptions, _: &Context) -> Result<Self> {
        Ok(Sizes)
    }
}

/// The area of a lesion, 0 to 1.
fn area(attributes: &Attributes, what: &str, index: usize) -> Result<f64> {
    let told = match attributes.number("area") {
        Some(area) if (0.0..=1.0).contains(&area) => return Ok(area),
        Some(area) => format!("has an `area` of {area}, expected 0 to 1"),
        None => "has no number `area`".into(),
    };
    Err(Error::data(format!("{what} {index} {told}")))
}

/// The areas above 0 of some lesions, in rising order, and how many others there were.
struct Areas {
    sorted: Vec<f64>,
    without: usize,
}

impl Areas {
    fn of(areas: impl Iterator<Item = f64>) -> Self {
        let all: Vec<f64> = areas.collect();
        let mut sorted: Vec<f64> = all.iter().copied().filter(|area| *area > 0.0).collect();
        sorted.sort_by(f64::total_cmp);
        Areas {
            without: all.len() - sorted.len(),
            sorted,
        }
    }

    fn median(&self) -> Option<f64> {
        quantile(&self.sorted, 0.5)
    }

    fn logarithms(&self) -> Vec<f64> {
        self.sorted.iter().map(|area| area.ln()).collect()
    }
}

/// Kolmogorov-Smirnov and Wasserstein-1 distance of two samples in rising order; `None` where one is empty.
fn distances(a: &[f64], b: &[f64]) -> Option<(f64, f64)> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let mut places: Vec<f64> = a.iter().chain(b).copied().collect();
    places.sort_by(f64::total_cmp);
    let below = |sample: &[f64], place: f64| {
        sample.partition_point(|value| *value <= place) as f64 / sample.len() as f64
    };
    let (mut largest, mut area) = (0.0_f64, 0.0);
    for (at, &place) in places.iter().enumerate() {
        let difference = (below(a, place) - below(b, place)).abs();
        largest = largest.max(difference);
        if let Some(next) = places.get(at + 1) {
            area += difference * (next - place);
        }
    }
    Some((largest, area))
}

/// What a reader of the figures has to know.
fn note(real: &Areas, accepted: &Areas, rejected: &Areas) -> String {
    let without = [
        (real.without, "real"),
        (accepted.without, "accepted"),
        (rejected.without, "rejected"),
    ];
    let told = without.iter().filter(|(count, _)| *count > 0);
    let told: Vec<String> = told
        .map(|(count, group)| format!("{count} {group}"))
        .collect();
    match told.is_empty() {
        true => String::new(),
        false => format!("images without lesion have no size: {}", told.join(", ")),
    }
}

impl Measure for Sizes {
    fn subject(&self) -> Result<Subject> {
        Ok(Subject::Verdicts)
    }

    fn figures(&self) -> Result<RVec<FigureInfo>> {
        use Better::{Lower, Neither};
        let figures = [
            (
                "area_real",
                Neither,
                "median area of real lesions, share of the image",
            ),
            (
                "area_accepted",
                Neither,
                "median area of accepted lesions, share of the image",
            ),
            (
                "area_rejected",
                Neither,
                "median area of rejected lesions, share of the image",
            ),
            (
                "ks_accepted",
                Lower,
                "Kolmogorov-Smirnov distance of the areas of accepted and real lesions",
            ),
            (
                "wasserstein_accepted",
                Lower,
                "Wasserstein-1 distance of the log areas of accepted and real lesions",
            ),
            (
                "acceptance",
                Neither,
                "share of the candidates that were accepted",
            ),
            (
                "score_accepted",
                Neither,
                "mean score of accepted candidates",
            ),
            (
                "score_rejected",
                Neither,
                "mean score of rejected candidates",
            ),
        ];
        Ok(FigureInfo::list(&figures))
    }

    fn judge(
        &self,
        judged: RSlice<'_, Judgement>,
        real: RSlice<'_, Attributes>,
    ) -> Result<Findings> {
        let (mut areas, mut scores) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for (index, judgement) in judged.iter().enumerate() {
            let group = usize::from(judgement.accepted);
            areas[group].push(area(&judgement.attributes, "candidate", index)?);
            match judgement.score {
                RSome(score) if !score.is_finite() => {
                    return Err(Error::data(format!(
                        "the score of candidate {index} is {score}, expected a finite number"
                    )));
                }
                RSome(score) => scores[group].push(score),
                RNone => {}
            }
        }
        let real = real.iter().enumerate();
        let real: Vec<f64> = real
            .map(|(index, lesion)| area(lesion, "real image", index))
            .collect::<Result<_>>()?;
        let [rejected, accepted] = areas.map(|areas| Areas::of(areas.into_iter()));
        let real = Areas::of(real.into_iter());
        let apart = distances(&accepted.logarithms(), &real.logarithms());
        let accepted_count = judged.iter().filter(|one| one.accepted).count();
        let acceptance = (!judged.is_empty()).then(|| accepted_count as f64 / judged.len() as f64);
        let figures = [
            real.median(),
            accepted.median(),
            rejected.median(),
            apart.map(|(ks, _)| ks),
            apart.map(|(_, wasserstein)| wasserstein),
            acceptance,
            mean(&scores[1]),
            mean(&scores[0]),
        ];
        Ok(Findings {
            figures: figures.into_iter().map(ROption::from).collect(),
            pairs: RVec::new(),
            note: note(&real, &accepted, &rejected).into(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{measure, wrong_option};
    use serde_json::Value;

    fn attributes(area: f64) -> Attributes {
        let mut attributes = Attributes::new();
        attributes.set_number("area", area);
        attributes
    }

    fn judgement(accepted: bool, score: f64, area: f64) -> Judgement {
        Judgement {
            accepted,
            score: RSome(score),
            attributes: attributes(area),
        }
    }

    fn judge(judged: &[Judgement], real: &[f64]) -> Result<Findings> {
        let real: Vec<Attributes> = real.iter().map(|area| attributes(*area)).collect();
        let sizes = measure("sizes", "{}").unwrap();
        sizes.judge(judged.into(), real.as_slice().into())
    }

    /// Made by `fixtures/make_sizes.py`.
    #[test]
    fn figures_agree_with_scipy() {
        let cases: Value = serde_json::from_str(include_str!("../fixtures/sizes.json")).unwrap();
        for case in cases.as_array().unwrap() {
            let list = |value: &Value| -> Vec<f64> {
                let values = value.as_array().unwrap().iter();
                values.map(|value| value.as_f64().unwrap()).collect()
            };
            let judged = case["judged"].as_array().unwrap().iter();
            let judged: Vec<Judgement> = judged
                .map(|one| {
                    let numbers = list(one);
                    judgement(numbers[0] == 1.0, numbers[1], numbers[2])
                })
                .collect();
            let found = judge(&judged, &list(&case["real"])).unwrap();
            let infos = Sizes.figures().unwrap();
            assert_eq!(found.figures.len(), infos.len());
            for (info, ours) in infos.iter().zip(&found.figures) {
                let theirs = case["figures"][info.name.as_str()].as_f64();
                match (ours.into_option(), theirs) {
                    (Some(a), Some(b)) => assert!((a - b).abs() < 1e-12, "{}: {a} {b}", info.name),
                    (ours, theirs) => assert_eq!(ours, theirs, "{}", info.name),
                }
            }
        }
    }

    #[test]
    fn images_without_lesion_are_told() {
        let judged = [judgement(true, 0.9, 0.5), judgement(false, 0.1, 0.0)];
        let found = judge(&judged, &[0.5, 0.0, 0.0]).unwrap();
        assert_eq!(
            found.note,
            "images without lesion have no size: 2 real, 1 rejected"
        );
        let figures: Vec<_> = found.figures.iter().map(|f| f.into_option()).collect();
        assert_eq!(figures[..3], [Some(0.5), Some(0.5), None]);
        assert_eq!(figures[3..6], [Some(0.0), Some(0.0), Some(0.5)]);
    }

    #[test]
    fn nothing_judged_leaves_all_undefined() {
        let found = judge(&[], &[]).unwrap();
        assert!(found.figures.iter().all(|figure| figure.is_none()));
        assert!(found.note.is_empty());
    }

    #[test]
    fn bad_facts_are_named() {
        let message =
            |judged: &[Judgement], real: &[f64]| judge(judged, real).unwrap_err().to_string();
        assert_eq!(
            message(&[judgement(true, f64::NAN, 0.5)], &[]),
            "the score of candidate 0 is NaN, expected a finite number"
        );
        assert_eq!(
            message(&[], &[0.5, 2.0]),
            "real image 1 has an `area` of 2, expected 0 to 1"
        );
        let mut nameless = judgement(true, 1.0, 0.5);
        nameless.attributes = Attributes::new();
        assert_eq!(
            message(&[nameless], &[]),
            "candidate 0 has no number `area`"
        );
        assert_eq!(wrong_option("sizes", r#"{"bins": 3}"#), "bins");
    }
}
