//! Attention between pixels, and from pixels to a text.

use crate::{
    layers::{Conv2d, GroupNorm, LayerNorm, Linear},
    ops::{self, Attention},
    params::Scope,
};
use candle_core::{Result, Tensor};

/// The sizes of a [`Transformer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransformerConfig {
    /// Channels of the feature map, and width of a token.
    pub channels: usize,
    /// Heads of each attention; they share the width.
    pub heads: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Width of a token of the text.
    pub context: usize,
    /// Groups of the normalisation before the first block.
    pub groups: usize,
    /// Whether the maps into and out of the blocks are stored as linear maps, not as 1×1
    /// convolutions; they compute the same.
    pub linear: bool,
}

/// A feature map that attends to itself and to a text (`Transformer2DModel`).
#[derive(Clone, Debug)]
pub struct Transformer {
    norm: GroupNorm,
    enter: Projection,
    blocks: Vec<Block>,
    leave: Projection,
}

#[derive(Clone, Debug)]
enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn new(scope: Scope<'_>, config: &TransformerConfig) -> Result<Self> {
        let channels = config.channels;
        Ok(match config.linear {
            true => Projection::Linear(Linear::new(scope, channels, channels, true)?),
            false => Projection::Conv(Conv2d::new(scope, channels, channels, 1, true)?),
        })
    }
}

impl Transformer {
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, config: &TransformerConfig) -> Result<Self> {
        let norm = GroupNorm::new(scope.child("norm"), config.groups, config.channels, 1e-6)?;
        let enter = Projection::new(scope.child("proj_in"), config)?;
        let blocks = (0..config.layers)
            .map(|i| Block::new(scope.child(&format!("transformer_blocks.{i}")), config))
            .collect::<Result<_>>()?;
        let leave = Projection::new(scope.child("proj_out"), config)?;
        Ok(Transformer {
            norm,
            enter,
            blocks,
            leave,
        })
    }

    /// `x` is `[batch, channels, height, width]`, `context` `[batch, tokens, width]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let h = self.norm.forward(x, None)?;
        let mut h = match &self.enter {
            Projection::Linear(map) => map.forward(&ops::pixels_to_tokens(&h)?)?,
            Projection::Conv(map) => ops::pixels_to_tokens(&map.forward(&h)?)?,
        };
        for block in &self.blocks {
            h = block.forward(&h, context)?;
        }
        let h = match &self.leave {
            Projection::Linear(map) => ops::tokens_to_pixels(&map.forward(&h)?, height, width)?,
            Projection::Conv(map) => map.forward(&ops::tokens_to_pixels(&h, height, width)?)?,
        };
        ops::add(&h, x)
    }
}

impl Transformer {
    /// Caches the keys and values of the text `context`; from then on no other text has an effect.
    pub(super) fn cache_text(&mut self, context: &Tensor) -> Result<()> {
        for block in &mut self.blocks {
            block.cross.kept = Some(block.cross.listen(context)?);
        }
        Ok(())
    }
}

/// Self-attention, cross-attention and a gated map, each normalised before and added after.
#[derive(Clone, Debug)]
struct Block {
    norms: [LayerNorm; 3],
    own: Heads,
    cross: Heads,
    widen: Linear,
    narrow: Linear,
}

impl Block {
    fn new(mut scope: Scope<'_>, config: &TransformerConfig) -> Result<Self> {
        let (width, inner) = (config.channels, 4 * config.channels);
        let mut norm = |name| LayerNorm::new(scope.child(name), width, 1e-5);
        let norms = [norm("norm1")?, norm("norm2")?, norm("norm3")?];
        let heads = config.heads;
        Ok(Block {
            norms,
            own: Heads::new(scope.child("attn1"), width, width, heads)?,
            cross: Heads::new(scope.child("attn2"), width, config.context, heads)?,
            widen: Linear::new(scope.child("ff.net.0.proj"), width, 2 * inner, true)?,
            narrow: Linear::new(scope.child("ff.net.2"), inner, width, true)?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let h = self.norms[0].forward(x)?;
        let x = ops::add(&self.own.forward(&h, &h)?, x)?;
        let h = self.norms[1].forward(&x)?;
        let x = ops::add(&self.cross.forward(&h, context)?, &x)?;
        let h = self.widen.forward(&self.norms[2].forward(&x)?)?;
        ops::add(&self.narrow.forward(&ops::geglu(&h)?)?, &x)
    }
}

/// Multi-head attention with its four maps.
#[derive(Clone, Debug)]
struct Heads {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    attention: Attention,
    /// Keys and values of the one text that there is.
    kept: Option<(Tensor, Tensor)>,
}

impl Heads {
    fn new(mut scope: Scope<'_>, width: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Heads {
            query: Linear::new(scope.child("to_q"), width, width, false)?,
            key: Linear::new(scope.child("to_k"), context, width, false)?,
            value: Linear::new(scope.child("to_v"), context, width, false)?,
            out: Linear::new(scope.child("to_out.0"), width, width, true)?,
            attention: Attention::new(heads),
            kept: None,
        })
    }

    /// Keys and values of `context`.
    fn listen(&self, context: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.key.forward(context)?, self.value.forward(context)?))
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (k, v) = match &self.kept {
            Some(kept) => kept.clone(),
            None => self.listen(context)?,
        };
        let attended = self.attention.forward(&self.query.forward(x)?, &k, &v)?;
        self.out.forward(&attended)
    }
}
