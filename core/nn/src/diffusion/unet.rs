//! The denoising network of Stable Diffusion, from 1.x to XL, with any number of input channels
//! (`UNet2DConditionModel`).

use super::{
    embedding::{TimestepEmbedding, sinusoids},
    resnet::{Downsample, ResnetBlock, Upsample},
    transformer::{Transformer, TransformerConfig},
};
use crate::{
    layers::{Conv2d, GroupNorm},
    limits,
    ops::{self, Activation},
    params::Scope,
    recompute,
};
use candle_core::{DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// One value for all blocks, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same everywhere.
    All(usize),
    /// From the highest resolution to the lowest.
    Each(Vec<usize>),
}

impl PerBlock {
    fn at(&self, block: usize) -> Option<usize> {
        match self {
            PerBlock::All(value) => Some(*value),
            PerBlock::Each(values) => values.get(block).copied(),
        }
    }
}

/// The architecture, in the words of diffusers' `config.json`; the defaults are diffusers'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    /// Channels that go in: 9 for inpainting (latent 4, mask 1, masked image 4).
    pub in_channels: usize,
    /// Channels that come out.
    pub out_channels: usize,
    /// Channels at each resolution, from the highest to the lowest.
    pub block_out_channels: Vec<usize>,
    /// `DownBlock2D` or `CrossAttnDownBlock2D` for each of them.
    pub down_block_types: Vec<String>,
    /// `UpBlock2D` or `CrossAttnUpBlock2D`, from the lowest resolution to the highest.
    pub up_block_types: Vec<String>,
    /// Residual blocks at each resolution on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Transformer blocks behind each residual block.
    pub transformer_layers_per_block: PerBlock,
    /// Despite its name the number of heads.
    pub attention_head_dim: PerBlock,
    /// Width of a token of the text.
    pub cross_attention_dim: usize,
    /// Whether transformers project by linear maps.
    pub use_linear_projection: bool,
    /// Groups of every normalisation.
    pub norm_num_groups: usize,
    /// Added to the variance.
    pub norm_eps: f64,
    /// `text_time`: pooled text and sizes are added to the timestep's embedding.
    pub addition_embed_type: Option<String>,
    /// Width of the embedding of each size.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of pooled text and embedded sizes together.
    pub projection_class_embeddings_input_dim: Option<usize>,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        UNetConfig {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: names([down, down, down, "DownBlock2D"]),
            up_block_types: names(["UpBlock2D", up, up, up]),
            layers_per_block: 2,
            transformer_layers_per_block: PerBlock::All(1),
            attention_head_dim: PerBlock::All(8),
            cross_attention_dim: 1280,
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
        }
    }
}

impl UNetConfig {
    /// Channels and transformer of block `i`, counted from the highest resolution; `with` tells
    /// whether it has attention.
    fn level(&self, i: usize, kind: &str, kinds: [&str; 2]) -> Result<Level> {
        let channels = self.block_out_channels[i];
        let transformer = if kind == kinds[1] {
            let (Some(layers), Some(heads)) = (
                self.transformer_layers_per_block.at(i),
                self.attention_head_dim.at(i),
            ) else {
                bail!(
                    "`transformer_layers_per_block` and `attention_head_dim` need a value for each of `block_out_channels`"
                );
            };
            if heads == 0 || !channels.is_multiple_of(heads) {
                bail!("`attention_head_dim` {heads} does not divide {channels} channels");
            }
            Some(TransformerConfig {
                channels,
                heads,
                layers,
                context: self.cross_attention_dim,
                groups: self.norm_num_groups,
                linear: self.use_linear_projection,
            })
        } else if kind == kinds[0] {
            None
        } else {
            bail!(
                "block type `{kind}` is neither `{}` nor `{}`",
                kinds[0],
                kinds[1]
            );
        };
        Ok(Level {
            transformer,
            time: self.block_out_channels[0] * 4,
            groups: self.norm_num_groups,
            epsilon: self.norm_eps as f32,
        })
    }

    /// Checks what serde cannot: that the sizes are such as networks have, and fit each other.
    ///
    /// # Errors
    /// Naming the field and what is expected.
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        let levels = self.block_out_channels.len();
        if levels == 0
            || self.down_block_types.len() != levels
            || self.up_block_types.len() != levels
        {
            bail!(
                "`down_block_types` and `up_block_types` need as many values as `block_out_channels`, which has {levels} and at least one"
            );
        }
        let groups = self.norm_num_groups;
        let uneven = |channels: &&usize| groups == 0 || !channels.is_multiple_of(groups);
        if let Some(channels) = self.block_out_channels.iter().find(uneven) {
            bail!("`norm_num_groups` {groups} does not divide {channels} channels");
        }
        Ok(())
    }
}

impl UNetConfig {
    fn check_sizes(&self) -> Result<()> {
        let channels = &self.block_out_channels;
        if !channels.is_empty() {
            let range = 1..=limits::CHANNELS;
            limits::all_within("block_out_channels", channels, limits::LEVELS, range)?;
        }
        let per_block = [
            (
                "transformer_layers_per_block",
                &self.transformer_layers_per_block,
                limits::DEPTH,
            ),
            (
                "attention_head_dim",
                &self.attention_head_dim,
                limits::HEADS,
            ),
        ];
        for (field, values, most) in per_block {
            match values {
                PerBlock::All(value) => limits::within(field, *value, 1..=most)?,
                PerBlock::Each(values) => {
                    limits::all_within(field, values, limits::LEVELS, 1..=most)?;
                }
            }
        }
        let width = limits::WIDTH;
        for (field, value, most) in [
            ("in_channels", self.in_channels, limits::CHANNELS),
            ("out_channels", self.out_channels, limits::CHANNELS),
            ("layers_per_block", self.layers_per_block, limits::LAYERS),
            ("cross_attention_dim", self.cross_attention_dim, width),
            (
                "addition_time_embed_dim",
                self.addition_time_embed_dim.unwrap_or(1),
                width,
            ),
            (
                "projection_class_embeddings_input_dim",
                self.projection_class_embeddings_input_dim.unwrap_or(1),
                8 * width,
            ),
        ] {
            limits::within(field, value, 1..=most)?;
        }
        limits::within("norm_eps", self.norm_eps, 0.0..=1.0)
    }
}

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{params::Params, testing::close, weights};
    use candle_core::{Device, Var};
    use std::{collections::HashMap, fs, path::PathBuf};

    /// What `fixtures/make_unet_fixture.py` wrote: the configuration, weights, and the rest.
    fn fixture() -> (UNetConfig, HashMap<String, Tensor>, HashMap<String, Tensor>) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let config = fs::read_to_string(folder.join("unet.json")).unwrap();
        let tensors = weights::read(&folder.join("unet.safetensors")).unwrap();
        let is_weight = |name: &String| !name.starts_with("in.") && !name.starts_with("out.");
        let (weights, rest) = tensors.into_iter().partition(|(name, _)| is_weight(name));
        (serde_json::from_str(&config).unwrap(), weights, rest)
    }

    fn run(net: &UNet, x: &Tensor, rest: &HashMap<String, Tensor>) -> Tensor {
        let added = Added {
            text: &rest["in.text"],
            sizes: &rest["in.sizes"],
        };
        net.forward(x, &rest["in.t"], &rest["in.context"], Some(added))
            .unwrap()
    }

    #[test]
    fn it_agrees_with_diffusers() {
        let (config, weights, rest) = fixture();
        let mut params = Params::new(&Device::Cpu, 0);
        let net = UNet::new(params.root(), &config).unwrap();
        weights::fill(&weights, &params).unwrap();
        let x = Var::from_tensor(&rest["in.x"]).unwrap();
        let y = run(&net, &x, &rest);
        close(&y, &rest["out.y"], 1e-5);
        let loss = (y * &rest["in.dy"]).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        close(grads.get(&x).unwrap(), &rest["out.dx"], 1e-4);
        let vars: HashMap<&str, &Var> = params.trainable().collect();
        let expected = rest.iter().filter(|(name, _)| name.starts_with("out.d"));
        for (name, expected) in expected.filter(|(name, _)| *name != "out.dx") {
            close(grads.get(vars[&name[5..]]).unwrap(), expected, 1e-4);
        }
        crate::testing::assert_all_trained(params.trainable(), &grads);
    }

    #[test]
    fn a_text_told_once_is_as_good_as_told_each_time() {
        let (config, weights, rest) = fixture();
        let mut params = Params::frozen(&Device::Cpu, weights);
        let net = UNet::new(params.root(), &config).unwrap();
        let cached = net.cache_text(&rest["in.context"]).unwrap();
        let added = Added {
            text: &rest["in.text"],
            sizes: &rest["in.sizes"],
        };
        for _ in 0..2 {
            let y = cached.forward(&rest["in.x"], &rest["in.t"], Some(added));
            close(&y.unwrap(), &run(&net, &rest["in.x"], &rest), 1e-7);
        }
        assert!(net.cache_text(&rest["in.x"]).is_err());
    }

    #[test]
    fn computing_blocks_again_changes_nothing() {
        let (config, weights, rest) = fixture();
        let grads = |on: bool| {
            let mut params = Params::new(&Device::Cpu, 0);
            let net = UNet::new(params.root(), &config).unwrap().checkpointing(on);
            weights::fill(&weights, &params).unwrap();
            let y = run(&net, &rest["in.x"], &rest);
            let loss = (y * &rest["in.dy"]).unwrap().sum_all().unwrap();
            let grads = recompute::backward(&loss).unwrap();
            let vars = params.trainable();
            let grads = vars.map(|(name, var)| (name.to_owned(), grads.get(var).unwrap().clone()));
            grads.collect::<HashMap<String, Tensor>>()
        };
        let (kept, again) = (grads(false), grads(true));
        for (name, grad) in &kept {
            close(&again[name], grad, 1e-6);
        }
    }

    #[test]
    fn frozen_it_gives_the_same_and_in_half_the_memory_nearly_the_same() {
        let (config, weights, rest) = fixture();
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
            let narrow = weights.iter().map(|(name, tensor)| {
                let tensor = tensor.to_dtype(dtype).unwrap();
                (name.clone(), tensor)
            });
            let mut params = Params::frozen(&Device::Cpu, narrow.collect());
            let net = UNet::new(params.root(), &config).unwrap();
            assert!(params.left_over().is_empty());
            close(&run(&net, &rest["in.x"], &rest), &rest["out.y"], tolerance);
        }
    }

    #[test]
    fn a_configuration_that_contradicts_itself_is_named() {
        let (config, ..) = fixture();
        let fails = |change: fn(&mut UNetConfig)| {
            let mut config = config.clone();
            change(&mut config);
            let mut params = Params::new(&Device::Cpu, 0);
            UNet::new(params.root(), &config).unwrap_err().to_string()
        };
        assert!(fails(|c| c.up_block_types.truncate(1)).contains("up_block_types"));
        assert!(fails(|c| c.norm_num_groups = 3).contains("`norm_num_groups` 3"));
        assert!(fails(|c| c.attention_head_dim = PerBlock::All(3)).contains("divide 8"));
        let unknown = fails(|c| c.down_block_types[0] = "AttnDownBlock2D".to_owned());
        assert!(
            unknown.contains("`AttnDownBlock2D` is neither"),
            "{unknown}"
        );
        assert!(fails(|c| c.addition_time_embed_dim = None).contains("addition_time_embed_dim"));
    }
}
