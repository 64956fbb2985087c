//! Matrix products in tiles: a few rows of the left matrix times a few vectors of columns of the
//! right one, summed in registers.
//!
//! The right matrix is read in panels of [`width`] columns, one row of a panel behind the other.
//! Where the panels come from is up to [`Right`]: weights packed once, a matrix as it lies in
//! memory, or the windows of a feature map, so that a convolution needs no copy of its patches.
//! Every element is summed in an order that the depth alone decides: results depend neither on
//! the number of threads nor on how the work is cut.

mod right;
#[cfg(test)]
mod tests;

pub use right::{Columns, Packed, Right, Rows, Stored, Turned};

use super::buffer;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Depth over which a panel is read before the next: a panel of that depth stays in the L2 cache.
const DEPTH: usize = 384;
/// Rows that a tile holds: with 32 registers times 4 vectors, with 16 times 2.
const HIGH: usize = 6;
/// Tasks that a product is cut into, if it is large enough.
const TASKS: usize = 16;
/// Rows that a task takes at least: below, filling a panel costs more than using it.
const ROWS: usize = 32;
/// Multiplications below which a product is not worth a second thread.
const SMALL: usize = 1 << 15;

/// Columns of a panel on this processor.
pub fn width() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            vectors::<S>() * S::F32_LANES
        }
    }
    Arch::new().dispatch(Width)
}

/// Vectors in a row of a panel.
#[inline(always)]
fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// The left matrix: element (i, k) lies at `i * row + k * depth`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    /// All elements.
    pub data: &'a [f32],
    /// Distance from one row to the next.
    pub row: usize,
    /// Distance from one column to the next.
    pub depth: usize,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// What the result holds.
    Kept,
    /// One value for each column.
    Columns(&'a [f32]),
    /// One value for each row.
    Rows(&'a [f32]),
}

/// One product: `out` (rows of `right.columns()` values) becomes `start` plus `left` times
/// `right`.
pub struct Product<'a, R> {
    /// The left factor.
    pub left: Left<'a>,
    /// The right factor.
    pub right: R,
    /// What the result begins with.
    pub start: Start<'a>,
    /// The result.
    pub out: &'a mut [f32],
}

/// Forms all `products`, in parallel.
pub fn multiply<R: Right>(products: Vec<Product<'_, R>>) {
    let width = width();
    let work = |p: &Product<'_, R>| p.out.len() * p.right.depth();
    let total: usize = products.iter().map(work).sum();
    let wanted = TASKS.div_ceil(products.len().max(1));
    let mut tasks = Vec::new();
    for product in products {
        let Product {
            left,
            right,
            start,
            out,
        } = product;
        let right = std::sync::Arc::new(right);
        let (columns, panels) = (right.columns(), right.columns().div_ceil(width));
        if columns == 0 {
            continue;
        }
        let rows = out.len() / columns;
        let across = panels.min(wanted).max(1);
        let per_task = panels.div_ceil(across) * width;
        let down = wanted.div_ceil(across).min(rows.div_ceil(ROWS)).max(1);
        let rows_per_task = rows.div_ceil(down).next_multiple_of(HIGH);
        let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
        for rows in out.chunks_mut(rows_per_task * columns) {
            let mut group: Vec<Vec<&mut [f32]>> = Vec::new();
            group.resize_with(columns.div_ceil(per_task), Vec::new);
            for row in rows.chunks_mut(columns) {
                for (part, piece) in group.iter_mut().zip(row.chunks_mut(per_task)) {
                    part.push(piece);
                }
            }
            parts.extend(group);
        }
        let groups = columns.div_ceil(per_task);
        tasks.extend(parts.into_iter().enumerate().map(|(index, out)| Task {
            left,
            right: right.clone(),
            start,
            first_row: index / groups * rows_per_task,
            first_column: index % groups * per_task,
            out,
        }));
    }
    if total < SMALL {
        tasks.into_iter().for_each(|task| task.run());
    } else {
        tasks.into_par_iter().for_each(|task| task.run());
    }
}

/// A block of rows and columns of a product.
struct Task<'a, R> {
    left: Left<'a>,
    right: std::sync::Arc<R>,
    start: Start<'a>,
    first_row: usize,
    first_column: usize,
    /// The block's part of each row.
    out: Vec<&'a mut [f32]>,
}

impl<R: Right> Task<'_, R> {
    /// Whether there is something to add to, which then stands in `out`.
    fn begin(&mut self) -> bool {
        let columns = self.first_column..;
        for (at, row) in self.out.iter_mut().enumerate() {
            match self.start {
                Start::Zero if self.right.depth() > 0 => return false,
                Start::Zero => row.fill(0.0),
                Start::Kept => return true,
                Start::Columns(values) => {
                    row.copy_from_slice(&values[columns.clone()][..row.len()])
                }
                Start::Rows(values) => row.fill(values[self.first_row + at]),
            }
        }
        true
    }

    fn run(mut self) {
        let add = self.begin();
        let (width, depth) = (width(), self.right.depth());
        let columns = self.out.first().map_or(0, |row| row.len());
        let start = self.first_row * self.left.row;
        let left = Left {
            data: &self.left.data[start.min(self.left.data.len())..],
            ..self.left
        };
        let mut scratch = buffer(DEPTH.min(depth) * width);
        for from in (0..depth).step_by(DEPTH) {
            let depths = from..(from + DEPTH).min(depth);
            for column in (0..columns).step_by(width) {
                let first = self.first_column + column;
                let panel = self.right.panel(first, width, depths.clone(), &mut scratch);
                Arch::new().dispatch(Panel {
                    left: Left {
                        data: &left.data[from * left.depth..],
                        ..left
                    },
                    panel,
                    depth: depths.len(),
                    out: &mut self.out,
                    column,
                    add: add || from > 0,
                });
            }
        }
    }
}

/// `out` (rows `stride` apart) becomes, or with `add` grows by, `left` times the rows `depths` of
/// the columns `columns` of `right`, on this thread. `columns` begins at a panel's first column.
pub fn multiply_block(
    left: Left<'_>,
    right: &impl Right,
    (depths, columns): (Range<usize>, Range<usize>),
    (out, stride): (&mut [f32], usize),
    add: bool,
) {
    let width = width();
    let count = columns.len();
    let mut rows: Vec<&mut [f32]> = out
        .chunks_mut(stride)
        .map(|row| &mut row[..count])
        .collect();
    let mut scratch = buffer(depths.len() * width);
    for first in columns.clone().step_by(width) {
        let panel = right.panel(first, width, depths.clone(), &mut scratch);
        Arch::new().dispatch(Panel {
            left,
            panel,
            depth: depths.len(),
            out: &mut rows,
            column: first - columns.start,
            add,
        });
    }
}

/// One panel times all rows of a task.
struct Panel<'a, 'b> {
    left: Left<'a>,
    panel: &'a [f32],
    depth: usize,
    out: &'a mut [&'b mut [f32]],
    column: usize,
    add: bool,
}

impl WithSimd for Panel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if vectors::<S>() == 4 {
            match self.used::<S>() {
                1 => self.all::<S, 4, 1>(simd),
                2 => self.all::<S, 4, 2>(simd),
                3 => self.all::<S, 4, 3>(simd),
                _ => self.all::<S, 4, 4>(simd),
            }
        } else {
            match self.used::<S>() {
                1 => self.all::<S, 2, 1>(simd),
                _ => self.all::<S, 2, 2>(simd),
            }
        }
    }
}

impl Panel<'_, '_> {
    /// Vectors of the panel that hold columns of the result.
    fn used<S: Simd>(&self) -> usize {
        let columns = self.out.first().map_or(0, |row| row.len() - self.column);
        columns.div_ceil(S::F32_LANES)
    }

    /// All rows; V vectors make a row of the panel, and the first U of them are used.
    #[inline(always)]
    fn all<S: Simd, const V: usize, const U: usize>(&mut self, simd: S) {
        let rows = self.out.len();
        let mut row = 0;
        while row + HIGH <= rows {
            self.tile::<S, V, U, HIGH>(simd, row);
            row += HIGH;
        }
        while row + 2 <= rows {
            self.tile::<S, V, U, 2>(simd, row);
            row += 2;
        }
        if row < rows {
            self.tile::<S, V, U, 1>(simd, row);
        }
    }

    /// M rows from `first` on.
    #[inline(always)]
    fn tile<S: Simd, const V: usize, const U: usize, const M: usize>(
        &mut self,
        simd: S,
        first: usize,
    ) {
        let Left { data, row, depth } = self.left;
        let data = &data[first * row..];
        assert!((M - 1) * row + (self.depth - 1) * depth < data.len());
        let mut sums = [[simd.splat_f32s(0.0); U]; M];
        let panel = S::as_simd_f32s(self.panel).0.as_chunks::<V>().0;
        for (k, columns) in panel[..self.depth].iter().enumerate() {
            for (m, sums) in sums.iter_mut().enumerate() {
                // SAFETY: m < M and k < self.depth, so this is at most the index asserted above.
                #[allow(unsafe_code)]
                let value = unsafe { *data.get_unchecked(m * row + k * depth) };
                let value = simd.splat_f32s(value);
                for u in 0..U {
                    sums[u] = simd.mul_add_e_f32s(value, columns[u], sums[u]);
                }
            }
        }
        for (out, sums) in self.out[first..first + M].iter_mut().zip(sums) {
            // Whole vectors are stored as such: a masked store takes many times as long with AVX2.
            let out = &mut out[self.column..];
            if let Some(whole) = S::as_mut_simd_f32s(out).0.first_chunk_mut::<U>() {
                for u in 0..U {
                    whole[u] = match self.add {
                        true => simd.add_f32s(whole[u], sums[u]),
                        false => sums[u],
                    };
                }
                continue;
            }
            for (out, sum) in out.chunks_mut(S::F32_LANES).zip(sums) {
                let sum = match self.add {
                    true => simd.add_f32s(simd.partial_load_f32s(out), sum),
                    false => sum,
                };
                simd.partial_store_f32s(out, sum);
            }
        }
    }
}
