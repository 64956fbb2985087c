//! Small pictures of candidates, with outlines of masks: what the contact sheet and the gallery are made of.

use diffaug::{
    Image, Mask, Result,
    image::{overlay_image, resize_image, resize_mask},
};

/// Colour of what was asked for: cyan.
const WANTED: [u8; 3] = [64, 220, 255];
/// Colour of what a segmenter found: yellow.
const FOUND: [u8; 3] = [255, 220, 0];
/// Colour around an image that nothing is said of.
pub const PLAIN: [u8; 3] = [32, 32, 32];
/// Length of the dashes of a line, and of the gaps between them, in pixels.
const DASH: usize = 3;

/// The outline of what is labelled in a mask.
pub struct Outline<'a> {
    mask: &'a Mask,
    color: [u8; 3],
    dashed: bool,
}

impl<'a> Outline<'a> {
    /// Of what was asked for.
    pub fn wanted(mask: &'a Mask) -> Self {
        Outline {
            mask,
            color: WANTED,
            dashed: false,
        }
    }

    /// Of what a segmenter found.
    pub fn found(mask: &'a Mask) -> Self {
        Outline {
            mask,
            color: FOUND,
            dashed: false,
        }
    }

    /// The same in dashes, so that it is told apart without its colour.
    pub fn dashed(self) -> Self {
        Outline {
            dashed: true,
            ..self
        }
    }

    /// Colours the pixels of the mask that touch its outside; the mask is brought to the size of `image`.
    fn draw(&self, image: &mut Image) {
        let (width, height) = image.size();
        let mask = resize_mask(self.mask.view(), width, height);
        let (width, height) = (width as usize, height as usize);
        let on = |x: usize, y: usize| mask.labels()[y * width + x] != 0;
        for y in 0..height {
            for x in 0..width {
                let inner = (x > 0 && y > 0 && x + 1 < width && y + 1 < height)
                    && (on(x - 1, y) && on(x + 1, y) && on(x, y - 1) && on(x, y + 1));
                let gap = self.dashed && ((x + y) / DASH).is_multiple_of(2);
                if on(x, y) && !inner && !gap {
                    let at = 3 * (y * width + x);
                    image.bytes_mut()[at..at + 3].copy_from_slice(&self.color);
                }
            }
        }
    }
}

/// How an image is fitted into a square.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Side of the square in pixels.
    pub side: u32,
    /// Width of the frame in pixels.
    pub frame: u32,
    /// Colour of the frame, and beside images that are no squares.
    pub color: [u8; 3],
}

impl Tile {
    /// `image` as large as fits, in the middle, with outlines.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn of(self, image: &Image, outlines: &[Outline<'_>]) -> Result<Image> {
        let side = self.side;
        let inner = side - 2 * self.frame;
        let scale = f64::from(inner) / f64::from(image.width().max(image.height()));
        let fit = |side: u32| ((f64::from(side) * scale).round() as u32).clamp(1, inner);
        let (width, height) = (fit(image.width()), fit(image.height()));
        let mut small = resize_image(image.view(), width, height);
        for outline in outlines {
            outline.draw(&mut small);
        }
        let pixels = std::iter::repeat_n(self.color, (side * side) as usize).flatten();
        let mut tile = Image::new(side, side, pixels.collect())?;
        let (x, y) = ((side - width) / 2, (side - height) / 2);
        overlay_image(&mut tile, small.view(), x, y);
        Ok(tile)
    }
}

/// A mask of what has one of the labels `targets`.
pub fn of_targets(mut mask: Mask, targets: &[u8]) -> Mask {
    for label in mask.bytes_mut() {
        *label = u8::from(targets.contains(label));
    }
    mask
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A black image of 8x4 pixels in a tile of 12, and a mask of its left half.
    fn tile(dashed: bool) -> Image {
        let image = Image::new(8, 4, vec![0; 8 * 4 * 3]).unwrap();
        let labels = (0..32).map(|i| u8::from(i % 8 < 4)).collect();
        let mask = Mask::new(8, 4, labels).unwrap();
        let outline = Outline::wanted(&mask);
        let outline = if dashed { outline.dashed() } else { outline };
        let tile = Tile {
            side: 20,
            frame: 2,
            color: [9, 9, 9],
        };
        tile.of(&image, &[outline]).unwrap()
    }

    fn count(image: &Image, color: [u8; 3]) -> usize {
        let pixels = image.pixels().chunks_exact(3);
        pixels.filter(|pixel| *pixel == color).count()
    }

    #[test]
    fn an_image_lies_in_the_middle_of_its_tile() {
        let tile = tile(false);
        assert_eq!(tile.size(), (20, 20));
        // 16x8 of them are the image, around whose left half, 8x8, a line is drawn.
        assert_eq!(count(&tile, [9, 9, 9]), 20 * 20 - 16 * 8);
        assert_eq!(count(&tile, WANTED), 4 * 7);
        let at = |x: usize, y: usize| &tile.pixels()[3 * (y * 20 + x)..][..3];
        assert_eq!((at(2, 6), at(9, 13)), (&WANTED[..], &WANTED[..]));
        assert_eq!((at(3, 7), at(10, 6)), (&[0, 0, 0][..], &[0, 0, 0][..]));
    }

    #[test]
    fn dashes_leave_about_half_of_a_line() {
        let drawn = count(&tile(true), WANTED);
        assert!((10..=18).contains(&drawn), "{drawn}");
    }

    #[test]
    fn targets_are_told_from_other_labels() {
        let mask = Mask::new(4, 1, vec![0, 1, 2, 3]).unwrap();
        assert_eq!(of_targets(mask, &[1, 3]).labels(), [0, 1, 0, 1]);
    }
}
