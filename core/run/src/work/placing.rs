//! Where a borrowed outline may lie: masks moved over an image, parts of an image without labels, and
//! room beside labels.

use diffaug::{Image, Mask, MaskRef, Result, Sample, image::crop_image, rng};
use rand::RngExt;

/// Attempts to find a lesion-free crop before a background is given up.
const CROP_ATTEMPTS: usize = 64;
/// Attempts to find room for a healthy hole before it is left out.
const ATTEMPTS: usize = 64;
/// Pixels that a healthy hole keeps from labels and other holes at least, so that the seams of what is
/// painted do not meet.
const LEAST_GAP: f64 = 4.0;
/// The same, as a share of the image's longer side.
const GAP: f64 = 0.02;

/// `mask`, mirrored at random and moved at random as far as its labels stay inside; `None` without
/// labels.
///
/// # Errors
/// Those of [`Mask::new`].
pub fn moved(mask: &Mask, rng: &mut rng::Rng) -> Result<Option<Mask>> {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let (flip_x, flip_y) = (rng.random_bool(0.5), rng.random_bool(0.5));
    let at = |x: usize, y: usize| {
        let x = if flip_x { width - 1 - x } else { x };
        let y = if flip_y { height - 1 - y } else { y };
        mask.labels()[y * width + x]
    };
    let (mut x0, mut y0, mut x1, mut y1) = (width, height, 0, 0);
    for y in 0..height {
        for x in 0..width {
            if at(x, y) != 0 {
                (x0, y0) = (x0.min(x), y0.min(y));
                (x1, y1) = (x1.max(x), y1.max(y));
            }
        }
    }
    if x1 < x0 {
        return Ok(None);
    }
    // New top left corner of the box that holds the labels.
    let left = rng.random_range(0..=width - 1 - (x1 - x0));
    let top = rng.random_range(0..=height - 1 - (y1 - y0));
    let mut labels = vec![0; width * height];
    for y in 0..=(y1 - y0) {
        for x in 0..=(x1 - x0) {
            labels[(top + y) * width + left + x] = at(x0 + x, y0 + y);
        }
    }
    Mask::new(mask.width(), mask.height(), labels).map(Some)
}

/// `mask` without the labels that are no targets.
pub fn only(mask: &Mask, targets: &[u8]) -> Mask {
    let mut mask = mask.clone();
    for label in mask.bytes_mut() {
        if !targets.contains(label) {
            *label = 0;
        }
    }
    mask
}

/// The largest part of `sample` without any label that a number of seeded attempts finds, in the image's
/// proportions and with at least `min_crop` of its sides.
///
/// # Errors
/// Those of [`crop_image`].
pub fn lesion_free_crop(
    sample: &Sample,
    min_crop: f64,
    rng: &mut rng::Rng,
) -> Result<Option<Image>> {
    let (width, height) = sample.image.size();
    let mut best: Option<(u32, u32, u32, u32)> = None;
    for _ in 0..CROP_ATTEMPTS {
        let share = rng.random_range(min_crop..=1.0);
        let w = ((f64::from(width) * share) as u32).clamp(1, width);
        let h = ((f64::from(height) * share) as u32).clamp(1, height);
        let x = rng.random_range(0..=width - w);
        let y = rng.random_range(0..=height - h);
        if best.is_none_or(|(_, _, bw, _)| w > bw) && is_free(&sample.mask, (x, y), (w, h)) {
            best = Some((x, y, w, h));
        }
    }
    best.map(|(x, y, w, h)| crop_image(sample.image.view(), x, y, w, h))
        .transpose()
}

/// Whether a part of a mask, at (x, y) and of that size, has no label.
fn is_free(mask: &Mask, (x, y): (u32, u32), (width, height): (u32, u32)) -> bool {
    let row = mask.width() as usize;
    (y..y + height).all(|line| {
        let start = line as usize * row + x as usize;
        mask.labels()[start..start + width as usize]
            .iter()
            .all(|&label| label == 0)
    })
}

/// The places of an image that have a label already, and those that were given away since.
pub struct Room {
    width: usize,
    gap: f64,
    taken: Vec<bool>,
    /// `taken`, and what is too near to it.
    near: Vec<bool>,
}

impl Room {
    /// What `label` leaves free.
    pub fn beside(label: MaskRef<'_>) -> Self {
        let longer = f64::from(label.width().max(label.height()));
        let mut room = Room {
            width: label.width() as usize,
            gap: (GAP * longer).max(LEAST_GAP),
            taken: label.labels().iter().map(|&label| label != 0).collect(),
            near: Vec::new(),
        };
        room.near = grown(&room.taken, room.width, room.gap);
        room
    }

    /// Takes room for what one of a number of draws of `outline` makes, an outline of the image's
    /// size; `None` where none of them has room.
    ///
    /// # Errors
    /// Those of `outline`.
    pub fn take(
        &mut self,
        mut outline: impl FnMut() -> Result<Option<Mask>>,
    ) -> Result<Option<Mask>> {
        for _ in 0..ATTEMPTS {
            let Some(mask) = outline()? else { continue };
            let pixels = mask.labels().iter().zip(&self.near);
            if pixels.clone().all(|(label, near)| *label == 0 || !near) {
                for (taken, label) in self.taken.iter_mut().zip(mask.labels()) {
                    *taken |= *label != 0;
                }
                self.near = grown(&self.taken, self.width, self.gap);
                return Ok(Some(mask));
            }
        }
        Ok(None)
    }
}

/// All pixels that lie no further than `reach` pixels from one that is inside.
pub fn grown(inside: &[bool], width: usize, reach: f64) -> Vec<bool> {
    let mut out = inside.to_vec();
    let height = inside.len() / width;
    let reach_2 = reach * reach;
    let far = reach.floor() as i64;
    let edge = |at: usize| {
        let (x, y) = (at % width, at / width);
        let beside = [
            (x > 0).then(|| at - 1),
            (x + 1 < width).then(|| at + 1),
            (y > 0).then(|| at - width),
            (y + 1 < height).then(|| at + width),
        ];
        beside.into_iter().flatten().any(|at| !inside[at])
    };
    for at in (0..inside.len()).filter(|&at| inside[at] && edge(at)) {
        let (x, y) = ((at % width) as i64, (at / width) as i64);
        for down in (-far).max(-y)..=far.min(height as i64 - 1 - y) {
            for across in (-far).max(-x)..=far.min(width as i64 - 1 - x) {
                if (down * down + across * across) as f64 <= reach_2 {
                    out[((y + down) * width as i64 + x + across) as usize] = true;
                }
            }
        }
    }
    out
}

/// The smallest box around all labels of a mask, `[x0, y0, x1, y1]` in pixels, the last two exclusive;
/// all 0 without any.
pub fn bounds(mask: MaskRef<'_>) -> [u32; 4] {
    let width = mask.width();
    let labelled = (0u32..)
        .zip(mask.labels())
        .filter(|(_, label)| **label != 0);
    let boxes = labelled.map(|(at, _)| {
        let (x, y) = (at % width, at / width);
        [x, y, x + 1, y + 1]
    });
    let join = |a: [u32; 4], b: [u32; 4]| {
        let [x0, y0, x1, y1] = b;
        [a[0].min(x0), a[1].min(y0), a[2].max(x1), a[3].max(y1)]
    };
    boxes.reduce(join).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A box of labels in an image of 20 by 10.
    fn patch(x: std::ops::Range<usize>, y: std::ops::Range<usize>) -> Mask {
        let inside = |at: usize| x.contains(&(at % 20)) && y.contains(&(at / 20));
        Mask::new(20, 10, (0..200).map(|at| u8::from(inside(at))).collect()).unwrap()
    }

    #[test]
    fn a_moved_mask_keeps_every_pixel_inside() {
        let mut mask = patch(3..9, 2..5);
        for (at, label) in mask.bytes_mut().iter_mut().enumerate() {
            *label += u8::from(*label != 0 && at % 20 > 5);
        }
        for index in 0..50 {
            let moved = moved(&mask, &mut rng::stream(1, "test", index));
            let moved = moved.unwrap().unwrap();
            assert_eq!(moved.view().foreground(), 18);
            assert_eq!(moved.view().classes(), [1, 2]);
        }
        let empty = patch(0..0, 0..0);
        assert!(
            moved(&empty, &mut rng::stream(1, "test", 0))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_mask_grows_by_a_disc() {
        let dot = patch(6..7, 5..6);
        let inside: Vec<bool> = dot.labels().iter().map(|l| *l != 0).collect();
        let count = |reach| grown(&inside, 20, reach).iter().filter(|g| **g).count();
        assert_eq!(
            [count(0.9), count(1.0), count(1.5), count(2.0)],
            [1, 5, 9, 13]
        );
        // Also at the border, and where there is nothing to grow into.
        assert_eq!(grown(&[true; 200], 20, 3.0), [true; 200]);
        assert_eq!(grown(&[false; 200], 20, 3.0), [false; 200]);
    }

    #[test]
    fn holes_keep_away_from_labels_and_from_each_other() {
        let label = patch(0..4, 0..10);
        let mut room = Room::beside(label.view());
        let mut taken = Vec::new();
        for which in 0..3 {
            let mut rng = rng::stream(2, "hole", which);
            let hole = room.take(|| moved(&patch(0..3, 0..3), &mut rng)).unwrap();
            taken.extend(hole);
        }
        // With 16 free columns less 4 beside the label, two or three holes of 3 and their gaps fit.
        assert!(taken.len() >= 2, "{}", taken.len());
        let boxes: Vec<[u32; 4]> = taken.iter().map(|hole| bounds(hole.view())).collect();
        for (at, [x0, y0, ..]) in boxes.iter().enumerate() {
            assert!(*x0 > 7, "{boxes:?}");
            for [_, _, x1, y1] in &boxes[..at] {
                let apart = |a: u32, b: u32| a.abs_diff(b) >= 2;
                assert!(apart(*x0, *x1) || apart(*y0, *y1), "{boxes:?}");
            }
        }
        let full = patch(0..20, 0..10);
        let mut none = Room::beside(full.view());
        assert!(none.take(|| Ok(Some(patch(0..1, 0..1)))).unwrap().is_none());
    }

    #[test]
    fn bounds_hold_all_labels() {
        assert_eq!(bounds(patch(3..9, 2..5).view()), [3, 2, 9, 5]);
        assert_eq!(bounds(patch(0..0, 0..0).view()), [0; 4]);
    }
}
