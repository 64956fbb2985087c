//! The parts of Diff-Trans: patches, normalisations that are told the timestep, blocks, and what halves and
//! doubles maps. All maps are `[n, rows, columns, channels]`.

use super::{Architecture, window::WindowAttention};
use candle_core::{DType, Result, Tensor};
use diffaug_nn::{
    layers::{Conv2d, LayerNorm, Linear, Mode},
    ops::{self, Convolution},
    params::Scope,
    recompute,
    segmenter::Pass,
};

/// Added to the variance by a normalisation.
const EPSILON: f32 = 1e-5;

/// Patches of pixels as tokens.
pub(super) struct Patches {
    conv: Conv2d,
    norm: LayerNorm,
}

impl Patches {
    pub(super) fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        inputs: usize,
    ) -> Result<Self> {
        let (patch, width) = (architecture.patch, architecture.width);
        let spec = Convolution::square(patch, 0);
        let conv = scope.child("conv");
        Ok(Patches {
            conv: Conv2d::with(conv, [inputs, width], [patch; 2], true, spec)?,
            norm: LayerNorm::new(scope.child("norm"), width, EPSILON)?,
        })
    }

    /// `[n, inputs, height, width]` to a map.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.conv.forward(x)?;
        let (batch, channels, rows, columns) = x.dims4()?;
        let tokens = self.norm.forward(&ops::pixels_to_tokens(&x)?)?;
        tokens.reshape((batch, rows, columns, channels))
    }
}

/// A layer normalisation that is told the timestep, if there is one.
#[derive(Clone)]
pub(super) struct Norm {
    norm: LayerNorm,
    time: Option<Linear>,
}

impl Norm {
    pub(super) fn new(mut scope: Scope<'_>, channels: usize, time: Option<usize>) -> Result<Self> {
        let linear = |time| Linear::new(scope.child("time"), time, 2 * channels, true);
        let time = time.map(linear).transpose()?;
        let norm = LayerNorm::new(scope, channels, EPSILON)?;
        Ok(Norm { norm, time })
    }

    /// `told` is `[n, width]`.
    pub(super) fn forward(&self, x: &Tensor, told: Option<&Tensor>) -> Result<Tensor> {
        let y = self.norm.forward(x)?;
        let (Some(time), Some(told)) = (&self.time, told) else {
            return Ok(y);
        };
        let channels = y.dim(3)?;
        // In f32, for gradients are summed over all tokens here.
        let both = time.forward(told)?.to_dtype(DType::F32)?;
        let both = both.reshape((told.dim(0)?, 1, 1, 2 * channels))?;
        let scale = (both.narrow(3, 0, channels)? + 1.0)?;
        let shift = both.narrow(3, channels, channels)?;
        y.to_dtype(DType::F32)?
            .broadcast_mul(&scale)?
            .broadcast_add(&shift)?
            .to_dtype(x.dtype())
    }
}

/// Attention in windows, then a map by way of four times the width.
#[derive(Clone)]
pub(super) struct Block {
    norms: [Norm; 2],
    attention: WindowAttention,
    widen: Linear,
    narrow: Linear,
}

impl Block {
    pub(super) fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        level: usize,
        time: Option<usize>,
        shifted: bool,
    ) -> Result<Self> {
        let channels = architecture.channels(level);
        let mut norm = |name| Norm::new(scope.child(name), channels, time);
        let norms = [norm("norm1")?, norm("norm2")?];
        let attention = scope.child("attention");
        Ok(Block {
            norms,
            attention: WindowAttention::new(attention, architecture, level, shifted)?,
            widen: Linear::new(scope.child("widen"), channels, 4 * channels, true)?,
            narrow: Linear::new(scope.child("narrow"), 4 * channels, channels, true)?,
        })
    }

    fn forward(&self, x: &Tensor, told: Option<&Tensor>) -> Result<Tensor> {
        let h = self.norms[0].forward(x, told)?;
        let x = ops::add(&self.attention.forward(&h, &h)?, x)?;
        let h = self.widen.forward(&self.norms[1].forward(&x, told)?)?;
        ops::add(&self.narrow.forward(&ops::gelu(&h)?)?, &x)
    }

    /// Computed again in the backward pass where `pass` says so.
    pub(super) fn run(&self, x: &Tensor, told: Option<&Tensor>, pass: &Pass<'_>) -> Result<Tensor> {
        if !(pass.recompute && pass.mode == Mode::Train) {
            return self.forward(x, told);
        }
        let block = self.clone();
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(told).collect();
        recompute::checkpointed(&inputs, move |inputs| {
            block.forward(&inputs[0], inputs.get(1))
        })
    }
}

/// Attention of the mask's tokens to the image's.
#[derive(Clone)]
pub(super) struct Cross {
    norm: Norm,
    attention: WindowAttention,
}

impl Cross {
    pub(super) fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        level: usize,
        time: usize,
    ) -> Result<Self> {
        let norm = scope.child("norm");
        Ok(Cross {
            norm: Norm::new(norm, architecture.channels(level), Some(time))?,
            attention: WindowAttention::new(scope.child("attention"), architecture, level, false)?,
        })
    }

    fn forward(&self, x: &Tensor, told: &Tensor, features: &Tensor) -> Result<Tensor> {
        let h = self.norm.forward(x, Some(told))?;
        ops::add(&self.attention.forward(&h, features)?, x)
    }

    /// Computed again in the backward pass where `pass` says so.
    pub(super) fn run(
        &self,
        x: &Tensor,
        told: &Tensor,
        features: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        if !(pass.recompute && pass.mode == Mode::Train) {
            return self.forward(x, told, features);
        }
        let cross = self.clone();
        recompute::checkpointed(&[x, told, features], move |inputs| {
            cross.forward(&inputs[0], &inputs[1], &inputs[2])
        })
    }
}

/// 2×2 tokens as one of twice the width.
pub(super) struct Merge {
    norm: LayerNorm,
    reduce: Linear,
}

impl Merge {
    /// From `channels` channels.
    pub(super) fn new(mut scope: Scope<'_>, channels: usize) -> Result<Self> {
        Ok(Merge {
            norm: LayerNorm::new(scope.child("norm"), 4 * channels, EPSILON)?,
            reduce: Linear::new(scope.child("reduce"), 4 * channels, 2 * channels, false)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, rows, columns, channels) = x.dims4()?;
        let x = x
            .reshape(&[batch, rows / 2, 2, columns / 2, 2, channels][..])?
            .permute([0, 1, 3, 2, 4, 5])?
            .reshape((batch, rows / 2, columns / 2, 4 * channels))?;
        self.reduce.forward(&self.norm.forward(&x)?)
    }
}

/// One token as several.
pub(super) struct Grow {
    widen: Linear,
    norm: LayerNorm,
    factor: usize,
}

impl Grow {
    /// From `inputs` to `outputs` channels at `factor` times the rows and columns.
    pub(super) fn new(
        mut scope: Scope<'_>,
        inputs: usize,
        outputs: usize,
        factor: usize,
    ) -> Result<Self> {
        let widened = factor * factor * outputs;
        Ok(Grow {
            widen: Linear::new(scope.child("widen"), inputs, widened, false)?,
            norm: LayerNorm::new(scope.child("norm"), outputs, EPSILON)?,
            factor,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.widen.forward(x)?;
        let (batch, rows, columns, channels) = x.dims4()?;
        let factor = self.factor;
        let outputs = channels / (factor * factor);
        let x = x
            .reshape(&[batch, rows, columns, factor, factor, outputs][..])?
            .permute([0, 1, 3, 2, 4, 5])?
            .reshape((batch, factor * rows, factor * columns, outputs))?;
        self.norm.forward(&x)
    }
}

/// What the pixels of images and noisy masks add to the tokens' knowledge: a 3×3 convolution of all, whose
/// channels the timestep scales and shifts.
pub(super) struct Refine {
    conv: Conv2d,
    time: Linear,
}

impl Refine {
    /// To `outputs` channels from as many and `pixels` more.
    pub(super) fn new(
        mut scope: Scope<'_>,
        pixels: usize,
        outputs: usize,
        time: usize,
    ) -> Result<Self> {
        Ok(Refine {
            conv: Conv2d::new(scope.child("conv"), outputs + pixels, outputs, 3, true)?,
            time: Linear::new(scope.child("time"), time, 2 * outputs, true)?,
        })
    }

    /// `grown` is a map of the size of `pixels`, which are `[n, channels, height, width]` as is the result.
    pub(super) fn forward(
        &self,
        grown: &Tensor,
        pixels: &[&Tensor],
        told: &Tensor,
    ) -> Result<Tensor> {
        let (_, height, width, channels) = grown.dims4()?;
        let grown = ops::tokens_to_pixels(&grown.flatten(1, 2)?, height, width)?;
        let all: Vec<&Tensor> = std::iter::once(&grown)
            .chain(pixels.iter().copied())
            .collect();
        let x = self.conv.forward(&Tensor::cat(&all, 1)?)?;
        let both = self.time.forward(told)?;
        let part = |from| both.narrow(1, from, channels)?.contiguous();
        ops::gelu(&ops::modulate_channels(&x, &part(0)?, &part(channels)?)?)
    }
}
