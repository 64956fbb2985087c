//! Inception-v3 as ported from TensorFlow for the FID (Szegedy et al., 2016; pytorch-fid's graph and names).
//!
//! It differs from torchvision's: averages around the border leave the padding out, and the last block
//! takes a maximum where others average. Features are the averages of the last maps, 2048 values.

use super::{
    Extractor, config,
    layout::{BEFORE, Layout, Plan, Pooling, STEM, blocks},
};
use candle_core::{DType, Device, Result, Tensor};
use diffaug::{Error, ImageRef, files::open_regular, image::Filter};
use diffaug_nn::{
    batch::{self, Frame},
    ops::{self, Convolution},
    params::{Params, Scope, Shapes},
    weights::{self, Cast, Renamed},
};
use std::{io::Read, path::Path};

/// Side of images, in pixels.
const SIDE: u32 = 299;
/// Added to the variance by each normalisation.
const EPSILON: f64 = 1e-3;

/// A convolution with the normalisation that follows it folded in, and the ReLU.
#[derive(Clone, Debug)]
struct Unit {
    weight: Tensor,
    bias: Tensor,
    spec: Convolution,
}

impl Unit {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize, plan: &Plan) -> Result<Self> {
        let [k, l] = plan.window;
        let bound = 1.0 / ((inputs * k * l) as f32).sqrt();
        let mut place = scope.child("conv");
        let weight = place.uniform("weight", &[outputs, inputs, k, l], bound)?;
        let mut place = scope.child("bn");
        let gain = place.constant("weight", &[outputs], 1.0)?;
        let shift = place.constant("bias", &[outputs], 0.0)?;
        let mean = place.buffer("running_mean", &[outputs], 0.0)?;
        let variance = place.buffer("running_var", &[outputs], 1.0)?;
        let scale = (gain / (variance.as_tensor() + EPSILON)?.sqrt()?)?;
        Ok(Unit {
            bias: (shift - (mean.as_tensor() * &scale)?)?,
            weight: weight.broadcast_mul(&scale.reshape((outputs, 1, 1, 1))?)?,
            spec: Convolution {
                stride: [plan.stride; 2],
                padding: plan.padding,
                ..Convolution::default()
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::relu(&self.spec.forward(x, &self.weight, Some(&self.bias))?)
    }
}

impl Pooling {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        let (window, one, two) = ((3, 3), (1, 1), (2, 2));
        match self {
            Pooling::None => Ok(x.clone()),
            Pooling::Mean => ops::avg_pool2d(x, window, one, one, false),
            Pooling::Peak => ops::max_pool2d(x, window, one, one),
            Pooling::Halving => ops::max_pool2d(x, window, two, (0, 0)),
        }
    }
}

#[derive(Clone, Debug)]
struct Branch {
    pooling: Pooling,
    trunk: Vec<Unit>,
    ends: Vec<Unit>,
}

impl Branch {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.pooling.forward(x)?;
        for unit in &self.trunk {
            x = unit.forward(&x)?;
        }
        match self.ends.as_slice() {
            [] => Ok(x),
            ends => join(ends.iter().map(|unit| unit.forward(&x))),
        }
    }
}

/// Maps of one size, their channels one after the other.
fn join(maps: impl Iterator<Item = Result<Tensor>>) -> Result<Tensor> {
    Tensor::cat(&maps.collect::<Result<Vec<_>>>()?, 1)
}

/// The network up to its last maps.
#[derive(Clone, Debug)]
pub struct Inception {
    device: Device,
    stem: Vec<Unit>,
    blocks: Vec<Vec<Branch>>,
}

/// Makes units of plans, with a share of their channels.
struct Builder {
    share: usize,
}

impl Builder {
    /// The unit of a plan, and how many channels it has.
    fn unit(&self, scope: &mut Scope<'_>, inputs: usize, plan: &Plan) -> Result<(Unit, usize)> {
        let outputs = plan.outputs / self.share;
        let unit = Unit::new(scope.child(plan.name), inputs, outputs, plan)?;
        Ok((unit, outputs))
    }

    /// The branch of a layout, and how many channels it has.
    fn branch(
        &self,
        scope: &mut Scope<'_>,
        inputs: usize,
        layout: &Layout,
    ) -> Result<(Branch, usize)> {
        let mut branch = Branch {
            pooling: layout.pooling,
            trunk: Vec::new(),
            ends: Vec::new(),
        };
        let mut channels = inputs;
        for plan in &layout.trunk {
            let (unit, outputs) = self.unit(scope, channels, plan)?;
            branch.trunk.push(unit);
            channels = outputs;
        }
        let mut together = 0;
        for plan in &layout.ends {
            let (unit, outputs) = self.unit(scope, channels, plan)?;
            branch.ends.push(unit);
            together += outputs;
        }
        let channels = if together > 0 { together } else { channels };
        Ok((branch, channels))
    }
}

impl Inception {
    /// Reads the weights, safetensors or PyTorch's own file, under the names of pytorch-fid.
    ///
    /// # Errors
    /// When the file is missing or broken, or holds another network.
    pub fn open(path: &Path, device: &Device) -> diffaug::Result<Self> {
        let source = weights::open(path).map_err(|error| with_hint(path, error))?;
        let source = Renamed::new(source, kept)?;
        let mut params = Params::from_source(device, Cast::new(source, DType::F32));
        let misfit = |error| config::misfit(path, "the Inception of pytorch-fid", error);
        let net = Inception::new(params.root(), device, 1).map_err(|e| misfit(e.into()))?;
        config::nothing_left(&params.left_over()).map_err(misfit)?;
        Ok(net)
    }

    /// Names and shapes of the tensors.
    ///
    /// # Errors
    /// None that is known.
    pub fn shapes() -> Result<Shapes> {
        Inception::shapes_of(1)
    }

    pub(crate) fn shapes_of(share: usize) -> Result<Shapes> {
        Shapes::of(|scope| Inception::new(scope, &Device::Cpu, share))
    }

    /// The network with channels divided by `share`.
    fn new(mut scope: Scope<'_>, device: &Device, share: usize) -> Result<Self> {
        let builder = Builder { share };
        let (mut channels, mut stem, mut all) = (3, Vec::new(), Vec::new());
        for plan in &STEM {
            let (unit, outputs) = builder.unit(&mut scope, channels, plan)?;
            stem.push(unit);
            channels = outputs;
        }
        for (name, layouts) in blocks() {
            let (mut branches, mut together) = (Vec::new(), 0);
            let mut place = scope.child(name);
            for layout in &layouts {
                let (branch, outputs) = builder.branch(&mut place, channels, layout)?;
                branches.push(branch);
                together += outputs;
            }
            all.push(branches);
            channels = together;
        }
        Ok(Inception {
            device: device.clone(),
            stem,
            blocks: all,
        })
    }

    /// Features of images `[n, 3, height, width]` with values 0 to 1 and sides of 75 pixels at least:
    /// `[n, 2048]`.
    ///
    /// # Errors
    /// When the shape is another.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.affine(2.0, -1.0)?;
        for (index, unit) in self.stem.iter().enumerate() {
            if index == BEFORE {
                x = Pooling::Halving.forward(&x)?;
            }
            x = unit.forward(&x)?;
        }
        x = Pooling::Halving.forward(&x)?;
        for block in &self.blocks {
            x = join(block.iter().map(|branch| branch.forward(&x)))?;
        }
        x.flatten_from(2)?.mean(2)
    }
}

impl Extractor for Inception {
    fn points(&self, images: &[ImageRef<'_>]) -> diffaug::Result<Tensor> {
        let frame = Frame::padded((SIDE, SIDE), 1);
        let x = batch::resized_images(images, frame, Filter::Bicubic, &self.device)?;
        Ok(self.forward(&x)?)
    }
}

/// Says how a file of PyTorch's former format is made readable; pytorch-fid's is as old as that.
fn with_hint(path: &Path, mut error: Error) -> Error {
    let mut start = [0; 2];
    let begins = open_regular(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok());
    let is_pickle = begins && start[0] == 0x80 && (2..=5).contains(&start[1]);
    if is_pickle {
        error.causes.push(
            "it was written by PyTorch before 1.6\nsave it anew: torch.save(torch.load(old), new)"
                .into(),
        );
    }
    error
}

/// The name of a tensor that counts: what classifies and what counts batches is passed over.
fn kept(name: &str) -> Option<String> {
    let passed_over = name.starts_with("fc.")
        || name.starts_with("AuxLogits.")
        || name.ends_with(".num_batches_tracked");
    (!passed_over).then(|| name.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{close_rows, fixture, formula, images};
    use diffaug_nn::torch_rng::TorchRng;
    use serde::Deserialize;
    use std::{collections::HashMap, fs};

    /// What `fixtures/make_inception_fixture.py` wrote.
    #[derive(Deserialize)]
    struct Fixture {
        values: u64,
        parameters: u64,
        narrow: usize,
        size: [usize; 3],
        tensors: usize,
        features: Vec<Vec<f32>>,
    }

    #[test]
    fn a_narrow_network_agrees_with_pytorch_fid() {
        let fixture: Fixture = fixture("inception.json");
        let shapes = Inception::shapes_of(fixture.narrow).unwrap();
        let weights = formula(&shapes);
        assert_eq!(weights.len(), fixture.tensors);
        let mut params = Params::frozen(&Device::Cpu, weights);
        let net = Inception::new(params.root(), &Device::Cpu, fixture.narrow).unwrap();
        assert!(params.left_over().is_empty());
        let [count, height, width] = fixture.size;
        let y = net.forward(&images(count, height, width)).unwrap();
        close_rows(&y, &fixture.features, 1e-4);
    }

    #[test]
    fn the_whole_network_has_the_number_of_parameters_of_pytorch_fid() {
        let fixture: Fixture = fixture("inception.json");
        let shapes = Inception::shapes().unwrap();
        assert_eq!(shapes.parameters(), fixture.parameters);
        assert_eq!(shapes.values(), fixture.values);
        assert_eq!(fixture.values, 21_820_000);
    }

    #[test]
    fn other_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let tensor = || Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("fc.weight".to_owned(), tensor())]);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = Inception::open(&path, &Device::Cpu).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("does not hold the Inception of pytorch-fid"),
            "{text}"
        );
        assert!(
            text.contains("`Conv2d_1a_3x3.conv.weight` is missing"),
            "{text}"
        );
        let path = folder.path().join("weights.pth");
        // How a file of before 1.6 begins.
        fs::write(&path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
        let error = Inception::open(&path, &Device::Cpu).unwrap_err();
        let expected = "before 1.6\nsave it anew: torch.save(torch.load(old), new)";
        assert!(error.to_string().ends_with(expected), "{error}");
    }

    /// A plane of `fixtures/make_resize_fixture.py` before and after.
    #[derive(Deserialize)]
    struct Resized {
        from: (u32, u32),
        to: (u32, u32),
        values: Vec<f32>,
    }

    #[test]
    fn the_bicubic_filter_is_pillows_on_floating_point_numbers() {
        let all: Vec<Resized> = fixture("resize.json");
        for Resized { from, to, values } in all {
            let count = (3 * from.0 * from.1) as usize;
            let plane = &TorchRng::new(1000).rand(count)[..count / 3];
            let ours = batch::resize_by(plane, from, to, Filter::Bicubic);
            assert_eq!(ours.len(), values.len());
            for (a, b) in ours.iter().zip(&values) {
                assert!((a.clamp(0.0, 1.0) - b).abs() < 1e-6, "{a}, expected {b}");
            }
        }
    }
}
