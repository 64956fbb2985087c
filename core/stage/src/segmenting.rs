//! What trained segmenters have in common, whatever network is in them: classes and sizes from a
//! dataset, answers batch by batch, and the score that weights are chosen by.

use crate::{
    data::{Class, DatasetInfo, ImageRef, Sample, Segmentation},
    error::{Error, Result},
    metrics::mean_dice,
    stage::{BoxDataset, Dataset, Reporter},
};
use abi_stable::std_types::RVec;

/// The target classes of a dataset, label and name, the lowest label first.
///
/// # Errors
/// When there is none.
pub fn targets(info: &DatasetInfo) -> Result<Vec<(u8, String)>> {
    let targets = info.classes.iter().filter(|class| class.target);
    let mut targets: Vec<(u8, String)> = targets
        .map(|class| (class.label, class.name.to_string()))
        .collect();
    targets.sort();
    match targets.is_empty() {
        true => Err(Error::data(format!(
            "dataset `{}` has no target class",
            info.name
        ))),
        false => Ok(targets),
    }
}

/// Target classes as a stage answers with them.
pub fn classes(targets: &[(u8, String)]) -> impl Iterator<Item = Class> {
    targets.iter().map(|(label, name)| Class {
        label: *label,
        name: name.as_str().into(),
        target: true,
    })
}

/// Width and height that images are brought to: the square of `side`, or what the first training image
/// has.
///
/// # Errors
/// When there is no training image, or it cannot be used.
pub fn input_size(train: &BoxDataset, side: Option<u32>) -> Result<(u32, u32)> {
    if train.items()?.is_empty() {
        return Err(Error::data("there are no samples for training"));
    }
    match side {
        Some(side) => Ok((side, side)),
        None => Ok(train.sample(0)?.image.size()),
    }
}

/// Checks that samples have the size of those before them, where no option brings them to one.
///
/// # Errors
/// Naming the one that has another.
pub fn check_sizes(samples: &[Sample], side: Option<u32>, expected: (u32, u32)) -> Result<()> {
    let odd = samples.iter().find(|s| s.image.size() != expected);
    match (side, odd) {
        (None, Some(odd)) => {
            let ((width, height), (w, h)) = (odd.image.size(), expected);
            Err(Error::data(format!(
                "image `{}` is {width}x{height}, others are {w}x{h}: set the option `size`",
                odd.id
            )))
        }
        _ => Ok(()),
    }
}

/// Answers of `segment` to `images`, at most `batch` at once.
///
/// # Errors
/// Those of `segment`, and cancellation.
pub fn in_batches(
    images: &[ImageRef<'_>],
    batch: usize,
    reporter: &Reporter<'_>,
    mut segment: impl FnMut(&[ImageRef<'_>]) -> Result<Vec<Segmentation>>,
) -> Result<RVec<Segmentation>> {
    let total = images.len() as u64;
    let mut answers = RVec::with_capacity(images.len());
    for part in images.chunks(batch.max(1)) {
        answers.extend(segment(part)?);
        reporter.step(answers.len() as u64, total, "")?;
    }
    Ok(answers)
}

/// The mean over `validation` of the Dice coefficient, itself a mean over `labels`, of what `segment`
/// answers.
///
/// # Errors
/// When a sample cannot be used, those of `segment`, and cancellation.
pub fn validation_dice(
    validation: &BoxDataset,
    labels: &[u8],
    batch: usize,
    reporter: &Reporter<'_>,
    mut segment: impl FnMut(&[ImageRef<'_>]) -> Result<Vec<Segmentation>>,
) -> Result<f64> {
    let count = validation.items()?.len() as u64;
    let mut total = 0.0;
    for start in (0..count).step_by(batch.max(1)) {
        if reporter.cancelled() {
            return Err(Error::cancelled());
        }
        let end = (start + batch.max(1) as u64).min(count);
        let samples = (start..end).map(|index| validation.sample(index));
        let samples: Vec<Sample> = samples.collect::<Result<_>>()?;
        let images: Vec<ImageRef<'_>> = samples.iter().map(|s| s.image.view()).collect();
        for (answer, sample) in segment(&images)?.iter().zip(&samples) {
            total += mean_dice(sample.mask.view(), answer.mask.view(), labels)?;
        }
    }
    Ok(total / count as f64)
}
