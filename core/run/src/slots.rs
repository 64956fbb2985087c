//! Every table of a manifest that holds a stage, listed once.

use crate::manifest::{Manifest, StageTable};
use std::borrow::Cow;

/// The table of the dataset.
pub const DATASET: &str = "dataset";
/// The table of the prompt bank.
pub const PROMPTS: &str = "prompts";
/// The table of the generator.
pub const GENERATOR: &str = "generator";
/// The table of the generator that paints what the generator begins with.
pub const START: &str = "synthesis.start";
/// The table of the validator.
pub const VALIDATOR: &str = "validator";
/// The table of the segmenter that the validator asks.
pub const SEGMENTER: &str = "segmenter";
/// The table of the segmenter that is trained and scored in the end.
pub const DOWNSTREAM: &str = "evaluate.segmenter";
/// The table of the tables of measures.
pub const MEASURES: &str = "evaluate.measures";
/// What kind of stage each of them holds.
pub const MEASURE: &str = "measure";

/// A table that holds a stage.
#[derive(Clone)]
pub struct Slot {
    /// Its path in the manifest, with dots.
    pub at: Cow<'static, str>,
    /// The kind of its stage: `dataset`, `prompts`, `generator`, `segmenter`, `validator` or `measure`.
    pub kind: &'static str,
    /// What the manifest has there; `None` for a measure, which is found by its name.
    table: Option<fn(&Manifest) -> Option<&StageTable>>,
    /// Whether a run without synthetic images does without it.
    paints: bool,
}

/// Every slot that each manifest has, in the order in which a run needs them.
pub const SLOTS: [Slot; 7] = [
    slot(DATASET, "dataset", |m| Some(&m.dataset), false),
    slot(PROMPTS, "prompts", |m| Some(&m.prompts), true),
    slot(GENERATOR, "generator", |m| Some(&m.generator), true),
    slot(START, "generator", |m| m.synthesis.start.as_ref(), true),
    slot(VALIDATOR, "validator", |m| Some(&m.validator), true),
    slot(SEGMENTER, "segmenter", |m| Some(&m.segmenter), true),
    slot(
        DOWNSTREAM,
        "segmenter",
        |m| m.evaluate.segmenter.as_ref(),
        false,
    ),
];

const fn slot(
    at: &'static str,
    kind: &'static str,
    table: fn(&Manifest) -> Option<&StageTable>,
    paints: bool,
) -> Slot {
    Slot {
        at: Cow::Borrowed(at),
        kind,
        table: Some(table),
        paints,
    }
}

impl Slot {
    /// The slot of the measure that a manifest calls `name`.
    pub fn of_measure(name: &str) -> Self {
        Slot {
            at: format!("{MEASURES}.{name}").into(),
            kind: MEASURE,
            table: None,
            paints: false,
        }
    }

    /// What `manifest` has there.
    pub fn table<'a>(&self, manifest: &'a Manifest) -> Option<&'a StageTable> {
        match self.table {
            Some(table) => table(manifest),
            None => {
                let name = self.at.strip_prefix(MEASURES)?.strip_prefix('.')?;
                manifest.evaluate.measures.get(name)
            }
        }
    }

    /// Whether a run of `manifest` needs the stage. What is trained in the end is in the place of the
    /// validator's segmenter where the manifest gives no other.
    pub fn is_needed(&self, manifest: &Manifest) -> bool {
        let shared = self.at == SEGMENTER && manifest.evaluate.segmenter.is_none();
        self.table(manifest).is_some() && (self.is_used(manifest) || shared)
    }

    /// Whether `manifest`, which may paint nothing, uses the stage under this path.
    pub fn is_used(&self, manifest: &Manifest) -> bool {
        !self.paints || manifest.paints()
    }

    /// Where a JSON schema of manifests describes the table.
    pub fn pointer(&self) -> String {
        format!("/properties/{}", self.at.replace('.', "/properties/"))
    }
}

/// The slots of `manifest`: [`SLOTS`] and one for each of its measures.
pub fn of_manifest(manifest: &Manifest) -> impl Iterator<Item = Slot> {
    let measures = manifest.evaluate.measures.keys();
    let measures = measures.map(|name| Slot::of_measure(name));
    SLOTS.into_iter().chain(measures)
}

/// The stages of a run by the paths that `lock.json` has for them: as [`of_manifest`], but with what is trained
/// in the end wherever it stands.
pub fn of_run(manifest: &Manifest) -> impl Iterator<Item = (Slot, &StageTable)> {
    of_manifest(manifest).filter_map(|slot| {
        let table = match &*slot.at {
            DOWNSTREAM => manifest.downstream(),
            _ => slot.table(manifest)?,
        };
        Some((slot, table))
    })
}
