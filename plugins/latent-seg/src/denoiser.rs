//! The denoising network of the segmenter: the UNet of guided diffusion and latent diffusion
//! (Dhariwal & Nichol, 2021; Rombach et al., 2022), under the tensor names of their code. The
//! timestep modulates normalised maps (FiLM), residual blocks change the resolution, and attention
//! keeps the older order of its projections, in which heads are cut before queries, keys and values.

use candle_core::{Result, Tensor, bail};
use diffaug_nn::{
    diffusion::sinusoids,
    layers::{Conv2d, GroupNorm, Linear},
    limits,
    ops::{self, Activation, Attention, Dropping, PackedLinear},
    params::{Scope, Shapes},
};
use serde::{Deserialize, Serialize};

/// Added to the variance in every normalisation.
const EPSILON: f32 = 1e-5;

/// The architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenoiserConfig {
    /// Channels that go in: noisy latents, then the condition.
    pub inputs: usize,
    /// Channels that come out.
    pub outputs: usize,
    /// Channels of the first resolution.
    pub width: usize,
    /// What `width` is multiplied by at each resolution; every one but the first halves the sides.
    pub multipliers: Vec<usize>,
    /// Residual blocks at each resolution on the way down; one more on the way up.
    pub layers: usize,
    /// Heads of an attention.
    pub heads: usize,
    /// How often smaller than the latent a map with attention is: 1, 2, 4, …
    pub attention: Vec<usize>,
    /// Groups of every normalisation.
    pub groups: usize,
}

/// What a place in the sequence of blocks holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The first convolution.
    Enter,
    /// A residual block and whether attention follows, then whether the sides double.
    Stage {
        channels: [usize; 2],
        attention: bool,
        double: bool,
    },
    /// A residual block that halves the sides.
    Halve(usize),
}

impl DenoiserConfig {
    /// Checks that the numbers fit each other.
    ///
    /// # Errors
    /// Naming the one that does not.
    pub fn check(&self) -> Result<()> {
        if self.multipliers.is_empty() || self.multipliers.contains(&0) {
            bail!("`multipliers` are one or more numbers above 0");
        }
        limits::all_within("multipliers", &self.multipliers, limits::LEVELS, 1..=64)?;
        for (field, value, most) in [
            ("inputs", self.inputs, limits::WIDTH),
            ("outputs", self.outputs, limits::WIDTH),
            ("width", self.width, limits::CHANNELS),
            ("layers", self.layers, limits::LAYERS),
            ("groups", self.groups, limits::CHANNELS),
            ("heads", self.heads, limits::CHANNELS),
        ] {
            limits::within(field, value, 0..=most)?;
        }
        for multiplier in &self.multipliers {
            let channels = self.width * multiplier;
            if self.groups == 0 || channels == 0 || !channels.is_multiple_of(self.groups) {
                bail!(
                    "`groups` {} does not divide {channels} channels",
                    self.groups
                );
            }
            if self.heads == 0 || !channels.is_multiple_of(self.heads) {
                bail!("`heads` {} does not divide {channels} channels", self.heads);
            }
        }
        Ok(())
    }

    /// Sides of a latent have to be multiples of this.
    pub fn downsampling(&self) -> usize {
        1 << (self.multipliers.len().saturating_sub(1)).min(16)
    }

    fn time(&self) -> usize {
        4 * self.width
    }

    /// The way down and the way up.
    fn places(&self) -> (Vec<Place>, Vec<Place>) {
        let last = self.multipliers.len() - 1;
        let mut down = vec![Place::Enter];
        // What each place hands across.
        let mut skips = vec![self.width];
        let mut present = self.width;
        for (level, multiplier) in self.multipliers.iter().enumerate() {
            let outputs = self.width * multiplier;
            for _ in 0..self.layers {
                down.push(Place::Stage {
                    channels: [present, outputs],
                    attention: self.attends(level),
                    double: false,
                });
                present = outputs;
                skips.push(present);
            }
            if level < last {
                down.push(Place::Halve(present));
                skips.push(present);
            }
        }
        let mut up = Vec::new();
        for (level, multiplier) in self.multipliers.iter().enumerate().rev() {
            let outputs = self.width * multiplier;
            for layer in 0..=self.layers {
                let inputs = present + skips.pop().unwrap_or(0);
                up.push(Place::Stage {
                    channels: [inputs, outputs],
                    attention: self.attends(level),
                    double: level > 0 && layer == self.layers,
                });
                present = outputs;
            }
        }
        (down, up)
    }

    fn attends(&self, level: usize) -> bool {
        self.attention.contains(&(1 << level))
    }

    /// Number of parameters.
    ///
    /// # Errors
    /// When it contradicts itself.
    pub fn count(&self) -> Result<u64> {
        Ok(Shapes::of(|scope| Denoiser::new(scope, self))?.parameters())
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct Denoiser {
    time: [Linear; 2],
    enter: Conv2d,
    down: Vec<Step>,
    middle: (Block, PixelAttention, Block),
    up: Vec<Step>,
    norm: GroupNorm,
    leave: Conv2d,
    width: usize,
}

/// A residual block, attention after it, and a second block that changes the resolution.
#[derive(Clone, Debug)]
struct Step {
    block: Block,
    attention: Option<PixelAttention>,
    double: Option<Block>,
}

impl Denoiser {
    /// # Errors
    /// When `config` contradicts itself, the device has no room for it, or a given tensor does not
    /// fit.
    pub fn new(mut scope: Scope<'_>, config: &DenoiserConfig) -> Result<Self> {
        config.check()?;
        let (width, time, groups) = (config.width, config.time(), config.groups);
        let (down, up) = config.places();
        let maker = Maker { config };
        let enter = scope.child("input_blocks.0.0");
        let enter = Conv2d::new(enter, config.inputs, width, 3, true)?;
        let steps = |scope: &mut Scope<'_>, name: &str, places: &[Place], first: usize| {
            let steps = places.iter().zip(first..);
            steps
                .map(|(place, i)| maker.step(scope.child(&format!("{name}.{i}")), place))
                .collect::<Result<Vec<_>>>()
        };
        let down = steps(&mut scope, "input_blocks", &down[1..], 1)?;
        let up = steps(&mut scope, "output_blocks", &up, 0)?;
        let lowest = width * config.multipliers.last().copied().unwrap_or(1);
        let mut middle = scope.child("middle_block");
        let middle = (
            maker.block(middle.child("0"), [lowest; 2], Resample::None)?,
            maker.attention(middle.child("1"), lowest)?,
            maker.block(middle.child("2"), [lowest; 2], Resample::None)?,
        );
        let first = width * config.multipliers.first().copied().unwrap_or(1);
        Ok(Denoiser {
            time: [
                Linear::new(scope.child("time_embed.0"), width, time, true)?,
                Linear::new(scope.child("time_embed.2"), time, time, true)?,
            ],
            enter,
            down,
            middle,
            up,
            norm: GroupNorm::new(scope.child("out.0"), groups, first, EPSILON)?,
            leave: Conv2d::new(
                scope.child("out.2").zeroed(),
                first,
                config.outputs,
                3,
                true,
            )?,
            width,
        })
    }

    /// What the network makes of `x` `[batch, inputs, height, width]` at the timesteps `t` `[batch]`;
    /// `dropping` where it learns.
    ///
    /// # Errors
    /// When the shapes do not fit, or sides are no multiples of [`DenoiserConfig::downsampling`].
    pub fn forward(&self, x: &Tensor, t: &Tensor, dropping: Option<&Dropping>) -> Result<Tensor> {
        // On one of the pool's threads: from outside every operation would wake one and wait.
        rayon::scope(|_| self.compute(x, t, dropping))
    }

    fn compute(&self, x: &Tensor, t: &Tensor, dropping: Option<&Dropping>) -> Result<Tensor> {
        let embedded = sinusoids(t, self.width)?.to_dtype(x.dtype())?;
        let embedded = ops::silu(&self.time[0].forward(&embedded)?)?;
        // Every block begins with the SiLU of the embedding.
        let time = ops::silu(&self.time[1].forward(&embedded)?)?;
        let mut x = self.enter.forward(x)?;
        let mut skips = vec![x.clone()];
        for step in &self.down {
            x = step.forward(&x, &time, dropping)?;
            skips.push(x.clone());
        }
        let (before, attention, after) = &self.middle;
        x = before.forward(&x, &time, dropping)?;
        x = after.forward(&attention.forward(&x)?, &time, dropping)?;
        for step in &self.up {
            let Some(skip) = skips.pop() else {
                bail!("the way up is longer than the way down");
            };
            x = step.forward(&Tensor::cat(&[&x, &skip], 1)?, &time, dropping)?;
        }
        self.leave
            .forward(&self.norm.forward(&x, Some(Activation::Silu))?)
    }
}

impl Step {
    fn forward(&self, x: &Tensor, time: &Tensor, dropping: Option<&Dropping>) -> Result<Tensor> {
        let mut x = self.block.forward(x, time, dropping)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        match &self.double {
            Some(block) => block.forward(&x, time, dropping),
            None => Ok(x),
        }
    }
}

/// Makes the parts of a network.
struct Maker<'a> {
    config: &'a DenoiserConfig,
}

impl Maker<'_> {
    fn step(&self, mut scope: Scope<'_>, place: &Place) -> Result<Step> {
        let (channels, attends, double, resample) = match place {
            Place::Enter => bail!("a convolution is no step"),
            Place::Halve(channels) => ([*channels; 2], false, false, Resample::Halve),
            Place::Stage {
                channels,
                attention,
                double,
            } => (*channels, *attention, *double, Resample::None),
        };
        let block = self.block(scope.child("0"), channels, resample)?;
        let attention = attends.then(|| self.attention(scope.child("1"), channels[1]));
        let attention = attention.transpose()?;
        let next = if attends { "2" } else { "1" };
        let same = [channels[1]; 2];
        let double = double.then(|| self.block(scope.child(next), same, Resample::Double));
        Ok(Step {
            block,
            attention,
            double: double.transpose()?,
        })
    }

    fn block(
        &self,
        mut scope: Scope<'_>,
        [inputs, outputs]: [usize; 2],
        resample: Resample,
    ) -> Result<Block> {
        let groups = self.config.groups;
        let skip = (inputs != outputs)
            .then(|| Conv2d::new(scope.child("skip_connection"), inputs, outputs, 1, true));
        let last = scope.child("out_layers.3").zeroed();
        let conv2 = Conv2d::new(last, outputs, outputs, 3, true)?;
        Ok(Block {
            skip: skip.transpose()?,
            conv2,
            norm1: GroupNorm::new(scope.child("in_layers.0"), groups, inputs, EPSILON)?,
            conv1: Conv2d::new(scope.child("in_layers.2"), inputs, outputs, 3, true)?,
            time: Linear::new(
                scope.child("emb_layers.1"),
                self.config.time(),
                2 * outputs,
                true,
            )?,
            norm2: GroupNorm::new(scope.child("out_layers.0"), groups, outputs, EPSILON)?,
            resample,
        })
    }

    fn attention(&self, scope: Scope<'_>, channels: usize) -> Result<PixelAttention> {
        let mut scope = scope;
        let out = scope.child("proj_out").zeroed();
        let out = Linear::new(out, channels, channels, true)?;
        Ok(PixelAttention {
            out,
            norm: GroupNorm::new(scope.child("norm"), self.config.groups, channels, EPSILON)?,
            projections: Projections::new(scope.child("qkv"), channels, self.config.heads)?,
            attention: Attention::new(self.config.heads),
        })
    }
}

/// What becomes of height and width in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resample {
    None,
    Halve,
    Double,
}

impl Resample {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        match self {
            Resample::None => Ok(x.clone()),
            Resample::Halve => ops::avg_pool2d(x, (2, 2), (2, 2), (0, 0), false),
            Resample::Double => ops::upsample_nearest2d(x, 2 * height, 2 * width),
        }
    }
}

/// Twice normalisation, SiLU and a 3×3 convolution; the timestep scales and shifts in between.
#[derive(Clone, Debug)]
struct Block {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    skip: Option<Conv2d>,
    resample: Resample,
}

impl Block {
    fn forward(&self, x: &Tensor, time: &Tensor, dropping: Option<&Dropping>) -> Result<Tensor> {
        let h = self.norm1.forward(x, Some(Activation::Silu))?;
        let h = self.conv1.forward(&self.resample.apply(&h)?)?;
        let film = self.time.forward(time)?;
        let half = film.dim(1)? / 2;
        let (scale, shift) = (film.narrow(1, 0, half)?, film.narrow(1, half, half)?);
        let h = ops::modulate_channels(&self.norm2.forward(&h, None)?, &scale, &shift)?;
        let mut h = ops::silu(&h)?;
        if let Some(dropping) = dropping {
            h = dropping.next(&h)?;
        }
        let h = self.conv2.forward(&h)?;
        let x = self.resample.apply(x)?;
        match &self.skip {
            Some(skip) => ops::add(&skip.forward(&x)?, &h),
            None => ops::add(&x, &h),
        }
    }
}

/// Every pixel attends to every other; added to what came in.
#[derive(Clone, Debug)]
struct PixelAttention {
    norm: GroupNorm,
    projections: Projections,
    attention: Attention,
    out: Linear,
}

impl PixelAttention {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let tokens = ops::pixels_to_tokens(&self.norm.forward(x, None)?)?;
        let [q, k, v] = self.projections.forward(&tokens)?;
        let mixed = self.out.forward(&self.attention.forward(&q, &k, &v)?)?;
        ops::add(&ops::tokens_to_pixels(&mixed, height, width)?, x)
    }
}

/// Queries, keys and values, stored as one map: for each head its queries', keys' and values' rows.
#[derive(Clone, Debug)]
enum Projections {
    Plain {
        weight: Tensor,
        bias: Tensor,
        heads: usize,
    },
    Packed(Box<[PackedLinear; 3]>),
}

impl Projections {
    fn new(mut scope: Scope<'_>, channels: usize, heads: usize) -> Result<Self> {
        let bound = 1.0 / (channels as f32).sqrt();
        let weight = scope.uniform("weight", &[3 * channels, channels], bound)?;
        let bias = scope.uniform("bias", &[3 * channels], bound)?;
        if !scope.is_frozen() {
            return Ok(Projections::Plain {
                weight,
                bias,
                heads,
            });
        }
        let part = |which: usize| {
            let (weight, bias) = (third(&weight, heads, which)?, third(&bias, heads, which)?);
            PackedLinear::new(&weight, Some(&bias))
        };
        Ok(Projections::Packed(Box::new([
            part(0)?,
            part(1)?,
            part(2)?,
        ])))
    }

    fn forward(&self, tokens: &Tensor) -> Result<[Tensor; 3]> {
        match self {
            Projections::Packed(parts) => {
                let [q, k, v] = parts.as_ref();
                Ok([q.forward(tokens)?, k.forward(tokens)?, v.forward(tokens)?])
            }
            Projections::Plain {
                weight,
                bias,
                heads,
            } => {
                let part = |which: usize| {
                    let weight = third(weight, *heads, which)?.to_dtype(tokens.dtype())?;
                    let bias = third(bias, *heads, which)?.to_dtype(tokens.dtype())?;
                    ops::linear(tokens, &weight, Some(&bias))
                };
                Ok([part(0)?, part(1)?, part(2)?])
            }
        }
    }
}

/// The rows of all heads' queries (0), keys (1) or values (2).
fn third(rows: &Tensor, heads: usize, which: usize) -> Result<Tensor> {
    let mut shape = rows.dims().to_vec();
    shape[0] /= 3;
    let each = [&[heads, 3, shape[0] / heads], &shape[1..]].concat();
    rows.reshape(each)?
        .narrow(1, which, 1)?
        .contiguous()?
        .reshape(shape)
}

/// Timesteps as the network wants them, `[n]`, on the device of `like`.
///
/// # Errors
/// Those of the device.
pub fn timesteps(t: &[u32], like: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = t.iter().map(|t| *t as f32).collect();
    Tensor::from_vec(values, t.len(), like.device())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_nn::{Device, params::Params, testing};

    /// That of the reference's configurations.
    fn published() -> DenoiserConfig {
        DenoiserConfig {
            inputs: 8,
            outputs: 4,
            width: 192,
            multipliers: vec![1, 2, 2, 4, 4],
            layers: 2,
            heads: 8,
            attention: vec![1, 2, 4, 8],
            groups: 32,
        }
    }

    fn narrow() -> DenoiserConfig {
        DenoiserConfig {
            inputs: 5,
            outputs: 3,
            width: 8,
            multipliers: vec![1, 2, 2],
            layers: 1,
            heads: 2,
            attention: vec![2, 4],
            groups: 4,
        }
    }

    #[test]
    fn the_published_configuration_has_the_published_number_of_parameters() {
        assert_eq!(published().count().unwrap(), 294_973_828);
        assert_eq!(published().downsampling(), 16);
    }

    #[test]
    fn the_last_layers_of_branches_begin_with_zeros() {
        let mut params = Params::new(&Device::Cpu, 0);
        let net = Denoiser::new(params.root(), &narrow()).unwrap();
        let x = testing::random("x", &[2, 5, 8, 12]);
        let t = timesteps(&[3, 999], &x).unwrap();
        let y = net.forward(&x, &t, None).unwrap();
        assert_eq!(y.dims(), [2, 3, 8, 12]);
        testing::close(&y, &(&y * 0.0).unwrap(), 0.0);
    }

    #[test]
    fn a_configuration_that_contradicts_itself_is_named() {
        let fails = |change: fn(&mut DenoiserConfig)| {
            let mut config = narrow();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(fails(|c| c.groups = 3).contains("`groups` 3 does not divide 8"));
        assert!(fails(|c| c.heads = 3).contains("`heads` 3"));
        assert!(fails(|c| c.multipliers.clear()).contains("`multipliers`"));
    }
}
