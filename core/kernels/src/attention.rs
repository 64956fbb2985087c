//! Scaled dot-product attention in blocks, so that the scores of all pairs never exist at once.
//!
//! Forward, blocks of keys pass a block of queries, which keeps a running maximum and sum (Milakov
//! & Gimelshein, Online normalizer calculation for softmax, 2018; Dao et al., FlashAttention,
//! 2022). Backward, the scores are formed again from the sum that the forward pass left.

use super::{
    buffer,
    matrix::{Columns, Left, Packed, Rows, multiply_block},
    rows::{exponentials, scale, scaled_largest},
    sum,
};
use pulp::Arch;
use rayon::prelude::*;

/// Queries of a block: a multiple of the rows of a tile.
const QUERIES: usize = 96;
/// Keys of a block: scores, keys and values of a block stay in the L2 cache.
const KEYS: usize = 256;

/// Shapes: queries `[batch, queries, heads * width]`, keys and values `[batch, keys, heads *
/// width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Images or sequences.
    pub batch: usize,
    /// Parts that attend on their own.
    pub heads: usize,
    /// Rows of queries.
    pub queries: usize,
    /// Rows of keys and of values.
    pub keys: usize,
    /// Values of a head in a row.
    pub width: usize,
}

/// Queries, keys and values, and how they meet.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Sizes of the three.
    pub shape: Shape,
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// What scores are multiplied by.
    pub scale: f32,
    /// Whether query i sees only the keys up to i (the last query: all).
    pub causal: bool,
}

/// The first pair of a block, and how many there are.
#[derive(Clone, Copy)]
struct Block {
    query: usize,
    queries: usize,
    key: usize,
    keys: usize,
}

impl<'a> Attention<'a> {
    /// Values from one query or key to the next.
    fn stride(&self) -> usize {
        self.shape.heads * self.shape.width
    }

    /// The part of `values` (with `count` rows an image) that begins with the first row of `image`
    /// and `head`.
    fn head<'b>(&self, values: &'b [f32], count: usize, image: usize, head: usize) -> &'b [f32] {
        &values[image * count * self.stride() + head * self.shape.width..]
    }

    fn rows<'b>(&self, data: &'b [f32], depth: usize) -> Rows<'b> {
        Rows {
            data,
            depth,
            columns: self.shape.width,
            stride: self.stride(),
        }
    }

    fn columns<'b>(&self, data: &'b [f32], columns: usize) -> Columns<'b> {
        Columns {
            data,
            depth: self.shape.width,
            columns,
            stride: self.stride(),
        }
    }

    fn left<'b>(&self, data: &'b [f32], row: usize) -> Left<'b> {
        Left {
            data: &data[row * self.stride()..],
            row: self.stride(),
            depth: 1,
        }
    }

    fn blocks(&self, queries: std::ops::Range<usize>) -> impl Iterator<Item = Block> + use<> {
        let Shape {
            queries: all, keys, ..
        } = self.shape;
        // A block of keys that no query of the block may see is left out.
        let seen = if self.causal {
            (keys + queries.end).saturating_sub(all).min(keys)
        } else {
            keys
        };
        (0..seen).step_by(KEYS).map(move |key| Block {
            query: queries.start,
            queries: queries.len(),
            key,
            keys: KEYS.min(seen - key),
        })
    }

    /// The scores of a block, `KEYS` apart, yet to be multiplied by [`Attention::pending`].
    fn scores(&self, q: &[f32], keys: &Packed<f32>, block: Block, scores: &mut [f32]) {
        let Block {
            query,
            queries,
            key,
            keys: count,
        } = block;
        let out = &mut scores[..queries * KEYS];
        let part = (0..self.shape.width, key..key + count);
        multiply_block(self.left(q, query), keys, part, (out, KEYS), false);
        if !self.causal {
            return;
        }
        for (i, row) in out.chunks_mut(KEYS).enumerate() {
            scale(&mut row[..count], self.scale);
            let last = query + i + self.shape.keys - self.shape.queries;
            row[(last + 1).saturating_sub(key).min(count)..count].fill(f32::NEG_INFINITY);
        }
    }

    /// What scores are still to be multiplied by: all but those that hold infinities, which a factor of
    /// 0 would turn into no number.
    fn pending(&self) -> f32 {
        if self.causal { 1.0 } else { self.scale }
    }

    /// The result, of the shape of the queries, and for each query of each head the logarithm of
    /// the sum of its exponentials.
    pub fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let Shape {
            batch,
            heads,
            queries,
            keys,
            width,
        } = self.shape;
        let packed: Vec<(Packed<f32>, Packed<f32>)> = (0..batch * heads)
            .into_par_iter()
            .map(|at| {
                let k = self.head(self.k, keys, at / heads, at % heads);
                let v = self.head(self.v, keys, at / heads, at % heads);
                (
                    Packed::new(&self.columns(k, keys)),
                    Packed::new(&self.rows(v, keys)),
                )
            })
            .collect();
        let mut out = buffer(batch * queries * self.stride());
        let mut sums = buffer(batch * heads * queries);
        // A task is a block of queries of one head; its rows lie apart in the result.
        let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
        let blocks = queries.div_ceil(QUERIES);
        parts.resize_with(batch * heads * blocks, Vec::new);
        for (row, values) in out.chunks_mut(self.stride()).enumerate() {
            let (image, query) = (row / queries, row % queries);
            for (head, values) in values.chunks_mut(width).enumerate() {
                parts[(image * heads + head) * blocks + query / QUERIES].push(values);
            }
        }
        let sums_of_blocks = sums
            .chunks_mut(queries)
            .flat_map(|head| head.chunks_mut(QUERIES));
        let tasks: Vec<_> = parts.into_iter().zip(sums_of_blocks).enumerate().collect();
        tasks.into_par_iter().for_each(|(task, (mut out, sums))| {
            let (at, first) = (task / blocks, task % blocks * QUERIES);
            let q = self.head(self.q, queries, at / heads, at % heads);
            let end = (first + QUERIES).min(queries);
            self.queries_forward(q, &packed[at], first..end, &mut out, sums);
        });
        (out, sums)
    }

    fn queries_forward(
        &self,
        q: &[f32],
        (keys, values): &(Packed<f32>, Packed<f32>),
        range: std::ops::Range<usize>,
        out: &mut [&mut [f32]],
        logs: &mut [f32],
    ) {
        let width = self.shape.width;
        let count = range.len();
        let mut scores = buffer(count * KEYS);
        let mut mixed = buffer(count * width);
        let mut peaks = vec![f32::NEG_INFINITY; count];
        let mut totals = vec![0.0f32; count];
        for block in self.blocks(range) {
            self.scores(q, keys, block, &mut scores);
            for (i, row) in scores.chunks_mut(KEYS).enumerate() {
                let row = &mut row[..block.keys];
                let peak = peaks[i].max(scaled_largest(row, self.pending()));
                // Nothing seen yet: keep the differences defined.
                let shift = if peak == f32::NEG_INFINITY { 0.0 } else { peak };
                let faded = (peaks[i] - shift).exp();
                totals[i] = totals[i] * faded + exponentials(row, shift);
                scale(&mut mixed[i * width..(i + 1) * width], faded);
                peaks[i] = peak;
            }
            let left = Left {
                data: &scores,
                row: KEYS,
                depth: 1,
            };
            let part = (block.key..block.key + block.keys, 0..width);
            multiply_block(left, values, part, (&mut mixed, width), true);
        }
        for (i, (out, row)) in out.iter_mut().zip(mixed.chunks(width)).enumerate() {
            out.copy_from_slice(row);
            scale(out, 1.0 / totals[i]);
            logs[i] = peaks[i] + totals[i].ln();
        }
    }

    /// Gradients of queries, keys and values, given the result, the logarithms that came with it,
    /// and its gradient.
    pub fn backward(&self, out: &[f32], logs: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let Shape {
            batch,
            heads,
            queries,
            keys,
            width,
        } = self.shape;
        let heads_of: Vec<[Vec<f32>; 3]> = (0..batch * heads)
            .into_par_iter()
            .map(|at| {
                let part = |values, count| self.head(values, count, at / heads, at % heads);
                let logs = &logs[at * queries..(at + 1) * queries];
                self.head_backward(
                    [
                        part(self.q, queries),
                        part(self.k, keys),
                        part(self.v, keys),
                    ],
                    [part(out, queries), part(dy, queries)],
                    logs,
                )
            })
            .collect();
        let mut gradients =
            [queries, keys, keys].map(|count| buffer(batch * count * self.stride()));
        for (which, gradient) in gradients.iter_mut().enumerate() {
            let count = [queries, keys, keys][which];
            gradient
                .par_chunks_mut(self.stride())
                .with_min_len(64)
                .enumerate()
                .for_each(|(row, to)| {
                    for (head, to) in to.chunks_mut(width).enumerate() {
                        let from = &heads_of[row / count * heads + head][which];
                        to.copy_from_slice(&from[row % count * width..][..width]);
                    }
                });
        }
        gradients
    }

    fn head_backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        [out, dy]: [&[f32]; 2],
        logs: &[f32],
    ) -> [Vec<f32>; 3] {
        let Shape {
            queries,
            keys,
            width,
            ..
        } = self.shape;
        let turned = [k, v].map(|values| Packed::new(&self.columns(values, keys)));
        let straight = Packed::<f32>::new(&self.rows(k, keys));
        let mut gradients = [queries, keys, keys].map(|count| vec![0.0; count * width]);
        let [dq, dk, dv] = &mut gradients;
        let mut shares = buffer(QUERIES * KEYS);
        let mut flows = buffer(QUERIES * KEYS);
        for first in (0..queries).step_by(QUERIES) {
            let end = (first + QUERIES).min(queries);
            let stride = self.stride();
            // What each query's shares pull at each other through their sum.
            let pulls: Vec<f32> = (first..end)
                .map(|i| {
                    sum(
                        [&out[i * stride..][..width], &dy[i * stride..][..width]],
                        |[a, b]| a * b,
                    ) as f32
                })
                .collect();
            let span = |values: &'_ [f32]| values.len().min(end * stride);
            let (q_rows, dy_rows) = (&q[first * stride..span(q)], &dy[first * stride..span(dy)]);
            for block in self.blocks(first..end) {
                self.scores(q, &turned[0], block, &mut shares);
                let Block {
                    queries: count,
                    key,
                    keys: seen,
                    ..
                } = block;
                let part = (0..width, key..key + seen);
                multiply_block(
                    self.left(dy, first),
                    &turned[1],
                    part,
                    (&mut flows[..count * KEYS], KEYS),
                    false,
                );
                for i in 0..count {
                    let share = &mut shares[i * KEYS..][..seen];
                    scale(share, self.pending());
                    exponentials(share, logs[first + i]);
                    let flow = &mut flows[i * KEYS..][..seen];
                    let (pull, factor) = (pulls[i], self.scale);
                    Arch::new().dispatch(|| {
                        for (flow, share) in flow.iter_mut().zip(share) {
                            *flow = *share * (*flow - pull) * factor;
                        }
                    });
                }
                let across = Left {
                    data: &flows,
                    row: KEYS,
                    depth: 1,
                };
                let out = &mut dq[first * width..end * width];
                multiply_block(
                    across,
                    &straight,
                    (key..key + seen, 0..width),
                    (out, width),
                    true,
                );
                for (scores, rows, out) in
                    [(&flows, q_rows, &mut *dk), (&shares, dy_rows, &mut *dv)]
                {
                    let down = Left {
                        data: scores,
                        row: 1,
                        depth: KEYS,
                    };
                    let out = &mut out[key * width..(key + seen) * width];
                    multiply_block(
                        down,
                        &self.rows(rows, count),
                        (0..count, 0..width),
                        (out, width),
                        true,
                    );
                }
            }
        }
        gradients
    }
}
