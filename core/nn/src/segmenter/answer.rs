//! From the probabilities of a network to the answer for an image.

use crate::batch::{self, Frame};
use diffaug::{Mask, Result, Segmentation, prelude::ImageRef};

/// Brings the probabilities of every channel to the image's size and decides. One plane is that of the one
/// class; of several the first is the background's, and the most probable class is taken.
///
/// # Errors
/// When there is no plane.
pub fn decide(
    planes: &[Vec<f32>],
    frame: Frame,
    image: ImageRef<'_>,
    labels: &[u8],
    threshold: f32,
) -> Result<Segmentation> {
    let size = image.size();
    let planes: Vec<Vec<f32>> = planes
        .iter()
        .map(|plane| batch::answer(plane, frame, size))
        .collect();
    let (found, probability) = match planes.as_slice() {
        [target] => {
            let label = |p: &f32| if *p > threshold { labels[0] } else { 0 };
            (target.iter().map(label).collect(), target.clone())
        }
        planes => {
            let best = (0..planes[0].len()).map(|i| {
                // The first of equally probable classes; background comes first.
                let best = (1..planes.len()).fold(0, |best, class| {
                    if planes[class][i] > planes[best][i] {
                        class
                    } else {
                        best
                    }
                });
                if best == 0 { 0 } else { labels[best - 1] }
            });
            (best.collect(), planes[0].iter().map(|p| 1.0 - p).collect())
        }
    };
    Ok(Segmentation {
        mask: Mask::new(size.0, size.1, found)?,
        probability: probability.into(),
    })
}
