//! The network of the segmenter `diff-trans`: a diffusion transformer U-Net after Chowdary & Yin (MICCAI 2023).
//!
//! **A re-implementation without a reference.** No code of that paper is public, and what is known of it is its
//! idea: a U-Net of transformers with windows of several sizes denoises a mask, and cross-attention aligns the
//! image's features with its own. All sizes and the following are ours, after Swin (Liu et al., 2021),
//! Swin-Unet (Cao et al., 2021) and DiT (Peebles & Xie, 2023); results say nothing of the paper's.
//!
//! * Tokens are patches of 4×4 pixels. On the way down 2×2 tokens become one of twice the width, on the way up
//!   one becomes 2×2 of half the width, and the map of the way down beside it is joined by a linear map.
//! * In a block, attention and then a map by way of four times the width, each normalised before and added after.
//!   The heads are split in as many groups as there are window sizes, which attend side by side; each has a table
//!   of what relative places add to a score. Every second block's windows are shifted by half a window, with the
//!   mask of Swin. Windows that are larger than the map shrink to it, and what a map lacks for whole windows is
//!   seen by none.
//! * In the denoiser the timestep scales and shifts what the normalisations before attention, before those maps and
//!   before the last growing give.
//! * The denoiser sees the image beside the noisy mask. An encoder of the same levels sees the image alone, and at
//!   each level of the way down the denoiser's tokens first ask the encoder's, by attention in the same windows.
//! * Tokens hold too little to tell the noise of each pixel: in the end they become pixels, beside which a 3×3
//!   convolution sees those of image and noisy mask once more.

mod blocks;
mod sizes;
#[cfg(test)]
mod tests;
mod window;

pub use sizes::Architecture;

use blocks::{Block, Cross, Grow, Merge, Norm, Patches, Refine};
use candle_core::{Result, Tensor, bail};
use diffaug_nn::{
    diffusion::{
        TimestepEmbedding,
        scheduler::{Prediction, SamplerName},
        sinusoids,
    },
    layers::{Conv2d, Linear},
    ops,
    params::Scope,
    segmenter::{Diffusion, Fusion, MaskNetwork, Pass, Predicted},
};

/// Channels of an image.
const IMAGE: usize = 3;

/// A level on the way down.
struct Down {
    /// From the level above.
    merge: Option<Merge>,
    blocks: Vec<Block>,
}

impl Down {
    fn new(
        scope: &mut Scope<'_>,
        architecture: &Architecture,
        level: usize,
        time: Option<usize>,
    ) -> Result<Self> {
        let above = level
            .checked_sub(1)
            .map(|above| architecture.channels(above));
        let merge = above.map(|above| Merge::new(scope.child("merge"), above));
        Ok(Down {
            merge: merge.transpose()?,
            blocks: blocks(scope, architecture, level, time)?,
        })
    }

    fn enter(&self, x: Tensor) -> Result<Tensor> {
        match &self.merge {
            None => Ok(x),
            Some(merge) => merge.forward(&x),
        }
    }
}

/// The blocks of a level.
fn blocks(
    scope: &mut Scope<'_>,
    architecture: &Architecture,
    level: usize,
    time: Option<usize>,
) -> Result<Vec<Block>> {
    let block = |index: usize| {
        let scope = scope.child(&format!("block{index}"));
        Block::new(scope, architecture, level, time, index % 2 == 1)
    };
    (0..architecture.depths[level]).map(block).collect()
}

fn through(blocks: &[Block], x: Tensor, told: Option<&Tensor>, pass: &Pass<'_>) -> Result<Tensor> {
    let run = |x: Tensor, block: &Block| block.run(&x, told, pass);
    blocks.iter().try_fold(x, run)
}

/// The encoder of the image.
struct Encoder {
    patches: Patches,
    /// Each with the normalisation of what it gives.
    levels: Vec<(Down, Norm)>,
}

impl Encoder {
    fn new(mut scope: Scope<'_>, architecture: &Architecture) -> Result<Self> {
        let patches = Patches::new(scope.child("patches"), architecture, IMAGE)?;
        let mut levels = Vec::with_capacity(architecture.depths.len());
        for level in 0..architecture.depths.len() {
            let mut scope = scope.child(&format!("level{level}"));
            let down = Down::new(&mut scope, architecture, level, None)?;
            let norm = Norm::new(scope.child("norm"), architecture.channels(level), None)?;
            levels.push((down, norm));
        }
        Ok(Encoder { patches, levels })
    }

    fn forward(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        let mut x = self.patches.forward(images)?;
        let mut maps = Vec::with_capacity(self.levels.len());
        for (level, norm) in &self.levels {
            x = through(&level.blocks, level.enter(x)?, None, pass)?;
            maps.push(norm.forward(&x, None)?);
        }
        Ok(maps)
    }
}

/// A level on the way up.
struct Up {
    grow: Grow,
    join: Linear,
    blocks: Vec<Block>,
}

impl Up {
    fn new(mut scope: Scope<'_>, architecture: &Architecture, level: usize) -> Result<Self> {
        let (below, own) = (
            architecture.channels(level + 1),
            architecture.channels(level),
        );
        Ok(Up {
            grow: Grow::new(scope.child("grow"), below, own, 2)?,
            join: Linear::new(scope.child("join"), 2 * own, own, true)?,
            blocks: blocks(&mut scope, architecture, level, Some(architecture.time()))?,
        })
    }
}

/// The encoder of the image and the U-Net that denoises masks.
pub struct Net {
    encoder: Encoder,
    time: TimestepEmbedding,
    patches: Patches,
    down: Vec<(Down, Cross)>,
    up: Vec<Up>,
    norm: Norm,
    grow: Grow,
    refine: Refine,
    head: Conv2d,
    architecture: Architecture,
    masks: usize,
}

impl MaskNetwork for Net {
    type Architecture = Architecture;
    /// The maps of the images, `[n, rows, columns, channels]` for each level from the highest down.
    type Condition = Vec<Tensor>;

    fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        masks: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        let encoder = Encoder::new(scope.child("image"), architecture)?;
        let (width, time) = (architecture.width, architecture.time());
        let pixel = architecture.pixel();
        let mut down = Vec::with_capacity(architecture.depths.len());
        for level in 0..architecture.depths.len() {
            let mut scope = scope.child(&format!("down{level}"));
            let own = Down::new(&mut scope, architecture, level, Some(time))?;
            let cross = Cross::new(scope.child("cross"), architecture, level, time)?;
            down.push((own, cross));
        }
        let mut up = Vec::with_capacity(architecture.depths.len());
        for level in (0..architecture.depths.len().saturating_sub(1)).rev() {
            up.push(Up::new(
                scope.child(&format!("up{level}")),
                architecture,
                level,
            )?);
        }
        Ok(Net {
            encoder,
            time: TimestepEmbedding::new(scope.child("time"), width, time)?,
            patches: Patches::new(scope.child("patches"), architecture, IMAGE + masks)?,
            down,
            up,
            norm: Norm::new(scope.child("norm"), width, Some(time))?,
            grow: Grow::new(scope.child("grow"), width, pixel, architecture.patch)?,
            refine: Refine::new(scope.child("refine"), IMAGE + masks, pixel, time)?,
            head: Conv2d::new(scope.child("head"), pixel, masks, 1, true)?,
            architecture: architecture.clone(),
            masks,
        })
    }

    /// The mean of five masks of a hundred steps each. The paper says none of it.
    fn diffusion(_: &Architecture) -> Diffusion {
        Diffusion {
            prediction: Prediction::Epsilon,
            values: (-1.0, 1.0),
            learned_variance: false,
            sampler: SamplerName::Ddim,
            steps: 100,
            runs: 5,
            fusion: Fusion::Mean,
        }
    }

    fn condition(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        self.check(images, IMAGE)?;
        self.encoder.forward(images, pass)
    }

    /// The noise in the masks.
    fn predict(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        t: &Tensor,
        condition: &Vec<Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Predicted> {
        self.check(images, IMAGE)?;
        self.check(noisy, self.masks)?;
        if t.dims() != [noisy.dim(0)?] || condition.len() != self.down.len() {
            bail!(
                "a denoiser of {} levels needs as many maps of the image, and a timestep for each mask, not {} and {:?}",
                self.down.len(),
                condition.len(),
                t.dims()
            );
        }
        let waves = sinusoids(t, self.architecture.width)?.to_dtype(noisy.dtype())?;
        let told = &ops::silu(&self.time.forward(&waves)?)?;
        let mut x = self.patches.forward(&Tensor::cat(&[images, noisy], 1)?)?;
        let mut skips = Vec::with_capacity(self.down.len());
        for ((level, cross), features) in self.down.iter().zip(condition) {
            x = cross.run(&level.enter(x)?, told, features, pass)?;
            x = through(&level.blocks, x, Some(told), pass)?;
            skips.push(x.clone());
        }
        skips.pop();
        for (level, skip) in self.up.iter().zip(skips.iter().rev()) {
            let both = Tensor::cat(&[skip, &level.grow.forward(&x)?], 3)?;
            x = through(&level.blocks, level.join.forward(&both)?, Some(told), pass)?;
        }
        let pixels = self.grow.forward(&self.norm.forward(&x, Some(told))?)?;
        let pixels = self.refine.forward(&pixels, &[images, noisy], told)?;
        Ok(self.head.forward(&pixels)?.into())
    }
}

impl Net {
    /// Checks that maps of that many channels can be cut into patches, and these be halved as often as they are.
    fn check(&self, x: &Tensor, channels: usize) -> Result<()> {
        let (_, found, height, width) = x.dims4()?;
        if found != channels {
            bail!("a map of {found} channels was given, expected {channels}");
        }
        let multiple = self.architecture.side();
        let fits = |side: usize| side > 0 && side.is_multiple_of(multiple);
        match fits(height) && fits(width) {
            true => Ok(()),
            false => bail!("images are {width}x{height}, expected multiples of {multiple}"),
        }
    }
}
