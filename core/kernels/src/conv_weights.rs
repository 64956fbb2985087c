//! The gradient of a convolution's weights.
//!
//! A task takes some inputs, some outputs and some strips. It copies the strips of both sides and
//! keeps the sums of a block of outputs for three taps of an input in registers while it walks
//! over the pixels.

use super::{
    conv::{TASKS, block, tall},
    strips::{Geometry, Input, Maps},
    winograd, winograd_weights,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Pixels times outputs of a block over which products are summed in registers: they stay in the L1
/// cache.
const CHUNK: usize = 4096;
/// Channels of either side that a task takes: a strip of each stays in the L2 cache.
const SIDE: usize = 32;

/// For every output of `dy`, input of `x` and tap, the sum over all pixels of `dy` times the pixel
/// of `x` that the tap saw. Shape `[output][input][tap]`.
pub fn weight_gradient(geometry: Geometry, x: Maps<'_>, dy: Maps<'_>) -> Vec<f32> {
    if winograd::pays(geometry, x.channels(), dy.channels()) {
        return winograd_weights::weight_gradient(block(), geometry, x, dy);
    }
    in_blocks(block(), geometry, x, dy)
}

pub(super) fn in_blocks(block: usize, geometry: Geometry, x: Maps<'_>, dy: Maps<'_>) -> Vec<f32> {
    let (inputs, outputs, taps) = (x.channels(), dy.channels(), geometry.taps());
    let strips = geometry.strips((CHUNK / block / geometry.row()).max(1));
    let most = strips.iter().map(|strip| strip.lines).max().unwrap_or(0);
    let input_groups = inputs.div_ceil(SIDE);
    let groups = outputs.div_ceil(SIDE) * input_groups;
    // Few channels: cut the pixels too, so that every thread has work. Depends on shapes alone.
    let parts = TASKS.div_ceil(groups.max(1)).min(strips.len());
    let per_part = strips.len().div_ceil(parts.max(1));
    let group = |group: usize| Group {
        input: group % input_groups * SIDE,
        inputs: SIDE.min(inputs - group % input_groups * SIDE),
        output: group / input_groups * SIDE,
        outputs: SIDE.min(outputs - group / input_groups * SIDE),
    };

    let partial: Vec<Vec<f32>> = (0..groups * parts)
        .into_par_iter()
        .map(|task| {
            let group = group(task / parts);
            let of_block = group.inputs * taps.len() * block;
            let mut sums = vec![0.0; group.outputs.div_ceil(block) * of_block];
            let mut pixels = Input::new(geometry, group.inputs, most, geometry.pad);
            let mut slopes = Input::new(geometry, group.outputs, most, 0);
            let strips = strips.iter().skip(task % parts * per_part).take(per_part);
            for strip in strips {
                pixels.fill(x, group.input, *strip);
                slopes.fill(dy, group.output, *strip);
                for (at, sums) in sums.chunks_exact_mut(of_block).enumerate() {
                    Arch::new().dispatch(Backward {
                        block,
                        x: &pixels,
                        dy: &slopes,
                        first: at * block,
                        outputs: group.outputs,
                        len: strip.lines * geometry.row(),
                        taps: &taps,
                        sums,
                    });
                }
            }
            sums
        })
        .collect();

    let mut gradient = vec![0.0; outputs * inputs * taps.len()];
    for (task, sums) in partial.iter().enumerate() {
        let group = group(task / parts);
        let of_block = group.inputs * taps.len() * block;
        for (at, sums) in sums.chunks_exact(of_block).enumerate() {
            let first = group.output + at * block;
            for (place, lane) in sums.chunks_exact(block).enumerate() {
                let (input, tap) = (group.input + place / taps.len(), place % taps.len());
                for (output, value) in (first..outputs).zip(lane) {
                    gradient[(output * inputs + input) * taps.len() + tap] += value;
                }
            }
        }
    }
    gradient
}

/// The channels of a task.
struct Group {
    input: usize,
    inputs: usize,
    output: usize,
    outputs: usize,
}

/// The weight gradient of one block of outputs and some inputs over one strip.
struct Backward<'a> {
    block: usize,
    x: &'a Input,
    dy: &'a Input,
    /// First output of the block, of so many that there are.
    first: usize,
    outputs: usize,
    len: usize,
    taps: &'a [usize],
    /// `[input][tap][output of the block]`, added to.
    sums: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if tall::<S>(self.block) {
            self.run::<S, 8>(simd);
        } else {
            self.run::<S, 4>(simd);
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn run<S: Simd, const M: usize>(self, simd: S) {
        // Beyond the last pixel `dy` holds zeros, so whole vectors are summed.
        let len = self.len.next_multiple_of(S::F32_LANES);
        let rows: [&[S::f32s]; M] = std::array::from_fn(|m| {
            // A last block that is not full repeats the last channel; nobody reads the result.
            let output = (self.first + m).min(self.outputs - 1);
            S::as_simd_f32s(&self.dy.data[output * self.dy.stride..][..len]).0
        });
        let per_input = self.taps.len() * M;
        let runs = self.x.data.chunks_exact(self.x.stride);
        for (run, sums) in runs.zip(self.sums.chunks_exact_mut(per_input)) {
            let mut taps = self.taps.chunks_exact(3);
            let mut at = 0;
            for taps in taps.by_ref() {
                let sums = &mut sums[at * M..(at + 3) * M];
                tap_sums::<S, M, 3>(simd, &rows, run, len, taps, sums);
                at += 3;
            }
            for tap in taps.remainder().chunks_exact(1) {
                let sums = &mut sums[at * M..(at + 1) * M];
                tap_sums::<S, M, 1>(simd, &rows, run, len, tap, sums);
                at += 1;
            }
        }
    }
}

/// Adds to `sums` the products of M rows with T shifted runs.
#[inline(always)]
pub(super) fn tap_sums<S: Simd, const M: usize, const T: usize>(
    simd: S,
    rows: &[&[S::f32s]; M],
    run: &[f32],
    len: usize,
    taps: &[usize],
    sums: &mut [f32],
) {
    let mut products = [[simd.splat_f32s(0.0); M]; T];
    let mut shifted = [rows[0]; T];
    for t in 0..T {
        shifted[t] = S::as_simd_f32s(&run[taps[t]..taps[t] + len]).0;
    }
    for i in 0..len / S::F32_LANES {
        let mut pixels = [simd.splat_f32s(0.0); T];
        for t in 0..T {
            pixels[t] = shifted[t][i];
        }
        for m in 0..M {
            let value = rows[m][i];
            for t in 0..T {
                products[t][m] = simd.mul_add_e_f32s(value, pixels[t], products[t][m]);
            }
        }
    }
    for t in 0..T {
        for m in 0..M {
            sums[t * M + m] += simd.reduce_sum_f32s(products[t][m]);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        conv::{plain, write_rows},
        conv_packed::Packed,
    };

    pub fn values(count: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        (0..count).map(value).collect()
    }

    pub fn assert_close(ours: &[f32], theirs: &[f32]) {
        assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
            assert!((a - b).abs() <= 1e-5 * largest, "{at}: {a}, {b}");
        }
    }

    /// More inputs than are summed at once, more outputs than a block; strips that are parts of an
    /// image and such that hold several.
    #[test]
    fn tiles_of_both_heights_give_the_same() {
        for (batch, height, width) in [(2, 61, 47), (5, 4, 3)] {
            let geometry = Geometry {
                batch,
                height,
                width,
                pad: 1,
                margin: 1,
            };
            let (inputs, outputs, taps, area) = (90, 19, 9, height * width);
            let (x, w) = (
                values(batch * inputs * area),
                values(outputs * inputs * taps),
            );
            let run = |block: usize| {
                let packed = Packed::<f32>::in_blocks(block, [outputs, inputs, taps], &w);
                let x = Maps::new(&x, inputs);
                let mut out = vec![0.0; batch * outputs * area];
                plain(geometry, x, &packed, (&mut out, 1), |out, band| {
                    write_rows(out, band, width, &[]);
                });
                let gradient = in_blocks(block, geometry, x, Maps::new(&out, outputs));
                (out, gradient)
            };
            let (low, tall) = (run(4), run(8));
            assert_close(&tall.0, &low.0);
            assert_close(&tall.1, &low.1);
        }
    }
}
