//! What tables of an experiment show of datasets and networks: what they hold, how large they are.

use super::{planning::open, scoring};
use crate::{
    failure::Failure,
    manifest::{Document, Manifest},
    registry::Registry,
    session::Session,
    slots,
};
use diffaug::{Dataset, lesion::SizeGroup};
use std::collections::BTreeMap;

/// What a dataset holds.
pub struct Statistics {
    /// Its name.
    pub name: String,
    /// The names of the classes that are painted and scored.
    pub targets: Vec<String>,
    /// Images to train, to validate and to test.
    pub counts: [usize; 3],
    /// Training images that show a target.
    pub with_target: u64,
    /// How many training images have a target of each size.
    pub sizes: Vec<(String, u64)>,
}

/// Opens and divides the dataset of a manifest and reads its training images.
///
/// # Errors
/// When a stage, an option or an image cannot be used.
pub fn statistics(
    manifest: &Manifest,
    document: &Document,
    registry: &Registry,
    session: &Session<'_>,
) -> Result<Statistics, Failure> {
    let (_, data) = open(manifest, document, registry)?;
    let step = session.begin(&format!("reading {}", data.info.name));
    let train = data.train()?;
    let total = data.counts()[0] as u64;
    let mut sizes: BTreeMap<SizeGroup, u64> = BTreeMap::new();
    for index in 0..total {
        session.check_stopped()?;
        let area = train.sample(index)?.attributes.number("area");
        if let Some(group) = area.and_then(scoring::size_group) {
            *sizes.entry(group).or_default() += 1;
        }
        step.progress(index + 1, total, "");
    }
    step.finish(&format!("{total} training images"));
    let named = |group: SizeGroup| {
        let count = sizes.get(&group).copied().unwrap_or(0);
        (scoring::size_name(group), count)
    };
    let classes = data.info.classes.iter().filter(|class| class.target);
    Ok(Statistics {
        name: data.info.name.to_string(),
        targets: classes.map(|class| class.name.to_string()).collect(),
        counts: data.counts(),
        with_target: sizes.values().sum(),
        sizes: SizeGroup::ALL.map(named).to_vec(),
    })
}

/// How many parameters the networks of each stage of a manifest have, by its table; without those that do not
/// say.
///
/// # Errors
/// When a stage does not exist.
pub fn parameters(
    manifest: &Manifest,
    document: &Document,
    registry: &Registry,
) -> Result<BTreeMap<String, u64>, Failure> {
    let wire = super::wire::Wire {
        registry,
        document,
        manifest,
    };
    let mut all = BTreeMap::new();
    for slot in slots::of_manifest(manifest) {
        let Some(table) = slot.table(manifest) else {
            continue;
        };
        let offer = wire.offer(&slot, table)?;
        // What cannot be looked at does not say, and the run itself says why.
        let Ok(found) = offer.inspect(&table.json(), &wire.context(manifest.seed)) else {
            continue;
        };
        if !found.components.is_empty() {
            let count = found.components.iter().map(|one| one.parameters).sum();
            all.insert(slot.at.into_owned(), count);
        }
    }
    Ok(all)
}
