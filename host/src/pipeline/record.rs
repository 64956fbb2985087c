//! What is written down of a candidate, and what many candidates add up to.

use diffaug::{AttributeKind, Attributes};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A line of the journal: what became of a candidate. `file_name` comes first, as the imagefolder
/// loader of Hugging Face `datasets` expects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The image, relative to `synthetic/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
    /// Its mask, relative to `synthetic/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_file_name: Option<String>,
    /// The candidate.
    pub id: String,
    /// Position in the run's order.
    pub index: u64,
    /// The background.
    pub source: String,
    /// Which of the background's candidates.
    pub variant: u32,
    /// Whether nothing was painted; `reason` says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Seed of the generator.
    #[serde(default)]
    pub seed: u64,
    /// What was to be painted.
    #[serde(default)]
    pub prompt: String,
    /// What was to be avoided.
    #[serde(default)]
    pub negative: String,
    /// Properties that the prompt speaks of.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The validator's figure.
    #[serde(default)]
    pub score: f64,
    /// Why it was turned down, or why nothing was painted; empty when accepted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Further measurements of the validator.
    #[serde(default)]
    pub measures: Map<String, Value>,
    /// Facts of the wanted mask.
    #[serde(default)]
    pub attributes: Map<String, Value>,
}

impl Record {
    /// Whether the image was kept.
    pub fn accepted(&self) -> bool {
        self.file_name.is_some()
    }

    /// Whether anything was painted.
    pub fn painted(&self) -> bool {
        !self.skipped
    }
}

/// What the synthesis came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// How many accepted images were wanted.
    pub wanted: u64,
    /// How many were painted.
    pub candidates: u64,
    /// How many were kept.
    pub accepted: u64,
    /// How many were turned down.
    pub rejected: u64,
    /// Backgrounds on which nothing could be placed.
    pub skipped: u64,
    /// accepted / candidates.
    pub acceptance: Option<f64>,
    /// Mean score of what was kept.
    pub score_accepted: Option<f64>,
    /// Mean score of what was turned down.
    pub score_rejected: Option<f64>,
    /// Acceptance by flags of the wanted masks (`small`) and by tags of the prompts.
    pub by_group: BTreeMap<String, Group>,
}

/// Acceptance within a group.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Group {
    /// How many were painted.
    pub candidates: u64,
    /// How many were kept.
    pub accepted: u64,
}

/// Adds up records to a [`Summary`].
#[derive(Default)]
pub struct Tally {
    records: u64,
    /// Number and sum of scores: rejected, accepted.
    scores: [(u64, f64); 2],
    by_group: BTreeMap<String, Group>,
}

impl Tally {
    /// Adds a record.
    pub fn add(&mut self, record: &Record) {
        self.records += 1;
        if !record.painted() {
            return;
        }
        let (count, sum) = &mut self.scores[usize::from(record.accepted())];
        *count += 1;
        *sum += record.score;
        let flags = record.attributes.iter();
        let flags = flags.filter(|(_, value)| **value == Value::Bool(true));
        let tags = record.tags.iter().map(|tag| format!("prompt: {tag}"));
        for name in flags.map(|(name, _)| name.clone()).chain(tags) {
            let group = self.by_group.entry(name).or_default();
            group.candidates += 1;
            group.accepted += u64::from(record.accepted());
        }
    }

    /// What was added up.
    pub fn summary(self, wanted: u64) -> Summary {
        let [(rejected, bad), (accepted, good)] = self.scores;
        let candidates = accepted + rejected;
        let share = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        Summary {
            wanted,
            candidates,
            accepted,
            rejected,
            skipped: self.records - candidates,
            acceptance: share(accepted as f64, candidates),
            score_accepted: share(good, accepted),
            score_rejected: share(bad, rejected),
            by_group: self.by_group,
        }
    }
}

/// Facts as a JSON object.
pub fn to_json(attributes: &Attributes) -> Map<String, Value> {
    attributes
        .iter()
        .map(|a| {
            let value = match a.kind {
                AttributeKind::Number => json!(a.number),
                AttributeKind::Flag => json!(a.number != 0.0),
                AttributeKind::Text => json!(a.text.as_str()),
            };
            (a.name.to_string(), value)
        })
        .collect()
}
