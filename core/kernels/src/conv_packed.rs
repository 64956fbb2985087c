//! The weights of a convolution in the order in which its tiles read them.

use super::{
    assemble,
    conv::{block, tall},
    matrix::Stored,
};
use pulp::{Arch, Simd, WithSimd};

/// Weights of a block that are used at once: they stay in the L1 cache.
const WEIGHTS: usize = 3 << 9;

/// Weights in the order in which tiles read them: `[block of outputs][input][tap][output]`.
pub struct Packed<T> {
    pub(super) data: Vec<T>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) taps: usize,
    pub(super) block: usize,
}

impl<T> Packed<T> {
    /// Number of input channels.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of output channels.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Inputs whose weights of a block are used at once.
    pub(super) fn inputs_at_once(&self) -> usize {
        (WEIGHTS / (self.taps * self.block)).max(1)
    }
}

impl<T: Stored> Packed<T> {
    /// Packs weights that lie as `[output][input][tap]`; a last block that is not full gets zeros.
    pub fn new([outputs, inputs, taps]: [usize; 3], weights: &[f32]) -> Self {
        Packed::in_blocks(block(), [outputs, inputs, taps], weights)
    }

    pub(super) fn in_blocks(
        block: usize,
        [outputs, inputs, taps]: [usize; 3],
        weights: &[f32],
    ) -> Self {
        let row = inputs * taps;
        Packed::of_blocks(block, [outputs, inputs, taps], |first, to| {
            Arch::new().dispatch(Interleave {
                block,
                rows: (outputs - first).min(block),
                row,
                from: &weights[first * row..],
                apart: weights.len(),
                turn: false,
                to,
            });
        })
    }

    /// Packs weights that lie as `[input][output][tap]`, with the window turned by 180 degrees:
    /// those of a convolution become what makes its result's gradient that of its input.
    pub fn turned([outputs, inputs, taps]: [usize; 3], weights: &[f32]) -> Self {
        let block = block();
        Packed::of_blocks(block, [outputs, inputs, taps], |first, to| {
            Arch::new().dispatch(Interleave {
                block,
                rows: (outputs - first).min(block),
                row: taps,
                from: &weights[first * taps..],
                apart: outputs * taps,
                turn: true,
                to,
            });
        })
    }

    /// The same with inputs and outputs exchanged and the window turned by 180 degrees.
    pub fn turn(&self) -> Packed<f32> {
        let [block, taps] = [self.block, self.taps];
        Packed::of_blocks(block, [self.inputs, self.outputs, taps], |first, to| {
            let mut wide = vec![0.0; taps * block];
            to.fill(0.0);
            for output in 0..block.min(self.inputs - first) {
                for (at, to) in to.chunks_exact_mut(taps * block).enumerate() {
                    let from = at / block * self.inputs + first + output;
                    let from = &self.data[from * taps * block..][..taps * block];
                    let taps = T::widen(from, &mut wide).chunks_exact(block);
                    for (to, from) in to.chunks_exact_mut(block).zip(taps.rev()) {
                        to[output] = from[at % block];
                    }
                }
            }
        })
    }

    /// `fill` gets the first output of a block and its place, all of which it has to write.
    fn of_blocks(
        block: usize,
        [outputs, inputs, taps]: [usize; 3],
        fill: impl Fn(usize, &mut [T]) + Sync,
    ) -> Self {
        let size = inputs * taps * block;
        let (data, _) = assemble(outputs.div_ceil(block) * size, size, |index, to| {
            fill(index * block, to);
        });
        Packed {
            data,
            inputs,
            outputs,
            taps,
            block,
        }
    }
}

/// Makes of each row of weights a lane of `to`, where there are rows.
struct Interleave<'a, T> {
    block: usize,
    /// Number of rows and their length.
    rows: usize,
    row: usize,
    /// Groups of rows, whose lanes lie behind each other, and the distance between them.
    from: &'a [f32],
    apart: usize,
    /// Whether rows are read from behind.
    turn: bool,
    to: &'a mut [T],
}

impl<T: Stored> WithSimd for Interleave<'_, T> {
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

impl<T: Stored> Interleave<'_, T> {
    #[inline(always)]
    fn run<const M: usize>(self) {
        let zeros = vec![0.0; self.row];
        let lanes = self.to.as_chunks_mut::<M>().0;
        let groups = lanes.chunks_exact_mut(self.row);
        for (lanes, from) in groups.zip(self.from.chunks(self.apart)) {
            let rows: [&[f32]; M] = std::array::from_fn(|m| match m < self.rows {
                true => &from[m * self.row..][..self.row],
                false => &zeros[..],
            });
            let rows = rows.map(|row| &row[..lanes.len()]);
            if self.turn {
                let last = lanes.len() - 1;
                for (at, lane) in lanes.iter_mut().enumerate() {
                    for m in 0..M {
                        lane[m] = T::of(rows[m][last - at]);
                    }
                }
            } else {
                for (at, lane) in lanes.iter_mut().enumerate() {
                    for m in 0..M {
                        lane[m] = T::of(rows[m][at]);
                    }
                }
            }
        }
    }
}
