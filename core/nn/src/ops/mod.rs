//! Differentiable operations on `[batch, channels, height, width]` tensors.
//!
//! For f32 on a processor each is one fused operation with a gradient written by hand; for other
//! devices and types the same function is made of candle's operations.

mod activation;
mod add;
mod attention;
mod block;
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
#[cfg(test)]
mod tests;
mod tokens;

pub use activation::{Activation, geglu, gelu, gelu_tanh, silu};
pub use add::{add, modulate_channels, shift_channels};
pub use attention::{Attention, softmax};
pub use block::conv_batch_norm_relu;
pub use conv::{PackedConv2d, conv_transpose2x2, conv2d};
pub use convolution::{Convolution, TransposedConvolution};
pub use dropout::{Dropping, dropout};
pub use fourier::{FourierNorm, irfft2, rfft2};
pub use linear::{PackedLinear, linear};
pub use loss::{
    CrossEntropy, SoftDice, bce_with_logits, cross_entropy, dice_bce_with_logits, dice_with_logits,
    focal_with_logits, huber, l1, mse, smooth_l1, soft_dice, weighted_bce_with_logits,
};
pub use norm::{Statistics, batch_norm};
pub use pool::{adaptive_avg_pool2d, avg_pool2d, global_avg_pool2d, max_pool2d, max_pool2x2};
pub use resample::{upsample_bilinear2d, upsample_nearest2d};
pub use rows::{group_norm, instance_norm, layer_norm};
pub use tokens::{pixels_to_tokens, tokens_to_pixels};

use candle_core::{DType, Result, Tensor};

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

/// Whether the fused form applies.
fn fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// `values` as a tensor of the shape and device of `like`.
fn like(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}
