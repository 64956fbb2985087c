//! The network that takes the noise out of masks: the U-Net of guided-diffusion (Dhariwal & Nichol, 2021), in
//! which the timestep is added in every block, resolutions change by convolutions, and one head attends.

use super::sizes::DenoiserSizes;
use crate::unit;
use candle_core::{Result, Tensor, bail};
use diffaug_nn::{
    diffusion::{Upsample, sinusoids},
    layers::{Conv2d, GroupNorm, Linear},
    ops::{self, Activation, Attention, Convolution},
    params::Scope,
    segmenter::Pass,
};

/// Added to the variance by the normalisations.
const EPSILON: f32 = 1e-5;

/// The network.
#[derive(Clone, Debug)]
pub struct Denoiser {
    time: [Linear; 2],
    enter: Conv2d,
    down: Vec<Down>,
    middle: (Block, PixelAttention, Block),
    up: Vec<Up>,
    norm: GroupNorm,
    leave: Conv2d,
    width: usize,
}

/// Where the way down has led.
#[derive(Clone, Debug)]
pub struct Descent {
    /// The map of the lowest resolution.
    pub deepest: Tensor,
    /// What each part of the way left, in that order.
    pub skips: Vec<Tensor>,
    /// Of these, the maps that had just been halved.
    pub halved: Vec<Tensor>,
}

impl Denoiser {
    /// `inputs` channels to `outputs`; it begins with answers of 0.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(
        mut scope: Scope<'_>,
        sizes: &DenoiserSizes,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self> {
        let (width, time) = (sizes.width, sizes.time());
        let (down, skips) = down(&mut scope, sizes)?;
        let lowest = sizes.lowest();
        let mut middle = scope.child("middle_block");
        let middle = (
            Block::new(middle.child("0"), sizes, [lowest; 2])?,
            PixelAttention::new(middle.child("1"), sizes, lowest)?,
            Block::new(middle.child("2"), sizes, [lowest; 2])?,
        );
        let up = up(&mut scope, sizes, skips)?;
        let first = sizes.channels(0);
        Ok(Denoiser {
            time: [
                Linear::new(scope.child("time_embed.0"), width, time, true)?,
                Linear::new(scope.child("time_embed.2"), time, time, true)?,
            ],
            enter: Conv2d::new(scope.child("input_blocks.0.0"), inputs, width, 3, true)?,
            down,
            middle,
            up,
            norm: GroupNorm::new(scope.child("out.0"), sizes.groups, first, EPSILON)?,
            leave: Conv2d::new(scope.child("out.2").zeroed(), first, outputs, 3, true)?,
            width,
        })
    }

    /// What blocks are told of the timesteps `t` `[n]`, in the type of `like`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn time(&self, t: &Tensor, like: &Tensor) -> Result<Tensor> {
        let embedded = sinusoids(t, self.width)?.to_dtype(like.dtype())?;
        let embedded = ops::silu(&self.time[0].forward(&embedded)?)?;
        // Every block begins with the SiLU of the embedding.
        ops::silu(&self.time[1].forward(&embedded)?)
    }

    /// The first map.
    ///
    /// # Errors
    /// When `x` does not fit.
    pub fn enter(&self, x: &Tensor) -> Result<Tensor> {
        self.enter.forward(x)
    }

    /// The way down from the first map.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn descend(&self, first: Tensor, time: &Tensor, pass: &Pass<'_>) -> Result<Descent> {
        let (mut skips, mut halved) = (vec![first.clone()], Vec::new());
        let mut x = first;
        for part in &self.down {
            x = part.forward(&x, time, pass)?;
            if matches!(part, Down::Halve(_)) {
                halved.push(x.clone());
            }
            skips.push(x.clone());
        }
        Ok(Descent {
            deepest: x,
            skips,
            halved,
        })
    }

    /// The middle, and the way up to the answer.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn ascend(
        &self,
        deepest: &Tensor,
        mut skips: Vec<Tensor>,
        time: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let (before, attention, after) = &self.middle;
        let x = before.run(deepest, time, pass)?;
        let mut x = after.run(&attention.run(&x, pass)?, time, pass)?;
        for part in &self.up {
            let Some(skip) = skips.pop() else {
                bail!("the way up is longer than the way down");
            };
            x = part.forward(&x, &skip, time, pass)?;
        }
        let x = self.norm.forward(&x, Some(Activation::Silu))?;
        self.leave.forward(&x)
    }
}

/// The way down after the first map, and the channels of all that it leaves.
fn down(scope: &mut Scope<'_>, sizes: &DenoiserSizes) -> Result<(Vec<Down>, Vec<usize>)> {
    let (mut parts, mut skips) = (Vec::new(), vec![sizes.width]);
    let mut channels = sizes.width;
    for level in 0..=sizes.halvings() {
        for _ in 0..sizes.blocks {
            let mut scope = scope.child(&format!("input_blocks.{}", skips.len()));
            let own = sizes.channels(level);
            let stage = (
                Block::new(scope.child("0"), sizes, [channels, own])?,
                attention(&mut scope, sizes, level)?,
            );
            parts.push(Down::Stage(Box::new(stage)));
            channels = own;
            skips.push(channels);
        }
        if level < sizes.halvings() {
            let halve = scope.child(&format!("input_blocks.{}.0.op", skips.len()));
            let spec = Convolution::square(2, 1);
            let halve = Conv2d::with(halve, [channels; 2], [3, 3], true, spec)?;
            parts.push(Down::Halve(halve));
            skips.push(channels);
        }
    }
    Ok((parts, skips))
}

/// The way up, to which `skips` channels are handed, the last first.
fn up(scope: &mut Scope<'_>, sizes: &DenoiserSizes, mut skips: Vec<usize>) -> Result<Vec<Up>> {
    let mut parts = Vec::new();
    let mut channels = sizes.lowest();
    for level in (0..=sizes.halvings()).rev() {
        for block in 0..=sizes.blocks {
            let mut scope = scope.child(&format!("output_blocks.{}", parts.len()));
            let (own, handed) = (sizes.channels(level), skips.pop().unwrap_or(0));
            let inputs = channels + handed;
            let attends = sizes.attends(level);
            let last = level > 0 && block == sizes.blocks;
            let grow =
                last.then(|| Upsample::new(scope.child(if attends { "2" } else { "1" }), own));
            parts.push(Up {
                grow: grow.transpose()?,
                block: Block::new(scope.child("0"), sizes, [inputs, own])?,
                attention: attention(&mut scope, sizes, level)?,
            });
            channels = own;
        }
    }
    Ok(parts)
}

/// The attention after a block, where there is one.
fn attention(
    scope: &mut Scope<'_>,
    sizes: &DenoiserSizes,
    level: usize,
) -> Result<Option<PixelAttention>> {
    let channels = sizes.channels(level);
    let attention = sizes
        .attends(level)
        .then(|| PixelAttention::new(scope.child("1"), sizes, channels));
    attention.transpose()
}

/// A part of the way down.
#[derive(Clone, Debug)]
enum Down {
    Stage(Box<(Block, Option<PixelAttention>)>),
    Halve(Conv2d),
}

impl Down {
    fn forward(&self, x: &Tensor, time: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        match self {
            Down::Halve(conv) => conv.forward(x),
            Down::Stage(stage) => attended(stage.0.run(x, time, pass)?, &stage.1, pass),
        }
    }
}

/// A part of the way up.
#[derive(Clone, Debug)]
struct Up {
    block: Block,
    attention: Option<PixelAttention>,
    grow: Option<Upsample>,
}

impl Up {
    fn forward(&self, x: &Tensor, skip: &Tensor, time: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = Tensor::cat(&[x, skip], 1)?;
        let x = attended(self.block.run(&x, time, pass)?, &self.attention, pass)?;
        match &self.grow {
            None => Ok(x),
            Some(grow) => {
                let (_, _, height, width) = x.dims4()?;
                grow.forward(&x, 2 * height, 2 * width)
            }
        }
    }
}

/// `x` after attention, where there is one.
fn attended(x: Tensor, attention: &Option<PixelAttention>, pass: &Pass<'_>) -> Result<Tensor> {
    match attention {
        Some(attention) => attention.run(&x, pass),
        None => Ok(x),
    }
}

/// Twice normalisation, SiLU and a 3×3 convolution, with the timestep added in between and the input at the end.
#[derive(Clone, Debug)]
struct Block {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    skip: Option<Conv2d>,
}

impl Block {
    fn new(
        mut scope: Scope<'_>,
        sizes: &DenoiserSizes,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Self> {
        let groups = sizes.groups;
        let skip = (inputs != outputs)
            .then(|| Conv2d::new(scope.child("skip_connection"), inputs, outputs, 1, true));
        let skip = skip.transpose()?;
        let conv2 = scope.child("out_layers.3").zeroed();
        let conv2 = Conv2d::new(conv2, outputs, outputs, 3, true)?;
        Ok(Block {
            norm1: GroupNorm::new(scope.child("in_layers.0"), groups, inputs, EPSILON)?,
            conv1: Conv2d::new(scope.child("in_layers.2"), inputs, outputs, 3, true)?,
            time: Linear::new(scope.child("emb_layers.1"), sizes.time(), outputs, true)?,
            norm2: GroupNorm::new(scope.child("out_layers.0"), groups, outputs, EPSILON)?,
            conv2,
            skip,
        })
    }

    fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let silu = Some(Activation::Silu);
        let h = self.conv1.forward(&self.norm1.forward(x, silu)?)?;
        let h = ops::shift_channels(&h, &self.time.forward(time)?)?;
        let h = self.conv2.forward(&self.norm2.forward(&h, silu)?)?;
        match &self.skip {
            Some(skip) => ops::add(&skip.forward(x)?, &h),
            None => ops::add(x, &h),
        }
    }

    fn run(&self, x: &Tensor, time: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let block = self.clone();
        unit::run(&[x, time], pass, move |inputs| {
            block.forward(&inputs[0], &inputs[1])
        })
    }
}

/// Every pixel attends to every other; added to what came in.
#[derive(Clone, Debug)]
struct PixelAttention {
    norm: GroupNorm,
    projections: Pointwise,
    out: Pointwise,
    channels: usize,
}

impl PixelAttention {
    fn new(mut scope: Scope<'_>, sizes: &DenoiserSizes, channels: usize) -> Result<Self> {
        let out = Pointwise::new(scope.child("proj_out").zeroed(), channels, channels)?;
        Ok(PixelAttention {
            norm: GroupNorm::new(scope.child("norm"), sizes.groups, channels, EPSILON)?,
            projections: Pointwise::new(scope.child("qkv"), channels, 3 * channels)?,
            out,
            channels,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let tokens = ops::pixels_to_tokens(&self.norm.forward(x, None)?)?;
        let all = self.projections.forward(&tokens)?;
        let part = |which: usize| {
            let part = all.narrow(2, which * self.channels, self.channels)?;
            part.contiguous()
        };
        let mixed = Attention::new(1).forward(&part(0)?, &part(1)?, &part(2)?)?;
        let mixed = self.out.forward(&mixed)?;
        ops::add(&ops::tokens_to_pixels(&mixed, height, width)?, x)
    }

    fn run(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let attention = self.clone();
        unit::run(&[x], pass, move |inputs| attention.forward(&inputs[0]))
    }
}

/// A linear map whose weight is stored as that of a convolution over one dimension, `[outputs, inputs, 1]`.
#[derive(Clone, Debug)]
struct Pointwise {
    weight: Tensor,
    bias: Tensor,
}

impl Pointwise {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let bound = 1.0 / (inputs as f32).sqrt();
        Ok(Pointwise {
            weight: scope.uniform("weight", &[outputs, inputs, 1], bound)?,
            bias: scope.uniform("bias", &[outputs], bound)?,
        })
    }

    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let weight = self.weight.squeeze(2)?.to_dtype(tokens.dtype())?;
        let bias = self.bias.to_dtype(tokens.dtype())?;
        ops::linear(tokens, &weight, Some(&bias))
    }
}
