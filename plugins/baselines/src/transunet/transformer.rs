//! The transformer (Dosovitskiy et al., 2021): blocks that normalise first, without a token of the class.

use super::{Architecture, PATCH};
use crate::maps::Maps;
use candle_core::{Result, Tensor};
use diffaug_nn::{
    layers::{Conv2d, LayerNorm, Linear, Mode},
    noise,
    ops::{self, Attention},
    params::Scope,
    precision::like,
    recompute,
    segmenter::{Load, Pass},
};

/// Added to the variance of a token.
const EPSILON: f32 = 1e-6;

/// A linear map whose weights are drawn evenly (Glorot & Bengio, 2010), its bias close to 0.
#[derive(Clone)]
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    /// Deviation of the bias.
    const DEVIATION: f32 = 1e-6;

    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let bound = (6.0 / (inputs + outputs).max(1) as f32).sqrt();
        let bias = |seed| {
            let values = noise::normal(seed, "bias", 0, outputs);
            values.into_iter().map(|v| v * Dense::DEVIATION).collect()
        };
        Ok(Dense {
            weight: scope.uniform("weight", &[outputs, inputs], bound)?,
            bias: scope.drawn("bias", &[outputs], bias)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &like(&self.weight, x)?, Some(&self.bias))
    }
}

/// Attention among all tokens, then a map of each; both are added to what went in.
#[derive(Clone)]
struct Block {
    attention_norm: LayerNorm,
    /// Queries, keys, values and what becomes of the attention.
    attention: [Linear; 4],
    heads: Attention,
    map_norm: LayerNorm,
    map: [Dense; 2],
}

/// What falls out of a block's two layers.
enum Dropped<'a> {
    Nothing,
    /// The next of the pass.
    Next(&'a ops::Dropping),
    /// Factors that were drawn before, so that they are the same when the block is computed again.
    Factors([&'a Tensor; 2]),
}

impl Dropped<'_> {
    fn of(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        match self {
            Dropped::Nothing => Ok(x.clone()),
            Dropped::Next(dropping) => dropping.next(x),
            Dropped::Factors(factors) => x * factors[layer],
        }
    }
}

impl Block {
    fn new(mut scope: Scope<'_>, architecture: &Architecture) -> Result<Self> {
        let Architecture { hidden, mlp, .. } = *architecture;
        let mut attention = scope.child("attn");
        let mut linear = |name| Linear::new(attention.child(name), hidden, hidden, true);
        let attention = [
            linear("query")?,
            linear("key")?,
            linear("value")?,
            linear("out")?,
        ];
        Ok(Block {
            attention_norm: LayerNorm::new(scope.child("attention_norm"), hidden, EPSILON)?,
            attention,
            heads: Attention::new(architecture.heads),
            map_norm: LayerNorm::new(scope.child("ffn_norm"), hidden, EPSILON)?,
            map: [
                Dense::new(scope.child("ffn.fc1"), hidden, mlp)?,
                Dense::new(scope.child("ffn.fc2"), mlp, hidden)?,
            ],
        })
    }

    fn forward(&self, x: &Tensor, dropped: &Dropped<'_>) -> Result<Tensor> {
        let [query, key, value, out] = &self.attention;
        let y = self.attention_norm.forward(x)?;
        let (q, k, v) = (query.forward(&y)?, key.forward(&y)?, value.forward(&y)?);
        let y = out.forward(&self.heads.forward(&q, &k, &v)?)?;
        let x = ops::add(&y, x)?;
        let y = self.map[0].forward(&self.map_norm.forward(&x)?)?;
        let y = dropped.of(0, &ops::gelu(&y)?)?;
        let y = dropped.of(1, &self.map[1].forward(&y)?)?;
        ops::add(&y, &x)
    }

    fn run(&self, x: &Tensor, pass: &Pass<'_>, mlp: usize) -> Result<Tensor> {
        let dropping = pass.dropping.filter(|_| pass.mode == Mode::Train);
        if !(pass.recompute && pass.mode == Mode::Train) {
            let dropped = dropping.map_or(Dropped::Nothing, Dropped::Next);
            return self.forward(x, &dropped);
        }
        let block = self.clone();
        let Some(dropping) = dropping else {
            return recompute::checkpointed(&[x], move |inputs| {
                block.forward(&inputs[0], &Dropped::Nothing)
            });
        };
        let (count, tokens, hidden) = x.dims3()?;
        let factors = |width| {
            let ones = Tensor::ones((count, tokens, width), x.dtype(), x.device())?;
            dropping.next(&ones)
        };
        let (inner, outer) = (factors(mlp)?, factors(hidden)?);
        recompute::checkpointed(&[x, &inner, &outer], move |inputs| {
            let factors = [&inputs[1], &inputs[2]];
            block.forward(&inputs[0], &Dropped::Factors(factors))
        })
    }
}

/// All blocks, with what makes tokens of maps before them.
pub(super) struct Transformer {
    patches: Conv2d,
    positions: Tensor,
    blocks: Vec<Block>,
    mlp: usize,
    norm: LayerNorm,
}

impl Transformer {
    pub fn new(mut scope: Scope<'_>, architecture: &Architecture, tokens: usize) -> Result<Self> {
        let Architecture { width, hidden, .. } = *architecture;
        let mut embeddings = scope.child("embeddings");
        let patches = embeddings.child("patch_embeddings");
        let patches = Conv2d::new(patches, PATCH * width, hidden, 1, true)?;
        let shape = [1, tokens, hidden];
        let positions = embeddings.constant("position_embeddings", &shape, 0.0)?;
        let mut encoder = scope.child("encoder");
        let block = |index: usize| {
            let place = encoder.child(&format!("layer.{index}"));
            Block::new(place, architecture)
        };
        let blocks = (0..architecture.blocks).map(block).collect::<Result<_>>()?;
        let norm = LayerNorm::new(scope.child("encoder.encoder_norm"), hidden, EPSILON)?;
        Ok(Transformer {
            patches,
            positions,
            blocks,
            mlp: architecture.mlp,
            norm,
        })
    }

    /// Maps at a sixteenth of the image's size to tokens, `[n, tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let tokens = ops::pixels_to_tokens(&self.patches.forward(x)?)?;
        let mut x = tokens.broadcast_add(&like(&self.positions, &tokens)?)?;
        if let Some(dropping) = pass.dropping.filter(|_| pass.mode == Mode::Train) {
            x = dropping.next(&x)?;
        }
        for block in &self.blocks {
            x = block.run(&x, pass, self.mlp)?;
        }
        self.norm.forward(&x)
    }
}

/// Counts the maps of the transformer.
pub(super) fn count(architecture: &Architecture, load: &Load, maps: &mut Maps) {
    let tokens = load.pixels() / (PATCH * PATCH) as u128;
    let (hidden, mlp) = (architecture.hidden as u128, architecture.mlp as u128);
    // Elsewhere each of a block's two normalisations is made of seven operations.
    let norms = if load.on_processor { 2 } else { 14 };
    // What the normalisations make, queries, keys, values, the attention and what becomes of it, both sums, and
    // behind the map; the last three are forms of what is inside of it.
    let block = (norms + 9) * hidden + 3 * mlp;
    maps.plain(architecture.blocks as u128, tokens * block);
    // Before the blocks, and behind them.
    maps.plain(6, tokens * hidden);
}
