//! Datasets made of datasets: what the host hands to stages in place of the whole.
//!
//! A stage never sees more than its view holds; that is how test data stays out of training.

use crate::{
    appearance::Appearance,
    data::*,
    error::{Error, Result},
    image::{resize_image, resize_mask},
    lesion,
    stage::Dataset,
};
use abi_stable::std_types::RVec;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// A dataset that several views share.
pub type Shared = Arc<dyn Dataset>;

impl Dataset for Shared {
    fn info(&self) -> Result<DatasetInfo> {
        (**self).info()
    }
    fn items(&self) -> Result<RVec<Item>> {
        (**self).items()
    }
    fn check(&self, index: u64) -> Result<()> {
        (**self).check(index)
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        (**self).sample(index)
    }
}

fn beyond(index: u64, len: usize) -> Error {
    Error::data(format!("sample {index} was asked for, but there are {len}"))
}

/// Some samples of a dataset, in a stated order.
pub struct Subset {
    inner: Shared,
    indices: Vec<u64>,
    items: Vec<Item>,
}

impl Subset {
    /// The samples of `inner` at `indices`.
    ///
    /// # Errors
    /// When the listing fails or an index is beyond it.
    pub fn new(inner: Shared, indices: Vec<u64>) -> Result<Self> {
        let all = inner.items()?;
        let items = indices
            .iter()
            .map(|&i| {
                let item = usize::try_from(i).ok().and_then(|i| all.get(i));
                item.cloned().ok_or_else(|| beyond(i, all.len()))
            })
            .collect::<Result<_>>()?;
        Ok(Subset {
            inner,
            indices,
            items,
        })
    }
}

impl Dataset for Subset {
    fn info(&self) -> Result<DatasetInfo> {
        self.inner.info()
    }
    fn items(&self) -> Result<RVec<Item>> {
        Ok(self.items.clone().into())
    }
    fn check(&self, index: u64) -> Result<()> {
        self.inner.check(self.inner_index(index)?)
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        self.inner.sample(self.inner_index(index)?)
    }
}

impl Subset {
    fn inner_index(&self, index: u64) -> Result<u64> {
        let inner = usize::try_from(index)
            .ok()
            .and_then(|i| self.indices.get(i));
        inner
            .copied()
            .ok_or_else(|| beyond(index, self.indices.len()))
    }
}

/// Several datasets of the same classes, one after the other.
pub struct Concat {
    parts: Vec<(Shared, u64)>,
}

impl Concat {
    /// Joins `parts`; name and classes are those of the first.
    ///
    /// # Errors
    /// When there is no part or a listing fails.
    pub fn new(parts: Vec<Shared>) -> Result<Self> {
        if parts.is_empty() {
            return Err(Error::internal("a join of no datasets"));
        }
        let parts = parts
            .into_iter()
            .map(|part| {
                let len = part.items()?.len() as u64;
                Ok((part, len))
            })
            .collect::<Result<_>>()?;
        Ok(Concat { parts })
    }
}

impl Dataset for Concat {
    fn info(&self) -> Result<DatasetInfo> {
        self.parts[0].0.info()
    }
    fn items(&self) -> Result<RVec<Item>> {
        let mut all = RVec::new();
        for (part, _) in &self.parts {
            all.extend(part.items()?);
        }
        Ok(all)
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        let mut rest = index;
        for (part, len) in &self.parts {
            if rest < *len {
                return part.sample(rest);
            }
            rest -= len;
        }
        let all: u64 = self.parts.iter().map(|(_, len)| len).sum();
        Err(beyond(index, all as usize))
    }
}

/// A dataset as the run works with it: brought to one size, measured, and kept in memory as far as
/// a budget allows (decoding is the slow part of small trainings).
pub struct Prepared {
    inner: Shared,
    targets: Vec<u8>,
    labels: [bool; 256],
    size: Option<(u32, u32)>,
    measures: bool,
    slots: Vec<OnceLock<Sample>>,
    budget: u64,
    used: AtomicU64,
}

impl Prepared {
    /// Prepares `inner`: images and masks are resized to `size` (width, height) where given, and at
    /// most about `budget` bytes of samples are kept.
    ///
    /// # Errors
    /// When the dataset's listing or description fails, or no class is a target.
    pub fn new(inner: Shared, size: Option<(u32, u32)>, budget: u64) -> Result<Self> {
        let info = inner.info()?;
        let targets = info.targets();
        if targets.is_empty() {
            return Err(Error::data(format!(
                "dataset `{}` names no target class",
                info.name
            )));
        }
        let mut labels = [false; 256];
        labels[0] = true;
        for class in &info.classes {
            labels[class.label as usize] = true;
        }
        let slots = (0..inner.items()?.len()).map(|_| OnceLock::new()).collect();
        Ok(Prepared {
            inner,
            targets,
            labels,
            size,
            measures: true,
            slots,
            budget,
            used: AtomicU64::new(0),
        })
    }

    /// The samples of `inner` at their own size, checked and with the plugin's facts alone; none is kept.
    ///
    /// # Errors
    /// As for [`Prepared::new`].
    pub fn originals(inner: Shared) -> Result<Self> {
        Ok(Prepared {
            measures: false,
            ..Prepared::new(inner, None, 0)?
        })
    }

    fn load(&self, index: u64) -> Result<Sample> {
        let mut sample = self.inner.sample(index)?;
        self.check(&sample)?;
        if let Some((width, height)) = self.size {
            sample.image = resize_image(sample.image.view(), width, height);
            sample.mask = resize_mask(sample.mask.view(), width, height);
        }
        if !self.measures {
            return Ok(sample);
        }
        let (image, mask) = (sample.image.view(), sample.mask.view());
        // The plugin's own facts win over what is measured.
        let mut attributes = lesion::measure(mask, &self.targets);
        if let Some(appearance) = Appearance::of(image, mask, &self.targets) {
            attributes.extend(&appearance.facts());
        }
        attributes.extend(&sample.attributes);
        sample.attributes = attributes;
        Ok(sample)
    }

    /// A dataset plugin may be anybody's: what it hands over is checked once, here.
    fn check(&self, sample: &Sample) -> Result<()> {
        let Sample {
            id, image, mask, ..
        } = sample;
        if image.size() != mask.size() {
            return Err(Error::data(format!(
                "sample `{id}`: the mask is {}x{}, but the image is {}x{}",
                mask.width(),
                mask.height(),
                image.width(),
                image.height()
            )));
        }
        let stranger = mask
            .labels()
            .iter()
            .find(|&&label| !self.labels[label as usize]);
        match stranger {
            Some(label) => Err(Error::data(format!(
                "sample `{id}`: the mask holds label {label}, which is no class of the dataset"
            ))),
            None => Ok(()),
        }
    }
}

impl Dataset for Prepared {
    fn info(&self) -> Result<DatasetInfo> {
        self.inner.info()
    }
    fn items(&self) -> Result<RVec<Item>> {
        self.inner.items()
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        let slot = usize::try_from(index).ok().and_then(|i| self.slots.get(i));
        let slot = slot.ok_or_else(|| beyond(index, self.slots.len()))?;
        if let Some(sample) = slot.get() {
            return Ok(sample.clone());
        }
        let sample = self.load(index)?;
        let bytes = 4 * u64::from(sample.image.width()) * u64::from(sample.image.height());
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.budget {
            // Another thread may have been faster; both hold the same sample.
            let _ = slot.set(sample.clone());
        } else {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(sample)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Sample `i` is a 4x4 image of grey value `i` whose mask holds label `label` in one pixel.
    struct Grey {
        count: u64,
        label: u8,
    }

    impl Dataset for Grey {
        fn info(&self) -> Result<DatasetInfo> {
            Ok(DatasetInfo::single_class("grey", "dot"))
        }
        fn items(&self) -> Result<RVec<Item>> {
            Ok((0..self.count).map(|i| Item::new(&i.to_string())).collect())
        }
        fn sample(&self, index: u64) -> Result<Sample> {
            let mut labels = vec![0; 16];
            labels[5] = self.label;
            Ok(Sample {
                id: index.to_string().into(),
                image: Image::new(4, 4, vec![index as u8; 48])?,
                mask: Mask::new(4, 4, labels)?,
                attributes: Attributes::new(),
            })
        }
    }

    fn grey(count: u64) -> Shared {
        Arc::new(Grey { count, label: 1 })
    }

    #[test]
    fn a_subset_holds_what_was_chosen_and_no_more() {
        let view = Subset::new(grey(5), vec![4, 1]).unwrap();
        let ids: Vec<_> = view.items().unwrap().into_iter().map(|i| i.id).collect();
        assert_eq!(ids, ["4", "1"]);
        assert_eq!(view.sample(1).unwrap().id, "1");
        assert!(view.sample(2).is_err());
        assert!(Subset::new(grey(5), vec![5]).is_err());
    }

    #[test]
    fn a_join_counts_through() {
        let join = Concat::new(vec![grey(2), grey(3)]).unwrap();
        assert_eq!(join.items().unwrap().len(), 5);
        assert_eq!(join.sample(4).unwrap().id, "2");
        assert_eq!(
            join.sample(5).unwrap_err().to_string(),
            "sample 5 was asked for, but there are 5"
        );
    }

    #[test]
    fn prepared_samples_are_resized_and_measured() {
        let view = Prepared::new(grey(2), Some((8, 8)), 1 << 20).unwrap();
        let sample = view.sample(1).unwrap();
        assert_eq!(sample.image.size(), (8, 8));
        assert_eq!(sample.attributes.number("area"), Some(1.0 / 16.0));
        assert_eq!(view.sample(1).unwrap(), sample);
    }

    #[test]
    fn what_a_dataset_states_wins_over_what_is_measured() {
        /// States the contrast of its samples.
        struct Stating(Shared);
        impl Dataset for Stating {
            fn info(&self) -> Result<DatasetInfo> {
                self.0.info()
            }
            fn items(&self) -> Result<RVec<Item>> {
                self.0.items()
            }
            fn sample(&self, index: u64) -> Result<Sample> {
                let mut sample = self.0.sample(index)?;
                sample.attributes.set_number("contrast", 7.0);
                Ok(sample)
            }
        }
        let view = Prepared::new(Arc::new(Stating(grey(200))), Some((8, 8)), 0).unwrap();
        let facts = view.sample(100).unwrap().attributes;
        assert_eq!(facts.number("contrast"), Some(7.0));
        assert_eq!(facts.number("brightness"), Some(100.0));
    }

    #[test]
    fn a_label_that_is_no_class_is_refused() {
        let stray: Shared = Arc::new(Grey { count: 1, label: 7 });
        let view = Prepared::new(stray, None, 0).unwrap();
        assert_eq!(
            view.sample(0).unwrap_err().to_string(),
            "sample `0`: the mask holds label 7, which is no class of the dataset"
        );
    }
}
