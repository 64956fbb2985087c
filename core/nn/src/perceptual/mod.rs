//! LPIPS, how different two images look (Zhang et al., *The Unreasonable Effectiveness of Deep
//! Features as a Perceptual Metric*, 2018): version 0.1 with the features of AlexNet or of VGG-16.
//!
//! Both images pass five stages of convolutions. After each, every pixel's features are brought to
//! length 1, and the squares of their differences are weighed, summed over the features and averaged
//! over the pixels.

mod backbone;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use backbone::Backbone;

use crate::{
    layers::Conv2d,
    ops,
    params::{Params, Scope, Shapes},
    weights::{self, Renamed},
};
use backbone::{Names, Pool};
use candle_core::{DType, Device, Result, Tensor, bail};
use diffaug::{Error, ErrorKind, ResultExt};
use std::path::Path;

/// What the networks were trained on had these means and deviations, red to blue.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// The distance, with weights that stay as they are.
#[derive(Clone, Debug)]
pub struct Lpips {
    smallest: usize,
    stages: Vec<Stage>,
}

/// What the convolutions make of images, for [`Lpips::between`].
#[derive(Clone, Debug)]
pub struct Features(Vec<Tensor>);

/// Convolutions, and what the features behind them weigh.
#[derive(Clone, Debug)]
struct Stage {
    pool: Option<Pool>,
    convs: Vec<Conv2d>,
    /// `[1, features, 1, 1]`.
    head: Tensor,
}

impl Lpips {
    /// Reads LPIPS with AlexNet: [`Lpips::with_backbone`].
    ///
    /// # Errors
    /// Those of [`Lpips::with_backbone`].
    pub fn open(path: &Path, device: &Device) -> diffaug::Result<Self> {
        Lpips::with_backbone(path, Backbone::Alex, device)
    }

    /// Reads a file of weights, safetensors or PyTorch's own.
    ///
    /// Its tensors have the names of the state of the package `lpips` (`net.slice1.0.weight`,
    /// `lin0.model.1.weight`) or, for AlexNet, those of its port to Flax (`AlexNet_0.Conv_0.weight` and
    /// `.bias` to `Conv_4`, `NetLinLayer_0.Conv_0.weight` to 4).
    ///
    /// # Errors
    /// When the file is missing or broken, or holds another network.
    pub fn with_backbone(
        path: &Path,
        backbone: Backbone,
        device: &Device,
    ) -> diffaug::Result<Self> {
        let source = Renamed::new(weights::open(path)?, kept)?;
        let misfit = || format!("`{}` does not hold LPIPS with {backbone}", path.display());
        let names = Names::of(&source, backbone);
        let widths = names.widths(&source, backbone);
        let mut params = Params::from_source(device, source);
        let net = Lpips::new(params.root(), backbone, names, widths);
        let net = net.or_error(ErrorKind::Model, misfit)?;
        match params.left_over().first() {
            None => Ok(net),
            Some(name) => {
                let error = Error::model(format!("tensor `{name}` is not part of it"));
                Err(error.context(misfit()))
            }
        }
    }

    /// Names and shapes of the tensors as published.
    ///
    /// # Errors
    /// None that is known.
    pub fn shapes(backbone: Backbone) -> Result<Shapes> {
        let widths = backbone.widths();
        Shapes::of(|scope| Lpips::new(scope, backbone, Names::Package, widths))
    }

    fn new(
        mut scope: Scope<'_>,
        backbone: Backbone,
        names: Names,
        widths: [usize; 5],
    ) -> Result<Self> {
        let mut inputs = 3;
        let mut stages = Vec::new();
        for (i, width) in widths.into_iter().enumerate() {
            let plan = backbone.stage(i);
            let mut convs = Vec::new();
            for (j, (side, spec)) in plan.convs.into_iter().enumerate() {
                let place = scope.child(&names.conv(backbone, i, j));
                convs.push(Conv2d::with(place, [inputs, width], [side; 2], true, spec)?);
                inputs = width;
            }
            let bound = 1.0 / (width as f32).sqrt();
            let mut place = scope.child(&names.head(i));
            let head = place.uniform("weight", &[1, width, 1, 1], bound)?;
            stages.push(Stage {
                pool: plan.pool,
                convs,
                head: head.to_dtype(DType::F32)?,
            });
        }
        Ok(Lpips {
            smallest: backbone.smallest(),
            stages,
        })
    }

    /// How different `a` and `b` look, image by image: `[n, 3, height, width]` both, values -1 to
    /// 1, sides of [`Backbone::smallest`] pixels at least, to `[n]`, f32. Equal images have distance 0;
    /// no pair has a negative one. Gradients flow to both.
    ///
    /// # Errors
    /// When the shapes differ or are others.
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = a.dims4()?;
        let smallest = self.smallest;
        if a.dims() != b.dims() || channels != 3 || height.min(width) < smallest {
            bail!(
                "LPIPS compares images of one shape [_, 3, height, width] with sides of at least {smallest}, not {:?} and {:?}",
                a.dims(),
                b.dims()
            );
        }
        self.between(&self.features(a)?, &self.features(b)?)
    }

    /// The distance of images whose features are known, image by image: `[n]`; of either there may
    /// be one alone, which is compared with all of the other.
    ///
    /// # Errors
    /// When the images have different sizes, or their numbers differ and none is 1.
    pub fn between(&self, a: &Features, b: &Features) -> Result<Tensor> {
        let parts = self.stages.iter().zip(a.0.iter().zip(&b.0));
        let parts = parts.map(|(stage, (a, b))| stage.distance(a, b));
        Tensor::stack(&parts.collect::<Result<Vec<_>>>()?, 0)?.sum(0)
    }

    /// What the convolutions make of images `[n, 3, height, width]`, values -1 to 1, at length 1.
    ///
    /// # Errors
    /// When the shape is another or a side below [`Backbone::smallest`].
    pub fn features(&self, x: &Tensor) -> Result<Features> {
        let row = |values: &[f32; 3]| Tensor::from_slice(values, (1, 3, 1, 1), x.device());
        let x = x.to_dtype(DType::F32)?.broadcast_sub(&row(&SHIFT)?)?;
        let mut x = x.broadcast_div(&row(&SCALE)?)?;
        let mut features = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = stage.forward(x)?;
            features.push(unit(&x)?);
        }
        Ok(Features(features))
    }

    /// Images as points `[n, values]` whose squared distance is [`Lpips::between`]: features times the
    /// root of what they weigh.
    ///
    /// # Errors
    /// When a feature weighs less than nothing; published ones do not.
    pub fn points(&self, features: &Features) -> Result<Tensor> {
        let scaled = self.stages.iter().zip(&features.0).map(|(stage, x)| {
            let least: f32 = stage.head.flatten_all()?.min(0)?.to_scalar()?;
            if least < 0.0 {
                bail!("a feature of LPIPS weighs {least}, expected 0 or more");
            }
            let (_, _, height, width) = x.dims4()?;
            let weight = (&stage.head / (height * width) as f64)?.sqrt()?;
            x.broadcast_mul(&weight)?.flatten_from(1)
        });
        Tensor::cat(&scaled.collect::<Result<Vec<_>>>()?, 1)
    }
}

impl Features {
    /// The mean of each feature over the pixels: `[n, features of all stages]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn means(&self) -> Result<Tensor> {
        let means = self.0.iter().map(|x| x.flatten_from(2)?.mean(2));
        Tensor::cat(&means.collect::<Result<Vec<_>>>()?, 1)
    }
}

impl Stage {
    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        if let Some(Pool { side, stride }) = self.pool {
            x = ops::max_pool2d(&x, (side, side), (stride, stride), (0, 0))?;
        }
        for conv in &self.convs {
            x = ops::relu(&conv.forward(&x)?)?;
        }
        Ok(x)
    }

    fn distance(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let difference = a.broadcast_sub(b)?.sqr()?;
        ops::conv2d(&difference, &self.head, None)?
            .flatten_from(1)?
            .mean(1)
    }
}

/// Every pixel's features at length 1; where all are 0 they stay so.
fn unit(x: &Tensor) -> Result<Tensor> {
    // Too small to change a length, but the root's slope at 0 is infinite.
    let length = (x.sqr()?.sum_keepdim(1)? + 1e-20)?.sqrt()?;
    x.broadcast_div(&(length + 1e-10)?)
}

/// The name of a tensor that counts: the state of the package repeats its heads, and has constants.
fn kept(name: &str) -> Option<String> {
    let passed_over = ["lins.", "scaling_layer."];
    let counts = !passed_over.iter().any(|prefix| name.starts_with(prefix));
    counts.then(|| name.to_owned())
}
