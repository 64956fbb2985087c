//! The blocks of a vision transformer (Dosovitskiy et al., 2021) that normalises before each map, under the
//! tensor names of transformers; DINOv2 and CLIP are made of them.

use candle_core::{Result, Tensor, bail};
use diffaug_nn::{
    layers::{Conv2d, LayerNorm, Linear},
    limits,
    ops::{self, Attention, Convolution},
    params::Scope,
};
use serde::Deserialize;

/// The sizes of a transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// Width of a token.
    pub width: usize,
    /// Width inside the map that follows each attention.
    pub inner: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Heads of each attention; they share the width.
    pub heads: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Added to the variance by each normalisation.
    pub epsilon: f64,
}

/// What bends the values between the two maps of a block, by its name in transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bend {
    /// x / (1 + e^(-1.702 x)).
    QuickGelu,
    /// GELU by the error function.
    #[default]
    Gelu,
}

/// What the parts of a block are called.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The normalisations.
    pub norms: [&'static str; 2],
    /// The maps to queries, keys and values, and that of what was attended to.
    pub attention: [&'static str; 4],
    /// The maps after it, to the inner width and back.
    pub maps: [&'static str; 2],
    /// Where the scales of both branches are, if there are any.
    pub scales: Option<[&'static str; 2]>,
}

impl Sizes {
    /// Checks that the sizes are such as transformers have, and fit each other; the names are those of a
    /// configuration.
    ///
    /// # Errors
    /// Naming the field and what is expected.
    pub fn check(&self) -> Result<()> {
        limits::within("hidden_size", self.width, 1..=limits::CHANNELS)?;
        limits::within("intermediate_size", self.inner, 1..=limits::WIDTH)?;
        limits::within("num_hidden_layers", self.depth, 1..=limits::DEPTH)?;
        limits::within("num_attention_heads", self.heads, 1..=limits::HEADS)?;
        limits::within("patch_size", self.patch, 1..=1024)?;
        limits::within("layer_norm_eps", self.epsilon, 0.0..=1.0)?;
        if !self.width.is_multiple_of(self.heads) {
            bail!(
                "`num_attention_heads` is {}, which does not divide `hidden_size` {}",
                self.heads,
                self.width
            );
        }
        Ok(())
    }

    /// A normalisation of tokens.
    ///
    /// # Errors
    /// When a given tensor does not fit.
    pub fn norm(&self, scope: Scope<'_>) -> Result<LayerNorm> {
        LayerNorm::new(scope, self.width, self.epsilon as f32)
    }
}

/// Images cut into patches, each a token, before which there is one for the whole; with their places.
#[derive(Clone, Debug)]
pub struct Embedding {
    patches: Conv2d,
    /// `[1, 1, width]`.
    class: Tensor,
    /// `[1, 1 + patches, width]`.
    positions: Tensor,
}

impl Embedding {
    /// Of patches with a bias or without, from the token for the whole, of any shape of that many values,
    /// and the positions `[1, 1 + patches, width]`.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn new(
        patches: Scope<'_>,
        bias: bool,
        class: &Tensor,
        positions: Tensor,
        sizes: &Sizes,
    ) -> Result<Self> {
        let spec = Convolution::square(sizes.patch, 0);
        Ok(Embedding {
            patches: Conv2d::with(patches, [3, sizes.width], [sizes.patch; 2], bias, spec)?,
            class: class.reshape((1, 1, sizes.width))?,
            positions,
        })
    }

    /// `[n, 3, height, width]` to tokens.
    ///
    /// # Errors
    /// When the size is not that of the positions.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = ops::pixels_to_tokens(&self.patches.forward(x)?)?;
        let (count, _, width) = tokens.dims3()?;
        let class = self.class.broadcast_as((count, 1, width))?.contiguous()?;
        Tensor::cat(&[&class, &tokens], 1)?.broadcast_add(&self.positions)
    }
}

/// Attention and two maps, each normalised before, perhaps scaled, and added.
#[derive(Clone, Debug)]
pub struct Block {
    norms: [LayerNorm; 2],
    /// Queries, keys, values, and the result.
    attention: [Linear; 4],
    heads: Attention,
    maps: [Linear; 2],
    bend: Bend,
    scales: Option<[Tensor; 2]>,
}

impl Block {
    /// # Errors
    /// When a given tensor does not fit.
    pub fn new(mut scope: Scope<'_>, sizes: &Sizes, names: &Names, bend: Bend) -> Result<Self> {
        let (width, inner) = (sizes.width, sizes.inner);
        let mut norm = |name| sizes.norm(scope.child(name));
        let norms = [norm(names.norms[0])?, norm(names.norms[1])?];
        let mut linear =
            |name, inputs, outputs| Linear::new(scope.child(name), inputs, outputs, true);
        let [q, k, v, out] = names.attention;
        let attention = [
            linear(q, width, width)?,
            linear(k, width, width)?,
            linear(v, width, width)?,
            linear(out, width, width)?,
        ];
        let maps = [
            linear(names.maps[0], width, inner)?,
            linear(names.maps[1], inner, width)?,
        ];
        let mut scale = |name| scope.child(name).constant("lambda1", &[width], 1.0);
        let scales = match names.scales {
            None => None,
            Some([first, second]) => Some([scale(first)?, scale(second)?]),
        };
        Ok(Block {
            norms,
            attention,
            heads: Attention::new(sizes.heads),
            maps,
            bend,
            scales,
        })
    }

    /// Tokens `[n, tokens, width]` to such.
    ///
    /// # Errors
    /// When the shape is another.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.norms[0].forward(x)?;
        let [q, k, v, out] = &self.attention;
        let (q, k, v) = (q.forward(&h)?, k.forward(&h)?, v.forward(&h)?);
        let attended = out.forward(&self.heads.forward(&q, &k, &v)?)?;
        let x = ops::add(&self.scaled(0, attended)?, x)?;
        let h = self.maps[0].forward(&self.norms[1].forward(&x)?)?;
        let mapped = self.maps[1].forward(&self.bend.forward(&h)?)?;
        ops::add(&self.scaled(1, mapped)?, &x)
    }

    fn scaled(&self, branch: usize, x: Tensor) -> Result<Tensor> {
        match &self.scales {
            None => Ok(x),
            Some(scales) => x.broadcast_mul(&scales[branch]),
        }
    }
}

impl Bend {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        const STEEPNESS: f64 = 1.702;
        match self {
            Bend::QuickGelu => ops::silu(&(x * STEEPNESS)?)? / STEEPNESS,
            Bend::Gelu => ops::gelu(x),
        }
    }
}

/// `x` `[n, 3, height, width]` with values 0 to 1, less `mean` and over `deviation`.
///
/// # Errors
/// When the shape is another.
pub fn normalised(x: &Tensor, mean: [f32; 3], deviation: [f32; 3]) -> Result<Tensor> {
    let row = |values: [f32; 3]| Tensor::from_slice(&values, (1, 3, 1, 1), x.device());
    x.broadcast_sub(&row(mean)?)?
        .broadcast_div(&row(deviation)?)
}

/// The first token of each image: `[n, tokens, width]` to `[n, width]`.
///
/// # Errors
/// When the shape is another.
pub fn first(x: &Tensor) -> Result<Tensor> {
    x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
}
