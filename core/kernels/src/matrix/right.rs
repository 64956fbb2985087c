//! Where the panels of the right matrix come from: rows or columns as they lie in memory, or packed weights.

use super::width;
use crate::buffer;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use pulp::Arch;
use rayon::prelude::*;
use std::ops::Range;

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
