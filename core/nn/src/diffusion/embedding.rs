//! How a network is told the timestep, and the sizes that SDXL is conditioned on.

use crate::{layers::Linear, ops, params::Scope};
use candle_core::{DType, Result, Tensor};

/// The cosines, then the sines, of each value of `t` `[n]` at `width` / 2 frequencies from 1 down
/// to nearly 1/10,000: `[n, width]`, f32 whatever the type of `t` (diffusers' `Timesteps` with
/// `flip_sin_to_cos` and no shift).
///
/// # Errors
/// Those of the device.
pub fn sinusoids(t: &Tensor, width: usize) -> Result<Tensor> {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10_000f64.ln()) * i as f64 / half as f64).exp() as f32)
        .collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
    let angles = t.to_dtype(DType::F32)?.reshape(((), 1))?;
    let angles = angles.broadcast_mul(&frequencies)?;
    Tensor::cat(&[angles.cos()?, angles.sin()?], 1)
}

/// Two linear maps with SiLU between them (`linear_1`, `linear_2`).
#[derive(Clone, Debug)]
pub struct TimestepEmbedding {
    first: Linear,
    second: Linear,
}

impl TimestepEmbedding {
    /// `inputs` to `width` values.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, inputs: usize, width: usize) -> Result<Self> {
        Ok(TimestepEmbedding {
            first: Linear::new(scope.child("linear_1"), inputs, width, true)?,
            second: Linear::new(scope.child("linear_2"), width, width, true)?,
        })
    }

    /// `[n, inputs]` to `[n, width]`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&ops::silu(&self.first.forward(x)?)?)
    }
}
