//! nnU-Net v2: a raw dataset of RGB files, as its reader `NaturalImage2DIO` takes them.
//!
//! ```text
//! Dataset501_Kvasir_SEG/
//!   dataset.json
//!   imagesTr/000000_0000.png   one RGB file a case, though it has three channels
//!   labelsTr/000000.png        class indices
//!   splits_final.json          one fold: the run's training and validation images
//!   imagesTs/, labelsTs/       test images, where they were asked for
//! ```
//!
//! `splits_final.json` belongs into the folder of the preprocessed dataset, where nnU-Net would otherwise
//! draw five folds of its own, with synthetic images among those that it validates on.

use crate::{
    case::{Case, Counts, Layout},
    classes::{BACKGROUND, Classes},
    text::{Items, TextFile},
};
use diffaug::Result;
use diffaug_run::work::reopen::Part;
use serde_json::{Map, Value, json};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// The layout.
pub struct Nnunet {
    folder: PathBuf,
    classes: Classes,
    name: String,
}

/// The folder of the dataset of that number, called after `dataset` and `arm`, of letters, digits and `_`.
pub fn folder_name(id: u16, dataset: &str, arm: Option<&str>) -> String {
    let name: Vec<&str> = [Some(dataset), arm].into_iter().flatten().collect();
    let plain = |c: char| c.is_ascii_alphanumeric();
    let name = name.join("_");
    let words: Vec<&str> = name
        .split(|c| !plain(c))
        .filter(|word| !word.is_empty())
        .collect();
    let name = if words.is_empty() {
        "diffaug".to_owned()
    } else {
        words.join("_")
    };
    format!("Dataset{id:03}_{name}")
}

fn case(number: u64) -> String {
    format!("{number:06}")
}

impl Nnunet {
    /// Begins the dataset in `folder`; `name` is what it says of itself.
    pub fn begin(folder: &Path, classes: Classes, name: &str) -> Self {
        Nnunet {
            folder: folder.to_owned(),
            classes,
            name: name.to_owned(),
        }
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        let mut file = TextFile::create(&self.folder.join(name))?;
        file.write(&(serde_json::to_string_pretty(value)? + "\n"))?;
        file.finish()
    }

    /// The one fold. Training images come first, so their numbers tell the parts.
    fn write_splits(&self, counts: Counts) -> Result<()> {
        let train = counts.real + counts.synthetic;
        let mut file = TextFile::create(&self.folder.join("splits_final.json"))?;
        let list = |file: &mut TextFile, name: &str, cases: Range<u64>| -> Result<()> {
            file.write(&format!("\"{name}\": ["))?;
            let mut items = Items::default();
            for number in cases {
                items.add(file, &case(number))?;
            }
            file.write("]")
        };
        file.write("[{")?;
        list(&mut file, "train", 0..train)?;
        file.write(",\n")?;
        list(&mut file, "val", train..train + counts.validation)?;
        file.write("}]\n")?;
        file.finish()
    }
}

impl Layout for Nnunet {
    type Note = ();

    fn image(&self, part: Part, number: u64) -> String {
        let end = if part == Part::Test { "Ts" } else { "Tr" };
        format!("images{end}/{}_0000.png", case(number))
    }

    fn label(&self, part: Part, number: u64) -> Option<String> {
        let end = if part == Part::Test { "Ts" } else { "Tr" };
        Some(format!("labels{end}/{}.png", case(number)))
    }

    fn note(&self, _: &Case) -> Result<()> {
        Ok(())
    }

    fn add(&mut self, _: ()) -> Result<()> {
        Ok(())
    }

    fn finish(self, counts: Counts) -> Result<Option<String>> {
        let mut labels = Map::from_iter([(BACKGROUND.to_owned(), json!(0))]);
        labels.extend(
            self.classes
                .named()
                .map(|(index, name)| (name.to_owned(), json!(index))),
        );
        let description = json!({
            "channel_names": { "0": "R", "1": "G", "2": "B" },
            "labels": labels,
            "numTraining": counts.real + counts.synthetic + counts.validation,
            "file_ending": ".png",
            "name": self.name,
            "description": format!(
                "{} real and {} synthetic training images and {} validation images; provenance.jsonl tells \
                 which is which",
                counts.real, counts.synthetic, counts.validation
            ),
        });
        self.write_json("dataset.json", &description)?;
        self.write_splits(counts)?;
        Ok(Some(
            "copy splits_final.json into the folder of the preprocessed dataset and train fold 0, so that \
             nnU-Net validates on real images"
                .to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_are_plain() {
        let name = |dataset| folder_name(7, dataset, None);
        assert_eq!(name("CVC-ClinicDB (PNG)"), "Dataset007_CVC_ClinicDB_PNG");
        assert_eq!(name("../é"), "Dataset007_diffaug");
        assert_eq!(folder_name(502, "a", Some("real")), "Dataset502_a_real");
    }
}
