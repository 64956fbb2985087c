//! Convolution on [`Planes`]: the forward sum, which with turned weights is also the gradient of
//! the input, and the gradient of the weights.
//!
//! A tile keeps a block of output channels times a few vectors of pixels in registers and walks
//! over input channels and taps. Every sum is formed in an order that the shapes alone decide, so
//! results do not depend on the number of threads.

use super::{
    matrix::Stored,
    planes::{Geometry, Planes},
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Pixels of a channel that a task computes before it hands them on: they stay in the L1 cache.
const BAND: usize = 768;
/// Pixels over which weight gradients are summed in registers.
const CHUNK: usize = 2048;
/// Input channels that one task of the weight gradient takes.
const INPUTS: usize = 16;
/// Tasks that the weight gradient is cut into at least, if there are pixels enough.
const TASKS: usize = 16;

/// How many output channels a tile holds: what fits the registers of this processor.
pub(crate) fn block() -> usize {
    struct Registers;
    impl WithSimd for Registers {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
        }
    }
    Arch::new().dispatch(Registers)
}

/// Weights in the order in which tiles read them: `[block of outputs][input][tap][output]`.
pub(crate) struct Packed<T> {
    data: Vec<T>,
    inputs: usize,
    outputs: usize,
    taps: usize,
    block: usize,
}

impl<T: Stored> Packed<T> {
    /// Packs the weights `at(output, input, tap)`; a last block that is not full gets zeros.
    pub fn new(
        outputs: usize,
        inputs: usize,
        taps: usize,
        at: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let block = block();
        let mut data = vec![T::of(0.0); outputs.div_ceil(block) * inputs * taps * block];
        data.par_chunks_mut(inputs * taps * block)
            .enumerate()
            .for_each(|(index, chunk)| {
                let first = index * block;
                for (place, lane) in chunk.chunks_exact_mut(block).enumerate() {
                    for (output, value) in (first..outputs).zip(lane) {
                        *value = T::of(at(output, place / taps, place % taps));
                    }
                }
            });
        Packed {
            data,
            inputs,
            outputs,
            taps,
            block,
        }
    }

    /// The same with inputs and outputs exchanged and the window turned by 180 degrees: the weights
    /// with which the gradient of the input is a convolution of the result's gradient.
    pub fn turned(&self) -> Packed<f32> {
        let at = |input: usize, output: usize, tap: usize| {
            let place = (output / self.block * self.inputs + input) * self.taps;
            let value = (place + self.taps - 1 - tap) * self.block + output % self.block;
            let mut wide = [0.0];
            T::widen(&self.data[value..=value], &mut wide)[0]
        };
        Packed::new(self.inputs, self.outputs, self.taps, at)
    }

    /// Number of input channels.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of output channels.
    pub fn outputs(&self) -> usize {
        self.outputs
    }
}

/// A finished part of the result of [`correlate`], to be written where it belongs.
pub(crate) struct Band<'a> {
    /// First output channel of the block.
    pub first: usize,
    /// First row.
    pub y: usize,
    /// Number of rows.
    pub rows: usize,
    /// Distance between the channels of the block in `data`.
    pub stride: usize,
    /// Distance between rows in `data`.
    pub row: usize,
    /// The values: channel after channel.
    pub data: &'a [f32],
}

/// Sums every window of `x` with `weights` and hands each band of rows to `write`, together with
/// the part of `out` that belongs to its image and block of channels.
///
/// `out` is cut evenly: `per_output` values for each output channel of each image.
pub(crate) fn correlate<T: Stored>(
    x: &Planes,
    weights: &Packed<T>,
    out: &mut [f32],
    per_output: usize,
    write: impl Fn(&mut [f32], &Band<'_>) + Sync,
) {
    let geometry = x.geometry();
    let taps = geometry.taps();
    debug_assert_eq!((x.channels(), taps.len()), (weights.inputs, weights.taps));
    let mut tasks: Vec<(usize, usize, &mut [f32])> = out
        .chunks_mut(weights.outputs * per_output)
        .enumerate()
        .flat_map(|(image, part)| {
            let blocks = part.chunks_mut(weights.block * per_output).enumerate();
            blocks.map(move |(block, part)| (block, image, part))
        })
        .collect();
    // Images in a row share the block's weights in the cache.
    tasks.sort_unstable_by_key(|&(block, image, _)| (block, image));
    tasks.into_par_iter().for_each(|(block, image, part)| {
        let size = weights.inputs * weights.taps * weights.block;
        let weights_of_block = &weights.data[block * size..(block + 1) * size];
        let mut wide = Vec::new();
        if size_of::<T>() < size_of::<f32>() {
            wide.resize(size, 0.0);
        }
        let weights_of_block = T::widen(weights_of_block, &mut wide);
        let row = geometry.row();
        let rows = (BAND / row).clamp(1, geometry.height);
        let stride = rows * row + 64;
        let mut scratch = vec![0.0; weights.block * stride];
        for y in (0..geometry.height).step_by(rows) {
            let rows = rows.min(geometry.height - y);
            Arch::new().dispatch(Forward {
                x: x.data(),
                x_stride: geometry.stride(),
                start: image * geometry.image() + y * row,
                len: rows * row - geometry.pad,
                weights: weights_of_block,
                taps: &taps,
                out: &mut scratch,
                out_stride: stride,
            });
            let band = Band {
                first: block * weights.block,
                y,
                rows,
                stride,
                row,
                data: &scratch,
            };
            write(part, &band);
        }
    });
}

/// The forward sum of one block of channels over one run of pixels.
struct Forward<'a> {
    x: &'a [f32],
    x_stride: usize,
    start: usize,
    len: usize,
    weights: &'a [f32],
    taps: &'a [usize],
    out: &'a mut [f32],
    out_stride: usize,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, 8>(simd);
        } else {
            self.run::<S, 4>(simd);
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn run<S: Simd, const M: usize>(&mut self, simd: S) {
        let mut at = 0;
        while at < self.len {
            match (self.len - at).div_ceil(S::F32_LANES) {
                1 => {
                    self.tile::<S, M, 1>(simd, at);
                    at += S::F32_LANES;
                }
                2 => {
                    self.tile::<S, M, 2>(simd, at);
                    at += 2 * S::F32_LANES;
                }
                _ => {
                    self.tile::<S, M, 3>(simd, at);
                    at += 3 * S::F32_LANES;
                }
            }
        }
    }

    /// M channels times V vectors of pixels, from the `at`-th pixel on.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(&mut self, simd: S, at: usize) {
        let lanes = S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        let per_input = self.taps.len();
        let weights = self.weights.as_chunks::<M>().0;
        for (input, weights) in weights.chunks_exact(per_input).enumerate() {
            let run = &self.x[input * self.x_stride + self.start + at..];
            for (&tap, weights) in self.taps.iter().zip(weights) {
                let pixels = S::as_simd_f32s(&run[tap..tap + V * lanes]).0;
                for m in 0..M {
                    let weight = simd.splat_f32s(weights[m]);
                    for v in 0..V {
                        sums[m][v] = simd.mul_add_e_f32s(weight, pixels[v], sums[m][v]);
                    }
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let start = m * self.out_stride + at;
            let out = S::as_mut_simd_f32s(&mut self.out[start..start + V * lanes]).0;
            out.copy_from_slice(sums);
        }
    }
}

/// The gradient of the weights: for every output of `dy`, input of `x` and tap, the sum over all
/// pixels of `dy` times the pixel of `x` that the tap saw. Shape `[output][input][tap]`.
pub(crate) fn weight_gradient(x: &Planes, dy: &Planes) -> Vec<f32> {
    let geometry = x.geometry();
    debug_assert_eq!(geometry, dy.geometry());
    let (inputs, outputs, taps) = (x.channels(), dy.channels(), geometry.taps());
    let (block, span) = (block(), geometry.span());
    let input_groups = inputs.div_ceil(INPUTS);
    let groups = outputs.div_ceil(block) * input_groups;
    // Few channels: cut the pixels too, so that every thread has work. Depends on shapes alone.
    let parts = TASKS.div_ceil(groups).min(span.div_ceil(CHUNK));
    let part = span.div_ceil(parts).next_multiple_of(CHUNK);

    let partial: Vec<Vec<f32>> = (0..groups * parts)
        .into_par_iter()
        .map(|task| {
            let (group, index) = (task / parts, task % parts);
            let first_input = group % input_groups * INPUTS;
            let count = INPUTS.min(inputs - first_input);
            let mut sums = vec![0.0; count * taps.len() * block];
            for start in (index * part..((index + 1) * part).min(span)).step_by(CHUNK) {
                Arch::new().dispatch(Backward {
                    x,
                    dy,
                    first_input,
                    first_output: group / input_groups * block,
                    start,
                    len: CHUNK.min(span - start),
                    taps: &taps,
                    sums: &mut sums,
                });
            }
            sums
        })
        .collect();

    let mut gradient = vec![0.0; outputs * inputs * taps.len()];
    for (task, sums) in partial.iter().enumerate() {
        let group = task / parts;
        let first_input = group % input_groups * INPUTS;
        let first_output = group / input_groups * block;
        for (place, lane) in sums.chunks_exact(block).enumerate() {
            let (input, tap) = (first_input + place / taps.len(), place % taps.len());
            for (output, value) in (first_output..outputs).zip(lane) {
                gradient[(output * inputs + input) * taps.len() + tap] += value;
            }
        }
    }
    gradient
}

/// The weight gradient of one block of outputs and some inputs over one chunk of pixels.
struct Backward<'a> {
    x: &'a Planes,
    dy: &'a Planes,
    first_input: usize,
    first_output: usize,
    start: usize,
    len: usize,
    taps: &'a [usize],
    /// `[input][tap][output of the block]`, added to.
    sums: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, 8>(simd);
        } else {
            self.run::<S, 4>(simd);
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn run<S: Simd, const M: usize>(self, simd: S) {
        let lanes = S::F32_LANES;
        // Beyond the last pixel `dy` holds zeros, so whole vectors are summed.
        let len = self.len.next_multiple_of(lanes);
        let lead = self.dy.geometry().lead();
        let rows: [&[S::f32s]; M] = std::array::from_fn(|m| {
            // A last block that is not full repeats the last channel; nobody reads the result.
            let output = (self.first_output + m).min(self.dy.channels() - 1);
            let start = lead + self.start;
            S::as_simd_f32s(&self.dy.run(output)[start..start + len]).0
        });
        let per_input = self.taps.len() * M;
        for (input, sums) in self.sums.chunks_exact_mut(per_input).enumerate() {
            let run = &self.x.run(self.first_input + input)[self.start..];
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
fn tap_sums<S: Simd, const M: usize, const T: usize>(
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

/// Adds `bias` to the rows of a band and copies them to `out`, which holds the band's channels
/// without padding.
pub(crate) fn write_rows(out: &mut [f32], band: &Band<'_>, geometry: Geometry, bias: &[f32]) {
    let Geometry { height, width, .. } = geometry;
    for (channel, out) in out.chunks_mut(height * width).enumerate() {
        let shift = bias.get(band.first + channel).copied();
        for y in 0..band.rows {
            let from = &band.data[channel * band.stride + y * band.row..][..width];
            let to = &mut out[(band.y + y) * width..][..width];
            match shift {
                Some(shift) => to.iter_mut().zip(from).for_each(|(to, v)| *to = v + shift),
                None => to.copy_from_slice(from),
            }
        }
    }
}

/// The reverse of [`Planes::phases`] for a band, with `bias` for each channel of the result.
pub(crate) fn write_phases(out: &mut [f32], band: &Band<'_>, geometry: Geometry, bias: &[f32]) {
    let Geometry { height, width, .. } = geometry;
    for (channel, out) in out.chunks_mut(4 * height * width).enumerate() {
        let shift = bias.get(band.first / 4 + channel).copied().unwrap_or(0.0);
        for (y, i) in (0..band.rows).flat_map(|y| [(y, 0), (y, 1)]) {
            let phase = |j| &band.data[(4 * channel + 2 * i + j) * band.stride + y * band.row..];
            let to = &mut out[(2 * (band.y + y) + i) * 2 * width..][..2 * width];
            let pairs = phase(0).iter().zip(phase(1));
            for (to, (left, right)) in to.chunks_exact_mut(2).zip(pairs) {
                to[0] = left + shift;
                to[1] = right + shift;
            }
        }
    }
}
