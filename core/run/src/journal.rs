//! The journal of what is painted: a line for each candidate that was judged, with the hashes of the
//! images that were kept of it and, last, a seal over the line itself.
//!
//! It is what a later start goes by, so nothing is believed that is not whole: a line whose seal does
//! not fit is left out, and so is one whose images are no longer those that were written.

use crate::store::Folder;
use diffaug::{
    Error, Result, ResultExt,
    error::ErrorKind,
    files::{self, hash, hash_file, is_sha256},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind as Io, Write},
    marker::PhantomData,
    path::PathBuf,
};

const SEAL: &str = ",\"seal\":\"";

/// What a journal holds a line of for each candidate.
pub trait Line: Serialize + DeserializeOwned + Send + Sync {
    /// The candidate's number.
    fn index(&self) -> u64;
    /// Whether its image was kept.
    fn accepted(&self) -> bool;
}

/// What became of a candidate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry<R> {
    /// The line that users will read.
    pub record: R,
    /// SHA-256 of files that were written, by their names below the run folder.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

impl<R: Line> Entry<R> {
    /// The entry as a line, without its end.
    fn line(&self) -> Result<String> {
        let body = serde_json::to_string(self)?;
        let open = body.strip_suffix('}').unwrap_or(&body);
        Ok(format!("{open}{SEAL}{}\"}}", hash(body.as_bytes())))
    }

    /// The entry of a line; `None` where the line is not whole.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix("\"}")?;
        let (open, seal) = line.rsplit_once(SEAL)?;
        let body = format!("{open}}}");
        let whole = is_sha256(seal) && hash(body.as_bytes()) == seal;
        serde_json::from_str(&body).ok().filter(|_| whole)
    }
}

/// What a journal holds.
#[derive(Debug)]
pub struct Contents<R> {
    /// The entries that are whole, by their index.
    pub entries: BTreeMap<u64, Entry<R>>,
    /// How many lines are not.
    pub damaged: usize,
}

impl<R> Default for Contents<R> {
    fn default() -> Self {
        Contents {
            entries: BTreeMap::new(),
            damaged: 0,
        }
    }
}

impl<R: Line> Contents<R> {
    fn parse(bytes: &[u8]) -> Self {
        let mut contents = Contents::default();
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        // Behind the last end of a line there is nothing, or a line that a kill cut short.
        lines.pop();
        for line in lines {
            match Entry::<R>::parse(line) {
                Some(entry) => {
                    contents
                        .entries
                        .entry(entry.record.index())
                        .or_insert(entry);
                }
                None => contents.damaged += 1,
            }
        }
        contents
    }
}

/// What an earlier start left, in whole batches. One of which anything is damaged is painted again; it
/// comes out as before, for a candidate depends on nothing but its index.
#[derive(Debug)]
pub struct Left<R> {
    /// What is kept.
    pub entries: BTreeMap<u64, Entry<R>>,
    /// Where batches begin that were judged once and are to be painted again.
    pub lost: Vec<u64>,
    /// Where the batches begin that were never judged.
    pub next: u64,
}

impl<R: Line> Left<R> {
    /// Of `entries`, where there are candidates up to `end`, and a run is finished when `quota` of
    /// them are accepted.
    pub fn of(mut entries: BTreeMap<u64, Entry<R>>, end: u64, batch: u64, quota: u64) -> Self {
        let Some(newest) = entries.keys().next_back().copied() else {
            return Left {
                entries,
                lost: Vec::new(),
                next: 0,
            };
        };
        let last = newest / batch * batch;
        let whole = |start: &u64| {
            let wanted = batch.min(end.saturating_sub(*start));
            entries.range(*start..start + wanted).count() as u64 == wanted
        };
        let lost: Vec<u64> = (0..last)
            .step_by(batch as usize)
            .filter(|start| !whole(start))
            .collect();
        // The last batch may end at the quota; it is complete then, if nothing at all is missing.
        let complete = entries.len() as u64 == newest + 1 && accepted(&entries) >= quota;
        let keeps_last = complete || whole(&last);
        entries.retain(|index, _| lost.binary_search(&(index / batch * batch)).is_err());
        if !keeps_last {
            drop(entries.split_off(&last));
        }
        Left {
            entries,
            lost,
            next: if keeps_last { newest + 1 } else { last },
        }
    }

    /// How many are accepted.
    pub fn accepted(&self) -> u64 {
        accepted(&self.entries)
    }
}

fn accepted<R: Line>(entries: &BTreeMap<u64, Entry<R>>) -> u64 {
    entries.values().filter(|e| e.record.accepted()).count() as u64
}

/// A journal in a run folder.
pub struct Journal<'a, R> {
    store: &'a Folder,
    name: &'static str,
    lines: PhantomData<R>,
}

impl<'a, R: Line> Journal<'a, R> {
    /// The journal `name` of `store`.
    pub fn new(store: &'a Folder, name: &'static str) -> Self {
        Journal {
            store,
            name,
            lines: PhantomData,
        }
    }

    fn path(&self) -> PathBuf {
        self.store.path(self.name)
    }

    /// What is in it; nothing where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Contents<R>> {
        let path = self.path();
        if matches!(path.symlink_metadata(), Err(error) if error.kind() == Io::NotFound) {
            return Ok(Contents::default());
        }
        let bytes = files::read(&path, u64::MAX).or_error(ErrorKind::Data, || {
            format!("cannot read `{}`", path.display())
        })?;
        Ok(Contents::parse(&bytes))
    }

    /// What is in it and still true: the entries of candidates below `end` whose images are there as
    /// they were written. Says what is not.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_true(&self, end: u64) -> Result<Contents<R>> {
        let mut contents = self.read()?;
        contents.entries.retain(|index, _| *index < end);
        let lost: Vec<u64> = contents
            .entries
            .par_iter()
            .filter(|(_, entry)| !self.has_images(entry))
            .map(|(index, _)| *index)
            .collect();
        for index in &lost {
            contents.entries.remove(index);
        }
        let shown = self.path();
        if contents.damaged > 0 {
            tracing::warn!(
                "{} of the lines of `{}` are damaged: those candidates are painted again, {} are kept",
                contents.damaged,
                shown.display(),
                contents.entries.len()
            );
        }
        if let Some(first) = lost.first() {
            tracing::warn!(
                "the images of {} candidates (the first is number {first}) are not as `{}` says: \
                 they are painted again",
                lost.len(),
                shown.display()
            );
        }
        Ok(contents)
    }

    fn has_images(&self, entry: &Entry<R>) -> bool {
        let same = |(name, hash): (&String, &String)| {
            hash_file(&self.store.path(name)).is_ok_and(|found| found == *hash)
        };
        entry.files.iter().all(same)
    }

    /// Replaces what is in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write<'e>(&self, entries: impl IntoIterator<Item = &'e Entry<R>>) -> Result<()>
    where
        R: 'e,
    {
        let mut text = String::new();
        for entry in entries {
            text += &(entry.line()? + "\n");
        }
        files::write_atomic(&self.path(), text.as_bytes())
    }

    /// Adds entries, whose images are on the disk already.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn append(&self, entries: &[Entry<R>]) -> Result<()> {
        let mut text = String::new();
        for entry in entries {
            text += &(entry.line()? + "\n");
        }
        let path = self.path();
        let add = || {
            let mut file = File::options().append(true).open(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_data()
        };
        add().or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", path.display())
        })
    }

    /// All of it, in the order of the candidates.
    ///
    /// # Errors
    /// When a line is damaged: it was written in this process.
    pub fn entries(&self) -> Result<Vec<Entry<R>>> {
        let contents = self.read()?;
        if contents.damaged > 0 {
            let shown = self.path().display().to_string();
            return Err(Error::data(format!(
                "`{shown}` was changed while the run wrote to it: start the run again"
            )));
        }
        Ok(contents.entries.into_values().collect())
    }

    /// Removes it; what it says stands elsewhere by now.
    pub fn remove(&self) {
        let _ = fs::remove_file(self.path());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::work::record::Record;
    use serde_json::json;

    fn entry(index: u64) -> Entry<Record> {
        let record = json!({
            "file_name": "images/a.png", "id": format!("a\u{9b}/{index}"), "index": index,
            "source": "a", "variant": 0, "score": 0.1 + 0.2, "measures": {"iou": 1e-7},
        });
        Entry {
            record: serde_json::from_value(record).unwrap(),
            files: BTreeMap::from([("a".to_owned(), hash(b"a"))]),
        }
    }

    fn text(count: u64) -> Vec<u8> {
        let lines = (0..count).map(|index| entry(index).line().unwrap() + "\n");
        lines.collect::<String>().into_bytes()
    }

    #[test]
    fn whole_lines_are_kept_whatever_stands_beside_them() {
        let contents = Contents::<Record>::parse(&text(3));
        assert_eq!((contents.entries.len(), contents.damaged), (3, 0));
        let line = |index| entry(index).line().unwrap();
        assert_eq!(contents.entries[&1].line().unwrap(), line(1));
        let mut spoilt = text(3);
        // In the middle line, and no longer UTF-8.
        spoilt[line(0).len() + 30] = 0xff;
        spoilt.extend(&line(3).as_bytes()[..40]);
        let contents = Contents::<Record>::parse(&spoilt);
        let kept: Vec<u64> = contents.entries.keys().copied().collect();
        assert_eq!((kept, contents.damaged), (vec![0, 2], 1));
        assert_eq!(Contents::<Record>::parse(b"").entries.len(), 0);
        assert_eq!(Contents::<Record>::parse(b"{}\n\n\0\0\n").damaged, 3);
    }

    #[test]
    fn batches_are_kept_whole_or_painted_again() {
        let left = |there: &[u64], quota| {
            let entries = there.iter().map(|index| (*index, entry(*index))).collect();
            let left = Left::of(entries, 10, 3, quota);
            let kept: Vec<u64> = left.entries.keys().copied().collect();
            (kept, left.lost, left.next)
        };
        assert_eq!(left(&[], 9), (vec![], vec![], 0));
        // A batch that was cut short, unless the quota ended it.
        assert_eq!(left(&[0, 1, 2, 3, 4], 9), (vec![0, 1, 2], vec![], 3));
        assert_eq!(left(&[0, 1, 2, 3, 4], 5), (vec![0, 1, 2, 3, 4], vec![], 5));
        // The last batch of all has one.
        let all: Vec<u64> = (0..10).collect();
        assert_eq!(left(&all, 99), (all.clone(), vec![], 10));
        // Something is missing in the first batch; what came after it stays.
        let (kept, lost, next) = left(&[0, 2, 3, 4, 5], 9);
        assert_eq!((kept, lost, next), (vec![3, 4, 5], vec![0], 6));
        // Then it cannot be told whether the quota ended the last.
        let (kept, lost, next) = left(&[0, 2, 3, 4, 5, 6], 5);
        assert_eq!((kept, lost, next), (vec![3, 4, 5], vec![0], 6));
        assert_eq!(left(&[7], 1), (vec![], vec![0, 3], 6));
        assert_eq!(left(&[1, 2], 1), (vec![], vec![], 0));
    }

    #[test]
    fn mutated_journals_give_no_wrong_line() {
        let whole = text(4);
        let lines: Vec<String> = (0..4).map(|index| entry(index).line().unwrap()).collect();
        diffaug::mutate::each("journal", &[whole], 2000, |text| {
            for (index, entry) in Contents::<Record>::parse(text).entries {
                assert_eq!(entry.line().unwrap(), lines[index as usize]);
            }
        });
    }
}
