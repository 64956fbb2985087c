//! Layers with parameters. Names and shapes of their tensors, and the distributions that they are
//! drawn from, are PyTorch's.

use crate::{
    ops::{self, Activation, Convolution, PackedConv2d, PackedLinear, Statistics},
    params::Scope,
};
use candle_core::{DType, Result, Tensor, Var, bail};

/// Whether a model is learning or answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Statistics come from the batch, and running statistics are updated.
    Train,
    /// Running statistics are used as they are.
    Eval,
}

/// [`ops::linear`] with its weights.
#[derive(Clone, Debug)]
pub struct Linear {
    map: Map,
}

#[derive(Clone, Debug)]
enum Map {
    Plain(Tensor, Option<Tensor>),
    Packed(PackedLinear),
}

impl Linear {
    /// `inputs` to `outputs` values.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        let bound = 1.0 / (inputs as f32).sqrt();
        let weight = scope.uniform("weight", &[outputs, inputs], bound)?;
        let bias = bias.then(|| scope.uniform("bias", &[outputs], bound));
        let bias = bias.transpose()?;
        let map = match scope.is_frozen() {
            true => Map::Packed(PackedLinear::new(&weight, bias.as_ref())?),
            false => Map::Plain(weight, bias),
        };
        Ok(Linear { map })
    }

    /// `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.map {
            Map::Plain(weight, bias) => ops::linear(x, weight, bias.as_ref()),
            Map::Packed(packed) => packed.forward(x),
        }
    }
}

/// [`Convolution`] with its weights.
#[derive(Clone, Debug)]
pub struct Conv2d {
    kernel: Kernel,
    spec: Convolution,
}

#[derive(Clone, Debug)]
enum Kernel {
    Plain(Tensor, Option<Tensor>),
    Packed(PackedConv2d),
}

impl Conv2d {
    /// `inputs` to `outputs` channels, a window of `side` × `side` (odd) that keeps height and
    /// width.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(
        scope: Scope<'_>,
        inputs: usize,
        outputs: usize,
        side: usize,
        bias: bool,
    ) -> Result<Self> {
        let spec = Convolution::same(side);
        Conv2d::with(scope, [inputs, outputs], [side, side], bias, spec)
    }

    /// Any convolution: `channels` in and out, a window of `kernel` height and width.
    ///
    /// # Errors
    /// When the device has no room for it, a given tensor does not fit, or the groups do not
    /// divide the channels.
    pub fn with(
        mut scope: Scope<'_>,
        [inputs, outputs]: [usize; 2],
        [k, l]: [usize; 2],
        bias: bool,
        spec: Convolution,
    ) -> Result<Self> {
        let groups = spec.groups;
        if groups == 0 || inputs % groups != 0 || outputs % groups != 0 {
            bail!("{groups} groups do not divide {inputs} and {outputs} channels");
        }
        let inputs = inputs / groups;
        // Kaiming's uniform distribution with a = sqrt(5) comes down to this bound.
        let bound = 1.0 / ((inputs * k * l) as f32).sqrt();
        let weight = scope.uniform("weight", &[outputs, inputs, k, l], bound)?;
        let bias = bias.then(|| scope.uniform("bias", &[outputs], bound));
        let bias = bias.transpose()?;
        let same = k == l && k % 2 == 1 && spec == Convolution::same(k);
        let kernel = if !scope.is_frozen() || !weight.device().is_cpu() {
            Kernel::Plain(weight, bias)
        } else if same {
            Kernel::Packed(PackedConv2d::new(&weight, bias.as_ref())?)
        } else {
            // Convolved in f32, as everything is on a processor.
            let wide = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
            Kernel::Plain(weight.to_dtype(DType::F32)?, wide)
        };
        Ok(Conv2d { kernel, spec })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, places, places]`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.kernel {
            Kernel::Plain(weight, bias) => self.spec.forward(x, weight, bias.as_ref()),
            Kernel::Packed(packed) => packed.forward(x),
        }
    }
}

/// [`ops::group_norm`] with its weights.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    epsilon: f32,
}

impl GroupNorm {
    /// For `channels` channels in `groups` groups; `epsilon` is added to the variance.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, groups: usize, channels: usize, epsilon: f32) -> Result<Self> {
        Ok(GroupNorm {
            weight: affine(&mut scope, "weight", channels, 1.0)?,
            bias: affine(&mut scope, "bias", channels, 0.0)?,
            groups,
            epsilon,
        })
    }

    /// Normalises `x` `[batch, channels, ..]` and applies `activation`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        let (weight, bias) = (&self.weight, &self.bias);
        ops::group_norm(x, self.groups, weight, bias, self.epsilon, activation)
    }
}

/// [`ops::layer_norm`] with its weights.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl LayerNorm {
    /// For rows of `width` values; `epsilon` is added to the variance.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, width: usize, epsilon: f32) -> Result<Self> {
        Ok(LayerNorm {
            weight: affine(&mut scope, "weight", width, 1.0)?,
            bias: affine(&mut scope, "bias", width, 0.0)?,
            epsilon,
        })
    }

    /// Normalises the last dimension of `x`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

/// Scale or shift of a normalisation: on a processor in f32, as all that is computed there.
fn affine(scope: &mut Scope<'_>, name: &str, width: usize, value: f32) -> Result<Tensor> {
    let values = scope.constant(name, &[width], value)?;
    match values.device().is_cpu() {
        true => values.to_dtype(DType::F32),
        false => Ok(values),
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
            weight: affine(&mut scope, "weight", channels, 1.0)?,
            bias: affine(&mut scope, "bias", channels, 0.0)?,
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
        let [k, l] = conv.spec.padding.map(|padding| 2 * padding + 1);
        match &conv.kernel {
            Kernel::Plain(weight, None)
                if mode == Mode::Train
                    && conv.spec == Convolution::same(k)
                    && weight.dims()[2..] == [k, l] =>
            {
                let (scale, shift) = (&self.weight, &self.bias);
                let (y, mean, variance) =
                    ops::conv_batch_norm_relu(x, weight, scale, shift, Self::EPSILON)?;
                self.update(&y, &mean, &variance)?;
                Ok(y)
            }
            _ => self.forward(&conv.forward(x)?, mode, true),
        }
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
