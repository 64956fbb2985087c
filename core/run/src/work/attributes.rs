//! Facts of images from a file beside the dataset: `attributes.csv`, for any dataset.
//!
//! ```csv
//! image,key,value
//! 12,flat,yes
//! 12,morphology,sessile
//! 12,vascular,irregular
//! 13,paris_score,2
//! ```
//!
//! `image` is the id of a sample, `key` the name of the fact in lower case. `yes` and `no` are flags, what
//! reads as a number is one, all else is a word. A fact of the file wins over one that the dataset states
//! or that is measured. A file is read only where the manifest names it (`attributes.file`).

use crate::manifest::Manifest;
use diffaug::{
    Attributes, Dataset, DatasetInfo, Error, ErrorKind, Item, Result, ResultExt, Sample, files,
    pairs::composed,
    prelude::RVec,
    records::{Record, records},
    view::Shared,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// The field of the manifest that names the file.
pub const FIELD: &str = "attributes.file";
/// What the first line must hold.
const HEADER: [&str; 3] = ["image", "key", "value"];
/// Most bytes of a file; a fact takes some dozens.
const MOST: u64 = 64 << 20;

/// The facts of a file.
#[derive(Debug, Default)]
pub struct Facts {
    path: String,
    images: BTreeMap<String, Stated>,
}

/// What a file states of one image.
#[derive(Debug, Default)]
struct Stated {
    /// The line of the first fact.
    line: u64,
    facts: Attributes,
}

impl Facts {
    /// Reads what the manifest names; `None` where it names nothing.
    ///
    /// # Errors
    /// At [`FIELD`], when the file cannot be read or a line is not `image,key,value`.
    pub fn named(manifest: &Manifest) -> Result<Option<Self>> {
        let Some(path) = &manifest.attributes.file else {
            return Ok(None);
        };
        Facts::read(path).map(Some).map_err(|e| e.at(FIELD))
    }

    fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = files::read_text(path, MOST)
            .or_error(ErrorKind::Data, || format!("cannot read `{shown}`"))?;
        Facts::parse(&shown.to_string(), &text)
    }

    fn parse(path: &str, text: &str) -> Result<Self> {
        let mut records = records(path, text)?.into_iter();
        let (line, header) = records
            .next()
            .map_or((1, Vec::new()), |first| (first.line, first.fields));
        if header != HEADER {
            return Err(Error::data(format!(
                "line {line} of `{path}` is `{}`, expected `{}`",
                header.join(","),
                HEADER.join(",")
            )));
        }
        let mut all = Facts {
            path: path.to_owned(),
            images: BTreeMap::new(),
        };
        for Record { line, fields } in records {
            all.add(line, &fields)
                .map_err(|fault| Error::data(format!("line {line} of `{path}` {fault}")))?;
        }
        Ok(all)
    }

    /// Adds a line, or says what is wrong with it.
    fn add(&mut self, line: u64, fields: &[String]) -> Result<(), String> {
        let [image, key, value] = fields else {
            return Err(format!("has {} fields, expected 3", fields.len()));
        };
        for (name, field) in HEADER.iter().zip([image, key, value]) {
            if field.is_empty() {
                return Err(format!("has no `{name}`"));
            }
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
        if !key.chars().all(plain) {
            return Err(format!(
                "has the key `{key}`, expected lower-case letters, digits, `_` and `-`"
            ));
        }
        let stated = self.images.entry(composed(image)).or_default();
        if stated.line == 0 {
            stated.line = line;
        }
        if stated.facts.get(key).is_some() {
            return Err(format!("states `{key}` of `{image}` a second time"));
        }
        match (value.as_str(), value.parse::<f64>()) {
            ("yes", _) => stated.facts.set_flag(key, true),
            ("no", _) => stated.facts.set_flag(key, false),
            (_, Ok(number)) if number.is_finite() => stated.facts.set_number(key, number),
            (_, Ok(_)) => return Err(format!("has the value `{value}`, which is no number")),
            (_, Err(_)) => stated.facts.set_text(key, value),
        }
        Ok(())
    }

    /// Checks that every image is one of the dataset's.
    ///
    /// # Errors
    /// At [`FIELD`], naming the first line that speaks of another.
    pub fn check(&self, info: &DatasetInfo, items: &[Item]) -> Result<()> {
        let known: BTreeSet<String> = items.iter().map(|item| composed(&item.id)).collect();
        let strangers = self.images.iter().filter(|(id, _)| !known.contains(*id));
        let Some((id, stated)) = strangers.min_by_key(|(_, stated)| stated.line) else {
            return Ok(());
        };
        let like = items.first().map_or(String::new(), |item| {
            format!("; its ids are like `{}`", item.id)
        });
        Err(Error::data(format!(
            "line {} of `{}` speaks of `{id}`, which is no image of {}{like}",
            stated.line, self.path, info.name
        ))
        .at(FIELD))
    }
}

/// A dataset with the facts of a file.
pub struct Annotated {
    inner: Shared,
    facts: Facts,
}

impl Annotated {
    /// `inner` with `facts`.
    pub fn new(inner: Shared, facts: Facts) -> Self {
        Annotated { inner, facts }
    }
}

impl Dataset for Annotated {
    fn info(&self) -> Result<DatasetInfo> {
        self.inner.info()
    }
    fn items(&self) -> Result<RVec<Item>> {
        self.inner.items()
    }
    fn check(&self, index: u64) -> Result<()> {
        self.inner.check(index)
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        let mut sample = self.inner.sample(index)?;
        if let Some(stated) = self.facts.images.get(&composed(&sample.id)) {
            sample.attributes.extend(&stated.facts);
        }
        Ok(sample)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Image, Mask};
    use std::sync::Arc;

    const SOUND: &str = "image,key,value\n12,flat,yes\n12, morphology ,sessile\n\n\"12\",paris,0.5\n\
                         b c,flat,no\n12,note,\"a, b\"\n";

    fn parse(text: &str) -> Result<Facts> {
        Facts::parse("f.csv", text)
    }

    #[test]
    fn values_are_flags_numbers_and_words() {
        for text in [
            SOUND.to_owned(),
            format!("\u{feff}{}", SOUND.replace('\n', "\r\n")),
        ] {
            let found = parse(&text).unwrap();
            let facts = &found.images["12"].facts;
            assert_eq!(facts.flag("flat"), Some(true));
            assert_eq!(facts.text("morphology"), Some("sessile"));
            assert_eq!(facts.number("paris"), Some(0.5));
            assert_eq!(facts.text("note"), Some("a, b"));
            assert_eq!(found.images["b c"].facts.flag("flat"), Some(false));
        }
    }

    #[test]
    fn faults_name_file_and_line() {
        for (from, to, sentence) in [
            (
                "image,key,value\n",
                "",
                "line 1 of `f.csv` is `12,flat,yes`, expected `image,key,value`",
            ),
            ("image,key", "key,image", "is `key,image,value`, expected"),
            (
                "12,flat,yes",
                "12,flat",
                "line 2 of `f.csv` has 2 fields, expected 3",
            ),
            (
                "12,flat,yes",
                "12,flat,yes,no",
                "line 2 of `f.csv` has 4 fields, expected 3",
            ),
            ("sessile", "", "line 3 of `f.csv` has no `value`"),
            ("b c,", ",", "line 6 of `f.csv` has no `image`"),
            (
                "paris",
                "Paris",
                "line 5 of `f.csv` has the key `Paris`, expected lower-case",
            ),
            (
                "paris",
                "flat",
                "line 5 of `f.csv` states `flat` of `12` a second time",
            ),
            (
                "0.5",
                "NaN",
                "line 5 of `f.csv` has the value `NaN`, which is no number",
            ),
        ] {
            let text = SOUND.replacen(from, to, 1);
            for text in [text.replace('\n', "\r\n"), text] {
                let error = parse(&text).unwrap_err().to_string();
                assert!(error.contains(sentence), "{error}");
            }
        }
        assert!(
            parse("")
                .unwrap_err()
                .to_string()
                .contains("expected `image,key,value`")
        );
        assert!(parse("image,key,value\n").unwrap().images.is_empty());
    }

    #[test]
    fn anything_is_answered() {
        let seeds = [SOUND.as_bytes().to_vec()];
        let read = diffaug::mutate::each("attributes", &seeds, 3_000, |bytes| {
            let _ = parse(&String::from_utf8_lossy(bytes));
        });
        assert!(read > 0);
    }

    /// Two grey images, `12` and `13`; states that both are flat and of contrast 3.
    struct Two;

    impl Dataset for Two {
        fn info(&self) -> Result<DatasetInfo> {
            Ok(DatasetInfo::single_class("two", "dot"))
        }
        fn items(&self) -> Result<RVec<Item>> {
            Ok(RVec::from(vec![Item::new("12"), Item::new("13")]))
        }
        fn sample(&self, index: u64) -> Result<Sample> {
            let mut labels = vec![0; 256];
            labels[100] = 1;
            let mut attributes = Attributes::new();
            attributes.set_flag("flat", false);
            attributes.set_number("contrast", 3.0);
            Ok(Sample {
                id: (12 + index).to_string().into(),
                image: Image::new(16, 16, vec![90; 768])?,
                mask: Mask::new(16, 16, labels)?,
                attributes,
            })
        }
    }

    #[test]
    fn the_file_wins_over_the_dataset_and_the_dataset_over_measures() {
        let facts = parse("image,key,value\n12,flat,yes\n12,brightness,7\n").unwrap();
        let two: Shared = Arc::new(Two);
        let (info, items) = (two.info().unwrap(), two.items().unwrap());
        facts.check(&info, &items).unwrap();
        let annotated: Shared = Arc::new(Annotated::new(two, facts));
        let view = diffaug::view::Prepared::new(annotated, None, 0).unwrap();
        let [first, second] = [0, 1].map(|i| view.sample(i).unwrap().attributes);
        assert_eq!(
            (first.flag("flat"), second.flag("flat")),
            (Some(true), Some(false))
        );
        assert_eq!(first.number("contrast"), Some(3.0));
        assert_eq!(first.number("brightness"), Some(7.0));
        assert_eq!(second.number("brightness"), Some(90.0));
    }

    #[test]
    fn strangers_are_found_by_their_line() {
        let facts = parse("image,key,value\n13,flat,yes\nz.png,flat,no\na,flat,no\n").unwrap();
        let (info, items) = (Two.info().unwrap(), Two.items().unwrap());
        let error = facts.check(&info, &items).unwrap_err();
        assert_eq!(error.field.as_str(), FIELD);
        assert_eq!(
            error.message.as_str(),
            "line 3 of `f.csv` speaks of `z.png`, which is no image of two; its ids are like `12`"
        );
    }
}
