//! Images that a small network learns from within seconds, and what tests do with them.

use diffaug::stage::Progress;
use diffaug::{Class, prelude::*, rng};
use rand::RngExt;
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// Side of the images.
pub const SIDE: u32 = 32;

/// Bright discs on noise; with `classes` = 2 every second one is darker and has label 2.
pub struct Discs {
    pub count: u64,
    pub classes: u8,
    pub seed: u64,
    pub side: u32,
}

impl Dataset for Discs {
    fn info(&self) -> Result<DatasetInfo> {
        let mut info = DatasetInfo::single_class("discs", "disc");
        for label in 2..=self.classes {
            info.classes.push(Class {
                label,
                name: "dark disc".into(),
                target: true,
            });
        }
        Ok(info)
    }

    fn items(&self) -> Result<RVec<Item>> {
        Ok((0..self.count)
            .map(|i| Item::new(&format!("disc-{i}")))
            .collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let index = index % self.count;
        let side = self.side;
        let mut rng = rng::stream(self.seed, "disc", index);
        let mut centre = || rng.random_range(9.0..side as f32 - 9.0);
        let (cx, cy) = (centre(), centre());
        let radius = rng.random_range(4.0..8.0f32);
        let label = 1 + (index % u64::from(self.classes)) as u8;
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for i in 0..side * side {
            let (x, y) = ((i % side) as f32, (i / side) as f32);
            let inside = (x - cx).hypot(y - cy) < radius;
            let level = match (inside, label) {
                (false, _) => 110,
                (true, 1) => 170,
                (true, _) => 50,
            };
            for _ in 0..3 {
                pixels.push((level + rng.random_range(-25..=25i32)) as u8);
            }
            labels.push(if inside { label } else { 0 });
        }
        Ok(Sample {
            id: format!("disc-{index}").into(),
            image: Image::new(side, side, pixels)?,
            mask: Mask::new(side, side, labels)?,
            attributes: Attributes::new(),
        })
    }
}

/// [`Discs`] in images of the side [`SIDE`].
pub fn discs(count: u64, classes: u8, seed: u64) -> BoxDataset {
    discs_of(SIDE, count, classes, seed)
}

/// [`Discs`] in images of the side `side`.
pub fn discs_of(side: u32, count: u64, classes: u8, seed: u64) -> BoxDataset {
    BoxDataset::new(Discs {
        count,
        classes,
        seed,
        side,
    })
}

/// All but the log, which holds times.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let entries = entries.filter(|entry| entry.file_name() != "log.jsonl");
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = entries.map(read).collect();
    files.sort();
    files
}

/// A sample with every pixel as a square of so many along a side.
pub fn enlarge(sample: &Sample, factor: u32) -> Sample {
    let own = sample.image.size().0;
    let side = own * factor;
    let places = (0..side * side).map(|i| (i / side / factor * own + i % side / factor) as usize);
    let pixels = places
        .clone()
        .flat_map(|at| sample.image.pixels()[3 * at..3 * at + 3].to_vec());
    let labels = places.map(|at| sample.mask.labels()[at]);
    Sample {
        image: Image::new(side, side, pixels.collect()).unwrap(),
        mask: Mask::new(side, side, labels.collect()).unwrap(),
        ..sample.clone()
    }
}

/// Dice of the pixels with a label.
pub fn dice(found: &Mask, wanted: &Mask, label: u8) -> f64 {
    let count = |mask: &Mask| mask.labels().iter().filter(|l| **l == label).count();
    let pairs = found.labels().iter().zip(wanted.labels());
    let both = pairs.filter(|(a, b)| **a == label && **b == label).count();
    2.0 * both as f64 / (count(found) + count(wanted)) as f64
}

/// Stops once, after that many steps.
pub struct StopAfter(pub u64, pub AtomicBool);

impl Progress for StopAfter {
    fn progress(&self, done: u64, _: u64, _: &str) {
        self.1.store(done == self.0, Ordering::Relaxed);
    }
    fn cancelled(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }
}
