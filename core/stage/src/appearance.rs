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

use crate::data::{Attributes, ImageRef, MaskRef};
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
        let blurred = scene.window.blur(&scene.grey);
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

    /// The window's values blurred by a Gaussian. Beyond the edge there is nothing: the weights of what
    /// is there sum to 1.
    fn blur(&self, values: &[f32]) -> Vec<f32> {
        blur(values, self.columns.len(), self.rows.len(), SIGMA)
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

/// `values` of a raster blurred by a Gaussian of `sigma` pixels (above 0), cut off at three `sigma`.
/// Beyond the edge there is nothing: the weights of what is there sum to 1.
pub(crate) fn blur(values: &[f32], width: usize, height: usize, sigma: f32) -> Vec<f32> {
    let reach = (3.0 * sigma).ceil() as usize;
    let weights: Vec<f32> = (0..=reach)
        .map(|distance| (-0.5 * (distance as f32 / sigma).powi(2)).exp())
        .collect();
    // For each place along a side: what it takes from, and the weights, which sum to 1.
    let taps = |len: usize| -> Vec<(usize, Vec<f32>)> {
        (0..len)
            .map(|at| {
                let (first, end) = (at.saturating_sub(reach), (at + reach + 1).min(len));
                let taken = (first..end).map(|from| weights[from.abs_diff(at)]);
                let sum: f32 = taken.clone().sum();
                (first, taken.map(|weight| weight / sum).collect())
            })
            .collect()
    };
    let mut across = Vec::with_capacity(values.len());
    let columns = taps(width);
    for row in values.chunks_exact(width) {
        across.extend(columns.iter().map(|(first, weights)| {
            let taken = weights.iter().zip(&row[*first..]);
            taken.map(|(weight, value)| weight * value).sum::<f32>()
        }));
    }
    let mut out = vec![0.0; values.len()];
    for (row, (first, weights)) in out.chunks_exact_mut(width).zip(taps(height)) {
        for (weight, from) in weights
            .iter()
            .zip(across[first * width..].chunks_exact(width))
        {
            for (sum, value) in row.iter_mut().zip(from) {
                *sum += weight * value;
            }
        }
    }
    out
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        data::{Image, Mask},
        rng,
    };
    use rand::RngExt;

    const SIDE: u32 = 96;

    fn disc(cx: f64, cy: f64, radius: f64) -> Mask {
        let place = |i: u32| (f64::from(i % SIDE) - cx, f64::from(i / SIDE) - cy);
        let labels = (0..SIDE * SIDE)
            .map(|i| u8::from(place(i).0.hypot(place(i).1) <= radius))
            .collect();
        Mask::new(SIDE, SIDE, labels).unwrap()
    }

    /// Each pixel by its label and position.
    fn paint(mask: &Mask, mut colour: impl FnMut(u8, u32, u32) -> [u8; 3]) -> Image {
        let pixels = (0..SIDE * SIDE)
            .flat_map(|i| colour(mask.labels()[i as usize], i % SIDE, i / SIDE))
            .collect();
        Image::new(SIDE, SIDE, pixels).unwrap()
    }

    fn of(image: &Image, mask: &Mask) -> Appearance {
        Appearance::of(image.view(), mask.view(), &[1]).unwrap()
    }

    /// Grey noise of that amplitude about 128 inside and outside.
    fn noisy(mask: &Mask, inside: i32, outside: i32) -> Image {
        let mut rng = rng::stream(1, "test", 0);
        paint(mask, |label, _, _| {
            let reach = if label == 1 { inside } else { outside };
            [(128 + rng.random_range(-reach..=reach)) as u8; 3]
        })
    }

    #[test]
    fn colours_are_those_of_published_tables() {
        // sRGB primaries and a grey in CIELAB (D65), as colour tables give them.
        for (rgb, expected) in [
            ([255.0, 0.0, 0.0], [53.24, 80.09, 67.20]),
            ([0.0, 255.0, 0.0], [87.73, -86.18, 83.18]),
            ([0.0, 0.0, 255.0], [32.30, 79.19, -107.86]),
            ([119.0, 119.0, 119.0], [50.03, 0.0, 0.0]),
            ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
            ([255.0, 255.0, 255.0], [100.0, 0.0, 0.0]),
        ] {
            let found = lab(rgb);
            for k in 0..3 {
                assert!((found[k] - expected[k]).abs() < 0.02, "{rgb:?}: {found:?}");
            }
        }
    }

    #[test]
    fn plain_colours_are_measured_exactly() {
        let mask = disc(40.0, 50.0, 15.0);
        let image = paint(&mask, |label, _, _| match label {
            1 => [200, 80, 80],
            _ => [180, 120, 100],
        });
        let found = of(&image, &mask);
        let (inside, ring) = (lab([200.0, 80.0, 80.0]), lab([180.0, 120.0, 100.0]));
        assert!((found.brightness - (0.299 * 200.0 + 0.701 * 80.0)).abs() < 1e-3);
        assert!((found.redness - (inside[1] - ring[1])).abs() < 1e-9);
        let square: f64 = (0..3).map(|k| (inside[k] - ring[k]).powi(2)).sum();
        assert!((found.contrast - square.sqrt()).abs() < 1e-9);
        assert!(found.redness > 10.0, "{found:?}");
        let same = of(&paint(&mask, |_, _, _| [90, 90, 90]), &mask);
        assert!(same.contrast < 1e-9 && same.detail < 1e-4, "{same:?}");
        assert_eq!((same.detail_ratio, same.boundary), (1.0, 1.0));
    }

    #[test]
    fn what_is_far_away_or_dark_does_not_count() {
        let mask = disc(40.0, 50.0, 15.0);
        let colour = |label: u8| {
            if label == 1 {
                [190, 90, 90]
            } else {
                [170, 110, 100]
            }
        };
        let plain = of(&paint(&mask, |label, _, _| colour(label)), &mask);
        // The ring ends 6 pixels from the lesion, and the blur 5 beyond.
        let far = paint(&mask, |label, x, y| match x < 13 || y > 77 {
            true => [255, 255, (x * 90) as u8],
            false => colour(label),
        });
        assert_eq!(of(&far, &mask), plain);
        // A black border that cuts through the ring: its edge is no detail of the tissue.
        let mut framed = noisy(&mask, 10, 10);
        let whole = of(&framed, &mask);
        for row in framed.bytes_mut().chunks_exact_mut(3 * SIDE as usize) {
            row[..3 * 22].fill(3);
        }
        let framed = of(&framed, &mask);
        assert!(framed.contrast < 0.5, "{framed:?}");
        assert!((framed.detail_ratio / whole.detail_ratio - 1.0).abs() < 0.1);
    }

    #[test]
    fn detail_is_the_deviation_that_a_blur_takes_away() {
        let mask = disc(48.0, 48.0, 20.0);
        let found = of(&noisy(&mask, 20, 10), &mask);
        // Uniform noise on -20..=20 has a deviation of 11.83; of white noise the blur by 1.5 pixels keeps
        // w = 1 / (4 pi 1.5^2) of the variance and 1 / (2 pi 1.5^2) of the value itself.
        let (kept, own) = (
            1.0 / (9.0 * std::f64::consts::PI),
            2.0 / (9.0 * std::f64::consts::PI),
        );
        let expected = 11.83 * (1.0 + kept - 2.0 * own).sqrt();
        assert!((found.detail / expected - 1.0).abs() < 0.05, "{found:?}");
        assert!((1.7..2.2).contains(&found.detail_ratio), "{found:?}");
        let smooth = of(&noisy(&mask, 5, 10), &mask);
        assert!((0.4..0.6).contains(&smooth.detail_ratio), "{smooth:?}");
    }

    #[test]
    fn a_sharp_border_is_steeper_than_a_soft_one() {
        let mask = disc(48.0, 48.0, 20.0);
        let edge = |width: f64| {
            let mut rng = rng::stream(2, "test", 0);
            let image = paint(&mask, |_, x, y| {
                let r = (f64::from(x) - 48.0).hypot(f64::from(y) - 48.0);
                let share = ((20.0 - r) / width + 0.5).clamp(0.0, 1.0);
                [(100.0 + 40.0 * share + rng.random_range(-4.0..=4.0)) as u8; 3]
            });
            of(&image, &mask).boundary
        };
        let found = [1.0, 8.0, 16.0].map(edge);
        assert!(
            found[0] > 1.3 * found[1] && found[1] > 1.3 * found[2],
            "{found:?}"
        );
        let none = of(&noisy(&mask, 8, 8), &mask).boundary;
        assert!((0.8..1.2).contains(&none), "{none}");
    }

    #[test]
    fn without_lesion_or_surroundings_there_is_nothing_to_measure() {
        let grey =
            |size: u32| Image::new(size, size, vec![90; 3 * (size * size) as usize]).unwrap();
        let mask = |label: u8| Mask::new(8, 8, vec![label; 64]).unwrap();
        assert_eq!(Appearance::of(grey(8).view(), mask(0).view(), &[1]), None);
        assert_eq!(Appearance::of(grey(8).view(), mask(2).view(), &[1]), None);
        assert_eq!(Appearance::of(grey(8).view(), mask(1).view(), &[1]), None);
        assert_eq!(Appearance::of(grey(9).view(), mask(1).view(), &[1]), None);
        let mut corner = mask(0);
        corner.bytes_mut()[0] = 1;
        assert!(Appearance::of(grey(8).view(), corner.view(), &[1]).is_some());
    }

    #[test]
    fn labels_around_a_target_belong_to_the_ring() {
        // A cup (2) in its disc (1): the ring is the disc.
        let (disc, cup) = (disc(48.0, 48.0, 30.0), disc(48.0, 48.0, 15.0));
        let mut labels = disc.clone();
        for (label, &inner) in labels.bytes_mut().iter_mut().zip(cup.labels()) {
            *label += inner;
        }
        let image = paint(&labels, |label, _, _| [60 + 60 * label; 3]);
        let found = Appearance::of(image.view(), labels.view(), &[2]).unwrap();
        assert!((found.contrast - (lab([180.0; 3])[0] - lab([120.0; 3])[0])).abs() < 1e-6);
    }

    #[test]
    fn facts_carry_every_measure() {
        let mask = disc(48.0, 48.0, 20.0);
        let found = of(&noisy(&mask, 20, 10), &mask);
        let facts = found.facts();
        assert_eq!(facts.iter().count(), 6);
        for (name, value) in found.named() {
            assert_eq!(facts.number(name), Some(value), "{name}");
        }
    }
}
