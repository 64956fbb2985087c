//! The gradient of a 3×3 convolution's weights, as the transpose of what [`super::winograd`] does
//! to them: for each of the 16 places a product of matrices, summed over tiles.

use super::{
    conv::{TASKS, tall},
    conv_weights::tap_sums,
    strips::{Geometry, Maps, Strip},
    winograd::{PLACES, Tiles, lines},
    winograd_maps::Side,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Values of both sides' transformed strips, about: large, for their sums over tiles end in sums
/// over the lanes of a vector, yet of one place they stay in the L2 cache.
const VALUES: usize = 1 << 20;
/// Tiles of a strip at least and at most.
const TILES: [usize; 2] = [512, 1024];
/// Sums of all parts that are kept, about.
const SUMS: usize = 1 << 22;
/// Inputs whose sums are formed at once.
const INPUTS: usize = 3;

/// What [`super::conv_weights::weight_gradient`] does, for 3×3 windows.
pub(super) fn weight_gradient(
    block: usize,
    geometry: Geometry,
    x: Maps<'_>,
    dy: Maps<'_>,
) -> Vec<f32> {
    let (inputs, outputs) = (x.channels(), dy.channels());
    let [least, most] = TILES;
    let tiles = VALUES / (PLACES * (inputs + outputs));
    let strips = geometry.strips(lines(geometry, tiles.clamp(least, most)));
    let size = Sums::new(block, inputs, outputs).size();
    // Depends on shapes alone.
    let parts = (SUMS / size).clamp(1, TASKS);
    let partial: Vec<Vec<f32>> = strips
        .par_chunks(strips.len().div_ceil(parts).max(1))
        .map(|strips| {
            let mut sums = Sums::new(block, inputs, outputs);
            sums.data = vec![0.0; size];
            let mut rooms = [Vec::new(), Vec::new()];
            for strip in strips {
                sums.add(geometry, *strip, [x, dy], &mut rooms);
            }
            sums.data
        })
        .collect();

    let mut gradient = vec![0.0; outputs * inputs * 9];
    let blocks = gradient.par_chunks_mut(block * inputs * 9).enumerate();
    blocks.for_each(|(at, gradient)| {
        for (input, output) in (0..inputs).flat_map(|i| (0..block).map(move |o| (i, o))) {
            let start = (output * inputs + input) * 9;
            // A last block that is not full has no more.
            let Some(to) = gradient.get_mut(start..start + 9) else {
                continue;
            };
            let mut places = [0.0; PLACES];
            for sums in &partial {
                let of_place = sums.chunks_exact(size / PLACES);
                for (sum, values) in places.iter_mut().zip(of_place) {
                    *sum += values[(at * inputs.next_multiple_of(INPUTS) + input) * block + output];
                }
            }
            to.copy_from_slice(&weights(&places));
        }
    });
    gradient
}

/// The transpose of the transform of the weights.
fn weights(places: &[f32; PLACES]) -> [f32; 9] {
    let map = |[a, b, c, d]: [f32; 4]| {
        let (sum, difference) = (0.5 * (b + c), 0.5 * (b - c));
        [a + sum, difference, sum + d]
    };
    let rows = places.as_chunks::<4>().0;
    let rows = [map(rows[0]), map(rows[1]), map(rows[2]), map(rows[3])];
    let column = |c: usize| map([rows[0][c], rows[1][c], rows[2][c], rows[3][c]]);
    let columns = [column(0), column(1), column(2)];
    std::array::from_fn(|tap| columns[tap % 3][tap / 3])
}

/// Sums over tiles: `[place][block of outputs][input][output of the block]`.
struct Sums {
    data: Vec<f32>,
    block: usize,
    inputs: usize,
    outputs: usize,
}

impl Sums {
    fn new(block: usize, inputs: usize, outputs: usize) -> Self {
        Sums {
            data: Vec::new(),
            block,
            inputs,
            outputs,
        }
    }

    fn of_block(&self) -> usize {
        self.inputs.next_multiple_of(INPUTS) * self.block
    }

    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.block)
    }

    fn size(&self) -> usize {
        PLACES * self.blocks() * self.of_block()
    }

    /// Adds the tiles of a strip.
    fn add(
        &mut self,
        geometry: Geometry,
        strip: Strip,
        [x, dy]: [Maps<'_>; 2],
        [pixels, slopes]: &mut [Vec<f32>; 2],
    ) {
        let tiles = Tiles::new(geometry, strip);
        rayon::join(
            || tiles.transform(x, Side::Input, pixels),
            || tiles.transform(dy, Side::Result, slopes),
        );
        let (block, blocks, of_block) = (self.block, self.blocks(), self.of_block());
        let (inputs, outputs) = (self.inputs, self.outputs);
        let sums = self.data.par_chunks_exact_mut(of_block).enumerate();
        // A place at a time, as long as there are enough of them.
        sums.with_min_len(blocks.min(16)).for_each(|(at, sums)| {
            let start = at / blocks * tiles.stride;
            Arch::new().dispatch(Products {
                block,
                pixels: &pixels[start..],
                slopes: &slopes[start..],
                stride: tiles.per_channel(),
                count: tiles.count,
                inputs,
                first: at % blocks * block,
                outputs,
                sums,
            });
        });
    }
}

/// The products of one place of a block of outputs with all inputs.
struct Products<'a> {
    block: usize,
    pixels: &'a [f32],
    slopes: &'a [f32],
    /// Distance between channels.
    stride: usize,
    /// Number of tiles.
    count: usize,
    inputs: usize,
    /// First output of the block, of so many that there are.
    first: usize,
    outputs: usize,
    /// `[input][output of the block]`, added to.
    sums: &'a mut [f32],
}

impl WithSimd for Products<'_> {
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

impl Products<'_> {
    #[inline(always)]
    fn run<S: Simd, const M: usize>(self, simd: S) {
        // Behind the last tile there are zeros, so whole vectors are summed.
        let len = self.count.next_multiple_of(S::F32_LANES);
        let rows: [&[S::f32s]; M] = std::array::from_fn(|m| {
            // What is not full repeats the last channel; nobody reads the result.
            let output = (self.first + m).min(self.outputs - 1);
            S::as_simd_f32s(&self.slopes[output * self.stride..][..len]).0
        });
        for (at, sums) in self.sums.chunks_exact_mut(INPUTS * M).enumerate() {
            let runs: [usize; INPUTS] =
                std::array::from_fn(|i| (INPUTS * at + i).min(self.inputs - 1) * self.stride);
            tap_sums::<S, M, INPUTS>(simd, &rows, self.pixels, len, &runs, sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv_weights::{
        in_blocks,
        tests::{assert_close, values},
    };

    /// Odd sides, several strips and parts, blocks and threes of inputs that are not full.
    #[test]
    fn it_agrees_with_the_plain_sum() {
        for [batch, inputs, outputs, height, width] in
            [[2, 20, 19, 61, 47], [7, 16, 33, 9, 8], [1, 17, 16, 3, 701]]
        {
            let geometry = Geometry {
                batch,
                height,
                width,
                pad: 1,
                margin: 1,
            };
            let x = values(batch * inputs * height * width);
            let mut dy = values(batch * outputs * height * width + 5);
            dy.drain(..5);
            let (x, dy) = (Maps::new(&x, inputs), Maps::new(&dy, outputs));
            for block in [4, 8] {
                let ours = weight_gradient(block, geometry, x, dy);
                assert_close(&ours, &in_blocks(block, geometry, x, dy));
            }
        }
    }
}
