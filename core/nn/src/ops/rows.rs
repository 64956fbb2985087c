//! Group, instance and layer normalisation.

use super::{Activation, fused, like, wide};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{D, Result, Shape, Tensor, bail};
use diffaug_kernels::{
    activation::{Gelu, GeluTanh, Identity, Silu},
    rows::{self, Moments},
};
use std::sync::OnceLock;

/// Normalises each image's channels in `groups` groups, scales each channel by `weight`, shifts it
/// by `bias` (`[channels]` each), and applies `activation` (Wu & He, Group normalization, 2018).
///
/// `x` is `[batch, channels, ..]`; `epsilon` is added to the variance.
///
/// # Errors
/// When the shapes do not fit each other, or the groups are not equal.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let channels = x.dim(1)?;
    if groups == 0 || channels % groups != 0 {
        bail!("a group normalisation cannot cut {channels} channels into {groups} equal groups");
    }
    if weight.dims() != [channels] || bias.dims() != [channels] {
        bail!(
            "a group normalisation of {channels} channels needs as many scales and shifts, not {:?} and {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    if !fused(x) {
        return composed(x, groups, weight, bias, epsilon, activation);
    }
    let op = GroupNorm {
        group: channels / groups,
        epsilon,
        activation,
        moments: OnceLock::new(),
    };
    [x, weight, bias].apply(op)
}

/// [`group_norm`] with one group for each channel and without activation (Ulyanov et al., 2016).
///
/// # Errors
/// Those of [`group_norm`].
pub fn instance_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f32) -> Result<Tensor> {
    group_norm(x, x.dim(1)?, weight, bias, epsilon, None)
}

fn composed(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let y = normalised(&wide(x)?.reshape((batch, groups, ()))?, epsilon)?;
    let of_channels = |t: &Tensor| t.to_dtype(y.dtype())?.reshape((1, channels, 1));
    let y = y
        .reshape((batch, channels, ()))?
        .broadcast_mul(&of_channels(weight)?)?
        .broadcast_add(&of_channels(bias)?)?
        .to_dtype(x.dtype())?
        .reshape(x.shape())?;
    match activation {
        Some(activation) => activation.forward(&y),
        None => Ok(y),
    }
}

/// Mean 0 and variance 1 along the last dimension.
fn normalised(x: &Tensor, epsilon: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let root = (&variance + f64::from(epsilon))?.sqrt()?;
    // NaN where the squares overflow, which would make zeros and hide it.
    centred.broadcast_div(&(root + (variance * 0.0)?)?)
}

struct GroupNorm {
    group: usize,
    epsilon: f32,
    activation: Option<Activation>,
    moments: OnceLock<Vec<Moments>>,
}

/// Calls `$body` with the kernel of `$op` on the given values and its activation's kernel.
macro_rules! with_norm {
    ($op:expr, $x:expr, $shape:expr, $scale:expr, $shift:expr, $norm:ident => $body:expr) => {{
        let size = $shape.dims()[2..].iter().product();
        macro_rules! with {
            ($activation:expr) => {{
                let $norm = rows::GroupNorm {
                    x: $x,
                    size,
                    group: $op.group,
                    scale: $scale,
                    shift: $shift,
                    epsilon: $op.epsilon,
                    activation: $activation,
                };
                $body
            }};
        }
        match $op.activation {
            None => with!(Identity),
            Some(Activation::Silu) => with!(Silu),
            Some(Activation::Gelu) => with!(Gelu),
            Some(Activation::GeluTanh) => with!(GeluTanh),
        }
    }};
}

impl Operation<3> for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn forward(&self, [x, scale, shift]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let shape = x.shape;
        let [x, scale, shift] = [x, scale, shift].map(|operand| operand.values);
        let (y, moments) = with_norm!(self, x, shape, scale, shift, norm => norm.forward());
        self.moments.get_or_init(|| moments);
        Ok((y, shape.clone()))
    }

    fn backward(
        &self,
        operands: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(moments) = self.moments.get() else {
            bail!("group_norm went backward before it went forward");
        };
        let [x, scale, shift] = operands;
        let shape = x.shape();
        let grads = with_values(
            [x, scale, shift, dy],
            |[x, scale, shift, dy]| with_norm!(self, x, shape, scale, shift, norm => norm.backward(moments, dy)),
        )?;
        each_like(grads, operands)
    }
}

/// Gradients as tensors like the operands that they belong to.
fn each_like([a, b, c]: [Vec<f32>; 3], [x, y, z]: [&Tensor; 3]) -> Result<[Option<Tensor>; 3]> {
    Ok([Some(like(a, x)?), Some(like(b, y)?), Some(like(c, z)?)])
}

/// Normalises the last dimension, scales by `weight` and shifts by `bias` (both of its length) (Ba
/// et al., Layer normalization, 2016); `epsilon` is added to the variance.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f32) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] || bias.dims() != [width] {
        bail!(
            "a layer normalisation of {width} values needs as many scales and shifts, not {:?} and {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    if fused(x) {
        let op = LayerNorm {
            epsilon,
            moments: OnceLock::new(),
        };
        return [x, weight, bias].apply(op);
    }
    let y = normalised(&wide(x)?, epsilon)?;
    y.broadcast_mul(&weight.to_dtype(y.dtype())?)?
        .broadcast_add(&bias.to_dtype(y.dtype())?)?
        .to_dtype(x.dtype())
}

struct LayerNorm {
    epsilon: f32,
    moments: OnceLock<Vec<Moments>>,
}

impl LayerNorm {
    fn kernel<'a>(&self, x: &'a [f32], scale: &'a [f32], shift: &'a [f32]) -> rows::LayerNorm<'a> {
        rows::LayerNorm {
            x,
            scale,
            shift,
            epsilon: self.epsilon,
        }
    }
}

impl Operation<3> for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn forward(&self, [x, scale, shift]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let kernel = self.kernel(x.values, scale.values, shift.values);
        let (y, moments) = kernel.forward();
        self.moments.get_or_init(|| moments);
        Ok((y, x.shape.clone()))
    }

    fn backward(
        &self,
        operands: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(moments) = self.moments.get() else {
            bail!("layer_norm went backward before it went forward");
        };
        let [x, scale, shift] = operands;
        let grads = with_values([x, scale, shift, dy], |[x, scale, shift, dy]| {
            self.kernel(x, scale, shift).backward(moments, dy)
        })?;
        each_like(grads, operands)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use candle_core::Var;

    fn vars(shape: &[usize], width: usize) -> [Var; 3] {
        // Far from 0, where a careless variance would be lost.
        let x = ((random("x", shape) * 3.0).unwrap() + 20.0).unwrap();
        [x, random("w", &[width]), random("b", &[width])].map(|t| Var::from_tensor(&t).unwrap())
    }

    fn agree(vars: &[Var; 3], [ours, theirs]: [Tensor; 2]) {
        close(&ours, &theirs, 1e-5);
        let dy = random("dy", ours.dims());
        let grads = |y: Tensor| (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        let (ours, theirs) = (grads(ours), grads(theirs));
        for var in vars {
            close(ours.get(var).unwrap(), theirs.get(var).unwrap(), 2e-4);
        }
    }

    #[test]
    fn squares_that_overflow_are_not_hidden() {
        // Long rows: what is left of vectors is squared in f64.
        let vast = (random("x", &[2, 4, 32, 32]) * 1e37).unwrap();
        let rows = vast.flatten_from(2).unwrap();
        let [ones, along] = [4, 1024].map(|width| random("w", &[width]).ones_like().unwrap());
        for y in [
            group_norm(&vast, 2, &ones, &ones, 1e-5, None).unwrap(),
            composed(&vast, 2, &ones, &ones, 1e-5, None).unwrap(),
            layer_norm(&rows, &along, &along, 1e-5).unwrap(),
            normalised(&rows, 1e-5).unwrap(),
        ] {
            let values: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
            assert!(
                values.iter().all(|value| value.is_nan()),
                "{:?}",
                &values[..9]
            );
        }
    }

    #[test]
    fn fused_and_composed_group_norm_agree() {
        let activations = [
            None,
            Some(Activation::Silu),
            Some(Activation::Gelu),
            Some(Activation::GeluTanh),
        ];
        for (shape, groups) in [([2, 6, 5, 7], 3), ([1, 4, 3, 3], 4), ([3, 8, 17, 1], 1)] {
            let vars = vars(&shape, shape[1]);
            let [x, w, b] = &vars;
            for activation in activations {
                let ours = group_norm(x, groups, w, b, 1e-5, activation).unwrap();
                let theirs = composed(x, groups, w, b, 1e-5, activation).unwrap();
                agree(&vars, [ours, theirs]);
            }
        }
    }

    #[test]
    fn fused_and_composed_layer_norm_agree() {
        for shape in [[3, 5, 37], [1, 1, 64], [2, 700, 33]] {
            let vars = vars(&shape, shape[2]);
            let [x, w, b] = &vars;
            let ours = layer_norm(x, w, b, 1e-5).unwrap();
            let theirs = normalised(x, 1e-5).unwrap();
            let theirs = theirs.broadcast_mul(w).unwrap().broadcast_add(b).unwrap();
            agree(&vars, [ours, theirs]);
        }
    }

    #[test]
    fn a_misfit_is_named() {
        let [x, w, b] = vars(&[1, 6, 2, 2], 6);
        let message = |t: Result<Tensor>| t.unwrap_err().to_string();
        let error = message(group_norm(&x, 4, &w, &b, 1e-5, None));
        assert!(error.contains("6 channels into 4 equal groups"), "{error}");
        let error = message(layer_norm(&x, &w, &b, 1e-5));
        assert!(error.contains("of 2 values needs"), "{error}");
    }
}
