//! The segmenter `unet-resnet50`: a U-Net whose way down is a ResNet (He et al., 2016), in the form of
//! `segmentation_models_pytorch`, whose names its tensors have. The encoder may begin with the weights that
//! torchvision or timm published.

use crate::{
    begin,
    check::{affordable, refuse, within},
    conv::{Conv, Draw},
    maps::Maps,
    unit::{self, run},
};
use candle_core::{Device, Result, Tensor, bail};
use diffaug::{Error, ErrorKind, ResultExt};
use diffaug_nn::{
    layers::{BatchNorm, Mode},
    limits,
    ops::{self, Convolution},
    params::{Params, Scope},
    segmenter::{
        Activations, Architecture as Sizes, Budget, Load, Loss, Network, Pass, Scaling, Schedule,
    },
    weights::{self, Source},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How often height and width are halved.
const HALVED: usize = 5;
/// What may stand before the names of an encoder's tensors in a file.
const PREFIXES: [&str; 6] = [
    "",
    "encoder.",
    "backbone.",
    "module.",
    "module.encoder.",
    "model.",
];

/// The network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// The way down.
    pub encoder: Encoder,
    /// Channels of the encoder's first level, 1 to 512; published weights have 64.
    pub width: usize,
    /// Channels of the way up, from the lowest level to the image.
    pub decoder: [usize; HALVED],
}

/// A residual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// 8 units of two convolutions.
    ResNet18,
    /// 16 units of two convolutions.
    ResNet34,
    /// 16 units of three convolutions, the inner ones a quarter as wide as the outer.
    ResNet50,
}

impl Encoder {
    /// Units at each of the four levels below the first.
    fn units(self) -> [usize; HALVED - 1] {
        match self {
            Encoder::ResNet18 => [2, 2, 2, 2],
            Encoder::ResNet34 | Encoder::ResNet50 => [3, 4, 6, 3],
        }
    }

    /// How much wider a unit's result is than its inside.
    fn expansion(self) -> usize {
        match self {
            Encoder::ResNet18 | Encoder::ResNet34 => 1,
            Encoder::ResNet50 => 4,
        }
    }
}

impl Default for Architecture {
    fn default() -> Self {
        Architecture {
            encoder: Encoder::ResNet50,
            width: 64,
            decoder: [256, 128, 64, 32, 16],
        }
    }
}

impl Architecture {
    /// Channels of the maps that the encoder hands over, from the first level down.
    fn features(&self) -> [usize; HALVED] {
        let [one, two, three, four] =
            [0, 1, 2, 3].map(|level| (self.width << level) * self.encoder.expansion());
        [self.width, one, two, three, four]
    }
}

impl Sizes for Architecture {
    const PLUGIN: &'static str = "unet-resnet50";

    fn tiny() -> Self {
        Architecture {
            encoder: Encoder::ResNet18,
            width: 12,
            decoder: [48, 32, 24, 16, 8],
        }
    }

    fn check(&self) -> diffaug::Result<()> {
        within("width", self.width, 1..=512)?;
        let most = limits::CHANNELS;
        if let Some(channels) = self.decoder.iter().find(|c| !(1..=most).contains(*c)) {
            let expected = format!("five numbers of channels, 1 to {most} each");
            return refuse(
                "decoder",
                format_args!("{:?}, with {channels}", self.decoder),
                &expected,
            );
        }
        affordable("width", self.width, |scope| {
            UNet::new(scope, self, 1, (0, 0))
        })
    }

    fn multiple(&self) -> u32 {
        1 << HALVED
    }

    fn scaling(&self) -> Scaling {
        Scaling::ImageNet
    }

    /// Adam at 1e-4, as is usual with this library, which has no recipe of its own; batches of 8, 40 epochs.
    fn reference(&self) -> Budget {
        Budget {
            epochs: 40,
            batch: 8,
            lr: 1e-4,
            warmup: 0,
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            clip: 0.0,
            patience: 0,
            loss: Loss::DiceBce,
            ..Budget::default()
        }
    }

    fn head(&self) -> &'static str {
        "segmentation_head.0"
    }

    fn activations(&self, load: &Load) -> Activations {
        let mut maps = Maps::default();
        self.count_encoder(load, &mut maps);
        self.count_decoder(load, &mut maps);
        // Images, and the few forms of what comes out.
        maps.plain(3 + 4 * load.outputs as u128, load.pixels());
        maps.activations(load)
    }
}

impl Architecture {
    fn count_encoder(&self, load: &Load, maps: &mut Maps) {
        let values = |channels, halved| unit::values(load, channels, halved);
        maps.block(values(self.width, 1));
        // The maximum over windows.
        maps.plain(1, values(self.width, 2));
        let (features, bottleneck) = (self.features(), self.encoder.expansion() > 1);
        for (level, units) in self.encoder.units().into_iter().enumerate() {
            let (inner, outer, here) = (self.width << level, features[level + 1], level + 2);
            for unit in 0..units {
                let first = unit == 0;
                if bottleneck {
                    // The first convolution of a level still sees the larger maps.
                    let larger = usize::from(first && level > 0);
                    maps.block(values(inner, here - larger));
                }
                maps.block(values(inner, here));
                maps.block(values(outer, here));
                if first && (features[level] != outer || level > 0) {
                    maps.block(values(outer, here));
                }
                // The sum with the shortcut, and its ReLU.
                maps.plain(2, values(outer, here));
            }
        }
    }

    fn count_decoder(&self, load: &Load, maps: &mut Maps) {
        let values = |channels, halved| unit::values(load, channels, halved);
        for (block, ([below, skip], outputs)) in self.steps_up().into_iter().enumerate() {
            let here = HALVED - 1 - block;
            maps.plain(1, values(below, here));
            if skip > 0 {
                maps.plain(1, values(below + skip, here));
            }
            maps.block(values(outputs, here));
            maps.block(values(outputs, here));
        }
    }

    /// The steps of the way up: channels from below and from across, and those that come out.
    fn steps_up(&self) -> [([usize; 2], usize); HALVED] {
        let features = self.features();
        let mut below = features[HALVED - 1];
        let mut skips = features[..HALVED - 1].iter().rev();
        self.decoder.map(|outputs| {
            let skip = skips.next().copied().unwrap_or(0);
            let inputs = [below, skip];
            below = outputs;
            (inputs, outputs)
        })
    }
}

/// A convolution without bias, then batch normalisation.
#[derive(Clone)]
struct Layer {
    conv: Conv,
    norm: BatchNorm,
}

impl Layer {
    /// Called `names` in `scope`, with a window of `side` that moves by `stride`.
    fn new(
        scope: &mut Scope<'_>,
        [conv, norm]: [&str; 2],
        channels: [usize; 2],
        [side, stride]: [usize; 2],
        draw: Draw,
    ) -> Result<Self> {
        let spec = Convolution::square(stride, side / 2);
        Ok(Layer {
            conv: Conv::new(scope.child(conv), channels, side, spec, draw, false)?,
            norm: BatchNorm::new(scope.child(norm), channels[1])?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode, relu: bool) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, mode, relu)
    }
}

/// Layers with ReLUs between them; what went in is added to what comes out.
#[derive(Clone)]
struct Unit {
    layers: Vec<Layer>,
    /// Brings what went in to the shape of what comes out.
    shortcut: Option<Layer>,
}

impl Unit {
    /// `channels` are those that come in, those inside and those that come out.
    fn new(
        mut scope: Scope<'_>,
        [inputs, inner, outputs]: [usize; 3],
        stride: usize,
        bottleneck: bool,
    ) -> Result<Self> {
        let layers: &[([usize; 2], [usize; 2])] = match bottleneck {
            false => &[([inputs, inner], [3, stride]), ([inner, outputs], [3, 1])],
            true => &[
                ([inputs, inner], [1, 1]),
                ([inner, inner], [3, stride]),
                ([inner, outputs], [1, 1]),
            ],
        };
        let layer = |(index, (channels, window)): (usize, &([usize; 2], [usize; 2]))| {
            let [conv, norm] = ["conv", "bn"].map(|name| format!("{name}{}", index + 1));
            let names = [conv.as_str(), norm.as_str()];
            Layer::new(&mut scope, names, *channels, *window, Draw::KaimingNormal)
        };
        let layers = layers
            .iter()
            .enumerate()
            .map(layer)
            .collect::<Result<_>>()?;
        let shortcut = (stride != 1 || inputs != outputs).then(|| {
            let names = ["downsample.0", "downsample.1"];
            let (channels, window) = ([inputs, outputs], [1, stride]);
            Layer::new(&mut scope, names, channels, window, Draw::KaimingNormal)
        });
        Ok(Unit {
            layers,
            shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut y = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            y = layer.forward(&y, mode, index + 1 < self.layers.len())?;
        }
        let around = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, mode, false)?,
            None => x.clone(),
        };
        ops::relu(&ops::add(&y, &around)?)
    }
}

/// A step of the way up: twice the height and width, and what is handed across.
#[derive(Clone)]
struct Up {
    first: Layer,
    second: Layer,
}

impl Up {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let mut layer = |name: &str, inputs| {
            let mut scope = scope.child(name);
            let (names, draw) = (["0", "1"], Draw::KaimingUniform);
            Layer::new(&mut scope, names, [inputs, outputs], [3, 1], draw)
        };
        Ok(Up {
            first: layer("conv1", inputs)?,
            second: layer("conv2", outputs)?,
        })
    }

    /// `maps` are those from below and, but for the last step, those from across.
    fn forward(&self, maps: &[Tensor], mode: Mode) -> Result<Tensor> {
        let mut x = maps[0].clone();
        let (_, _, height, width) = x.dims4()?;
        x = ops::upsample_nearest2d(&x, 2 * height, 2 * width)?;
        if let Some(skip) = maps.get(1) {
            x = Tensor::cat(&[&x, skip], 1)?;
        }
        let x = self.first.forward(&x, mode, true)?;
        self.second.forward(&x, mode, true)
    }
}

/// A U-Net on a residual network, whose maps at five sizes are handed across.
pub struct UNet {
    stem: Layer,
    levels: Vec<Vec<Unit>>,
    up: Vec<Up>,
    head: Conv,
}

impl UNet {
    /// The units of the encoder, level by level.
    fn levels(mut scope: Scope<'_>, architecture: &Architecture) -> Result<Vec<Vec<Unit>>> {
        let features = architecture.features();
        let bottleneck = architecture.encoder.expansion() > 1;
        let level = |(level, units): (usize, usize)| {
            let mut scope = scope.child(&format!("layer{}", level + 1));
            let (inner, outputs) = (architecture.width << level, features[level + 1]);
            let unit = |unit: usize| {
                let (inputs, stride) = match unit {
                    0 => (features[level], if level > 0 { 2 } else { 1 }),
                    _ => (outputs, 1),
                };
                let scope = scope.child(&unit.to_string());
                Unit::new(scope, [inputs, inner, outputs], stride, bottleneck)
            };
            (0..units).map(unit).collect::<Result<Vec<_>>>()
        };
        let units = architecture.encoder.units();
        units.into_iter().enumerate().map(level).collect()
    }

    /// What the encoder hands over, from the first level down.
    fn encode(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        let mode = pass.mode;
        let stem = self.stem.clone();
        let mut features = vec![run(&[images], pass, move |maps| {
            stem.forward(&maps[0], mode, true)
        })?];
        let mut x = ops::max_pool2d(&features[0], (3, 3), (2, 2), (1, 1))?;
        for level in &self.levels {
            for unit in level {
                let unit = unit.clone();
                x = run(&[&x], pass, move |maps| unit.forward(&maps[0], mode))?;
            }
            features.push(x.clone());
        }
        Ok(features)
    }
}

impl Network for UNet {
    type Architecture = Architecture;

    fn new(
        mut scope: Scope<'_>,
        architecture: &Architecture,
        outputs: usize,
        _: (u32, u32),
    ) -> Result<Self> {
        let mut encoder = scope.child("encoder");
        let (names, channels) = (["conv1", "bn1"], [3, architecture.width]);
        let stem = Layer::new(&mut encoder, names, channels, [7, 2], Draw::KaimingNormal)?;
        let levels = UNet::levels(encoder, architecture)?;
        let mut decoder = scope.child("decoder.blocks");
        let up = architecture.steps_up().into_iter().enumerate();
        let up = up.map(|(index, ([below, skip], outputs))| {
            Up::new(decoder.child(&index.to_string()), below + skip, outputs)
        });
        let up = up.collect::<Result<_>>()?;
        let [.., last] = architecture.decoder;
        let (place, spec) = (architecture.head(), Convolution::same(3));
        let head = Conv::new(
            scope.child(place),
            [last, outputs],
            3,
            spec,
            Draw::Xavier,
            true,
        )?;
        Ok(UNet {
            stem,
            levels,
            up,
            head,
        })
    }

    fn forward(&self, images: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        let multiple = 1 << HALVED;
        let fits = |side: usize| side > 0 && side.is_multiple_of(multiple);
        if !fits(height) || !fits(width) {
            bail!(
                "`{}` takes images whose sides are multiples of {multiple}, not {width}x{height}",
                Architecture::PLUGIN
            );
        }
        let mut features = self.encode(images, pass)?;
        let Some(mut x) = features.pop() else {
            bail!("an encoder without levels");
        };
        for up in &self.up {
            let skip = features.pop();
            let maps: Vec<&Tensor> = [&x].into_iter().chain(&skip).collect();
            let (up, mode) = (up.clone(), pass.mode);
            x = run(&maps, pass, move |maps| up.forward(maps, mode))?;
        }
        self.head.forward(&x)
    }

    /// Takes the encoder's weights out of a file of torchvision's, timm's or this library's.
    fn begin(
        params: &Params,
        architecture: &Architecture,
        file: &Path,
        device: &Device,
    ) -> diffaug::Result<String> {
        let name = serde_json::to_value(architecture.encoder)?;
        let name = name.as_str().unwrap_or_default().to_owned();
        let mut source = weights::open(file)?;
        let misfit = || format!("`{}` does not fit the encoder {name}", file.display());
        let prefix = prefix(&source).or_error(ErrorKind::Model, misfit)?;
        let theirs = |ours: &str| Some(format!("{prefix}{}", ours.strip_prefix("encoder.")?));
        let taken = begin::take(params, &mut source, theirs, device);
        let taken = taken.or_error(ErrorKind::Model, misfit)?;
        // Of a deeper network the first units would fit.
        if let Some(left) = left_over(&source, prefix) {
            let error = Error::model(format!("tensor `{left}` is not part of it"));
            return Err(error.context(misfit()));
        }
        let taken = taken.set()?;
        Ok(format!("the encoder {name}, {taken} values"))
    }
}

/// What stands before the names of the encoder's tensors.
fn prefix(source: &dyn Source) -> diffaug::Result<&'static str> {
    let found = PREFIXES
        .into_iter()
        .find(|prefix| source.shape(&format!("{prefix}conv1.weight")).is_some());
    found.ok_or_else(|| Error::model("tensor `conv1.weight` is missing"))
}

/// The first tensor of an encoder that has not been taken; classifiers and counts of batches are passed over.
fn left_over(source: &dyn Source, prefix: &str) -> Option<String> {
    let units = |name: &String| {
        let name = name.strip_prefix(prefix)?.strip_prefix("layer")?;
        (!name.ends_with("num_batches_tracked")).then_some(())
    };
    source
        .names()
        .into_iter()
        .find(|name| units(name).is_some())
}

#[cfg(test)]
mod tests;
