//! Matrix products in tiles: a few rows of the left matrix times a few vectors of columns of the
//! right one, summed in registers.
//!
//! The right matrix is read in panels of [`width`] columns, one row of a panel behind the other.
//! Where the panels come from is up to [`Right`]: weights packed once, a matrix as it lies in
//! memory, or the windows of a feature map, so that a convolution needs no copy of its patches.
//! Every element is summed in an order that the depth alone decides: results depend neither on
//! the number of threads nor on how the work is cut.

use super::buffer;
use half::{bf16, f16, slice::HalfFloatSliceExt};
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

/// A right matrix, of `depth` rows and `columns` columns.
pub trait Right: Send + Sync {
    /// Its rows: what is summed over.
    fn depth(&self) -> usize;

    /// Its columns.
    fn columns(&self) -> usize;

    /// The rows `depths` of the panel whose first column is `first`, each `width` long; what lies
    /// beyond the last column is of no importance. `scratch` has room for them.
    fn panel<'a>(
        &'a self,
        first: usize,
        width: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32];
}

/// A matrix whose rows lie in memory `stride` apart.
pub struct Rows<'a> {
    /// All elements.
    pub data: &'a [f32],
    /// Number of rows.
    pub depth: usize,
    /// Number of columns.
    pub columns: usize,
    /// Distance from one to the next.
    pub stride: usize,
}

impl Right for Rows<'_> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn panel<'a>(
        &'a self,
        first: usize,
        width: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let count = width.min(self.columns - first);
        let rows = depths.len();
        for (k, to) in depths.zip(scratch.chunks_exact_mut(width)) {
            to[..count].copy_from_slice(&self.data[k * self.stride + first..][..count]);
        }
        &scratch[..rows * width]
    }
}

/// A matrix that lies transposed: its columns are `stride` apart.
pub struct Columns<'a> {
    /// All elements.
    pub data: &'a [f32],
    /// Number of rows.
    pub depth: usize,
    /// Number of columns.
    pub columns: usize,
    /// Distance from one to the next.
    pub stride: usize,
}

impl Right for Columns<'_> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn panel<'a>(
        &'a self,
        first: usize,
        width: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let count = width.min(self.columns - first);
        let (rows, end) = (depths.len(), depths.end);
        // In pieces that stay in the L1 cache while they are filled column by column.
        let pieces = depths.step_by(64).zip(scratch.chunks_mut(64 * width));
        for (start, piece) in pieces {
            for column in 0..count {
                let from = &self.data[(first + column) * self.stride..][start..end.min(start + 64)];
                for (row, value) in piece.chunks_exact_mut(width).zip(from) {
                    row[column] = *value;
                }
            }
        }
        &scratch[..rows * width]
    }
}

/// A right matrix whose panels have been made once, for weights that are used again and again.
pub struct Packed<T> {
    /// Panel after panel, each `depth` rows of `width`.
    data: Vec<T>,
    depth: usize,
    columns: usize,
    width: usize,
}

impl<T: Stored> Packed<T> {
    /// Packs `source`.
    pub fn new(source: &impl Right) -> Self {
        let (depth, columns, width) = (source.depth(), source.columns(), width());
        let size = depth * width;
        let mut data = vec![T::default(); columns.div_ceil(width) * size];
        let panels = data.par_chunks_mut(size.max(1)).enumerate();
        panels.for_each_init(Vec::new, |scratch, (panel, to)| {
            T::fill(to, scratch, source, (panel * width, width));
        });
        Packed {
            data,
            depth,
            columns,
            width,
        }
    }

    fn rows(&self, first: usize, depths: Range<usize>) -> &[T] {
        let start = first / self.width * self.depth * self.width;
        &self.data[start + depths.start * self.width..start + depths.end * self.width]
    }
}

impl<T: Stored> Right for Packed<T> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn panel<'a>(
        &'a self,
        first: usize,
        _: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        T::widen(self.rows(first, depths), scratch)
    }
}

/// What weights are kept as. Whatever it is, sums are formed in f32.
pub trait Stored: Copy + Default + Send + Sync {
    /// The nearest value of this type.
    fn of(value: f32) -> Self;

    /// `values` as f32, in `scratch` if they are not so already.
    fn widen<'a>(values: &'a [Self], scratch: &'a mut [f32]) -> &'a [f32];

    /// Makes `to` the panel of `source` with that first column and width, all of its depth.
    fn fill(
        to: &mut [Self],
        scratch: &mut Vec<f32>,
        source: &impl Right,
        (first, width): (usize, usize),
    ) {
        scratch.resize(to.len(), 0.0);
        let panel = source.panel(first, width, 0..source.depth(), scratch);
        for (to, value) in to.iter_mut().zip(panel) {
            *to = Self::of(*value);
        }
    }
}

impl Stored for f32 {
    fn of(value: f32) -> Self {
        value
    }

    fn widen<'a>(values: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        values
    }

    fn fill(to: &mut [f32], _: &mut Vec<f32>, source: &impl Right, (first, width): (usize, usize)) {
        let place = to.as_ptr();
        let panel = source.panel(first, width, 0..source.depth(), to);
        // A source that holds panels itself hands them out.
        if panel.as_ptr() != place {
            let panel = panel.to_vec();
            to.copy_from_slice(&panel);
        }
    }
}

impl Stored for bf16 {
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn widen<'a>(values: &'a [bf16], scratch: &'a mut [f32]) -> &'a [f32] {
        let scratch = &mut scratch[..values.len()];
        Arch::new().dispatch(|| {
            for (to, from) in scratch.iter_mut().zip(values) {
                // What `bf16::to_f32` does, without its care for signalling NaN.
                *to = f32::from_bits(u32::from(from.to_bits()) << 16);
            }
        });
        scratch
    }
}

impl Stored for f16 {
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn widen<'a>(values: &'a [f16], scratch: &'a mut [f32]) -> &'a [f32] {
        let scratch = &mut scratch[..values.len()];
        values.convert_to_f32_slice(scratch);
        scratch
    }
}

/// The transpose of a packed matrix, read out of its panels.
pub struct Turned<'a, T>(pub &'a Packed<T>);

// Rows and columns change places.
#[allow(clippy::misnamed_getters)]
impl<T: Stored> Right for Turned<'_, T> {
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
        let packed = self.0;
        let rows = depths.len();
        let count = width.min(packed.depth - first);
        let mut part = buffer(count * packed.width);
        let mut panel = usize::MAX;
        for (row, column) in scratch.chunks_exact_mut(width).zip(depths) {
            if column / packed.width != panel {
                panel = column / packed.width;
                let values = packed.rows(panel * packed.width, first..first + count);
                // `widen` may hand back what it was given.
                part = T::widen(values, &mut part).to_vec();
            }
            let values = part.iter().skip(column % packed.width);
            for (to, from) in row.iter_mut().zip(values.step_by(packed.width)) {
                *to = *from;
            }
        }
        &scratch[..rows * width]
    }
}

impl<R: Right> Right for &R {
    fn depth(&self) -> usize {
        (**self).depth()
    }

    fn columns(&self) -> usize {
        (**self).columns()
    }

    fn panel<'a>(
        &'a self,
        first: usize,
        width: usize,
        depths: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        (**self).panel(first, width, depths, scratch)
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0)
            .collect()
    }

    fn expected(
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        shape: [usize; 3],
    ) -> Vec<f64> {
        let [m, k, n] = shape;
        (0..m * n)
            .map(|at| {
                (0..k)
                    .map(|k| f64::from(a(at / n, k)) * f64::from(b(k, at % n)))
                    .sum()
            })
            .collect()
    }

    fn assert_close(ours: &[f32], theirs: &[f64], tolerance: f64) {
        for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
            assert!(
                (f64::from(*a) - b).abs() <= tolerance * (1.0 + b.abs()),
                "{at}: {a}, expected {b}"
            );
        }
    }

    /// Odd sizes, more than one panel, depth and block of rows.
    const SHAPES: [[usize; 3]; 6] = [
        [1, 1, 1],
        [3, 5, 7],
        [9, 400, 50],
        [77, 64, 130],
        [130, 800, 33],
        [5, 0, 4],
    ];

    #[test]
    fn all_layouts_give_the_product() {
        for [m, k, n] in SHAPES {
            let (a, b) = (values(m * k), values(k * n));
            let theirs = expected(|i, d| a[i * k + d], |d, j| b[d * n + j], [m, k, n]);
            let turned: Vec<f32> = (0..k * n).map(|at| b[at % k * n + at / k]).collect();
            let left = Left {
                data: &a,
                row: k,
                depth: 1,
            };
            let rows = || Rows {
                data: &b,
                depth: k,
                columns: n,
                stride: n,
            };
            let columns = || Columns {
                data: &turned,
                depth: k,
                columns: n,
                stride: k,
            };
            let mut out = vec![f32::NAN; m * n];
            multiply(vec![Product {
                left,
                right: rows(),
                start: Start::Zero,
                out: &mut out,
            }]);
            assert_close(&out, &theirs, 1e-5);
            let mut again = vec![0.5; m * n];
            multiply(vec![Product {
                left,
                right: columns(),
                start: Start::Kept,
                out: &mut again,
            }]);
            let shifted: Vec<f64> = theirs.iter().map(|v| v + 0.5).collect();
            assert_close(&again, &shifted, 1e-5);
            let packed = Packed::<f32>::new(&columns());
            let mut third = vec![0.0; m * n];
            multiply(vec![Product {
                left,
                right: packed,
                start: Start::Zero,
                out: &mut third,
            }]);
            assert_eq!(out, third);
            // The left matrix transposed.
            let turned: Vec<f32> = (0..m * k).map(|at| a[at % m * k + at / m]).collect();
            let left = Left {
                data: &turned,
                row: 1,
                depth: m,
            };
            multiply(vec![Product {
                left,
                right: rows(),
                start: Start::Zero,
                out: &mut third,
            }]);
            assert_eq!(out, third);
        }
    }

    #[test]
    fn half_weights_are_the_rounded_weights() {
        let [m, k, n] = [9, 400, 50];
        let (a, b) = (values(m * k), values(k * n));
        let round = |v: f32| bf16::from_f32(v).to_f32();
        let theirs = expected(|i, d| a[i * k + d], |d, j| round(b[d * n + j]), [m, k, n]);
        let rows = Rows {
            data: &b,
            depth: k,
            columns: n,
            stride: n,
        };
        let packed = Packed::<bf16>::new(&rows);
        let mut out = vec![0.0; m * n];
        let left = Left {
            data: &a,
            row: k,
            depth: 1,
        };
        multiply(vec![Product {
            left,
            right: packed,
            start: Start::Zero,
            out: &mut out,
        }]);
        assert_close(&out, &theirs, 1e-5);
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let (a, b) = (values(100 * 500), values(500 * 300));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![0.0; 100 * 300];
            pool.unwrap().install(|| {
                let left = Left {
                    data: &a,
                    row: 500,
                    depth: 1,
                };
                let right = Rows {
                    data: &b,
                    depth: 500,
                    columns: 300,
                    stride: 300,
                };
                multiply(vec![Product {
                    left,
                    right,
                    start: Start::Zero,
                    out: &mut out,
                }]);
            });
            out
        };
        assert_eq!(run(1), run(5));
    }
}
