//! The accepted images of a finished run: their records, one after the other, and their pixels.

use crate::{
    layout,
    store::Folder,
    work::record::{Record, Summary},
};
use diffaug::{
    Attributes, DatasetInfo, Error, Result, ResultExt, Sample,
    error::ErrorKind,
    files,
    image::{MaskRule, ReadOptions, open_image, open_mask},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
};

/// No class list is larger.
const MOST_CLASSES: u64 = 1 << 20;

/// The accepted images of a run.
#[derive(Debug)]
pub struct Synthetic {
    folder: PathBuf,
    list: PathBuf,
    accepted: u64,
    rule: MaskRule,
}

impl Synthetic {
    /// The images of the run folder `root`, whose dataset is described by `info`.
    pub(super) fn open(root: &Path, info: &DatasetInfo) -> Result<Self> {
        let store = Folder::new(root);
        let unfinished = || {
            Error::data(format!(
                "run `{}` has not finished painting: it has no {}",
                root.display(),
                layout::SYNTHESIS
            ))
        };
        let summary: Summary = store
            .read_marker(layout::SYNTHESIS)?
            .ok_or_else(unfinished)?;
        if let Some((path, how)) = store.first_broken(layout::CHECKSUMS)? {
            return Err(store.broken(layout::SYNTHESIS, &path, how));
        }
        Ok(Synthetic {
            folder: store.path(layout::SYNTHETIC),
            list: store.path(layout::METADATA),
            accepted: summary.accepted,
            rule: rule(&store.path(layout::CLASSES), info)?,
        })
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.accepted
    }

    /// Whether none was accepted.
    pub fn is_empty(&self) -> bool {
        self.accepted == 0
    }

    /// The record of each, in the order in which they were painted; read as they are asked for.
    ///
    /// # Errors
    /// When the list cannot be opened; each record may be an error of its own.
    pub fn records(&self) -> Result<Records> {
        let failed = || format!("cannot read `{}`", self.list.display());
        let file = files::open_regular(&self.list).or_error(ErrorKind::Data, failed)?;
        Ok(Records {
            list: self.list.clone(),
            lines: BufReader::new(file).lines(),
            line: 0,
        })
    }

    /// The image of a record with its class labels, at the run's working size; without attributes.
    ///
    /// # Errors
    /// When a file cannot be read, or holds a value that means no class.
    pub fn sample(&self, record: &Record, reading: ReadOptions) -> Result<Sample> {
        let file = |kind| self.folder.join(kind).join(layout::image(record.index));
        let image = open_image(&file(layout::IMAGES), reading)?;
        let path = file(layout::MASKS);
        let mask = open_mask(&path, reading, &self.rule)?;
        if image.size() != mask.size() {
            return Err(Error::data(format!(
                "mask `{}` is {}x{}, but its image is {}x{}",
                path.display(),
                mask.width(),
                mask.height(),
                image.width(),
                image.height()
            )));
        }
        Ok(Sample {
            id: record.id.as_str().into(),
            image,
            mask,
            attributes: Attributes::new(),
        })
    }
}

/// What the grey values of saved masks mean: `classes.json` has a grey for the name of each class.
fn rule(path: &Path, info: &DatasetInfo) -> Result<MaskRule> {
    let damaged = || format!("`{}` is damaged", path.display());
    let text = files::read_text(path, MOST_CLASSES).or_error(ErrorKind::Data, damaged)?;
    let greys: BTreeMap<String, u8> =
        serde_json::from_str(&text).or_error(ErrorKind::Data, damaged)?;
    let mut labels = BTreeMap::from([(0, 0)]);
    for class in &info.classes {
        let Some(grey) = greys.get(class.name.as_str()) else {
            return Err(Error::data(format!(
                "{}: it has no grey for the class `{}` of {}",
                damaged(),
                class.name,
                info.name
            )));
        };
        if labels.insert(*grey, class.label).is_some() {
            return Err(Error::data(format!(
                "{}: the grey {grey} means two classes",
                damaged()
            )));
        }
    }
    Ok(MaskRule::Values(labels))
}

/// The records of a list, line by line.
pub struct Records {
    list: PathBuf,
    lines: Lines<BufReader<File>>,
    line: u64,
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let text = self.lines.next()?;
        self.line += 1;
        let failed = || format!("line {} of `{}` is damaged", self.line, self.list.display());
        let record = text
            .or_error(ErrorKind::Data, failed)
            .and_then(|text| serde_json::from_str(&text).or_error(ErrorKind::Data, failed));
        Some(
            record.and_then(|record: Record| match names_own_files(&record) {
                true => Ok(record),
                false => Err(Error::data(format!(
                    "{}: it names other files than those of its number {}",
                    failed(),
                    record.index
                ))),
            }),
        )
    }
}

/// Whether the files that a record names are those that its number has; others may lie anywhere.
fn names_own_files(record: &Record) -> bool {
    let name = layout::image(record.index);
    let is = |file: &Option<String>, kind| file.as_deref() == Some(&format!("{kind}/{name}"));
    is(&record.file_name, layout::IMAGES) && is(&record.mask_file_name, layout::MASKS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    fn records(text: &str) -> Vec<Result<Record>> {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("metadata.jsonl");
        fs::write(&list, text).unwrap();
        let synthetic = Synthetic {
            folder: dir.path().to_owned(),
            list,
            accepted: 1,
            rule: MaskRule::Auto { label: 1 },
        };
        synthetic.records().unwrap().collect()
    }

    fn line(image: &str, mask: &str) -> String {
        format!(
            "{{\"file_name\":\"{image}\",\"mask_file_name\":\"{mask}\",\"id\":\"a-0\",\"index\":7,\
             \"source\":\"a\",\"variant\":0}}\n"
        )
    }

    #[test]
    fn a_record_names_the_files_of_its_number_and_no_others() {
        let good = line("images/000007.png", "masks/000007.png");
        assert_eq!(records(&good)[0].as_ref().unwrap().index, 7);
        for (image, mask) in [
            ("../../secret.png", "masks/000007.png"),
            ("images/000007.png", "masks/000008.png"),
        ] {
            let error = records(&(good.clone() + &line(image, mask)))
                .remove(1)
                .unwrap_err();
            assert!(error.message.starts_with("line 2 of "), "{error}");
            assert!(error.message.contains("its number 7"), "{error}");
        }
        let error = records("{").remove(0).unwrap_err();
        assert!(error.message.contains("is damaged"), "{error}");
    }

    #[test]
    fn greys_of_all_classes_have_to_be_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("classes.json");
        let info = DatasetInfo::single_class("d", "polyp");
        fs::write(&path, "{\"polyp\": 255}").unwrap();
        let expected = MaskRule::Values([(0, 0), (255, 1)].into());
        assert_eq!(rule(&path, &info).unwrap(), expected);
        for (text, sentence) in [
            ("{\"cup\": 255}", "no grey for the class `polyp` of d"),
            ("{\"polyp\": 0}", "the grey 0 means two classes"),
            ("{\"polyp\": 256}", "is damaged"),
        ] {
            fs::write(&path, text).unwrap();
            let error = rule(&path, &info).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
