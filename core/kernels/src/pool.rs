//! Maximum over windows, forward and backward; 2×2 windows have a loop of their own in vectors.

use pulp::Arch;
use rayon::prelude::*;

/// The largest value of each 2×2 window of `maps` (height × width each); an odd last row or
/// column is left out.
pub fn forward(maps: &[f32], height: usize, width: usize) -> Vec<f32> {
    let (rows, columns) = (height / 2, width / 2);
    let mut out = vec![0.0; maps.len() / (height * width) * rows * columns];
    out.par_chunks_mut(rows * columns)
        .zip(maps.par_chunks(height * width))
        .for_each(|(out, map)| {
            Arch::new().dispatch(|| {
                for (out, pair) in out.chunks_exact_mut(columns).zip(map.chunks(2 * width)) {
                    let (upper, lower) = pair.split_at(width);
                    let upper = upper.as_chunks::<2>().0;
                    let lower = lower.as_chunks::<2>().0;
                    for (out, (u, l)) in out.iter_mut().zip(upper.iter().zip(lower)) {
                        *out = larger(larger(u[0], u[1]), larger(l[0], l[1]));
                    }
                }
            });
        });
    out
}

/// The larger of two numbers; NaN if either is, unlike `max`, so that it is not lost.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The gradient of the maps: each window hands its own to the first of its largest values.
pub fn backward(
    maps: &[f32],
    peaks: &[f32],
    gradient: &[f32],
    height: usize,
    width: usize,
) -> Vec<f32> {
    let (rows, columns) = (height / 2, width / 2);
    let mut out = vec![0.0; maps.len()];
    let results = peaks
        .par_chunks(rows * columns)
        .zip(gradient.par_chunks(rows * columns));
    out.par_chunks_mut(height * width)
        .zip(maps.par_chunks(height * width))
        .zip(results)
        .for_each(|((out, map), (peaks, gradient))| {
            Arch::new().dispatch(|| {
                for y in 0..rows {
                    let at = 2 * y * width;
                    let (upper, lower) = map[at..at + 2 * width].split_at(width);
                    let (out_upper, out_lower) = out[at..at + 2 * width].split_at_mut(width);
                    let line = y * columns..(y + 1) * columns;
                    let line = peaks[line.clone()].iter().zip(&gradient[line]);
                    let maps = upper
                        .as_chunks::<2>()
                        .0
                        .iter()
                        .zip(lower.as_chunks::<2>().0);
                    let outs = out_upper.as_chunks_mut::<2>().0.iter_mut();
                    let outs = outs.zip(out_lower.as_chunks_mut::<2>().0);
                    for (((u, l), (to_u, to_l)), (&peak, &flow)) in maps.zip(outs).zip(line) {
                        // Without branches, so that it can be done in vectors.
                        let a = u[0] == peak;
                        let b = !a & (u[1] == peak);
                        let c = !a & !b & (l[0] == peak);
                        let d = !a & !b & !c;
                        to_u[0] = if a { flow } else { 0.0 };
                        to_u[1] = if b { flow } else { 0.0 };
                        to_l[0] = if c { flow } else { 0.0 };
                        to_l[1] = if d { flow } else { 0.0 };
                    }
                }
            });
        });
    out
}

/// Values that one task takes at least.
const TASK: usize = 1 << 14;

/// Windows along one side of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Length of the side.
    pub side: usize,
    /// Places that a window covers.
    pub kernel: usize,
    /// Distance between windows.
    pub stride: usize,
    /// How far the first window begins before the map, at most half the kernel.
    pub padding: usize,
}

impl Windows {
    /// Number of windows.
    pub fn count(&self) -> usize {
        (self.side + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// The part of a window that lies on the map; never empty.
    pub fn range(&self, window: usize) -> std::ops::Range<usize> {
        let start = window * self.stride;
        let end = (start + self.kernel).saturating_sub(self.padding);
        start.saturating_sub(self.padding)..end.min(self.side)
    }
}

/// The largest value of each window of `maps` and its place in its map: the first of equal ones,
/// and NaN before all others.
pub fn peaks(maps: &[f32], rows: Windows, columns: Windows) -> (Vec<f32>, Vec<u32>) {
    let (size, count) = (rows.side * columns.side, rows.count() * columns.count());
    let mut out = vec![0.0; maps.len() / size * count];
    let mut places = vec![0; out.len()];
    out.par_chunks_mut(count)
        .zip(places.par_chunks_mut(count))
        .zip(maps.par_chunks(size))
        .with_min_len(TASK.div_ceil(size))
        .for_each(|((out, places), map)| {
            let windows = (0..rows.count()).flat_map(|y| (0..columns.count()).map(move |x| (y, x)));
            for ((out, place), (y, x)) in out.iter_mut().zip(places).zip(windows) {
                (*out, *place) = peak(map, columns.side, rows.range(y), columns.range(x));
            }
        });
    (out, places)
}

fn peak(
    map: &[f32],
    width: usize,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
) -> (f32, u32) {
    let mut place = rows.start * width + columns.start;
    let mut best = map[place];
    for y in rows {
        let row = y * width;
        for (x, v) in columns
            .clone()
            .zip(&map[row + columns.start..row + columns.end])
        {
            if *v > best || v.is_nan() && !best.is_nan() {
                (best, place) = (*v, row + x);
            }
        }
    }
    (best, place as u32)
}

/// The gradient of the maps of `size` values, given the places that [`peaks`] found in each.
pub fn scatter(gradient: &[f32], places: &[u32], size: usize, count: usize) -> Vec<f32> {
    let mut out = vec![0.0; gradient.len() / count * size];
    out.par_chunks_mut(size)
        .zip(gradient.par_chunks(count).zip(places.par_chunks(count)))
        .with_min_len(TASK.div_ceil(size))
        .for_each(|(out, (gradient, places))| {
            for (place, flow) in places.iter().zip(gradient) {
                out[*place as usize] += flow;
            }
        });
    out
}
