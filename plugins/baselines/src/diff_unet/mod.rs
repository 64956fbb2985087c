//! The network of the segmenter `diff-unet`: Diff-UNet (Xing et al., 2023) on two-dimensional images
//! (`ge-xing/Diff-UNet`, which is three-dimensional, with its own number of dimensions set to two).
//!
//! An encoder sees the image alone. A U-Net sees the image beside a noisy mask and is given the encoder's maps,
//! added to its own at every level on the way down. It answers with logits that are taken for the clean mask.
//!
//! The timestep is added to the channels between the two convolutions of a block, as a value that is the same
//! at all pixels. The instance normalisation behind the second one takes such a value off again wherever its
//! window lies inside the map: the network learns of the timestep from the zeros around the border. So it is in
//! the reference.

mod fusion;
mod sizes;
#[cfg(test)]
mod tests;

pub use fusion::{fuse, loss};
pub use sizes::Architecture;

use candle_core::{DType, Result, Tensor, bail};
use diffaug_nn::{
    diffusion::scheduler::{Prediction, SamplerName},
    layers::{Conv2d, ConvTranspose2x2, GroupNorm, Linear, Mode},
    ops,
    params::Scope,
    recompute,
    segmenter::{Diffusion, Fusion, MaskNetwork, Noised, Pass, Predicted, Run},
};
use sizes::LEVELS;

/// Channels of an image.
const IMAGE: usize = 3;
/// Slope of the leaky ReLU below 0.
const SLOPE: f32 = 0.1;
/// Added to the variance by a normalisation.
const EPSILON: f32 = 1e-5;

/// 3×3 convolution, instance normalisation and leaky ReLU.
#[derive(Clone)]
struct Layer {
    conv: Conv2d,
    norm: GroupNorm,
}

impl Layer {
    fn new(scope: &mut Scope<'_>, index: usize, inputs: usize, outputs: usize) -> Result<Self> {
        let conv = scope.child(&format!("conv{index}"));
        let conv = Conv2d::new(conv, inputs, outputs, 3, true)?;
        let norm = scope.child(&format!("norm{index}"));
        // A group for each channel makes it an instance normalisation.
        let norm = GroupNorm::new(norm, outputs, outputs, EPSILON)?;
        Ok(Layer { conv, norm })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.norm.forward(&self.conv.forward(x)?, None)?;
        ops::leaky_relu(&x, SLOPE)
    }
}

/// Two layers.
#[derive(Clone)]
struct Block {
    first: Layer,
    second: Layer,
}

impl Block {
    fn new(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Block {
            first: Layer::new(scope, 1, inputs, outputs)?,
            second: Layer::new(scope, 2, outputs, outputs)?,
        })
    }

    /// `shift`, `[n, channels]`, is added between the two.
    fn forward(&self, x: &Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
        let x = self.first.forward(x)?;
        match shift {
            None => self.second.forward(&x),
            Some(shift) => self.second.forward(&ops::shift_channels(&x, shift)?),
        }
    }

    /// The same, computed again in the backward pass where `pass` says so.
    fn run(&self, x: &Tensor, shift: Option<&Tensor>, pass: &Pass<'_>) -> Result<Tensor> {
        if !(pass.recompute && pass.mode == Mode::Train) {
            return self.forward(x, shift);
        }
        let block = self.clone();
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(shift).collect();
        recompute::checkpointed(&inputs, move |inputs| match inputs {
            [x, shift] => block.forward(x, Some(shift)),
            inputs => block.forward(&inputs[0], None),
        })
    }
}

/// A block that is told the timestep.
struct Timed {
    block: Block,
    time: Linear,
}

impl Timed {
    fn new(scope: &mut Scope<'_>, inputs: usize, outputs: usize, time: usize) -> Result<Self> {
        Ok(Timed {
            block: Block::new(scope, inputs, outputs)?,
            time: Linear::new(scope.child("time"), time, outputs, true)?,
        })
    }

    fn run(&self, x: &Tensor, embedding: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let shift = self.time.forward(embedding)?;
        self.block.run(x, Some(&shift), pass)
    }
}

/// The sines, then the cosines, of each value of `t` `[n]` at `width` / 2 frequencies from 1 down to 1/10,000
/// itself: `[n, width]`, f32.
fn sinusoids(t: &Tensor, width: usize) -> Result<Tensor> {
    let half = width / 2;
    let step = 10_000f64.ln() / (half as f64 - 1.0);
    let frequencies: Vec<f32> = (0..half).map(|i| (-step * i as f64).exp() as f32).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
    let angles = t.to_dtype(DType::F32)?.reshape(((), 1))?;
    let angles = angles.broadcast_mul(&frequencies)?;
    Tensor::cat(&[angles.sin()?, angles.cos()?], 1)
}

/// What makes an embedding of timesteps.
struct Time {
    first: Linear,
    second: Linear,
    sinusoids: usize,
}

impl Time {
    fn new(mut scope: Scope<'_>, architecture: &Architecture) -> Result<Self> {
        let (sinusoids, width) = (architecture.sinusoids(), architecture.time);
        Ok(Time {
            first: Linear::new(scope.child("first"), sinusoids, width, true)?,
            second: Linear::new(scope.child("second"), width, width, true)?,
            sinusoids,
        })
    }

    /// `[n]` to `[n, width]`, as all blocks take it.
    fn forward(&self, t: &Tensor, dtype: DType) -> Result<Tensor> {
        let waves = sinusoids(t, self.sinusoids)?.to_dtype(dtype)?;
        let inner = ops::silu(&self.first.forward(&waves)?)?;
        ops::silu(&self.second.forward(&inner)?)
    }
}

/// A step upwards: height and width doubled, and the map of the way down beside it.
struct Up {
    grow: ConvTranspose2x2,
    block: Timed,
}

/// Where a level is in the names of tensors.
fn place(level: usize) -> String {
    match level {
        0 => "entry".to_owned(),
        level => format!("down{level}"),
    }
}

/// The encoder of the image and the U-Net that denoises masks.
pub struct Net {
    encoder: Vec<Block>,
    time: Time,
    down: Vec<Timed>,
    up: Vec<Up>,
    head: Conv2d,
    masks: usize,
}

impl MaskNetwork for Net {
    type Architecture = Architecture;
    /// The maps of the images, a tensor for each level from the highest down.
    type Condition = Vec<Tensor>;
    const FUSES_STEPS: bool = true;

    fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        masks: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        let encoder = Net::encoder(scope.child("encoder"), architecture)?;
        let mut scope = scope.child("denoiser");
        let Architecture { widths, time, .. } = architecture;
        let mut down = Vec::with_capacity(LEVELS);
        let mut inputs = IMAGE + masks;
        for (level, width) in widths.iter().enumerate() {
            let mut scope = scope.child(&place(level));
            down.push(Timed::new(&mut scope, inputs, *width, *time)?);
            inputs = *width;
        }
        let mut up = Vec::with_capacity(LEVELS - 1);
        for level in (0..LEVELS - 1).rev() {
            up.push(Up::new(
                scope.child(&format!("up{level}")),
                architecture,
                level,
            )?);
        }
        Ok(Net {
            encoder,
            time: Time::new(scope.child("time"), architecture)?,
            down,
            up,
            head: Conv2d::new(scope.child("head"), architecture.last, masks, 1, true)?,
            masks,
        })
    }

    /// Four runs of ten steps, as the reference tests; its steps are at other timesteps: 999, 888 to 0, where
    /// these are at 999, 899 to 99.
    fn diffusion(_: &Architecture) -> Diffusion {
        Diffusion {
            prediction: Prediction::Sample,
            values: (-1.0, 1.0),
            learned_variance: false,
            sampler: SamplerName::Ddim,
            steps: 10,
            runs: 4,
            fusion: Fusion::Published,
        }
    }

    fn condition(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        check(images, IMAGE)?;
        let mut maps: Vec<Tensor> = Vec::with_capacity(LEVELS);
        for block in &self.encoder {
            let map = match maps.last() {
                None => block.run(images, None, pass)?,
                Some(above) => block.run(&ops::max_pool2x2(above)?, None, pass)?,
            };
            maps.push(map);
        }
        Ok(maps)
    }

    /// Logits of the clean masks.
    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        condition: &Vec<Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Predicted> {
        check(images, IMAGE)?;
        check(noisy, self.masks)?;
        if condition.len() != LEVELS {
            bail!(
                "a denoiser of {LEVELS} levels needs as many maps of the image, not {}",
                condition.len()
            );
        }
        let embedding = self.time.forward(t, images.dtype())?;
        let mut x = Tensor::cat(&[images, noisy], 1)?;
        let mut skips: Vec<Tensor> = Vec::with_capacity(LEVELS);
        for (block, features) in self.down.iter().zip(condition) {
            if let Some(above) = skips.last() {
                x = ops::max_pool2x2(above)?;
            }
            skips.push(ops::add(&block.run(&x, &embedding, pass)?, features)?);
        }
        x = match skips.pop() {
            Some(lowest) => lowest,
            None => bail!("a denoiser needs at least one level"),
        };
        for (up, skip) in self.up.iter().zip(skips.iter().rev()) {
            let grown = up.grow.forward(&x)?;
            x = up
                .block
                .run(&Tensor::cat(&[skip, &grown], 1)?, &embedding, pass)?;
        }
        Ok(self.head.forward(&x)?.into())
    }

    fn loss(&self, predicted: &Predicted, noised: &Noised<'_>) -> diffaug::Result<Tensor> {
        Ok(loss(&predicted.output, &noised.masks)?)
    }

    fn fuse(_: &Diffusion, runs: &[Run]) -> diffaug::Result<Tensor> {
        let steps: Vec<Vec<Tensor>> = runs.iter().map(|run| run.steps.clone()).collect();
        // The sum over all maps as their mean, of whose sigmoids none is 1: the same pixels are above 0.5.
        let maps: usize = steps.iter().map(Vec::len).sum();
        Ok(ops::sigmoid(&(fuse(&steps)? / maps as f64)?)?)
    }
}

impl Net {
    fn encoder(mut scope: Scope<'_>, architecture: &Architecture) -> Result<Vec<Block>> {
        let mut inputs = IMAGE;
        let mut blocks = Vec::with_capacity(LEVELS);
        for (level, width) in architecture.widths.iter().enumerate() {
            let mut scope = scope.child(&place(level));
            blocks.push(Block::new(&mut scope, inputs, *width)?);
            inputs = *width;
        }
        Ok(blocks)
    }
}

impl Up {
    fn new(mut scope: Scope<'_>, architecture: &Architecture, level: usize) -> Result<Self> {
        let below = architecture.widths[level + 1];
        let grown = architecture.grown(level);
        let grow = ConvTranspose2x2::new(scope.child("grow"), below, grown)?;
        let inputs = architecture.widths[level] + grown;
        let outputs = architecture.risen(level);
        Ok(Up {
            grow,
            block: Timed::new(&mut scope, inputs, outputs, architecture.time)?,
        })
    }
}

/// Checks that maps of that many channels can be halved four times, and have more than one value then: a
/// normalisation of a single value is 0.
fn check(x: &Tensor, channels: usize) -> Result<()> {
    let (_, found, height, width) = x.dims4()?;
    if found != channels {
        bail!("a map of {found} channels was given, expected {channels}");
    }
    let fits = |side: usize| side.is_multiple_of(1 << (LEVELS - 1)) && side >= 1 << LEVELS;
    match fits(height) && fits(width) {
        true => Ok(()),
        false => bail!("images are {width}x{height}, expected multiples of 16 from 32 on"),
    }
}
