//! CLIP's text encoder, with and without the projection, under the tensor names of transformers.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use diffaug_nn::{
    layers::{LayerNorm, Linear},
    limits,
    ops::{self, Attention},
    params::Scope,
};
use serde::{Deserialize, Serialize};

/// The sizes of a text encoder: its `config.json`, with the defaults of transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Class that the tensors are of; `CLIPTextModelWithProjection` has a projection.
    pub architectures: Vec<String>,
    /// Number of tokens that are known.
    pub vocab_size: usize,
    /// Longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Width inside the map that follows each attention.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention; they share the width.
    pub num_attention_heads: usize,
    /// What bends the values inside that map.
    pub hidden_act: HiddenAct,
    /// Added to the variance by each normalisation.
    pub layer_norm_eps: f64,
    /// Width of the projection.
    pub projection_dim: usize,
    /// The token whose place stands for the text. The published encoders say 2 and mean the
    /// largest id.
    pub eos_token_id: u32,
}

impl Default for ClipConfig {
    fn default() -> Self {
        ClipConfig {
            architectures: Vec::new(),
            vocab_size: 49408,
            max_position_embeddings: 77,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

impl ClipConfig {
    /// Whether the encoder ends in a projection.
    pub fn has_projection(&self) -> bool {
        let mut classes = self.architectures.iter();
        classes.any(|class| class == "CLIPTextModelWithProjection")
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> usize {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |inputs: usize, outputs: usize| (inputs + 1) * outputs;
        let norm = 2 * width;
        let attention = 4 * linear(width, width);
        let layer = attention + linear(width, inner) + linear(inner, width) + 2 * norm;
        let embeddings = (self.vocab_size + self.max_position_embeddings) * width;
        let projection = match self.has_projection() {
            true => width * self.projection_dim,
            false => 0,
        };
        embeddings + self.num_hidden_layers * layer + norm + projection
    }

    /// Checks what serde cannot: that the sizes are such as text encoders have, and fit each other.
    ///
    /// # Errors
    /// Naming the field and what is expected.
    pub fn check(&self) -> Result<()> {
        for (field, value, most) in [
            ("vocab_size", self.vocab_size, 4_000_000),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                limits::WIDTH,
            ),
            ("hidden_size", self.hidden_size, limits::CHANNELS),
            ("intermediate_size", self.intermediate_size, limits::WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, limits::DEPTH),
            (
                "num_attention_heads",
                self.num_attention_heads,
                limits::HEADS,
            ),
            ("projection_dim", self.projection_dim, limits::CHANNELS),
        ] {
            limits::within(field, value, 0..=most)?;
        }
        limits::within("layer_norm_eps", self.layer_norm_eps, 0.0..=1.0)?;
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("projection_dim", self.projection_dim),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            bail!("`{name}` of a text encoder is 0, expected at least 1");
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            bail!(
                "`num_attention_heads` of a text encoder is {}, which does not divide its `hidden_size` {}",
                self.num_attention_heads,
                self.hidden_size
            );
        }
        Ok(())
    }
}

/// An activation, by the names of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// x / (1 + e^(-1.702 x)).
    QuickGelu,
    /// GELU by the error function.
    Gelu,
    /// GELU by a hyperbolic tangent.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
}

impl HiddenAct {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        const STEEPNESS: f64 = 1.702;
        match self {
            HiddenAct::QuickGelu => ops::silu(&(x * STEEPNESS)?)? / STEEPNESS,
            HiddenAct::Gelu => ops::gelu(x),
            HiddenAct::GeluNew => ops::gelu_tanh(x),
        }
    }
}

/// A text encoder. Each token sees itself and those before it.
#[derive(Clone, Debug)]
pub struct ClipText {
    config: ClipConfig,
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    projection: Option<Linear>,
}

/// What a text encoder makes of texts: on a processor f32, elsewhere of the type of the weights.
#[derive(Clone, Debug)]
pub struct ClipOutput {
    /// What enters the last layer, `[n, tokens, width]`.
    pub penultimate: Tensor,
    /// What leaves it, normalised, `[n, tokens, width]`.
    pub last: Tensor,
    /// The place of `last` where the text ends, projected if there is a projection, `[n, width]`.
    pub pooled: Tensor,
}

impl ClipText {
    /// Takes or makes its parameters under `text_model` and `text_projection` in `scope`.
    ///
    /// # Errors
    /// When a size makes no sense, the device has no room for it, or a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, config: &ClipConfig) -> Result<Self> {
        config.check()?;
        let width = config.hidden_size;
        let projection = config.has_projection().then(|| {
            let scope = scope.child("text_projection");
            Linear::new(scope, width, config.projection_dim, false)
        });
        let projection = projection.transpose()?;
        let mut model = scope.child("text_model");
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::new(model.child(&format!("encoder.layers.{i}")), config))
            .collect::<Result<_>>()?;
        let mut embeddings = model.child("embeddings");
        let mut table = |name: &str, rows: usize| {
            let mut scope = embeddings.child(name);
            // Drawn with the reference's standard deviation of 0.02.
            scope.uniform("weight", &[rows, width], 0.02 * 3f32.sqrt())
        };
        Ok(ClipText {
            tokens: table("token_embedding", config.vocab_size)?,
            positions: table("position_embedding", config.max_position_embeddings)?,
            layers,
            norm: norm(&mut model, "final_layer_norm", config)?,
            projection,
            config: config.clone(),
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Where its parameters are.
    pub fn device(&self) -> &Device {
        self.tokens.device()
    }

    /// The type of its outputs.
    pub fn dtype(&self) -> DType {
        match ops::has_kernels(self.device()) {
            true => DType::F32,
            false => self.tokens.dtype(),
        }
    }

    /// The outputs for `ids` (u32, `[n, tokens]`, all below `vocab_size`), which are best left on the
    /// processor: their ends are looked for there. Gradients reach parameters that are trained.
    ///
    /// # Errors
    /// When a text is longer than `max_position_embeddings`, and where there is no such token.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipOutput> {
        let mut last = self.embed(ids)?;
        let mut penultimate = last.clone();
        for layer in &self.layers {
            let next = layer.forward(&last)?;
            penultimate = std::mem::replace(&mut last, next);
        }
        let last = self.norm.forward(&last)?;
        let rows: Vec<u32> = (ids.to_vec2()?.iter().enumerate())
            .map(|(n, ids)| (n * ids.len() + end(ids, self.config.eos_token_id)) as u32)
            .collect();
        let rows = Tensor::new(rows, last.device())?;
        let pooled = last.flatten_to(1)?.index_select(&rows, 0)?;
        let pooled = match &self.projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        Ok(ClipOutput {
            penultimate,
            last,
            pooled,
        })
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (n, tokens) = ids.dims2()?;
        let places = self.config.max_position_embeddings;
        if n == 0 || tokens == 0 || tokens > places {
            bail!("a text encoder of {places} positions cannot read {n} texts of {tokens} tokens");
        }
        let rows = self
            .tokens
            .index_select(&ids.flatten_all()?.to_device(self.device())?, 0)?;
        let rows = rows.to_dtype(self.dtype())?;
        let places = self.positions.narrow(0, 0, tokens)?;
        let places = places.to_dtype(self.dtype())?;
        let width = rows.dim(D::Minus1)?;
        rows.reshape((n, tokens, width))?.broadcast_add(&places)
    }
}

/// Where a text ends: at the first `eos`, or, since the published encoders say 2 for want of a
/// better number, at the first of the largest ids. At 0 where there is none, as in transformers.
fn end(ids: &[u32], eos: u32) -> usize {
    let eos = match eos {
        2 => ids.iter().max().copied().unwrap_or(eos),
        eos => eos,
    };
    ids.iter().position(|&id| id == eos).unwrap_or(0)
}

fn norm(scope: &mut Scope<'_>, name: &str, config: &ClipConfig) -> Result<LayerNorm> {
    let epsilon = config.layer_norm_eps as f32;
    LayerNorm::new(scope.child(name), config.hidden_size, epsilon)
}

/// Self-attention and a map of each token, each normalised before and added after.
#[derive(Clone, Debug)]
struct Layer {
    norms: [LayerNorm; 2],
    /// To queries, keys and values.
    enter: [Linear; 3],
    leave: Linear,
    attention: Attention,
    widen: Linear,
    narrow: Linear,
    act: HiddenAct,
}

impl Layer {
    fn new(mut scope: Scope<'_>, config: &ClipConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norms = [
            norm(&mut scope, "layer_norm1", config)?,
            norm(&mut scope, "layer_norm2", config)?,
        ];
        let mut linear = |name: &str, inputs: usize, outputs: usize| {
            Linear::new(scope.child(name), inputs, outputs, true)
        };
        Ok(Layer {
            norms,
            enter: [
                linear("self_attn.q_proj", width, width)?,
                linear("self_attn.k_proj", width, width)?,
                linear("self_attn.v_proj", width, width)?,
            ],
            leave: linear("self_attn.out_proj", width, width)?,
            attention: Attention {
                causal: true,
                ..Attention::new(config.num_attention_heads)
            },
            widen: linear("mlp.fc1", width, inner)?,
            narrow: linear("mlp.fc2", inner, width)?,
            act: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.norms[0].forward(x)?;
        let [q, k, v] = self.enter.each_ref().map(|map| map.forward(&h));
        let h = self.attention.forward(&q?, &k?, &v?)?;
        let x = (x + self.leave.forward(&h)?)?;
        let h = self.widen.forward(&self.norms[1].forward(&x)?)?;
        x + self.narrow.forward(&self.act.forward(&h)?)?
    }
}

#[cfg(test)]
mod tests;
