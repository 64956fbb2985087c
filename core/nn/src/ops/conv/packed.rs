//! Convolution with weights that do not change, packed.

use super::{Conv, check_bias, conv2d, convolve, geometry, kernel_side};
use crate::{
    operation::{Apply, Operand, Operation, with_values},
    ops::{has_kernels, like},
};
use candle_core::{DType, Result, Shape, Tensor, bail};
#[cfg(target_arch = "x86_64")]
use diffaug_kernels::bf16::conv::Paired;
use diffaug_kernels::{
    conv_packed::Packed,
    matrix::Stored,
    strips::{Geometry, Maps},
};
use half::{bf16, f16};
use std::sync::Arc;

/// [`conv2d`] with weights that do not change: on a processor they are kept in the order in which
/// they are read, in the type that they came in, so that bf16 and f16 take half the memory. Sums
/// are formed in f32. Gradients flow to the input, as adapters on frozen weights need.
///
/// Where the processor multiplies bf16 numbers itself, bf16 weights meet an input that is rounded
/// to bf16, as in [`PackedLinear`](crate::ops::PackedLinear).
#[derive(Clone)]
pub struct PackedConv2d {
    weight: Weight,
    bias: Option<Tensor>,
    side: usize,
}

#[derive(Clone)]
enum Weight {
    Packed(Arc<dyn Kernel>),
    /// On another device, as it is.
    Tensor(Tensor),
}

/// Packed weights.
trait Kernel: Send + Sync {
    fn inputs(&self) -> usize;

    fn outputs(&self) -> usize;

    /// Convolves maps of the given geometry and adds a bias that may be empty.
    fn forward(&self, x: &[f32], geometry: Geometry, bias: &[f32]) -> Vec<f32>;

    /// The gradient of the input.
    fn backward(&self, dy: &[f32], geometry: Geometry) -> Vec<f32>;
}

impl<T: Stored> Kernel for Packed<T> {
    fn inputs(&self) -> usize {
        self.inputs()
    }

    fn outputs(&self) -> usize {
        self.outputs()
    }

    fn forward(&self, x: &[f32], geometry: Geometry, bias: &[f32]) -> Vec<f32> {
        convolve(Maps::new(x, self.inputs()), geometry, self, bias)
    }

    fn backward(&self, dy: &[f32], geometry: Geometry) -> Vec<f32> {
        self.turn().forward(dy, geometry, &[])
    }
}

#[cfg(target_arch = "x86_64")]
impl Kernel for Paired {
    fn inputs(&self) -> usize {
        self.inputs()
    }

    fn outputs(&self) -> usize {
        self.outputs()
    }

    fn forward(&self, x: &[f32], geometry: Geometry, bias: &[f32]) -> Vec<f32> {
        self.convolve(x, geometry, bias)
    }

    fn backward(&self, dy: &[f32], geometry: Geometry) -> Vec<f32> {
        self.turned().forward(dy, geometry, &[])
    }
}

/// bf16 weights as this processor multiplies them fastest.
fn narrow(weight: &[f32], shape: &Shape) -> Result<Arc<dyn Kernel>> {
    #[cfg(target_arch = "x86_64")]
    {
        let (outputs, inputs, side, _) = shape.dims4()?;
        let taps = side * side;
        let paired = Paired::new([outputs, inputs, taps], |output, input, tap| {
            weight[(output * inputs + input) * taps + tap]
        });
        if let Some(paired) = paired {
            return Ok(Arc::new(paired));
        }
    }
    Ok(Arc::new(Conv::pack::<bf16>(weight, shape)?))
}

impl std::fmt::Debug for PackedConv2d {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedConv2d").finish_non_exhaustive()
    }
}

impl PackedConv2d {
    /// Packs `weight` (`[outputs, inputs, k, k]` with odd k; f32, bf16 or f16); `bias` is
    /// `[outputs]`.
    ///
    /// # Errors
    /// When the shapes do not fit each other or the type is another.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs, side, _) = weight.dims4()?;
        kernel_side(&Shape::from((1, inputs, 1, 1)), weight.shape())?;
        check_bias(outputs, bias)?;
        if !has_kernels(weight.device()) {
            return Ok(PackedConv2d {
                weight: Weight::Tensor(weight.clone()),
                bias: bias.cloned(),
                side,
            });
        }
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous());
        let (dtype, shape) = (weight.dtype(), weight.shape());
        let weight = with_values([&weight.to_dtype(DType::F32)?], |[weight]| {
            Ok(Weight::Packed(match dtype {
                DType::F32 => Arc::new(Conv::pack::<f32>(weight, shape)?),
                DType::BF16 => narrow(weight, shape)?,
                DType::F16 => Arc::new(Conv::pack::<f16>(weight, shape)?),
                other => bail!("weights of a convolution are f32, bf16 or f16, not {other:?}"),
            }))
        })??;
        Ok(PackedConv2d {
            weight,
            bias: bias.transpose()?,
            side,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height, width]`; on a processor `x`
    /// is f32.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = match &self.weight {
            Weight::Packed(weight) => weight.clone(),
            Weight::Tensor(weight) => return conv2d(x, weight, self.bias.as_ref()),
        };
        let (expected, channels) = (weight.inputs(), x.dim(1)?);
        if channels != expected {
            bail!("a convolution of {expected} channels cannot take {channels}");
        }
        let bias = match &self.bias {
            Some(bias) => bias.to_vec1()?,
            None => Vec::new(),
        };
        [x].apply(Frozen {
            weight,
            bias,
            pad: self.side / 2,
        })
    }
}

#[cfg(test)]
impl PackedConv2d {
    /// bf16 weights widened as they are read, as on a processor without an instruction for them.
    pub(super) fn widened(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let wide = weight.to_dtype(DType::F32)?;
        let packed = with_values([&wide], |[values]| {
            Conv::pack::<bf16>(values, weight.shape())
        })??;
        Ok(PackedConv2d {
            weight: Weight::Packed(Arc::new(packed)),
            bias: Some(bias.clone()),
            side: weight.dim(2)?,
        })
    }
}

struct Frozen {
    weight: Arc<dyn Kernel>,
    bias: Vec<f32>,
    pad: usize,
}

impl Operation<1> for Frozen {
    fn name(&self) -> &'static str {
        "packed conv2d"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let (batch, _, height, width) = x.shape.dims4()?;
        let geometry = geometry(x.shape, self.pad)?;
        let y = self.weight.forward(x.values, geometry, &self.bias);
        let shape = (batch, self.weight.outputs(), height, width);
        Ok((y, Shape::from(shape)))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let geometry = geometry(x.shape(), self.pad)?;
        let dx = with_values([dy], |[dy]| self.weight.backward(dy, geometry))?;
        Ok([Some(like(dx, x)?)])
    }
}
