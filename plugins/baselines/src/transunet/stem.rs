//! The way down: a residual network with standardised weights and group normalisation (Kolesnikov et al.,
//! Big Transfer, 2020). Its units normalise behind their convolutions.

use super::Architecture;
use crate::{
    conv::{Conv, Draw},
    maps::Maps,
    unit::{run, values},
};
use candle_core::{Result, Tensor};
use diffaug_nn::{
    layers::GroupNorm,
    ops::{self, Convolution},
    params::Scope,
    segmenter::{Load, Pass},
};

/// Added to the variance by all normalisations but those of shortcuts.
const EPSILON: f32 = 1e-6;
/// Added to the variance by those of shortcuts.
const SHORTCUT_EPSILON: f32 = 1e-5;
/// How much wider a unit's result is than its inside.
const EXPANSION: usize = 4;

/// A convolution with standardised weights, then group normalisation.
#[derive(Clone)]
struct Layer {
    conv: Conv,
    norm: GroupNorm,
}

impl Layer {
    /// Called `names` in `scope`; the normalisation has that many groups and adds `epsilon`.
    fn new(
        scope: &mut Scope<'_>,
        [conv, norm]: [&str; 2],
        channels: [usize; 2],
        [side, stride]: [usize; 2],
        (groups, epsilon): (usize, f32),
    ) -> Result<Self> {
        let spec = Convolution::square(stride, side / 2);
        let conv = Conv::new(
            scope.child(conv),
            channels,
            side,
            spec,
            Draw::Default,
            false,
        )?;
        Ok(Layer {
            conv: conv.standardised()?,
            norm: GroupNorm::new(scope.child(norm), groups, channels[1], epsilon)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, None)
    }
}

/// Three convolutions; what went in is added to what comes out.
#[derive(Clone)]
struct Unit {
    layers: [Layer; 3],
    /// Brings what went in to the shape of what comes out.
    shortcut: Option<Layer>,
}

impl Unit {
    fn new(
        mut scope: Scope<'_>,
        groups: usize,
        [inputs, inner]: [usize; 2],
        stride: usize,
    ) -> Result<Self> {
        let (outputs, norm) = (inner * EXPANSION, (groups, EPSILON));
        let mut layer = |index: usize, channels, window| {
            let [conv, gn] = ["conv", "gn"].map(|name| format!("{name}{index}"));
            Layer::new(&mut scope, [&conv, &gn], channels, window, norm)
        };
        let layers = [
            layer(1, [inputs, inner], [1, 1])?,
            layer(2, [inner, inner], [3, stride])?,
            layer(3, [inner, outputs], [1, 1])?,
        ];
        let shortcut = (stride != 1 || inputs != outputs).then(|| {
            let (names, channels) = (["downsample", "gn_proj"], [inputs, outputs]);
            // A group for each channel.
            let norm = (outputs, SHORTCUT_EPSILON);
            Layer::new(&mut scope, names, channels, [1, stride], norm)
        });
        Ok(Unit {
            layers,
            shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.layers;
        let y = ops::relu(&first.forward(x)?)?;
        let y = ops::relu(&second.forward(&y)?)?;
        let y = third.forward(&y)?;
        let around = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)?,
            None => x.clone(),
        };
        ops::relu(&ops::add(&around, &y)?)
    }
}

/// The residual network.
pub(super) struct Stem {
    root: Layer,
    levels: Vec<Vec<Unit>>,
}

impl Stem {
    pub fn new(mut scope: Scope<'_>, architecture: &Architecture) -> Result<Self> {
        let Architecture { width, groups, .. } = *architecture;
        let (names, norm) = (["conv", "gn"], (groups, EPSILON));
        let root = Layer::new(&mut scope.child("root"), names, [3, width], [7, 2], norm)?;
        let mut body = scope.child("body");
        let mut inputs = width;
        let mut levels = Vec::with_capacity(architecture.units.len());
        for (level, count) in architecture.units.into_iter().enumerate() {
            let mut scope = body.child(&format!("block{}", level + 1));
            let inner = width << level;
            let mut units = Vec::with_capacity(count);
            for unit in 0..count {
                let stride = if unit == 0 && level > 0 { 2 } else { 1 };
                let place = scope.child(&format!("unit{}", unit + 1));
                units.push(Unit::new(place, groups, [inputs, inner], stride)?);
                inputs = inner * EXPANSION;
            }
            levels.push(units);
        }
        Ok(Stem { root, levels })
    }

    /// What images become at a sixteenth of their size, and the maps at an eighth, a quarter and half of it.
    pub fn forward(&self, images: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, [Tensor; 3])> {
        let root = self.root.clone();
        let half = run(&[images], pass, move |maps| {
            ops::relu(&root.forward(&maps[0])?)
        })?;
        // Without padding: a row and a column less than a quarter of the image has.
        let mut x = ops::max_pool2d(&half, (3, 3), (2, 2), (0, 0))?;
        let mut handed = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            for unit in level {
                let unit = unit.clone();
                x = run(&[&x], pass, move |maps| unit.forward(&maps[0]))?;
            }
            handed.push(x.clone());
        }
        let [quarter, eighth, sixteenth] = <[Tensor; 3]>::try_from(handed)
            .map_err(|_| candle_core::Error::msg("a residual network without three levels"))?;
        let side = images.dim(2)?;
        Ok((
            sixteenth,
            [
                filled(&eighth, side / 8)?,
                filled(&quarter, side / 4)?,
                half,
            ],
        ))
    }
}

/// A map with zeros on the right and below up to that side.
fn filled(x: &Tensor, side: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    match (height, width) == (side, side) {
        true => Ok(x.clone()),
        false => x
            .pad_with_zeros(2, 0, side.saturating_sub(height))?
            .pad_with_zeros(3, 0, side.saturating_sub(width)),
    }
}

/// Counts the maps of the way down.
pub(super) fn count(architecture: &Architecture, load: &Load, maps: &mut Maps) {
    let width = architecture.width;
    maps.block(values(load, width, 1));
    // A ReLU, and the maximum over windows.
    maps.plain(1, values(load, width, 1) + values(load, width, 2));
    for (level, units) in architecture.units.into_iter().enumerate() {
        let (inner, here) = (width << level, level + 2);
        let outer = inner * EXPANSION;
        for unit in 0..units {
            let first = unit == 0;
            // The first convolution of a level still sees the larger maps.
            let larger = usize::from(first && level > 0);
            for halved in [here - larger, here] {
                maps.block(values(load, inner, halved));
                maps.plain(1, values(load, inner, halved));
            }
            maps.block(values(load, outer, here));
            if first {
                maps.block(values(load, outer, here));
            }
            // The sum with the shortcut, and its ReLU.
            maps.plain(2, values(load, outer, here));
        }
    }
    // A quarter of the size is filled with zeros, side by side.
    maps.plain(2, values(load, EXPANSION * width, 2));
}
