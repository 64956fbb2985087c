//! The processor's inner loops, on slices of f32: what `diffaug-nn` makes its operations of.
//!
//! Safe Rust but for three places and `bf16`, whose instruction `pulp` does not know: `pulp`
//! compiles each loop for AVX-512, AVX2, NEON and plain code and chooses at run time. Work is cut by
//! shape, never by the number of threads, and every sum is formed in a fixed order; on one machine
//! results are equal to the last bit.

pub mod activation;
pub mod adam;
pub mod add;
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod bf16;
pub mod conv;
pub mod conv_packed;
pub mod conv_weights;
pub mod cross_entropy;
pub mod descent;
pub mod dice;
pub mod dropout;
pub mod fourier;
pub mod loss;
pub mod matrix;
pub mod norm;
pub mod pointwise;
pub mod pool;
pub mod rows;
pub mod separable;
mod strided;
pub mod strips;
pub mod transpose;
pub mod windows;
mod winograd;
mod winograd_maps;
mod winograd_weights;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// The vectors that this build's loops use on this processor: `avx512`, `avx2`, `neon` or `none`.
pub fn simd() -> &'static str {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    match Arch::new().dispatch(Lanes) {
        16 => "avx512",
        8 => "avx2",
        4 => "neon",
        _ => "none",
    }
}

/// Room for `length` values that are about to be written: zeros, which for large sizes all threads
/// write, for on one it would take a good part of what an operation takes.
pub fn buffer(length: usize) -> Vec<f32> {
    const PART: usize = 1 << 16;
    if length < 4 * PART {
        return vec![0.0; length];
    }
    let mut values = Vec::with_capacity(length);
    let room = &mut values.spare_capacity_mut()[..length];
    room.par_chunks_mut(PART).for_each(|part| {
        part.fill(MaybeUninit::new(0.0));
    });
    // SAFETY: the first `length` values have just been written.
    #[allow(unsafe_code)]
    unsafe {
        values.set_len(length);
    }
    values
}

/// `length` values, made in parts of `part` (the last may be shorter): `compute(index, values)` fills
/// one, which stays in the cache until it is copied to its place, so that nothing need be zeroed
/// before. Returns what it returned, too.
pub fn assemble<T: Copy + Default + Send, R: Send>(
    length: usize,
    part: usize,
    compute: impl Fn(usize, &mut [T]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    /// Values below which a task is not worth its start.
    const TASK: usize = 1 << 14;
    let part = part.max(1);
    let mut values = Vec::with_capacity(length);
    let room = &mut values.spare_capacity_mut()[..length];
    let results = room
        .par_chunks_mut(part)
        .with_min_len(TASK.div_ceil(part))
        .enumerate()
        .map_init(
            || vec![T::default(); part.min(length)],
            |scratch, (index, to)| {
                let from = &mut scratch[..to.len()];
                let result = compute(index, from);
                to.write_copy_of_slice(from);
                result
            },
        )
        .collect();
    // SAFETY: every part of the first `length` values has been written.
    #[allow(unsafe_code)]
    unsafe {
        values.set_len(length);
    }
    (values, results)
}

/// Cuts `[batch, channels, size]` values by channel: for each, its part of every image.
pub fn by_channel(values: &mut [f32], channels: usize, size: usize) -> Vec<Vec<&mut [f32]>> {
    let batch = values.len() / (channels * size).max(1);
    let mut cut: Vec<Vec<&mut [f32]>> = (0..channels).map(|_| Vec::with_capacity(batch)).collect();
    for (index, part) in values.chunks_exact_mut(size).enumerate() {
        cut[index % channels].push(part);
    }
    cut
}

/// Numbers summed side by side, so that the compiler can use vectors: addition is not
/// associative, and it does not reorder what we wrote.
const LANES: usize = 32;

/// Sum of `term` over the values that `sources`, of one length, have at each place: in f32 lanes,
/// in f64 across chunks.
pub fn sum<const N: usize>(sources: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f64 {
    Arch::new().dispatch(Sum { sources, term })
}

/// A closure handed to `dispatch` is inlined, and thus vectorised, only if the compiler likes;
/// this is.
struct Sum<'a, F, const N: usize> {
    sources: [&'a [f32]; N],
    term: F,
}

impl<F: Fn([f32; N]) -> f32, const N: usize> WithSimd for Sum<'_, F, N> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut total = 0.0;
        let len = self.sources.iter().map(|s| s.len()).min().unwrap_or(0);
        let blocks = self.sources.map(|source| source.as_chunks::<LANES>().0);
        let rest = len / LANES * LANES;
        let mut block = 0;
        while block * LANES < rest {
            let end = (block + 64).min(rest / LANES);
            let mut lanes = [0.0f32; LANES];
            for at in block..end {
                let rows = blocks.map(|blocks| &blocks[at]);
                for (lane, sum) in lanes.iter_mut().enumerate() {
                    *sum += (self.term)(rows.map(|row| row[lane]));
                }
            }
            total += lanes.iter().map(|&sum| f64::from(sum)).sum::<f64>();
            block = end;
        }
        for at in rest..len {
            total += f64::from((self.term)(self.sources.map(|source| source[at])));
        }
        total
    }
}

/// The sum over all images and pixels, for each channel of `[batch, channels, size]` values.
pub fn channel_sums(values: &[f32], channels: usize, size: usize) -> Vec<f32> {
    let total = |channel: usize| {
        let parts = values.chunks_exact(size).skip(channel).step_by(channels);
        let sums = parts.map(|part| sum([part], |[v]| v));
        sums.sum::<f64>() as f32
    };
    (0..channels).into_par_iter().map(total).collect()
}

/// The sum over all rows of `width` values, for each place in the row.
pub fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let rows = 64;
    let partial: Vec<Vec<f32>> = values
        .par_chunks(rows * width)
        .map(|rows| {
            let mut sums = vec![0.0; width];
            Arch::new().dispatch(|| {
                for row in rows.chunks_exact(width) {
                    sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
                }
            });
            sums
        })
        .collect();
    let total = |place| {
        partial
            .iter()
            .map(|sums| f64::from(sums[place]))
            .sum::<f64>() as f32
    };
    (0..width).map(total).collect()
}
