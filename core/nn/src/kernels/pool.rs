//! Maximum over 2×2 windows, forward and backward.

use pulp::Arch;
use rayon::prelude::*;

/// The largest value of each 2×2 window of `maps` (height × width each); an odd last row or
/// column is left out.
pub(crate) fn forward(maps: &[f32], height: usize, width: usize) -> Vec<f32> {
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
pub(crate) fn backward(
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
