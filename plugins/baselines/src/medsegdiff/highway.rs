//! The U-Net of the image alone, in the manner of nnU-Net: its answer is the calibration, its maps guide the
//! denoiser, and in the first MedSegDiff those of the denoiser guide it.

use super::sizes::HighwaySizes;
use crate::{
    conv::{Conv, Draw},
    unit,
};
use candle_core::{DType, Result, Tensor, bail};
use diffaug_nn::{
    layers::{BatchNorm, Mode},
    noise,
    ops::{self, Convolution, FourierNorm},
    params::Scope,
    segmenter::Pass,
};

/// What negative values are multiplied by.
const SLOPE: f32 = 0.01;
/// Deviation of the spectrum's weights at the beginning.
const SPECTRUM: f32 = 0.02;

/// The network: `pools` times halved and doubled again, with the maps of each level handed across.
#[derive(Clone, Debug)]
pub struct Highway {
    down: Vec<[Layer; 2]>,
    gates: Vec<Gate>,
    bottleneck: [Layer; 2],
    up: Vec<[Layer; 2]>,
    head: Conv,
}

/// What the network found in images.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Its deepest map.
    pub deepest: Tensor,
    /// The map of each level on the way up, from the lowest to that of the image.
    pub decoded: Vec<Tensor>,
    /// What it takes each pixel for, before the sigmoid.
    pub logits: Tensor,
}

impl Highway {
    /// The network that is halved `pools` times and answers with so many `masks`. With `gated`, the channels of
    /// the denoiser's halved maps and the sides of the image, its own maps are gated by them.
    ///
    /// # Errors
    /// When the device has no room for it, or a given tensor does not fit.
    pub fn new(
        mut scope: Scope<'_>,
        sizes: &HighwaySizes,
        pools: usize,
        masks: usize,
        gated: Option<(&[usize], [usize; 2])>,
    ) -> Result<Self> {
        let mut down = Vec::with_capacity(pools);
        let mut inputs = 3;
        for level in 0..pools {
            let mut scope = scope.child(&format!("conv_blocks_context.{level}.blocks"));
            let own = sizes.channels(level);
            down.push([
                Layer::new(scope.child("0"), inputs, own)?,
                Layer::new(scope.child("1"), own, own)?,
            ]);
            inputs = own;
        }
        let bottleneck = sizes.channels(pools);
        let ends = [inputs, bottleneck, inputs];
        let bottleneck = pair(&mut scope, &format!("conv_blocks_context.{pools}"), ends)?;
        let mut up = Vec::with_capacity(pools);
        for (step, level) in (0..pools).rev().enumerate() {
            let own = sizes.channels(level);
            let handed = sizes.channels(level.saturating_sub(1));
            let place = format!("conv_blocks_localization.{step}");
            up.push(pair(&mut scope, &place, [2 * own, own, handed])?);
        }
        let head = scope.child("seg_outputs.0");
        Ok(Highway {
            head: conv(head, [sizes.channels(0), masks], 1, false)?,
            gates: gates(&mut scope, sizes, pools, gated)?,
            down,
            bottleneck,
            up,
        })
    }

    /// What the network finds in `images` `[n, 3, height, width]`; `halved` are the denoiser's maps where it is
    /// gated.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, images: &Tensor, halved: &[Tensor], pass: &Pass<'_>) -> Result<Findings> {
        let mut x = images.clone();
        let mut skips = Vec::with_capacity(self.down.len());
        if halved.len() < self.gates.len() {
            let (gates, maps) = (self.gates.len(), halved.len());
            bail!("{gates} gates need as many maps, not {maps}");
        }
        for (level, layers) in self.down.iter().enumerate() {
            let handed = through(layers, &x, pass, true)?;
            x = ops::max_pool2x2(&handed)?;
            skips.push(handed);
            if let Some(gate) = self.gates.get(level) {
                let gate = gate.clone();
                x = unit::run(&[&x, &halved[level]], pass, move |inputs| {
                    gate.forward(&inputs[0], &inputs[1])
                })?;
            }
        }
        let deepest = through(&self.bottleneck, &x, pass, true)?;
        x = deepest.clone();
        let mut decoded = Vec::with_capacity(self.up.len());
        for (layers, skip) in self.up.iter().zip(skips.iter().rev()) {
            let (_, _, height, width) = skip.dims4()?;
            let grown = ops::upsample_bilinear2d(&x, height, width, false)?;
            x = through(layers, &Tensor::cat(&[&grown, skip], 1)?, pass, false)?;
            decoded.push(x.clone());
        }
        Ok(Findings {
            deepest,
            logits: self.head.forward(&x)?,
            decoded,
        })
    }
}

/// The gates behind all levels but the lowest, if there are any.
fn gates(
    scope: &mut Scope<'_>,
    sizes: &HighwaySizes,
    pools: usize,
    gated: Option<(&[usize], [usize; 2])>,
) -> Result<Vec<Gate>> {
    let Some((halved, [height, width])) = gated else {
        return Ok(Vec::new());
    };
    let levels = halved.iter().enumerate().take(pools.saturating_sub(1));
    levels
        .map(|(level, theirs)| {
            let sides = [height >> (level + 1), width >> (level + 1)];
            Gate::new(scope, level, [*theirs, sizes.channels(level)], sides)
        })
        .collect()
}

/// Two layers of one convolution each, stored as two stacks.
fn pair(scope: &mut Scope<'_>, place: &str, [a, b, c]: [usize; 3]) -> Result<[Layer; 2]> {
    let mut scope = scope.child(place);
    Ok([
        Layer::new(scope.child("0.blocks.0"), a, b)?,
        Layer::new(scope.child("1.blocks.0"), b, c)?,
    ])
}

/// `x` through both layers; on the way down, `dropping` maps fall out where the network learns.
fn through(layers: &[Layer; 2], x: &Tensor, pass: &Pass<'_>, dropping: bool) -> Result<Tensor> {
    let x = layers[0].run(x, pass, dropping)?;
    layers[1].run(&x, pass, dropping)
}

/// A 3×3 convolution, dropout of maps, batch normalisation, and the leaky ReLU.
#[derive(Clone, Debug)]
struct Layer {
    conv: Conv,
    norm: BatchNorm,
    channels: usize,
}

impl Layer {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Layer {
            conv: conv(scope.child("conv"), [inputs, outputs], 3, true)?,
            norm: BatchNorm::new(scope.child("instnorm"), outputs)?,
            channels: outputs,
        })
    }

    fn forward(&self, x: &Tensor, kept: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let mut x = self.conv.forward(x)?;
        if let Some(kept) = kept {
            x = x.broadcast_mul(kept)?;
        }
        ops::leaky_relu(&self.norm.forward(&x, mode, false)?, SLOPE)
    }

    fn run(&self, x: &Tensor, pass: &Pass<'_>, dropping: bool) -> Result<Tensor> {
        let (layer, mode) = (self.clone(), pass.mode);
        let dropping = pass.dropping.filter(|_| dropping && mode == Mode::Train);
        let Some(dropping) = dropping else {
            return unit::run(&[x], pass, move |inputs| {
                layer.forward(&inputs[0], None, mode)
            });
        };
        // Drawn outside of what may be computed twice.
        let ones = (x.dim(0)?, self.channels, 1, 1);
        let kept = dropping.next_maps(&Tensor::ones(ones, x.dtype(), x.device())?)?;
        unit::run(&[x, &kept], pass, move |inputs| {
            layer.forward(&inputs[0], Some(&inputs[1]), mode)
        })
    }
}

/// What a map of the denoiser lets through: the map is filtered in its spectrum, then says how much of each
/// pixel and of each channel stays.
#[derive(Clone, Debug)]
struct Gate {
    enter: Conv,
    filter: FourierFilter,
    pixels: Conv,
}

impl Gate {
    fn new(
        scope: &mut Scope<'_>,
        level: usize,
        [theirs, own]: [usize; 2],
        sides: [usize; 2],
    ) -> Result<Self> {
        let filter = FourierFilter::new(scope.child(&format!("ffparser.{level}")), own, sides)?;
        let enter = scope.child(&format!("conv_trans_blocks_a.{level}"));
        let enter = conv(enter, [theirs, own], 1, true)?;
        let pixels = scope.child(&format!("conv_trans_blocks_b.{level}"));
        Ok(Gate {
            pixels: conv(pixels, [own, 1], 1, true)?,
            enter,
            filter,
        })
    }

    fn forward(&self, x: &Tensor, theirs: &Tensor) -> Result<Tensor> {
        let filtered = self.filter.forward(&self.enter.forward(theirs)?)?;
        let pixels = self.pixels.forward(&filtered)?;
        let channels = filtered.mean_keepdim(3)?.mean_keepdim(2)?;
        x.broadcast_mul(&pixels)?.broadcast_mul(&channels)
    }
}

/// A learned complex factor for each frequency of each channel (the FF-Parser). Computed in f32.
#[derive(Clone, Debug)]
struct FourierFilter {
    weight: Tensor,
    width: usize,
}

impl FourierFilter {
    fn new(mut scope: Scope<'_>, channels: usize, [height, width]: [usize; 2]) -> Result<Self> {
        let shape = [channels, height, width / 2 + 1, 2];
        let weight = scope.drawn("complex_weight", &shape, |seed| {
            let normal = noise::normal(seed, "normal", 0, shape.iter().product());
            normal.into_iter().map(|value| SPECTRUM * value).collect()
        })?;
        Ok(FourierFilter { weight, width })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (re, im) = ops::rfft2(&x.to_dtype(DType::F32)?, FourierNorm::Ortho)?;
        let part = |which: usize| {
            let part = self.weight.narrow(3, which, 1)?.squeeze(3)?;
            part.to_dtype(DType::F32)?.unsqueeze(0)
        };
        let (a, b) = (part(0)?, part(1)?);
        let real = (re.broadcast_mul(&a)? - im.broadcast_mul(&b)?)?;
        let imaginary = (re.broadcast_mul(&b)? + im.broadcast_mul(&a)?)?;
        ops::irfft2(&real, &imaginary, self.width, FourierNorm::Ortho)?.to_dtype(x.dtype())
    }
}

/// A convolution that keeps the size.
fn conv(scope: Scope<'_>, channels: [usize; 2], side: usize, bias: bool) -> Result<Conv> {
    let (spec, draw) = (Convolution::same(side), Draw::Leaky(SLOPE));
    Conv::new(scope, channels, side, spec, draw, bias)
}
