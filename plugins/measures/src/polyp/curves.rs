//! Dice coefficient, IoU and E-measure of a map at 256 thresholds.

use crate::region::Region;

/// How many thresholds there are: 0 to 255.
pub const LEVELS: usize = 256;

/// Figures at each threshold, the lowest first.
pub struct Curves {
    /// Dice coefficient.
    pub dice: [f64; LEVELS],
    /// Intersection over union.
    pub iou: [f64; LEVELS],
    /// E-measure.
    pub alignment: [f64; LEVELS],
}

/// How many pixels there are of a map cut at a threshold, and of the truth.
#[derive(Clone, Copy)]
struct Counts {
    /// Above the threshold and in the truth.
    common: f64,
    /// Above the threshold.
    found: f64,
    /// In the truth.
    truth: f64,
    /// All.
    pixels: f64,
}

impl Curves {
    /// Those of `map`, values from 0 to 1, whose levels are cut, not rounded, to whole numbers up to 255.
    pub fn of(map: &[f64], truth: &Region) -> Self {
        let mut levels = [[0_u64; LEVELS]; 2];
        for (value, inside) in map.iter().zip(&truth.inside) {
            levels[usize::from(*inside)][usize::from((value * 255.0) as u8)] += 1;
        }
        let mut curves = Curves {
            dice: [0.0; LEVELS],
            iou: [0.0; LEVELS],
            alignment: [0.0; LEVELS],
        };
        let area = truth.area() as f64;
        let (mut common, mut invented) = (0, 0);
        for level in (0..LEVELS).rev() {
            common += levels[1][level];
            invented += levels[0][level];
            let counts = Counts {
                common: common as f64,
                found: (common + invented) as f64,
                truth: area,
                pixels: map.len() as f64,
            };
            curves.dice[level] = counts.dice();
            curves.iou[level] = counts.iou();
            curves.alignment[level] = counts.alignment();
        }
        curves
    }
}

/// A ratio, 0 where there is nothing to divide by.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl Counts {
    fn dice(self) -> f64 {
        ratio(2.0 * self.common, self.found + self.truth)
    }

    fn iou(self) -> f64 {
        ratio(self.common, self.found + self.truth - self.common)
    }

    /// The E-measure: the sum over all pixels of (1 + a)² / 4, where `a` is how far truth and prediction are on the
    /// same side of their means, divided by one pixel less than there are.
    fn alignment(self) -> f64 {
        let outside = self.pixels - self.found;
        let sum = if self.truth == 0.0 {
            outside
        } else if self.truth == self.pixels {
            self.found
        } else {
            let (mean_found, mean_truth) = (self.found / self.pixels, self.truth / self.pixels);
            let missed = self.truth - self.common;
            let parts = [
                (self.common, 1.0 - mean_found, 1.0 - mean_truth),
                (self.found - self.common, 1.0 - mean_found, -mean_truth),
                (missed, -mean_found, 1.0 - mean_truth),
                (outside - missed, -mean_found, -mean_truth),
            ];
            let enhanced = |(count, found, truth): (f64, f64, f64)| {
                let aligned = 2.0 * found * truth / (found * found + truth * truth + f64::EPSILON);
                count * (aligned + 1.0).powi(2) / 4.0
            };
            parts.into_iter().map(enhanced).sum()
        };
        sum / (self.pixels - 1.0)
    }
}
