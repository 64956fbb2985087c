//! 3×3 convolution with 16 multiplications where the plain sum takes 36, after Winograd
//! (Lavin and Gray, arXiv 1509.09308, F(2×2, 3×3)).
//!
//! A tile of 2×2 results is a linear map of the product, place by place, of two 4×4 matrices: one
//! made of the 4×4 pixels that the tile sees, one of the 9 weights. Summing over input channels
//! between the two maps leaves, for each of the 16 places, a product of matrices. A task takes a
//! strip of tiles; a vector holds successive ones. The maps add and halve, so results are as exact
//! as plain sums to a bit or two.

use super::{
    conv::{Band, Forward, Pieces, SUMS, TASKS, deal},
    conv_packed::Packed,
    matrix::Stored,
    strips::{Geometry, Maps, Strip},
    winograd_maps::{Pixels, Results, Side, Weights},
};
use pulp::Arch;
use rayon::prelude::*;

/// Places of a transformed tile.
pub(super) const PLACES: usize = 16;
/// Tiles of a strip, about.
const TILES: usize = 128;
/// Inputs that are summed at once: of a few tiles they stay in the L1 cache.
const INPUTS: usize = 64;
/// Channels on either side, below which the maps cost more than they save.
const CHANNELS: usize = 16;
/// Pixels of an image, below which too few tiles share a transformed weight.
const PIXELS: usize = 64;
/// Room behind a row for whole vectors.
pub(super) const SLACK: usize = 16;

/// Whether this is the faster way: depends neither on the batch nor on the processor.
pub(super) fn pays(geometry: Geometry, inputs: usize, outputs: usize) -> bool {
    let Geometry { height, width, .. } = geometry;
    let large = height * width >= PIXELS && height > 1 && width > 1;
    geometry.pad == 1 && large && inputs.min(outputs) >= CHANNELS
}

/// What [`super::conv::correlate`] does, for 3×3 windows.
pub(super) fn correlate<T: Stored>(
    geometry: Geometry,
    x: Maps<'_>,
    weights: &Packed<T>,
    (out, unit): (&mut [f32], usize),
    write: impl Fn(&mut [&mut [f32]], &Band<'_>) + Sync,
) {
    let strips = geometry.strips(lines(geometry, TILES));
    let blocks = weights.outputs.div_ceil(weights.block);
    let groups = TASKS.div_ceil(strips.len()).min(blocks);
    let blocks_of_task = blocks / groups;
    let parts_of_task = blocks_of_task * weights.block / unit;
    let shape = [weights.outputs, unit, parts_of_task];
    let tasks = deal(geometry, &strips, out, shape);
    let room = || (Vec::new(), Scratch::default());
    let tasks = tasks.into_par_iter();
    tasks.for_each_init(room, |(room, scratch), (strip, mut groups)| {
        let tiles = Tiles::new(geometry, strip);
        tiles.transform(x, Side::Input, room);
        let work = Work {
            tiles: &tiles,
            input: room,
            weights,
        };
        if groups.len() == 1 {
            let out = groups.remove(0);
            return work.run(0, (out, unit), scratch, &write);
        }
        let groups = groups.into_par_iter().enumerate();
        groups.for_each_init(Scratch::default, |scratch, (group, out)| {
            work.run(group * blocks_of_task, (out, unit), scratch, &write);
        });
    });
}

/// Lines of a strip of about so many tiles: whole images, or an even part of one.
pub(super) fn lines(geometry: Geometry, tiles: usize) -> usize {
    let Geometry { height, width, .. } = geometry;
    let across = width.div_ceil(2);
    let of_image = height.div_ceil(2) * across;
    match tiles / of_image {
        0 => 2 * (tiles / across).max(1),
        images => images * (height + geometry.pad) - geometry.pad,
    }
}

/// How the tiles of a strip lie in memory: one row of tiles behind the other.
pub(super) struct Tiles {
    pub geometry: Geometry,
    strip: Strip,
    /// Tiles in a row.
    pub across: usize,
    /// Distance between the places of a channel: the number of tiles, and some slack.
    pub stride: usize,
    /// Number of tiles.
    pub count: usize,
}

impl Tiles {
    pub fn new(geometry: Geometry, strip: Strip) -> Self {
        let across = geometry.width.div_ceil(2);
        let images = strip.images(geometry);
        let rows: usize = images.map(|(_, rows)| rows.div_ceil(2)).sum();
        let count = rows * across;
        Tiles {
            geometry,
            strip,
            across,
            stride: count.next_multiple_of(SLACK) + SLACK,
            count,
        }
    }

    /// Distance between channels of the transformed input. Not a power of two, so that they do
    /// not fight for the same places of the cache.
    pub fn per_channel(&self) -> usize {
        PLACES * self.stride + SLACK
    }

    /// Transforms all channels of `maps`: `[channel][place][tile]`, zeros behind the last tile.
    pub fn transform(&self, maps: Maps<'_>, side: Side, room: &mut Vec<f32>) {
        room.resize(maps.channels() * self.per_channel(), 0.0);
        let channels = room.par_chunks_exact_mut(self.per_channel()).enumerate();
        // One alone is little work.
        let channels = channels.with_min_len(8);
        channels.for_each_init(Vec::new, |phases, (channel, to)| {
            let mut first = 0;
            for (at, (_, rows)) in self.strip.images(self.geometry).enumerate() {
                let rows = rows.div_ceil(2);
                Arch::new().dispatch(Pixels {
                    tiles: self,
                    maps,
                    side,
                    image: self.strip.image + at,
                    channel,
                    top: if at == 0 { self.strip.line } else { 0 },
                    rows,
                    phases: &mut *phases,
                    to: &mut to[first..],
                });
                first += rows * self.across;
            }
            for place in to[..PLACES * self.stride].chunks_exact_mut(self.stride) {
                place[self.count..].fill(0.0);
            }
        });
    }
}

/// What a task writes before it reads it.
#[derive(Default)]
struct Scratch {
    wide: Vec<f32>,
    weights: Vec<f32>,
    sums: Vec<f32>,
    band: Vec<f32>,
}

/// What a task has to do.
struct Work<'a, T> {
    tiles: &'a Tiles,
    /// `[channel][place][tile]`.
    input: &'a [f32],
    weights: &'a Packed<T>,
}

impl<T: Stored> Work<'_, T> {
    /// All blocks of outputs from `first` on, several at once: their sums stay in the L2 cache
    /// while the inputs pass by.
    fn run(
        &self,
        first: usize,
        (mut out, unit): (Pieces<'_>, usize),
        scratch: &mut Scratch,
        write: impl Fn(&mut [&mut [f32]], &Band<'_>),
    ) {
        let Packed { block, inputs, .. } = *self.weights;
        let per_block = block / unit;
        let blocks = out
            .first()
            .map_or(0, |parts| parts.len().div_ceil(per_block));
        let of_block = PLACES * block * self.tiles.stride;
        // Sums over all inputs at once need not be kept.
        let parts = match inputs <= INPUTS {
            true => blocks,
            false => (blocks * of_block).div_ceil(4 * SUMS),
        };
        let at_once = blocks.div_ceil(parts.max(1)).max(1);
        scratch.sums.resize(at_once * of_block, 0.0);
        for done in (0..blocks).step_by(at_once) {
            let now = done..blocks.min(done + at_once);
            for from in (0..inputs).step_by(INPUTS) {
                let part = from..inputs.min(from + INPUTS);
                for at in now.clone() {
                    self.transform_weights(first + at, part.clone(), scratch);
                    let sums = &mut scratch.sums[(at - done) * of_block..][..of_block];
                    self.add(part.clone(), &scratch.weights, sums);
                }
            }
            for at in now.clone() {
                let sums = &scratch.sums[(at - done) * of_block..][..of_block];
                self.finish(first + at, sums, &mut scratch.band, |image, band| {
                    let pieces = &mut out[image][at * per_block..];
                    let count = per_block.min(pieces.len());
                    write(&mut pieces[..count], band);
                });
            }
        }
    }

    /// `[place][input][output of the block]`.
    fn transform_weights(&self, block: usize, part: std::ops::Range<usize>, scratch: &mut Scratch) {
        let per_input = 9 * self.weights.block;
        let from = (block * self.weights.inputs + part.start) * per_input;
        let weights = &self.weights.data[from..from + part.len() * per_input];
        scratch.wide.resize(INPUTS * per_input, 0.0);
        let size = PLACES * part.len() * self.weights.block;
        scratch.weights.resize(size, 0.0);
        Arch::new().dispatch(Weights {
            block: self.weights.block,
            from: T::widen(weights, &mut scratch.wide),
            to: &mut scratch.weights,
        });
    }

    /// Adds the part of the inputs `part` to the sums of a block; the first part sets them.
    fn add(&self, part: std::ops::Range<usize>, weights: &[f32], sums: &mut [f32]) {
        let (block, stride) = (self.weights.block, self.tiles.stride);
        let x_stride = self.tiles.per_channel();
        let weights = weights.chunks_exact(part.len() * block);
        let sums = sums.chunks_exact_mut(block * stride);
        for (place, (weights, out)) in weights.zip(sums).enumerate() {
            Arch::new().dispatch(Forward {
                block,
                x: &self.input[part.start * x_stride + place * stride..],
                x_stride,
                len: self.tiles.count,
                weights,
                taps: &[0],
                out,
                out_stride: stride,
                add: part.start > 0,
            });
        }
    }

    /// Turns the sums of a block into pixels and hands them to `write`, image by image.
    fn finish(
        &self,
        block: usize,
        sums: &[f32],
        band: &mut Vec<f32>,
        mut write: impl FnMut(usize, &Band<'_>),
    ) {
        let Tiles { across, stride, .. } = *self.tiles;
        let channels = self.weights.block;
        let row = 2 * across;
        let of_channel = 4 * stride;
        band.resize(channels * (of_channel + 4 * stride), 0.0);
        let (phases, band) = band.split_at_mut(channels * 4 * stride);
        Arch::new().dispatch(Results {
            channels,
            tiles: self.tiles,
            sums,
            phases,
            band,
        });
        let mut line = 0;
        let images = self.tiles.strip.images(self.tiles.geometry);
        for (image, (_, rows)) in images.enumerate() {
            let band = Band {
                first: block * channels,
                stride: of_channel,
                row,
                data: &band[line * row..],
            };
            write(image, &band);
            line += rows.next_multiple_of(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conv::{plain, write_rows},
        conv_weights::tests::{assert_close, values},
    };

    /// Odd sides, strips of parts of an image and of several, blocks that are not full, more inputs
    /// than are used at once.
    const SHAPES: [[usize; 5]; 4] = [
        // batch, inputs, outputs, height, width
        [2, 90, 19, 61, 47],
        [7, 16, 33, 9, 8],
        [1, 17, 16, 6, 301],
        [3, 65, 20, 2, 32],
    ];

    fn geometry([batch, _, _, height, width]: [usize; 5]) -> Geometry {
        Geometry {
            batch,
            height,
            width,
            pad: 1,
            margin: 1,
        }
    }

    #[test]
    fn it_agrees_with_the_plain_sum() {
        for shape in SHAPES {
            let (geometry, [batch, inputs, outputs, height, width]) = (geometry(shape), shape);
            assert!(pays(geometry, inputs, outputs));
            let x = values(batch * inputs * height * width);
            let w = values(outputs * inputs * 9);
            for block in [4, 8] {
                let packed = Packed::<f32>::in_blocks(block, [outputs, inputs, 9], &w);
                let run = |fast: bool| {
                    let mut out = vec![0.0; batch * outputs * height * width];
                    let (x, to) = (Maps::new(&x, inputs), (&mut out[..], 1));
                    let write = |out: &mut [&mut [f32]], band: &Band<'_>| {
                        write_rows(out, band, width, &w);
                    };
                    match fast {
                        true => correlate(geometry, x, &packed, to, write),
                        false => plain(geometry, x, &packed, to, write),
                    }
                    out
                };
                assert_close(&run(true), &run(false));
            }
        }
    }

    #[test]
    fn an_image_does_not_depend_on_its_neighbours() {
        let (inputs, outputs, area) = (16, 16, 9 * 8);
        let shape = [5, inputs, outputs, 9, 8];
        let x = values(5 * inputs * area);
        let packed = Packed::<f32>::new([outputs, inputs, 9], &values(outputs * inputs * 9));
        let run = |batch: usize, x: &[f32]| {
            let mut out = vec![0.0; batch * outputs * area];
            let geometry = Geometry {
                batch,
                ..geometry(shape)
            };
            correlate(
                geometry,
                Maps::new(x, inputs),
                &packed,
                (&mut out, 1),
                |out, band| {
                    write_rows(out, band, 8, &[]);
                },
            );
            out
        };
        let all = run(5, &x);
        for (x, out) in x.chunks(inputs * area).zip(all.chunks(outputs * area)) {
            assert_eq!(run(1, x), out);
        }
    }
}
