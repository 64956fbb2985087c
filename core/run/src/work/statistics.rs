//! What a dataset holds, as a table of datasets shows it.

use super::{planning::open, scoring};
use crate::{
    failure::Failure,
    manifest::{Document, Manifest},
    registry::Registry,
    session::Session,
    slots,
};
use diffaug::{Dataset, Inspection, lesion::SizeGroup};
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
    let targets = data.targets();
    let mut sizes: BTreeMap<SizeGroup, u64> = BTreeMap::new();
    for index in 0..total {
        session.check_stopped()?;
        let mask = train.sample(index)?.mask;
        let shown = mask.labels().iter().filter(|label| targets.contains(label));
        let area = shown.count() as f64 / mask.labels().len() as f64;
        if let Some(group) = scoring::size_group(area) {
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

/// How many parameters the networks of each stage of a manifest have, by its table; 0 where a stage does not
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
        // What cannot be looked at has no known size, and the run itself says why.
        let found = offer.inspect(&table.json(), &wire.context(manifest.seed));
        let found = found.unwrap_or_else(|_| Inspection::default());
        let count = found.components.iter().map(|one| one.parameters).sum();
        all.insert(slot.at.into_owned(), count);
    }
    Ok(all)
}
