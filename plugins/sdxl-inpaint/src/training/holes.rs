//! What is cut out of a picture in training: mostly lesions, as they will be asked for; and now and
//! then other shapes, so that the network learns to paint whatever is missing.

use crate::{options::within, picture::bounds, seam::distances};
use diffaug::{MaskRef, Result, rng::Rng};
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How often each kind of hole is cut, by weight, and how far lesions are grown.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Holes {
    /// The lesion itself, grown by at most `grow`.
    pub lesion: f64,
    /// The outline of another lesion, at any place.
    pub other: f64,
    /// One or two rectangles.
    pub rectangle: f64,
    /// Everything.
    pub full: f64,
    /// How far a lesion is grown at most, as a share of the root of its area. Painting cuts out the mask as
    /// it is, so at anything but 0 the network learns lesions that are smaller than their holes.
    pub grow: f64,
}

impl Default for Holes {
    fn default() -> Self {
        Holes {
            lesion: 0.6,
            other: 0.2,
            rectangle: 0.1,
            full: 0.1,
            grow: 0.0,
        }
    }
}

impl Holes {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Naming the one that is out of range.
    pub fn check(&self) -> Result<()> {
        let weights = [self.lesion, self.other, self.rectangle, self.full];
        let names = ["lesion", "other", "rectangle", "full"];
        for (name, weight) in names.iter().zip(weights) {
            within(&format!("train.holes.{name}"), weight, 0.0..=1e6)?;
        }
        within(
            "train.holes.lesion",
            weights.iter().sum(),
            f64::MIN_POSITIVE..=4e6,
        )?;
        within("train.holes.grow", self.grow, 0.0..=1.0)
    }

    /// Draws a hole for the lesion `own`; `other` lends its outline. True is cut out, row by row.
    pub fn draw(&self, own: MaskRef<'_>, other: MaskRef<'_>, rng: &mut Rng) -> Vec<bool> {
        let total = self.lesion + self.other + self.rectangle + self.full;
        let mut at = rng.random::<f64>() * total;
        let mut chosen = |weight: f64| {
            at -= weight;
            at < 0.0
        };
        let hole = if chosen(self.lesion) {
            self.lesion(own, rng)
        } else if chosen(self.other) {
            moved(other, (own.width(), own.height()), rng)
        } else if chosen(self.rectangle) {
            rectangles((own.width(), own.height()), rng)
        } else {
            Vec::new()
        };
        // Also where an outline fell outside of the picture altogether.
        match hole.contains(&true) {
            true => hole,
            false => vec![true; own.labels().len()],
        }
    }

    /// The lesion, grown by a chance distance.
    fn lesion(&self, own: MaskRef<'_>, rng: &mut Rng) -> Vec<bool> {
        let inside = inside(own);
        let area = inside.iter().filter(|&&inside| inside).count() as f64;
        let reach = (area.sqrt() * self.grow * rng.random::<f64>()).round();
        let distances = distances(&inside, own.width() as usize, reach as u32);
        distances.iter().map(|&d| d <= reach as f32).collect()
    }
}

/// The pixels that are not background.
pub fn inside(mask: MaskRef<'_>) -> Vec<bool> {
    mask.labels().iter().map(|&label| label != 0).collect()
}

/// The outline of a lesion, mirrored by chance and with its middle at a chance place of a picture
/// of that size.
fn moved(mask: MaskRef<'_>, (width, height): (u32, u32), rng: &mut Rng) -> Vec<bool> {
    let mut hole = vec![false; (width * height) as usize];
    let Some(part) = bounds(mask) else {
        return hole;
    };
    let (mirror, flip) = (rng.random::<bool>(), rng.random::<bool>());
    let left = i64::from(rng.random_range(0..width)) - i64::from(part.width / 2);
    let top = i64::from(rng.random_range(0..height)) - i64::from(part.height / 2);
    for y in 0..part.height {
        for x in 0..part.width {
            let from_x = part.x + if mirror { part.width - 1 - x } else { x };
            let from_y = part.y + if flip { part.height - 1 - y } else { y };
            let label = mask.labels()[(from_y * mask.width() + from_x) as usize];
            let (to_x, to_y) = (left + i64::from(x), top + i64::from(y));
            let there =
                (0..i64::from(width)).contains(&to_x) && (0..i64::from(height)).contains(&to_y);
            if label != 0 && there {
                hole[(to_y * i64::from(width) + to_x) as usize] = true;
            }
        }
    }
    hole
}

/// One or two rectangles of a tenth to six tenths of either side.
fn rectangles((width, height): (u32, u32), rng: &mut Rng) -> Vec<bool> {
    let mut hole = vec![false; (width * height) as usize];
    for _ in 0..rng.random_range(1..=2) {
        let mut side = |whole: u32| {
            let length = (f64::from(whole) * rng.random_range(0.1..0.6)).ceil() as u32;
            let first = rng.random_range(0..=whole - length);
            first..first + length
        };
        let (across, down) = (side(width), side(height));
        for y in down {
            hole[(y * width) as usize..][across.start as usize..across.end as usize].fill(true);
        }
    }
    hole
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Mask, rng};

    /// A square lesion of side 8 at (10, 4) of a picture of 32 by 20.
    fn lesion() -> Mask {
        let inside = |at: u32| (10..18).contains(&(at % 32)) && (4..12).contains(&(at / 32));
        Mask::new(32, 20, (0..640).map(|at| u8::from(inside(at))).collect()).unwrap()
    }

    fn only(kind: &str) -> Holes {
        let mut weights = serde_json::json!({
            "lesion": 0, "other": 0, "rectangle": 0, "full": 0, "grow": 0.15,
        });
        weights[kind] = serde_json::json!(1);
        serde_json::from_value(weights).unwrap()
    }

    fn draws(holes: Holes) -> Vec<Vec<bool>> {
        let mask = lesion();
        let draw = |i| holes.draw(mask.view(), mask.view(), &mut rng::stream(1, "hole", i));
        (0..40).map(draw).collect()
    }

    #[test]
    fn a_lesion_is_cut_out_whole_and_grown_by_no_more_than_was_said() {
        let own = inside(lesion().view());
        let mut sizes = std::collections::BTreeSet::new();
        for hole in draws(only("lesion")) {
            assert!(own.iter().zip(&hole).all(|(own, hole)| *hole || !own));
            // 0.15 of 8 pixels is one pixel on every side, corners excluded.
            let count = hole.iter().filter(|h| **h).count();
            assert!((64..=64 + 4 * 8).contains(&count), "{count}");
            sizes.insert(count);
        }
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [64, 96]);
    }

    #[test]
    fn a_lesion_is_cut_out_as_painting_does() {
        let own = inside(lesion().view());
        let holes = Holes {
            other: 0.0,
            rectangle: 0.0,
            full: 0.0,
            ..Holes::default()
        };
        assert!(draws(holes).iter().all(|hole| *hole == own));
    }

    #[test]
    fn every_kind_is_drawn_and_none_is_empty() {
        for kind in ["other", "rectangle"] {
            let holes = draws(only(kind));
            assert!(holes.iter().all(|hole| hole.contains(&true)));
            let shares: Vec<usize> = holes
                .iter()
                .map(|hole| hole.iter().filter(|h| **h).count())
                .collect();
            assert!(shares.iter().all(|count| *count < 640), "{kind}");
            assert!(shares.iter().any(|count| *count != shares[0]), "{kind}");
        }
        assert!(draws(only("full")).iter().flatten().all(|h| *h));
    }

    #[test]
    fn weights_are_checked() {
        Holes::default().check().unwrap();
        let none: Holes =
            serde_json::from_str(r#"{"lesion": 0, "other": 0, "rectangle": 0, "full": 0}"#)
                .unwrap();
        assert_eq!(none.check().unwrap_err().field, "train.holes.lesion");
        let negative = Holes {
            other: -1.0,
            ..Holes::default()
        };
        assert_eq!(negative.check().unwrap_err().field, "train.holes.other");
    }
}
