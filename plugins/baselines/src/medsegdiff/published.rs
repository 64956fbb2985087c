//! How the second MedSegDiff is told of the image (Wu et al., MedSegDiff-V2, AAAI 2024): by an uncertain spatial
//! attention at the entry of the denoiser, and by a transformer of spectra at its lowest resolution.
//!
//! No code of it was published, so this is a re-implementation. What the paper leaves open is decided here:
//!
//! - The Gaussian of the attention is one for all channels, in a window of 7×7, with a learned centre (0 at
//!   first) and a learned deviation (1 pixel at first). It smooths the map of the highest resolution on the way
//!   up of the image's U-Net, and what comes of it is one value for each pixel.
//! - The image's deepest map is brought to the denoiser's channels by a 1×1 convolution.
//! - Queries and keys are linear maps of the real and imaginary parts of a spectrum, of which half is kept, as
//!   the other half is its mirror. Their products, divided by the root of the channels, go through a softmax and
//!   are multiplied by the filter. Inverse transforms on both sides of that map make it one of places: the
//!   values' spectrum is taken, mixed by the map, and transformed back.
//! - Both attentions are added to what asks, after group normalisation of what goes in, and are followed by an
//!   MLP of four times the channels with GELU, added as well. The branches begin with zeros.
//! - The filter sees two coordinates of the map of pairs, the number of the query's and that of the key's
//!   frequency, -1 to 1. Its blocks are 3×3 convolutions, group normalisation, scale and shift by the timestep,
//!   and SiLU; a 1×1 convolution and the sigmoid follow.
//! - The last block's result is added to the denoiser's deepest map.
//!
//! The map of pairs has the square of the lowest resolution's frequencies, 40 of them at 8×8 and 544 at 32×32,
//! so that the filter is what takes time and memory where the lowest resolution is a high one.

use super::sizes::DenoiserSizes;
use crate::{check, unit};
use candle_core::{DType, Device, Result, Tensor};
use diffaug_nn::{
    layers::{Conv2d, GroupNorm, Linear},
    limits,
    ops::{self, Convolution, FourierNorm},
    params::Scope,
    precision::like,
    segmenter::Pass,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Added to the variance by the normalisations.
const EPSILON: f32 = 1e-5;
/// Pixels from the middle of the Gaussian's window to its border.
const REACH: usize = 3;
/// The Gaussian's least deviation, in pixels.
const NARROWEST: f64 = 0.1;
/// Channels of the MLPs in terms of those of the maps.
const EXPANSION: usize = 4;

/// What is peculiar to the published variant.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TransformerSizes {
    /// Blocks of two attentions each.
    pub blocks: usize,
    /// Blocks of convolution in each filter.
    pub filter_blocks: usize,
    /// Channels of each filter; the groups of the denoiser's normalisations divide them.
    pub filter_width: usize,
}

impl Default for TransformerSizes {
    fn default() -> Self {
        TransformerSizes {
            blocks: 1,
            filter_blocks: 6,
            filter_width: 64,
        }
    }
}

impl TransformerSizes {
    /// One for tests and first looks.
    pub fn tiny() -> Self {
        TransformerSizes {
            blocks: 1,
            filter_blocks: 2,
            filter_width: 8,
        }
    }

    /// Checks what the types cannot.
    pub fn check(&self, groups: usize) -> diffaug::Result<()> {
        check::within("transformer.blocks", self.blocks, 1..=limits::LAYERS)?;
        let blocks = self.filter_blocks;
        check::within("transformer.filter_blocks", blocks, 1..=limits::LAYERS)?;
        let width = self.filter_width;
        check::within("transformer.filter_width", width, 1..=limits::CHANNELS)?;
        match width.is_multiple_of(groups) {
            true => Ok(()),
            false => {
                let expected = format!("a multiple of `denoiser.groups`, {groups}");
                check::refuse("transformer.filter_width", width, &expected)
            }
        }
    }

    /// Values that a pass keeps for an image whose lowest map has `channels` channels and so many sides.
    pub fn values(&self, channels: usize, [height, width]: [usize; 2]) -> f64 {
        let places = (height * width) as f64;
        let frequencies = (height * (width / 2 + 1)) as f64;
        let maps = (30 + 4 * EXPANSION) as f64 * channels as f64 * places;
        let filter = (4 + 5 * self.filter_blocks * self.filter_width) as f64;
        2.0 * self.blocks as f64 * (maps + filter * frequencies * frequencies)
    }
}

/// Where the image's answer, smoothed, points, the denoiser's map is made stronger (U-SA).
#[derive(Clone, Debug)]
pub struct UncertainAttention {
    centre: Tensor,
    log_deviation: Tensor,
    places: Conv2d,
}

impl UncertainAttention {
    /// For a map of `channels` channels of the image.
    pub fn new(mut scope: Scope<'_>, channels: usize) -> Result<Self> {
        Ok(UncertainAttention {
            centre: scope.constant("gaussian.centre", &[2], 0.0)?,
            log_deviation: scope.constant("gaussian.log_deviation", &[1], 0.0)?,
            places: Conv2d::new(scope.child("places"), channels, 1, 1, true)?,
        })
    }

    /// The values of the Gaussian along an axis; they sum to 1.
    fn gaussian(&self, axis: usize) -> Result<Tensor> {
        let reach = REACH as i64;
        let places: Vec<f32> = (-reach..=reach).map(|place| place as f32).collect();
        let places = Tensor::new(places, self.centre.device())?;
        let centre = self.centre.to_dtype(DType::F32)?.narrow(0, axis, 1)?;
        let deviation = (self.log_deviation.to_dtype(DType::F32)?.exp()? + NARROWEST)?;
        let far = places
            .broadcast_sub(&centre)?
            .broadcast_div(&deviation)?
            .sqr()?;
        ops::softmax(&(far * -0.5)?, 0)
    }

    /// `x`, smoothed, each channel by itself.
    fn smooth(&self, x: &Tensor) -> Result<Tensor> {
        let (count, channels, height, width) = x.dims4()?;
        let size = 2 * REACH + 1;
        let mut y = x.reshape((count * channels, 1, height, width))?;
        for (axis, shape, padding) in [
            (0, (1, 1, size, 1), [REACH, 0]),
            (1, (1, 1, 1, size), [0, REACH]),
        ] {
            let spec = Convolution {
                padding,
                ..Convolution::square(1, 0)
            };
            let values = like(&self.gaussian(axis)?.reshape(shape)?, x)?;
            y = spec.forward(&y, &values, None)?;
        }
        y.reshape((count, channels, height, width))
    }

    /// How strong the image's map `decoded` makes each pixel, 0 to 1: `[n, 1, height, width]`.
    pub fn strength(&self, decoded: &Tensor) -> Result<Tensor> {
        // The larger of the two.
        let more = (self.smooth(decoded)? - decoded)?.relu()?;
        let anchor = ops::add(decoded, &more)?;
        ops::sigmoid(&self.places.forward(&anchor)?)
    }

    /// The denoiser's map `x`, made stronger.
    pub fn forward(&self, x: &Tensor, strength: &Tensor) -> Result<Tensor> {
        ops::add(x, &x.broadcast_mul(strength)?)
    }
}

/// Image and noise attend to each other by their spectra (SS-Former).
#[derive(Clone, Debug)]
pub struct SpectrumTransformer {
    enter: Conv2d,
    blocks: Vec<[SpectrumAttention; 2]>,
}

impl SpectrumTransformer {
    /// For a map of the image of `inputs` channels and the denoiser's lowest.
    pub fn new(
        mut scope: Scope<'_>,
        sizes: &TransformerSizes,
        denoiser: &DenoiserSizes,
        inputs: usize,
    ) -> Result<Self> {
        let mut blocks = Vec::with_capacity(sizes.blocks);
        for block in 0..sizes.blocks {
            let mut scope = scope.child(&format!("blocks.{block}"));
            let mut part = |name: &str| SpectrumAttention::new(scope.child(name), sizes, denoiser);
            blocks.push([part("noise_to_image")?, part("image_to_noise")?]);
        }
        Ok(SpectrumTransformer {
            enter: Conv2d::new(scope.child("enter"), inputs, denoiser.lowest(), 1, true)?,
            blocks,
        })
    }

    /// The image's deepest map in the denoiser's channels.
    pub fn enter(&self, deepest: &Tensor) -> Result<Tensor> {
        self.enter.forward(deepest)
    }

    /// The denoiser's deepest map `noise` with what the image, [`SpectrumTransformer::enter`], says of it.
    pub fn forward(&self, image: &Tensor, noise: &Tensor, time: &Tensor) -> Result<Tensor> {
        let mut image = image.clone();
        for [first, second] in &self.blocks {
            let known = first.forward(&image, noise, &image, time)?;
            image = second.forward(&known, noise, noise, time)?;
        }
        ops::add(noise, &image)
    }

    /// The same, computed again in the backward pass where `pass` says so.
    pub fn run(
        &self,
        image: &Tensor,
        noise: &Tensor,
        time: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let transformer = self.clone();
        unit::run(&[image, noise, time], pass, move |inputs| {
            transformer.forward(&inputs[0], &inputs[1], &inputs[2])
        })
    }
}

/// One attention of spectra with its MLP.
#[derive(Clone, Debug)]
struct SpectrumAttention {
    norms: [GroupNorm; 4],
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    mlp: [Linear; 2],
    filter: Filter,
}

impl SpectrumAttention {
    fn new(
        mut scope: Scope<'_>,
        sizes: &TransformerSizes,
        denoiser: &DenoiserSizes,
    ) -> Result<Self> {
        let (channels, groups) = (denoiser.lowest(), denoiser.groups);
        let hidden = EXPANSION * channels;
        let mut norm = |name: &str| GroupNorm::new(scope.child(name), groups, channels, EPSILON);
        let norms = [
            norm("norm_query")?,
            norm("norm_key")?,
            norm("norm_value")?,
            norm("norm_mlp")?,
        ];
        Ok(SpectrumAttention {
            norms,
            query: Linear::new(scope.child("query"), 2 * channels, channels, true)?,
            // A bias would move all scores of a query alike, which the softmax takes away.
            key: Linear::new(scope.child("key"), 2 * channels, channels, false)?,
            value: Linear::new(scope.child("value"), channels, channels, true)?,
            out: Linear::new(scope.child("out").zeroed(), channels, channels, true)?,
            mlp: [
                Linear::new(scope.child("mlp.0"), channels, hidden, true)?,
                Linear::new(scope.child("mlp.2").zeroed(), hidden, channels, true)?,
            ],
            filter: Filter::new(scope.child("filter"), sizes, denoiser)?,
        })
    }

    /// What `asks` becomes by what `knows` says of `given`, all `[n, channels, height, width]`.
    fn forward(
        &self,
        asks: &Tensor,
        knows: &Tensor,
        given: &Tensor,
        time: &Tensor,
    ) -> Result<Tensor> {
        let (_, channels, height, width) = asks.dims4()?;
        let half = width / 2 + 1;
        let spectrum = |norm: &GroupNorm, x: &Tensor| spectrum(&norm.forward(x, None)?);
        let queries = self.query.forward(&spectrum(&self.norms[0], asks)?)?;
        let keys = self.key.forward(&spectrum(&self.norms[1], knows)?)?;
        let scale = 1.0 / (channels as f64).sqrt();
        let affinity = (queries.matmul(&keys.t()?.contiguous()?)? * scale)?;
        let affinity = ops::softmax(&affinity, 2)?;
        let affinity = (affinity * self.filter.forward(height * half, time)?)?;
        let tokens = ops::pixels_to_tokens(&self.norms[2].forward(given, None)?)?;
        let values = self.value.forward(&tokens)?;
        let values = spectrum_of_tokens(&values, height, width)?;
        let mixed = affinity.matmul(&values)?;
        let mixed = from_spectrum(&mixed, height, width)?;
        let said = self.out.forward(&ops::pixels_to_tokens(&mixed)?)?;
        let x = ops::add(asks, &ops::tokens_to_pixels(&said, height, width)?)?;
        let tokens = ops::pixels_to_tokens(&self.norms[3].forward(&x, None)?)?;
        let refined = ops::gelu(&self.mlp[0].forward(&tokens)?)?;
        let refined = self.mlp[1].forward(&refined)?;
        ops::add(&x, &ops::tokens_to_pixels(&refined, height, width)?)
    }
}

/// The spectrum of `x` as tokens, one for each frequency, with the real parts of all channels before the
/// imaginary ones: `[n, height (width / 2 + 1), 2 channels]`. Computed in f32.
fn spectrum(x: &Tensor) -> Result<Tensor> {
    let (re, im) = ops::rfft2(&x.to_dtype(DType::F32)?, FourierNorm::Ortho)?;
    let parts = [ops::pixels_to_tokens(&re)?, ops::pixels_to_tokens(&im)?];
    Tensor::cat(&parts, 2)?.to_dtype(x.dtype())
}

/// [`spectrum`] of a map that is given as tokens.
fn spectrum_of_tokens(tokens: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    spectrum(&ops::tokens_to_pixels(tokens, height, width)?)
}

/// The map of which `tokens` is the [`spectrum`].
fn from_spectrum(tokens: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let channels = tokens.dim(2)? / 2;
    let wide = tokens.to_dtype(DType::F32)?;
    let part = |which: usize| {
        let part = wide.narrow(2, which * channels, channels)?.contiguous()?;
        ops::tokens_to_pixels(&part, height, width / 2 + 1)?.contiguous()
    };
    let map = ops::irfft2(&part(0)?, &part(1)?, width, FourierNorm::Ortho)?;
    map.to_dtype(tokens.dtype())
}

/// Which pairs of frequencies matter at a timestep (NBP-Filter).
#[derive(Clone, Debug)]
struct Filter {
    blocks: Vec<(Conv2d, GroupNorm, Linear)>,
    leave: Conv2d,
}

impl Filter {
    fn new(
        mut scope: Scope<'_>,
        sizes: &TransformerSizes,
        denoiser: &DenoiserSizes,
    ) -> Result<Self> {
        let (width, groups) = (sizes.filter_width, denoiser.groups);
        let mut blocks = Vec::with_capacity(sizes.filter_blocks);
        let mut inputs = 2;
        for block in 0..sizes.filter_blocks {
            let mut scope = scope.child(&format!("blocks.{block}"));
            blocks.push((
                Conv2d::new(scope.child("conv"), inputs, width, 3, true)?,
                GroupNorm::new(scope.child("norm"), groups, width, EPSILON)?,
                Linear::new(scope.child("time"), denoiser.time(), 2 * width, true)?,
            ));
            inputs = width;
        }
        let leave = Conv2d::new(scope.child("leave"), width, 1, 1, true)?;
        Ok(Filter { blocks, leave })
    }

    /// Factors of all pairs of so many frequencies, 0 to 1, at the timesteps that `time` `[n, _]` tells of:
    /// `[n, frequencies, frequencies]`.
    fn forward(&self, frequencies: usize, time: &Tensor) -> Result<Tensor> {
        let count = time.dim(0)?;
        let mut x = coordinates(frequencies, time.device())?.to_dtype(time.dtype())?;
        for (i, (conv, norm, film)) in self.blocks.iter().enumerate() {
            x = norm.forward(&conv.forward(&x)?, None)?;
            if i == 0 {
                // Until here it is the same for all images.
                let (_, width, ..) = x.dims4()?;
                let shape = (count, width, frequencies, frequencies);
                x = x.broadcast_as(shape)?.contiguous()?;
            }
            let film = film.forward(time)?;
            let half = film.dim(1)? / 2;
            let part = |at: usize| film.narrow(1, at, half)?.contiguous();
            x = ops::silu(&ops::modulate_channels(&x, &part(0)?, &part(half)?)?)?;
        }
        ops::sigmoid(&self.leave.forward(&x)?)?.squeeze(1)
    }
}

/// The numbers of both frequencies of all pairs, -1 to 1: `[1, 2, frequencies, frequencies]`.
fn coordinates(frequencies: usize, device: &Device) -> Result<Tensor> {
    let scale = 2.0 / frequencies.saturating_sub(1).max(1) as f32;
    let numbers: Vec<f32> = (0..frequencies).map(|i| i as f32 * scale - 1.0).collect();
    let numbers = Tensor::new(numbers, device)?;
    let square = (frequencies, frequencies);
    let queries = numbers.unsqueeze(1)?.broadcast_as(square)?;
    let keys = numbers.unsqueeze(0)?.broadcast_as(square)?;
    Tensor::stack(&[queries, keys], 0)?.unsqueeze(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing;
    use super::*;
    use candle_core::Var;
    use diffaug_nn::{
        params::Params,
        testing::{close, random},
    };
    use std::collections::HashMap;

    /// Asserts that `f` of the inputs of `case` is what PyTorch computes, and all gradients.
    fn agree(case: &str, names: &[&str], params: &Params, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let all = testing::fixture("medsegdiff_published");
        let get = |name: &str| &all[&format!("{case}.{name}")];
        let weights = format!("{case}.weights.");
        let given: HashMap<String, Tensor> = all
            .iter()
            .filter_map(|(name, x)| Some((name.strip_prefix(&weights)?.to_owned(), x.clone())))
            .collect();
        testing::fill(params, &given);
        let inputs = names
            .iter()
            .map(|name| Var::from_tensor(get(name)).unwrap());
        let inputs: Vec<Var> = inputs.collect();
        let tensors: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        close(&y, get("y"), 1e-5);
        let grads = (y * get("dy")).unwrap().sum_all().unwrap();
        let grads = grads.backward().unwrap();
        for (name, input) in names.iter().zip(&inputs) {
            close(grads.get(input).unwrap(), get(&format!("d{name}")), 1e-4);
        }
        for (name, var) in params.trainable() {
            close(
                grads.get(var).unwrap(),
                get(&format!("gradients.{name}")),
                1e-4,
            );
        }
    }

    #[test]
    fn the_anchor_is_what_pytorch_makes_of_its_description() {
        let mut params = Params::new(&Device::Cpu, 0);
        let attention = UncertainAttention::new(params.root(), 3).unwrap();
        agree("anchor", &["x", "decoded"], &params, |v| {
            attention.forward(&v[0], &attention.strength(&v[1])?)
        });
    }

    #[test]
    fn the_transformer_is_what_pytorch_makes_of_its_description() {
        let denoiser = DenoiserSizes {
            width: 2,
            multipliers: vec![1, 2],
            groups: 2,
            ..DenoiserSizes::default()
        };
        for (case, blocks) in [("transformer", 2), ("uneven", 1)] {
            let sizes = TransformerSizes {
                blocks,
                filter_blocks: 2,
                filter_width: 6,
            };
            let mut params = Params::new(&Device::Cpu, 0);
            let net = SpectrumTransformer::new(params.root(), &sizes, &denoiser, 3).unwrap();
            agree(case, &["image", "noise", "time"], &params, |v| {
                net.forward(&net.enter(&v[0])?, &v[1], &v[2])
            });
        }
    }

    #[test]
    fn an_even_map_stays_even_under_the_gaussian() {
        let mut params = Params::new(&Device::Cpu, 0);
        let attention = UncertainAttention::new(params.root(), 2).unwrap();
        let x = Tensor::ones((1, 2, 9, 9), DType::F32, &Device::Cpu).unwrap();
        let smooth = attention.smooth(&x).unwrap();
        // Away from the border, where there are zeros.
        let inside = |x: &Tensor| x.narrow(2, 3, 3).unwrap().narrow(3, 3, 3).unwrap();
        close(&inside(&smooth), &inside(&x), 1e-6);
    }

    #[test]
    fn a_map_comes_back_from_its_spectrum() {
        for [height, width] in [[4, 6], [3, 5], [1, 1], [2, 1]] {
            let x = random("x", &[2, 3, height, width]);
            let back = from_spectrum(&spectrum(&x).unwrap(), height, width).unwrap();
            close(&back, &x, 1e-5);
        }
    }
}
