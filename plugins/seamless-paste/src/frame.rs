//! What of an image shows nothing: the black frame around the round picture of an endoscope or a
//! fundus camera.
//!
//! Taken for tissue, the frame would darken whatever is blended in beside it. It is treated like
//! the image's border instead.

use crate::shape::Nearest;
use diffaug::Image;

/// Pixels of the frame have no channel above this.
const BLACK: u8 = 28;
/// The frame's edge is blurred over about this many pixels.
const BLUR: f64 = 2.0;

/// For each pixel whether it belongs to the frame: dark, connected to the image's border through
/// dark pixels, or right beside such a pixel.
pub(crate) fn frame(image: &Image) -> Vec<bool> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut open: Vec<bool> = image
        .pixels()
        .chunks_exact(3)
        .map(|pixel| pixel.iter().all(|&v| v <= BLACK))
        .collect();
    let mut dark = vec![false; width * height];
    let border = (0..width)
        .flat_map(|x| [x, (height - 1) * width + x])
        .chain((0..height).flat_map(|y| [y * width, y * width + width - 1]));
    let mut stack = Vec::new();
    let mut visit = |at: usize, stack: &mut Vec<usize>| {
        if std::mem::take(&mut open[at]) {
            dark[at] = true;
            stack.push(at);
        }
    };
    for at in border {
        visit(at, &mut stack);
        while let Some(at) = stack.pop() {
            let (x, y) = (at % width, at / width);
            if x > 0 {
                visit(at - 1, &mut stack);
            }
            if x + 1 < width {
                visit(at + 1, &mut stack);
            }
            if y > 0 {
                visit(at - width, &mut stack);
            }
            if y + 1 < height {
                visit(at + width, &mut stack);
            }
        }
    }
    if !dark.contains(&true) {
        return dark;
    }
    let nearest = Nearest::new(width, height, |x, y| dark[y * width + x]);
    (0..width * height)
        .map(|at| nearest.distance(at % width, at / width) <= BLUR)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_reaches_in_from_the_border_but_dark_spots_inside_stay() {
        let side = 40;
        let pixels = (0..side * side)
            .flat_map(|i| {
                let (x, y) = ((i % side) as f64 - 20.0, (i / side) as f64 - 20.0);
                let picture = x.hypot(y) < 18.0 && x.hypot(y) > 3.0;
                [if picture { 120 } else { 5 }; 3]
            })
            .collect();
        let image = Image::new(side as u32, side as u32, pixels).unwrap();
        let frame = frame(&image);
        let at = |x: usize, y: usize| frame[y * side + x];
        assert!(at(0, 0) && at(39, 39) && at(20, 0));
        assert!(at(20, 3), "the blurred edge");
        assert!(!at(20, 20), "a dark spot is no frame");
        assert!(!at(20, 8));
    }

    #[test]
    fn an_image_without_a_frame_has_none() {
        let image = Image::new(5, 4, vec![90; 60]).unwrap();
        assert!(!super::frame(&image).contains(&true));
    }
}
