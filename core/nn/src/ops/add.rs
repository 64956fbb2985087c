//! Sums of feature maps, and their modulation channel by channel. Candle's own addition has a pool
//! of threads of its own, which waits for work by spinning and so takes the processor away from ours.

use super::{fused, like, stretch::add_stretched, wide};
use crate::kernels::{assemble, values, with_values};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;

/// Values that one task takes.
const CHUNK: usize = 1 << 14;

/// `x` plus `y`, of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !fused(x) || !fused(y) || x.shape() != y.shape() {
        return x + y;
    }
    x.contiguous()?.apply_op2(&y.contiguous()?, Add)
}

/// `x` `[batch, channels, ..]` plus one value for each channel of each image: `shift` is `[batch,
/// channels]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn shift_channels(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let shape = per_channel(x, shift)?;
    if fused(x) && fused(shift) {
        return x.contiguous()?.apply_op2(&shift.contiguous()?, Shift);
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
        let (scale, shift) = (scale.contiguous()?, shift.contiguous()?);
        return x.contiguous()?.apply_op3(&scale, &shift, Modulate);
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

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (values(x, x_layout)?, values(y, y_layout)?);
        let (sums, _) = assemble(x.len(), CHUNK, |index, to| {
            let (x, y) = (&x[index * CHUNK..], &y[index * CHUNK..]);
            Arch::new().dispatch(|| {
                for ((to, x), y) in to.iter_mut().zip(x).zip(y) {
                    *to = x + y;
                }
            });
        });
        Ok((CpuStorage::F32(sums), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.clone()), Some(dy.clone())))
    }
}

struct Shift;

impl CustomOp2 for Shift {
    fn name(&self) -> &'static str {
        "shift channels"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, shift) = (values(x, x_layout)?, values(shift, shift_layout)?);
        let size = x.len() / shift.len().max(1);
        let (sums, _) = assemble(x.len(), size, |index, to| {
            let (x, shift) = (&x[index * size..], shift[index]);
            Arch::new().dispatch(|| {
                for (to, x) in to.iter_mut().zip(x) {
                    *to = x + shift;
                }
            });
        });
        Ok((CpuStorage::F32(sums), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        shift: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sums = with_values(dy, |dy| {
            let size = dy.len() / shift.elem_count().max(1);
            let maps = dy.par_chunks(size.max(1));
            Ok(maps
                .map(|map| crate::kernels::sum([map], |[v]| v) as f32)
                .collect())
        })?;
        Ok((Some(dy.clone()), Some(like(sums, shift)?)))
    }
}

struct Modulate;

impl CustomOp3 for Modulate {
    fn name(&self) -> &'static str {
        "modulate channels"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, scale) = (values(x, x_layout)?, values(scale, scale_layout)?);
        let out = modulated(x, scale, values(shift, shift_layout)?);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let maps = scale.elem_count();
        let (dx, sums) = with_values(x, |x| {
            with_values(scale, |scale| {
                with_values(dy, |dy| {
                    let size = (x.len() / maps.max(1)).max(1);
                    let parts = x.par_chunks(size).zip(dy.par_chunks(size));
                    let sums: Vec<[f32; 2]> = parts
                        .map(|(x, dy)| {
                            let scaled = crate::kernels::sum([x, dy], |[x, dy]| x * dy);
                            [scaled, crate::kernels::sum([dy], |[dy]| dy)].map(|sum| sum as f32)
                        })
                        .collect();
                    Ok((modulated(dy, scale, &vec![0.0; maps]), sums))
                })
            })
        })?;
        let part = |which: usize| like(sums.iter().map(|sums| sums[which]).collect(), scale);
        Ok((Some(like(dx, x)?), Some(part(0)?), Some(part(1)?)))
    }
}

/// Each map of `x` times 1 + its `scale`, plus its `shift`.
fn modulated(x: &[f32], scale: &[f32], shift: &[f32]) -> Vec<f32> {
    let size = x.len() / scale.len().max(1);
    let (out, _) = assemble(x.len(), size, |index, to| {
        let (x, factor, shift) = (&x[index * size..], 1.0 + scale[index], shift[index]);
        Arch::new().dispatch(|| {
            for (to, x) in to.iter_mut().zip(x) {
                *to = x * factor + shift;
            }
        });
    });
    out
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
