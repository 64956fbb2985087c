//! The transpose of a convolution with windows of 2×2 that do not overlap.

use super::{add_bias, bias_gradient, convolve, geometry, on_processor_bf16};
use crate::{
    operation::{Apply, Operand, Operation, with_values},
    ops::{fused, like, wide},
};
use candle_core::{DType, Result, Shape, Tensor, bail};
use diffaug_kernels::{
    buffer,
    conv::{correlate, write_phases},
    conv_packed::Packed,
    conv_weights::weight_gradient,
    strips::{Geometry, Maps},
};

/// Doubles height and width: every pixel becomes 2×2 pixels (a transposed convolution with a 2×2
/// window and stride 2).
///
/// `x` is `[batch, inputs, height, width]`; `weight` is `[inputs, outputs, 2, 2]`; `bias` is
/// `[outputs]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn conv_transpose2x2(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (inputs, expected) = (x.dim(1)?, weight.dims4()?);
    if (expected.0, expected.2, expected.3) != (inputs, 2, 2) {
        bail!(
            "a 2x2 transposed convolution of {inputs} channels needs weights of shape [{inputs}, _, 2, 2], not {:?}",
            weight.dims()
        );
    }
    if !fused(x) {
        let y = match on_processor_bf16(x) {
            true => wide(x)?
                .conv_transpose2d(&wide(weight)?, 0, 0, 2, 1)?
                .to_dtype(DType::BF16)?,
            false => x.conv_transpose2d(weight, 0, 0, 2, 1)?,
        };
        return add_bias(&y, Some(bias));
    }
    [x, weight, bias].apply(ConvTranspose)
}

/// A 1×1 convolution to four times the outputs, whose results are dealt out to 2×2 pixels.
struct ConvTranspose;

impl Operation<3> for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv_transpose2x2"
    }

    fn forward(&self, [x, weight, bias]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let geometry = geometry(x.shape, 0)?;
        let (inputs, outputs, _, _) = weight.shape.dims4()?;
        let packed = Packed::<f32>::turned([4 * outputs, inputs, 1], weight.values);
        let Geometry {
            batch,
            height,
            width,
            ..
        } = geometry;
        let mut out = buffer(batch * outputs * 4 * height * width);
        let maps = Maps::new(x.values, inputs);
        correlate(geometry, maps, &packed, (&mut out, 4), |out, band| {
            write_phases(out, band, width, bias.values);
        });
        let shape = (batch, outputs, 2 * height, 2 * width);
        Ok((out, Shape::from(shape)))
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (inputs, outputs, _, _) = weight.dims4()?;
        let geometry = geometry(x.shape(), 0)?;
        let dx = x.track_op().then(|| {
            let dx = with_values([weight, dy], |[weight, dy]| {
                let packed = Packed::<f32>::new([inputs, 4 * outputs, 1], weight);
                convolve(Maps::phases(dy, outputs), geometry, &packed, &[])
            })?;
            like(dx, x)
        });
        // With the roles exchanged the result is [input][output][phase], as the weights are.
        let dw = with_values([dy, x], |[dy, x]| {
            weight_gradient(geometry, Maps::phases(dy, outputs), Maps::new(x, inputs))
        })?;
        let dw = like(dw, weight)?;
        Ok([dx.transpose()?, Some(dw), Some(bias_gradient(bias, dy)?)])
    }
}
