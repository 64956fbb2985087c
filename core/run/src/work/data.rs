//! The dataset as the run sees it: opened, divided, and handed out as views.
//!
//! Stages get [`Data::train`] and [`Data::validation`]; the test part leaves this file through
//! [`Data::test`], which only the scoring calls, and through [`Data::part`], by which the images of a finished
//! run are handed on.

use super::{
    attributes::{Annotated, Facts},
    reopen::Part,
};
use crate::manifest::Manifest;
use diffaug::{
    BoxDataset, Dataset, DatasetInfo, Error, Item, MaskRef, Progress, Result, Sample,
    augment::{AugmentOptions, Augmented},
    image::{ReadOptions, open_image, read_header},
    split::{Split, split},
    view::{Concat, Prepared, Shared, Subset},
};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The dataset as the run sees it.
pub struct Data {
    /// Name, classes, named splits.
    pub info: DatasetInfo,
    /// The division.
    pub split: Split,
    raw: Shared,
    prepared: Shared,
    items: Vec<Item>,
    parts: [Vec<u64>; 3],
}

impl Data {
    /// Lists and divides `dataset`.
    ///
    /// # Errors
    /// When the listing, the split, a class list or the file of attributes cannot be used.
    pub fn open(dataset: BoxDataset, manifest: &Manifest) -> Result<Self> {
        let mut raw: Shared = Arc::new(dataset);
        let info = raw.info()?;
        let items: Vec<Item> = raw.items()?.into_iter().collect();
        if let Some(facts) = Facts::named(manifest)? {
            facts.check(&info, &items)?;
            raw = Arc::new(Annotated::new(raw, facts));
        }
        let split = split(&info, &items, &manifest.split)?;
        let parts = split.indices(&items)?;
        let budget = u64::from(manifest.images.cache) << 20;
        let prepared = Arc::new(Prepared::new(raw.clone(), manifest.size(), budget)?);
        Ok(Data {
            info,
            split,
            raw,
            prepared,
            items,
            parts,
        })
    }

    /// The target labels.
    pub fn targets(&self) -> Vec<u8> {
        self.info.targets()
    }

    /// How many samples there are in train, validation and test.
    pub fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|part| self.parts[part].len())
    }

    fn view(&self, base: &Shared, part: usize) -> Result<Shared> {
        let subset = Subset::new(base.clone(), self.parts[part].clone())?;
        Ok(Arc::new(subset))
    }

    /// The real training samples, as they are.
    pub fn train(&self) -> Result<Shared> {
        self.view(&self.prepared, 0)
    }

    /// The real training samples at their own size; see [`Prepared::originals`].
    pub fn originals(&self) -> Result<Shared> {
        self.part(Part::Train, true)
    }

    /// Those of the real training samples that `keep` wants.
    pub fn train_where(&self, keep: impl Fn(&Item) -> bool) -> Result<Shared> {
        let part = self.parts[0].iter().copied();
        let kept = part.filter(|index| keep(&self.items[*index as usize]));
        Ok(Arc::new(Subset::new(
            self.prepared.clone(),
            kept.collect(),
        )?))
    }

    /// The validation samples, carved from train.
    pub fn validation(&self) -> Result<BoxDataset> {
        Ok(BoxDataset::new(self.view(&self.prepared, 1)?))
    }

    /// The test samples, for scoring only; at their own size if `native`.
    pub fn test(&self, native: bool) -> Result<Shared> {
        self.view(if native { &self.raw } else { &self.prepared }, 2)
    }

    /// The samples of a part, checked: at their own size and with the plugin's facts alone if `native`, else
    /// at working size.
    pub fn part(&self, part: Part, native: bool) -> Result<Shared> {
        let index = match part {
            Part::Train => 0,
            Part::Validation => 1,
            Part::Test => 2,
        };
        if !native {
            return self.view(&self.prepared, index);
        }
        let whole: Shared = Arc::new(Prepared::originals(self.raw.clone())?);
        self.view(&whole, index)
    }

    /// What a training gets: `real` training samples and `more`, augmented without end.
    pub fn training(
        &self,
        real: Shared,
        more: Option<Shared>,
        manifest: &Manifest,
        seed: u64,
    ) -> Result<BoxDataset> {
        let mut parts = vec![real];
        parts.extend(more);
        let joined: Shared = Arc::new(Concat::new(parts)?);
        let augmented = Augmented::new(joined, manifest.augment.clone(), seed)?;
        Ok(BoxDataset::new(augmented))
    }

    /// What a generator learns from: the real training samples without end, but as they are, for it
    /// must paint what is there and not what augmentation made of it.
    pub fn unaugmented(&self) -> Result<BoxDataset> {
        let options = AugmentOptions {
            enabled: false,
            ..AugmentOptions::default()
        };
        Ok(BoxDataset::new(Augmented::new(self.train()?, options, 0)?))
    }

    /// Looks at every sample and every file of `backgrounds`: at the headers of the files, or with
    /// `pixels` at all of them.
    ///
    /// # Errors
    /// When the user stops it.
    pub fn examine(
        &self,
        backgrounds: &[PathBuf],
        reading: ReadOptions,
        pixels: bool,
        progress: &dyn Progress,
    ) -> Result<Examined> {
        let samples = self.items.len() as u64;
        let total = samples + backgrounds.len() as u64;
        let done = AtomicU64::new(0);
        let seen = Labels::default();
        let framed = AtomicU64::new(0);
        let look = |index: u64| -> Result<()> {
            let Some(file) = index.checked_sub(samples) else {
                self.raw.check(index)?;
                if pixels {
                    let sample = self.raw.sample(index)?;
                    seen.add(sample.mask.labels());
                    framed.fetch_add(u64::from(is_framed(sample.mask.view())), Ordering::Relaxed);
                }
                return Ok(());
            };
            let file = &backgrounds[file as usize];
            match pixels {
                true => open_image(file, reading).map(drop),
                false => read_header(file)?.check_size(file, reading.max_pixels),
            }
        };
        let name = |index: u64| match index.checked_sub(samples) {
            None => self.items[index as usize].id.to_string(),
            Some(file) => backgrounds[file as usize].display().to_string(),
        };
        let faults = (0..total).into_par_iter().map(|index| {
            if progress.cancelled() {
                return Err(Error::cancelled());
            }
            let fault = look(index).err().map(|error| (name(index), error));
            progress.progress(1 + done.fetch_add(1, Ordering::Relaxed), total, "");
            Ok(fault)
        });
        let faults: Vec<Option<(String, Error)>> = faults.collect::<Result<_>>()?;
        let mut faults: Vec<(String, Error)> = faults.into_iter().flatten().collect();
        // Where files are broken already, it is too early to say what none of them holds.
        if pixels && faults.is_empty() {
            let absent = self.absent(&seen);
            faults.extend(absent.map(|error| (self.info.name.to_string(), error)));
        }
        Ok(Examined {
            samples,
            faults,
            framed: framed.into_inner(),
        })
    }

    /// An error for the first class that no mask holds.
    fn absent(&self, seen: &Labels) -> Option<Error> {
        let class = self
            .info
            .classes
            .iter()
            .find(|class| !seen.holds(class.label))?;
        Some(Error::data(format!(
            "none of the {} masks of {} holds the class `{}`, which the dataset is said to have: \
             are its values others?",
            self.items.len(),
            self.info.name,
            class.name
        )))
    }

    /// SHA-256 over classes, ids, groups, images, masks and facts as the run works with them, so that a
    /// resumed run notices a changed file. Reads everything once, which also fills the cache.
    ///
    /// # Errors
    /// When a sample cannot be read, or a class of the dataset occurs in none.
    pub fn fingerprint(&self, progress: impl Fn(u64, u64) -> Result<()> + Sync) -> Result<String> {
        let total = self.items.len() as u64;
        let mut order: Vec<u64> = (0..total).collect();
        order.sort_by_key(|&i| self.items[i as usize].id.clone());
        let done = AtomicU64::new(0);
        let seen = Labels::default();
        // Collected before looking at errors, so that the first bad sample is reported, always.
        let digests: Vec<Result<[u8; 32]>> = order
            .into_par_iter()
            .map(|index| {
                let sample = self.prepared.sample(index)?;
                seen.add(sample.mask.labels());
                let digest = digest(&sample, &self.items[index as usize].group);
                progress(1 + done.fetch_add(1, Ordering::Relaxed), total)?;
                Ok(digest)
            })
            .collect();
        let mut hash = Sha256::new();
        for class in &self.info.classes {
            hash.update([class.label, u8::from(class.target)]);
            hash.update(class.name.as_bytes());
            hash.update([0]);
        }
        for digest in digests {
            hash.update(digest?);
        }
        if let Some(error) = self.absent(&seen) {
            return Err(error);
        }
        Ok(diffaug::files::hex(&hash.finalize()))
    }
}

/// What a look at every file showed.
pub struct Examined {
    /// How many samples there are.
    pub samples: u64,
    /// What is wrong, by id of the sample or name of the file.
    pub faults: Vec<(String, Error)>,
    /// Masks of which labels cover most of the border, as far as pixels were looked at.
    pub framed: u64,
}

/// The labels that occurred so far.
#[derive(Default)]
struct Labels([AtomicU64; 4]);

impl Labels {
    fn add(&self, labels: &[u8]) {
        let mut seen = [0u64; 4];
        for label in labels {
            seen[usize::from(label / 64)] |= 1 << (label % 64);
        }
        for (all, seen) in self.0.iter().zip(seen) {
            all.fetch_or(seen, Ordering::Relaxed);
        }
    }

    fn holds(&self, label: u8) -> bool {
        self.0[usize::from(label / 64)].load(Ordering::Relaxed) >> (label % 64) & 1 == 1
    }
}

/// Whether labels cover most of the border: then background and lesion may be exchanged.
fn is_framed(mask: MaskRef<'_>) -> bool {
    const MOST: f64 = 0.75;
    let width = mask.width() as usize;
    let rows = mask.labels().chunks_exact(width);
    let last = mask.height() as usize - 1;
    let (mut all, mut covered) = (0u32, 0u32);
    for (y, row) in rows.enumerate() {
        let step = if y == 0 || y == last {
            1
        } else {
            (width - 1).max(1)
        };
        for label in row.iter().step_by(step) {
            all += 1;
            covered += u32::from(*label != 0);
        }
    }
    f64::from(covered) > MOST * f64::from(all)
}

fn digest(sample: &Sample, group: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for text in [&sample.id, group] {
        hash.update(text);
        hash.update([0]);
    }
    for fact in sample.attributes.iter() {
        // Measures may differ in their last digits between processors.
        hash.update(format!("{}={:.3e}{}\0", fact.name, fact.number, fact.text));
    }
    for side in [sample.image.width(), sample.image.height()] {
        hash.update(side.to_le_bytes());
    }
    hash.update(sample.image.pixels());
    hash.update(sample.mask.labels());
    hash.finalize().into()
}
