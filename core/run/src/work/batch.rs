//! What goes down the line of a synthesis, a batch at once: candidates, what was painted of them, and
//! what is to be written down.

use super::{
    candidates::{PlannedCandidate, Skipped},
    painting::{Painted, Stages},
    pool::Pool,
    record::Record,
    sizes::{self, Filled},
};
use crate::{journal::Line, layout, session::Step};
use diffaug::{Image, Mask, Result};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How far a synthesis has come.
pub struct Done {
    /// Candidates that were judged.
    pub judged: u64,
    /// How many of them were accepted.
    pub accepted: u64,
}

impl Done {
    /// Counts a batch.
    pub fn add(&mut self, judged: &[Judged]) {
        self.judged += judged.len() as u64;
        self.accepted += judged.iter().filter(|j| j.record.accepted()).count() as u64;
    }

    /// Shows how far it is to `quota`.
    pub fn show(&self, step: &dyn Step, quota: u64) {
        let share = match self.judged {
            0 => String::new(),
            judged => format!(
                "{:.0} % accepted",
                100.0 * self.accepted as f64 / judged as f64
            ),
        };
        step.progress(self.accepted, quota, &share);
    }
}

/// Candidates of a batch by their index, and what was painted for those that there are.
pub struct Batch {
    /// Candidates, or why there are none.
    pub drawn: Vec<(u64, Result<PlannedCandidate, Skipped>)>,
    /// In the order of those that there are.
    pub painted: Vec<Painted>,
}

impl Batch {
    /// The candidates among what was drawn.
    pub fn candidates(
        drawn: &[(u64, Result<PlannedCandidate, Skipped>)],
    ) -> Vec<&PlannedCandidate> {
        drawn.iter().filter_map(|(_, c)| c.as_ref().ok()).collect()
    }
}

/// What the stations of a line have in common.
pub struct Shift<'a> {
    /// What of the quota is accepted.
    pub filled: &'a Mutex<Filled>,
    /// What paints and judges.
    pub stages: &'a Stages,
    /// What was painted before.
    pub pool: Option<&'a Pool>,
    /// Where progress is shown.
    pub step: &'a dyn Step,
}

impl Shift<'_> {
    fn filled(&self) -> MutexGuard<'_, Filled> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A candidate, unless it is known already that there are enough lesions of its size.
    pub fn wanted(
        &self,
        index: u64,
        drawn: Result<PlannedCandidate, Skipped>,
    ) -> Result<PlannedCandidate, Skipped> {
        let candidate = drawn?;
        let size = sizes::group(candidate.wanted.view());
        match self.filled().is_full(size, index) {
            false => Ok(candidate),
            true => {
                let PlannedCandidate {
                    id,
                    source,
                    variant,
                    ..
                } = candidate;
                Err(Skipped::full(id, source, variant, size))
            }
        }
    }

    /// What is left of a batch now that all before it is known.
    pub fn settled(&self, judged: Vec<Judged>) -> Vec<Judged> {
        let mut filled = self.filled();
        let settled = judged.into_iter().map(|judged| {
            let record = filled.settle(judged.record);
            let painted = record.painted();
            Judged {
                record,
                images: judged.images.filter(|_| painted),
                strip: judged.strip.filter(|_| painted),
            }
        });
        settled.collect()
    }
}

/// A journal line and the images that belong to it.
pub struct Judged {
    /// The line.
    pub record: Record,
    /// What is kept of it.
    pub images: Option<Kept>,
    /// A small picture of it for people, as the bytes of a JPEG file; where `images` are linked it is among
    /// those.
    pub strip: Option<Vec<u8>>,
}

/// Image and mask of a candidate.
pub enum Kept {
    /// As they were painted.
    Painted(Image, Mask),
    /// Files of another folder, by their names there, with their hashes.
    Linked(PathBuf, BTreeMap<String, String>),
}

impl Judged {
    /// The name of its image or mask.
    pub fn place(&self, kind: &str) -> String {
        let list = match self.record.accepted() {
            true => layout::SYNTHETIC,
            false => layout::REJECTED,
        };
        format!("{list}/{kind}/{}", layout::image(self.record.index))
    }

    /// The folders that its files go to.
    pub fn folders(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.images {
            None => Vec::new(),
            Some(Kept::Painted(..)) => [layout::IMAGES, layout::MASKS]
                .map(|kind| self.place(kind))
                .to_vec(),
            Some(Kept::Linked(_, files)) => files.keys().cloned().collect(),
        };
        names.extend(
            self.strip
                .as_ref()
                .map(|_| layout::strip(self.record.index)),
        );
        let folder = |name: &String| {
            name.rsplit_once('/')
                .map_or("", |(folder, _)| folder)
                .to_owned()
        };
        names.iter().map(folder).collect()
    }
}

/// Drops what comes after the `left`-th acceptance.
pub fn truncate_at_quota(judged: &mut Vec<Judged>, left: u64) {
    let mut seen = 0;
    let end = judged.iter().position(|j| {
        seen += u64::from(j.record.accepted());
        seen >= left
    });
    if let Some(end) = end {
        judged.truncate(end + 1);
    }
}
