//! Activations: SiLU, GELU, leaky ReLU, and GEGLU, which gates one half of its input by the other.

use super::{fused, like};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{D, DType, Result, Shape, Tensor, bail};
use diffaug_kernels::activation::{self, Gelu, GeluTanh, LeakyRelu, Silu};

/// An activation that bends smoothly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^-x), also called swish.
    Silu,
    /// x Φ(x) with the normal distribution Φ (Hendrycks & Gimpel, 2016), by the error function.
    Gelu,
    /// The approximation of GELU by a hyperbolic tangent.
    GeluTanh,
}

/// Calls `$body` with the kernel `$kernel` of an activation.
macro_rules! with_kernel {
    ($activation:expr, $kernel:ident => $body:expr) => {
        match $activation {
            Activation::Silu => {
                let $kernel = Silu;
                $body
            }
            Activation::Gelu => {
                let $kernel = Gelu;
                $body
            }
            Activation::GeluTanh => {
                let $kernel = GeluTanh;
                $body
            }
        }
    };
}

impl Activation {
    /// The activation of every value.
    ///
    /// # Errors
    /// Those of candle.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if fused(x) {
            return [x].apply(Pointwise(self));
        }
        self.composed(x)
    }

    fn composed(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu_erf(),
            // The cube in it is beyond f16 from 41 on, and its slope then no number.
            Activation::GeluTanh if x.dtype() == DType::F16 => {
                x.to_dtype(DType::F32)?.gelu()?.to_dtype(DType::F16)
            }
            Activation::GeluTanh => x.gelu(),
        }
    }
}

/// [`Activation::Silu`] of every value.
///
/// # Errors
/// Those of candle.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Activation::Silu.forward(x)
}

/// [`Activation::Gelu`] of every value.
///
/// # Errors
/// Those of candle.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Activation::Gelu.forward(x)
}

/// [`Activation::GeluTanh`] of every value.
///
/// # Errors
/// Those of candle.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    Activation::GeluTanh.forward(x)
}

/// Every value that is above 0, and `slope` times every other (Maas et al., 2013). At 0 the gradient is
/// that of the values below, as PyTorch has it.
///
/// # Errors
/// Those of candle.
pub fn leaky_relu(x: &Tensor, slope: f32) -> Result<Tensor> {
    if fused(x) {
        return [x].apply(Leaky(slope));
    }
    x.gt(0f32)?.where_cond(x, &(x * f64::from(slope))?)
}

/// The first half of the last dimension times the [`gelu`] of the second half (Shazeer, GLU
/// variants improve transformer, 2020): `[.., 2 n]` to `[.., n]`.
///
/// # Errors
/// When the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width % 2 != 0 || width == 0 {
        bail!("a gated activation needs an even last dimension, not {width}");
    }
    if fused(x) {
        return [x].apply(Gated);
    }
    let values = x.narrow(D::Minus1, 0, width / 2)?;
    values * Activation::Gelu.composed(&x.narrow(D::Minus1, width / 2, width / 2)?)?
}

struct Pointwise(Activation);

impl Operation<1> for Pointwise {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let y = with_kernel!(self.0, kernel => activation::forward(kernel, x.values));
        Ok((y, x.shape.clone()))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let dx = with_values(
            [x, dy],
            |[x, dy]| with_kernel!(self.0, kernel => activation::backward(kernel, x, dy)),
        )?;
        Ok([Some(like(dx, x)?)])
    }
}

struct Leaky(f32);

impl Operation<1> for Leaky {
    fn name(&self) -> &'static str {
        "leaky_relu"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let y = activation::forward(LeakyRelu(self.0), x.values);
        Ok((y, x.shape.clone()))
    }

    fn backward(&self, [x]: [&Tensor; 1], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let dx = with_values([x, dy], |[x, dy]| {
            activation::backward(LeakyRelu(self.0), x, dy)
        })?;
        Ok([Some(like(dx, x)?)])
    }
}

struct Gated;

impl Operation<1> for Gated {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn forward(&self, [x]: [Operand<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let mut dims = x.shape.dims().to_vec();
        let Some(width) = dims.last_mut() else {
            bail!("a gated activation needs at least one dimension");
        };
        *width /= 2;
        let y = activation::gated(Gelu, x.values, *width);
        Ok((y, Shape::from(dims)))
    }

    fn backward(&self, [x]: [&Tensor; 1], y: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let width = y.dim(D::Minus1)?;
        let dx = with_values([x, dy], |[x, dy]| {
            activation::gated_backward(Gelu, x, dy, width)
        })?;
        Ok([Some(like(dx, x)?)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn fused_and_composed_agree() {
        let x = (random("x", &[3, 7, 13]) * 6.0).unwrap();
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let ours = activation.forward(&x).unwrap();
            close(&ours, &activation.composed(&x).unwrap(), 1e-6);
        }
    }

    #[test]
    fn a_leak_is_the_same_composed() {
        let x = random("x", &[3, 7, 13]);
        let composed = crate::ops::composed(|| leaky_relu(&x, 0.2)).unwrap();
        close(&leaky_relu(&x, 0.2).unwrap(), &composed, 0.0);
    }

    #[test]
    fn a_gate_needs_two_halves() {
        let error = geglu(&random("x", &[2, 3])).unwrap_err().to_string();
        assert!(error.contains("even last dimension, not 3"), "{error}");
    }
}
