//! Applies a linear map of rows and one of columns to every feature map.

use super::{fused, like};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Result, Shape, Tensor};
use diffaug_kernels::separable::{self, Axis};

/// `x` `[batch, channels, height, width]` with its rows and columns mapped by the two axes, whose
/// sources have that height and width and whose results are not empty.
pub(super) fn separable(x: &Tensor, rows: Axis, columns: Axis) -> Result<Tensor> {
    if fused(x) {
        return [x].apply(Separable { rows, columns });
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

impl Operation<1> for Separable {
    fn name(&self) -> &'static str {
        "separable"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (batch, channels, ..) = x.shape.dims4()?;
        let out = separable::apply(x.values, &self.rows, &self.columns);
        let shape = (batch, channels, self.rows.outputs(), self.columns.outputs());
        Ok((out, Shape::from(shape)))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (rows, columns) = (self.rows.transposed(), self.columns.transposed());
        let dx = with_values([dy], |[dy]| separable::apply(dy, &rows, &columns))?;
        Ok([Some(like(dx, x)?)])
    }
}
