//! The denoising network of Stable Diffusion, from 1.x to XL, with any number of input channels
//! (`UNet2DConditionModel`).

mod config;
#[cfg(test)]
mod tests;

pub use config::{PerBlock, UNetConfig};

use super::{
    embedding::{TimestepEmbedding, sinusoids},
    resnet::{Downsample, ResnetBlock, Upsample},
    transformer::{Transformer, TransformerConfig},
};
use crate::{
    layers::{Conv2d, GroupNorm},
    ops::{self, Activation},
    params::Scope,
    recompute,
};
use candle_core::{DType, Result, Tensor, bail};

/// What the blocks of one resolution have in common.
struct Level {
    transformer: Option<TransformerConfig>,
    time: usize,
    groups: usize,
    epsilon: f32,
}

impl Level {
    fn resnet(&self, scope: Scope<'_>, channels: [usize; 2]) -> Result<ResnetBlock> {
        ResnetBlock::new(scope, channels, Some(self.time), self.groups, self.epsilon)
    }

    fn stage(&self, scope: &mut Scope<'_>, index: usize, channels: [usize; 2]) -> Result<Stage> {
        let resnet = self.resnet(scope.child(&format!("resnets.{index}")), channels)?;
        let transformer = self
            .transformer
            .map(|config| Transformer::new(scope.child(&format!("attentions.{index}")), &config));
        Ok(Stage {
            resnet,
            transformer: transformer.transpose()?,
        })
    }
}

/// A residual block and, at some resolutions, a transformer.
#[derive(Clone, Debug)]
struct Stage {
    resnet: ResnetBlock,
    transformer: Option<Transformer>,
}

impl Stage {
    fn forward(&self, x: &Tensor, time: &Tensor, context: &Tensor) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&x, context),
            None => Ok(x),
        }
    }
}

#[derive(Clone, Debug)]
struct Down {
    stages: Vec<Stage>,
    downsample: Option<Downsample>,
}

#[derive(Clone, Debug)]
struct Up {
    stages: Vec<Stage>,
    upsample: Option<Upsample>,
}

/// What SDXL is told besides the text: `text` is the pooled text `[batch, width]`, `sizes` the six
/// numbers original height and width, top and left of the crop, target height and width, `[batch,
/// 6]`.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    /// The pooled text.
    pub text: &'a Tensor,
    /// The six numbers.
    pub sizes: &'a Tensor,
}

/// The denoising network.
#[derive(Clone, Debug)]
pub struct UNet {
    conv_in: Conv2d,
    time: TimestepEmbedding,
    added: Option<(TimestepEmbedding, usize)>,
    down: Vec<Down>,
    middle: (Stage, ResnetBlock),
    up: Vec<Up>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    first: usize,
    checkpointing: bool,
}

impl UNet {
    /// The same network, of whose blocks nothing is kept for the backward pass: each is computed
    /// again there ([`recompute::checkpointed`]).
    pub fn checkpointing(mut self, on: bool) -> Self {
        self.checkpointing = on;
        self
    }

    /// # Errors
    /// When `config` contradicts itself or asks for what this network does not have, the device
    /// has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, config: &UNetConfig) -> Result<Self> {
        config.check()?;
        let channels = &config.block_out_channels;
        let (first, levels) = (channels[0], channels.len());
        let time = TimestepEmbedding::new(scope.child("time_embedding"), first, 4 * first)?;
        let added = match config.addition_embed_type.as_deref() {
            None => None,
            Some("text_time") => {
                let (Some(width), Some(inputs)) = (
                    config.addition_time_embed_dim,
                    config.projection_class_embeddings_input_dim,
                ) else {
                    bail!(
                        "`addition_embed_type` text_time needs `addition_time_embed_dim` and `projection_class_embeddings_input_dim`"
                    );
                };
                let map = TimestepEmbedding::new(scope.child("add_embedding"), inputs, 4 * first)?;
                Some((map, width))
            }
            Some(other) => bail!("`addition_embed_type` is `text_time` or nothing, not `{other}`"),
        };
        let conv_in = Conv2d::new(scope.child("conv_in"), config.in_channels, first, 3, true)?;
        let mut down = Vec::new();
        // Channels of everything that the way up takes from the way down.
        let mut skips = vec![first];
        for i in 0..levels {
            let kinds = ["DownBlock2D", "CrossAttnDownBlock2D"];
            let level = config.level(i, &config.down_block_types[i], kinds)?;
            let mut scope = scope.child(&format!("down_blocks.{i}"));
            let mut stages = Vec::new();
            for j in 0..config.layers_per_block {
                let inputs = if j == 0 {
                    channels[i.saturating_sub(1)]
                } else {
                    channels[i]
                };
                stages.push(level.stage(&mut scope, j, [inputs, channels[i]])?);
                skips.push(channels[i]);
            }
            let downsample = (i + 1 < levels).then(|| {
                skips.push(channels[i]);
                Downsample::new(scope.child("downsamplers.0"), channels[i], false)
            });
            down.push(Down {
                stages,
                downsample: downsample.transpose()?,
            });
        }
        let middle = Self::middle(scope.child("mid_block"), config)?;
        let mut up = Vec::new();
        let mut present = channels[levels - 1];
        for i in 0..levels {
            let at = levels - 1 - i;
            let kinds = ["UpBlock2D", "CrossAttnUpBlock2D"];
            let level = config.level(at, &config.up_block_types[i], kinds)?;
            let mut scope = scope.child(&format!("up_blocks.{i}"));
            let mut stages = Vec::new();
            for j in 0..=config.layers_per_block {
                let inputs = present + skips.pop().unwrap_or(0);
                stages.push(level.stage(&mut scope, j, [inputs, channels[at]])?);
                present = channels[at];
            }
            let upsample =
                (i + 1 < levels).then(|| Upsample::new(scope.child("upsamplers.0"), present));
            up.push(Up {
                stages,
                upsample: upsample.transpose()?,
            });
        }
        let (groups, epsilon) = (config.norm_num_groups, config.norm_eps as f32);
        Ok(UNet {
            conv_in,
            time,
            added,
            down,
            middle,
            up,
            norm_out: GroupNorm::new(scope.child("conv_norm_out"), groups, first, epsilon)?,
            conv_out: Conv2d::new(scope.child("conv_out"), first, config.out_channels, 3, true)?,
            first,
            checkpointing: false,
        })
    }

    /// The network with cached cross-attention: the keys and values of the text `context` are computed
    /// here, once, and not at each of many steps.
    ///
    /// # Errors
    /// When the shape of `context` does not fit.
    pub fn cache_text(&self, context: &Tensor) -> Result<CachedTextUNet> {
        let mut net = self.clone();
        let all = net.down.iter_mut().flat_map(|block| &mut block.stages);
        let all = all.chain([&mut net.middle.0]);
        let all = all.chain(net.up.iter_mut().flat_map(|block| &mut block.stages));
        for transformer in all.filter_map(|stage| stage.transformer.as_mut()) {
            transformer.cache_text(context)?;
        }
        Ok(CachedTextUNet {
            net,
            context: context.clone(),
        })
    }

    fn middle(mut scope: Scope<'_>, config: &UNetConfig) -> Result<(Stage, ResnetBlock)> {
        let last = config.block_out_channels.len() - 1;
        let channels = [config.block_out_channels[last]; 2];
        let level = config.level(last, "cross", ["plain", "cross"])?;
        let before = level.stage(&mut scope, 0, channels)?;
        Ok((before, level.resnet(scope.child("resnets.1"), channels)?))
    }

    /// What the network makes of the noisy `x` `[batch, in_channels, height, width]` at the
    /// timesteps `t` `[batch]` (or `[1]`, for all), told the text `context` `[batch, tokens,
    /// cross_attention_dim]` and, if it is made for that, `added`.
    ///
    /// # Errors
    /// When the shapes do not fit, or `added` is missing or of no use.
    pub fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        context: &Tensor,
        added: Option<Added<'_>>,
    ) -> Result<Tensor> {
        // On one of the pool's threads: from outside every operation would wake one and wait.
        rayon::scope(|_| self.compute(x, t, context, added))
    }

    fn compute(
        &self,
        x: &Tensor,
        t: &Tensor,
        context: &Tensor,
        added: Option<Added<'_>>,
    ) -> Result<Tensor> {
        let time = ops::silu(&self.embed(x, t, added)?)?;
        let mut x = self.conv_in.forward(x)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            for stage in &block.stages {
                x = self.run(stage, &x, &time, context)?;
                skips.push(x.clone());
            }
            if let Some(downsample) = &block.downsample {
                x = downsample.forward(&x)?;
                skips.push(x.clone());
            }
        }
        let (before, after) = &self.middle;
        x = self.run(before, &x, &time, context)?;
        x = after.forward(&x, Some(&time))?;
        for block in &self.up {
            for stage in &block.stages {
                let Some(skip) = skips.pop() else {
                    bail!("the way up is longer than the way down");
                };
                x = self.run(stage, &Tensor::cat(&[&x, &skip], 1)?, &time, context)?;
            }
            if let (Some(upsample), Some(next)) = (&block.upsample, skips.last()) {
                let (_, _, height, width) = next.dims4()?;
                x = upsample.forward(&x, height, width)?;
            }
        }
        let x = self.norm_out.forward(&x, Some(Activation::Silu))?;
        self.conv_out.forward(&x)
    }

    /// A block, with or without its inner results kept.
    fn run(&self, stage: &Stage, x: &Tensor, time: &Tensor, context: &Tensor) -> Result<Tensor> {
        if !self.checkpointing {
            return stage.forward(x, time, context);
        }
        let stage = stage.clone();
        recompute::checkpointed(&[x, time, context], move |inputs| {
            stage.forward(&inputs[0], &inputs[1], &inputs[2])
        })
    }

    /// The embedding of the timestep and of what was added, `[batch, 4 * channels]`.
    fn embed(&self, x: &Tensor, t: &Tensor, added: Option<Added<'_>>) -> Result<Tensor> {
        let (batch, dtype) = (x.dim(0)?, x.dtype());
        let t = t.broadcast_as(batch)?;
        let time = self
            .time
            .forward(&sinusoids(&t, self.first)?.to_dtype(dtype)?)?;
        match (&self.added, added) {
            (None, None) => Ok(time),
            (Some((map, width)), Some(Added { text, sizes })) => {
                let sizes = sinusoids(&sizes.to_dtype(DType::F32)?.flatten_all()?, *width)?;
                let sizes = sizes.reshape((batch, ()))?.to_dtype(dtype)?;
                time + map.forward(&Tensor::cat(&[text, &sizes], 1)?)?
            }
            (Some(_), None) => bail!("this network needs a pooled text and sizes"),
            (None, Some(_)) => bail!("this network takes neither pooled text nor sizes"),
        }
    }
}

/// A [`UNet`] with the keys and values of its text cached: [`UNet::cache_text`].
#[derive(Clone, Debug)]
pub struct CachedTextUNet {
    net: UNet,
    context: Tensor,
}

impl CachedTextUNet {
    /// [`UNet::forward`] with the cached text.
    ///
    /// # Errors
    /// Those of [`UNet::forward`].
    pub fn forward(&self, x: &Tensor, t: &Tensor, added: Option<Added<'_>>) -> Result<Tensor> {
        self.net.forward(x, t, &self.context, added)
    }
}
