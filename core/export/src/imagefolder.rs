//! Hugging Face `datasets`: `load_dataset("imagefolder", data_dir=FOLDER)` gives images with masks.
//!
//! ```text
//! train/metadata.jsonl       file_name, mask_file_name, id, source, synthetic, prompt
//! train/images/000000.png    column `image`
//! train/masks/000000.png     column `mask`: class indices
//! validation/, test/         the same
//! classes.json               the name of each class index
//! ```
//!
//! All lines have the same fields, none of them null: the loader takes the types of a column from its values,
//! and refuses parts whose types differ. A real image has an empty `prompt`.

use crate::{
    case::{Case, Counts, Layout},
    classes::{BACKGROUND, Classes},
    text::TextFile,
};
use diffaug::Result;
use diffaug_run::{layout, work::reopen::Part};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The layout.
pub struct Imagefolder {
    folder: PathBuf,
    classes: Classes,
    lists: BTreeMap<Part, TextFile>,
}

impl Imagefolder {
    /// Begins an export in `folder`.
    pub fn begin(folder: &Path, classes: Classes) -> Self {
        Imagefolder {
            folder: folder.to_owned(),
            classes,
            lists: BTreeMap::new(),
        }
    }
}

/// A file of a part, relative to the folder of the part.
fn file(kind: &str, number: u64) -> String {
    format!("{kind}/{}", layout::image(number))
}

impl Layout for Imagefolder {
    type Note = (Part, Value);

    fn image(&self, part: Part, number: u64) -> String {
        format!("{}/{}", part.name(), file(layout::IMAGES, number))
    }

    fn label(&self, part: Part, number: u64) -> Option<String> {
        Some(format!("{}/{}", part.name(), file(layout::MASKS, number)))
    }

    fn note(&self, case: &Case) -> Result<(Part, Value)> {
        let id = case.sample.id.as_str();
        let record = case.record.as_ref();
        let line = json!({
            "file_name": file(layout::IMAGES, case.number),
            "mask_file_name": file(layout::MASKS, case.number),
            "id": id,
            "source": record.map_or(id, |record| &record.source),
            "synthetic": case.is_synthetic(),
            "prompt": record.map_or("", |record| &record.prompt),
        });
        Ok((case.part, line))
    }

    fn add(&mut self, (part, line): (Part, Value)) -> Result<()> {
        if let Some(list) = self.lists.get_mut(&part) {
            return list.line(&line);
        }
        let path = self.folder.join(part.name()).join("metadata.jsonl");
        let mut list = TextFile::create(&path)?;
        list.line(&line)?;
        self.lists.insert(part, list);
        Ok(())
    }

    fn finish(self, _: Counts) -> Result<Option<String>> {
        self.lists.into_values().try_for_each(TextFile::finish)?;
        let mut names = Map::from_iter([("0".to_owned(), json!(BACKGROUND))]);
        let named = self.classes.named();
        names.extend(named.map(|(index, name)| (index.to_string(), json!(name))));
        let mut file = TextFile::create(&self.folder.join("classes.json"))?;
        file.write(&(serde_json::to_string_pretty(&names)? + "\n"))?;
        file.finish()?;
        Ok(None)
    }
}
