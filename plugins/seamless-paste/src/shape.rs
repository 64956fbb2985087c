//! Binary shapes on a grid: connected patches, their moments, and the way to the nearest pixel of
//! a set.

use diffaug::MaskRef;

/// A connected set of pixels.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// `(x, y)` of its pixels.
    pub(crate) pixels: Vec<(usize, usize)>,
    /// Mean of the pixel centres; pixel (0, 0) has its centre at the origin.
    pub(crate) centroid: [f64; 2],
    /// Covariance of the pixels as unit squares: xx, xy, yy.
    pub(crate) covariance: [f64; 3],
}

impl Shape {
    fn of(pixels: Vec<(usize, usize)>) -> Self {
        let n = pixels.len() as f64;
        let mean = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            pixels
                .iter()
                .map(|&(x, y)| f(x as f64, y as f64))
                .sum::<f64>()
                / n
        };
        let centroid = [mean(&|x, _| x), mean(&|_, y| y)];
        let [cx, cy] = centroid;
        // A unit square has a moment of 1/12 of its own, which keeps single rows invertible.
        let covariance = [
            mean(&|x, _| (x - cx).powi(2)) + 1.0 / 12.0,
            mean(&|x, y| (x - cx) * (y - cy)),
            mean(&|_, y| (y - cy).powi(2)) + 1.0 / 12.0,
        ];
        Shape {
            pixels,
            centroid,
            covariance,
        }
    }

    /// Number of pixels.
    pub(crate) fn area(&self) -> usize {
        self.pixels.len()
    }

    /// Major axis over minor axis, from the second moments.
    pub(crate) fn elongation(&self) -> f64 {
        let [xx, xy, yy] = self.covariance;
        let mean = (xx + yy) / 2.0;
        let spread = ((xx - yy) / 2.0).hypot(xy);
        ((mean + spread) / (mean - spread).max(1.0 / 12.0)).sqrt()
    }

    /// Left, top, right and bottom, the last two exclusive.
    pub(crate) fn bounds(&self) -> [usize; 4] {
        let start = [usize::MAX, usize::MAX, 0, 0];
        self.pixels.iter().fold(start, |[x0, y0, x1, y1], &(x, y)| {
            [x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1)]
        })
    }
}

/// The 8-connected patches of the pixels whose label `wanted` likes, in the order of their
/// topmost, then leftmost pixel.
pub(crate) fn patches(mask: MaskRef<'_>, wanted: impl Fn(u8) -> bool) -> Vec<Shape> {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let mut open: Vec<bool> = mask.labels().iter().map(|&label| wanted(label)).collect();
    let mut found = Vec::new();
    for start in 0..open.len() {
        if !std::mem::take(&mut open[start]) {
            continue;
        }
        let mut pixels = vec![(start % width, start / width)];
        let mut next = 0;
        while let Some(&(x, y)) = pixels.get(next) {
            next += 1;
            for ny in y.saturating_sub(1)..(y + 2).min(height) {
                for nx in x.saturating_sub(1)..(x + 2).min(width) {
                    if std::mem::take(&mut open[ny * width + nx]) {
                        pixels.push((nx, ny));
                    }
                }
            }
        }
        found.push(Shape::of(pixels));
    }
    found
}

/// For every cell of a grid the nearest cell of `set`, or `None` where the set is empty.
///
/// Exact: lower envelope of parabolas (Felzenszwalb and Huttenlocher 2012), first along columns,
/// then along rows.
pub(crate) struct Nearest {
    width: usize,
    cells: Option<Vec<(u32, u32)>>,
}

impl Nearest {
    pub(crate) fn new(width: usize, height: usize, set: impl Fn(usize, usize) -> bool) -> Self {
        let column = |x: usize| nearest_in_column(height, |y| set(x, y));
        let columns: Vec<Vec<Option<usize>>> = (0..width).map(column).collect();
        if columns.iter().all(|column| column[0].is_none()) {
            return Nearest { width, cells: None };
        }
        let mut cells = Vec::with_capacity(width * height);
        for y in 0..height {
            let heights: Vec<Option<f64>> = columns
                .iter()
                .map(|column| column[y].map(|at| (at as f64 - y as f64).powi(2)))
                .collect();
            for x in lower_envelope(&heights) {
                cells.push((x as u32, columns[x][y].unwrap_or(y) as u32));
            }
        }
        Nearest {
            width,
            cells: Some(cells),
        }
    }

    /// The nearest cell of the set.
    pub(crate) fn cell(&self, x: usize, y: usize) -> Option<(usize, usize)> {
        let (nx, ny) = self.cells.as_ref()?[y * self.width + x];
        Some((nx as usize, ny as usize))
    }

    /// Distance to the nearest cell of the set in pixels; infinite if there is none.
    pub(crate) fn distance(&self, x: usize, y: usize) -> f64 {
        self.cell(x, y).map_or(f64::INFINITY, |(nx, ny)| {
            (nx as f64 - x as f64).hypot(ny as f64 - y as f64)
        })
    }
}

fn nearest_in_column(height: usize, set: impl Fn(usize) -> bool) -> Vec<Option<usize>> {
    let mut nearest = vec![None; height];
    let mut last = None;
    for (y, slot) in nearest.iter_mut().enumerate() {
        if set(y) {
            last = Some(y);
        }
        *slot = last;
    }
    let mut below = None;
    for (y, slot) in nearest.iter_mut().enumerate().rev() {
        if *slot == Some(y) {
            below = Some(y);
        }
        if let Some(at) = below
            && slot.is_none_or(|above| at - y < y - above)
        {
            *slot = Some(at);
        }
    }
    nearest
}

/// For every x the apex of the lowest parabola `(x - apex)^2 + heights[apex]`. At least one height
/// is given.
fn lower_envelope(heights: &[Option<f64>]) -> Vec<usize> {
    // Apex of each parabola of the envelope and the x from which on it is the lowest.
    let mut envelope: Vec<(usize, f64)> = Vec::with_capacity(heights.len());
    for (apex, height) in heights.iter().enumerate() {
        let Some(height) = height else { continue };
        let lifted = |at: usize, h: f64| h + (at as f64).powi(2);
        let mut from = f64::NEG_INFINITY;
        while let Some(&(other, other_from)) = envelope.last() {
            let other_height = heights[other].unwrap_or(0.0);
            from = (lifted(apex, *height) - lifted(other, other_height))
                / (2.0 * (apex - other) as f64);
            if from > other_from {
                break;
            }
            envelope.pop();
            from = f64::NEG_INFINITY;
        }
        envelope.push((apex, from));
    }
    let mut current = 0;
    (0..heights.len())
        .map(|x| {
            while envelope
                .get(current + 1)
                .is_some_and(|&(_, from)| from < x as f64)
            {
                current += 1;
            }
            envelope[current].0
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Mask, rng};
    use rand::RngExt;

    #[test]
    fn patches_are_told_apart_and_measured() {
        #[rustfmt::skip]
        let mask = Mask::new(6, 4, vec![
            0, 0, 0, 0, 0, 0,
            0, 1, 1, 0, 0, 2,
            0, 1, 1, 0, 2, 0,
            0, 0, 0, 0, 0, 0,
        ]).unwrap();
        let found = patches(mask.view(), |label| label != 0);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].bounds(), [1, 1, 3, 3]);
        assert_eq!(found[0].centroid, [1.5, 1.5]);
        assert!((found[0].elongation() - 1.0).abs() < 1e-12);
        assert_eq!(found[1].area(), 2);
        assert!(found[1].elongation() > 2.0);
        assert_eq!(patches(mask.view(), |label| label == 2).len(), 1);
    }

    #[test]
    fn the_nearest_cell_is_exact() {
        let (width, height) = (23, 17);
        for seed in 0..20 {
            let mut rng = rng::stream(seed, "test", 0);
            let set: Vec<bool> = (0..width * height).map(|_| rng.random_bool(0.03)).collect();
            let nearest = Nearest::new(width, height, |x, y| set[y * width + x]);
            for (x, y) in (0..width * height).map(|i| (i % width, i / width)) {
                let brute = (0..width * height)
                    .filter(|&i| set[i])
                    .map(|i| ((i % width) as f64 - x as f64).hypot((i / width) as f64 - y as f64))
                    .fold(f64::INFINITY, f64::min);
                assert_eq!(nearest.distance(x, y), brute);
                if let Some((nx, ny)) = nearest.cell(x, y) {
                    assert!(set[ny * width + nx]);
                }
            }
        }
        assert!(Nearest::new(3, 3, |_, _| false).cell(1, 1).is_none());
    }
}
