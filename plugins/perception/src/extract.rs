//! From the images of a dataset to points.

use crate::{
    images::{Gallery, View},
    points::Points,
    space::{Extractor, Space},
};
use diffaug::{BoxDataset, Context, Error, Image, Reporter, Result};
use std::path::Path;

/// How images become points.
#[derive(Clone, Debug)]
pub struct Extraction<'a> {
    /// The features.
    pub space: Space,
    /// Where their weights lie.
    pub weights: &'a Path,
    /// What is looked at of an image.
    pub view: View,
    /// How many images pass the network at once.
    pub batch_size: usize,
}

/// The points of both sets.
#[derive(Debug)]
pub struct Both {
    /// Of real images.
    pub real: Points,
    /// Of synthetic images.
    pub synthetic: Points,
    /// How many images both have together, with a lesion or without.
    pub images: usize,
}

impl Extraction<'_> {
    /// Reads the weights, and the points of both sets, each once.
    ///
    /// # Errors
    /// When weights or an image cannot be read, or a feature is no number.
    pub fn both(
        &self,
        real: &BoxDataset,
        synthetic: &BoxDataset,
        context: &Context,
        reporter: &Reporter<'_>,
    ) -> Result<Both> {
        let device = diffaug_nn::device::open(&context.device)?;
        let extractor = self.space.open(self.weights, &device)?;
        let [real, synthetic] = [real, synthetic].map(|set| Gallery::new(set, self.view));
        let (real, synthetic) = (real?, synthetic?);
        let points = |gallery: &Gallery<'_>, what: &str| {
            points(gallery, extractor.as_ref(), self.batch_size, |done| {
                reporter.step(done as u64, gallery.len() as u64, what)
            })
        };
        Ok(Both {
            images: real.len() + synthetic.len(),
            real: points(&real, "real images")?,
            synthetic: points(&synthetic, "synthetic images")?,
        })
    }
}

/// The points of all images of `gallery` that have one.
fn points(
    gallery: &Gallery<'_>,
    extractor: &dyn Extractor,
    batch_size: usize,
    step: impl Fn(usize) -> Result<()>,
) -> Result<Points> {
    let mut points = Points::default();
    let indices: Vec<usize> = (0..gallery.len()).collect();
    for batch in indices.chunks(batch_size.max(1)) {
        let images = gallery.read(batch)?;
        let there = batch.iter().zip(&images);
        let there = there.filter_map(|(index, image)| Some((*index, image.as_ref()?)));
        let (of, images): (Vec<usize>, Vec<&Image>) = there.unzip();
        if !images.is_empty() {
            let views: Vec<_> = images.iter().map(|image| image.view()).collect();
            let rows: Vec<Vec<f32>> = extractor.points(&views)?.to_vec2()?;
            for (index, row) in of.iter().zip(&rows) {
                check(row, gallery.id(*index))?;
                points.push(row, *index as u64)?;
            }
        }
        step(batch.last().map_or(0, |last| last + 1))?;
    }
    Ok(points)
}

fn check(row: &[f32], id: &str) -> Result<()> {
    match row.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(Error::model(format!(
            "a feature of image `{id}` is {value}, expected a finite number"
        ))),
    }
}
