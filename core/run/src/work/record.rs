//! What is written down of a candidate, and what many candidates add up to.

use super::{
    candidates::{PlannedCandidate, Skipped},
    judging::Judged,
    placing::bounds,
    pool_measures::{self, Pools},
    sizes::{Size, group, sizes},
};
use crate::{journal::Line, layout, manifest::Preview};
use diffaug::{
    AttributeKind, Attributes, DatasetInfo, MaskRef, Verdict,
    metrics::mean,
    prelude::{ROption, RString, RVec},
};
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
    /// Whether nothing was painted for there were enough lesions of its size.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passed_over: bool,
    /// The group that the wanted lesion's size belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Boxes around the healthy holes that were painted besides, `[x0, y0, x1, y1]` in pixels, the
    /// last two exclusive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decoys: Vec<[u32; 4]>,
    /// The score of the preview, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<f64>,
    /// Whether the candidate was given up at the preview.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
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
    /// What the figure had to be above, if that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Whether it failed whatever its figure.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fails_otherwise: bool,
    /// The figure of each class that was compared, by label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<u8, f64>,
    /// Why it was turned down, or why nothing was painted; empty when accepted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Further measurements of the validator.
    #[serde(default)]
    pub measures: Map<String, Value>,
    /// Facts of the wanted lesion.
    #[serde(default)]
    pub attributes: Map<String, Value>,
    /// How the painted lesion looks; empty where it was given up or cannot be measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub look: BTreeMap<String, f64>,
}

impl Record {
    /// Of a candidate that was painted and judged.
    pub fn of(index: u64, candidate: &PlannedCandidate, outcome: &Judged) -> Record {
        let verdict = &outcome.verdict;
        let file = |folder: &str| {
            let name = layout::image(index);
            verdict.accepted.then(|| format!("{folder}/{name}"))
        };
        Record {
            file_name: file(layout::IMAGES),
            mask_file_name: file(layout::MASKS),
            id: candidate.id.clone(),
            index,
            source: candidate.source.clone(),
            variant: candidate.variant,
            skipped: false,
            passed_over: false,
            size: Some(group(candidate.wanted.view()).name().to_owned()),
            decoys: match &outcome.image {
                Some(_) => candidate.decoys.iter().map(|d| bounds(d.view())).collect(),
                None => Vec::new(),
            },
            preview: outcome.preview,
            given_up: outcome.image.is_none(),
            seed: candidate.seed,
            prompt: candidate.prompt.positive.to_string(),
            negative: candidate.prompt.negative.to_string(),
            tags: candidate
                .prompt
                .tags
                .iter()
                .map(|t| t.to_string())
                .collect(),
            score: verdict.score,
            limit: verdict.limit.into_option(),
            fails_otherwise: verdict.fails_otherwise,
            classes: (verdict.classes.iter())
                .map(|class| (class.label, class.score))
                .collect(),
            reason: verdict.reason.to_string(),
            measures: to_json(&verdict.measures),
            attributes: to_json(&candidate.attributes),
            look: (outcome.image.as_ref())
                .map(|image| pool_measures::look(image, &candidate.wanted))
                .unwrap_or_default(),
        }
    }

    /// Of a candidate for which nothing was painted.
    pub fn skipped(index: u64, skipped: Skipped) -> Self {
        Record {
            file_name: None,
            mask_file_name: None,
            id: skipped.id,
            index,
            source: skipped.source,
            variant: skipped.variant,
            skipped: true,
            passed_over: skipped.full.is_some(),
            size: skipped.full.map(|size| size.name().to_owned()),
            decoys: Vec::new(),
            preview: None,
            given_up: false,
            seed: 0,
            prompt: String::new(),
            negative: String::new(),
            tags: Vec::new(),
            score: 0.0,
            limit: None,
            fails_otherwise: false,
            classes: BTreeMap::new(),
            reason: skipped.reason,
            measures: Map::new(),
            attributes: Map::new(),
            look: BTreeMap::new(),
        }
    }

    /// Whether anything was painted.
    pub fn painted(&self) -> bool {
        !self.skipped
    }

    /// The validator's verdict, without its words and measurements.
    fn verdict(&self) -> Verdict {
        Verdict {
            accepted: self.accepted(),
            score: self.score,
            limit: self.limit.into(),
            fails_otherwise: self.fails_otherwise,
            classes: RVec::new(),
            reason: RString::new(),
            measures: Attributes::new(),
            found: ROption::RNone,
        }
    }
}

impl Line for Record {
    fn index(&self) -> u64 {
        self.index
    }

    fn accepted(&self) -> bool {
        self.file_name.is_some()
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
    /// Candidates for which nothing was painted, for there were enough lesions of their size.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub passed_over: u64,
    /// accepted / candidates.
    pub acceptance: Option<f64>,
    /// Mean score of what was kept.
    pub score_accepted: Option<f64>,
    /// Mean score of what was turned down.
    pub score_rejected: Option<f64>,
    /// Acceptance by flags of the wanted masks (`small`) and by tags of the prompts.
    pub by_group: BTreeMap<String, Group>,
    /// Acceptance by the size of the wanted lesions, and how many of each size were wanted, with
    /// quotas.
    #[serde(default)]
    pub by_size: Vec<Size>,
    /// How many healthy holes were painted besides lesions, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoys: Option<u64>,
    /// How many training images could be cleared of their lesion, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backgrounds: Option<Backgrounds>,
    /// How many real lesions of the validation part pass the same validator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_acceptance: Option<Real>,
    /// How well each class is found, where the validator says so.
    #[serde(default)]
    pub by_class: BTreeMap<String, Class>,
    /// What other thresholds would have come to (section 3.3 of the paper), for validators whose
    /// score is compared with one. What was painted is what it took to fill the quota at the
    /// run's own.
    #[serde(default)]
    pub sweep: Vec<Threshold>,
    /// What looking at unfinished candidates came to, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<Previews>,
    /// How the lesions look, beside real ones; absent in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<Pools>,
}

/// How many training images could be cleared of their lesion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Backgrounds {
    /// How many show one.
    pub images: u64,
    /// How many could be cleared, and are painted on.
    pub cleared: u64,
    /// How many could not, and are left out.
    pub failed: u64,
    /// failed / images.
    pub failure: Option<f64>,
}

/// How many real lesions pass the validator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Real {
    /// Images of the validation part that show a lesion.
    pub n: u64,
    /// How many of them pass.
    pub accepted: u64,
    /// accepted / n.
    pub acceptance: Option<f64>,
    /// The same by the size of the lesions; `candidates` are the images.
    pub by_size: Vec<Size>,
}

impl Default for Real {
    /// None yet.
    fn default() -> Self {
        Real {
            n: 0,
            accepted: 0,
            acceptance: None,
            by_size: sizes(),
        }
    }
}

impl Real {
    /// Counts a real lesion.
    pub fn add(&mut self, mask: MaskRef<'_>, accepted: bool) {
        self.n += 1;
        self.accepted += u64::from(accepted);
        self.acceptance = Some(self.accepted as f64 / self.n as f64);
        Size::count(&mut self.by_size, group(mask).name(), accepted);
    }
}

/// What looking at unfinished candidates came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Previews {
    /// After which share of the steps.
    pub at: f64,
    /// The score below which candidates are given up.
    pub below: f64,
    /// How many were, or would have been in an audit.
    pub given_up: u64,
    /// Share of all steps that was saved, or would have been.
    pub saved: f64,
    /// In an audit: how many of those passed when they were finished, and are what giving up loses.
    pub lost: Option<u64>,
}

/// How well a class is found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Class {
    /// Painted candidates that have it.
    pub candidates: u64,
    /// Mean over them of the IoU of what was asked for and what was found.
    pub iou: f64,
}

/// What a threshold would come to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Threshold {
    /// Scores strictly above it pass.
    pub threshold: f64,
    /// How many do.
    pub accepted: u64,
    /// Their share.
    pub acceptance: f64,
    /// Mean score of those that pass.
    pub score_accepted: Option<f64>,
    /// Mean score of the others.
    pub score_rejected: Option<f64>,
}

impl Threshold {
    /// `threshold` in the place of every limit that `verdicts` had.
    fn of(threshold: f64, verdicts: &[Verdict]) -> Self {
        let (good, bad): (Vec<&Verdict>, Vec<&Verdict>) = verdicts
            .iter()
            .partition(|verdict| verdict.accepted_above(threshold).unwrap_or(false));
        let scores = |part: &[&Verdict]| part.iter().map(|v| v.score).collect::<Vec<f64>>();
        Threshold {
            threshold,
            accepted: good.len() as u64,
            acceptance: good.len() as f64 / verdicts.len() as f64,
            score_accepted: mean(&scores(&good)),
            score_rejected: mean(&scores(&bad)),
        }
    }
}

/// The thresholds of the paper's study.
const SWEEP: [f64; 9] = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9];

/// Acceptance within a group.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Group {
    /// How many were painted.
    pub candidates: u64,
    /// How many were kept.
    pub accepted: u64,
}

impl Group {
    fn add(&mut self, accepted: bool) {
        self.candidates += 1;
        self.accepted += u64::from(accepted);
    }
}

/// Adds up records to a [`Summary`].
pub struct Tally {
    /// Names of the target classes, by label.
    classes: BTreeMap<u8, String>,
    records: u64,
    /// The verdicts that a limit decided.
    limited: Vec<Verdict>,
    preview: Option<Preview>,
    /// Candidates whose preview was below the limit, and those of them that passed.
    hopeless: [u64; 2],
    by_class: BTreeMap<String, (u64, f64)>,
    /// How many there were, and the scores of those that were finished: rejected, accepted.
    scores: [(u64, Vec<f64>); 2],
    by_group: BTreeMap<String, Group>,
    by_size: Vec<Size>,
    passed_over: u64,
    decoys: u64,
    /// How lesions look: rejected, accepted.
    looks: [pool_measures::Collected; 2],
}

impl Tally {
    /// Of nothing yet; `info` names the classes.
    pub fn new(info: &DatasetInfo, preview: Option<&Preview>) -> Self {
        let targets = info.classes.iter().filter(|class| class.target);
        Tally {
            classes: targets.map(|c| (c.label, c.name.to_string())).collect(),
            records: 0,
            limited: Vec::new(),
            preview: preview.cloned(),
            hopeless: [0; 2],
            by_class: BTreeMap::new(),
            scores: Default::default(),
            by_group: BTreeMap::new(),
            by_size: sizes(),
            passed_over: 0,
            decoys: 0,
            looks: Default::default(),
        }
    }

    /// Adds a record.
    pub fn add(&mut self, record: &Record) {
        self.records += 1;
        self.passed_over += u64::from(record.passed_over);
        if !record.painted() {
            return;
        }
        self.decoys += record.decoys.len() as u64;
        if let Some(size) = &record.size {
            Size::count(&mut self.by_size, size, record.accepted());
        }
        let (count, scores) = &mut self.scores[usize::from(record.accepted())];
        *count += 1;
        if !record.given_up {
            // Of what was given up there is the score of a preview alone, which is another figure.
            scores.push(record.score);
        }
        self.looks[usize::from(record.accepted())].add(&record.look);
        let flags = record.attributes.iter();
        let flags = flags.filter(|(_, value)| **value == Value::Bool(true));
        let tags = record.tags.iter().map(|tag| format!("prompt: {tag}"));
        let names = flags.map(|(name, _)| name.clone()).chain(tags);
        for name in names {
            self.by_group
                .entry(name)
                .or_default()
                .add(record.accepted());
        }
        if let (Some(preview), Some(score)) = (&self.preview, record.preview)
            && score < preview.below
        {
            self.hopeless[0] += 1;
            self.hopeless[1] += u64::from(record.accepted());
        }
        if record.given_up {
            return;
        }
        if record.limit.is_some() {
            self.limited.push(record.verdict());
        }
        for (label, score) in &record.classes {
            if let Some(name) = self.classes.get(label) {
                let (count, sum) = self.by_class.entry(name.clone()).or_default();
                *count += 1;
                *sum += score;
            }
        }
    }

    /// What was added up; of the pools, those of synthetic images.
    pub fn summary(self, wanted: u64) -> Summary {
        let [(rejected, bad), (accepted, good)] = self.scores;
        let candidates = accepted + rejected;
        let [worse, better] = self.looks.map(|looks| looks.pool());
        Summary {
            wanted,
            candidates,
            accepted,
            rejected,
            skipped: self.records - candidates - self.passed_over,
            passed_over: self.passed_over,
            acceptance: (candidates > 0).then(|| accepted as f64 / candidates as f64),
            score_accepted: mean(&good),
            score_rejected: mean(&bad),
            by_group: self.by_group,
            by_size: self.by_size,
            decoys: (self.decoys > 0).then_some(self.decoys),
            backgrounds: None,
            real_acceptance: None,
            by_class: self
                .by_class
                .into_iter()
                .map(|(name, (candidates, sum))| {
                    let iou = sum / candidates as f64;
                    (name, Class { candidates, iou })
                })
                .collect(),
            preview: self.preview.map(|Preview { at, below, audit }| Previews {
                at,
                below,
                given_up: self.hopeless[0],
                saved: match candidates {
                    0 => 0.0,
                    all => self.hopeless[0] as f64 * (1.0 - at) / all as f64,
                },
                lost: audit.then_some(self.hopeless[1]),
            }),
            pools: Some(Pools {
                real: pool_measures::Pool::default(),
                accepted: better,
                rejected: worse,
            }),
            sweep: match self.limited.is_empty() {
                true => Vec::new(),
                false => SWEEP.map(|at| Threshold::of(at, &self.limited)).to_vec(),
            },
        }
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
