//! A copy of a published dataset, looked at: whether it is whole, and what identifies it.

use crate::{
    failure::Failure,
    fingerprint::{self, Step as Each},
    registry::{Kind, Registry},
    session::Session,
};
use diffaug::{
    BoxDataset, Context, Dataset, Error, Item, Result, files, published::Published,
    split::natural_cmp,
};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// The option that names the folder of a dataset.
const ROOT: &str = "root";

/// What a copy of a dataset holds.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// What the plugin calls the dataset.
    pub dataset: String,
    /// How many images with masks there are.
    pub samples: u64,
    /// How many videos or patients they are of; 0 where the plugin does not tell.
    pub groups: u64,
    /// How many samples each part of the dataset has; empty where the plugin tells no parts.
    pub parts: BTreeMap<String, u64>,
    /// SHA-256 of the listing: of id, group and part of each sample, in natural order of the ids.
    pub listing_sha256: String,
    /// SHA-256 of the names and contents of all files below the folder.
    pub files_sha256: String,
    /// What was published, where the plugin states it.
    pub published: Option<Published>,
    /// What is wrong, by the id of a sample, or by the name of the dataset where the counts are not those
    /// published.
    pub faults: Vec<Fault>,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
pub struct Fault {
    /// The sample, or the dataset.
    pub id: String,
    /// What is wrong.
    pub error: String,
}

/// Opens the dataset `name` in the folder `root` and looks at every file; `options` are further options of
/// the plugin.
///
/// # Errors
/// When there is no such plugin or it reads no folder, the dataset cannot be listed, or the user stops it.
/// Faults of single samples and wrong counts are part of the answer.
pub fn verify(
    registry: &Registry,
    name: &str,
    root: &Path,
    options: &Map<String, Value>,
    session: &Session<'_>,
) -> Result<Verified, Failure> {
    let offer = registry.find::<BoxDataset>(name, "cpu")?;
    let schema: Value = serde_json::from_str(&(offer.entry.schema)()).map_err(Error::internal)?;
    if schema["properties"].get(ROOT).is_none() {
        return Err(Error::config(format!(
            "the {} `{name}` reads no folder: it has no option `{ROOT}`",
            BoxDataset::NAME
        ))
        .into());
    }
    if !root.is_dir() {
        let message = format!("`{}` is no folder", root.display());
        return Err(Error::data(message).into());
    }
    let mut options = options.clone();
    options.insert(ROOT.to_owned(), root.to_string_lossy().into());
    let dataset = offer.build(&options.into(), &Context::default())?;
    let info = dataset.info()?;
    let items: Vec<Item> = dataset.items()?.into_iter().collect();
    let mut verified = Verified {
        dataset: info.name.to_string(),
        samples: items.len() as u64,
        groups: distinct(&items),
        parts: parts(&items),
        listing_sha256: listing(&items),
        files_sha256: String::new(),
        published: Published::of(&schema),
        faults: check(&dataset, &items, session)?,
    };
    let differences = verified
        .published
        .iter()
        .flat_map(|p| verified.differences(p));
    let differences: Vec<String> = differences.collect();
    let as_fault = |error| Fault {
        id: verified.dataset.clone(),
        error,
    };
    let found: Vec<Fault> = differences.into_iter().map(as_fault).collect();
    verified.faults.extend(found);
    verified.files_sha256 = contents(root, session)?;
    Ok(verified)
}

impl Verified {
    /// What is not as published.
    fn differences(&self, published: &Published) -> Vec<String> {
        let groups = published
            .groups
            .map(|groups| ("groups", self.groups, groups));
        let counts = [Some(("images", self.samples, published.samples)), groups];
        let different = counts
            .into_iter()
            .flatten()
            .filter(|(_, found, wanted)| found != wanted);
        let sentence = |(what, found, wanted): (&str, u64, u64)| {
            format!("there are {found} {what}, but {wanted} were published")
        };
        different.map(sentence).collect()
    }
}

/// What is wrong with the files of each sample, in the order of the listing.
fn check(dataset: &BoxDataset, items: &[Item], session: &Session<'_>) -> Result<Vec<Fault>> {
    let step = session.begin("looking at every file");
    let (done, total) = (AtomicU64::new(0), items.len() as u64);
    let look = |(index, item): (usize, &Item)| {
        session.check_stopped()?;
        let fault = dataset.check(index as u64).err().map(|error| Fault {
            id: item.id.to_string(),
            error: error.to_string(),
        });
        step.progress(1 + done.fetch_add(1, Ordering::Relaxed), total, "");
        Ok(fault)
    };
    let faults: Vec<Option<Fault>> = items
        .par_iter()
        .enumerate()
        .map(look)
        .collect::<Result<_>>()?;
    step.finish(&format!("{total} samples"));
    Ok(faults.into_iter().flatten().collect())
}

fn distinct(items: &[Item]) -> u64 {
    let groups = items.iter().map(|item| item.group.as_str());
    let groups: BTreeSet<&str> = groups.filter(|group| !group.is_empty()).collect();
    groups.len() as u64
}

fn parts(items: &[Item]) -> BTreeMap<String, u64> {
    let mut parts = BTreeMap::new();
    for item in items.iter().filter(|item| !item.part.is_empty()) {
        *parts.entry(item.part.to_string()).or_insert(0) += 1;
    }
    parts
}

/// Hash of id, group and part of each sample, whatever order they are listed in.
fn listing(items: &[Item]) -> String {
    let mut sorted: Vec<&Item> = items.iter().collect();
    sorted.sort_by(|a, b| natural_cmp(&a.id, &b.id).then_with(|| a.id.cmp(&b.id)));
    let mut hash = Sha256::new();
    for item in sorted {
        for text in [&item.id, &item.group, &item.part] {
            hash.update(text);
            hash.update([0]);
        }
    }
    files::hex(&hash.finalize())
}

fn contents(root: &Path, session: &Session<'_>) -> Result<String> {
    let step = session.begin("hashing every file");
    let stop = || session.check_stopped();
    let found = fingerprint::of_all(root, &Each::new(&stop))?;
    step.finish("");
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{DatasetInfo, Sample, Silent, prelude::RVec};

    /// Two samples, of which the second is broken.
    struct Two;

    impl Dataset for Two {
        fn info(&self) -> Result<DatasetInfo> {
            Ok(DatasetInfo::single_class("two", "dot"))
        }
        fn items(&self) -> Result<RVec<Item>> {
            Ok(items().into())
        }
        fn check(&self, index: u64) -> Result<()> {
            match index {
                0 => Ok(()),
                _ => Err(Error::data("`b.png` is empty")),
            }
        }
        fn sample(&self, _: u64) -> Result<Sample> {
            Err(Error::internal("nothing is decoded"))
        }
    }

    fn items() -> Vec<Item> {
        let mut items = vec![Item::new("10"), Item::new("2")];
        items[0].group = "a".into();
        items[1].part = "train".into();
        items
    }

    #[test]
    fn faults_name_the_sample() {
        let dataset = BoxDataset::new(Two);
        let faults = check(&dataset, &items(), &Session::new(&Silent)).unwrap();
        assert_eq!(faults.len(), 1);
        assert_eq!(
            (faults[0].id.as_str(), faults[0].error.as_str()),
            ("2", "`b.png` is empty")
        );
    }

    #[test]
    fn the_hash_of_a_listing_does_not_depend_on_its_order() {
        let (mut turned, mut other) = (items(), items());
        turned.reverse();
        assert_eq!(listing(&items()), listing(&turned));
        other[1].group = "b".into();
        assert_ne!(listing(&items()), listing(&other));
        // SHA-256 of "2\0\0train\010\0a\0\0", by sha256sum.
        assert_eq!(
            listing(&items()),
            "ac9f667bf26d0117a8c7ee0b73142a1580fd911f645a0f8007a18d788e075257"
        );
        assert_eq!(
            (distinct(&items()), parts(&items())),
            (1, [("train".to_owned(), 1)].into())
        );
    }

    #[test]
    fn counts_are_compared_with_those_published() {
        let mut verified = Verified {
            dataset: "two".into(),
            samples: 2,
            groups: 1,
            parts: BTreeMap::new(),
            listing_sha256: String::new(),
            files_sha256: String::new(),
            published: None,
            faults: Vec::new(),
        };
        let published = Published {
            samples: 3,
            groups: Some(1),
            homepage: String::new(),
            terms: String::new(),
        };
        let sentence = "there are 2 images, but 3 were published";
        assert_eq!(verified.differences(&published), [sentence]);
        (verified.samples, verified.groups) = (3, 2);
        let sentence = "there are 2 groups, but 1 were published";
        assert_eq!(verified.differences(&published), [sentence]);
        verified.groups = 1;
        assert!(verified.differences(&published).is_empty());
    }
}
