//! The sizes of Diff-Trans and the memory that its maps take.

use super::Net;
use crate::check::{affordable, refuse};
use diffaug_nn::{
    budget::F32,
    limits,
    segmenter::{Activations, Architecture as Sizes, Budget, Load, MaskNetwork, Scaling, Schedule},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Levels at most.
const LEVELS: usize = 6;

/// The network, a re-implementation: no code of the paper is public, and its sizes are not known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Side of the patches of pixels that are tokens.
    pub patch: usize,
    /// Channels of the first level, an even number; every level below has twice as many.
    pub width: usize,
    /// Blocks of each level, from the first down.
    pub depths: Vec<usize>,
    /// Heads of the first level; every level below has twice as many. They share the channels and are shared by
    /// the window sizes.
    pub heads: usize,
    /// Sides of the windows, in tokens, that attend side by side.
    pub windows: Vec<usize>,
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            patch: 4,
            width: 96,
            depths: vec![2; 4],
            heads: 3,
            windows: vec![4, 8, 16],
        }
    }
}

impl Architecture {
    /// Channels of a level.
    pub(super) fn channels(&self, level: usize) -> usize {
        self.width << level
    }

    /// Heads of a level.
    pub(super) fn heads_at(&self, level: usize) -> usize {
        self.heads << level
    }

    /// Values that tell the timestep.
    pub(super) fn time(&self) -> usize {
        4 * self.width
    }

    /// Channels of a pixel in the end.
    pub(super) fn pixel(&self) -> usize {
        self.width / 2
    }

    /// What sides are multiples of.
    pub(super) fn side(&self) -> usize {
        self.patch << self.depths.len().saturating_sub(1)
    }

    fn check_width(&self) -> diffaug::Result<()> {
        let (width, heads) = (self.width, self.heads);
        if !(2..=1024).contains(&width) || !width.is_multiple_of(2) {
            return refuse("width", width, "an even number from 2 to 1024");
        }
        let sizes = self.windows.len();
        if !(1..=width).contains(&heads) || !width.is_multiple_of(heads) {
            let expected = format!("a divisor of `width`, {width}");
            return refuse("heads", heads, &expected);
        }
        if !heads.is_multiple_of(sizes) {
            let expected = format!("a multiple of the number of `windows`, {sizes}");
            return refuse("heads", heads, &expected);
        }
        Ok(())
    }

    fn check_lists(&self) -> diffaug::Result<()> {
        for (name, values, most, range) in [
            ("depths", &self.depths, LEVELS, 1..=limits::LAYERS),
            ("windows", &self.windows, 8, 2..=64),
        ] {
            if values.is_empty() || values.len() > most {
                let value = format!("of {} values", values.len());
                return refuse(name, value, &format!("1 to {most}"));
            }
            if let Some(wrong) = values.iter().find(|value| !range.contains(value)) {
                let expected = format!("values from {} to {}", range.start(), range.end());
                return refuse(name, format!("{wrong} at a place"), &expected);
            }
        }
        Ok(())
    }
}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "diff-trans";

    fn tiny() -> Self {
        Architecture {
            patch: 4,
            width: 32,
            depths: vec![2; 2],
            heads: 2,
            windows: vec![4, 8],
        }
    }

    fn check(&self) -> diffaug::Result<()> {
        if !(1..=16).contains(&self.patch) {
            return refuse("patch", self.patch, "1 to 16");
        }
        self.check_lists()?;
        self.check_width()?;
        affordable("width", self.width, |scope| {
            Net::new(scope, self, 1, (0, 0))
        })
    }

    fn multiple(&self) -> u32 {
        u32::try_from(self.side()).unwrap_or(u32::MAX)
    }

    fn scaling(&self) -> Scaling {
        Scaling::Symmetric
    }

    /// AdamW at 1e-4 for 100,000 steps of eight images: ours, for the paper's is not known.
    fn reference(&self) -> Budget {
        Budget {
            steps: Some(100_000),
            batch: 8,
            lr: 1e-4,
            warmup: 0,
            schedule: Schedule::Constant,
            weight_decay: 1e-2,
            clip: 0.0,
            patience: 0,
            evaluate_epochs: u64::MAX,
            evaluate_every: 5_000,
            checkpoint_every: 1_000,
            ..Budget::default()
        }
    }

    fn small(&self) -> Budget {
        Budget::default().rarely_validated()
    }

    fn common(&self) -> Budget {
        Budget::common().rarely_validated()
    }

    fn activations(&self, load: &Load) -> Activations {
        let wide = load.precision.dtype().size_in_bytes() as u64;
        Activations {
            training: self.pass(load, &Maps::new(load.on_processor, wide)),
            answering: self.pass(load, &Maps::new(load.on_processor, F32)),
        }
    }
}

/// Bytes that the maps of a pass take, training or not: weights that could be trained keep the maps of an answer,
/// too, until it is given.
///
/// What is in use beyond the kept maps was calibrated with the memory that processes took at most
/// (`tests/memory.rs`).
struct Maps {
    /// What a block keeps for each of its values.
    block: u64,
    /// What attention to another map keeps.
    cross: u64,
    /// What it keeps for each score.
    score: u64,
    /// What any other map takes for a value.
    plain: u64,
}

impl Maps {
    /// For values of so many bytes. Normalisation, activation and softmax are one operation on a processor in
    /// f32 and several elsewhere.
    fn new(on_processor: bool, plain: u64) -> Self {
        let fused = on_processor && plain == F32;
        let composed = if fused { 0 } else { 6 * F32 };
        Maps {
            block: 34 * plain + 2 * composed + if fused { 0 } else { 16 * F32 },
            cross: 22 * plain + composed,
            score: plain + 2 * F32 + if fused { 0 } else { 3 * F32 },
            plain,
        }
    }
}

impl Architecture {
    /// What a pass takes for its maps, at most.
    fn pass(&self, load: &Load, maps: &Maps) -> u64 {
        let [block, cross, score, plain] =
            [maps.block, maps.cross, maps.score, maps.plain].map(u128::from);
        let lowest = self.depths.len().saturating_sub(1);
        let levels = self.depths.iter().enumerate().map(|(level, depth)| {
            let values = self.tokens(load, level) * self.channels(level) as u128;
            let depth = *depth as u128;
            // Two ways down, and one up but from the lowest.
            let (ways, joins) = if level == lowest { (2, 0) } else { (3, 1) };
            let scores = self.scores(load, level) * score;
            // What is added to scores is that of all images; every second block has it for each window.
            let added = 4 * u128::from(F32) * self.scores(load, level) / load.batch.max(1) as u128;
            ways * (depth * (block * values + scores) + depth / 2 * added)
                + cross * values
                + scores
                + (ways * 6 + joins * 8) * plain * values
        });
        let pixels = load.pixels() * (6 * self.width as u128 + 9 + 9 * load.outputs as u128);
        // The gradients of the scores on their way back, at the level that has most.
        let back = (0..self.depths.len()).map(|level| self.scores(load, level));
        let back = 2 * u128::from(F32) * back.max().unwrap_or(0);
        let all = levels.sum::<u128>() + back + plain * pixels;
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    /// Rows and columns of tokens.
    fn grid(&self, load: &Load, level: usize) -> [u128; 2] {
        let patch = (self.patch << level).max(1) as u128;
        [load.size.1, load.size.0].map(|side| u128::from(side).div_ceil(patch))
    }

    /// Tokens of all images.
    fn tokens(&self, load: &Load, level: usize) -> u128 {
        self.grid(load, level).iter().product::<u128>() * load.batch as u128
    }

    /// Scores of all heads, windows and images.
    fn scores(&self, load: &Load, level: usize) -> u128 {
        let heads = (self.heads_at(level) / self.windows.len().max(1)) as u128;
        let of_window = |window: &usize| {
            let along = |side: u128| {
                let window = (*window as u128).min(side).max(1);
                side.div_ceil(window) * window * window
            };
            self.grid(load, level).map(along).iter().product::<u128>()
        };
        let all = self.windows.iter().map(of_window).sum::<u128>();
        all * heads * load.batch as u128
    }
}
