//! Facts of masks: connected components and the measurements that masks are sorted, matched and
//! described by.

use crate::data::{Attributes, MaskRef};

/// A lesion is `small` when it covers less than this fraction of the image.
pub const SMALL_AREA: f64 = 0.02;

/// A lesion is large when it covers more than this fraction of the image.
pub const LARGE_AREA: f64 = 0.1;

/// How large a lesion is in its image: the groups by which acceptance and scores are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SizeGroup {
    /// Below [`SMALL_AREA`].
    Small,
    /// From [`SMALL_AREA`] to [`LARGE_AREA`], both included.
    Medium,
    /// Above [`LARGE_AREA`].
    Large,
}

impl SizeGroup {
    /// Every group, the smallest first.
    pub const ALL: [SizeGroup; 3] = [SizeGroup::Small, SizeGroup::Medium, SizeGroup::Large];

    /// The group of a lesion that covers the fraction `area` (0 to 1, above 0) of its image. An image
    /// without lesion belongs to none: that is for the caller to leave out.
    pub fn of(area: f64) -> Self {
        if area < SMALL_AREA {
            SizeGroup::Small
        } else if area <= LARGE_AREA {
            SizeGroup::Medium
        } else {
            SizeGroup::Large
        }
    }

    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            SizeGroup::Small => "below 2 %",
            SizeGroup::Medium => "2 to 10 %",
            SizeGroup::Large => "above 10 %",
        }
    }
}

/// One pixel in this many: a component below that is a speck, which [`measure`] does not count.
const SPECK: u64 = 10_000;

/// An 8-connected patch of target pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// Number of pixels.
    pub area: u64,
    /// The smallest box around it, in pixels: `(x0, y0, x1, y1)`, the last two exclusive.
    pub bbox: (u32, u32, u32, u32),
    /// Mean position of the pixel centres; the centre of the top left pixel is `(0, 0)`.
    pub centroid: (f64, f64),
    /// Square root of the ratio of the principal second moments: 1 for a disc or square, `k` for
    /// an ellipse whose axes are as `k` to 1. Always finite and at least 1.
    pub elongation: f64,
}

/// Sums over the pixels of a component; integers, so that the order of visits cannot matter.
struct Sums {
    area: u64,
    bbox: (u32, u32, u32, u32),
    x: u64,
    y: u64,
    xx: u64,
    yy: u64,
    xy: u64,
}

impl Sums {
    fn starting_at(x: u32, y: u32) -> Self {
        Sums {
            area: 0,
            bbox: (x, y, x, y),
            x: 0,
            y: 0,
            xx: 0,
            yy: 0,
            xy: 0,
        }
    }

    fn add(&mut self, x: u32, y: u32) {
        let (x0, y0, x1, y1) = self.bbox;
        self.bbox = (x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1));
        let (x, y) = (u64::from(x), u64::from(y));
        self.area += 1;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.yy += y * y;
        self.xy += x * y;
    }

    /// A central second moment per pixel, from the sum of products and the two plain sums. Exact
    /// up to the last division: the difference of two huge numbers would lose all digits in `f64`.
    fn moment(&self, products: u64, first: u64, second: u64) -> f64 {
        let area = i128::from(self.area);
        let exact = area * i128::from(products) - i128::from(first) * i128::from(second);
        exact as f64 / (self.area as f64 * self.area as f64)
    }

    /// From the eigenvalues of the covariance matrix of the pixels. A pixel is a unit square, not
    /// a point, and has a moment of 1/12 of its own; with it a line of one pixel stays finite.
    fn elongation(&self) -> f64 {
        let xx = self.moment(self.xx, self.x, self.x) + 1.0 / 12.0;
        let yy = self.moment(self.yy, self.y, self.y) + 1.0 / 12.0;
        let xy = self.moment(self.xy, self.x, self.y);
        let mean = (xx + yy) / 2.0;
        let spread = ((xx - yy) / 2.0).hypot(xy);
        let major = mean + spread;
        // The product of the eigenvalues is the determinant; `mean - spread` would cancel digits.
        let minor = ((xx * yy - xy * xy) / major).max(1.0 / 12.0);
        (major / minor).sqrt().max(1.0)
    }

    fn finish(&self) -> Component {
        let area = self.area as f64;
        Component {
            area: self.area,
            bbox: self.bbox,
            centroid: (self.x as f64 / area, self.y as f64 / area),
            elongation: self.elongation(),
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

/// The 8-connected components of the pixels whose label is in `targets`, the largest first; of
/// equal ones, the one that begins nearer to the top (then to the left).
pub fn components(mask: MaskRef<'_>, targets: &[u8]) -> Vec<Component> {
    let (width, height) = mask.size();
    let wanted = lookup(targets);
    let mut open: Vec<bool> = mask
        .labels()
        .iter()
        .map(|&label| wanted[usize::from(label)])
        .collect();
    let mut found = Vec::new();
    let mut stack = Vec::new();
    for start in 0..open.len() {
        if !open[start] {
            continue;
        }
        open[start] = false;
        let (x, y) = (
            (start % width as usize) as u32,
            (start / width as usize) as u32,
        );
        let mut sums = Sums::starting_at(x, y);
        stack.push((x, y));
        while let Some((x, y)) = stack.pop() {
            sums.add(x, y);
            for ny in y.saturating_sub(1)..(y + 2).min(height) {
                for nx in x.saturating_sub(1)..(x + 2).min(width) {
                    let at = ny as usize * width as usize + nx as usize;
                    if open[at] {
                        open[at] = false;
                        stack.push((nx, ny));
                    }
                }
            }
        }
        found.push(sums.finish());
    }
    // Stable, so that equal areas stay in the order of the scan.
    found.sort_by_key(|component| std::cmp::Reverse(component.area));
    found
}

/// What can be said of the pixels whose label is in `targets`:
///
/// - number `area`: their fraction of the image, 0 to 1;
/// - number `count`: how many 8-connected components they form. Specks below 0.01 % of the image
///   are left out unless there is nothing else;
/// - number `elongation`: [`Component::elongation`] of the largest component, 1 without any;
/// - flag `small`: `area` is above 0 and below [`SMALL_AREA`].
pub fn measure(mask: MaskRef<'_>, targets: &[u8]) -> Attributes {
    let components = components(mask, targets);
    let pixels = u64::from(mask.width()) * u64::from(mask.height());
    let covered: u64 = components.iter().map(|component| component.area).sum();
    let area = covered as f64 / pixels as f64;
    let count = match components
        .iter()
        .filter(|component| component.area * SPECK >= pixels)
        .count()
    {
        0 => components.len(),
        count => count,
    };
    let mut facts = Attributes::new();
    facts.set_number("area", area);
    facts.set_number("count", count as f64);
    facts.set_number(
        "elongation",
        components.first().map_or(1.0, |largest| largest.elongation),
    );
    facts.set_flag("small", area > 0.0 && area < SMALL_AREA);
    facts
}

/// Number of rows from the first to the last that holds one of `labels`, both included; 0 without
/// any. The ratio of two of these is the vertical cup-to-disc ratio of an eye.
pub fn vertical_extent(mask: MaskRef<'_>, labels: &[u8]) -> u32 {
    let wanted = lookup(labels);
    let mut rows = mask
        .labels()
        .chunks_exact(mask.width() as usize)
        .map(|row| row.iter().any(|&label| wanted[usize::from(label)]));
    let first = rows.clone().position(|hit| hit);
    let last = rows.rposition(|hit| hit);
    match (first, last) {
        (Some(first), Some(last)) => (last - first + 1) as u32,
        _ => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::Mask;

    fn paint(width: u32, height: u32, inside: impl Fn(f64, f64) -> bool) -> Mask {
        let labels = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .map(|(x, y)| u8::from(inside(f64::from(x), f64::from(y))))
            .collect();
        Mask::new(width, height, labels).unwrap()
    }

    fn ellipse(cx: f64, cy: f64, a: f64, b: f64, turn: f64) -> impl Fn(f64, f64) -> bool {
        move |x, y| {
            let (dx, dy) = (x - cx, y - cy);
            let u = (dx * turn.cos() + dy * turn.sin()) / a;
            let v = (dy * turn.cos() - dx * turn.sin()) / b;
            u * u + v * v <= 1.0
        }
    }

    #[test]
    fn an_empty_mask_has_no_facts_to_speak_of() {
        let facts = measure(paint(8, 4, |_, _| false).view(), &[1]);
        assert_eq!(facts.number("area"), Some(0.0));
        assert_eq!(facts.number("count"), Some(0.0));
        assert_eq!(facts.number("elongation"), Some(1.0));
        assert_eq!(facts.flag("small"), Some(false));
    }

    #[test]
    fn elongation_is_the_ratio_of_the_axes_however_turned() {
        for turn in [0.0, 0.4, 0.785, 1.2, std::f64::consts::FRAC_PI_2] {
            let mask = paint(400, 400, ellipse(199.5, 199.5, 150.0, 50.0, turn));
            let found = components(mask.view(), &[1])[0].elongation;
            assert!((found - 3.0).abs() < 0.02, "{turn}: {found}");
        }
        let disc = paint(200, 200, ellipse(100.0, 100.0, 60.0, 60.0, 0.0));
        assert!((components(disc.view(), &[1])[0].elongation - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_single_pixel_is_round_and_a_line_is_as_long_as_it_is() {
        let dot = paint(9, 9, |x, y| x == 4.0 && y == 4.0);
        assert!((components(dot.view(), &[1])[0].elongation - 1.0).abs() < 1e-12);
        // A bar of n unit squares has the moments of an n x 1 rectangle.
        for n in [2.0, 7.0, 300.0] {
            let bar = paint(400, 3, move |x, y| y == 1.0 && x < n);
            let found = components(bar.view(), &[1])[0].elongation;
            assert!((found - n).abs() < 1e-9 * n, "{n}: {found}");
        }
        let diagonal = paint(500, 500, |x, y| x == y);
        let found = components(diagonal.view(), &[1])[0].elongation;
        assert!(found.is_finite() && found > 500.0, "{found}");
    }

    #[test]
    fn corners_connect_and_the_largest_comes_first() {
        #[rustfmt::skip]
        let mask = Mask::new(6, 4, vec![
            1, 0, 0, 0, 2, 2,
            0, 1, 0, 0, 2, 2,
            0, 0, 0, 0, 0, 0,
            3, 0, 0, 0, 0, 1,
        ]).unwrap();
        let found = components(mask.view(), &[1, 2]);
        let areas: Vec<u64> = found.iter().map(|c| c.area).collect();
        assert_eq!(areas, [4, 2, 1]);
        assert_eq!(found[0].bbox, (4, 0, 6, 2));
        assert_eq!(found[0].centroid, (4.5, 0.5));
        assert_eq!(found[1].bbox, (0, 0, 2, 2));
        assert_eq!(found[2].bbox, (5, 3, 6, 4));
    }

    #[test]
    fn specks_count_only_when_there_is_nothing_else() {
        let dots = |x: f64, y: f64| x == 1.0 && (y == 1.0 || y == 9.0);
        let with_lesion = paint(200, 200, |x, y| dots(x, y) || (x > 150.0 && y > 150.0));
        assert_eq!(measure(with_lesion.view(), &[1]).number("count"), Some(1.0));
        let only_dots = paint(200, 200, dots);
        assert_eq!(measure(only_dots.view(), &[1]).number("count"), Some(2.0));
    }

    #[test]
    fn small_is_below_two_percent() {
        let rows = |n: f64| paint(10, 100, move |_, y| y < n);
        let facts = measure(rows(1.0).view(), &[1]);
        assert_eq!(facts.flag("small"), Some(true));
        assert_eq!(facts.number("area"), Some(0.01));
        assert_eq!(measure(rows(2.0).view(), &[1]).flag("small"), Some(false));
        assert_eq!(measure(rows(1.0).view(), &[2]).number("area"), Some(0.0));
    }

    #[test]
    fn size_groups_meet_at_two_and_ten_percent() {
        for (area, name) in [
            (0.0001, "below 2 %"),
            (0.0199, "below 2 %"),
            (0.02, "2 to 10 %"),
            (0.1, "2 to 10 %"),
            (0.1001, "above 10 %"),
            (1.0, "above 10 %"),
        ] {
            assert_eq!(SizeGroup::of(area).name(), name, "{area}");
        }
        let names = SizeGroup::ALL.map(SizeGroup::name);
        assert_eq!(names, ["below 2 %", "2 to 10 %", "above 10 %"]);
        assert!(SizeGroup::ALL.is_sorted());
    }

    #[test]
    fn vertical_extent_spans_gaps() {
        let mask = paint(5, 20, |x, y| x == 2.0 && (y == 3.0 || y == 12.0));
        assert_eq!(vertical_extent(mask.view(), &[1]), 10);
        assert_eq!(vertical_extent(mask.view(), &[2]), 0);
        let full = paint(3, 7, |_, _| true);
        assert_eq!(vertical_extent(full.view(), &[1]), 7);
    }
}
