//! The sizes of Diff-UNet, the names of its published tensors, and the memory that its maps take.

use super::Net;
use crate::check::{affordable, refuse};
use diffaug_nn::{
    budget::F32,
    precision::Precision,
    segmenter::{Activations, Architecture as Sizes, Budget, Load, MaskNetwork},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Resolutions.
pub(super) const LEVELS: usize = 5;
/// Channels at most.
const WIDEST: usize = 4096;

/// The network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Channels of the five levels, from the one with the images' size down; the last three are even.
    pub widths: [usize; LEVELS],
    /// Channels before the last convolution.
    pub last: usize,
    /// Values that tell the blocks the timestep, a multiple of 8 from 16 on.
    pub time: usize,
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            widths: [64, 64, 128, 256, 512],
            last: 64,
            time: 512,
        }
    }
}

impl Architecture {
    /// Sines and cosines of a timestep.
    pub(super) fn sinusoids(&self) -> usize {
        self.time / 4
    }

    /// Channels of what grows to a level from the one below: half of its own but at the highest.
    pub(super) fn grown(&self, level: usize) -> usize {
        match level {
            0 => self.widths[1],
            level => self.widths[level + 1] / 2,
        }
    }

    /// Channels of a level on the way up.
    pub(super) fn risen(&self, level: usize) -> usize {
        match level {
            0 => self.last,
            level => self.widths[level],
        }
    }

    fn check_widths(&self) -> diffaug::Result<()> {
        for (level, width) in self.widths.iter().enumerate() {
            if !(1..=WIDEST).contains(width) {
                let value = format!("{width} at place {level}");
                return refuse("widths", value, &format!("1 to {WIDEST}"));
            }
            if level >= 2 && !width.is_multiple_of(2) {
                let value = format!("{width} at place {level}");
                return refuse("widths", value, "an even number, for it is halved");
            }
        }
        Ok(())
    }
}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "diff-unet";

    fn tiny() -> Self {
        Architecture {
            widths: [8, 16, 32, 48, 64],
            last: 8,
            time: 128,
        }
    }

    fn check(&self) -> diffaug::Result<()> {
        self.check_widths()?;
        if !(1..=WIDEST).contains(&self.last) {
            return refuse("last", self.last, &format!("1 to {WIDEST}"));
        }
        if !(16..=WIDEST).contains(&self.time) || !self.time.is_multiple_of(8) {
            let expected = format!("a multiple of 8 from 16 to {WIDEST}");
            return refuse("time", self.time, &expected);
        }
        affordable("widths", format!("{:?}", self.widths), |scope| {
            Net::new(scope, self, 1, (0, 0))
        })
    }

    fn multiple(&self) -> u32 {
        1 << (LEVELS - 1)
    }

    /// AdamW at 1e-4 with weight decay 1e-3, which rises for 30 of 300 epochs (of 33 steps) and then falls along
    /// a cosine, eight images a step (the reference's `BraTS2020/train.py` on its four graphics cards). Of a larger
    /// set the 990 steps of the rise are fewer epochs: set `train.warmup`.
    fn reference(&self) -> Budget {
        Budget {
            epochs: 300,
            batch: 8,
            lr: 1e-4,
            warmup: 990,
            weight_decay: 1e-3,
            clip: 0.0,
            patience: 0,
            evaluate_epochs: 10,
            ..Budget::default()
        }
    }

    fn small(&self) -> Budget {
        Budget::default().rarely_validated()
    }

    fn common(&self) -> Budget {
        Budget::common().rarely_validated()
    }

    fn smallest(&self) -> u32 {
        32
    }

    fn head(&self) -> &'static str {
        "denoiser.head"
    }

    fn activations(&self, load: &Load) -> Activations {
        Activations {
            training: self.pass(load, &Maps::of_training(load.on_processor, load.precision)),
            answering: self.pass(load, &Maps::of_answering(load.on_processor)),
        }
    }

    /// The reference's names: `embed_model`, `model`, and MONAI's below them.
    fn renamed(&self, name: &str) -> Option<String> {
        let (part, rest) = name.split_once('.')?;
        let part = match part {
            "embed_model" => "encoder",
            "model" => "denoiser",
            _ => return None,
        };
        Some(format!("{part}.{}", inner(rest)?))
    }
}

/// Our name inside of the encoder or the denoiser.
fn inner(name: &str) -> Option<String> {
    let (place, rest) = name.split_once('.')?;
    match place {
        "final_conv" => return Some(format!("head.{rest}")),
        "temb" => {
            let (index, value) = rest.strip_prefix("dense.")?.split_once('.')?;
            return match index {
                "0" => Some(format!("time.first.{value}")),
                "1" => Some(format!("time.second.{value}")),
                _ => None,
            };
        }
        _ => {}
    }
    let (place, rest) = match place.split_once('_')? {
        ("conv", "0") => ("entry".to_owned(), rest),
        ("down", level) => (format!("down{level}"), rest.strip_prefix("convs.")?),
        ("upcat", level) => {
            let place = format!("up{}", level.parse::<usize>().ok()?.checked_sub(1)?);
            if let Some(value) = rest.strip_prefix("upsample.deconv.") {
                return Some(format!("{place}.grow.{value}"));
            }
            (place, rest.strip_prefix("convs.")?)
        }
        _ => return None,
    };
    if let Some(value) = rest.strip_prefix("temb_proj.") {
        return Some(format!("{place}.time.{value}"));
    }
    let (layer, rest) = rest.strip_prefix("conv_")?.split_once('.')?;
    let layer = layer.parse::<usize>().ok()?.checked_add(1)?;
    match (rest.strip_prefix("conv."), rest.strip_prefix("adn.N.")) {
        (Some(value), _) => Some(format!("{place}.conv{layer}.{value}")),
        (_, Some(value)) => Some(format!("{place}.norm{layer}.{value}")),
        _ => None,
    }
}

/// Bytes that the maps of a pass take.
///
/// A level of `c` channels and `p` pixels (of all images of a batch) makes maps of `c p` values, which
/// training keeps for the backward pass: three for each layer, one for what is added to it, and where maps
/// are halved, grown or put side by side. What is in use beyond the kept maps was calibrated with the memory
/// that processes took at most (`tests/memory.rs`).
struct Maps {
    /// What a layer keeps of each of its values.
    layer: u64,
    /// What any other map takes for a value.
    plain: u64,
    /// What is in use besides, for each value of the widest map.
    besides: u64,
}

impl Maps {
    /// On a processor in f32 a layer is three operations, each of which keeps its result. Elsewhere a
    /// normalisation is made of six and the leaky ReLU of three, statistics are formed in f32, and convolutions
    /// lay out their windows, on a processor in f32.
    fn of_training(on_processor: bool, precision: Precision) -> Self {
        let plain = precision.dtype().size_in_bytes() as u64;
        let fused = on_processor && plain == F32;
        Maps {
            layer: match fused {
                true => 3 * F32,
                false => 6 * F32 + 5 * plain + if on_processor { 2 * F32 } else { 0 },
            },
            plain,
            besides: 8 * F32 + if fused { 0 } else { 11 * plain },
        }
    }

    /// Weights that could be trained keep the maps of an answer, too, until it is given.
    fn of_answering(on_processor: bool) -> Self {
        Maps {
            layer: if on_processor { 3 * F32 } else { 11 * F32 },
            plain: F32,
            besides: if on_processor { 2 * F32 } else { 11 * F32 },
        }
    }
}

impl Architecture {
    /// What a pass takes for its maps, at most.
    fn pass(&self, load: &Load, maps: &Maps) -> u64 {
        let [layer, plain, besides] = [maps.layer, maps.plain, maps.besides].map(u128::from);
        let values =
            |level: usize, channels: usize| (channels as u128 * load.pixels()) >> (2 * level);
        // Both ways down; the denoiser's maps are shifted by the timestep, and the encoder's added.
        let down = (0..LEVELS).map(|level| {
            let above = self.widths[level.saturating_sub(1)];
            let own = values(level, self.widths[level]);
            4 * layer * own + 2 * plain * own + 2 * plain * values(level, above)
        });
        // Grown, beside what was handed across, and the layers.
        let up = (0..LEVELS - 1).map(|level| {
            let grown = values(level, 2 * self.grown(level) + self.widths[level]);
            let own = values(level, self.risen(level));
            2 * layer * own + plain * (own + grown)
        });
        let widest = self.grown(0) + self.widths[0].max(self.last);
        let ends = (6 + 8 * load.outputs as u128) * u128::from(F32) * load.pixels();
        let all = down.chain(up).sum::<u128>() + besides * values(0, widest) + ends;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}
