//! The way up: maps at twice the size, what is handed across, and two convolutions.

use super::Architecture;
use crate::{
    maps::Maps,
    unit::{run, values},
};
use candle_core::{Result, Tensor};
use diffaug_nn::{
    layers::{BatchNorm, Conv2d, Mode},
    ops,
    params::Scope,
    segmenter::{Load, Pass},
};

/// A convolution of 3×3 without bias, batch normalisation, ReLU.
#[derive(Clone)]
struct Layer(Conv2d, BatchNorm);

impl Layer {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let conv = Conv2d::new(scope.child("0"), inputs, outputs, 3, false)?;
        Ok(Layer(conv, BatchNorm::new(scope.child("1"), outputs)?))
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.1.forward_after(&self.0, x, mode)
    }
}

/// A step: twice the height and width.
#[derive(Clone)]
struct Step(Layer, Layer);

impl Step {
    /// `maps` are those from below and, but for the last step, those from across.
    fn forward(&self, maps: &[Tensor], mode: Mode) -> Result<Tensor> {
        let (_, _, height, width) = maps[0].dims4()?;
        let mut x = ops::upsample_bilinear2d(&maps[0], 2 * height, 2 * width, true)?;
        if let Some(skip) = maps.get(1) {
            x = Tensor::cat(&[&x, skip], 1)?;
        }
        self.1.forward(&self.0.forward(&x, mode)?, mode)
    }
}

/// The way up.
pub(super) struct Decoder {
    bridge: Layer,
    steps: Vec<Step>,
}

impl Decoder {
    pub fn new(mut scope: Scope<'_>, architecture: &Architecture) -> Result<Self> {
        let bridge = scope.child("conv_more");
        let bridge = Layer::new(bridge, architecture.hidden, architecture.bridge)?;
        let mut steps = Vec::with_capacity(architecture.decoder.len());
        for (index, ([below, skip], outputs)) in steps_up(architecture).into_iter().enumerate() {
            let mut scope = scope.child(&format!("blocks.{index}"));
            let first = Layer::new(scope.child("conv1"), below + skip, outputs)?;
            let second = Layer::new(scope.child("conv2"), outputs, outputs)?;
            steps.push(Step(first, second));
        }
        Ok(Decoder { bridge, steps })
    }

    /// Maps at a sixteenth of the image's size to those at its own; `skips` are those of an eighth, a quarter
    /// and half.
    pub fn forward(&self, x: &Tensor, skips: &[Tensor; 3], pass: &Pass<'_>) -> Result<Tensor> {
        let (bridge, mode) = (self.bridge.clone(), pass.mode);
        let mut x = run(&[x], pass, move |maps| bridge.forward(&maps[0], mode))?;
        for (index, step) in self.steps.iter().enumerate() {
            let step = step.clone();
            let maps: Vec<&Tensor> = [&x].into_iter().chain(skips.get(index)).collect();
            x = run(&maps, pass, move |maps| step.forward(maps, mode))?;
        }
        Ok(x)
    }
}

/// The steps: channels from below and from across, and those that come out.
fn steps_up(architecture: &Architecture) -> [([usize; 2], usize); 4] {
    let mut below = architecture.bridge;
    let mut skips = architecture.skips().into_iter();
    architecture.decoder.map(|outputs| {
        let inputs = [below, skips.next().unwrap_or(0)];
        below = outputs;
        (inputs, outputs)
    })
}

/// Counts the maps of the way up.
pub(super) fn count(architecture: &Architecture, load: &Load, maps: &mut Maps) {
    maps.block(values(load, architecture.bridge, 4));
    let steps = steps_up(architecture).into_iter().zip((0..4).rev());
    for (([below, skip], outputs), here) in steps {
        maps.plain(1, values(load, below, here));
        if skip > 0 {
            maps.plain(1, values(load, below + skip, here));
        }
        maps.block(values(load, outputs, here));
        maps.block(values(load, outputs, here));
    }
}
