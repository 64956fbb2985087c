//! A synthesis in parts: several processes paint and judge ranges of candidates, one joins them.
//!
//! A candidate depends on nothing but its number, so whoever paints it paints the same. Range `r` belongs
//! to shard `r % n`. A shard ends when the candidates before its next range are known to fill the quota;
//! so a quota that is reached early costs each shard about a range. Joined in their order and cut at the
//! quota, the parts are what one process would have made, byte for byte.

use super::{
    batch::{Done, Judged, Kept, Shift},
    painting::Stages,
    record::Record,
    sizes::Quota,
    synthesis::Synthesizer,
};
use crate::{
    journal::{Contents, Entry, Journal, Line},
    layout,
    store::Folder,
};
use diffaug::{Error, Result, ResultExt, error::ErrorKind};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Batches of a range.
const BATCHES: u64 = 4;
/// No synthesis is cut into more parts.
const MOST: u32 = 10_000;

/// A part of a synthesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part, from 0.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

impl Shard {
    /// Of a text such as `3/16`, counted from 0.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(index, of)| {
            let (index, of) = (index.parse().ok()?, of.parse().ok()?);
            (index < of && of <= MOST).then_some(Shard { index, of })
        });
        parsed.ok_or_else(|| {
            Error::config(format!(
                "`{text}` is no shard: expected I/N with I from 0 to N - 1 and N up to {MOST}, as in `3/16`"
            ))
        })
    }

    /// The name of its folder.
    pub fn folder(self) -> String {
        format!("{}-of-{}", self.index, self.of)
    }
}

/// The candidates of the shards of a synthesis that were judged.
struct Joined {
    /// With the folder that has their images.
    entries: BTreeMap<u64, (PathBuf, Entry<Record>)>,
    /// How many parts there are; 0 where there is none yet.
    of: u32,
}

impl Joined {
    /// Of the folders in `folder`, with `whole` those alone whose images are as they were written.
    fn read(folder: &Path, end: u64, whole: bool) -> Result<Self> {
        let mut joined = Joined {
            entries: BTreeMap::new(),
            of: 0,
        };
        let failed = || format!("cannot read `{}`", folder.display());
        let all = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(joined),
            all => all.or_error(ErrorKind::Data, failed)?,
        };
        for entry in all {
            let path = entry.or_error(ErrorKind::Data, failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let of = name.and_then(|name| name.split_once("-of-")?.1.parse::<u32>().ok());
            let Some(of) = of else { continue };
            if joined.of != 0 && joined.of != of {
                return Err(Error::data(format!(
                    "`{}` has parts of {} and of {of}: remove those that are not wanted",
                    folder.display(),
                    joined.of
                )));
            }
            joined.of = of;
            let part = Folder::new(&path);
            let journal: Journal<'_, Record> = Journal::new(&part, layout::JOURNAL);
            let Contents { entries, .. } = match whole {
                true => journal.read_true(end)?,
                false => journal.read()?,
            };
            for (index, entry) in entries {
                joined.entries.insert(index, (path.clone(), entry));
            }
        }
        Ok(joined)
    }

    /// Whether the candidates before `start` fill `quota`, as far as they are known.
    fn fills(&self, quota: Quota, start: u64) -> bool {
        let mut filled = quota.filled(&BTreeMap::new());
        let known = self.entries.range(..start);
        let settled = known.map(|(_, (_, entry))| filled.settle(entry.record.clone()));
        settled.filter(Line::accepted).count() as u64 >= quota.total()
    }
}

impl Synthesizer<'_> {
    /// Paints and judges the ranges of `shard`, whose own folder the store is; `all` holds those of all.
    ///
    /// # Errors
    /// When a stage fails or the user stops the run; everything judged so far is kept.
    pub fn shard(&self, stages: &Stages, shard: Shard, all: &Path) -> Result<()> {
        let end = self.candidates.len();
        let batch = u64::from(self.manifest.synthesis.batch);
        let range = batch * BATCHES;
        let mut there = self.begin(end)?;
        let step = self
            .session
            .begin(&format!("painting shard {}", shard.folder()));
        // What sizes are full is for the whole to say.
        let filled = Mutex::new(self.quota.of_any_size().filled(&BTreeMap::new()));
        let shift = Shift {
            filled: &filled,
            stages,
            pool: None,
            step: &*step,
        };
        let ours =
            (0..end.div_ceil(range)).filter(|r| r % u64::from(shard.of) == u64::from(shard.index));
        let mut done = Done {
            judged: there.len() as u64,
            accepted: 0,
        };
        for start in ours.map(|r| r * range) {
            if Joined::read(all, end, false)?.fills(self.quota, start) {
                break;
            }
            let is_whole =
                |start: &u64| (*start..(start + batch).min(end)).all(|i| there.contains(&i));
            let starts = (start..(start + range).min(end)).step_by(batch as usize);
            let left: Vec<u64> = starts.filter(|start| !is_whole(start)).collect();
            self.line(&mut done, left.into_iter(), None, &shift)?;
            there.extend(start..(start + range).min(end));
        }
        step.finish(&format!("{} candidates judged", done.judged));
        Ok(())
    }

    /// The candidates that an earlier start of a shard left whole.
    fn begin(&self, end: u64) -> Result<BTreeSet<u64>> {
        let journal = self.journal();
        let batch = u64::from(self.manifest.synthesis.batch);
        let mut entries = journal.read_true(end)?.entries;
        let of_batch = |index: u64| index / batch * batch..(index / batch * batch + batch).min(end);
        let all: BTreeSet<u64> = entries.keys().copied().collect();
        entries.retain(|index, _| of_batch(*index).all(|index| all.contains(&index)));
        self.make_folders()?;
        journal.write(entries.values())?;
        Ok(entries.into_keys().collect())
    }

    /// Joins what the shards in `all` judged, from the batches that begin at `starts`, until the quota is
    /// filled.
    ///
    /// # Errors
    /// When a range is missing that is needed.
    pub(super) fn join(
        &self,
        done: &mut Done,
        starts: impl Iterator<Item = u64>,
        all: &Path,
        shift: &Shift<'_>,
    ) -> Result<()> {
        let end = self.candidates.len();
        let batch = u64::from(self.manifest.synthesis.batch);
        let mut joined = Joined::read(all, end, true)?;
        if joined.of == 0 {
            return Err(Error::data(format!(
                "there are no shards of this synthesis in `{}`: make them with `generate --shard I/N`",
                all.display()
            )));
        }
        for start in starts {
            if done.accepted >= self.quota.total() {
                break;
            }
            let judged = (start..(start + batch).min(end)).map(|index| {
                let (folder, entry) = joined.entries.remove(&index).ok_or_else(|| {
                    let shard = (index / (batch * BATCHES)) % u64::from(joined.of);
                    Error::data(format!(
                        "candidate {index} is missing: shard {shard}/{} has not come so far, so run it again",
                        joined.of
                    ))
                })?;
                let kept = !entry.files.is_empty();
                let files = kept.then_some(Kept::Linked(folder, entry.files));
                Ok(Judged {
                    record: entry.record,
                    images: files,
                    strip: None,
                })
            });
            let judged: Vec<Judged> = judged.collect::<Result<_>>()?;
            self.settle(done, judged, Some(self.quota.total()), shift)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_a_part_of_some() {
        assert_eq!(Shard::parse("3/16").unwrap(), Shard { index: 3, of: 16 });
        assert_eq!(Shard::parse("0/1").unwrap().folder(), "0-of-1");
        for text in ["", "3", "16/16", "-1/2", "1/0", "0/10001", "a/b", "1/2/3"] {
            let error = Shard::parse(text).unwrap_err().to_string();
            assert!(error.contains("is no shard"), "{error}");
        }
    }
}
