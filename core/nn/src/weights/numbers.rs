//! The numbers of a tensor, read from wherever they are into the memory that the tensor will have.

use bytemuck::Pod;
use candle_core::{DType, Device, Tensor, WithDType};
use diffaug::{Error, Result};
use half::{bf16, f16, vec::HalfBitsVecExt};
use safetensors::tensor::Dtype;

/// What puts the bytes of a tensor into the slice that it is given.
type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<()>;

/// A tensor of `shape` whose bytes `fill` reads; integers of types that tensors do not have become wider
/// ones. The caller has held the size of `shape` against the length of a file.
///
/// # Errors
/// Those of `fill`, and when the type is not supported.
pub(super) fn load(dtype: Dtype, shape: &[usize], fill: Fill<'_>) -> Result<Tensor> {
    check_shape(shape)?;
    match dtype {
        Dtype::U8 | Dtype::BOOL => values::<u8>(shape, fill),
        Dtype::U32 => values::<u32>(shape, fill),
        Dtype::I16 => values::<i16>(shape, fill),
        Dtype::I32 => values::<i32>(shape, fill),
        Dtype::I64 => values::<i64>(shape, fill),
        // Read as whole numbers of the same bits, which are the same memory.
        Dtype::BF16 => {
            let values: Vec<bf16> = read::<u16>(shape, fill)?.reinterpret_into();
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        }
        Dtype::F16 => {
            let values: Vec<f16> = read::<u16>(shape, fill)?.reinterpret_into();
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        }
        Dtype::F32 => values::<f32>(shape, fill),
        Dtype::F64 => values::<f64>(shape, fill),
        Dtype::I8 => widened::<i8, i64>(shape, fill),
        Dtype::U16 => widened::<u16, u32>(shape, fill),
        Dtype::F8_E4M3 => {
            let bytes = read::<u8>(shape, fill)?;
            let (kind, place) = (DType::F8E4M3, &Device::Cpu);
            Ok(Tensor::from_raw_buffer(&bytes, kind, shape, place)?)
        }
        other => Err(Error::unsupported(format!(
            "its numbers are of the type {other:?}, which is not supported"
        ))),
    }
}

/// Checks that sides can be multiplied, with a width in bytes.
///
/// # Errors
/// When they cannot.
pub(super) fn check_shape(shape: &[usize]) -> Result<()> {
    // Without the sides of 0, for strides are products as well.
    let most = |n: usize, side: &usize| n.checked_mul((*side).max(1));
    match shape.iter().try_fold(8, most) {
        Some(_) => Ok(()),
        None => Err(Error::model(format!("its shape {shape:?} cannot be"))),
    }
}

fn read<T: Pod>(shape: &[usize], fill: Fill<'_>) -> Result<Vec<T>> {
    // Zeros that the system gives, not a pass over the memory.
    let mut values: Vec<T> = bytemuck::zeroed_vec(shape.iter().product());
    fill(bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}

fn values<T: Pod + WithDType>(shape: &[usize], fill: Fill<'_>) -> Result<Tensor> {
    Ok(Tensor::from_vec(
        read::<T>(shape, fill)?,
        shape,
        &Device::Cpu,
    )?)
}

fn widened<T: Pod, U: From<T> + WithDType>(shape: &[usize], fill: Fill<'_>) -> Result<Tensor> {
    let values: Vec<U> = read::<T>(shape, fill)?.into_iter().map(U::from).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
