//! What counts for a lesion of which size, and how rough it has to be.

use diffaug::{appearance::Appearance, prelude::*};
use serde::Serialize;

/// A threshold for small lesions.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BySize {
    /// For lesions that cover less than this share of the image, above 0 to 1.
    pub below: f64,
    /// What the IoU must be strictly above, 0 to 1 (1 itself excluded).
    pub threshold: f64,
}

/// How wide a tolerance may be.
const WIDEST: u32 = 64;

/// The rules of a validator, from its options.
pub struct Rules<'a> {
    /// For lesions for which `by_size` has none.
    pub threshold: f64,
    /// Thresholds of small lesions, for smaller ones first.
    pub by_size: &'a [BySize],
    /// Pixels on either side of the wanted border that do not count.
    pub tolerance: u32,
    /// Lesions that cover less than this share of the image are tolerated so.
    pub tolerant_below: f64,
    /// Least ratio of fine detail.
    pub detail: Option<f64>,
}

/// The rules for one lesion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// What the IoU must be strictly above.
    pub threshold: f64,
    /// The share of the image that `threshold` is for lesions below of.
    pub below: Option<f64>,
    /// Pixels on either side of the wanted border that do not count.
    pub tolerance: u32,
}

impl Rules<'_> {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the option and what it may be.
    pub fn check(&self) -> Result<()> {
        check_threshold("threshold", self.threshold)?;
        let mut last = 0.0;
        for BySize { below, threshold } in self.by_size {
            if !(*below > last && *below <= 1.0) {
                return Err(Error::config(format!(
                    "`by_size` has `below` {below} after {last}, expected rising numbers from above 0 to 1"
                ))
                .at("by_size"));
            }
            check_threshold("by_size", *threshold)?;
            last = *below;
        }
        if self.tolerance > WIDEST {
            return Err(Error::config(format!(
                "`tolerance` is {}, expected at most {WIDEST} pixels",
                self.tolerance
            ))
            .at("tolerance"));
        }
        if !(0.0..=1.0).contains(&self.tolerant_below) {
            let message = format!(
                "`tolerant_below` is {}, expected 0 to 1",
                self.tolerant_below
            );
            return Err(Error::config(message).at("tolerant_below"));
        }
        match self.detail {
            Some(least) if !(0.0..=10.0).contains(&least) => {
                Err(Error::config(format!("`detail` is {least}, expected 0 to 10")).at("detail"))
            }
            _ => Ok(()),
        }
    }

    /// The rules for a lesion that covers so much of the image.
    pub fn terms(&self, share: f64) -> Terms {
        let small = self.by_size.iter().find(|size| share < size.below);
        Terms {
            threshold: small.map_or(self.threshold, |size| size.threshold),
            below: small.map(|size| size.below),
            tolerance: if share < self.tolerant_below {
                self.tolerance
            } else {
                0
            },
        }
    }

    /// The ratio of fine detail of the lesion `labels` to that of the ring around it, and what is wrong
    /// with it; nothing where it is not asked for, or there is no ring.
    pub fn detail(
        &self,
        candidate: &Candidate<'_>,
        labels: &[u8],
    ) -> Option<(f64, Option<String>)> {
        let least = self.detail?;
        let found = Appearance::of(candidate.image, candidate.mask, labels)?.detail_ratio;
        let wrong = (found < least).then(|| {
            format!("too smooth: it has {found:.2} of the fine detail around it, not {least:.2}")
        });
        Some((found, wrong))
    }
}

fn check_threshold(field: &str, threshold: f64) -> Result<()> {
    if (0.0..1.0).contains(&threshold) {
        return Ok(());
    }
    let name = if field == "threshold" {
        "`threshold`"
    } else {
        "`threshold` of `by_size`"
    };
    let message = format!("{name} is {threshold}, expected at least 0 and below 1");
    Err(Error::config(message).at(field))
}

impl Terms {
    /// The threshold, with what it is for.
    pub fn words(&self) -> String {
        match self.below {
            None => format!("{:.2}", self.threshold),
            Some(below) => format!(
                "{:.2}, the threshold of lesions below {} % of the image",
                self.threshold,
                (1e4 * below).round() / 100.0
            ),
        }
    }
}

/// IoU of `label` in two masks of one size, leaving out pixels near the border of what is wanted: those
/// of the lesion with a pixel beside it at most `tolerance` rows and columns away, and those beside it
/// with one of the lesion as near. The tolerance is lowered as far as is needed for a pixel of the lesion
/// to be left.
pub fn tolerant_iou(wanted: MaskRef<'_>, found: MaskRef<'_>, label: u8, tolerance: u32) -> f64 {
    let inside: Vec<bool> = wanted.labels().iter().map(|l| *l == label).collect();
    let depth = depths(&inside, wanted.width() as usize, tolerance + 1);
    let deepest = inside.iter().zip(&depth).filter(|(inside, _)| **inside);
    let deepest = deepest.map(|(_, depth)| *depth).max().unwrap_or(0);
    let tolerance = tolerance.min(deepest.saturating_sub(1));
    let (mut both, mut either) = (0u64, 0u64);
    for ((inside, depth), label_found) in inside.iter().zip(&depth).zip(found.labels()) {
        if *depth > tolerance {
            let found = *label_found == label;
            both += u64::from(*inside && found);
            either += u64::from(*inside || found);
        }
    }
    match either {
        0 => 1.0,
        _ => both as f64 / either as f64,
    }
}

/// How many rows or columns, the larger of both, the nearest pixel of the other kind is away; at most
/// `most`.
fn depths(inside: &[bool], width: usize, most: u32) -> Vec<u32> {
    let height = inside.len() / width.max(1);
    let mut depth = vec![most; inside.len()];
    let around = |at: usize| {
        let (x, y) = (at % width, at / width);
        let columns = x.saturating_sub(1)..(x + 2).min(width);
        let rows = y.saturating_sub(1)..(y + 2).min(height);
        rows.flat_map(move |row| columns.clone().map(move |column| row * width + column))
    };
    let mut reached: Vec<usize> = (0..inside.len())
        .filter(|at| around(*at).any(|near| inside[near] != inside[*at]))
        .collect();
    for present in 1..most {
        for at in &reached {
            depth[*at] = present;
        }
        let mut next: Vec<usize> = reached
            .iter()
            .flat_map(|at| around(*at))
            .filter(|at| depth[*at] == most)
            .collect();
        next.sort_unstable();
        next.dedup();
        reached = next;
    }
    depth
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A mask of characters, `#` for the lesion.
    fn mask(rows: &[&str]) -> Mask {
        let labels = rows.iter().flat_map(|row| row.bytes());
        let labels = labels.map(|byte| u8::from(byte == b'#')).collect();
        Mask::new(rows[0].len() as u32, rows.len() as u32, labels).unwrap()
    }

    fn iou(wanted: &[&str], found: &[&str], tolerance: u32) -> f64 {
        tolerant_iou(mask(wanted).view(), mask(found).view(), 1, tolerance)
    }

    const WANTED: [&str; 7] = [
        ".......", ".###...", ".###...", ".###...", ".......", ".......", ".......",
    ];

    #[test]
    fn depths_are_distances_in_rows_and_columns() {
        let inside: Vec<bool> = mask(&WANTED).labels().iter().map(|l| *l == 1).collect();
        let found = depths(&inside, 7, 9);
        let far = |at: usize| {
            let (x, y) = ((at % 7) as i32, (at / 7) as i32);
            let others = (0..49).filter(|other| inside[*other] != inside[at]);
            let away = |other: usize| {
                let (dx, dy) = ((other % 7) as i32 - x, (other / 7) as i32 - y);
                dx.abs().max(dy.abs())
            };
            others.map(away).min().unwrap() as u32
        };
        assert_eq!(found, (0..49).map(far).collect::<Vec<_>>());
    }

    #[test]
    fn pixels_at_the_border_do_not_count() {
        // One row too many and one column missing: 6 of 12.
        let found = [
            ".##....", ".##....", ".##....", ".##....", ".......", ".......", ".......",
        ];
        assert_eq!(iou(&WANTED, &found, 0), 6.0 / 11.0);
        assert_eq!(iou(&WANTED, &found, 1), 1.0);
        // What is found two pixels away counts.
        let beyond = [
            ".......", ".###...", ".###...", ".###...", ".......", "..#....", ".......",
        ];
        assert_eq!(iou(&WANTED, &beyond, 0), 0.9);
        assert_eq!(iou(&WANTED, &beyond, 1), 0.5);
        assert_eq!(
            iou(&WANTED, &beyond, 2),
            0.5,
            "of three pixels only one is left"
        );
    }

    #[test]
    fn a_lesion_that_is_not_found_is_no_match_however_small() {
        let nothing = ["......."; 7];
        for tolerance in [0, 1, 2, 50] {
            assert_eq!(iou(&WANTED, &nothing, tolerance), 0.0);
        }
        let dot = [
            ".......", ".......", "...#...", ".......", ".......", ".......", ".......",
        ];
        assert_eq!(iou(&dot, &nothing, 3), 0.0);
        assert_eq!(iou(&dot, &dot, 3), 1.0);
    }

    #[test]
    fn a_lesion_that_fills_the_image_has_no_border() {
        let all = ["###"; 3];
        assert_eq!(iou(&all, &all, 2), 1.0);
        assert_eq!(iou(&all, &["###", "###", "..."], 2), 2.0 / 3.0);
    }

    #[test]
    fn the_first_size_that_fits_gives_the_threshold() {
        let size = |below, threshold| BySize { below, threshold };
        let by_size = [size(0.01, 0.5), size(0.02, 0.6)];
        let rules = Rules {
            threshold: 0.7,
            by_size: &by_size,
            tolerance: 2,
            tolerant_below: 0.02,
            detail: None,
        };
        rules.check().unwrap();
        let found = |share| {
            let terms = rules.terms(share);
            (terms.threshold, terms.tolerance)
        };
        assert_eq!(found(0.005), (0.5, 2));
        assert_eq!(found(0.01), (0.6, 2));
        assert_eq!(found(0.02), (0.7, 0));
        let words = rules.terms(0.005).words();
        assert_eq!(
            words,
            "0.50, the threshold of lesions below 1 % of the image"
        );
    }
}
