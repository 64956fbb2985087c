//! Cases as binary masks: which pixels count in truth and prediction, and with which probability.

use diffaug::prelude::*;

/// A binary mask: whether each pixel belongs to it, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// One value a pixel.
    pub inside: Vec<bool>,
}

impl Region {
    /// The pixels of `mask` whose label is among `targets`.
    pub fn of(mask: MaskRef<'_>, targets: &[u8]) -> Self {
        Region {
            width: mask.width() as usize,
            height: mask.height() as usize,
            inside: mask.labels().iter().map(|l| targets.contains(l)).collect(),
        }
    }

    /// Whether no pixel belongs to it.
    pub fn is_empty(&self) -> bool {
        !self.inside.contains(&true)
    }

    /// How many pixels belong to it.
    pub fn area(&self) -> usize {
        self.inside.iter().filter(|inside| **inside).count()
    }

    /// The border: pixels that are not surrounded on all four sides. What lies beyond the image is outside.
    pub fn border(&self) -> Region {
        let (width, height) = (self.width, self.height);
        let inner = |at: usize| {
            let (x, y) = (at % width, at / width);
            x > 0
                && y > 0
                && x + 1 < width
                && y + 1 < height
                && self.inside[at - 1]
                && self.inside[at + 1]
                && self.inside[at - width]
                && self.inside[at + width]
        };
        let inside = self.inside.iter().enumerate();
        Region {
            width,
            height,
            inside: inside.map(|(at, inside)| *inside && !inner(at)).collect(),
        }
    }
}

/// Truth and prediction of an image, of one size.
pub struct Pair {
    /// What is there.
    pub truth: Region,
    /// What was predicted.
    pub found: Region,
}

impl Pair {
    /// The pixels of `case` whose labels count.
    ///
    /// # Errors
    /// When the sizes differ or no label counts; the message names the image.
    pub fn of(case: &Case<'_>) -> Result<Self> {
        let (truth, found) = (case.truth, case.found);
        if truth.size() != found.size() {
            return Err(Error::data(format!(
                "image `{}`: the prediction is {}x{}, but its truth is {}x{}",
                case.id,
                found.width(),
                found.height(),
                truth.width(),
                truth.height()
            )));
        }
        if case.targets.is_empty() {
            let message = format!(
                "image `{}`: no label counts, expected at least one",
                case.id
            );
            return Err(Error::data(message));
        }
        Ok(Pair {
            truth: Region::of(truth, &case.targets),
            found: Region::of(found, &case.targets),
        })
    }
}

/// The probability of each pixel of `case`; `None` where the segmenter has none.
///
/// # Errors
/// When there are fewer or more than pixels, or one is not within 0 to 1; the message names image and pixel.
pub fn probability<'a>(case: &Case<'a>) -> Result<Option<&'a [f32]>> {
    let values = case.probability.as_slice();
    if values.is_empty() {
        return Ok(None);
    }
    let pixels = case.truth.labels().len();
    if values.len() != pixels {
        return Err(Error::data(format!(
            "image `{}` has {pixels} pixels, but {} probabilities",
            case.id,
            values.len()
        )));
    }
    match values.iter().position(|p| !(0.0..=1.0).contains(p)) {
        None => Ok(Some(values)),
        Some(at) => Err(Error::data(format!(
            "image `{}`: the probability at pixel {at} is {}, expected 0 to 1",
            case.id, values[at]
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::Sheet;

    #[test]
    fn the_border_is_what_is_not_surrounded() {
        let region = Region::of(Mask::new(4, 4, vec![3; 16]).unwrap().view(), &[3]);
        let border = region.border();
        assert_eq!(border.area(), 12);
        assert!(!border.inside[5] && border.inside[3]);
        assert!(Region::of(Mask::new(2, 1, vec![1, 2]).unwrap().view(), &[3]).is_empty());
    }

    #[test]
    fn cases_that_cannot_be_compared_are_named() {
        let mut sheet = Sheet::new(2, 1, "10", "01");
        let message = |sheet: &Sheet| Pair::of(&sheet.case()).err().unwrap().to_string();
        sheet.found = Mask::new(1, 2, vec![1, 0]).unwrap();
        assert_eq!(
            message(&sheet),
            "image `7`: the prediction is 1x2, but its truth is 2x1"
        );
        sheet.targets = Vec::new();
        sheet.found = sheet.truth.clone();
        assert_eq!(
            message(&sheet),
            "image `7`: no label counts, expected at least one"
        );
    }

    #[test]
    fn probabilities_are_checked() {
        let mut sheet = Sheet::new(2, 1, "10", "01");
        let mut told = |values: &[f32]| {
            sheet.probability = values.to_vec();
            probability(&sheet.case()).map(|found| found.map(<[f32]>::to_vec))
        };
        assert_eq!(told(&[]).unwrap(), None);
        assert_eq!(told(&[0.0, 1.0]).unwrap(), Some(vec![0.0, 1.0]));
        assert_eq!(
            told(&[0.5]).unwrap_err().to_string(),
            "image `7` has 2 pixels, but 1 probabilities"
        );
        for wrong in [f32::NAN, -0.1, 1.5, f32::INFINITY] {
            assert_eq!(
                told(&[0.5, wrong]).unwrap_err().to_string(),
                format!("image `7`: the probability at pixel 1 is {wrong}, expected 0 to 1")
            );
        }
    }
}
