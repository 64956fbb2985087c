//! Layers with parameters. Names and shapes of their tensors, and the distributions that they are
//! drawn from, are PyTorch's.

use crate::{
    ops::{self, Statistics},
    params::Scope,
};
use candle_core::{Result, Tensor, Var};

/// Whether a model is learning or answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Statistics come from the batch, and running statistics are updated.
    Train,
    /// Running statistics are used as they are.
    Eval,
}

/// [`ops::conv2d`] with its weights.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Conv2d {
    /// `inputs` to `outputs` channels, a window of `side` × `side` (odd).
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn new(
        mut scope: Scope<'_>,
        inputs: usize,
        outputs: usize,
        side: usize,
        bias: bool,
    ) -> Result<Self> {
        // Kaiming's uniform distribution with a = sqrt(5) comes down to this bound.
        let bound = 1.0 / ((inputs * side * side) as f32).sqrt();
        let weight = scope.uniform("weight", &[outputs, inputs, side, side], bound)?;
        let bias = bias.then(|| scope.uniform("bias", &[outputs], bound));
        Ok(Conv2d {
            weight,
            bias: bias.transpose()?,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height, width]`.
    ///
    /// # Errors
    /// When `x` has another number of channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::conv2d(x, &self.weight, self.bias.as_ref())
    }
}

/// [`ops::conv_transpose2x2`] with its weights.
#[derive(Clone, Debug)]
pub struct ConvTranspose2x2 {
    weight: Tensor,
    bias: Tensor,
}

impl ConvTranspose2x2 {
    /// `inputs` to `outputs` channels at twice the height and width.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        // PyTorch takes the second dimension for the inputs here, too.
        let bound = 1.0 / ((outputs * 4) as f32).sqrt();
        Ok(ConvTranspose2x2 {
            weight: scope.uniform("weight", &[inputs, outputs, 2, 2], bound)?,
            bias: scope.uniform("bias", &[outputs], bound)?,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, 2 height, 2 width]`.
    ///
    /// # Errors
    /// When `x` has another number of channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::conv_transpose2x2(x, &self.weight, &self.bias)
    }
}

/// [`ops::batch_norm`] with its weights and running statistics.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
}

impl BatchNorm {
    /// Added to the variance.
    const EPSILON: f32 = 1e-5;
    /// Share of the new batch in the running statistics.
    const MOMENTUM: f64 = 0.1;

    /// For `channels` channels.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn new(mut scope: Scope<'_>, channels: usize) -> Result<Self> {
        Ok(BatchNorm {
            weight: scope.constant("weight", &[channels], 1.0)?,
            bias: scope.constant("bias", &[channels], 0.0)?,
            running_mean: scope.buffer("running_mean", &[channels], 0.0)?,
            running_var: scope.buffer("running_var", &[channels], 1.0)?,
        })
    }

    /// Normalises `x`; with `relu` negative results become 0.
    ///
    /// # Errors
    /// When `x` has another number of channels.
    pub fn forward(&self, x: &Tensor, mode: Mode, relu: bool) -> Result<Tensor> {
        let statistics = match mode {
            Mode::Train => Statistics::Batch,
            Mode::Eval => Statistics::Given(&self.running_mean, &self.running_var),
        };
        let (y, mean, variance) =
            ops::batch_norm(x, &self.weight, &self.bias, statistics, Self::EPSILON, relu)?;
        if mode == Mode::Train {
            self.update(&y, &mean, &variance)?;
        }
        Ok(y)
    }

    /// `conv` without bias, this normalisation and the ReLU, as one operation where there is one.
    ///
    /// # Errors
    /// When the channels do not fit each other.
    pub fn forward_after(&self, conv: &Conv2d, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if mode == Mode::Eval || conv.bias.is_some() {
            return self.forward(&conv.forward(x)?, mode, true);
        }
        let (scale, shift) = (&self.weight, &self.bias);
        let (y, mean, variance) =
            ops::conv_batch_norm_relu(x, &conv.weight, scale, shift, Self::EPSILON)?;
        self.update(&y, &mean, &variance)?;
        Ok(y)
    }

    /// Lets the running statistics follow those of a batch that became `y`.
    fn update(&self, y: &Tensor, mean: &Tensor, variance: &Tensor) -> Result<()> {
        let count = (y.elem_count() / y.dim(1)?) as f64;
        // The running variance is the unbiased one; of a single value there is none.
        let unbiased = (variance * (count / (count - 1.0).max(1.0)))?;
        follow(&self.running_mean, mean)?;
        follow(&self.running_var, &unbiased)
    }
}

fn follow(running: &Var, batch: &Tensor) -> Result<()> {
    let kept = (running.as_detached_tensor() * (1.0 - BatchNorm::MOMENTUM))?;
    running.set(&(kept + (batch * BatchNorm::MOMENTUM)?)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{params::Params, testing};
    use candle_core::Device;

    #[test]
    fn running_statistics_follow_the_batches() {
        let mut params = Params::new(&Device::Cpu, 0);
        let norm = BatchNorm::new(params.root(), 1).unwrap();
        let x = Tensor::new(&[2f32, 4., 6., 8.], &Device::Cpu).unwrap();
        let x = x.reshape((1, 1, 2, 2)).unwrap();
        norm.forward(&x, Mode::Train, false).unwrap();
        let expect = |var: &Var, value: f32| {
            testing::close(var, &Tensor::new(&[value], &Device::Cpu).unwrap(), 1e-6);
        };
        // Mean 5, unbiased variance 20 / 3.
        expect(&norm.running_mean, 0.5);
        expect(&norm.running_var, 0.9 + 2.0 / 3.0);
        let before = norm.running_mean.to_vec1::<f32>().unwrap();
        norm.forward(&x, Mode::Eval, false).unwrap();
        assert_eq!(before, norm.running_mean.to_vec1::<f32>().unwrap());
    }
}
