//! Where an image of an export comes from.
//!
//! `provenance.jsonl` has a line for each image; the PNG file itself holds the same facts, without the names
//! of files, as JSON in the text `diffaug`:
//!
//! | field | what it says |
//! | --- | --- |
//! | `file`, `label` | the files, relative to the folder of the export (in `provenance.jsonl` alone) |
//! | `part` | `train`, `validation` or `test` |
//! | `synthetic` | whether it was painted |
//! | `id` | the id of the sample, or of the candidate |
//! | `source` | the id of the image that it was painted on; for a real one its own |
//! | `dataset`, `dataset_sha256` | the dataset of the run, and its hash |
//! | `run`, `lock_sha256` | the name of the run, and the hash of its `lock.json` |
//! | `diffaug` | the version of the program that made the run |
//!
//! And of a synthetic image alone:
//!
//! | field | what it says |
//! | --- | --- |
//! | `digitalSourceType` | IPTC's term for what a trained model made, as C2PA manifests use it |
//! | `prompt`, `negative`, `seed` | what it was painted from |
//! | `score`, `classes`, `measures` | the validator's figure (of `iou` the IoU), by class label, and what else it measured |
//! | `generator`, `generator_sha256` | the plugin, and the hashes of its weights; the same for `start` where there is one |
//! | `validator`, `judge_sha256` | the plugin, and the hashes of the weights of the segmenters that it asked |
//!
//! The C2PA term is a note, not a signed manifest.

use crate::case::Case;
use diffaug::Result;
use diffaug_run::{
    manifest::Manifest,
    reader::{Run, Weights},
};
use serde_json::{Map, Value, json};

/// IPTC's term for media that a trained model made.
pub const TRAINED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";

/// What holds for every image of a run.
pub(crate) struct Provenance {
    every: Map<String, Value>,
    synthetic: Map<String, Value>,
}

impl Provenance {
    /// Of the run of `manifest`.
    ///
    /// # Errors
    /// When a file of the run cannot be read.
    pub fn of(run: &Run, manifest: &Manifest) -> Result<Self> {
        let every = json!({
            "dataset": run.dataset(),
            "dataset_sha256": run.dataset_sha256(),
            "run": manifest.name,
            "lock_sha256": run.lock_sha256()?,
            "diffaug": run.version(),
        });
        let mut synthetic = json!({
            "generator": manifest.generator.name,
            "generator_sha256": run.weights(Weights::Generator)?,
            "validator": manifest.validator.name,
            "judge_sha256": run.weights(Weights::Judge)?,
        });
        if let Some(start) = &manifest.synthesis.start {
            synthetic["start"] = json!(start.name);
            synthetic["start_sha256"] = json!(run.weights(Weights::Start)?);
        }
        Ok(Provenance {
            every: object(every),
            synthetic: object(synthetic),
        })
    }

    /// What is known of an image, without the names of files.
    pub fn facts(&self, case: &Case) -> Map<String, Value> {
        let id = case.sample.id.as_str();
        let source = case.record.as_ref().map_or(id, |record| &record.source);
        let mut facts = object(json!({
            "part": case.part.name(),
            "synthetic": case.is_synthetic(),
            "id": id,
            "source": source,
        }));
        if let Some(record) = &case.record {
            facts.extend(object(json!({
                "digitalSourceType": TRAINED,
                "prompt": record.prompt,
                "negative": record.negative,
                "seed": record.seed,
                "score": record.score,
                "classes": record.classes,
                "measures": record.measures,
            })));
            facts.extend(self.synthetic.clone());
        }
        facts.extend(self.every.clone());
        facts
    }
}

/// The fields of a JSON object.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
