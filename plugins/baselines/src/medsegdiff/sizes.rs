//! The sizes of the two networks, what they may be, and how many values their maps have.

use crate::check::{refuse, within};
use diffaug::Result;
use diffaug_nn::{
    budget::F32,
    limits,
    segmenter::{Activations, Load},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network that takes the noise out of masks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DenoiserSizes {
    /// Channels that the multipliers multiply, an even number.
    pub width: usize,
    /// For each resolution, from the image's to the lowest, its channels in terms of `width`. Height and width
    /// are halved from one to the next.
    pub multipliers: Vec<usize>,
    /// Residual blocks at each resolution on the way down; on the way up there is one more.
    pub blocks: usize,
    /// The resolutions at which each pixel attends to all others, counted from 0, the image's. In the middle
    /// of the network they always do.
    pub attention: Vec<usize>,
    /// Groups of the normalisations; they divide `width`.
    pub groups: usize,
}

impl Default for DenoiserSizes {
    fn default() -> Self {
        DenoiserSizes {
            width: 128,
            multipliers: vec![1, 1, 2, 2, 4, 4],
            blocks: 2,
            attention: vec![4],
            groups: 32,
        }
    }
}

/// The U-Net of the image alone.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HighwaySizes {
    /// Channels of the first level; every level below has twice as many.
    pub width: usize,
    /// Channels that no level has more of.
    pub most: usize,
    /// Share of maps that fall out on the way down in training.
    pub dropout: f32,
}

impl Default for HighwaySizes {
    fn default() -> Self {
        HighwaySizes {
            width: 32,
            most: 480,
            dropout: 0.5,
        }
    }
}

impl DenoiserSizes {
    /// One for tests and first looks.
    pub fn tiny() -> Self {
        DenoiserSizes {
            width: 8,
            multipliers: vec![1, 2, 4],
            blocks: 1,
            attention: vec![2],
            groups: 4,
        }
    }

    /// How often height and width are halved.
    pub fn halvings(&self) -> usize {
        self.multipliers.len().saturating_sub(1)
    }

    /// Channels at a resolution.
    pub fn channels(&self, level: usize) -> usize {
        self.multipliers
            .get(level)
            .map_or(self.width, |multiplier| self.width * multiplier)
    }

    /// Channels at the lowest resolution.
    pub fn lowest(&self) -> usize {
        self.channels(self.halvings())
    }

    /// Width of the timestep's embedding.
    pub fn time(&self) -> usize {
        4 * self.width
    }

    /// Whether pixels attend to each other at a resolution.
    pub fn attends(&self, level: usize) -> bool {
        self.attention.contains(&level)
    }

    /// Checks what the types cannot.
    pub fn check(&self) -> Result<()> {
        within("denoiser.width", self.width, 2..=limits::CHANNELS)?;
        if !self.width.is_multiple_of(2) {
            return refuse("denoiser.width", self.width, "an even number");
        }
        let levels = self.multipliers.len();
        if !(2..=limits::LEVELS).contains(&levels) {
            let expected = format!("2 to {} numbers", limits::LEVELS);
            return refuse(
                "denoiser.multipliers",
                format!("{levels} numbers"),
                &expected,
            );
        }
        for multiplier in &self.multipliers {
            within("denoiser.multipliers", *multiplier, 1..=64)?;
        }
        within("denoiser.blocks", self.blocks, 1..=limits::LAYERS)?;
        for level in &self.attention {
            within("denoiser.attention", *level, 0..=levels - 1)?;
        }
        if self.groups == 0 || !self.width.is_multiple_of(self.groups) {
            let expected = format!("a number that divides `denoiser.width`, {}", self.width);
            return refuse("denoiser.groups", self.groups, &expected);
        }
        Ok(())
    }
}

impl HighwaySizes {
    /// One for tests and first looks.
    pub fn tiny() -> Self {
        HighwaySizes {
            width: 8,
            // Of so few maps hardly any are to spare.
            dropout: 0.1,
            ..HighwaySizes::default()
        }
    }

    /// Channels of a level.
    pub fn channels(&self, level: usize) -> usize {
        (self.width << level).min(self.most)
    }

    /// Checks what the types cannot.
    pub fn check(&self) -> Result<()> {
        within("highway.width", self.width, 1..=limits::CHANNELS)?;
        if !(self.width..=limits::CHANNELS).contains(&self.most) {
            let expected = format!(
                "a number from `highway.width`, {}, to {}",
                self.width,
                limits::CHANNELS
            );
            return refuse("highway.most", self.most, &expected);
        }
        match (0.0..1.0).contains(&self.dropout) {
            true => Ok(()),
            false => refuse(
                "highway.dropout",
                self.dropout,
                "a number from 0 to below 1",
            ),
        }
    }
}

/// Values that maps hold, for each pixel of an image. A level's maps have a quarter of the pixels of those of
/// the level above.
fn at(level: usize, values: usize) -> f64 {
    values as f64 / 4f64.powi(level as i32)
}

impl DenoiserSizes {
    /// Values that a pass keeps for each pixel of an image.
    pub fn values(&self) -> f64 {
        let block = |level: usize, inputs: usize| {
            let own = self.channels(level);
            let skip = if inputs == own { 0 } else { own };
            at(level, inputs + 5 * own + skip)
        };
        let attention = |level: usize, there: bool| {
            let channels = if there { self.channels(level) } else { 0 };
            at(level, 12 * channels)
        };
        let lowest = self.halvings();
        let mut all = at(0, 4 * self.width) + at(0, 2 * self.channels(0));
        let (mut channels, mut skips) = (self.width, vec![self.width]);
        for level in 0..=lowest {
            for _ in 0..self.blocks {
                all += block(level, channels) + attention(level, self.attends(level));
                channels = self.channels(level);
                skips.push(channels);
            }
            if level < lowest {
                all += at(level + 1, channels);
                skips.push(channels);
            }
        }
        all += 2.0 * block(lowest, channels) + attention(lowest, true);
        for level in (0..=lowest).rev() {
            for _ in 0..=self.blocks {
                let inputs = channels + skips.pop().unwrap_or(0);
                // The concatenation comes to it.
                all += at(level, inputs) + block(level, inputs);
                all += attention(level, self.attends(level));
                channels = self.channels(level);
            }
            if level > 0 {
                all += at(level - 1, 2 * channels);
            }
        }
        all
    }
}

impl HighwaySizes {
    /// Values that a pass keeps for each pixel of an image, where the network is halved `pools` times.
    pub fn values(&self, pools: usize) -> f64 {
        // Of convolution, dropout, normalisation and activation.
        let layer = |level: usize, channels: usize| at(level, 4 * channels);
        let level = |level: usize| {
            let own = self.channels(level);
            let down = 2.0 * layer(level, own) + at(level + 1, own);
            let up = layer(level, own) + layer(level, self.channels(level.saturating_sub(1)));
            down + up + at(level, 3 * own)
        };
        let lowest = layer(pools, self.channels(pools)) + layer(pools, self.channels(pools - 1));
        (0..pools).map(level).sum::<f64>() + lowest
    }

    /// The same of the gates.
    pub fn values_of_gates(&self, pools: usize) -> f64 {
        // Both parts of a spectrum and of its products, and what is made of them.
        let gate = |level: usize| at(level + 1, 14 * self.channels(level));
        (0..pools.saturating_sub(1)).map(gate).sum()
    }
}

/// Bytes of so many values for each pixel of an image.
pub fn activations(load: &Load, values: f64) -> Activations {
    let wide = load.precision.dtype().size_in_bytes() as u64;
    let fused = load.on_processor && wide == F32;
    let ends = 8.0 + 12.0 * load.outputs as f64;
    let bytes = |factor: f64, wide: u64| {
        let bytes = (values + ends) * factor * wide as f64 * load.pixels() as f64;
        // A number beyond the largest becomes the largest.
        bytes as u64
    };
    // In half precision statistics are formed in f32; elsewhere a normalisation is made of several operations.
    let training = match (fused, load.on_processor) {
        (true, _) => 1.3,
        (false, true) => 5.5,
        (false, false) => 2.5,
    };
    let answering = if load.on_processor { 1.2 } else { 2.5 };
    Activations {
        training: bytes(training, wide),
        answering: bytes(answering, F32),
    }
}
