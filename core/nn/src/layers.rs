//! Layers with parameters. Names and shapes of their tensors, and the distributions that they are
//! drawn from, are PyTorch's. Weights are f32 and are cast to the type of the input.

use crate::{
    ops::{self, Activation, Convolution, PackedConv2d, PackedLinear, Statistics},
    params::Scope,
    precision::like,
    recompute,
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
    adapter: Option<Adapter>,
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
        let adapter = Adapter::new(&mut scope, &[inputs], &[outputs])?;
        Ok(Linear { map, adapter })
    }

    /// `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.map {
            Map::Plain(weight, bias) => ops::linear(x, &like(weight, x)?, bias.as_ref()),
            Map::Packed(packed) => packed.forward(x),
        }?;
        match &self.adapter {
            None => Ok(y),
            Some(adapter) => adapter.add(y, |down, up| {
                let inner = ops::linear(x, &like(down, x)?, None)?;
                ops::linear(&inner, &like(up, x)?, None)
            }),
        }
    }
}

/// What is trained beside a layer that stays as it is: `lora_A`, which narrows the input, and
/// `lora_B`, which widens the result and begins with zeros (names of PEFT).
#[derive(Clone, Debug)]
struct Adapter {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl Adapter {
    /// For a layer with that many inputs and outputs, each with the size of its window if it has
    /// one; `None` if the layer is to have none.
    fn new(scope: &mut Scope<'_>, inputs: &[usize], outputs: &[usize]) -> Result<Option<Self>> {
        let Some(adapters) = scope.adapters() else {
            return Ok(None);
        };
        let bound = 1.0 / (inputs.iter().product::<usize>() as f32).sqrt();
        let down = [&[adapters.rank], inputs].concat();
        let up = [&outputs[..1], &[adapters.rank], &outputs[1..]].concat();
        Ok(Some(Adapter {
            down: scope.child("lora_A").trained("weight", &down, bound)?,
            up: scope.child("lora_B").trained("weight", &up, 0.0)?,
            scale: adapters.scale(),
        }))
    }

    /// Adds the change that `run` makes of `down` and `up` to `y`.
    fn add(
        &self,
        y: Tensor,
        run: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        y + (run(&self.down, &self.up)? * self.scale)?
    }
}

/// [`Convolution`] with its weights.
#[derive(Clone, Debug)]
pub struct Conv2d {
    kernel: Kernel,
    spec: Convolution,
    adapter: Option<Adapter>,
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
        let adapter = match groups {
            1 => Adapter::new(&mut scope, &[inputs, k, l], &[outputs, 1, 1])?,
            _ => None,
        };
        let inputs = inputs / groups;
        // Kaiming's uniform distribution with a = sqrt(5) comes down to this bound.
        let bound = 1.0 / ((inputs * k * l) as f32).sqrt();
        let weight = scope.uniform("weight", &[outputs, inputs, k, l], bound)?;
        let bias = bias.then(|| scope.uniform("bias", &[outputs], bound));
        let bias = bias.transpose()?;
        let same = k == l && k % 2 == 1 && spec == Convolution::same(k);
        let kernel = if !scope.is_frozen() || !ops::has_kernels(weight.device()) {
            Kernel::Plain(weight, bias)
        } else if same {
            Kernel::Packed(PackedConv2d::new(&weight, bias.as_ref())?)
        } else {
            // Convolved in f32, as everything is on a processor.
            let wide = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
            Kernel::Plain(weight.to_dtype(DType::F32)?, wide)
        };
        Ok(Conv2d {
            kernel,
            spec,
            adapter,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, places, places]`.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.kernel {
            Kernel::Plain(weight, bias) => self.spec.forward(x, &like(weight, x)?, bias.as_ref()),
            Kernel::Packed(packed) => packed.forward(x),
        }?;
        match &self.adapter {
            None => Ok(y),
            Some(adapter) => adapter.add(y, |down, up| {
                let inner = self.spec.forward(x, &like(down, x)?, None)?;
                ops::conv2d(&inner, &like(up, x)?, None)
            }),
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
    match ops::has_kernels(values.device()) {
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
        ops::conv_transpose2x2(x, &like(&self.weight, x)?, &self.bias)
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
    pub const MOMENTUM: f64 = 0.1;

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

    /// Normalises `x`; with `relu` negative results become 0. Statistics are formed in f32,
    /// whatever the type of `x`.
    ///
    /// # Errors
    /// When `x` has another number of channels.
    pub fn forward(&self, x: &Tensor, mode: Mode, relu: bool) -> Result<Tensor> {
        if x.dtype() != DType::F32 {
            let y = self.forward(&x.to_dtype(DType::F32)?, mode, relu)?;
            return y.to_dtype(x.dtype());
        }
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
                    && x.dtype() == DType::F32
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
        if recompute::replaying() {
            // This batch has been counted.
            return Ok(());
        }
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
    use crate::{
        params::{Adapters, Params},
        testing,
    };
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

    #[test]
    fn a_block_that_is_computed_twice_counts_once() {
        let mut params = Params::new(&Device::Cpu, 0);
        let norm = BatchNorm::new(params.root(), 3).unwrap();
        let x = Var::from_tensor(&testing::random("x", &[2, 3, 4, 4])).unwrap();
        let block = norm.clone();
        let y = recompute::checkpointed(&[&x], move |inputs| {
            block.forward(&inputs[0], Mode::Train, false)
        });
        let loss = y.unwrap().sqr().unwrap().sum_all().unwrap();
        let once = norm.running_mean.to_vec1::<f32>().unwrap();
        recompute::backward(&loss).unwrap();
        assert_eq!(norm.running_mean.to_vec1::<f32>().unwrap(), once);
    }

    #[test]
    fn an_adapter_begins_as_nothing_and_is_all_that_is_trained() {
        let tensor = |name: &str, shape: &[usize]| (name.to_owned(), testing::random(name, shape));
        let given = [
            tensor("map.weight", &[4, 3]),
            tensor("conv.weight", &[3, 2, 3, 3]),
        ];
        let adapters = Adapters {
            rank: 2,
            alpha: 3.0,
            targets: vec!["map".to_owned(), "conv".to_owned()],
        };
        let build = |params: &mut Params| {
            let conv = Conv2d::new(params.root().child("conv"), 2, 3, 3, false).unwrap();
            (
                conv,
                Linear::new(params.root().child("map"), 3, 4, false).unwrap(),
            )
        };
        let run = |(conv, map): &(Conv2d, Linear), x: &Tensor| {
            let y = conv.forward(x).unwrap().mean(3).unwrap();
            map.forward(&y.transpose(1, 2).unwrap().contiguous().unwrap())
        };
        let x = testing::random("x", &[2, 2, 5, 4]);
        let mut plain = Params::frozen(&Device::Cpu, given.clone().into());
        let expected = run(&build(&mut plain), &x).unwrap();
        let mut params = Params::frozen(&Device::Cpu, given.clone().into());
        params = params.with_adapters(adapters, 1);
        let layers = build(&mut params);
        testing::close(&run(&layers, &x).unwrap(), &expected, 0.0);

        let names: Vec<&str> = params.trainable().map(|(name, _)| name).collect();
        let expected = [
            "conv.lora_A.weight",
            "conv.lora_B.weight",
            "map.lora_A.weight",
            "map.lora_B.weight",
        ];
        assert_eq!(names, expected);
        // Once `up` is no longer zero, everything has a gradient, and the change is the product.
        let vars: std::collections::HashMap<&str, &Var> = params.trainable().collect();
        for name in ["conv.lora_B.weight", "map.lora_B.weight"] {
            vars[name]
                .set(&testing::random(name, vars[name].dims()))
                .unwrap();
        }
        let y = run(&layers, &x).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        testing::assert_all_trained(params.trainable(), &grads);
        let fused = given.map(|(name, base)| {
            let layer = name.trim_end_matches(".weight");
            let find = |end: &str| vars[format!("{layer}.{end}.weight").as_str()].as_tensor();
            let (down, up) = (
                find("lora_A").flatten_from(1),
                find("lora_B").flatten_from(1),
            );
            let change = up.unwrap().matmul(&down.unwrap()).unwrap();
            let change = (change.reshape(base.shape()).unwrap() * 1.5).unwrap();
            (name, (base + change).unwrap())
        });
        let mut fused = Params::frozen(&Device::Cpu, fused.into());
        testing::close(&run(&build(&mut fused), &x).unwrap(), &y, 1e-5);
    }

    #[test]
    fn in_half_precision_gradients_are_f32() {
        let mut params = Params::new(&Device::Cpu, 0);
        let conv = Conv2d::new(params.root().child("conv"), 3, 4, 3, false).unwrap();
        let norm = BatchNorm::new(params.root().child("norm"), 4).unwrap();
        let grow = ConvTranspose2x2::new(params.root().child("grow"), 4, 2).unwrap();
        let x = testing::random("x", &[2, 3, 6, 6]);
        let grads = |dtype: DType| {
            let x = x.to_dtype(dtype).unwrap();
            let y = norm.forward_after(&conv, &x, Mode::Train).unwrap();
            let y = grow.forward(&y).unwrap();
            assert_eq!(y.dtype(), dtype);
            let loss = y.to_dtype(DType::F32).unwrap().sqr().unwrap();
            recompute::backward(&loss.mean_all().unwrap()).unwrap()
        };
        let (exact, half) = (grads(DType::F32), grads(DType::F16));
        for (_, var) in params.trainable() {
            let half = half.get(var).unwrap();
            assert_eq!(half.dtype(), DType::F32);
            testing::close(half, exact.get(var).unwrap(), 0.02);
        }
    }
}
