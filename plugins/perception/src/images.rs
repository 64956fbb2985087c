//! What a measure looks at: whole images, or the squares around their lesions.

use diffaug::{
    BoxDataset, Dataset, Error, Image, Result, Sample, image::crop_image, prelude::JsonSchema,
};
use rayon::prelude::*;
use serde::Deserialize;

/// Share of a lesion's longer side that a window shows on every side of it.
const MARGIN: f64 = 0.1;

/// What is looked at of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// The whole image.
    #[default]
    Image,
    /// The square around all lesions of the image, with a margin of a tenth of its side; images without a
    /// lesion are left out.
    Lesion,
}

/// The images of a dataset in one view.
pub struct Gallery<'a> {
    dataset: &'a BoxDataset,
    view: View,
    targets: Vec<u8>,
    ids: Vec<String>,
}

impl<'a> Gallery<'a> {
    /// The images of `dataset`; none is read.
    ///
    /// # Errors
    /// When the dataset cannot be listed.
    pub fn new(dataset: &'a BoxDataset, view: View) -> Result<Self> {
        let items = dataset.items()?;
        Ok(Gallery {
            dataset,
            view,
            targets: dataset.info()?.targets(),
            ids: items.iter().map(|item| item.id.to_string()).collect(),
        })
    }

    /// How many images the dataset has, with a lesion or without.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The id of an image.
    pub fn id(&self, index: usize) -> &str {
        self.ids.get(index).map_or("", String::as_str)
    }

    /// The numbers of the images in which there is something to look at. Of lesions this reads them all.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn present(&self) -> Result<Vec<usize>> {
        if self.view == View::Image {
            return Ok((0..self.len()).collect());
        }
        let shows = |index: usize| -> Result<Option<usize>> {
            let sample = self.dataset.sample(index as u64)?;
            let mut labels = sample.mask.labels().iter();
            let shows = labels.any(|label| self.targets.contains(label));
            Ok(shows.then_some(index))
        };
        let all: Vec<Option<usize>> = (0..self.len())
            .into_par_iter()
            .map(shows)
            .collect::<Result<_>>()?;
        Ok(all.into_iter().flatten().collect())
    }

    /// The images at `indices`; `None` where there is no lesion to look at.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(&self, indices: &[usize]) -> Result<Vec<Option<Image>>> {
        let read = |index: &usize| -> Result<Option<Image>> {
            let sample = self.dataset.sample(*index as u64)?;
            match self.view {
                View::Image => Ok(Some(sample.image)),
                View::Lesion => window(&sample, &self.targets),
            }
        };
        indices.par_iter().map(read).collect()
    }
}

/// The square around the pixels of `targets`, inside the image; `None` where there are none.
fn window(sample: &Sample, targets: &[u8]) -> Result<Option<Image>> {
    let (width, height) = sample.image.size();
    if sample.mask.size() != (width, height) {
        let (w, h) = sample.mask.size();
        return Err(Error::data(format!(
            "the mask of `{}` is of {w}x{h} pixels, expected {width}x{height} as its image",
            sample.id
        )));
    }
    let labels = sample.mask.labels().iter().enumerate();
    let inside = labels.filter(|(_, label)| targets.contains(label));
    let bounds = inside.fold(None, |bounds, (at, _)| {
        let (x, y) = (at as u32 % width, at as u32 / width);
        let (left, top, right, bottom) = bounds.unwrap_or((x, y, x, y));
        Some((left.min(x), top.min(y), right.max(x), bottom.max(y)))
    });
    let Some((left, top, right, bottom)) = bounds else {
        return Ok(None);
    };
    let longer = (right - left).max(bottom - top) + 1;
    let side = (f64::from(longer) * (1.0 + 2.0 * MARGIN)) as u32;
    let side = side.min(width).min(height);
    let place = |from: u32, to: u32, whole: u32| {
        ((from + to) / 2).saturating_sub(side / 2).min(whole - side)
    };
    let (x, y) = (place(left, right, width), place(top, bottom, height));
    crop_image(sample.image.view(), x, y, side, side).map(Some)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::Set;
    use diffaug::Mask;

    #[test]
    fn a_window_is_a_square_around_the_lesion_and_inside_the_image() {
        let mut mask = vec![0; 20 * 12];
        // Columns 3 to 12, rows 8 and 9.
        (8..10).for_each(|y| mask[y * 20 + 3..y * 20 + 13].fill(1));
        let mut set = Set::noise(2, (20, 12), 1);
        set.samples[0].mask = Mask::new(20, 12, mask).unwrap();
        set.samples[1].mask = Mask::new(20, 12, vec![0; 240]).unwrap();
        let dataset = BoxDataset::new(set);
        let gallery = Gallery::new(&dataset, View::Lesion).unwrap();
        let found = gallery.read(&[0, 1]).unwrap();
        let window = found[0].as_ref().unwrap();
        assert_eq!(window.size(), (12, 12));
        let whole = dataset.sample(0).unwrap().image;
        assert_eq!(
            *window,
            crop_image(whole.view(), 1, 0, 12, 12).unwrap(),
            "centred at 7 as far as there is room"
        );
        assert!(found[1].is_none());
        assert_eq!(gallery.present().unwrap(), [0]);
        let gallery = Gallery::new(&dataset, View::Image).unwrap();
        assert_eq!(
            gallery.read(&[1]).unwrap()[0].as_ref().unwrap().size(),
            (20, 12)
        );
        assert_eq!(gallery.present().unwrap(), [0, 1]);
        assert!(gallery.read(&[2]).is_err());
    }
}
