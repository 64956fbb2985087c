//! How the lesions of each pool look: real training images, accepted and rejected synthetic ones.
//!
//! A validator that asks a segmenter is blind to blur and rewards contrast; so fine detail, contrast and
//! brightness of what it let pass are set beside those of real lesions. All are measured at the working
//! size (see [`diffaug::appearance`]), the synthetic ones as they were painted, before they were saved.

use diffaug::{
    Dataset, Image, Mask, Result,
    appearance::Appearance,
    metrics::{mean, std_dev},
    view::Shared,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The measures of a pool, with what a table calls them.
pub const SHOWN: [(&str, &str); 4] = [
    ("detail", "fine detail"),
    ("detail_ratio", "detail in / around"),
    ("contrast", "contrast"),
    ("brightness", "brightness"),
];

/// The lesions of all pools.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pools {
    /// Training images with a lesion.
    pub real: Pool,
    /// Synthetic images that were kept.
    pub accepted: Pool,
    /// Synthetic images that were finished and turned down.
    pub rejected: Pool,
}

/// The lesions of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// How many images have a lesion that can be measured.
    pub images: u64,
    /// Mean and spread of each measure.
    #[serde(flatten)]
    pub measures: BTreeMap<String, Spread>,
}

/// A measure over the images of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation.
    pub std: f64,
}

/// How a synthetic lesion looks, as a record keeps it; empty where it cannot be measured. The labels of
/// `wanted` are those of the lesion.
pub fn look(image: &Image, wanted: &Mask) -> BTreeMap<String, f64> {
    let wanted = wanted.view();
    let found = Appearance::of(image.view(), wanted, &wanted.classes());
    let named = found.iter().flat_map(Appearance::named);
    named
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Collects the looks of a pool.
#[derive(Debug, Default)]
pub struct Collected {
    images: u64,
    columns: BTreeMap<&'static str, Vec<f64>>,
}

impl Collected {
    /// Adds a lesion; one that could not be measured is left out.
    pub fn add(&mut self, look: &BTreeMap<String, f64>) {
        self.images += u64::from(!look.is_empty());
        for (name, _) in SHOWN {
            let values = self.columns.entry(name).or_default();
            values.extend(look.get(name));
        }
    }

    /// Mean and spread.
    pub fn pool(&self) -> Pool {
        let spread = |values: &[f64]| {
            Some(Spread {
                mean: mean(values)?,
                std: std_dev(values)?,
            })
        };
        let columns = self.columns.iter();
        Pool {
            images: self.images,
            measures: columns
                .filter_map(|(name, values)| Some(((*name).to_owned(), spread(values)?)))
                .collect(),
        }
    }
}

/// The lesions of real images, at the size of `train`.
///
/// # Errors
/// When a sample cannot be read.
pub fn real(train: &Shared, targets: &[u8]) -> Result<Pool> {
    let looks: Vec<Result<Option<Appearance>>> = (0..train.items()?.len() as u64)
        .into_par_iter()
        .map(|index| {
            let sample = train.sample(index)?;
            let (image, mask) = (sample.image.view(), sample.mask.view());
            Ok(Appearance::of(image, mask, targets))
        })
        .collect();
    let mut collected = Collected::default();
    for look in looks {
        if let Some(look) = look? {
            let named = look.named().into_iter();
            collected.add(
                &named
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            );
        }
    }
    Ok(collected.pool())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_mean_and_spread_of_what_can_be_measured() {
        let mut collected = Collected::default();
        let look = |detail: f64| BTreeMap::from([("detail".to_owned(), detail)]);
        for detail in [1.0, 3.0, 5.0] {
            collected.add(&look(detail));
        }
        collected.add(&BTreeMap::new());
        let pool = collected.pool();
        assert_eq!(pool.images, 3);
        let expected = Spread {
            mean: 3.0,
            std: 2.0,
        };
        assert_eq!(
            pool.measures,
            BTreeMap::from([("detail".to_owned(), expected)])
        );
        let json = serde_json::to_string(&pool).unwrap();
        assert_eq!(json, r#"{"images":3,"detail":{"mean":3.0,"std":2.0}}"#);
        assert_eq!(serde_json::from_str::<Pool>(&json).unwrap(), pool);
        assert_eq!(Collected::default().pool(), Pool::default());
    }

    #[test]
    fn the_look_of_a_blurred_lesion_has_less_detail() {
        let mut labels = vec![0; 32 * 32];
        labels.iter_mut().skip(300).take(200).for_each(|l| *l = 2);
        let mask = Mask::new(32, 32, labels).unwrap();
        let rough: Vec<u8> = (0..3 * 32 * 32).map(|i| 120 + (i * 7 % 31) as u8).collect();
        let rough = look(&Image::new(32, 32, rough).unwrap(), &mask);
        let flat = look(&Image::new(32, 32, vec![120; 3 * 32 * 32]).unwrap(), &mask);
        assert!(rough["detail"] > 1.0 && flat["detail"] < 1e-3);
        let none = Mask::new(32, 32, vec![0; 32 * 32]).unwrap();
        assert!(look(&Image::new(32, 32, vec![9; 3 * 32 * 32]).unwrap(), &none).is_empty());
    }
}
