//! What a `config.json` says of the network.

use super::{Level, TransformerConfig};
use crate::limits;
use candle_core::{Result, bail};
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
    pub(super) fn level(&self, i: usize, kind: &str, kinds: [&str; 2]) -> Result<Level> {
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
