//! Sums of feature maps, and their modulation channel by channel.

use super::{assemble, sum};
use pulp::Arch;
use rayon::prelude::*;

/// Values that one task takes.
const CHUNK: usize = 1 << 14;

/// `x` plus `y`, of one length.
pub fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    let (sums, _) = assemble(x.len(), CHUNK, |index, to| {
        let (x, y) = (&x[index * CHUNK..], &y[index * CHUNK..]);
        Arch::new().dispatch(|| {
            for ((to, x), y) in to.iter_mut().zip(x).zip(y) {
                *to = x + y;
            }
        });
    });
    sums
}

/// Each map of `x` plus its `shift`.
pub fn shift(x: &[f32], shift: &[f32]) -> Vec<f32> {
    let size = x.len() / shift.len().max(1);
    let (sums, _) = assemble(x.len(), size, |index, to| {
        let (x, shift) = (&x[index * size..], shift[index]);
        Arch::new().dispatch(|| {
            for (to, x) in to.iter_mut().zip(x) {
                *to = x + shift;
            }
        });
    });
    sums
}

/// Each map of `x` times 1 + its `scale`, plus its `shift`.
pub fn modulate(x: &[f32], scale: &[f32], shift: &[f32]) -> Vec<f32> {
    let size = x.len() / scale.len().max(1);
    let (out, _) = assemble(x.len(), size, |index, to| {
        let (x, factor, shift) = (&x[index * size..], 1.0 + scale[index], shift[index]);
        Arch::new().dispatch(|| {
            for (to, x) in to.iter_mut().zip(x) {
                *to = x * factor + shift;
            }
        });
    });
    out
}

/// The sum of each of `count` maps.
pub fn sums(x: &[f32], count: usize) -> Vec<f32> {
    let maps = x.par_chunks((x.len() / count.max(1)).max(1));
    maps.map(|map| sum([map], |[v]| v) as f32).collect()
}

/// The sum of the products of `x` and `y` over each of `count` maps.
pub fn sums_of_products(x: &[f32], y: &[f32], count: usize) -> Vec<f32> {
    let size = (x.len() / count.max(1)).max(1);
    let maps = x.par_chunks(size).zip(y.par_chunks(size));
    maps.map(|(x, y)| sum([x, y], |[x, y]| x * y) as f32)
        .collect()
}
