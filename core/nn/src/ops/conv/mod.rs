//! Convolution and its transpose.

mod packed;
#[cfg(test)]
mod tests;
mod transpose;

pub use packed::PackedConv2d;
pub use transpose::conv_transpose2x2;

use super::{fused, like, stretch::add_stretched, wide};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{DType, Result, Shape, Tensor, bail};
use diffaug_kernels::{
    buffer, channel_sums,
    conv::{correlate, write_rows},
    conv_packed::Packed,
    conv_weights::weight_gradient,
    matrix::Stored,
    strips::{Geometry, Maps},
    windows::Windows,
};

/// Convolves with stride 1 and as many zeros around as keep height and width.
///
/// `x` is `[batch, inputs, height, width]`; `weight` is `[outputs, inputs, k, k]` with odd k; `bias`
/// is `[outputs]`.
///
/// # Errors
/// When the shapes do not fit each other or k is even.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let side = kernel_side(x.shape(), weight.shape())?;
    if !fused(x) {
        let y = composed(x, weight, side / 2, [1; 3])?;
        return add_bias(&y, bias);
    }
    match bias {
        Some(bias) => [x, weight, bias].apply(Conv),
        None => [x, weight].apply(Conv),
    }
}

/// Candle's own convolution with the given padding, stride, dilation and groups.
pub(super) fn composed(
    x: &Tensor,
    weight: &Tensor,
    padding: usize,
    [stride, dilation, groups]: [usize; 3],
) -> Result<Tensor> {
    if on_processor_bf16(x) {
        let y = wide(x)?.conv2d(&wide(weight)?, padding, stride, dilation, groups)?;
        return y.to_dtype(DType::BF16);
    }
    x.conv2d(weight, padding, stride, dilation, groups)
}

/// Whether candle has no convolution for `x`: it has none of bf16 on a processor.
fn on_processor_bf16(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::BF16
}

pub(super) fn add_bias(y: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => add_stretched(y, &bias.reshape((1, (), 1, 1))?),
        None => Ok(y.clone()),
    }
}

pub(super) fn kernel_side(x: &Shape, weight: &Shape) -> Result<usize> {
    let (_, inputs, _, _) = x.dims4()?;
    let (_, expected, side, other) = weight.dims4()?;
    if expected != inputs || side != other || side % 2 == 0 {
        bail!(
            "a convolution of {inputs} channels needs weights of shape [_, {inputs}, k, k] with odd k, not {weight:?}"
        );
    }
    Ok(side)
}

pub(super) fn check_bias(outputs: usize, bias: Option<&Tensor>) -> Result<()> {
    match bias.map(Tensor::dims) {
        Some(dims) if dims != [outputs] => {
            bail!(
                "a convolution to {outputs} channels needs a bias of shape [{outputs}], not {dims:?}"
            )
        }
        _ => Ok(()),
    }
}

fn geometry(x: &Shape, pad: usize) -> Result<Geometry> {
    let (batch, _, height, width) = x.dims4()?;
    Ok(Geometry {
        batch,
        height,
        width,
        pad,
        margin: pad,
    })
}

pub(super) struct Conv;

impl Conv {
    /// The result and its shape; the bias may be empty.
    pub(super) fn forward(
        x: Operand<'_>,
        weight: Operand<'_>,
        bias: &[f32],
    ) -> Result<(Vec<f32>, Shape)> {
        let (batch, _, height, width) = x.shape.dims4()?;
        let shape = Shape::from((batch, weight.shape.dims()[0], height, width));
        let side = kernel_side(x.shape, weight.shape)?;
        if side == 1 {
            let windows = pointwise(x.shape, weight.shape)?;
            return Ok((windows.correlate(x.values, weight.values, bias), shape));
        }
        let packed = Conv::pack::<f32>(weight.values, weight.shape)?;
        let maps = Maps::new(x.values, packed.inputs());
        Ok((
            convolve(maps, geometry(x.shape, side / 2)?, &packed, bias),
            shape,
        ))
    }

    fn pack<T: Stored>(weight: &[f32], shape: &Shape) -> Result<Packed<T>> {
        let (outputs, inputs, side, _) = shape.dims4()?;
        Ok(Packed::new([outputs, inputs, side * side], weight))
    }

    /// Gradients of input and weights.
    pub(super) fn backward(x: &Tensor, weight: &Tensor, dy: &[f32]) -> Result<[Option<Tensor>; 2]> {
        let (outputs, inputs, side, _) = weight.dims4()?;
        if side == 1 {
            return gradients(&pointwise(x.shape(), weight.shape())?, x, weight, dy);
        }
        let (geometry, taps) = (geometry(x.shape(), side / 2)?, side * side);
        let dx = x.track_op().then(|| {
            // The same sum with inputs and outputs exchanged and the window turned by 180 degrees.
            let packed = with_values([weight], |[weight]| {
                Packed::<f32>::turned([inputs, outputs, taps], weight)
            })?;
            like(convolve(Maps::new(dy, outputs), geometry, &packed, &[]), x)
        });
        let dw = weight.track_op().then(|| {
            let dw = with_values([x], |[x]| {
                weight_gradient(geometry, Maps::new(x, inputs), Maps::new(dy, outputs))
            })?;
            like(dw, weight)
        });
        Ok([dx.transpose()?, dw.transpose()?])
    }
}

fn pointwise(x: &Shape, weight: &Shape) -> Result<Windows> {
    let (batch, inputs, height, width) = x.dims4()?;
    let channels = [inputs, weight.dims()[0]];
    Ok(Windows::pointwise(batch, channels, height * width))
}

/// Gradients of input and weights, where they are wanted.
pub(super) fn gradients(
    windows: &Windows,
    x: &Tensor,
    weight: &Tensor,
    dy: &[f32],
) -> Result<[Option<Tensor>; 2]> {
    let dx = x.track_op().then(|| {
        let dx = with_values([weight], |[w]| windows.scatter(dy, w, &[]))?;
        like(dx, x)
    });
    let dw = weight.track_op().then(|| {
        let dw = with_values([x], |[x]| windows.weight_gradient(x, dy))?;
        like(dw, weight)
    });
    Ok([dx.transpose()?, dw.transpose()?])
}

/// `x` holds as many channels as `weights` takes.
fn convolve<T: Stored>(
    x: Maps<'_>,
    geometry: Geometry,
    weights: &Packed<T>,
    bias: &[f32],
) -> Vec<f32> {
    let Geometry {
        batch,
        height,
        width,
        ..
    } = geometry;
    let mut out = buffer(batch * weights.outputs() * height * width);
    correlate(geometry, x, weights, (&mut out, 1), |out, band| {
        write_rows(out, band, width, bias);
    });
    out
}

impl Operation<2> for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, [x, weight]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        Conv::forward(x, weight, &[])
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        with_values([dy], |[dy]| Conv::backward(x, weight, dy))?
    }
}

impl Operation<3> for Conv {
    fn name(&self) -> &'static str {
        "conv2d with bias"
    }

    fn forward(&self, [x, weight, bias]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        Conv::forward(x, weight, bias.values)
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [dx, dw] = with_values([dy], |[dy]| Conv::backward(x, weight, dy))??;
        Ok([dx, dw, Some(bias_gradient(bias, dy)?)])
    }
}

pub(super) fn bias_gradient(bias: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (_, channels, height, width) = dy.dims4()?;
    let sums = with_values([dy], |[dy]| channel_sums(dy, channels, height * width))?;
    like(sums, bias)
}
