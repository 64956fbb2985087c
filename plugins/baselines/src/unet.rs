//! The segmenter `unet`: the U-Net of Ronneberger et al. (2015) in its usual present-day form, with batch
//! normalisation and windows that keep the size (`milesial/Pytorch-UNet`).

use crate::check::{affordable, refuse, within};
use candle_core::{Result, Tensor};
use diffaug_nn::{
    budget::F32,
    layers::{BatchNorm, Conv2d, ConvTranspose2x2, Mode},
    ops,
    params::Scope,
    precision::Precision,
    recompute,
    segmenter::{
        Activations, Architecture as Sizes, Budget, Load, Loss, Network, Optimizer, Pass, Schedule,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Channels of the first level; every level below has twice as many.
    pub width: usize,
    /// How often height and width are halved, 1 to 5.
    pub depth: usize,
    /// Whether maps are grown by bilinear interpolation in place of a learned one; the levels then hand
    /// half as many channels upwards.
    pub bilinear: bool,
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            width: 64,
            depth: 4,
            bilinear: false,
        }
    }
}

impl Architecture {
    /// Channels of a level.
    fn channels(&self, level: usize) -> usize {
        self.width << level
    }

    /// Channels that a level hands to the one above it.
    fn handed(&self, level: usize) -> usize {
        match self.bilinear && level > 0 {
            true => self.channels(level) / 2,
            false => self.channels(level),
        }
    }
}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "unet";

    fn tiny() -> Self {
        Architecture {
            width: 8,
            depth: 3,
            bilinear: false,
        }
    }

    fn check(&self) -> diffaug::Result<()> {
        within("width", self.width, 1..=1024)?;
        if self.bilinear && !self.width.is_multiple_of(2) {
            return refuse(
                "width",
                self.width,
                "an even number, for `bilinear` halves it",
            );
        }
        within("depth", self.depth, 1..=5)?;
        affordable("width", self.width, |scope| {
            UNet::new(scope, self, 1, (0, 0))
        })
    }

    fn multiple(&self) -> u32 {
        1 << self.depth
    }

    /// RMSprop at 1e-5 with momentum 0.999, falling where validation stops getting better, one image a step,
    /// five epochs (the reference's `train.py`).
    fn reference(&self) -> Budget {
        Budget {
            epochs: 5,
            batch: 1,
            lr: 1e-5,
            warmup: 0,
            schedule: Schedule::Plateau,
            optimizer: Optimizer::RmsProp,
            momentum: Some(0.999),
            weight_decay: 1e-8,
            patience: 0,
            loss: Loss::DiceBce,
            ..Budget::default()
        }
    }

    fn activations(&self, load: &Load) -> Activations {
        Activations {
            training: self.pass(load, &Maps::of_training(load.on_processor, load.precision)),
            answering: self.pass(load, &Maps::of_answering(load.on_processor)),
        }
    }

    /// The reference's names: `inc`, `down1` to `down4`, `up1` from the lowest level up, `outc`.
    fn renamed(&self, name: &str) -> Option<String> {
        let (place, rest) = name.split_once('.')?;
        let place = match place {
            "inc" => "entry".to_owned(),
            "outc" => return Some(format!("head.{}", rest.strip_prefix("conv.")?)),
            _ => match place.strip_prefix("up") {
                Some(number) => {
                    let level = self.depth.checked_sub(number.parse().ok()?)?;
                    format!("up{level}")
                }
                None => place.to_owned(),
            },
        };
        if let Some(rest) = rest.strip_prefix("up.") {
            return Some(format!("{place}.grow.{rest}"));
        }
        let (layer, rest) = rest.split_once("double_conv.")?.1.split_once('.')?;
        let layer = match layer {
            "0" => "conv1",
            "1" => "norm1",
            "3" => "conv2",
            "4" => "norm2",
            _ => return None,
        };
        Some(format!("{place}.{layer}.{rest}"))
    }
}

/// Bytes that the maps of a pass take.
///
/// A level of `c` channels and `p` pixels (of all images of a batch) makes, for each of its blocks of
/// convolution, normalisation and ReLU, maps of `c p` values, which training keeps for the backward
/// pass; going up, there are the grown map and its concatenation with the one handed across besides.
/// Halving height and width and doubling the channels halves `c p`, so that the first level takes
/// half of it all. What is in use beyond the kept maps was calibrated with the memory that
/// processes took at most (`tests/memory.rs`).
struct Maps {
    /// What a block of convolution, normalisation and ReLU keeps of each of its values.
    block: u64,
    /// What any other map takes for a value.
    plain: u64,
    /// What is in use besides, for each value of the first level's maps.
    besides: u64,
}

impl Maps {
    /// On a processor in f32 a block is one operation, which keeps the convolution's result and its
    /// own; in other types it is four, for the statistics are formed in f32, and convolutions lay
    /// out their windows. On other devices a normalisation is made of seven operations.
    fn of_training(on_processor: bool, precision: Precision) -> Self {
        let plain = precision.dtype().size_in_bytes() as u64;
        let casts = if plain == F32 { 0 } else { 2 * plain };
        let fused = on_processor && plain == F32;
        Maps {
            block: match on_processor {
                true => 2 * F32 + casts,
                false => 8 * F32 + casts,
            },
            plain,
            besides: match fused {
                true => 11 * F32,
                false => 8 * F32 + 18 * plain,
            },
        }
    }

    /// Weights that could be trained keep the maps of an answer, too, until it is given.
    fn of_answering(on_processor: bool) -> Self {
        Maps {
            block: if on_processor { 2 * F32 } else { 6 * F32 },
            plain: F32,
            besides: if on_processor { F32 } else { 20 * F32 },
        }
    }
}

impl Architecture {
    /// What a pass takes for its maps, at most.
    fn pass(&self, load: &Load, maps: &Maps) -> u64 {
        let [block, plain, besides] = [maps.block, maps.plain, maps.besides].map(u128::from);
        // Twice the channels on a quarter of the pixels.
        let values = |level: usize| ((self.width as u128) * load.pixels()) >> level;
        let down = (0..=self.depth).map(|level| {
            let pooled = if level > 0 { values(level) / 2 } else { 0 };
            2 * block * values(level) + plain * pooled
        });
        let up = (0..self.depth).map(|level| (2 * block + 3 * plain) * values(level));
        // Images, and the few forms of what comes out.
        let ends = (3 + 4 * load.outputs as u128) * u128::from(F32) * load.pixels();
        let all = down.chain(up).sum::<u128>() + besides * values(0) + ends;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

/// Twice: 3×3 convolution without bias, batch normalisation, ReLU.
#[derive(Clone)]
struct DoubleConv {
    first: (Conv2d, BatchNorm),
    second: (Conv2d, BatchNorm),
}

impl DoubleConv {
    /// `inputs` to `between` to `outputs` channels.
    fn new(mut scope: Scope<'_>, inputs: usize, between: usize, outputs: usize) -> Result<Self> {
        let mut layer = |index: usize, inputs, outputs| {
            let conv = scope.child(&format!("conv{index}"));
            let conv = Conv2d::new(conv, inputs, outputs, 3, false)?;
            let norm = BatchNorm::new(scope.child(&format!("norm{index}")), outputs)?;
            Ok::<_, candle_core::Error>((conv, norm))
        };
        Ok(DoubleConv {
            first: layer(1, inputs, between)?,
            second: layer(2, between, outputs)?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.first.1.forward_after(&self.first.0, x, mode)?;
        self.second.1.forward_after(&self.second.0, &x, mode)
    }

    /// The same, computed again in the backward pass where `pass` says so.
    fn run(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let mode = pass.mode;
        if !(pass.recompute && mode == Mode::Train) {
            return self.forward(x, mode);
        }
        let block = self.clone();
        recompute::checkpointed(&[x], move |inputs| block.forward(&inputs[0], mode))
    }
}

/// What doubles height and width on the way up.
enum Grow {
    Learned(ConvTranspose2x2),
    Bilinear,
}

impl Grow {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Grow::Learned(grow) => grow.forward(x),
            Grow::Bilinear => {
                let (_, _, height, width) = x.dims4()?;
                ops::upsample_bilinear2d(x, 2 * height, 2 * width, true)
            }
        }
    }
}

/// A U-Net: `depth` times halved and doubled again, with the maps of each level handed across.
pub struct UNet {
    entry: DoubleConv,
    down: Vec<DoubleConv>,
    up: Vec<(Grow, DoubleConv)>,
    head: Conv2d,
}

impl Network for UNet {
    type Architecture = Architecture;

    fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        outputs: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        let Architecture {
            width,
            depth,
            bilinear,
        } = *architecture;
        let entry = DoubleConv::new(scope.child("entry"), 3, width, width)?;
        let mut down = Vec::with_capacity(depth);
        let mut up = Vec::with_capacity(depth);
        for level in 1..=depth {
            let above = architecture.channels(level - 1);
            // The lowest level is all that hands upwards what it has halved.
            let own = match level == depth {
                true => architecture.handed(level),
                false => architecture.channels(level),
            };
            let scope = scope.child(&format!("down{level}"));
            down.push(DoubleConv::new(scope, above, own, own)?);
        }
        for level in (0..depth).rev() {
            let mut scope = scope.child(&format!("up{level}"));
            let (below, here) = (
                architecture.channels(level + 1),
                architecture.channels(level),
            );
            let (grow, between) = match bilinear {
                true => (Grow::Bilinear, below / 2),
                false => (
                    Grow::Learned(ConvTranspose2x2::new(scope.child("grow"), below, here)?),
                    here,
                ),
            };
            up.push((
                grow,
                DoubleConv::new(scope, 2 * here, between, architecture.handed(level))?,
            ));
        }
        let head = Conv2d::new(scope.child("head"), width, outputs, 1, true)?;
        Ok(UNet {
            entry,
            down,
            up,
            head,
        })
    }

    fn forward(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let mut x = self.entry.run(images, pass)?;
        let mut skips = Vec::with_capacity(self.down.len());
        for level in &self.down {
            let smaller = ops::max_pool2x2(&x)?;
            skips.push(x);
            x = level.run(&smaller, pass)?;
        }
        for ((grow, level), skip) in self.up.iter().zip(skips.iter().rev()) {
            let grown = grow.forward(&x)?;
            x = level.run(&Tensor::cat(&[skip, &grown], 1)?, pass)?;
        }
        self.head.forward(&x)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug_nn::params::Shapes;
    use diffaug_nn::{Device, params::Params, testing};

    fn shapes(architecture: &Architecture, outputs: usize) -> Shapes {
        Shapes::of(|scope| UNet::new(scope, architecture, outputs, (0, 0))).unwrap()
    }

    #[test]
    fn the_reference_configuration_has_the_reference_number_of_parameters() {
        let bilinear = Architecture {
            bilinear: true,
            ..Architecture::default()
        };
        for (architecture, outputs, count) in [
            (Architecture::default(), 1, 31_037_633),
            (Architecture::default(), 2, 31_037_698),
            (bilinear.clone(), 1, 17_262_977),
            (bilinear, 2, 17_263_042),
        ] {
            assert_eq!(shapes(&architecture, outputs).parameters(), count);
        }
    }

    #[test]
    fn a_wrong_value_names_its_option() {
        let field = |json: &str| {
            let architecture: Architecture = serde_json::from_str(json).unwrap();
            architecture.check().unwrap_err().field.to_string()
        };
        Architecture::default().check().unwrap();
        Architecture::tiny().check().unwrap();
        assert_eq!(field(r#"{"depth": 6}"#), "architecture.depth");
        assert_eq!(field(r#"{"width": 0}"#), "architecture.width");
        assert_eq!(
            field(r#"{"width": 1024, "depth": 5}"#),
            "architecture.width"
        );
        let odd = r#"{"width": 3, "bilinear": true}"#;
        assert_eq!(field(odd), "architecture.width");
    }

    #[test]
    fn every_parameter_is_trained() {
        for bilinear in [false, true] {
            let architecture = Architecture {
                width: 4,
                depth: 3,
                bilinear,
            };
            let mut params = Params::new(&Device::Cpu, 0);
            let net = UNet::new(params.root(), &architecture, 1, (16, 24)).unwrap();
            let images = testing::random("images", &[2, 3, 24, 16]);
            let pass = Pass {
                mode: Mode::Train,
                ..Pass::ANSWER
            };
            let logits = net.forward(&images, &pass).unwrap();
            assert_eq!(logits.dims(), [2, 1, 24, 16]);
            let targets = testing::random("targets", &[2, 1, 24, 16]).ge(0.5).unwrap();
            let targets = targets.to_dtype(logits.dtype()).unwrap();
            let loss = ops::dice_bce_with_logits(&logits, &targets, 1.0, 1.0).unwrap();
            testing::assert_all_trained(params.trainable(), &loss.backward().unwrap());
        }
    }

    #[test]
    fn what_is_computed_again_is_the_same() {
        let gradients = |recompute: bool| {
            let mut params = Params::new(&Device::Cpu, 0);
            let net = UNet::new(params.root(), &Architecture::tiny(), 1, (16, 16)).unwrap();
            let images = testing::random("images", &[2, 3, 16, 16]);
            let pass = Pass {
                mode: Mode::Train,
                recompute,
                ..Pass::ANSWER
            };
            let loss = net.forward(&images, &pass).unwrap().sqr().unwrap();
            let grads = recompute::backward(&loss.mean_all().unwrap()).unwrap();
            let flat = |var: &candle_core::Var| {
                let grad = grads.get(var).unwrap().flatten_all().unwrap();
                grad.to_vec1::<f32>().unwrap()
            };
            params
                .trainable()
                .map(|(_, var)| flat(var))
                .collect::<Vec<_>>()
        };
        assert_eq!(gradients(false), gradients(true));
    }
}
