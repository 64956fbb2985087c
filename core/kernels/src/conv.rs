//! Convolution: the forward sum, which with turned weights is also the gradient of the input.
//!
//! A task copies a strip of all input channels and passes output channels over them. A tile keeps
//! a block of output channels times a few vectors of pixels in registers and walks over input
//! channels and taps. Every sum is formed in an order that the shapes alone decide, so results do
//! not depend on the number of threads. 3×3 windows over many channels go another way:
//! [`super::winograd`].

use super::{
    conv_packed::Packed,
    matrix::Stored,
    strips::{Geometry, Input, Maps, Strip},
    winograd,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Values of the feature map that a task copies: of some inputs at a time they stay in the L2 cache.
const CACHE: usize = 128 << 10;
/// Sums of several blocks that are formed at once: they stay in the L2 cache.
pub(super) const SUMS: usize = 32 << 10;
/// Pixels of a channel that a task computes at most, and at least unless there are fewer.
const PIXELS: [usize; 2] = [96, 2048];
/// Tasks that work is cut into, if there is enough of it.
pub(super) const TASKS: usize = 16;

/// How many output channels a tile holds: what fits the registers of this processor.
pub fn block() -> usize {
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

/// A finished part of the result of [`correlate`], to be written where it belongs.
pub struct Band<'a> {
    /// First output channel of the block.
    pub first: usize,
    /// Distance between the channels of the block in `data`.
    pub stride: usize,
    /// Distance between rows in `data`.
    pub row: usize,
    /// The values: channel after channel.
    pub data: &'a [f32],
}

/// Lines of a strip, so that what is read for them of the inputs that are summed at once, with
/// `runs` runs each, stays in the cache.
pub(super) fn lines<T>(geometry: Geometry, weights: &Packed<T>, runs: usize) -> usize {
    let row = geometry.row();
    let inputs = weights.inputs.min(weights.inputs_at_once());
    let cached = (CACHE / (inputs * runs * row).max(1)).saturating_sub(2 * geometry.pad);
    // Two strips rather than one that two threads share.
    let half = (geometry.batch * geometry.period()).div_ceil(2);
    let [least, most] = PIXELS;
    let least = least.div_ceil(row).min(most / row);
    cached.min(half).clamp(least, (most / row).max(1))
}

/// What a task fills: for each image of its strip, a piece of each of its channels.
pub(super) type Pieces<'a> = Vec<Vec<&'a mut [f32]>>;

/// Sums every window of `x` with `weights` and hands the finished parts to `write`.
///
/// `out` holds, for each image, parts of `unit` successive channels; `write` gets pieces of these
/// parts: `unit` times the rows of a strip times the width each.
pub fn correlate<T: Stored>(
    geometry: Geometry,
    x: Maps<'_>,
    weights: &Packed<T>,
    (out, unit): (&mut [f32], usize),
    write: impl Fn(&mut [&mut [f32]], &Band<'_>) + Sync,
) {
    debug_assert_eq!(x.channels(), weights.inputs);
    if out.is_empty() {
        return;
    }
    if winograd::pays(geometry, weights.inputs, weights.outputs) {
        winograd::correlate(geometry, x, weights, (out, unit), write);
    } else {
        plain(geometry, x, weights, (out, unit), write);
    }
}

/// [`correlate`] with a multiplication for each pixel, tap and pair of channels.
pub(super) fn plain<T: Stored>(
    geometry: Geometry,
    x: Maps<'_>,
    weights: &Packed<T>,
    (out, unit): (&mut [f32], usize),
    write: impl Fn(&mut [&mut [f32]], &Band<'_>) + Sync,
) {
    let fill = |strip: Strip| {
        let mut input = Input::new(geometry, weights.inputs, strip.lines, geometry.pad);
        input.fill(x, 0, strip);
        (input.data, input.stride)
    };
    let lines = lines(geometry, weights, 1);
    sum(
        geometry,
        lines,
        (&geometry.taps(), fill),
        weights,
        (out, unit),
        write,
    );
}

/// [`correlate`] with windows of the offsets `taps`, whose strips of some `lines` are laid out by
/// `fill`: a run for each input, and the distance between them.
pub(super) fn sum<T: Stored>(
    geometry: Geometry,
    lines: usize,
    (taps, fill): (&[usize], impl Fn(Strip) -> (Vec<f32>, usize) + Sync),
    weights: &Packed<T>,
    (out, unit): (&mut [f32], usize),
    write: impl Fn(&mut [&mut [f32]], &Band<'_>) + Sync,
) {
    debug_assert_eq!(taps.len(), weights.taps);
    let strips = geometry.strips(lines);
    // With few strips the output channels are cut, too, so that every thread has work.
    let blocks = weights.outputs.div_ceil(weights.block);
    let groups = TASKS.div_ceil(strips.len()).min(blocks);
    let blocks_of_task = blocks / groups;
    let parts_of_task = blocks_of_task * weights.block / unit;
    let shape = [weights.outputs, unit, parts_of_task];
    let tasks = deal(geometry, &strips, out, shape);
    tasks.into_par_iter().for_each(|(strip, groups)| {
        let (input, stride) = fill(strip);
        let groups = groups.into_par_iter().enumerate();
        groups.for_each(|(group, out)| {
            let work = Work {
                geometry,
                strip,
                input: (&input, stride),
                taps,
                weights,
            };
            work.run(group * blocks_of_task, out, unit, &write);
        });
    });
}

/// Deals `out` to tasks: for each strip, groups of `parts_of_task` parts of `unit` of all `outputs`
/// channels.
pub(super) fn deal<'a>(
    geometry: Geometry,
    strips: &[Strip],
    out: &'a mut [f32],
    [outputs, unit, parts_of_task]: [usize; 3],
) -> Vec<(Strip, Vec<Pieces<'a>>)> {
    let Geometry { height, width, .. } = geometry;
    let groups = (outputs / unit).div_ceil(parts_of_task);
    let mut images = out.chunks_mut(outputs * height * width);
    // What is left of the planes of the present image.
    let mut planes: Vec<&mut [f32]> = Vec::new();
    let tasks = strips.iter().map(|strip| {
        let mut tasks: Vec<Pieces<'a>> = Vec::new();
        tasks.resize_with(groups, Vec::new);
        for (_, rows) in strip.images(geometry) {
            if planes.first().is_none_or(|plane| plane.is_empty()) {
                let image = images.next().unwrap_or_default();
                planes = image.chunks_mut(unit * height * width).collect();
            }
            for (task, planes) in tasks.iter_mut().zip(planes.chunks_mut(parts_of_task)) {
                let cut = |plane: &mut &'a mut [f32]| {
                    let (piece, rest) = std::mem::take(plane).split_at_mut(unit * rows * width);
                    *plane = rest;
                    piece
                };
                task.push(planes.iter_mut().map(cut).collect());
            }
        }
        (*strip, tasks)
    });
    tasks.collect()
}

/// What a task has to do.
struct Work<'a, T> {
    geometry: Geometry,
    strip: Strip,
    /// Runs, and the distance between them.
    input: (&'a [f32], usize),
    taps: &'a [usize],
    weights: &'a Packed<T>,
}

impl<T: Stored> Work<'_, T> {
    /// All blocks of outputs from `first` on, several at once: with the weights of some inputs in
    /// the L1 cache, these inputs and what the blocks have been summed to in the L2 cache.
    fn run(
        &self,
        first: usize,
        mut out: Pieces<'_>,
        unit: usize,
        write: impl Fn(&mut [&mut [f32]], &Band<'_>),
    ) {
        let Packed {
            block,
            inputs,
            taps,
            ..
        } = *self.weights;
        let row = self.geometry.row();
        let stride = self.strip.lines * row + 64;
        let per_block = block / unit;
        let blocks = out
            .first()
            .map_or(0, |parts| parts.len().div_ceil(per_block));
        let at_once = (SUMS / (block * stride)).clamp(1, blocks.max(1));
        let inputs_at_once = self.weights.inputs_at_once();
        let mut sums = vec![0.0; at_once * block * stride];
        let mut wide = Vec::new();
        if size_of::<T>() < size_of::<f32>() {
            wide.resize(inputs_at_once * taps * block, 0.0);
        }
        for done in (0..blocks).step_by(at_once) {
            let now = done..blocks.min(done + at_once);
            for from in (0..inputs).step_by(inputs_at_once) {
                let part = from..inputs.min(from + inputs_at_once);
                for (at, sums) in now.clone().zip(sums.chunks_mut(block * stride)) {
                    self.add(first + at, part.clone(), (sums, stride), &mut wide);
                }
            }
            for (parts, (line, _)) in out.iter_mut().zip(self.strip.images(self.geometry)) {
                let pieces = parts.chunks_mut(per_block).skip(done);
                for ((at, sums), pieces) in now.clone().zip(sums.chunks(block * stride)).zip(pieces)
                {
                    let band = Band {
                        first: (first + at) * block,
                        stride,
                        row,
                        data: &sums[line * row..],
                    };
                    write(pieces, &band);
                }
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
            x: &self.input.0[part.start * self.input.1..],
            x_stride: self.input.1,
            len: self.strip.lines * self.geometry.row() - self.geometry.margin,
            weights: T::widen(weights, wide),
            taps: self.taps,
            out,
            out_stride,
            add: part.start > 0,
        });
    }
}

/// Whether tiles hold 8 channels, not 4: a constant but in tests, which run both on any processor.
#[inline(always)]
pub(super) fn tall<S: Simd>(block: usize) -> bool {
    if cfg!(test) {
        block == 8
    } else {
        S::REGISTER_COUNT >= 32
    }
}

/// The forward sum of one block of channels over one run of pixels.
pub(super) struct Forward<'a> {
    pub block: usize,
    pub x: &'a [f32],
    pub x_stride: usize,
    pub len: usize,
    pub weights: &'a [f32],
    pub taps: &'a [usize],
    pub out: &'a mut [f32],
    pub out_stride: usize,
    /// Whether `out` holds the sums over other inputs.
    pub add: bool,
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
                // Rather than three and one, which would wait for its own sums.
                4 => {
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

/// Adds `bias` to the rows of a band and copies them to `out`, a piece for each channel, without
/// padding.
pub fn write_rows(out: &mut [&mut [f32]], band: &Band<'_>, width: usize, bias: &[f32]) {
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

/// The reverse of [`Maps::phases`] for a band, with `bias` for each channel of the result: a
/// piece of `out` is made of four channels.
pub fn write_phases(out: &mut [&mut [f32]], band: &Band<'_>, width: usize, bias: &[f32]) {
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
