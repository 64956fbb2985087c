//! Paints, judges, keeps: from candidates to a labelled folder of synthetic images.
//!
//! The journal is the one record of progress. It grows by one line for each candidate, a batch at a
//! time, in order; the images of a batch are on the disk before its lines are written. Lists for users
//! (`metadata.jsonl`, `rejected.jsonl`), the checksums of everything and the summary are made from it
//! at the end.

mod lists;

use super::{
    batch::{Batch, Done, Judged, Kept, Shift, truncate_at_quota},
    candidates::{Candidates, PlannedCandidate, Skipped},
    gallery, judging,
    once::{Leaves, Steps},
    overlap::{self, StopFlag},
    painting::{self, How, Painted, Stages},
    pool::Pool,
    pool_measures,
    record::{Backgrounds, Record, Summary},
    sizes::{self, Quota},
};
use crate::{
    failure::Failure,
    journal::{Contents, Entry, Journal, Left, Line},
    layout,
    manifest::Manifest,
    results::{self, Part},
    session::Session,
    store::Store,
};
use diffaug::{
    BoxDataset, DatasetInfo, Error, Image, Mask, MaskRef, Result,
    files::{self, hash_file},
    image::{save_gray, save_image},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The synthesis of a run.
pub struct Synthesizer<'a> {
    /// The run.
    pub manifest: &'a Manifest,
    /// Who follows the run.
    pub session: &'a Session<'a>,
    /// The run folder.
    pub store: &'a Store,
    /// What can be painted.
    pub candidates: &'a Candidates<'a>,
    /// Classes of the masks.
    pub info: &'a DatasetInfo,
    /// How many accepted images are wanted.
    pub quota: Quota,
    /// Real images that nothing was trained on.
    pub validation: &'a BoxDataset,
    /// What clearing training images of their lesions came to.
    pub backgrounds: Option<Backgrounds>,
    /// How many images this process painted, and the time that took.
    pub painted: Mutex<(u64, Duration)>,
}

impl Synthesizer<'_> {
    /// The summary, made by `work` unless this or another run did that before.
    ///
    /// # Errors
    /// Those of `work`; when the summary is damaged, or what was painted is no longer what it was.
    pub fn once(
        &self,
        steps: &Steps<'_>,
        work: impl FnOnce() -> Result<Summary, Failure>,
    ) -> Result<Summary, Failure> {
        if self.store.path(layout::SYNTHESIS).exists() {
            self.check()?;
        }
        let part = |place, listed| Part {
            name: place,
            place,
            listed,
        };
        let list = Some(layout::CHECKSUMS);
        let leaves = Leaves {
            place: layout::SYNTHETIC,
            marker: layout::SYNTHESIS,
            parts: &[
                part(layout::SYNTHETIC, list),
                part(layout::REJECTED, list),
                part(layout::REJECTED_LIST, list),
                part(layout::CHECKSUMS, None),
                part(layout::CONTACT_SHEET, None),
            ],
            vouched: &[layout::CHECKSUMS],
        };
        let summary = steps.once(&leaves, "painting", work)?;
        // What it says stands in the lists by now.
        self.journal().remove();
        Ok(summary)
    }

    /// Compares everything that was painted with its checksum.
    fn check(&self) -> Result<()> {
        if self.store.path(layout::CHECKSUMS).exists()
            && let Some((path, how)) = self.store.first_broken(layout::CHECKSUMS)?
        {
            return Err(self.store.broken(layout::SYNTHESIS, &path, how));
        }
        Ok(())
    }

    pub(super) fn journal(&self) -> Journal<'_, Record> {
        Journal::new(self.store, layout::JOURNAL)
    }

    /// Paints and judges until the quota is filled or no candidate is left; or joins what the shards in
    /// the folder `shards` painted and judged.
    ///
    /// # Errors
    /// When a stage fails or the user stops the run; everything judged so far is kept.
    pub fn run(
        &self,
        stages: &Stages,
        pool: Option<&Pool>,
        shards: Option<&Path>,
    ) -> Result<Summary, Failure> {
        let batch = u64::from(self.manifest.synthesis.batch);
        let left = self.resume(batch)?;
        let mut done = Done {
            judged: left.entries.len() as u64,
            accepted: left.accepted(),
        };
        let filled = Mutex::new(self.quota.filled(&left.entries));
        let step = self.session.begin("painting");
        let quota = self.quota.total();
        let line = Shift {
            filled: &filled,
            stages,
            pool,
            step: &*step,
        };
        let starts = (left.next..self.candidates.len()).step_by(batch as usize);
        let outcome = match shards {
            Some(shards) => self.join(
                &mut done,
                left.lost.into_iter().chain(starts),
                shards,
                &line,
            ),
            // What was lost was within the quota: it is painted again as it was, whole.
            None => self
                .line(&mut done, left.lost.into_iter(), None, &line)
                .and_then(|()| self.line(&mut done, starts, Some(quota), &line)),
        };
        let accepted = done.accepted;
        let (mut summary, lists) = self.publish()?;
        step.finish(&format!("{accepted} of {} accepted", summary.candidates));
        outcome?;
        if let Some(pools) = &mut summary.pools {
            pools.real = pool_measures::real(self.candidates.train(), &self.info.targets())?;
        }
        if accepted < quota {
            tracing::warn!(
                "only {accepted} of the {quota} images wanted were accepted{}: all {} candidates are \
                 used up (raise `synthesis.variants` for more)",
                shortage(&summary.by_size),
                self.candidates.len()
            );
        }
        if self.manifest.synthesis.judge_real && stages.judges.asks() {
            let batch = self.manifest.synthesis.batch as usize;
            let stop = StopFlag::new(self.session);
            let real = self
                .session
                .stage(|| judging::real(self.validation, stages, batch, &stop))?;
            summary.real_acceptance = Some(real);
        }
        self.store.write(layout::CHECKSUMS, &lists)?;
        Ok(summary)
    }

    /// Paints, judges and keeps the batches that begin at `starts`, all three at the same time, one
    /// batch behind the other, until `quota` is filled.
    pub(super) fn line(
        &self,
        done: &mut Done,
        mut starts: impl Iterator<Item = u64> + Send,
        quota: Option<u64>,
        shift: &Shift<'_>,
    ) -> Result<()> {
        let Shift { stages, step, .. } = *shift;
        let (shown, end) = (self.quota.total(), self.candidates.len());
        let batch = u64::from(self.manifest.synthesis.batch);
        done.show(step, shown);
        if quota.is_some_and(|quota| done.accepted >= quota) {
            return Ok(());
        }
        let begun = Instant::now();
        let [mut painting, mut judging, mut keeping] = [Duration::ZERO; 3];
        let paint = |stop: &StopFlag<'_>| {
            // Here and not where images are kept, so that all that is judged already is kept.
            if stop.is_set() {
                return Err(Error::cancelled());
            }
            let range = starts.next().map(|start| start..(start + batch).min(end));
            let paint = |range| timed(&mut painting, || self.paint(range, shift, stop));
            range.map(paint).transpose()
        };
        let judge =
            |batch, stop: &StopFlag<'_>| timed(&mut judging, || self.judge(batch, stages, stop));
        let keep = |judged: Vec<Judged>| {
            timed(&mut keeping, || self.settle(done, judged, quota, shift))?;
            Ok(match quota.is_some_and(|quota| done.accepted >= quota) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        };
        let outcome = overlap::line(self.session, paint, judge, keep);
        tracing::info!(
            seconds = begun.elapsed().as_secs_f64(),
            painting = painting.as_secs_f64(),
            judging = judging.as_secs_f64(),
            keeping = keeping.as_secs_f64(),
            "painted and judged"
        );
        outcome
    }

    /// Keeps what is wanted of a batch now that all before it is known.
    pub(super) fn settle(
        &self,
        done: &mut Done,
        judged: Vec<Judged>,
        quota: Option<u64>,
        shift: &Shift<'_>,
    ) -> Result<()> {
        let mut judged = shift.settled(judged);
        if let Some(quota) = quota {
            truncate_at_quota(&mut judged, quota - done.accepted);
        }
        done.add(&judged);
        self.keep(&judged, shift.pool)?;
        done.show(shift.step, self.quota.total());
        Ok(())
    }

    /// Makes the folders of images.
    pub(super) fn make_folders(&self) -> Result<()> {
        for folder in
            [layout::IMAGES, layout::MASKS].map(|kind| format!("{}/{kind}", layout::SYNTHETIC))
        {
            files::make_folder(&self.store.path(folder))?;
        }
        Ok(())
    }

    /// What an earlier start left and is still true.
    fn resume(&self, batch: u64) -> Result<Left<Record>> {
        self.make_folders()?;
        let journal = self.journal();
        let end = self.candidates.len();
        let Contents { entries, damaged } = journal.read_true(end)?;
        let images = self.store.path(layout::SYNTHETIC).join(layout::IMAGES);
        let painted = images.read_dir().map_or(0, |all| all.count() as u64);
        if entries.is_empty() && damaged == 0 && painted > batch {
            tracing::warn!(
                "the journal says nothing of the {painted} images in `{}`: they are painted again",
                images.display()
            );
        }
        let left = Left::of(entries, end, batch, self.quota.total());
        journal.write(left.entries.values())?;
        Ok(left)
    }

    fn paint(
        &self,
        range: std::ops::Range<u64>,
        shift: &Shift<'_>,
        stop: &StopFlag<'_>,
    ) -> Result<Batch> {
        let drawn: Vec<(u64, Result<PlannedCandidate, Skipped>)> = range
            .map(|index| {
                let drawn = self.candidates.get(index, &shift.stages.bank)?;
                Ok((index, shift.wanted(index, drawn)))
            })
            .collect::<Result<_>>()?;
        let painted = self.painted(&drawn, shift, stop)?;
        Ok(Batch { drawn, painted })
    }

    /// The images of the candidates among `drawn`, painted where the pool does not have them.
    fn painted(
        &self,
        drawn: &[(u64, Result<PlannedCandidate, Skipped>)],
        shift: &Shift<'_>,
        stop: &StopFlag<'_>,
    ) -> Result<Vec<Painted>> {
        let there = drawn
            .iter()
            .filter_map(|(i, c)| Some((*i, c.as_ref().ok()?)));
        let there: Vec<(u64, &PlannedCandidate)> = there.collect();
        let pooled = there.iter().map(|(i, _)| shift.pool?.get(*i));
        let pooled: Vec<Option<Image>> = pooled.collect();
        let left = there
            .iter()
            .zip(&pooled)
            .filter(|(_, image)| image.is_none());
        let left: Vec<(u64, &PlannedCandidate)> = left.map(|(candidate, _)| *candidate).collect();
        let candidates: Vec<&PlannedCandidate> =
            left.iter().map(|(_, candidate)| *candidate).collect();
        let how = How::of(&self.manifest.synthesis);
        let begun = Instant::now();
        let fresh = self
            .session
            .stage(|| painting::paint(&candidates, shift.stages, how, stop))?;
        {
            let mut painted = self.painted.lock().unwrap_or_else(PoisonError::into_inner);
            painted.0 += fresh.len() as u64;
            painted.1 += begun.elapsed();
        }
        if let Some(pool) = shift.pool {
            let new = left.iter().zip(&fresh);
            let new: Vec<(u64, &Image)> = new
                .filter_map(|((index, _), painted)| Some((*index, painted.image.as_ref()?)))
                .collect();
            pool.add(&new);
        }
        let mut fresh = fresh.into_iter();
        let missing = || Error::internal("a candidate that was not painted");
        let all = pooled.into_iter().map(|pooled| match pooled {
            Some(image) => Ok(Painted {
                image: Some(image),
                seen: None,
            }),
            None => fresh.next().ok_or_else(missing),
        });
        all.collect()
    }

    fn judge(&self, batch: Batch, stages: &Stages, stop: &StopFlag<'_>) -> Result<Vec<Judged>> {
        let Batch { drawn, painted } = batch;
        let there = Batch::candidates(&drawn);
        let how = How::of(&self.manifest.synthesis);
        let outcomes = self
            .session
            .stage(|| judging::verdicts(&there, painted, stages, how, stop))?;
        let mut outcomes = outcomes.into_iter();
        drawn
            .into_iter()
            .map(|(index, candidate)| match candidate {
                Err(skipped) => Ok(Judged {
                    record: Record::skipped(index, skipped),
                    images: None,
                    strip: None,
                }),
                Ok(candidate) => {
                    let outcome = outcomes
                        .next()
                        .ok_or_else(|| Error::internal("a candidate without a verdict"))?;
                    self.judged(index, candidate, outcome)
                }
            })
            .collect()
    }

    /// What is kept of a candidate.
    fn judged(
        &self,
        index: u64,
        candidate: PlannedCandidate,
        outcome: judging::Judged,
    ) -> Result<Judged> {
        let options = &self.manifest.synthesis;
        let record = Record::of(index, &candidate, &outcome);
        let shown = outcome.image.as_ref();
        let shown = shown.filter(|_| index < u64::from(options.gallery));
        let targets = self.info.targets();
        let strip = |image| gallery::strip(&candidate, image, &outcome.verdict, &targets);
        let strip = shown.map(strip).transpose()?;
        let keep = record.accepted() || options.keep_rejected;
        let image = outcome.image.filter(|_| keep);
        Ok(Judged {
            record,
            images: image.map(|image| Kept::Painted(image, candidate.label)),
            strip,
        })
    }

    /// Saves images, then writes the journal lines that speak of them.
    fn keep(&self, judged: &[Judged], pool: Option<&Pool>) -> Result<()> {
        use rayon::prelude::*;
        let folders: BTreeSet<String> = judged.iter().flat_map(Judged::folders).collect();
        for folder in &folders {
            files::make_folder(&self.store.path(folder))?;
        }
        let entries: Vec<Entry<Record>> = judged
            .par_iter()
            .map(|judged| self.save(judged, pool))
            .collect::<Result<_>>()?;
        for folder in &folders {
            files::sync_folder(&self.store.path(folder))?;
        }
        self.journal().append(&entries)
    }

    /// Saves the images of a candidate and answers its line.
    fn save(&self, judged: &Judged, pool: Option<&Pool>) -> Result<Entry<Record>> {
        let mut entry = Entry {
            record: judged.record.clone(),
            files: BTreeMap::new(),
        };
        if let Some(Kept::Linked(folder, files)) = &judged.images {
            for name in files.keys() {
                results::link_file(&folder.join(name), &self.store.path(name))?;
            }
            entry.files.clone_from(files);
            return Ok(entry);
        }
        let mut add = |name: String, save: &dyn Fn(&Path) -> Result<()>| {
            let path = self.store.path(&name);
            save(&path)?;
            entry.files.insert(name, hash_file(&path)?);
            Ok::<_, Error>(())
        };
        let index = judged.record.index;
        if let Some(Kept::Painted(image, mask)) = &judged.images {
            add(judged.place(layout::IMAGES), &|path| match pool {
                Some(pool) if pool.link(index, path) => Ok(()),
                _ => save_image(image.view(), path),
            })?;
            let grey = to_grey(mask.view(), self.info)?;
            add(judged.place(layout::MASKS), &|path| {
                save_gray(grey.view(), path)
            })?;
        }
        if let Some(strip) = &judged.strip {
            add(layout::strip(index), &|path| {
                files::write_atomic(path, strip)
            })?;
        }
        Ok(entry)
    }
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

/// Of which sizes there are too few, where sizes were wanted.
fn shortage(sizes: &[sizes::Size]) -> String {
    let short = sizes.iter().filter_map(|size| {
        let wanted = size.wanted.filter(|wanted| *wanted > size.accepted)?;
        Some(format!("{} of {wanted} {}", size.accepted, size.size))
    });
    let short: Vec<String> = short.collect();
    match short.is_empty() {
        true => String::new(),
        false => format!(" ({})", short.join(", ")),
    }
}
