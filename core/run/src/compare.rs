//! Compares arms by the scores of each test image.

use crate::{
    reader::{Arm, Scores},
    statistics::{Comparison, LEVEL, holm},
    work::measuring::Figure,
};
use diffaug::{
    Error, Result,
    metrics::{mean, std_dev},
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// With fewer groups than this an interval of resampled groups is too narrow.
const FEW_GROUPS: usize = 10;

/// An arm beside the first one.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What the arm is called.
    pub arm: String,
    /// The seeds of its trainings.
    pub seeds: Vec<u64>,
    /// Steps of each training.
    pub steps: Vec<Option<u64>>,
    /// Mean over trainings of the mean over images; `None` where no image has the figure.
    pub mean: Option<f64>,
    /// Test images of its trainings, whether they have the figure or not.
    pub images: usize,
    /// Sample standard deviation over trainings of the mean over images.
    pub std: f64,
    /// `higher`, `lower` or `neither`: which way the figure improves.
    pub better: String,
    /// This arm less the first, image by image, each the mean over trainings; `None` for the first.
    pub against_first: Option<Comparison>,
    /// The p of the comparison, corrected for their number (Holm).
    pub adjusted_p: Option<f64>,
    /// The standard error of the difference over seeds, where both arms have several.
    pub seed_error: Option<f64>,
}

impl Row {
    /// `gain` or `loss` (`more` or `less` of a figure that is neither good nor bad), `none` where the interval holds zero, or `unsure` where it does not but trainings differ
    /// so much that other seeds may turn the difference.
    pub fn verdict(&self) -> &'static str {
        match &self.against_first {
            None => "",
            Some(found)
                if (found.low > 0.0 || found.high < 0.0) && self.within_spread().is_some() =>
            {
                "unsure"
            }
            Some(found) if found.low > 0.0 => self.words()[0],
            Some(found) if found.high < 0.0 => self.words()[1],
            Some(_) => "none",
        }
    }

    /// What a rise and a fall of the figure are called.
    fn words(&self) -> [&'static str; 2] {
        match self.better.as_str() {
            "higher" => ["gain", "loss"],
            "lower" => ["loss", "gain"],
            _ => ["more", "less"],
        }
    }

    /// The standard error over seeds, where the difference is less than twice that.
    fn within_spread(&self) -> Option<f64> {
        let found = self.against_first.as_ref()?;
        self.seed_error
            .filter(|error| found.difference.abs() < 2.0 * error)
    }

    /// The comparison with the first arm as people write it, see [`columns`]; empty for the first.
    pub fn cells(&self) -> [String; 5] {
        let p = |p: Option<f64>| match p {
            Some(p) if p < 1e-4 => "< 0.0001".to_owned(),
            Some(p) => format!("{p:.4}"),
            None => String::new(),
        };
        match &self.against_first {
            None => [const { String::new() }; 5],
            Some(found) => [
                format!("{:+.3}", found.difference),
                format!("{:+.3} to {:+.3}", found.low, found.high),
                p(found.p),
                p(self.adjusted_p),
                self.verdict().to_owned(),
            ],
        }
    }
}

/// What the columns of [`Row::cells`] are called.
pub fn columns() -> [String; 5] {
    [
        "difference".to_owned(),
        format!("{:.0} % interval", 100.0 * LEVEL),
        "p".to_owned(),
        "p (Holm)".to_owned(),
        "verdict".to_owned(),
    ]
}

/// A mean over `n` trainings as people write it, with its deviation where there is one; a dash where there is
/// none.
pub fn shown(mean: Option<f64>, std: f64, n: usize) -> String {
    let Some(mean) = mean else {
        return "-".to_owned();
    };
    match n {
        0 | 1 => format!("{mean:.3}"),
        _ => format!("{mean:.3} ± {std:.3}"),
    }
}

/// Compares every arm with the first by the figure called `metric`.
///
/// # Errors
/// When a figure is unknown, or two arms share no image that has it.
pub fn compare(arms: &[Arm], metric: &str, seed: u64) -> Result<Vec<Row>> {
    let Some(first) = arms.first() else {
        return Ok(Vec::new());
    };
    let reference = by_image(first, metric)?;
    if arms.iter().all(|arm| values_of(arm, metric).is_empty()) {
        return Err(missing(first, metric));
    }
    let better = figure(arms, metric)?.map_or("neither", |figure| &figure.better);
    let mut rows = Vec::new();
    for (index, arm) in arms.iter().enumerate() {
        let against_first = match index {
            0 => None,
            _ => against(&by_image(arm, metric)?, &reference, arm, seed)?,
        };
        let means: Vec<f64> = arm
            .trainings
            .iter()
            .filter_map(|training| mean(&values(training.images.values(), metric)))
            .collect();
        rows.push(Row {
            arm: arm.name.clone(),
            seeds: arm.trainings.iter().map(|t| t.seed).collect(),
            steps: arm.trainings.iter().map(|t| t.steps).collect(),
            mean: mean(&means),
            images: images(arm),
            std: std_dev(&means).unwrap_or(0.0),
            better: better.to_owned(),
            against_first,
            adjusted_p: None,
            seed_error: None,
        });
    }
    if let Some((first, others)) = rows.split_first_mut() {
        for row in others {
            row.seed_error = seed_error(first, row);
        }
    }
    let tested = |row: &Row| row.against_first.as_ref().and_then(|found| found.p);
    let adjusted = holm(&rows.iter().filter_map(tested).collect::<Vec<f64>>());
    let with_p = rows.iter_mut().filter(|row| tested(row).is_some());
    for (row, p) in with_p.zip(adjusted) {
        row.adjusted_p = Some(p);
    }
    Ok(rows)
}

/// The mean of an arm over test images, with an interval.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Interval {
    /// Mean over images of the mean over trainings.
    pub mean: f64,
    /// Lower end of the bootstrap interval of `mean` ([`LEVEL`]), over images; trainings differ besides.
    pub low: f64,
    /// Upper end of the same.
    pub high: f64,
}

/// The mean of the figure called `metric` over the test images of an arm; images of one group are resampled
/// together.
///
/// # Errors
/// When no image has that figure.
pub fn interval(arm: &Arm, metric: &str, seed: u64) -> Result<Interval> {
    let images = by_image(arm, metric)?.into_values();
    let (pairs, clusters): (Vec<(f64, f64)>, Vec<String>) = images
        .map(|(value, cluster)| ((value, 0.0), cluster))
        .unzip();
    // Not every image of an arm has the figure in all of its trainings.
    if pairs.is_empty() {
        return Err(missing(arm, metric));
    }
    let found = Comparison::of(&pairs, &clusters, seed)?;
    Ok(Interval {
        mean: found.difference,
        low: found.low,
        high: found.high,
    })
}

fn values<'a>(images: impl Iterator<Item = &'a Scores>, metric: &str) -> Vec<f64> {
    images
        .filter_map(|scores| scores.figures.get(metric).copied())
        .collect()
}

fn missing(arm: &Arm, metric: &str) -> Error {
    Error::config(format!(
        "no test image of `{}` has a figure `{metric}`",
        arm.name
    ))
}

/// The mean over trainings of each image, and its cluster: the image itself where it is of no group.
///
/// # Errors
/// When the arm has no such figure.
fn by_image<'a>(arm: &'a Arm, metric: &str) -> Result<BTreeMap<&'a str, (f64, String)>> {
    if !arm.figures.iter().any(|figure| figure.name == metric) {
        return Err(missing(arm, metric));
    }
    let mut all: BTreeMap<&str, (Vec<f64>, String)> = BTreeMap::new();
    for (id, scores) in arm.trainings.iter().flat_map(|training| &training.images) {
        let Some(value) = scores.figures.get(metric) else {
            continue;
        };
        let cluster = match scores.group.is_empty() {
            true => format!("image {id}"),
            false => format!("group {}", scores.group),
        };
        all.entry(id)
            .or_insert_with(|| (Vec::new(), cluster))
            .0
            .push(*value);
    }
    // An image that some training has no figure of is left out: means would be of different trainings.
    let whole = all
        .into_iter()
        .filter(|(_, (values, _))| values.len() == arm.trainings.len());
    Ok(whole
        .filter_map(|(id, (values, cluster))| Some((id, (mean(&values)?, cluster))))
        .collect())
}

fn against(
    arm: &BTreeMap<&str, (f64, String)>,
    reference: &BTreeMap<&str, (f64, String)>,
    named: &Arm,
    seed: u64,
) -> Result<Option<Comparison>> {
    let alike = arm.keys().any(|id| reference.contains_key(id));
    // Where no image of one arm has the figure, there is nothing to compare.
    if arm.is_empty() || reference.is_empty() {
        return Ok(None);
    }
    if !alike {
        return Err(Error::data(format!(
            "`{}` shares no test image with the first arm",
            named.name
        )));
    }
    let shared = arm.iter().filter_map(|(id, (value, cluster))| {
        Some(((*value, reference.get(id)?.0), cluster.clone()))
    });
    let (pairs, clusters): (Vec<(f64, f64)>, Vec<String>) = shared.unzip();
    Comparison::of(&pairs, &clusters, seed).map(Some)
}

/// How many test images the trainings of an arm have.
fn images(arm: &Arm) -> usize {
    let trainings = arm.trainings.iter();
    let ids: BTreeSet<&String> = trainings.flat_map(|one| one.images.keys()).collect();
    ids.len()
}

/// The values of a figure of all images of all trainings.
fn values_of(arm: &Arm, metric: &str) -> Vec<f64> {
    let images = arm.trainings.iter().flat_map(|one| one.images.values());
    values(images, metric)
}

/// What the arms say of a figure; `None` where none knows it.
///
/// # Errors
/// When they measured it with other options.
fn figure<'a>(arms: &'a [Arm], metric: &str) -> Result<Option<&'a Figure>> {
    let own = |arm: &'a Arm| arm.figures.iter().find(|figure| figure.name == metric);
    let mut known = arms.iter().filter_map(|arm| Some((arm, own(arm)?)));
    let Some((first, figure)) = known.next() else {
        return Ok(None);
    };
    match known.find(|(_, other)| other.measure != figure.measure) {
        None => Ok(Some(figure)),
        Some((arm, other)) => Err(Error::data(format!(
            "`{metric}` of `{}` was measured by {}, that of `{}` by {}",
            first.name, figure.measure, arm.name, other.measure
        ))),
    }
}

/// What makes a comparison less than fair.
pub fn warnings(rows: &[Row]) -> Vec<String> {
    let mut warnings = Vec::new();
    let first = &rows[0];
    for row in &rows[1..] {
        let steps = |row: &Row| row.steps.first().copied().flatten();
        let uneven = row.steps.iter().any(|&s| s != steps(row)) || steps(row) != steps(first);
        if uneven {
            warnings.push(format!(
                "`{}` was not trained for as many steps as `{}`",
                row.arm, first.arm
            ));
        }
        if row.seeds != first.seeds {
            warnings.push(format!(
                "`{}` has trainings of other seeds than `{}`",
                row.arm, first.arm
            ));
        }
        let compared = row.against_first.as_ref().map_or(0, |found| found.images);
        let fewest = row.images.min(first.images);
        if compared < fewest {
            warnings.push(format!(
                "the figure is undefined for {} of {fewest} test images in some training of `{}` or `{}`: they \
                 are not in the difference, and means are over what each arm has",
                fewest - compared,
                row.arm,
                first.arm
            ));
        }
        if let Some(error) = row.within_spread() {
            warnings.push(format!(
                "trainings of one arm differ so much that other seeds may turn the difference of `{}` from \
                 `{}`: {:+.3}, with a standard error of {error:.3} over seeds, which the interval over images \
                 does not hold",
                row.arm,
                first.arm,
                row.against_first.as_ref().map_or(0.0, |found| found.difference)
            ));
        }
    }
    let groups = rows.iter().filter_map(|row| row.against_first.as_ref());
    if let Some(few) = groups
        .map(|found| found.clusters)
        .min()
        .filter(|n| *n < FEW_GROUPS)
    {
        warnings.push(format!(
            "there are only {few} independent groups of images: intervals are too narrow"
        ));
    }
    warnings
}

/// The standard error of the difference of two arms over their seeds, where both have several.
fn seed_error(first: &Row, row: &Row) -> Option<f64> {
    let share = |row: &Row| row.std * row.std / row.seeds.len() as f64;
    let several = first.seeds.len() > 1 && row.seeds.len() > 1;
    several.then(|| (share(first) + share(row)).sqrt())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::reader::Training;

    fn arm(name: &str, dice: &[&[f64]], groups: &[&str]) -> Arm {
        let training = |(seed, values): (usize, &&[f64])| Training {
            seed: seed as u64,
            steps: Some(10),
            images: values
                .iter()
                .enumerate()
                .map(|(i, &value)| {
                    let figures = [("dice".to_owned(), value)].into();
                    let group = groups.get(i).copied().unwrap_or_default().to_owned();
                    (format!("i{i}"), Scores { group, figures })
                })
                .collect(),
        };
        Arm {
            name: name.to_owned(),
            trainings: dice.iter().enumerate().map(training).collect(),
            figures: crate::work::scoring::basic(),
        }
    }

    #[test]
    fn arms_are_compared_image_by_image_over_all_trainings() {
        let real = arm("real", &[&[0.5, 0.6, 0.7], &[0.7, 0.6, 0.5]], &[]);
        let more = arm("more", &[&[0.7, 0.8, 0.9], &[0.9, 0.8, 0.7]], &[]);
        let rows = compare(&[real, more], "dice", 0).unwrap();
        assert!(rows[0].against_first.is_none() && rows[0].adjusted_p.is_none());
        assert!((rows[0].mean.unwrap() - 0.6).abs() < 1e-12 && rows[0].std < 1e-12);
        let found = rows[1].against_first.as_ref().unwrap();
        assert!((found.difference - 0.2).abs() < 1e-12);
        assert!((found.low - 0.2).abs() < 1e-12 && (found.high - 0.2).abs() < 1e-12);
        assert_eq!((found.images, found.clusters), (3, 3));
        assert_eq!(rows[1].verdict(), "gain");
    }

    #[test]
    fn less_of_what_is_bad_is_a_gain() {
        let figure = |arm: Arm| {
            let rename = |mut training: Training| {
                for scores in training.images.values_mut() {
                    let value = scores.figures.remove("dice").unwrap();
                    scores.figures.insert("fnr".to_owned(), value);
                }
                training
            };
            let trainings = arm.trainings.into_iter().map(rename).collect();
            Arm { trainings, ..arm }
        };
        let one = figure(arm("one", &[&[0.5, 0.6, 0.7]], &[]));
        let other = figure(arm("other", &[&[0.2, 0.3, 0.4]], &[]));
        let rows = compare(&[one.clone(), other.clone()], "fnr", 0).unwrap();
        assert_eq!(rows[1].verdict(), "gain");
        assert_eq!(
            compare(&[other, one], "fnr", 0).unwrap()[1].verdict(),
            "loss"
        );
    }

    #[test]
    fn an_arm_has_a_mean_with_an_interval() {
        let one = arm("one", &[&[0.2, 0.6, 0.7], &[0.4, 0.6, 0.5]], &[]);
        let found = interval(&one, "dice", 0).unwrap();
        assert!((found.mean - 0.5).abs() < 1e-12);
        // Some resamples hold the first image alone, some never; three images allow no more.
        assert!((found.low - 0.3).abs() < 1e-12 && (found.high - 0.6).abs() < 1e-12);
        let alike = arm("alike", &[&[0.4, 0.4]], &["a", "b"]);
        let found = interval(&alike, "dice", 0).unwrap();
        assert_eq!((found.low, found.high), (found.mean, found.mean));
        assert!(interval(&one, "dicey", 0).is_err());
    }

    #[test]
    fn a_difference_that_its_interval_does_not_bear_out_is_none() {
        let one = arm("one", &[&[0.5, 0.6, 0.7, 0.4]], &["a", "a", "b", "b"]);
        let other = arm("other", &[&[0.9, 0.7, 0.6, 0.3]], &["a", "a", "b", "b"]);
        let rows = compare(&[one, other], "dice", 0).unwrap();
        assert_eq!(rows[1].verdict(), "none");
        assert_eq!(rows[1].against_first.as_ref().unwrap().clusters, 2);
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let one = arm("one", &[&[0.5]], &[]);
        let error = compare(&[one.clone(), one.clone()], "dicey", 0).unwrap_err();
        assert!(error.message.contains("dicey"), "{error:?}");
        let mut other = one.clone();
        let images = std::mem::take(&mut other.trainings[0].images);
        let renamed = images
            .into_values()
            .map(|scores| ("else".to_owned(), scores));
        other.trainings[0].images = renamed.collect();
        assert!(compare(&[one, other], "dice", 0).is_err());
    }

    #[test]
    fn a_difference_within_the_spread_of_trainings_is_warned_of() {
        // Every image gains 0.02, trainings differ by 0.2.
        let real = arm("real", &[&[0.5, 0.6, 0.7], &[0.7, 0.8, 0.9]], &[]);
        let more = arm("more", &[&[0.52, 0.62, 0.72], &[0.72, 0.82, 0.92]], &[]);
        let rows = compare(&[real.clone(), more], "dice", 0).unwrap();
        assert_eq!(rows[1].verdict(), "unsure");
        let error = rows[1].within_spread().unwrap();
        assert!((error - 0.02f64.sqrt()).abs() < 1e-12, "{error}");
        let far = arm("far", &[&[0.9, 0.9, 0.9], &[0.95, 0.95, 0.95]], &[]);
        let rows = compare(&[real, far], "dice", 0).unwrap();
        assert_eq!((rows[1].within_spread(), rows[1].verdict()), (None, "gain"));
    }
}
