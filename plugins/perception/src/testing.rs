//! What tests share: fixtures, weights that Python made alike, and small sets of images.

#![allow(clippy::unwrap_used)]

use crate::points::Points;
use diffaug::{
    image::open_image,
    prelude::*,
    rng,
    stage::{Silent, with_reporter},
};
use diffaug_nn::{
    Device, Tensor,
    params::Shapes,
    perceptual::{Backbone, Lpips},
    torch_rng::TorchRng,
};
use rand::RngExt;
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

/// A file of `fixtures`.
pub fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap()
}

/// The weights of `fixtures/formula.py`.
pub fn formula(shapes: &Shapes) -> HashMap<String, Tensor> {
    let mut all: BTreeMap<&String, &Vec<usize>> = shapes.trainable.iter().collect();
    all.extend(&shapes.buffers);
    let tensor = |(seed, (name, shape)): (usize, (&String, &Vec<usize>))| {
        let count: usize = shape.iter().product();
        let inputs = (count / shape[0]) as f32;
        let scaled = |z: f32| match name.as_str() {
            name if name.ends_with("running_var") => (0.2 * z).exp(),
            _ if shape.len() >= 2 => z * (1.4 / inputs.sqrt()),
            name if name.ends_with("bias") || name.ends_with("mean") => 0.1 * z,
            _ => 1.0 + 0.1 * z,
        };
        let values: Vec<f32> = TorchRng::new(seed as u64).randn(count);
        let values: Vec<f32> = values.into_iter().map(scaled).collect();
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu);
        (name.clone(), tensor.unwrap())
    };
    all.into_iter().enumerate().map(tensor).collect()
}

/// The images of `fixtures/formula.py`.
pub fn images(count: usize, height: usize, width: usize) -> Tensor {
    let values = TorchRng::new(1000).rand(count * 3 * height * width);
    Tensor::from_vec(values, (count, 3, height, width), &Device::Cpu).unwrap()
}

/// The features of `fixtures/formula.py`.
pub fn features(count: usize, width: usize, seed: u64) -> Points {
    let values = TorchRng::new(seed).rand(count * width);
    scaled_points(&values, width, |value| value)
}

fn scaled_points(values: &[f32], width: usize, change: impl Fn(f32) -> f32) -> Points {
    let mut points = Points::default();
    for (index, row) in values.chunks_exact(width).enumerate() {
        let row = row.iter().enumerate();
        let row: Vec<f32> = row.map(|(at, v)| change(v * (at + 1) as f32)).collect();
        points.push(&row, index as u64).unwrap();
    }
    points
}

/// Precision and its like, as `prdc` found them.
#[derive(Clone, Copy, Deserialize)]
pub struct Prdc {
    pub precision: f64,
    pub recall: f64,
    pub density: f64,
    pub coverage: f64,
}

/// What reference packages say of two sets of features.
#[derive(Clone, Deserialize)]
pub struct Distances {
    real: usize,
    synthetic: usize,
    width: usize,
    pub frechet: f64,
    pub kid: f64,
    pub cmmd: f64,
    /// By the number of neighbours.
    pub prdc: BTreeMap<usize, Prdc>,
}

/// Two sets of features with that.
pub struct DistanceCase {
    pub real: Points,
    pub synthetic: Points,
    pub expected: Distances,
}

/// The cases of `fixtures/make_distance_fixture.py`.
pub fn distances() -> Vec<DistanceCase> {
    let all: Vec<Distances> = fixture("distances.json");
    let case = |expected: Distances| {
        let values = TorchRng::new(2).rand(expected.synthetic * expected.width);
        DistanceCase {
            real: features(expected.real, expected.width, 1),
            synthetic: scaled_points(&values, expected.width, |value| 0.75 * value + 1.0),
            expected,
        }
    };
    all.into_iter().map(case).collect()
}

/// What `fixtures/make_vit_fixture.py` wrote of a network.
#[derive(Deserialize)]
pub struct Reference {
    pub config: serde_json::Value,
    #[serde(default)]
    pub side: usize,
    pub tensors: usize,
    pub features: Vec<Vec<f32>>,
}

/// That of the network called `name`.
pub fn reference(name: &str) -> Reference {
    let mut all: HashMap<String, Reference> = fixture("vit.json");
    all.remove(name).unwrap()
}

/// Writes `config.json` and `model.safetensors`.
pub fn write_folder(folder: &Path, config: &serde_json::Value, weights: &HashMap<String, Tensor>) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(weights, folder.join("model.safetensors")).unwrap();
}

/// Asserts that no value differs by more than `tolerance` of the largest.
pub fn close_rows(ours: &Tensor, theirs: &[Vec<f32>], tolerance: f32) {
    let ours: Vec<Vec<f32>> = ours.to_vec2().unwrap();
    let largest = theirs.iter().flatten().fold(0f32, |a, v| a.max(v.abs()));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= tolerance * largest, "{a}, expected {b}");
        }
    }
}

/// A file of LPIPS with AlexNet of an eighth of the channels, whose weights are those of the formula.
pub fn random_alexnet(folder: &Path) -> PathBuf {
    let mut shapes = Lpips::shapes(Backbone::Alex).unwrap();
    for shape in shapes.trainable.values_mut() {
        let channels = shape.iter_mut().take(2).filter(|side| **side > 3);
        channels.for_each(|side| *side /= 8);
    }
    let mut weights = formula(&shapes);
    for (name, tensor) in &mut weights {
        if name.starts_with("lin") {
            *tensor = tensor.abs().unwrap();
        }
    }
    let path = folder.join("lpips.safetensors");
    candle_core::safetensors::save(&weights, &path).unwrap();
    path
}

/// Samples in memory.
pub struct Set {
    pub samples: Vec<Sample>,
}

impl Set {
    fn of(images: impl Iterator<Item = (String, Image)>) -> Self {
        let sample = |(id, image): (String, Image)| {
            let (width, height) = image.size();
            // A rectangle in the middle is the lesion.
            let inside = |x: u32, y: u32| {
                (width / 4..width * 3 / 4).contains(&x) && (height / 4..height * 3 / 4).contains(&y)
            };
            let labels = (0..width * height).map(|at| u8::from(inside(at % width, at / width)));
            Sample {
                id: id.as_str().into(),
                image,
                mask: Mask::new(width, height, labels.collect()).unwrap(),
                attributes: Attributes::new(),
            }
        };
        Set {
            samples: images.map(sample).collect(),
        }
    }

    /// Images of random pixels, a lesion in the middle of each.
    pub fn noise(count: usize, (width, height): (u32, u32), seed: u64) -> Self {
        Set::of((0..count).map(|index| {
            let mut rng = rng::stream(seed, "noise", index as u64);
            let pixels = (0..width * height * 3).map(|_| rng.random());
            let image = Image::new(width, height, pixels.collect()).unwrap();
            (format!("noise-{index}"), image)
        }))
    }

    /// Images of one grey.
    pub fn flat(count: usize, (width, height): (u32, u32)) -> Self {
        let pixels = vec![100; (width * height * 3) as usize];
        let image = Image::new(width, height, pixels).unwrap();
        Set::of((0..count).map(|index| (format!("flat-{index}"), image.clone())))
    }

    /// The files `N.png` of a folder.
    pub fn files(folder: &Path, numbers: &[u32]) -> Self {
        Set::of(numbers.iter().map(|number| {
            let image = open_image(&folder.join(format!("{number}.png")), 1 << 20).unwrap();
            (number.to_string(), image)
        }))
    }
}

impl Dataset for Set {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(DatasetInfo::single_class("set", "lesion"))
    }

    fn items(&self) -> Result<RVec<Item>> {
        Ok(self.samples.iter().map(|s| Item::new(&s.id)).collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let sample = self.samples.get(index as usize).cloned();
        sample.ok_or_else(|| Error::data(format!("there is no sample {index}")))
    }
}

/// What a measure says of two sets.
pub fn compare(
    measure: &impl Measure,
    real: &BoxDataset,
    synthetic: &BoxDataset,
) -> Result<Findings> {
    with_reporter(&Silent, |reporter| {
        measure.compare(real, synthetic, reporter)
    })
}
