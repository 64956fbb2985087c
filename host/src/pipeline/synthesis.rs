//! Paints, judges, keeps: from candidates to a labelled folder of synthetic images.
//!
//! The journal is the one record of progress. It grows by one line for each candidate, a batch at a
//! time, in order; the images of a batch are in place before its lines are written. Lists for users
//! (`metadata.jsonl`, `rejected.jsonl`) and the summary are made from it at the end.

use super::{
    candidates::{Candidate, Candidates, Skipped},
    clock,
    overlap::{self, Enough},
    painting::{self, Outcome, Painted, Stages},
    record::{Record, Summary, Tally, to_json},
    store::{Store, WholeFile},
};
use crate::{
    failure::Failure,
    manifest::Manifest,
    ui::{Bar, Ui},
};
use diffaug::{
    DatasetInfo, Error, Image, Mask, MaskRef, Progress, Result, ResultExt,
    error::ErrorKind,
    image::{MaskRule, save_gray, save_image},
    pairs::Pair,
    view::Shared,
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    ops::ControlFlow,
    time::{Duration, Instant},
};

const JOURNAL: &str = "synthetic/journal.jsonl";
const METADATA: &str = "synthetic/metadata.jsonl";
const REJECTED: &str = "rejected.jsonl";
const SUMMARY: &str = "synthetic.json";

/// The synthesis of a run.
pub struct Synthesis<'a> {
    /// The run.
    pub manifest: &'a Manifest,
    /// The run folder.
    pub store: &'a Store,
    /// What can be painted.
    pub candidates: &'a Candidates<'a>,
    /// Classes of the masks.
    pub info: &'a DatasetInfo,
    /// How many real training images there are.
    pub real: usize,
}

/// How far a synthesis has come.
struct Done {
    /// Candidates that were judged.
    judged: u64,
    /// How many of them were accepted.
    accepted: u64,
}

impl Done {
    fn add(&mut self, judged: &[Judged]) {
        self.judged += judged.len() as u64;
        self.accepted += judged.iter().filter(|j| j.record.accepted()).count() as u64;
    }

    fn show(&self, bar: &Bar, quota: u64) {
        let share = match self.judged {
            0 => String::new(),
            judged => format!(
                "{:.0} % accepted",
                100.0 * self.accepted as f64 / judged as f64
            ),
        };
        bar.progress(self.accepted, quota, &share);
    }
}

/// Candidates of a batch by their index, and what was painted for those that there are.
struct Batch {
    drawn: Vec<(u64, Result<Candidate, Skipped>)>,
    painted: Vec<Painted>,
}

impl Batch {
    fn candidates(drawn: &[(u64, Result<Candidate, Skipped>)]) -> Vec<&Candidate> {
        drawn.iter().filter_map(|(_, c)| c.as_ref().ok()).collect()
    }
}

/// A journal line and the images that belong to it.
struct Judged {
    record: Record,
    images: Option<(Image, Mask)>,
}

impl Synthesis<'_> {
    /// The summary of a finished synthesis.
    pub fn finished(&self) -> Result<Option<Summary>> {
        self.store.read_json(SUMMARY)
    }

    /// How many accepted images are wanted.
    fn quota(&self) -> u64 {
        (self.manifest.synthesis.ratio * self.real as f64).round() as u64
    }

    /// Paints and judges until the quota is filled or no candidate is left.
    ///
    /// # Errors
    /// When a stage fails or the user stops the run; everything judged so far is kept.
    pub fn run(&self, stages: &Stages, ui: Ui) -> Result<Summary, Failure> {
        let batch = u64::from(self.manifest.synthesis.batch);
        let mut done = self.resume(batch)?;
        let bar = ui.bar("painting");
        let quota = self.quota();
        let outcome = self.line(&mut done, batch, stages, &bar);
        let accepted = done.accepted;
        let summary = self.publish()?;
        bar.finish(&format!("{accepted} of {} accepted", summary.candidates));
        outcome?;
        if accepted < quota {
            tracing::warn!(
                "only {accepted} of the {quota} images wanted were accepted: all {} candidates are \
                 used up (raise `synthesis.variants` for more)",
                self.candidates.len()
            );
        }
        self.store.write_json(SUMMARY, &summary)?;
        let _ = fs::remove_file(self.store.path(JOURNAL));
        Ok(summary)
    }

    /// Paints, judges and keeps, all three at the same time, one batch behind the other.
    fn line(&self, done: &mut Done, batch: u64, stages: &Stages, bar: &Bar) -> Result<()> {
        let (quota, end) = (self.quota(), self.candidates.len());
        done.show(bar, quota);
        if done.accepted >= quota {
            return Ok(());
        }
        let begun = Instant::now();
        let [mut painting, mut judging, mut keeping] = [Duration::ZERO; 3];
        let mut starts = (done.judged..end).step_by(batch as usize);
        let paint = |enough: &Enough| {
            // Here and not where images are kept, so that all that is judged already is kept.
            if enough.reached() {
                return Err(Error::cancelled());
            }
            let range = starts.next().map(|start| start..(start + batch).min(end));
            let paint = |range| timed(&mut painting, || self.paint(range, stages, enough));
            range.map(paint).transpose()
        };
        let judge =
            |batch, enough: &Enough| timed(&mut judging, || self.judge(batch, stages, enough));
        let keep = |mut judged: Vec<Judged>| {
            truncate_at_quota(&mut judged, quota - done.accepted);
            done.add(&judged);
            timed(&mut keeping, || self.keep(&judged))?;
            done.show(bar, quota);
            Ok(match done.accepted >= quota {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        };
        let outcome = overlap::line(paint, judge, keep);
        tracing::info!(
            seconds = begun.elapsed().as_secs_f64(),
            painting = painting.as_secs_f64(),
            judging = judging.as_secs_f64(),
            keeping = keeping.as_secs_f64(),
            "painted and judged"
        );
        outcome
    }

    /// What an earlier start left, whole batches only.
    fn resume(&self, batch: u64) -> Result<Done> {
        for folder in ["synthetic/images", "synthetic/masks"] {
            fs::create_dir_all(self.store.path(folder))?;
        }
        let path = self.store.path(JOURNAL);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut accepted: Vec<bool> = whole
            .lines()
            .map_while(|line| serde_json::from_str::<Record>(line).ok())
            .map(|record| record.accepted())
            .collect();
        let count = |some: &[bool]| some.iter().filter(|&&yes| yes).count() as u64;
        let left = self.candidates.len() - (accepted.len() as u64).min(self.candidates.len());
        if count(&accepted) < self.quota() && left > 0 {
            accepted.truncate((accepted.len() as u64 / batch * batch) as usize);
        }
        let mut kept = String::new();
        for line in whole.lines().take(accepted.len()) {
            kept += line;
            kept.push('\n');
        }
        self.store.write(JOURNAL, &kept)?;
        Ok(Done {
            judged: accepted.len() as u64,
            accepted: count(&accepted),
        })
    }

    fn paint(
        &self,
        range: std::ops::Range<u64>,
        stages: &Stages,
        enough: &Enough,
    ) -> Result<Batch> {
        let drawn: Vec<(u64, Result<Candidate, Skipped>)> = range
            .map(|index| Ok((index, self.candidates.get(index, &stages.bank)?)))
            .collect::<Result<_>>()?;
        let there = Batch::candidates(&drawn);
        let preview = self.manifest.synthesis.preview.as_ref();
        let painted = clock::stage(|| painting::paint(&there, stages, preview, enough))?;
        Ok(Batch { drawn, painted })
    }

    fn judge(&self, batch: Batch, stages: &Stages, enough: &Enough) -> Result<Vec<Judged>> {
        let Batch { drawn, painted } = batch;
        let there = Batch::candidates(&drawn);
        let preview = self.manifest.synthesis.preview.as_ref();
        let outcomes =
            clock::stage(|| painting::verdicts(&there, painted, stages, preview, enough))?;
        let mut outcomes = outcomes.into_iter();
        drawn
            .into_iter()
            .map(|(index, candidate)| match candidate {
                Err(skipped) => Ok(Judged {
                    record: skipped_record(index, skipped),
                    images: None,
                }),
                Ok(candidate) => {
                    let outcome = outcomes
                        .next()
                        .ok_or_else(|| Error::internal("a candidate without a verdict"))?;
                    let record = record(index, &candidate, &outcome);
                    let keep = record.accepted() || self.manifest.synthesis.keep_rejected;
                    let image = outcome.image.filter(|_| keep);
                    Ok(Judged {
                        record,
                        images: image.map(|image| (image, candidate.label)),
                    })
                }
            })
            .collect()
    }

    /// Saves images, then writes the journal lines that speak of them.
    fn keep(&self, judged: &[Judged]) -> Result<()> {
        use rayon::prelude::*;
        judged
            .par_iter()
            .filter_map(|j| Some((&j.record, j.images.as_ref()?)))
            .try_for_each(|(record, (image, mask))| {
                let folder = if record.accepted() {
                    "synthetic"
                } else {
                    "rejected"
                };
                let name = file_name(record.index);
                let folder = self.store.path(folder);
                for kind in ["images", "masks"] {
                    fs::create_dir_all(folder.join(kind))?;
                }
                save_image(image.view(), &folder.join("images").join(&name))?;
                let grey = to_grey(mask.view(), self.info)?;
                save_gray(grey.view(), &folder.join("masks").join(&name))
            })?;
        let mut text = String::new();
        for j in judged {
            text += &(serde_json::to_string(&j.record)? + "\n");
        }
        let path = self.store.path(JOURNAL);
        let failed = || format!("cannot write `{}`", path.display());
        let mut file = File::options()
            .append(true)
            .open(&path)
            .or_error(ErrorKind::Data, failed)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_data())
            .or_error(ErrorKind::Data, failed)
    }

    /// The lists that users read, made also after an interruption; line by line, for there may be
    /// many.
    fn publish(&self) -> Result<Summary> {
        let mut metadata = WholeFile::create(&self.store.path(METADATA))?;
        let mut rejected = WholeFile::create(&self.store.path(REJECTED))?;
        let mut tally = Tally::new(self.info, self.manifest.synthesis.preview.as_ref());
        self.each(JOURNAL, |record| {
            let line = serde_json::to_string(&record)? + "\n";
            let list = if record.accepted() {
                &mut metadata
            } else {
                &mut rejected
            };
            list.write(line.as_bytes())?;
            tally.add(&record);
            Ok(())
        })?;
        metadata.finish()?;
        rejected.finish()?;
        let classes: Map<String, Value> = self
            .info
            .classes
            .iter()
            .map(|class| (class.name.to_string(), json!(grey(class.label, self.info))))
            .collect();
        self.store.write_json("synthetic/classes.json", &classes)?;
        Ok(tally.summary(self.quota()))
    }

    /// Calls `work` with every record of a list.
    fn each(&self, name: &str, mut work: impl FnMut(Record) -> Result<()>) -> Result<()> {
        let path = self.store.path(name);
        let failed = || format!("cannot read `{}`", path.display());
        let file = File::open(&path).or_error(ErrorKind::Data, failed)?;
        for line in BufReader::new(file).lines() {
            let line = line.or_error(ErrorKind::Data, failed)?;
            let record = serde_json::from_str(&line).or_error(ErrorKind::Data, failed)?;
            work(record)?;
        }
        Ok(())
    }

    /// Some candidates that were accepted and some that were turned down, evenly spread over the run:
    /// those beside each other are often painted into frames of one video.
    pub fn examples(&self, accepted: usize, rejected: usize) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for (list, count) in [(METADATA, accepted), (REJECTED, rejected)] {
            let mut painted = Vec::new();
            self.each(list, |record| {
                painted.extend(record.painted().then_some(record.index));
                Ok(())
            })?;
            found.extend(spread(&painted, count));
        }
        Ok(found)
    }

    /// The accepted images as a dataset; `None` when nothing was accepted.
    pub fn dataset(&self, max_pixels: u64) -> Result<Option<Shared>> {
        let folder = self.store.path("synthetic");
        let mut pairs = Vec::new();
        self.each(METADATA, |record| {
            if let (Some(image), Some(mask)) = (&record.file_name, &record.mask_file_name) {
                let id = format!("synthetic/{}", record.id);
                pairs.push(Pair::new(&id, folder.join(image), folder.join(mask)));
            }
            Ok(())
        })?;
        if pairs.is_empty() {
            return Ok(None);
        }
        let labels = self.info.classes.iter();
        let mut rule: BTreeMap<u8, u8> = labels
            .map(|c| (grey(c.label, self.info), c.label))
            .collect();
        rule.insert(0, 0);
        let rule = MaskRule::Values(rule);
        super::candidates::as_dataset(self.info.clone(), pairs, rule, max_pixels).map(Some)
    }
}

/// A number and not the id: an id may hold what a file name cannot, and a word such as `train` in a
/// file's name makes Hugging Face's loader guess splits.
fn file_name(index: u64) -> String {
    format!("{index:06}.png")
}

/// Grey value of a label in saved masks: classes spread evenly up to white, so that a mask can be
/// looked at.
fn grey(label: u8, info: &DatasetInfo) -> u8 {
    let highest = info.classes.iter().map(|c| c.label).max().unwrap_or(1);
    (u32::from(label) * 255 / u32::from(highest.max(1))) as u8
}

fn to_grey(mask: MaskRef<'_>, info: &DatasetInfo) -> Result<Mask> {
    let labels = mask.labels().iter().map(|&l| grey(l, info)).collect();
    Mask::new(mask.width(), mask.height(), labels)
}

/// Runs `work` and adds its time to `total`.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = work();
    *total += start.elapsed();
    out
}

/// Drops what comes after the `left`-th acceptance.
fn truncate_at_quota(judged: &mut Vec<Judged>, left: u64) {
    let mut seen = 0;
    let end = judged.iter().position(|j| {
        seen += u64::from(j.record.accepted());
        seen >= left
    });
    if let Some(end) = end {
        judged.truncate(end + 1);
    }
}

fn record(index: u64, candidate: &Candidate, outcome: &Outcome) -> Record {
    let verdict = &outcome.verdict;
    let file = |folder: &str| {
        let name = file_name(index);
        verdict.accepted.then(|| format!("{folder}/{name}"))
    };
    Record {
        file_name: file("images"),
        mask_file_name: file("masks"),
        id: candidate.id.clone(),
        index,
        source: candidate.source.clone(),
        variant: candidate.variant,
        skipped: false,
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
        reason: verdict.reason.to_string(),
        measures: to_json(&verdict.measures),
        attributes: to_json(&candidate.attributes),
    }
}

/// `count` of them from all over, in their order; all, should there be fewer.
fn spread(all: &[u64], count: usize) -> impl Iterator<Item = u64> {
    let count = count.min(all.len());
    (0..count).map(move |i| all[i * all.len() / count])
}

fn skipped_record(index: u64, skipped: Skipped) -> Record {
    Record {
        file_name: None,
        mask_file_name: None,
        id: skipped.id,
        index,
        source: skipped.source,
        variant: skipped.variant,
        skipped: true,
        preview: None,
        given_up: false,
        seed: 0,
        prompt: String::new(),
        negative: String::new(),
        tags: Vec::new(),
        score: 0.0,
        reason: "the image has no lesion-free part of the size wanted".into(),
        measures: Map::new(),
        attributes: Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn examples_come_from_all_over_a_run() {
        let some = |all: &[u64], count| spread(all, count).collect::<Vec<_>>();
        assert_eq!(some(&[0, 1, 4, 5, 8, 9, 11], 3), [0, 4, 8]);
        assert_eq!(some(&[3, 7], 4), [3, 7]);
        assert!(some(&[], 4).is_empty());
    }
}
