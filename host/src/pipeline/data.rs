//! The dataset as the run sees it: opened, divided, and handed out as views.
//!
//! Stages get [`Data::train`] and [`Data::validation`]; the test part leaves this file through
//! [`Data::test`] alone, which only the scoring calls.

use crate::manifest::Manifest;
use diffaug::{
    BoxDataset, Dataset, DatasetInfo, Item, Result, Sample,
    augment::{AugmentOptions, Augmented},
    split::{Split, split},
    view::{Concat, Prepared, Shared, Subset},
};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::sync::Arc;

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
    /// When the listing, the split or a class list cannot be used.
    pub fn open(dataset: BoxDataset, manifest: &Manifest) -> Result<Self> {
        let raw: Shared = Arc::new(dataset);
        let info = raw.info()?;
        let items: Vec<Item> = raw.items()?.into_iter().collect();
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

    /// SHA-256 over ids, images and masks as the run works with them, so that a resumed run notices
    /// a changed file. Reads everything once, which also fills the cache.
    ///
    /// # Errors
    /// When a sample cannot be read.
    pub fn fingerprint(&self, progress: impl Fn(u64, u64) -> Result<()> + Sync) -> Result<String> {
        let total = self.items.len() as u64;
        let mut order: Vec<u64> = (0..total).collect();
        order.sort_by_key(|&i| self.items[i as usize].id.clone());
        let done = std::sync::atomic::AtomicU64::new(0);
        // Collected before looking at errors, so that the first bad sample is reported, always.
        let digests: Vec<Result<[u8; 32]>> = order
            .into_par_iter()
            .map(|index| {
                let digest = digest(&self.prepared.sample(index)?);
                let done = 1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                progress(done, total)?;
                Ok(digest)
            })
            .collect();
        let mut hash = Sha256::new();
        for digest in digests {
            hash.update(digest?);
        }
        Ok(crate::files::hex(&hash.finalize()))
    }
}

fn digest(sample: &Sample) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(sample.id.as_bytes());
    for side in [sample.image.width(), sample.image.height()] {
        hash.update(side.to_le_bytes());
    }
    hash.update(sample.image.pixels());
    hash.update(sample.mask.labels());
    hash.finalize().into()
}
