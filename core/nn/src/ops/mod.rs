//! Differentiable operations on `[batch, channels, height, width]` tensors.
//!
//! For f32 on a processor each is one fused operation with a gradient written by hand; for other
//! devices and types the same function is made of candle's operations. Inside [`composed`] the latter
//! are tried on a processor.

mod activation;
mod add;
mod attention;
mod block;
mod clamp;
mod conv;
mod convolution;
mod dropout;
mod fourier;
mod linear;
mod loss;
mod norm;
mod pool;
mod resample;
mod rows;
mod separable;
mod softmax;
mod stretch;
#[cfg(test)]
mod tests;
mod tokens;

pub use activation::{Activation, geglu, gelu, gelu_tanh, leaky_relu, silu};
pub use add::{add, modulate_channels, shift_channels};
pub use attention::Attention;
pub use block::conv_batch_norm_relu;
pub use clamp::clamp_leading_back;
pub use conv::{PackedConv2d, conv_transpose2x2, conv2d};
pub use convolution::Convolution;
pub use dropout::{Dropping, dropout};
pub use fourier::{FourierNorm, irfft2, rfft2};
pub use linear::{PackedLinear, linear};
pub use loss::{SoftDice, bce_with_logits, cross_entropy, dice_bce_with_logits, l1, mse};
pub use norm::{Statistics, batch_norm};
pub use pool::{avg_pool2d, max_pool2d, max_pool2x2};
pub use resample::{upsample_bilinear2d, upsample_nearest2d};
pub use rows::{group_norm, instance_norm, layer_norm};
pub use softmax::softmax;
pub use tokens::{pixels_to_tokens, tokens_to_pixels};

use candle_core::{DType, Device, Result, Tensor};
use std::cell::Cell;

/// max(x, 0).
///
/// # Errors
/// Those of candle.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.relu()
}

/// 1 / (1 + e^-x).
///
/// # Errors
/// Those of candle.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::sigmoid(x)
}

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns when, on this thread, the operations take the processor for any other device:
/// they are made of candle's operations, in the type of their inputs. So it is found out without a
/// GPU what one is going to compute.
pub fn composed<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            COMPOSED.set(self.0);
        }
    }
    let _restore = Restore(COMPOSED.replace(true));
    work()
}

/// Whether the kernels of this crate compute on `device`: on the processor, outside [`composed`].
/// Everything there is f32.
pub fn has_kernels(device: &Device) -> bool {
    device.is_cpu() && !COMPOSED.get()
}

/// Whether the fused form applies.
fn fused(x: &Tensor) -> bool {
    has_kernels(x.device()) && x.dtype() == DType::F32
}

/// Half precision as f32, in which sums over many values keep their digits.
fn wide(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// `values` as a tensor of the shape and device of `like`.
fn like(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}
