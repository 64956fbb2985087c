//! Facts of images: how a lesion looks beside the tissue around it.
//!
//! Every measure compares the lesion with a **ring**: the pixels that are no lesion, at most
//! [`reach`] rows and columns away from one. Pixels darker than [`DARK`] grey levels, and those within
//! [`DARK_REACH`] pixels of one, are no part of the ring: they are the black border of an endoscope or of
//! a fundus camera. Grey is the perceived brightness of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B,
//! from 0 to 255.
//!
//! Fine detail is a matter of pixels: the same lesion has less of it in a smaller image. It is measured
//! at the size at which a run works, and figures compare only at one size.

use crate::{
    data::{Attributes, ImageRef, MaskRef},
    image::gaussian_blur,
};
use std::ops::Range;

/// Weights of red, green and blue in perceived brightness (ITU-R BT.601).
pub(crate) const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Standard deviation of the blur that fine detail is measured against, in pixels.
const SIGMA: f32 = 1.5;

/// Pixels with less than this many grey levels are no tissue.
const DARK: f32 = 12.0;

/// So far, in pixels, the edge of a dark border shows in the blur's difference.
const DARK_REACH: usize = 3;

/// Deviation of the rounding of pixels to whole numbers, 1 / sqrt(12): less detail than that is none.
const ROUNDING: f64 = 0.288_675;

/// How a lesion looks. Formulas: I are the pixels of the lesion, R those of the ring around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Appearance {
    /// Mean grey value over I, 0 to 255.
    pub brightness: f64,
    /// Distance between the mean colours of I and R in CIELAB (CIE76, D65): 0 where they are equal,
    /// about 2 where a difference begins to be seen, 100 between black and white. The mean colours are
    /// means of the stored sRGB values.
    pub contrast: f64,
    /// Difference of these mean colours along a*, the axis from green to red: above 0 where the lesion
    /// is redder than what surrounds it, below 0 where it is paler. The unit is that of `contrast`.
    pub redness: f64,
    /// Fine detail: standard deviation over I of the difference between the grey values and their blur
    /// by a Gaussian of 1.5 pixels. In grey levels, at the size of the given image.
    pub detail: f64,
    /// `detail` over the same deviation taken over R: 1 where the lesion is as rough as its
    /// surroundings, below 1 where it is smoother. Neither counts as less than the rounding of
    /// pixels, 1 / sqrt(12).
    pub detail_ratio: f64,
    /// How clearly the border shows: the mean steepness of the blurred grey values at the border
    /// (pixels of I beside one that is not, and the other way round) over their mean steepness
    /// elsewhere in I and R. About 1 where the border is no steeper than the texture beside it. Steepness is the
    /// length of the gradient by central differences; below 1/4 grey level a pixel it counts
    /// as 1/4.
    pub boundary: f64,
}

impl Appearance {
    /// Measures the pixels of `image` whose label in `mask` is in `targets`, all lesions together.
    ///
    /// `None` without such a pixel, without a ring (a lesion that fills the visible field), or if image
    /// and mask differ in size.
    pub fn of(image: ImageRef<'_>, mask: MaskRef<'_>, targets: &[u8]) -> Option<Self> {
        if image.size() != mask.size() {
            return None;
        }
        let scene = Scene::new(image, mask, targets)?;
        let [inside, ring] = [Region::Inside, Region::Ring].map(|region| scene.colour(region));
        let (inside, ring) = (inside?, ring?);
        let (lab, lab_ring) = (lab(inside), lab(ring));
        let blurred = scene.blurred();
        let fine = |region| scene.deviation(&blurred, region).max(ROUNDING);
        let [r, g, b] = inside;
        let square: f64 = (0..3).map(|k| (lab[k] - lab_ring[k]).powi(2)).sum();
        Some(Appearance {
            // Whole weights: of grey pixels the mean comes out without rounding.
            brightness: (299.0 * r + 587.0 * g + 114.0 * b) / 1000.0,
            contrast: square.sqrt(),
            redness: lab[1] - lab_ring[1],
            detail: scene.deviation(&blurred, Region::Inside),
            detail_ratio: fine(Region::Inside) / fine(Region::Ring),
            boundary: scene.boundary(&blurred),
        })
    }

    /// The measures as facts, by the names of the fields.
    pub fn facts(&self) -> Attributes {
        let mut facts = Attributes::new();
        for (name, value) in self.named() {
            facts.set_number(name, value);
        }
        facts
    }

    /// The measures with their names.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("redness", self.redness),
            ("detail", self.detail),
            ("detail_ratio", self.detail_ratio),
            ("boundary", self.boundary),
        ]
    }
}

/// Width of the ring in pixels: a sixteenth of the image's shorter side, at least 2.
pub fn reach(size: (u32, u32)) -> usize {
    (size.0.min(size.1) as usize / 16).max(2)
}

/// Where a pixel belongs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Region {
    Inside,
    Ring,
    Elsewhere,
}

/// The part of an image that holds lesion, ring and what their blur needs.
struct Window {
    columns: Range<usize>,
    rows: Range<usize>,
}

/// A window's pixels, each in its region.
struct Scene<'a> {
    window: Window,
    regions: Vec<Region>,
    colours: Vec<&'a [u8]>,
    grey: Vec<f32>,
}

impl<'a> Scene<'a> {
    fn new(image: ImageRef<'a>, mask: MaskRef<'_>, targets: &[u8]) -> Option<Self> {
        let reach = reach(image.size());
        let window = Window::around(mask, targets, reach + KERNEL)?;
        let colours: Vec<&[u8]> = window
            .places(image.width())
            .map(|at| &image.pixels()[3 * at..3 * at + 3])
            .collect();
        let grey: Vec<f32> = colours.iter().map(|rgb| luma(rgb)).collect();
        let wanted = lookup(targets);
        let inside: Vec<bool> = window
            .places(image.width())
            .map(|at| wanted[usize::from(mask.labels()[at])])
            .collect();
        let dark: Vec<bool> = (0..grey.len())
            .map(|i| grey[i] < DARK && !inside[i])
            .collect();
        let (near, dark) = (
            window.grown(&inside, reach),
            window.grown(&dark, DARK_REACH),
        );
        let regions = (0..grey.len())
            .map(|i| match (inside[i], near[i] && !dark[i]) {
                (true, _) => Region::Inside,
                (false, true) => Region::Ring,
                (false, false) => Region::Elsewhere,
            })
            .collect();
        Some(Scene {
            window,
            regions,
            colours,
            grey,
        })
    }

    /// The grey values, blurred.
    fn blurred(&self) -> Vec<f32> {
        let (width, height) = (self.window.columns.len(), self.window.rows.len());
        gaussian_blur(&self.grey, width, height, SIGMA)
    }

    /// Positions of a region's pixels in the window.
    fn pixels(&self, region: Region) -> impl Iterator<Item = usize> {
        (0..self.regions.len()).filter(move |&i| self.regions[i] == region)
    }

    /// Mean colour of a region.
    fn colour(&self, region: Region) -> Option<[f64; 3]> {
        let (mut sums, mut count) = ([0u64; 3], 0u64);
        for i in self.pixels(region) {
            for (sum, &value) in sums.iter_mut().zip(self.colours[i]) {
                *sum += u64::from(value);
            }
            count += 1;
        }
        (count > 0).then(|| sums.map(|sum| sum as f64 / count as f64))
    }

    /// Standard deviation of grey less its blur over a region.
    fn deviation(&self, blurred: &[f32], region: Region) -> f64 {
        let (mut count, mut sum, mut squares) = (0u64, 0.0, 0.0);
        for i in self.pixels(region) {
            let fine = f64::from(self.grey[i] - blurred[i]);
            count += 1;
            sum += fine;
            squares += fine * fine;
        }
        if count == 0 {
            return 0.0;
        }
        let mean = sum / count as f64;
        (squares / count as f64 - mean * mean).max(0.0).sqrt()
    }

    /// Mean steepness at the border over that elsewhere.
    fn boundary(&self, blurred: &[f32]) -> f64 {
        const FLAT: f64 = 0.25;
        let width = self.window.columns.len();
        let height = self.window.rows.len();
        let inside = |i: usize| self.regions[i] == Region::Inside;
        let mut sums = [(0.0, 0u64); 2];
        for i in 0..blurred.len() {
            if self.regions[i] == Region::Elsewhere {
                continue;
            }
            let (x, y) = (i % width, i / width);
            let left = if x > 0 { i - 1 } else { i };
            let right = if x + 1 < width { i + 1 } else { i };
            let above = if y > 0 { i - width } else { i };
            let below = if y + 1 < height { i + width } else { i };
            let border = [left, right, above, below]
                .iter()
                .any(|&beside| inside(beside) != inside(i));
            let slope = |from: usize, to: usize| f64::from(blurred[to] - blurred[from]) / 2.0;
            let sum = &mut sums[usize::from(border)];
            sum.0 += slope(left, right).hypot(slope(above, below));
            sum.1 += 1;
        }
        let [elsewhere, border] = sums.map(|(sum, count)| (sum / count.max(1) as f64).max(FLAT));
        border / elsewhere
    }
}

/// Reach of the blur's kernel in pixels: three standard deviations, rounded up.
const KERNEL: usize = 5;

impl Window {
    /// The box around the target pixels, `margin` pixels wider on every side as far as the image goes.
    fn around(mask: MaskRef<'_>, targets: &[u8], margin: usize) -> Option<Self> {
        let wanted = lookup(targets);
        let (width, height) = (mask.width() as usize, mask.height() as usize);
        let (mut columns, mut rows) = (width..0, height..0);
        for (y, row) in mask.labels().chunks_exact(width).enumerate() {
            let hit = |label: &u8| wanted[usize::from(*label)];
            let (Some(first), Some(last)) = (row.iter().position(hit), row.iter().rposition(hit))
            else {
                continue;
            };
            columns = columns.start.min(first)..columns.end.max(last + 1);
            rows = rows.start.min(y)..y + 1;
        }
        let wider = |range: Range<usize>, end: usize| {
            range.start.saturating_sub(margin)..(range.end + margin).min(end)
        };
        (!rows.is_empty()).then(|| Window {
            columns: wider(columns, width),
            rows: wider(rows, height),
        })
    }

    /// Positions of the window's pixels in an image of that width, row by row.
    fn places(&self, width: u32) -> impl Iterator<Item = usize> {
        self.rows
            .clone()
            .flat_map(move |y| self.columns.clone().map(move |x| y * width as usize + x))
    }

    /// Pixels within `reach` columns and rows of a set one.
    fn grown(&self, set: &[bool], reach: usize) -> Vec<bool> {
        let (width, height) = (self.columns.len(), self.rows.len());
        let mut across = vec![false; set.len()];
        for (from, to) in set.chunks_exact(width).zip(across.chunks_exact_mut(width)) {
            spread(width, reach, |x| from[x], |range| to[range].fill(true));
        }
        let mut grown = vec![false; set.len()];
        for x in 0..width {
            let fill = |range: Range<usize>| range.for_each(|y| grown[y * width + x] = true);
            spread(height, reach, |y| across[y * width + x], fill);
        }
        grown
    }
}

/// Calls `fill` with ranges that cover every place within `reach` of one that is `set`.
fn spread(
    len: usize,
    reach: usize,
    set: impl Fn(usize) -> bool,
    mut fill: impl FnMut(Range<usize>),
) {
    let mut done = 0;
    for at in (0..len).filter(|&at| set(at)) {
        let (start, end) = (
            at.saturating_sub(reach).max(done),
            (at + reach + 1).min(len),
        );
        if start < end {
            fill(start..end);
            done = end;
        }
    }
}

fn lookup(labels: &[u8]) -> [bool; 256] {
    let mut wanted = [false; 256];
    for &label in labels {
        wanted[usize::from(label)] = true;
    }
    wanted
}

fn luma(rgb: &[u8]) -> f32 {
    rgb.iter()
        .zip(LUMA)
        .map(|(&value, weight)| weight * f32::from(value))
        .sum()
}

/// An sRGB colour (0 to 255 a channel) in CIELAB with white D65. The linear light of sRGB is that of IEC
/// 61966-2-1, L*, a* and b* are those of CIE 15.
fn lab(rgb: [f64; 3]) -> [f64; 3] {
    const TO_XYZ: [[f64; 3]; 3] = [
        [0.412_456_4, 0.357_576_1, 0.180_437_5],
        [0.212_672_9, 0.715_152_2, 0.072_175_0],
        [0.019_333_9, 0.119_192_0, 0.950_304_1],
    ];
    let linear = rgb.map(|value| {
        let value = value / 255.0;
        match value <= 0.040_45 {
            true => value / 12.92,
            false => ((value + 0.055) / 1.055).powf(2.4),
        }
    });
    let [x, y, z] = TO_XYZ.map(|row| {
        let white: f64 = row.iter().sum();
        let t: f64 = row.iter().zip(linear).map(|(a, b)| a * b).sum::<f64>() / white;
        // (6/29)^3, and the line that continues the cube root below it.
        match t > 216.0 / 24_389.0 {
            true => t.cbrt(),
            false => (24_389.0 / 27.0 * t + 16.0) / 116.0,
        }
    });
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[cfg(test)]
mod tests;
