//! Convolution of f32 feature maps with bf16 weights, with as many zeros around as keep the size.
//!
//! The maps are rounded once, two channels woven into one run of pairs, in the padded layout of
//! [`strips`](crate::strips): a tap is a shift by whole pairs there. A tile keeps a block of output
//! channels times a few vectors of pixels in registers. The order of a sum is decided by the number
//! of channels alone.

use super::{LANES, Pair, Shared, load, of_pair, pair, splat, woven};
use crate::{
    conv_packed::Packed,
    strips::{Geometry, Strip},
};
use rayon::prelude::*;
use std::{arch::x86_64::*, mem::MaybeUninit};

/// Output channels of a tile: with three vectors each, their sums fill 24 of 32 registers.
const BLOCK: usize = 8;
/// Weights that a strip of pixels passes at once: they stay in the L1 cache.
const WEIGHTS: usize = 2 << 10;
/// Pixels of a strip: their sums stay in the L2 cache.
const PIXELS: usize = 4 << 10;
/// Zeros behind the last pixel, so that whole vectors may be read there.
const SLACK: usize = 4 * LANES;
/// Tasks that work is cut into, if there is enough of it.
const TASKS: usize = 16;

/// bf16 weights, packed for [`Paired::convolve`].
pub struct Paired {
    /// `[block of outputs][pair of inputs][tap][output]`.
    words: Vec<Pair>,
    inputs: usize,
    outputs: usize,
    taps: usize,
}

impl Paired {
    /// Packs the weights `at(output, input, tap)`, rounded to bf16, if this processor has the
    /// instruction.
    pub fn new(
        [outputs, inputs, taps]: [usize; 3],
        at: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Option<Self> {
        super::present().then(|| {
            let size = inputs.div_ceil(2) * taps * BLOCK;
            let mut words = vec![0; outputs.div_ceil(BLOCK) * size];
            let blocks = words.par_chunks_mut(size.max(1)).enumerate();
            blocks.for_each(|(block, words)| {
                for (place, word) in words.iter_mut().enumerate() {
                    let output = block * BLOCK + place % BLOCK;
                    let (tap, input) = (place / BLOCK % taps, place / BLOCK / taps * 2);
                    if output < outputs {
                        let second = input + 1 < inputs;
                        let second = second.then(|| at(output, input + 1, tap));
                        *word = pair(at(output, input, tap), second.unwrap_or(0.0));
                    }
                }
            });
            Paired {
                words,
                inputs,
                outputs,
                taps,
            }
        })
    }

    /// Number of input channels.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of output channels.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// In f32, the weights with which the gradient of the input is a convolution of the result's
    /// gradient: inputs and outputs exchanged, the window turned by 180 degrees.
    pub fn turned(&self) -> Packed<f32> {
        let pairs = self.inputs.div_ceil(2);
        let mut plain = Vec::with_capacity(self.outputs * self.inputs * self.taps);
        for output in 0..self.outputs {
            for input in 0..self.inputs {
                let place = (output / BLOCK * pairs + input / 2) * self.taps;
                plain.extend((place..place + self.taps).map(|place| {
                    let word = self.words[place * BLOCK + output % BLOCK];
                    of_pair(word, input % 2 == 1)
                }));
            }
        }
        Packed::turned([self.inputs, self.outputs, self.taps], &plain)
    }

    /// Convolves `x`, rounded to bf16, and adds `bias` (empty, or a value for each output).
    /// `geometry` is that of `x`, with the zeros that the weights' window needs.
    pub fn convolve(&self, x: &[f32], geometry: Geometry, bias: &[f32]) -> Vec<f32> {
        let Geometry {
            batch,
            height,
            width,
            ..
        } = geometry;
        let area = height * width;
        assert_eq!(x.len(), batch * self.inputs * area);
        assert_eq!((2 * geometry.pad + 1).pow(2), self.taps);
        assert!(bias.is_empty() || bias.len() == self.outputs);
        let size = batch * self.outputs * area;
        if size == 0 {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(size);
        let work = Work {
            weights: self,
            maps: &Maps::new(x, self.inputs, geometry),
            bias,
            out: Shared(out.as_mut_ptr()),
        };
        work.run();
        // SAFETY: the tasks, which cover all rows of all channels, write every element.
        #[allow(unsafe_code)]
        unsafe {
            out.set_len(size);
        }
        out
    }
}

/// Feature maps in bf16: for each strip and each pair of channels a run of pixels.
struct Maps {
    geometry: Geometry,
    strips: Vec<Strip>,
    /// Runs of a strip.
    runs: usize,
    /// From one run to the next.
    stride: usize,
    words: Box<[Pair]>,
}

impl Maps {
    fn new(x: &[f32], channels: usize, geometry: Geometry) -> Self {
        let (row, pad) = (geometry.row(), geometry.pad);
        // Strips of one height, if they are parts of an image.
        let most = (PIXELS / row).max(1);
        let lines = match geometry.height.div_ceil(most) {
            1 => most,
            parts => geometry.height.div_ceil(parts),
        };
        let strips = geometry.strips(lines);
        let lines = strips.iter().map(|strip| strip.lines).max().unwrap_or(0);
        // Runs a multiple of a page apart would fight for the same places of the cache.
        let stride = ((lines + 2 * pad) * row + 2 * pad + SLACK).next_multiple_of(LANES);
        let stride = stride + LANES * usize::from(stride.is_multiple_of(256));
        let runs = channels.div_ceil(2);
        let mut words = Box::new_uninit_slice(strips.len() * runs * stride);
        words
            .par_chunks_exact_mut(stride)
            .with_min_len(4)
            .enumerate()
            .for_each(|(at, run)| {
                run.fill(MaybeUninit::new(0));
                fill(
                    run,
                    x,
                    (channels, at % runs * 2),
                    geometry,
                    strips[at / runs],
                );
            });
        // SAFETY: all runs have been filled.
        #[allow(unsafe_code)]
        let words = unsafe { words.assume_init() };
        Maps {
            geometry,
            strips,
            runs,
            stride,
            words,
        }
    }
}

/// Weaves the channels `first` and `first + 1` of a strip into `run`, which holds zeros.
fn fill(
    run: &mut [MaybeUninit<Pair>],
    x: &[f32],
    (channels, first): (usize, usize),
    geometry: Geometry,
    strip: Strip,
) {
    let Geometry {
        height, width, pad, ..
    } = geometry;
    let (row, area) = (geometry.row(), height * width);
    let zeros = vec![0.0; width];
    let lines = run[pad..].chunks_mut(row).take(strip.lines + 2 * pad);
    for (at, to) in lines.enumerate() {
        // Counted from the first row of the strip's first image.
        let Some(line) = (strip.line + at).checked_sub(pad) else {
            continue;
        };
        let (image, y) = (strip.image + line / (height + pad), line % (height + pad));
        if image >= geometry.batch || y >= height {
            continue;
        }
        let read = |channel: usize| match channel < channels {
            true => &x[(image * channels + channel) * area + y * width..][..width],
            false => &zeros[..],
        };
        // SAFETY: a `Paired` exists, so the processor has the instructions.
        #[allow(unsafe_code)]
        unsafe {
            woven(read(first), read(first + 1), &mut to[..width]);
        }
    }
}

struct Work<'a> {
    weights: &'a Paired,
    maps: &'a Maps,
    bias: &'a [f32],
    /// `[batch, outputs, height, width]`.
    out: Shared,
}

impl Work<'_> {
    fn run(&self) {
        let strips = self.maps.strips.len();
        let blocks = self.weights.outputs.div_ceil(BLOCK);
        // With few strips the output channels are cut, too, so that every thread has work.
        let blocks_of_task = blocks.div_ceil(TASKS.div_ceil(strips).min(blocks));
        let groups = blocks.div_ceil(blocks_of_task);
        let tasks = (0..strips * groups).into_par_iter().with_max_len(1);
        tasks.for_each_init(Vec::new, |sums, task| {
            let (strip, first) = (task / groups, task % groups * blocks_of_task);
            for block in first..blocks.min(first + blocks_of_task) {
                // SAFETY: a `Paired` exists, so the processor has the instructions. No other task
                // has this strip and block.
                #[allow(unsafe_code)]
                unsafe {
                    let stride = self.sum(strip, block, sums);
                    self.write(self.maps.strips[strip], block, (sums, stride));
                }
            }
        });
    }

    /// Sums all windows of a strip for a block of outputs; `sums` gets a run for each output.
    /// Returns from where to where they are apart.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn sum(&self, strip: usize, block: usize, sums: &mut Vec<f32>) -> usize {
        let Maps {
            geometry,
            runs,
            stride,
            ..
        } = *self.maps;
        let length = self.maps.strips[strip].lines * geometry.row() - geometry.pad;
        let out_stride = length.next_multiple_of(LANES);
        sums.resize((BLOCK * out_stride).max(sums.len()), 0.0);
        let (taps, per_run) = (geometry.taps(), self.weights.taps * BLOCK);
        let weights = &self.weights.words[block * runs * per_run..][..runs * per_run];
        let maps = &self.maps.words[strip * runs * stride..][..runs * stride];
        let at_once = (WEIGHTS / per_run).max(1);
        let parts = weights.chunks(at_once * per_run);
        for (part, (weights, maps)) in parts.zip(maps.chunks(at_once * stride)).enumerate() {
            let mut tile = Tile {
                weights,
                maps,
                stride,
                taps: &taps,
                out: sums,
                out_stride,
                add: part > 0,
            };
            let mut at = 0;
            while at < length {
                match (length - at).div_ceil(LANES) {
                    1 => at += tile.sum::<1>(at),
                    2 | 4 => at += tile.sum::<2>(at),
                    _ => at += tile.sum::<3>(at),
                }
            }
        }
        out_stride
    }

    /// Writes the sums of a strip for a block of outputs to where they belong.
    ///
    /// # Safety
    /// Nobody else may touch these rows of the result meanwhile.
    #[allow(unsafe_code)]
    unsafe fn write(&self, strip: Strip, block: usize, (sums, stride): (&[f32], usize)) {
        let geometry = self.maps.geometry;
        let Geometry { height, width, .. } = geometry;
        let outputs = self.weights.outputs;
        for (index, (line, rows)) in strip.images(geometry).enumerate() {
            let first = if index == 0 { strip.line } else { 0 };
            for channel in block * BLOCK..outputs.min((block + 1) * BLOCK) {
                let start = ((strip.image + index) * outputs + channel) * height + first;
                // SAFETY: the strip's rows of this channel, which only the caller touches.
                let out = unsafe { self.out.0.add(start * width) };
                let bias = self.bias.get(channel).copied().unwrap_or(0.0);
                let from = &sums[channel % BLOCK * stride + line * geometry.row()..];
                for (y, from) in from.chunks(geometry.row()).take(rows).enumerate() {
                    for (x, value) in from[..width].iter().enumerate() {
                        // SAFETY: row y of them.
                        unsafe { out.add(y * width + x).write(value + bias) };
                    }
                }
            }
        }
    }
}

/// Some inputs of a block of outputs over a strip.
struct Tile<'a> {
    weights: &'a [Pair],
    maps: &'a [Pair],
    stride: usize,
    taps: &'a [usize],
    out: &'a mut [f32],
    out_stride: usize,
    /// Whether `out` holds the sums over other inputs.
    add: bool,
}

impl Tile<'_> {
    /// V vectors of pixels from the `at`-th on. Returns how many that are.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn sum<const V: usize>(&mut self, at: usize) -> usize {
        let mut sums = [[_mm512_setzero_ps(); V]; BLOCK];
        let runs = self.maps.chunks_exact(self.stride);
        let weights = self.weights.as_chunks::<BLOCK>().0;
        for (run, weights) in runs.zip(weights.chunks_exact(self.taps.len())) {
            let run = &run[at..];
            for (&tap, weights) in self.taps.iter().zip(weights) {
                if at == 0 {
                    // The weights behind these: the processor does not guess in time that they
                    // are next.
                    let next = weights.as_ptr().wrapping_add(self.weights.len());
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                }
                let from = run[tap..tap + V * LANES].as_ptr();
                let mut pixels = [splat(0); V];
                for (v, pixels) in pixels.iter_mut().enumerate() {
                    // SAFETY: within the slice of V vectors.
                    #[allow(unsafe_code)]
                    unsafe {
                        *pixels = load(from.add(v * LANES));
                    }
                }
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    let weight = splat(*weight);
                    for v in 0..V {
                        sums[v] = _mm512_dpbf16_ps(sums[v], weight, pixels[v]);
                    }
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let out = &mut self.out[m * self.out_stride + at..][..V * LANES];
            for (to, sum) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                // SAFETY: an array of a vector's length.
                #[allow(unsafe_code)]
                unsafe {
                    let before = match self.add {
                        true => _mm512_loadu_ps(to.as_ptr()),
                        false => _mm512_setzero_ps(),
                    };
                    _mm512_storeu_ps(to.as_mut_ptr(), _mm512_add_ps(before, sum));
                }
            }
        }
        V * LANES
    }
}
