//! Convolution: the forward sum, which with turned weights is also the gradient of the input, and
//! the gradient of the weights.
//!
//! A task copies a band of rows of all input channels next to each other, with zeros around, and
//! passes all output channels over them. A tile keeps a block of output channels times a few
//! vectors of pixels in registers and walks over input channels and taps. Every sum is formed in an
//! order that the shapes alone decide, so results do not depend on the number of threads.

use super::{
    buffer,
    matrix::Stored,
    planes::{Geometry, Planes},
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Values of the feature map that a task copies: of some inputs at a time they stay in the L2 cache.
const CACHE: usize = 128 << 10;
/// Weights of a block that are used at once: they stay in the L1 cache.
const WEIGHTS: usize = 3 << 10;
/// Sums of several blocks that are formed at once: they stay in the L2 cache.
const SUMS: usize = 32 << 10;
/// Pixels of a channel that a task computes at most before it hands them on: they stay in the L1
/// cache.
const BAND: usize = 768;
/// Pixels of a channel that are worth a task's while.
const LEAST: usize = 96;
/// Tasks that work is cut into, if there is enough of it.
const TASKS: usize = 16;
/// Pixels times outputs of a block over which weight gradients are summed in registers: they stay
/// in the L1 cache.
const CHUNK: usize = 4096;
/// Channels of either side that one task of the weight gradient takes: a chunk of each stays in
/// the L2 cache.
const SIDE: usize = 32;

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
        Packed::in_blocks(block(), [outputs, inputs, taps], at)
    }

    fn in_blocks(
        block: usize,
        [outputs, inputs, taps]: [usize; 3],
        at: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let mut data = vec![T::of(0.0); outputs.div_ceil(block) * inputs * taps * block];
        data.par_chunks_mut(inputs * taps * block)
            .enumerate()
            .for_each(|(index, chunk)| {
                let first = index * block;
                let count = block.min(outputs - first);
                for (input, chunk) in chunk.chunks_exact_mut(taps * block).enumerate() {
                    for (tap, lane) in chunk.chunks_exact_mut(block).enumerate() {
                        for (output, value) in lane[..count].iter_mut().enumerate() {
                            *value = T::of(at(first + output, input, tap));
                        }
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
    /// Distance between the channels of the block in `data`.
    pub stride: usize,
    /// Distance between rows in `data`.
    pub row: usize,
    /// The values: channel after channel.
    pub data: &'a [f32],
}

/// The rows that a task computes: `rows` of them from row `first` of `image` on.
#[derive(Clone, Copy)]
struct Strip {
    image: usize,
    first: usize,
    rows: usize,
}

/// Rows of an image that one task computes, so that what it reads for that of `inputs` channels
/// stays in the cache.
fn band(geometry: Geometry, inputs: usize) -> usize {
    let row = geometry.row();
    let cached = (CACHE / (inputs * row).max(1)).saturating_sub(2 * geometry.pad);
    // Wide enough to fill tiles, narrow enough for one block's results to stay in the L1 cache.
    let (least, most) = (LEAST.div_ceil(row), (BAND / row).max(1));
    cached
        .clamp(least.min(most), most)
        .min(geometry.height)
        .max(1)
}

/// Sums every window of a feature map with `weights` and hands each band of rows to `write`.
///
/// `read(image, channel, y, row)` fills a row of the feature map. `out` holds, for each image, parts
/// of `unit` successive channels; `write` gets the pieces of a band's parts: `unit` times the
/// band's rows times the width each.
pub(crate) fn correlate<T: Stored>(
    geometry: Geometry,
    weights: &Packed<T>,
    read: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
    (out, unit): (&mut [f32], usize),
    write: impl Fn(&mut [&mut [f32]], &Band<'_>) + Sync,
) {
    let Geometry { height, width, .. } = geometry;
    if out.is_empty() {
        return;
    }
    let rows = band(geometry, weights.inputs);
    let bands = height.div_ceil(rows);
    let blocks = weights.outputs.div_ceil(weights.block);
    // With few bands the output channels are cut, too, so that every thread has work.
    let wanted = TASKS.div_ceil(geometry.batch * bands).min(blocks);
    let blocks_of_task = blocks.div_ceil(wanted);
    let parts_of_task = blocks_of_task * weights.block / unit;
    let parts = weights.outputs / unit;
    let groups = parts.div_ceil(parts_of_task);

    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(geometry.batch * bands * groups, Vec::new);
    for (index, part) in out.chunks_mut(unit * height * width).enumerate() {
        let (image, group) = (index / parts, index % parts / parts_of_task);
        for (band, piece) in part.chunks_mut(unit * rows * width).enumerate() {
            tasks[(image * bands + band) * groups + group].push(piece);
        }
    }
    tasks
        .into_par_iter()
        .enumerate()
        .for_each(|(task, mut out)| {
            let first = task / groups % bands * rows;
            let strip = Strip {
                image: task / groups / bands,
                first,
                rows: rows.min(height - first),
            };
            let input = Input::read(geometry, strip, weights.inputs, &read);
            let first_block = task % groups * blocks_of_task;
            let work = Work {
                geometry,
                strip,
                input: &input,
                weights,
            };
            work.run(first_block, &mut out, unit, &write);
        });
}

/// What a task has to do.
struct Work<'a, T> {
    geometry: Geometry,
    strip: Strip,
    input: &'a Input,
    weights: &'a Packed<T>,
}

impl<T: Stored> Work<'_, T> {
    /// All blocks of outputs from `first` on, several at once: with the weights of some inputs in
    /// the L1 cache, these inputs and what the blocks have been summed to in the L2 cache.
    fn run(
        &self,
        first: usize,
        out: &mut [&mut [f32]],
        unit: usize,
        write: impl Fn(&mut [&mut [f32]], &Band<'_>),
    ) {
        let Packed { block, inputs, .. } = *self.weights;
        let stride = self.strip.rows * self.geometry.row() + 64;
        let at_once = (SUMS / (block * stride)).max(1);
        let inputs_at_once = (WEIGHTS / (self.weights.taps * block)).max(1);
        let mut sums = buffer(at_once.min(out.len() * unit / block + 1) * block * stride);
        let mut wide = Vec::new();
        if size_of::<T>() < size_of::<f32>() {
            wide.resize(inputs_at_once * self.weights.taps * block, 0.0);
        }
        for (group, out) in out.chunks_mut(at_once * block / unit).enumerate() {
            let first = first + group * at_once;
            let count = out.chunks(block / unit).len();
            for from in (0..inputs).step_by(inputs_at_once) {
                let part = from..inputs.min(from + inputs_at_once);
                for (block, sums) in (first..first + count).zip(sums.chunks_mut(block * stride)) {
                    self.add(block, part.clone(), (sums, stride), &mut wide);
                }
            }
            let pieces = out
                .chunks_mut(block / unit)
                .zip(sums.chunks(block * stride));
            for (block, (out, sums)) in (first..).zip(pieces) {
                let band = Band {
                    first: block * self.weights.block,
                    stride,
                    row: self.geometry.row(),
                    data: sums,
                };
                write(out, &band);
            }
        }
    }

    /// Adds the part of the inputs `part` to the sums of a block; the first part sets them.
    fn add(
        &self,
        block: usize,
        part: Range<usize>,
        (out, out_stride): (&mut [f32], usize),
        wide: &mut [f32],
    ) {
        let Packed { inputs, taps, .. } = *self.weights;
        let per_input = taps * self.weights.block;
        let from = (block * inputs + part.start) * per_input;
        let weights = &self.weights.data[from..from + part.len() * per_input];
        Arch::new().dispatch(Forward {
            block: self.weights.block,
            x: &self.input.data[part.start * self.input.stride..],
            x_stride: self.input.stride,
            len: self.strip.rows * self.geometry.row() - self.geometry.pad,
            weights: T::widen(weights, wide),
            taps: &self.input.taps,
            out,
            out_stride,
            add: part.start > 0,
        });
    }
}

/// What a strip of rows is computed from: a run of pixels for each channel, with zeros around.
struct Input {
    data: Vec<f32>,
    stride: usize,
    taps: Vec<usize>,
}

impl Input {
    fn read(
        geometry: Geometry,
        strip: Strip,
        channels: usize,
        read: impl Fn(usize, usize, usize, &mut [f32]),
    ) -> Self {
        let (pad, row) = (geometry.pad, geometry.row());
        // Whole vectors are read behind the last pixel. Runs a multiple of a page apart would
        // fight for the same places of the cache.
        let stride = ((strip.rows + 2 * pad) * row + 2 * pad + 64).next_multiple_of(16);
        let stride = if stride.is_multiple_of(256) {
            stride + 16
        } else {
            stride
        };
        let mut data = vec![0.0; channels * stride];
        for (channel, run) in data.chunks_exact_mut(stride).enumerate() {
            for (at, run) in run[pad..]
                .chunks_mut(row)
                .take(strip.rows + 2 * pad)
                .enumerate()
            {
                // Row `at` of the strip is row `first + at - pad` of the image.
                match (strip.first + at).checked_sub(pad) {
                    Some(y) if y < geometry.height => {
                        read(strip.image, channel, y, &mut run[..geometry.width]);
                    }
                    _ => {}
                }
            }
        }
        Input {
            data,
            stride,
            taps: geometry.taps(),
        }
    }
}

/// Whether tiles hold 8 channels, not 4: a constant but in tests, which run both on any processor.
#[inline(always)]
fn tall<S: Simd>(block: usize) -> bool {
    if cfg!(test) {
        block == 8
    } else {
        S::REGISTER_COUNT >= 32
    }
}

/// The forward sum of one block of channels over one run of pixels.
struct Forward<'a> {
    block: usize,
    x: &'a [f32],
    x_stride: usize,
    len: usize,
    weights: &'a [f32],
    taps: &'a [usize],
    out: &'a mut [f32],
    out_stride: usize,
    /// Whether `out` holds the sums over other inputs.
    add: bool,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if tall::<S>(self.block) {
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
            let run = &self.x[input * self.x_stride + at..];
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
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = match self.add {
                    true => simd.add_f32s(*out, *sum),
                    false => *sum,
                };
            }
        }
    }
}

/// The gradient of the weights: for every output of `dy`, input of `x` and tap, the sum over all
/// pixels of `dy` times the pixel of `x` that the tap saw. Shape `[output][input][tap]`.
pub(crate) fn weight_gradient(x: &Planes, dy: &Planes) -> Vec<f32> {
    weight_gradient_in_blocks(block(), x, dy)
}

fn weight_gradient_in_blocks(block: usize, x: &Planes, dy: &Planes) -> Vec<f32> {
    let geometry = x.geometry();
    debug_assert_eq!(geometry, dy.geometry());
    let (inputs, outputs, taps) = (x.channels(), dy.channels(), geometry.taps());
    let span = geometry.span();
    let chunk = CHUNK / block;
    let input_groups = inputs.div_ceil(SIDE);
    let groups = outputs.div_ceil(SIDE) * input_groups;
    // Few channels: cut the pixels too, so that every thread has work. Depends on shapes alone.
    let parts = TASKS.div_ceil(groups).min(span.div_ceil(chunk));
    let part = span.div_ceil(parts).next_multiple_of(chunk);
    let blocks_of = |group: usize| {
        let first = group / input_groups * SIDE;
        (first..outputs.min(first + SIDE)).step_by(block)
    };

    let partial: Vec<Vec<f32>> = (0..groups * parts)
        .into_par_iter()
        .map(|task| {
            let (group, index) = (task / parts, task % parts);
            let first_input = group % input_groups * SIDE;
            let of_block = SIDE.min(inputs - first_input) * taps.len() * block;
            let mut sums = vec![0.0; blocks_of(group).len() * of_block];
            for start in (index * part..((index + 1) * part).min(span)).step_by(chunk) {
                let blocks = blocks_of(group).zip(sums.chunks_exact_mut(of_block));
                for (first_output, sums) in blocks {
                    Arch::new().dispatch(Backward {
                        block,
                        x,
                        dy,
                        first_input,
                        first_output,
                        start,
                        len: chunk.min(span - start),
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
        let group = task / parts;
        let first_input = group % input_groups * SIDE;
        let of_block = SIDE.min(inputs - first_input) * taps.len() * block;
        for (first_output, sums) in blocks_of(group).zip(sums.chunks_exact(of_block)) {
            for (place, lane) in sums.chunks_exact(block).enumerate() {
                let (input, tap) = (first_input + place / taps.len(), place % taps.len());
                for (output, value) in (first_output..outputs).zip(lane) {
                    gradient[(output * inputs + input) * taps.len() + tap] += value;
                }
            }
        }
    }
    gradient
}

/// The weight gradient of one block of outputs and some inputs over one chunk of pixels.
struct Backward<'a> {
    block: usize,
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

/// Adds `bias` to the rows of a band and copies them to `out`, a piece for each channel, without
/// padding.
pub(crate) fn write_rows(out: &mut [&mut [f32]], band: &Band<'_>, width: usize, bias: &[f32]) {
    for (channel, out) in out.iter_mut().enumerate() {
        let shift = bias.get(band.first + channel).copied();
        let rows = band.data[channel * band.stride..].chunks(band.row);
        for (to, from) in out.chunks_exact_mut(width).zip(rows) {
            match shift {
                Some(shift) => to.iter_mut().zip(from).for_each(|(to, v)| *to = v + shift),
                None => to.copy_from_slice(&from[..width]),
            }
        }
    }
}

/// The reverse of [`Planes::phases`] for a band, with `bias` for each channel of the result: a
/// piece of `out` is made of four channels.
pub(crate) fn write_phases(out: &mut [&mut [f32]], band: &Band<'_>, width: usize, bias: &[f32]) {
    for (channel, out) in out.iter_mut().enumerate() {
        let shift = bias.get(band.first / 4 + channel).copied().unwrap_or(0.0);
        for (line, to) in out.chunks_exact_mut(2 * width).enumerate() {
            let (y, i) = (line / 2, line % 2);
            let phase = |j| &band.data[(4 * channel + 2 * i + j) * band.stride + y * band.row..];
            let pairs = phase(0).iter().zip(phase(1));
            for (to, (left, right)) in to.chunks_exact_mut(2).zip(pairs) {
                to[0] = left + shift;
                to[1] = right + shift;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        (0..count).map(value).collect()
    }

    fn assert_close(ours: &[f32], theirs: &[f32]) {
        assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
            assert!((a - b).abs() <= 1e-5 * largest, "{at}: {a}, {b}");
        }
    }

    /// More inputs than are summed at once, more outputs than a block, more than one band.
    #[test]
    fn tiles_of_both_heights_give_the_same() {
        let geometry = Geometry {
            batch: 2,
            height: 21,
            width: 47,
            pad: 1,
        };
        let (inputs, outputs, taps) = (90, 19, 9);
        let (x, w) = (
            values(2 * inputs * 21 * 47),
            values(outputs * inputs * taps),
        );
        let run = |block: usize| {
            let packed = Packed::<f32>::in_blocks(block, [outputs, inputs, taps], |o, i, t| {
                w[(o * inputs + i) * taps + t]
            });
            let read = |image: usize, channel: usize, y: usize, row: &mut [f32]| {
                let start = ((image * inputs + channel) * 21 + y) * 47;
                row.copy_from_slice(&x[start..start + 47]);
            };
            let mut out = vec![0.0; 2 * outputs * 21 * 47];
            correlate(geometry, &packed, read, (&mut out, 1), |out, band| {
                write_rows(out, band, 47, &[]);
            });
            let planes = Planes::new(&x, inputs, geometry);
            let dy = Planes::new(&out, outputs, geometry);
            let gradient = weight_gradient_in_blocks(block, &planes, &dy);
            (out, gradient)
        };
        let (low, tall) = (run(4), run(8));
        assert_close(&tall.0, &low.0);
        assert_close(&tall.1, &low.1);
    }
}
