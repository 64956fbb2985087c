//! Products of f32 rows with a matrix of bf16 weights.
//!
//! The left matrix is rounded once, in blocks of depth; a panel of the weights that is a block deep
//! stays in the L1 cache while all rows of a task pass it. The order of a sum is decided by the
//! depth alone.

use super::{LANES, Pair, Shared, load, of_pair, pair, rounded, splat};
use crate::matrix::Right;
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Vectors in a row of a panel.
const VECTORS: usize = 4;
/// Columns of a panel.
const COLUMNS: usize = VECTORS * LANES;
/// Pairs of a block.
const PAIRS: usize = 128;
/// Rows of a tile: with four vectors each, their sums fill 24 of 32 registers.
const HIGH: usize = 6;
/// Tasks that a product is cut into, if it is large enough.
const TASKS: usize = 16;
/// Rows that a task takes at least: below, reading a panel costs more than using it.
const ROWS: usize = 32;
/// Rows that pass a block after block: their sums stay in the L1 cache beside a part of it.
const PART: usize = 16 * HIGH;
/// Multiplications below which a product is not worth a second thread.
const SMALL: usize = 1 << 16;

/// A matrix of bf16 weights, packed for [`Paired::multiply`].
pub struct Paired {
    /// Panel after panel; each a row of [`COLUMNS`] for every pair of depths.
    words: Vec<Pair>,
    depth: usize,
    columns: usize,
}

impl Paired {
    /// Packs `source`, rounded to bf16, if this processor has the instruction.
    pub fn new(source: &impl Right) -> Option<Self> {
        super::present().then(|| {
            let (depth, columns) = (source.depth(), source.columns());
            let size = depth.div_ceil(2) * COLUMNS;
            let mut words = vec![0; columns.div_ceil(COLUMNS) * size];
            let panels = words.par_chunks_mut(size.max(1)).enumerate();
            panels.for_each_init(
                || vec![0.0; depth * COLUMNS],
                |scratch, (panel, words)| {
                    let first = panel * COLUMNS;
                    let count = COLUMNS.min(columns - first);
                    let values = source.panel(first, COLUMNS, 0..depth, scratch);
                    let rows = values.chunks(2 * COLUMNS);
                    for (to, rows) in words.chunks_exact_mut(COLUMNS).zip(rows) {
                        let (low, high) = rows.split_at(COLUMNS);
                        for (column, to) in to[..count].iter_mut().enumerate() {
                            let high = high.get(column).copied().unwrap_or(0.0);
                            *to = pair(low[column], high);
                        }
                    }
                },
            );
            Paired {
                words,
                depth,
                columns,
            }
        })
    }

    /// Number of rows: what is summed over.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows of `x`, rounded to bf16, times this matrix, plus `bias` (empty, or a value for
    /// each column).
    pub fn multiply(&self, x: &[f32], bias: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.depth.max(1);
        let mut out = Vec::with_capacity(rows * self.columns);
        assert!(bias.is_empty() || bias.len() == self.columns);
        let product = Product {
            right: self,
            left: &Rounded::new(x, self.depth),
            rows,
            bias,
            out: Shared(out.as_mut_ptr()),
        };
        product.run();
        // SAFETY: the tasks of a product, which cover all rows and columns, write every element.
        #[allow(unsafe_code)]
        unsafe {
            out.set_len(rows * self.columns);
        }
        out
    }
}

/// The left matrix in bf16: for each block of depths, the rows' parts, [`PAIRS`] apart.
struct Rounded(Box<[MaybeUninit<Pair>]>);

impl Rounded {
    fn new(x: &[f32], depth: usize) -> Self {
        /// Parts of a task.
        const PARTS: usize = 64;
        let rows = x.len() / depth.max(1);
        let count = depth.div_ceil(2 * PAIRS) * rows;
        let mut words = Box::new_uninit_slice(count * PAIRS);
        let parts = words.par_chunks_exact_mut(PAIRS).with_min_len(PARTS);
        parts.enumerate().for_each(|(at, to)| {
            let (from, row) = (at / rows * 2 * PAIRS, at % rows);
            let count = (2 * PAIRS).min(depth - from);
            // SAFETY: a `Paired` exists, so the processor has the instructions.
            #[allow(unsafe_code)]
            unsafe {
                rounded(&x[row * depth + from..][..count], to);
            }
        });
        Rounded(words)
    }
}

struct Product<'a> {
    right: &'a Paired,
    left: &'a Rounded,
    rows: usize,
    bias: &'a [f32],
    /// `rows` rows of as many values as there are columns.
    out: Shared,
}

impl Product<'_> {
    fn run(&self) {
        let panels = self.right.columns.div_ceil(COLUMNS);
        if panels == 0 || self.rows == 0 {
            return;
        }
        let panels_of_task = panels.div_ceil(TASKS);
        let across = panels.div_ceil(panels_of_task);
        let down = TASKS.div_ceil(across).min(self.rows.div_ceil(ROWS));
        let rows_of_task = self.rows.div_ceil(down).next_multiple_of(HIGH);
        let down = self.rows.div_ceil(rows_of_task);
        let task = |task: usize| {
            let (row, panel) = (task / across * rows_of_task, task % across * panels_of_task);
            let rows = row..self.rows.min(row + rows_of_task);
            for panel in panel..panels.min(panel + panels_of_task) {
                for row in rows.clone().step_by(PART) {
                    // SAFETY: a `Paired` exists, so the processor has the instructions. No other
                    // task has these rows and this panel.
                    #[allow(unsafe_code)]
                    unsafe {
                        self.panel(panel, row..rows.end.min(row + PART));
                    }
                }
            }
        };
        if self.rows * self.right.columns * self.right.depth < SMALL {
            (0..across * down).for_each(task);
        } else {
            (0..across * down)
                .into_par_iter()
                .with_max_len(1)
                .for_each(task);
        }
    }

    /// The columns of a panel in `rows` of the result.
    ///
    /// # Safety
    /// Nobody else may touch them meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn panel(&self, panel: usize, rows: Range<usize>) {
        let (first, pairs) = (panel * COLUMNS, self.right.depth.div_ceil(2));
        let words = &self.right.words[first * pairs..][..COLUMNS * pairs];
        for (block, words) in words.chunks(PAIRS * COLUMNS).enumerate() {
            let tiles = rows.len().div_ceil(HIGH);
            let ahead = VECTORS.div_ceil(tiles);
            let mut row = rows.start;
            while row < rows.end {
                let index = (row - rows.start) / HIGH;
                let tile = Tile {
                    ahead: (index * ahead).min(VECTORS)..((index + 1) * ahead).min(VECTORS),
                    product: self,
                    block,
                    words,
                    row,
                    first,
                };
                let high = HIGH.min(rows.end - row);
                // SAFETY: as the caller promises; there are `high` rows from `row` on.
                unsafe {
                    match high {
                        1 => tile.columns::<1>(),
                        2 => tile.columns::<2>(),
                        3 => tile.columns::<3>(),
                        4 => tile.columns::<4>(),
                        5 => tile.columns::<5>(),
                        _ => tile.columns::<HIGH>(),
                    }
                }
                row += high;
            }
        }
    }
}

/// A block of depths of some rows times a panel.
struct Tile<'a> {
    product: &'a Product<'a>,
    block: usize,
    /// The block of the panel.
    words: &'a [Pair],
    row: usize,
    /// The panel's first column.
    first: usize,
    /// Vectors of each row of the block behind this one that are brought into the L2 cache
    /// meanwhile: the processor does not guess in time that they are next.
    ahead: Range<usize>,
}

impl Tile<'_> {
    /// # Safety
    /// There are M rows, and nobody else touches the panel's columns of them.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn columns<const M: usize>(&self) {
        let used = self.product.right.columns - self.first;
        // SAFETY: as the caller promises.
        unsafe {
            match used.div_ceil(LANES) {
                1 => self.sum::<M, 1>(),
                2 => self.sum::<M, 2>(),
                3 => self.sum::<M, 3>(),
                _ => self.sum::<M, 4>(),
            }
        }
    }

    /// The first U vectors of the panel.
    ///
    /// # Safety
    /// As for [`Tile::columns`]; the last of the vectors holds a column.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn sum<const M: usize, const U: usize>(&self) {
        let Product {
            left, right, rows, ..
        } = *self.product;
        let left = &left.0[(self.block * rows + self.row) * PAIRS..][..M * PAIRS];
        let pairs = self.words.len() / COLUMNS;
        assert!(pairs <= PAIRS);
        let mut sums = [[_mm512_setzero_ps(); U]; M];
        for k in 0..pairs {
            // SAFETY: the panel has COLUMNS words for each of `pairs`; the rows of the left
            // matrix are PAIRS apart, and as many of each as the panel is deep have a value.
            unsafe {
                let row = self.words.as_ptr().add(k * COLUMNS);
                for vector in self.ahead.clone() {
                    let next = row.wrapping_add(self.words.len() + vector * LANES);
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                }
                let mut columns = [splat(0); U];
                for (u, columns) in columns.iter_mut().enumerate() {
                    *columns = load(row.add(u * LANES));
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let value = splat(left.get_unchecked(m * PAIRS + k).assume_init());
                    for u in 0..U {
                        sums[u] = _mm512_dpbf16_ps(sums[u], value, columns[u]);
                    }
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let start = (self.row + m) * right.columns;
            for (u, sum) in sums.into_iter().enumerate() {
                let column = self.first + u * LANES;
                // SAFETY: the column is one of the result's; the caller owns this part.
                unsafe {
                    self.write(start, column, sum);
                }
            }
        }
    }

    /// Adds `sum` to what the row that begins at `start` has at `column`, or puts it there.
    ///
    /// # Safety
    /// The row and the column exist, and nobody else touches them.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn write(&self, start: usize, column: usize, sum: __m512) {
        let Product {
            right, bias, out, ..
        } = *self.product;
        let count = LANES.min(right.columns - column);
        let mask = ((1u32 << count) - 1) as __mmask16;
        // SAFETY: the mask keeps to the columns; the bias is empty or has one value for each.
        unsafe {
            let to = out.0.add(start + column);
            let sum = if self.block > 0 {
                _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to))
            } else if bias.is_empty() {
                sum
            } else {
                let bias = _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(column));
                _mm512_add_ps(sum, bias)
            };
            if count == LANES {
                _mm512_storeu_ps(to, sum);
            } else {
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}

/// The transpose of a packed matrix, read out of its panels, in f32.
pub struct Turned<'a>(pub &'a Paired);

// Rows and columns change places.
#[allow(clippy::misnamed_getters)]
impl Right for Turned<'_> {
    fn depth(&self) -> usize {
        self.0.columns
    }

    fn columns(&self) -> usize {
        self.0.depth
    }

    fn panel<'a>(
        &'a self,
        first: usize,
        width: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let size = self.0.depth.div_ceil(2) * COLUMNS;
        let (rows, end) = (depths.len(), self.0.depth.min(first + width));
        for (row, column) in scratch.chunks_exact_mut(width).zip(depths) {
            let words = &self.0.words[column / COLUMNS * size + column % COLUMNS..];
            for (to, depth) in row.iter_mut().zip(first..end) {
                *to = of_pair(words[depth / 2 * COLUMNS], depth % 2 == 1);
            }
        }
        &scratch[..rows * width]
    }
}
