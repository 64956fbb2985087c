//! Applies a linear map of rows and one of columns to every feature map.

use super::{fused, like};
use crate::kernels::{
    separable::{self, Axis},
    values, with_values,
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `x` `[batch, channels, height, width]` with its rows and columns mapped by the two axes, whose
/// sources have that height and width and whose results are not empty.
pub(super) fn separable(x: &Tensor, rows: Axis, columns: Axis) -> Result<Tensor> {
    if fused(x) {
        return x.contiguous()?.apply_op1(Separable { rows, columns });
    }
    composed(x, &rows, &columns)
}

/// The same by matrix products; candle's own resampling and pooling have wrong gradients or none.
pub(super) fn composed(x: &Tensor, rows: &Axis, columns: &Axis) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let matrix = |axis: &Axis| {
        let shape = (axis.outputs(), axis.inputs());
        Tensor::from_vec(axis.dense(), shape, x.device())?.to_dtype(x.dtype())
    };
    let wide = x
        .contiguous()?
        .reshape((batch * channels * height, width))?
        .matmul(&matrix(columns)?.t()?.contiguous()?)?
        .reshape((batch * channels, height, columns.outputs()))?;
    let maps = matrix(rows)?.unsqueeze(0)?.broadcast_matmul(&wide)?;
    maps.reshape((batch, channels, rows.outputs(), columns.outputs()))
}

struct Separable {
    rows: Axis,
    columns: Axis,
}

impl CustomOp1 for Separable {
    fn name(&self) -> &'static str {
        "separable"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, ..) = layout.shape().dims4()?;
        let out = separable::apply(values(x, layout)?, &self.rows, &self.columns);
        let shape = (batch, channels, self.rows.outputs(), self.columns.outputs());
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (rows, columns) = (self.rows.transposed(), self.columns.transposed());
        let dx = with_values(dy, |dy| Ok(separable::apply(dy, &rows, &columns)))?;
        Ok(Some(like(dx, x)?))
    }
}
