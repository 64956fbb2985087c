//! LPIPS, how different two images look (Zhang et al., *The Unreasonable Effectiveness of Deep
//! Features as a Perceptual Metric*, 2018): version 0.1 with the features of AlexNet.
//!
//! Both images pass five convolutions. After each, every pixel's features are brought to length 1,
//! and the squares of their differences are weighed, summed over the features and averaged over
//! the pixels.

use crate::{
    layers::Conv2d,
    ops::{self, Convolution},
    params::{Params, Scope},
    weights,
};
use candle_core::{DType, Device, Result, Tensor, bail};
use diffaug::{Error, ErrorKind, ResultExt};
use std::{collections::HashMap, path::Path};

/// What the network was trained on had these means and deviations, red to blue.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// Windows of the convolutions, with their strides and paddings.
const WINDOWS: [(usize, usize, usize); 5] =
    [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)];
/// Convolutions that take the maximum over 3×3 windows, two apart, of what comes before them.
const POOLED: [bool; 5] = [false, true, true, false, false];
/// Features behind each convolution.
const WIDTHS: [usize; 5] = [64, 192, 384, 256, 256];
/// Below, nothing is left of an image after the second maximum.
const SMALLEST: usize = 31;

/// The distance, with weights that stay as they are.
#[derive(Clone, Debug)]
pub struct Lpips {
    stages: Vec<Stage>,
}

/// What the convolutions make of images, for [`Lpips::between`].
#[derive(Clone, Debug)]
pub struct Features(Vec<Tensor>);

/// A convolution, and what its features weigh.
#[derive(Clone, Debug)]
struct Stage {
    pooled: bool,
    conv: Conv2d,
    head: Conv2d,
}

impl Lpips {
    /// Reads a safetensors file with AlexNet's convolutions (`AlexNet_0.Conv_0.weight` and
    /// `.bias` to `Conv_4`) and the weights of the features (`NetLinLayer_0.Conv_0.weight` to 4).
    ///
    /// # Errors
    /// When the file is missing or broken, or holds another network.
    pub fn open(path: &Path, device: &Device) -> diffaug::Result<Self> {
        let tensors = weights::read(path)?;
        let misfit = || format!("`{}` does not hold LPIPS with AlexNet", path.display());
        let widths = widths(&tensors);
        let mut params = Params::frozen(device, tensors);
        let net = Lpips::new(params.root(), widths).or_error(ErrorKind::Model, misfit)?;
        match params.left_over().first() {
            None => Ok(net),
            Some(name) => {
                let error = Error::model(format!("tensor `{name}` is not part of it"));
                Err(error.context(misfit()))
            }
        }
    }

    fn new(mut scope: Scope<'_>, widths: [usize; 5]) -> Result<Self> {
        let mut inputs = 3;
        let mut stages = Vec::new();
        for (i, width) in widths.into_iter().enumerate() {
            let (side, stride, padding) = WINDOWS[i];
            let spec = Convolution::square(stride, padding);
            let place = scope.child(&format!("AlexNet_0.Conv_{i}"));
            let conv = Conv2d::with(place, [inputs, width], [side; 2], true, spec)?;
            let place = scope.child(&format!("NetLinLayer_{i}.Conv_0"));
            stages.push(Stage {
                pooled: POOLED[i],
                conv,
                head: Conv2d::new(place, width, 1, 1, false)?,
            });
            inputs = width;
        }
        Ok(Lpips { stages })
    }

    /// How different `a` and `b` look, image by image: `[n, 3, height, width]` both, values -1 to
    /// 1, sides of 31 pixels at least, to `[n]`, f32. Equal images have distance 0; no pair has a
    /// negative one. Gradients flow to both.
    ///
    /// # Errors
    /// When the shapes differ or are others.
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = a.dims4()?;
        if a.dims() != b.dims() || channels != 3 || height.min(width) < SMALLEST {
            bail!(
                "LPIPS compares images of one shape [_, 3, height, width] with sides of at least {SMALLEST}, not {:?} and {:?}",
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
    /// When the shape is another or a side below 31 pixels.
    pub fn features(&self, x: &Tensor) -> Result<Features> {
        let row = |values: &[f32; 3]| Tensor::from_slice(values, (1, 3, 1, 1), x.device());
        let x = x.to_dtype(DType::F32)?.broadcast_sub(&row(&SHIFT)?)?;
        let mut x = x.broadcast_div(&row(&SCALE)?)?;
        let mut features = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            if stage.pooled {
                x = ops::max_pool2d(&x, (3, 3), (2, 2), (0, 0))?;
            }
            x = ops::relu(&stage.conv.forward(&x)?)?;
            features.push(unit(&x)?);
        }
        Ok(Features(features))
    }
}

impl Stage {
    fn distance(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let difference = a.broadcast_sub(b)?.sqr()?;
        self.head.forward(&difference)?.flatten_from(1)?.mean(1)
    }
}

/// Every pixel's features at length 1; where all are 0 they stay so.
fn unit(x: &Tensor) -> Result<Tensor> {
    // Too small to change a length, but the root's slope at 0 is infinite.
    let length = (x.sqr()?.sum_keepdim(1)? + 1e-20)?.sqrt()?;
    x.broadcast_div(&(length + 1e-10)?)
}

/// How many features the given convolutions have; AlexNet's where one is missing.
fn widths(tensors: &HashMap<String, Tensor>) -> [usize; 5] {
    let mut widths = WIDTHS;
    for (i, width) in widths.iter_mut().enumerate() {
        let given = tensors.get(&format!("AlexNet_0.Conv_{i}.weight"));
        *width = given.and_then(|t| t.dims().first()).map_or(*width, |w| *w);
    }
    widths
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close, optional, random};
    use candle_core::Var;
    use diffaug::image::open_image;
    use std::path::PathBuf;

    /// What `fixtures/make_perceptual_fixture.py` wrote.
    fn fixture() -> HashMap<String, Tensor> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        weights::read(&folder.join("perceptual.safetensors")).unwrap()
    }

    /// The network of few channels, written to a file.
    fn small(fixture: &HashMap<String, Tensor>, folder: &Path) -> PathBuf {
        let own = fixture.iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix("small.w.")?.to_owned(), tensor.clone()))
        });
        let path = folder.join("small.safetensors");
        candle_core::safetensors::save(&own.collect(), &path).unwrap();
        path
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_small_network_agrees_with_the_package() {
        let fixture = fixture();
        let folder = tempfile::tempdir().unwrap();
        let net = Lpips::open(&small(&fixture, folder.path()), &Device::Cpu).unwrap();
        let [a, b] =
            ["a", "b"].map(|name| Var::from_tensor(&fixture[&format!("small.in.{name}")]).unwrap());
        let y = net.distance(&a, &b).unwrap();
        close(&y, &fixture["small.out.y"], 1e-5);
        let loss = (y * &fixture["small.in.dy"]).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        close(grads.get(&a).unwrap(), &fixture["small.out.da"], 1e-4);
        close(grads.get(&b).unwrap(), &fixture["small.out.db"], 1e-4);
        assert_eq!(values(&net.distance(&a, &a).unwrap()), [0.0; 2]);
    }

    #[test]
    fn one_image_is_compared_with_many_as_with_each() {
        let mut params = Params::new(&Device::Cpu, 1);
        let net = Lpips::new(params.root(), [4; 5]).unwrap();
        let (one, many) = (
            random("one", &[1, 3, 32, 32]),
            random("many", &[3, 3, 32, 32]),
        );
        let features = |x: &Tensor| net.features(x).unwrap();
        let found = net.between(&features(&one), &features(&many)).unwrap();
        let repeated = one.repeat((3, 1, 1, 1)).unwrap();
        close(&found, &net.distance(&repeated, &many).unwrap(), 1e-6);
    }

    #[test]
    fn pixels_without_features_have_gradients() {
        let x = Tensor::new(&[0f32, 0.0, 3.0, 4.0], &Device::Cpu).unwrap();
        // Two pixels of two features each: none at the first.
        let x = x.reshape((1, 2, 2)).unwrap().transpose(1, 2).unwrap();
        let x = Var::from_tensor(&x.contiguous().unwrap()).unwrap();
        let y = unit(&x).unwrap();
        assert_eq!(values(&y), [0.0, 0.6, 0.0, 0.8]);
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let grads = values(grads.get(&x).unwrap());
        assert!(grads.iter().all(|g| g.abs() < 1e-6), "{grads:?}");
    }

    #[test]
    fn misfits_are_named() {
        let fixture = fixture();
        let folder = tempfile::tempdir().unwrap();
        let path = small(&fixture, folder.path());
        let net = Lpips::open(&path, &Device::Cpu).unwrap();
        let error = |a: &[usize], b: &[usize]| {
            let result = net.distance(&random("a", a), &random("b", b));
            result.unwrap_err().to_string()
        };
        assert!(error(&[1, 3, 31, 30], &[1, 3, 31, 30]).contains("sides of at least 31"));
        assert!(error(&[1, 3, 40, 40], &[2, 3, 40, 40]).contains("not [1, 3, 40, 40] and [2, "));
        assert!(error(&[1, 1, 40, 40], &[1, 1, 40, 40]).contains("[_, 3, height, width]"));
        let fit = net.distance(&random("a", &[1, 3, 31, 31]), &random("b", &[1, 3, 31, 31]));
        assert_eq!(fit.unwrap().dims(), [1]);
        let mut tensors = weights::read(&path).unwrap();
        let removed = tensors.remove("NetLinLayer_2.Conv_0.weight").unwrap();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = Lpips::open(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(
            error.contains("`NetLinLayer_2.Conv_0.weight` is missing"),
            "{error}"
        );
        tensors.insert("NetLinLayer_2.Conv_0.weight".to_owned(), removed.clone());
        tensors.insert("NetLinLayer_5.Conv_0.weight".to_owned(), removed);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = Lpips::open(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(
            error.contains("`NetLinLayer_5.Conv_0.weight` is not part"),
            "{error}"
        );
    }

    /// `ours` differs from `theirs` by 1e-5 at most.
    fn near(ours: &Tensor, theirs: &Tensor) {
        let (ours, theirs) = (values(ours), values(theirs));
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() <= 1e-5, "{ours:?}, expected {theirs:?}");
        }
    }

    #[test]
    fn with_the_real_weights_it_agrees_with_the_package() {
        let Some(path) = optional("weights/lpips/lpips_alex.safetensors") else {
            return;
        };
        let net = Lpips::open(&path, &Device::Cpu).unwrap();
        let fixture = fixture();
        let pixels = |name: &str| {
            let bytes = fixture[name].to_dtype(DType::F32).unwrap();
            bytes.affine(2.0 / 255.0, -1.0).unwrap()
        };
        let (a, b) = (pixels("noise.in.a"), pixels("noise.in.b"));
        near(&net.distance(&a, &b).unwrap(), &fixture["noise.out.y"]);
        let Some(folder) = optional("data/CVC-ClinicDB/PNG/Original") else {
            return;
        };
        let frame = |number: u32| {
            let image = open_image(&folder.join(format!("{number}.png")), 1 << 20).unwrap();
            let size = (image.width() as usize, image.height() as usize);
            let x = Tensor::from_slice(image.pixels(), (1, size.1, size.0, 3), &Device::Cpu);
            let x = x.unwrap().permute((0, 3, 1, 2)).unwrap();
            let x = x.to_dtype(DType::F32).unwrap().contiguous().unwrap();
            x.affine(2.0 / 255.0, -1.0).unwrap()
        };
        let numbers = fixture["frames.in.number"].to_vec1::<u32>().unwrap();
        let pairs = numbers
            .iter()
            .map(|n| net.distance(&frame(*n), &frame(*n + 1)).unwrap());
        let ours = Tensor::cat(&pairs.collect::<Vec<_>>(), 0).unwrap();
        near(&ours, &fixture["frames.out.y"]);
    }
}
