//! The maps of [`super::winograd`]: of pixels and weights to the places of a tile, and back.

use super::{
    conv::tall,
    strips::Maps,
    winograd::{SLACK, Tiles},
};
use pulp::{Simd, WithSimd};

/// What is transformed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The 4×4 pixels that a tile sees.
    Input,
    /// The 2×2 pixels of the tile itself, with the transpose of the map that made them.
    Result,
}

/// The transform of some rows of tiles of one channel of one image.
pub(super) struct Pixels<'a, 'b> {
    pub tiles: &'a Tiles,
    pub maps: Maps<'b>,
    pub side: Side,
    pub image: usize,
    pub channel: usize,
    /// The first line of pixels.
    pub top: usize,
    pub rows: usize,
    pub phases: &'a mut Vec<f32>,
    pub to: &'a mut [f32],
}

impl WithSimd for Pixels<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tiles {
            geometry,
            across,
            stride,
            ..
        } = *self.tiles;
        // A tile sees one line above it and one below.
        let border = usize::from(self.side == Side::Input);
        let row = across + 1 + SLACK;
        let lines = 2 * self.rows + 2 * border;
        self.phases.resize(lines * 2 * row, 0.0);
        for (line, pair) in self.phases.chunks_exact_mut(2 * row).enumerate() {
            let y = (self.top + line).checked_sub(border);
            match y.filter(|y| *y < geometry.height) {
                Some(y) => {
                    let from = self.maps.row(geometry, self.image, self.channel, y);
                    split(from, border, pair.split_at_mut(row));
                }
                None => pair.fill(0.0),
            }
        }
        let of_tile = (2 + 2 * border) * 2 * row;
        for tile_row in 0..self.rows {
            let lines = &self.phases[tile_row * 4 * row..][..of_tile];
            let to = &mut self.to[tile_row * across..];
            for first in (0..across).step_by(S::F32_LANES) {
                let (lines, to) = (&lines[first..], &mut to[first..]);
                match self.side {
                    Side::Input => transform_input(simd, lines, row, to, stride),
                    Side::Result => transform_result(simd, lines, row, to, stride),
                }
            }
        }
    }
}

/// Deals the pixels of a row, after `border` zeros and before some, to the left and the right
/// ones of pairs.
#[inline(always)]
fn split(from: &[f32], border: usize, (left, right): (&mut [f32], &mut [f32])) {
    // With a zero in front, the left pixels are the right ones of pairs.
    let (even, odd) = match border {
        0 => (left, right),
        _ => {
            left[0] = 0.0;
            (right, &mut left[1..])
        }
    };
    let pairs = from.as_chunks::<2>();
    let count = pairs.0.len();
    for ((even, odd), pair) in even.iter_mut().zip(odd.iter_mut()).zip(pairs.0) {
        [*even, *odd] = *pair;
    }
    even[count] = pairs.1.first().copied().unwrap_or(0.0);
    odd[count] = 0.0;
    even[count + 1] = 0.0;
}

/// Applies `map` to the columns of a matrix and to the rows of what comes out, for a vector of
/// tiles; the places of the result lie `stride` apart. In loops, for what arrays offer
/// instead is not inlined and thus not vectorised.
#[inline(always)]
fn both_ways<S: Simd, const I: usize, const O: usize>(
    simd: S,
    read: impl Fn(usize, usize) -> S::f32s,
    map: impl Fn([S::f32s; I]) -> [S::f32s; O],
    to: &mut [f32],
    stride: usize,
) {
    let zero = simd.splat_f32s(0.0);
    let mut columns = [[zero; O]; I];
    for (column, values) in columns.iter_mut().enumerate() {
        let mut seen = [zero; I];
        for (line, value) in seen.iter_mut().enumerate() {
            *value = read(line, column);
        }
        *values = map(seen);
    }
    for line in 0..O {
        let mut seen = [zero; I];
        for (value, column) in seen.iter_mut().zip(&columns) {
            *value = column[line];
        }
        for (column, value) in map(seen).into_iter().enumerate() {
            let start = (O * line + column) * stride;
            S::as_mut_simd_f32s(&mut to[start..start + S::F32_LANES]).0[0] = value;
        }
    }
}

/// A vector of tiles: `lines` holds the two phases of four lines of pixels, `row` apart.
#[inline(always)]
fn transform_input<S: Simd>(simd: S, lines: &[f32], row: usize, to: &mut [f32], stride: usize) {
    let read = |line: usize, column: usize| {
        let start = (2 * line + column % 2) * row + column / 2;
        S::as_simd_f32s(&lines[start..start + S::F32_LANES]).0[0]
    };
    let map = |[a, b, c, d]: [S::f32s; 4]| {
        [
            simd.sub_f32s(a, c),
            simd.add_f32s(b, c),
            simd.sub_f32s(c, b),
            simd.sub_f32s(b, d),
        ]
    };
    both_ways::<S, 4, 4>(simd, read, map, to, stride);
}

/// A vector of tiles: `lines` holds the two phases of two lines of pixels, `row` apart.
#[inline(always)]
fn transform_result<S: Simd>(simd: S, lines: &[f32], row: usize, to: &mut [f32], stride: usize) {
    let read = |line: usize, column: usize| {
        let start = (2 * line + column) * row;
        S::as_simd_f32s(&lines[start..start + S::F32_LANES]).0[0]
    };
    let map = |[a, b]: [S::f32s; 2]| {
        let (sum, difference) = (simd.add_f32s(a, b), simd.sub_f32s(a, b));
        [a, sum, difference, simd.neg_f32s(b)]
    };
    both_ways::<S, 2, 4>(simd, read, map, to, stride);
}

/// The transform of the weights of a block.
pub(super) struct Weights<'a> {
    pub block: usize,
    /// `[input][tap][output]`
    pub from: &'a [f32],
    /// `[place][input][output]`
    pub to: &'a mut [f32],
}

impl WithSimd for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        if tall::<S>(self.block) {
            self.run::<8>();
        } else {
            self.run::<4>();
        }
    }
}

impl Weights<'_> {
    #[inline(always)]
    fn run<const M: usize>(self) {
        let map = |[a, b, c]: [[f32; M]; 3]| {
            let mut out = [a, [0.0; M], [0.0; M], c];
            for m in 0..M {
                let sum = 0.5 * (a[m] + c[m]);
                let middle = 0.5 * b[m];
                out[1][m] = sum + middle;
                out[2][m] = sum - middle;
            }
            out
        };
        let inputs = self.from.as_chunks::<M>().0.as_chunks::<9>().0;
        let to = self.to.as_chunks_mut::<M>().0;
        for (input, taps) in inputs.iter().enumerate() {
            let column = |c: usize| map([taps[c], taps[3 + c], taps[6 + c]]);
            let columns = [column(0), column(1), column(2)];
            for line in 0..4 {
                let values = map([columns[0][line], columns[1][line], columns[2][line]]);
                for (place, value) in values.into_iter().enumerate() {
                    to[(4 * line + place) * inputs.len() + input] = value;
                }
            }
        }
    }
}

/// The map from sums to pixels of a block.
pub(super) struct Results<'a> {
    pub channels: usize,
    pub tiles: &'a Tiles,
    /// `[place][channel][tile]`
    pub sums: &'a [f32],
    /// `[channel][phase][tile]`, for use here.
    pub phases: &'a mut [f32],
    /// `[channel][line][pixel]`
    pub band: &'a mut [f32],
}

impl WithSimd for Results<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tiles {
            across,
            stride,
            count,
            ..
        } = *self.tiles;
        for channel in 0..self.channels {
            let phases = &mut self.phases[channel * 4 * stride..][..4 * stride];
            for first in (0..count).step_by(S::F32_LANES) {
                let from = &self.sums[channel * stride + first..];
                transform_sums(
                    simd,
                    from,
                    self.channels * stride,
                    &mut phases[first..],
                    stride,
                );
            }
            let band = &mut self.band[channel * 4 * stride..][..4 * stride];
            let lines = band.chunks_exact_mut(2 * across).take(2 * count / across);
            for (line, to) in lines.enumerate() {
                let start = line % 2 * 2 * stride + line / 2 * across;
                let left = &phases[start..][..across];
                let right = &phases[start + stride..][..across];
                let pairs = to.as_chunks_mut::<2>().0.iter_mut();
                for ((to, left), right) in pairs.zip(left).zip(right) {
                    *to = [*left, *right];
                }
            }
        }
    }
}

/// A vector of tiles: the places lie `apart`, the four pixels go `stride` apart.
#[inline(always)]
fn transform_sums<S: Simd>(simd: S, from: &[f32], apart: usize, to: &mut [f32], stride: usize) {
    let read = |line: usize, column: usize| {
        let start = (4 * line + column) * apart;
        S::as_simd_f32s(&from[start..start + S::F32_LANES]).0[0]
    };
    let map = |[a, b, c, d]: [S::f32s; 4]| {
        [
            simd.add_f32s(simd.add_f32s(a, b), c),
            simd.sub_f32s(simd.sub_f32s(b, c), d),
        ]
    };
    both_ways::<S, 4, 2>(simd, read, map, to, stride);
}
