//! What was painted in a run: every candidate, the small pictures of the first ones, and what all came to.

use super::{Run, read_json_if_there};
use crate::{
    journal::Journal,
    layout,
    store::Folder,
    work::record::{Record, Summary},
};
use diffaug::{Result, ResultExt, error::ErrorKind, files};
use std::io::{BufRead, BufReader};

/// No small picture is larger.
const MOST_PICTURE: u64 = 1 << 20;

/// The candidates of a run, and what of them is missing.
#[derive(Debug, Default)]
pub struct Painted {
    /// In their order; those for which nothing was painted are among them.
    pub records: Vec<Record>,
    /// Whether the synthesis is done.
    pub finished: bool,
    /// What could not be read, a sentence each.
    pub missing: Vec<String>,
}

impl Run {
    /// The candidates that were judged, of an unfinished synthesis those so far; `None` where none was begun.
    ///
    /// # Errors
    /// When a list is there and cannot be read.
    pub fn painted(&self) -> Result<Option<Painted>> {
        let there = |name: &str| self.root().join(name).exists();
        let finished = there(layout::SYNTHESIS);
        if !finished && there(layout::JOURNAL) {
            return self.journal().map(Some);
        }
        if !finished && !there(layout::METADATA) {
            return Ok(None);
        }
        let mut painted = Painted {
            finished,
            ..Painted::default()
        };
        for list in [layout::METADATA, layout::REJECTED_LIST] {
            match there(list) {
                true => self.add_list(list, &mut painted)?,
                false => painted.missing.push(format!("`{list}` is not there")),
            }
        }
        painted.records.sort_by_key(|record| record.index);
        Ok(Some(painted))
    }

    /// What the journal of a synthesis that goes on says.
    fn journal(&self) -> Result<Painted> {
        let folder = Folder::new(self.root());
        let journal: Journal<'_, Record> = Journal::new(&folder, layout::JOURNAL);
        let contents = journal.read()?;
        let mut painted = Painted::default();
        if contents.damaged > 0 {
            let (list, lines) = (layout::JOURNAL, contents.damaged);
            let sentence = format!("{lines} lines of `{list}` are damaged and left out");
            painted.missing.push(sentence);
        }
        let entries = contents.entries.into_values();
        painted.records = entries.map(|entry| entry.record).collect();
        Ok(painted)
    }

    /// Adds the records of a list that users read.
    fn add_list(&self, list: &str, painted: &mut Painted) -> Result<()> {
        let path = self.root().join(list);
        let failed = || format!("cannot read `{}`", path.display());
        let file = files::open_regular(&path).or_error(ErrorKind::Data, failed)?;
        for (number, line) in (1..).zip(BufReader::new(file).lines()) {
            let line = line.or_error(ErrorKind::Data, failed)?;
            match serde_json::from_str(&line) {
                Ok(record) => painted.records.push(record),
                Err(error) => {
                    let sentence =
                        format!("line {number} of `{list}` is damaged and left out: {error}");
                    painted.missing.push(sentence);
                }
            }
        }
        Ok(())
    }

    /// What the synthesis came to; `None` where it is not done.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn summary(&self) -> Result<Option<Summary>> {
        read_json_if_there(&self.root().join(layout::SYNTHESIS))
    }

    /// The small picture of a candidate, as the bytes of a JPEG file; `None` where there is none.
    pub fn strip(&self, index: u64) -> Option<Vec<u8>> {
        files::read(&self.root().join(layout::strip(index)), MOST_PICTURE).ok()
    }

    /// Whether there is a small picture of a candidate.
    pub fn has_strip(&self, index: u64) -> bool {
        self.root().join(layout::strip(index)).is_file()
    }

    /// A number for all that is there of the run that grows while it goes on: it changes when a page of the
    /// run would.
    pub fn state(&self) -> String {
        let size = |name: &str| {
            let metadata = self.root().join(name).metadata();
            metadata.map_or(0, |metadata| metadata.len())
        };
        let lists = [
            layout::JOURNAL,
            layout::METADATA,
            layout::REJECTED_LIST,
            layout::SYNTHESIS,
            layout::CONTACT_SHEET,
            layout::RESULT,
            layout::LOCK,
            layout::SPLIT,
            layout::MANIFEST,
        ];
        let logs = self.training_folders().into_iter();
        let logs = logs.flat_map(|folder| {
            [
                format!("{folder}/{}", layout::TRAINING_LOG),
                layout::fit_of(&folder),
            ]
        });
        // What cannot be listed may be removed just now.
        let arms = self.arms().unwrap_or_default().into_iter();
        let scores = arms.flat_map(|arm| self.trainings(&arm).unwrap_or_default());
        let scores = scores.map(|training| training.scores());
        let measures = self.measures().unwrap_or_default().into_iter();
        let measures = measures.map(|name| layout::measure(&name));
        let names = lists.map(str::to_owned).into_iter();
        let all = names.chain(logs).chain(scores).chain(measures);
        let sizes: Vec<String> = all.map(|name| size(&name).to_string()).collect();
        files::hash(sizes.join(" ").as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::journal::Entry;
    use serde_json::json;
    use std::{collections::BTreeMap, fs, path::Path};

    fn record(index: u64, accepted: bool) -> Record {
        let record = json!({
            "file_name": accepted.then_some("images/a.png"), "id": format!("a/{index}"),
            "index": index, "source": "a", "variant": 0, "score": 0.5,
        });
        serde_json::from_value(record).unwrap()
    }

    /// A run of which nothing is there but what it is made of.
    fn begun(root: &Path) -> Run {
        fs::create_dir_all(root.join("synthetic")).unwrap();
        fs::write(root.join(layout::LOCK), "{}").unwrap();
        Run::open(root).unwrap()
    }

    fn indices(painted: &Painted) -> Vec<u64> {
        painted.records.iter().map(|record| record.index).collect()
    }

    #[test]
    fn candidates_are_read_from_the_journal_while_they_are_painted() {
        let folder = tempfile::tempdir().unwrap();
        let run = begun(folder.path());
        assert!(run.painted().unwrap().is_none() && run.counts().is_none());
        let before = run.state();
        let store = Folder::new(folder.path());
        let entry = |index| Entry {
            record: record(index, index == 1),
            files: BTreeMap::new(),
        };
        let journal = Journal::new(&store, layout::JOURNAL);
        journal.write(&[entry(1), entry(0)]).unwrap();
        let painted = run.painted().unwrap().unwrap();
        assert_eq!((indices(&painted), painted.finished), (vec![0, 1], false));
        assert!(painted.missing.is_empty());
        assert_ne!(run.state(), before);
        // Half a line is what a process writes just now; a whole one that is no entry is damage.
        let path = folder.path().join(layout::JOURNAL);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{}}\n{{\"rec")).unwrap();
        let painted = run.painted().unwrap().unwrap();
        assert_eq!(painted.records.len(), 2);
        assert_eq!(
            painted.missing,
            ["1 lines of `synthetic/journal.jsonl` are damaged and left out"]
        );
    }

    #[test]
    fn candidates_are_read_from_the_lists_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let run = begun(folder.path());
        let line = |index, accepted| serde_json::to_string(&record(index, accepted)).unwrap();
        fs::write(folder.path().join(layout::SYNTHESIS), "{}").unwrap();
        let rejected = format!("{}\nno JSON\n", line(0, false));
        fs::write(folder.path().join(layout::REJECTED_LIST), rejected).unwrap();
        let painted = run.painted().unwrap().unwrap();
        assert_eq!((indices(&painted), painted.finished), (vec![0], true));
        let [lost, damaged] = &painted.missing[..] else {
            panic!("{:?}", painted.missing);
        };
        assert_eq!(lost, "`synthetic/metadata.jsonl` is not there");
        assert!(
            damaged.starts_with("line 2 of `rejected.jsonl` is damaged"),
            "{damaged}"
        );
        let accepted = format!("{}\n{}\n", line(2, true), line(1, true));
        fs::write(folder.path().join(layout::METADATA), accepted).unwrap();
        assert_eq!(indices(&run.painted().unwrap().unwrap()), [0, 1, 2]);
    }
}
