//! What encoder and decoder have in common: a convolution, a sequence of steps, and a normalised
//! convolution at the end.

use super::config::AutoencoderConfig;
use crate::{
    diffusion::resnet::{Downsample, ResnetBlock, Upsample},
    layers::{Conv2d, GroupNorm, Linear},
    ops::{self, Activation, Attention, Dropping},
    params::Scope,
    recompute,
};
use candle_core::{Result, Tensor};

/// Added to the variance in every normalisation; no configuration says otherwise.
const EPSILON: f32 = 1e-6;

/// A network without branches.
#[derive(Clone, Debug)]
pub(super) struct Trunk {
    enter: Conv2d,
    steps: Vec<Step>,
    norm: GroupNorm,
    leave: Conv2d,
    checkpointing: bool,
}

impl Trunk {
    /// `inputs` channels to those of the first step, through `steps`, then from `last` channels
    /// to `outputs`.
    pub fn new(
        scope: &mut Scope<'_>,
        config: &AutoencoderConfig,
        [inputs, first]: [usize; 2],
        steps: Vec<Step>,
        [last, outputs]: [usize; 2],
    ) -> Result<Self> {
        let groups = config.norm_num_groups;
        Ok(Trunk {
            enter: Conv2d::new(scope.child("conv_in"), inputs, first, 3, true)?,
            steps,
            norm: GroupNorm::new(scope.child("conv_norm_out"), groups, last, EPSILON)?,
            leave: Conv2d::new(scope.child("conv_out"), last, outputs, 3, true)?,
            checkpointing: false,
        })
    }

    /// Whether each step is computed again in the backward pass.
    pub fn checkpointing(self, checkpointing: bool) -> Self {
        Trunk {
            checkpointing,
            ..self
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, |step, x| match self.checkpointing {
            true => {
                let step = step.clone();
                recompute::checkpointed(&[x], move |inputs| step.forward(&inputs[0], None))
            }
            false => step.forward(x, None),
        })
    }

    /// With dropout in every residual block; nothing is computed again.
    pub fn forward_dropping(&self, x: &Tensor, dropping: &Dropping) -> Result<Tensor> {
        self.run(x, |step, x| step.forward(x, Some(dropping)))
    }

    fn run(
        &self,
        x: &Tensor,
        through: impl Fn(&Step, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x = self.enter.forward(x)?;
        for step in &self.steps {
            x = through(step, &x)?;
        }
        let x = self.norm.forward(&x, Some(Activation::Silu))?;
        self.leave.forward(&x)
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Resnet(Box<ResnetBlock>),
    Attention(PixelAttention),
    Halve(Downsample),
    Double(Upsample),
}

impl Step {
    fn forward(&self, x: &Tensor, dropping: Option<&Dropping>) -> Result<Tensor> {
        match self {
            Step::Resnet(block) => block.forward_dropping(x, None, dropping),
            Step::Attention(attention) => attention.forward(x),
            Step::Halve(downsample) => downsample.forward(x),
            Step::Double(upsample) => {
                let (_, _, height, width) = x.dims4()?;
                upsample.forward(x, 2 * height, 2 * width)
            }
        }
    }
}

/// `count` residual blocks in `scope`, the first from `inputs` to `outputs` channels.
pub(super) fn resnets(
    scope: &mut Scope<'_>,
    config: &AutoencoderConfig,
    count: usize,
    [inputs, outputs]: [usize; 2],
) -> Result<Vec<Step>> {
    let block = |i: usize| {
        let channels = [if i == 0 { inputs } else { outputs }, outputs];
        let scope = scope.child(&format!("resnets.{i}"));
        let block = ResnetBlock::new(scope, channels, None, config.norm_num_groups, EPSILON)?;
        Ok(Step::Resnet(Box::new(block)))
    };
    (0..count).map(block).collect()
}

/// The steps at the lowest resolution: two residual blocks, with attention between them where the
/// configuration wants it.
pub(super) fn middle(scope: &mut Scope<'_>, config: &AutoencoderConfig) -> Result<Vec<Step>> {
    let channels = config.block_out_channels.last().copied().unwrap_or(0);
    let mut scope = scope.child("mid_block");
    let mut steps = resnets(&mut scope, config, 2, [channels; 2])?;
    if config.mid_block_add_attention {
        let scope = scope.child("attentions.0");
        let attention = PixelAttention::new(scope, channels, config.norm_num_groups)?;
        steps.insert(1, Step::Attention(attention));
    }
    Ok(steps)
}

/// Every pixel attends to every other with one head; added to what came in.
#[derive(Clone, Debug)]
pub(super) struct PixelAttention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl PixelAttention {
    fn new(mut scope: Scope<'_>, channels: usize, groups: usize) -> Result<Self> {
        let norm = GroupNorm::new(scope.child("group_norm"), groups, channels, EPSILON)?;
        let mut map = |name| Linear::new(scope.child(name), channels, channels, true);
        Ok(PixelAttention {
            norm,
            query: map("to_q")?,
            key: map("to_k")?,
            value: map("to_v")?,
            out: map("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let tokens = ops::pixels_to_tokens(&self.norm.forward(x, None)?)?;
        let (q, k) = (self.query.forward(&tokens)?, self.key.forward(&tokens)?);
        let v = self.value.forward(&tokens)?;
        let mixed = self.out.forward(&Attention::new(1).forward(&q, &k, &v)?)?;
        ops::tokens_to_pixels(&mixed, height, width)? + x
    }
}
