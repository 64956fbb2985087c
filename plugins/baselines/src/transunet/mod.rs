//! The segmenter `transunet`: a U-Net whose way down ends in a transformer (Chen et al., 2021), with the names
//! of the authors' code (`Beckschen/TransUNet`). The residual network and the transformer may begin with the
//! weights of `R50+ViT-B_16` that Google published.
//!
//! Each token learns its place, so a network is built for images of one size, a square.

mod decoder;
mod google;
mod stem;
mod transformer;

#[cfg(test)]
mod tests;

use crate::check::{affordable, refuse, within};
use crate::maps::Maps;
use candle_core::{Device, Result, Tensor, bail};
use decoder::Decoder;
use diffaug_nn::{
    layers::Conv2d,
    limits, ops,
    params::{Params, Scope},
    segmenter::{
        Activations, Architecture as Sizes, Budget, Load, Loss, Network, Optimizer, Pass, Schedule,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use stem::Stem;
use transformer::Transformer;

/// Pixels along a side of what becomes a token.
const PATCH: usize = 16;
/// Side that parameters are counted for where none is known.
const SIDE: u32 = 224;

/// The network.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Channels of the first level, a multiple of `groups`.
    pub width: usize,
    /// Groups of the normalisations on the way down.
    pub groups: usize,
    /// Residual units at a quarter, an eighth and a sixteenth of the size.
    pub units: [usize; 3],
    /// Values of a token, a multiple of `heads`.
    pub hidden: usize,
    /// Parts of a token that attend on their own.
    pub heads: usize,
    /// Values inside of a block's map.
    pub mlp: usize,
    /// Blocks of the transformer.
    pub blocks: usize,
    /// Channels between the transformer and the way up.
    pub bridge: usize,
    /// Channels of the way up, from an eighth of the size to the image.
    pub decoder: [usize; 4],
    /// Share of a token's values that are dropped in training, 0 to below 1.
    pub dropout: f32,
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            width: 64,
            groups: 32,
            units: [3, 4, 9],
            hidden: 768,
            heads: 12,
            mlp: 3072,
            blocks: 12,
            bridge: 512,
            decoder: [256, 128, 64, 16],
            dropout: 0.1,
        }
    }
}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "transunet";

    fn tiny() -> Self {
        Architecture {
            width: 8,
            groups: 4,
            units: [1, 1, 1],
            hidden: 48,
            heads: 4,
            mlp: 96,
            blocks: 2,
            bridge: 48,
            decoder: [32, 24, 16, 8],
            dropout: 0.0,
        }
    }

    fn check(&self) -> diffaug::Result<()> {
        let (channels, layers) = (1..=limits::CHANNELS, 1..=limits::LAYERS);
        within("width", self.width, 1..=1024)?;
        within("groups", self.groups, 1..=self.width)?;
        multiple("width", self.width, "groups", self.groups)?;
        for units in self.units {
            within("units", units, layers.clone())?;
        }
        within("hidden", self.hidden, channels.clone())?;
        within("heads", self.heads, 1..=limits::HEADS)?;
        multiple("hidden", self.hidden, "heads", self.heads)?;
        within("mlp", self.mlp, 1..=limits::WIDTH)?;
        within("blocks", self.blocks, 1..=limits::DEPTH)?;
        within("bridge", self.bridge, channels.clone())?;
        for outputs in self.decoder {
            within("decoder", outputs, channels.clone())?;
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("dropout", self.dropout, "0 to below 1");
        }
        affordable("hidden", self.hidden, |scope| {
            TransUNet::new(scope, self, 1, (SIDE, SIDE))
        })
    }

    fn multiple(&self) -> u32 {
        PATCH as u32
    }

    fn dropout(&self) -> f32 {
        self.dropout
    }

    /// SGD at 0.01 with momentum 0.9 and weight decay 1e-4, falling along a power of 0.9, 150 epochs of batches
    /// of 24 (the authors' `train.py` and `trainer.py`).
    fn reference(&self) -> Budget {
        Budget {
            epochs: 150,
            batch: 24,
            lr: 0.01,
            warmup: 0,
            schedule: Schedule::Polynomial,
            power: 0.9,
            optimizer: Optimizer::Sgd,
            momentum: Some(0.9),
            weight_decay: 1e-4,
            clip: 0.0,
            patience: 0,
            loss: Loss::HalfDiceBce,
            ..Budget::default()
        }
    }

    fn head(&self) -> &'static str {
        "segmentation_head.0"
    }

    fn activations(&self, load: &Load) -> Activations {
        let mut maps = Maps::default();
        stem::count(self, load, &mut maps);
        transformer::count(self, load, &mut maps);
        decoder::count(self, load, &mut maps);
        // Images, and the few forms of what comes out.
        maps.plain(3 + 4 * load.outputs as u128, load.pixels());
        maps.activations(load)
    }
}

fn multiple(name: &str, value: usize, of: &str, factor: usize) -> diffaug::Result<()> {
    match value.is_multiple_of(factor) {
        true => Ok(()),
        false => refuse(name, value, &format!("a multiple of `{of}`, {factor}")),
    }
}

impl Architecture {
    /// Channels that go down to an eighth, a quarter and half of the size, and are handed across there.
    fn skips(&self) -> [usize; 3] {
        [8, 4, 1].map(|times| times * self.width)
    }
}

/// A residual network, a transformer of what it makes, and a way up.
pub struct TransUNet {
    side: usize,
    stem: Stem,
    transformer: Transformer,
    decoder: Decoder,
    head: Conv2d,
}

impl Network for TransUNet {
    type Architecture = Architecture;

    fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        outputs: usize,
        (width, height): (u32, u32),
    ) -> Result<Self> {
        let side = width as usize;
        if width != height || side == 0 || !side.is_multiple_of(PATCH) {
            bail!(
                "`{}` is for square images whose side is a multiple of {PATCH}, not {width}x{height}: set the option `size`",
                Architecture::PLUGIN
            );
        }
        let [.., last] = architecture.decoder;
        let place = scope.child("transformer.embeddings.hybrid_model");
        let stem = Stem::new(place, architecture)?;
        let tokens = (side / PATCH).pow(2);
        Ok(TransUNet {
            side,
            stem,
            transformer: Transformer::new(scope.child("transformer"), architecture, tokens)?,
            decoder: Decoder::new(scope.child("decoder"), architecture)?,
            head: Conv2d::new(scope.child(architecture.head()), last, outputs, 3, true)?,
        })
    }

    fn forward(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        if height != self.side || width != self.side {
            bail!(
                "this `{}` was built for images of {side}x{side}, not {width}x{height}",
                Architecture::PLUGIN,
                side = self.side
            );
        }
        let (x, skips) = self.stem.forward(images, pass)?;
        let tokens = self.transformer.forward(&x, pass)?;
        let grid = self.side / PATCH;
        let x = ops::tokens_to_pixels(&tokens, grid, grid)?;
        self.head.forward(&self.decoder.forward(&x, &skips, pass)?)
    }

    /// Takes the residual network and the transformer out of Google's file.
    fn begin(
        params: &Params,
        _: &Architecture,
        file: &Path,
        device: &Device,
    ) -> diffaug::Result<String> {
        google::begin(params, file, device)
    }
}
