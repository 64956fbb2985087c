//! Sums of feature maps, and their modulation channel by channel. Candle's own addition has a pool
//! of threads of its own, which waits for work by spinning and so takes the processor away from ours.

use super::{fused, like, stretch::add_stretched, wide};
use crate::operation::{Apply, Operand, Operation, with_values};
use candle_core::{Result, Shape, Tensor, bail};
use diffaug_kernels::add;

/// `x` plus `y`, of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !fused(x) || !fused(y) || x.shape() != y.shape() {
        return x + y;
    }
    [x, y].apply(Add)
}

/// `x` `[batch, channels, ..]` plus one value for each channel of each image: `shift` is `[batch,
/// channels]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn shift_channels(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let shape = per_channel(x, shift)?;
    if fused(x) && fused(shift) {
        return [x, shift].apply(Shift);
    }
    add_stretched(x, &shift.reshape(shape)?)
}

/// `x` `[batch, channels, ..]` times 1 + `scale`, plus `shift`, both `[batch, channels]` (FiLM,
/// Perez et al., 2018).
///
/// # Errors
/// When the shapes do not fit each other.
pub fn modulate_channels(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let shape = per_channel(x, scale)?;
    per_channel(x, shift)?;
    if fused(x) && fused(scale) && fused(shift) {
        return [x, scale, shift].apply(Modulate);
    }
    let stretched = |t: &Tensor| wide(t)?.reshape(shape.as_slice());
    wide(x)?
        .broadcast_mul(&(stretched(scale)? + 1.0)?)?
        .broadcast_add(&stretched(shift)?)?
        .to_dtype(x.dtype())
}

/// The shape of a value for each channel of each image that can be broadcast to `x`.
fn per_channel(x: &Tensor, values: &Tensor) -> Result<Vec<usize>> {
    if x.rank() < 2 || x.dims()[..2] != *values.dims() {
        bail!(
            "a map of shape {:?} needs values of its first two dimensions, not {:?}",
            x.dims(),
            values.dims()
        );
    }
    let mut dims = vec![1; x.rank()];
    dims[..2].copy_from_slice(values.dims());
    Ok(dims)
}

struct Add;

impl Operation<2> for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, [x, y]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        Ok((add::add(x.values, y.values), x.shape.clone()))
    }

    fn backward(&self, _: [&Tensor; 2], _: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 2]> {
        Ok([Some(dy.clone()), Some(dy.clone())])
    }
}

struct Shift;

impl Operation<2> for Shift {
    fn name(&self) -> &'static str {
        "shift channels"
    }

    fn forward(&self, [x, shift]: [Operand<'_>; 2]) -> Result<(Vec<f32>, Shape)> {
        Ok((add::shift(x.values, shift.values), x.shape.clone()))
    }

    fn backward(
        &self,
        [_, shift]: [&Tensor; 2],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let sums = with_values([dy], |[dy]| add::sums(dy, shift.elem_count()))?;
        Ok([Some(dy.clone()), Some(like(sums, shift)?)])
    }
}

struct Modulate;

impl Operation<3> for Modulate {
    fn name(&self) -> &'static str {
        "modulate channels"
    }

    fn forward(&self, [x, scale, shift]: [Operand<'_>; 3]) -> Result<(Vec<f32>, Shape)> {
        let out = add::modulate(x.values, scale.values, shift.values);
        Ok((out, x.shape.clone()))
    }

    fn backward(
        &self,
        [x, scale, shift]: [&Tensor; 3],
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let maps = scale.elem_count();
        let [dx, dscale, dshift] = with_values([x, scale, dy], |[x, scale, dy]| {
            let dx = add::modulate(dy, scale, &vec![0.0; maps]);
            [dx, add::sums_of_products(x, dy, maps), add::sums(dy, maps)]
        })?;
        let grads = [like(dx, x)?, like(dscale, scale)?, like(dshift, shift)?];
        Ok(grads.map(Some))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, close, random};

    #[test]
    fn sums_are_candles() {
        for dims in [vec![1, 1, 1], vec![2, 3, 5, 7], vec![3, 5, 70, 90]] {
            let (x, y) = (random("x", &dims), random("y", &dims));
            close(&add(&x, &y).unwrap(), &(&x + &y).unwrap(), 0.0);
            let shift = random("shift", &dims[..2]);
            let mut wide = vec![1; dims.len()];
            wide[..2].copy_from_slice(&dims[..2]);
            let expected = x.broadcast_add(&shift.reshape(wide).unwrap()).unwrap();
            close(&shift_channels(&x, &shift).unwrap(), &expected, 0.0);
            let scale = random("scale", &dims[..2]);
            let mut factor = vec![1; dims.len()];
            factor[..2].copy_from_slice(&dims[..2]);
            let factor = (scale.reshape(factor).unwrap() + 1.0).unwrap();
            let shifts = (expected - &x).unwrap();
            let expected = (x.broadcast_mul(&factor).unwrap() + shifts).unwrap();
            close(
                &modulate_channels(&x, &scale, &shift).unwrap(),
                &expected,
                1e-6,
            );
        }
    }

    #[test]
    fn gradients() {
        let (x, y) = (random("x", &[2, 3, 4]), random("y", &[2, 3, 4]));
        check_gradients(&[x.clone(), y], |v| add(&v[0], &v[1])?.sqr());
        let shift = random("shift", &[2, 3]);
        check_gradients(&[x.clone(), shift.clone()], |v| {
            shift_channels(&v[0], &v[1])?.sqr()
        });
        check_gradients(&[x, random("scale", &[2, 3]), shift], |v| {
            modulate_channels(&v[0], &v[1], &v[2])?.sqr()
        });
    }

    #[test]
    fn a_misfit_is_named() {
        let (x, y) = (random("x", &[2, 3, 4]), random("y", &[2, 4]));
        assert!(add(&x, &y).is_err());
        let error = shift_channels(&x, &y).unwrap_err().to_string();
        assert!(error.contains("not [2, 4]"), "{error}");
        assert!(modulate_channels(&x, &y, &y).is_err());
    }
}
