//! Experiments: a manifest with arms, each a change to it, and a matrix of values for all of them.
//!
//! Every arm under every combination of the matrix is a *cell*: a run of its own, with one arm that is
//! scored. Cells share whatever steps they have in common through the store.

pub mod cluster;
pub mod jobs;
mod matrix;
pub mod outlook;
pub mod settings;
pub mod sheets;
pub mod table;
pub mod tasks;

use crate::{
    failure::Failure,
    layout,
    manifest::{Document, EXPERIMENT, Manifest, names_folder},
    reader::Run,
    results::{self, Lock},
    store,
    work::measuring::Figure,
};
use diffaug::{Error, ErrorKind, Result, ResultExt, files};
use matrix::groups;
use serde_json::Value;
use settings::{Settings, settings};
use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};

/// Held by the process that works on an experiment, in its folder.
const LOCK: &str = ".lock";
/// No experiment has more cells.
const MOST_CELLS: usize = 1_000;

/// A manifest with arms.
pub struct Experiment {
    /// Its name.
    pub name: String,
    /// The folder of its cells and tables.
    pub folder: PathBuf,
    /// Its settings.
    pub settings: Settings,
    /// Every arm in every group, group by group.
    pub cells: Vec<Cell>,
    /// Where everything was written.
    document: Document,
}

/// An arm under one combination of the matrix.
pub struct Cell {
    /// The arm.
    pub arm: String,
    /// What the values of the matrix are called together; empty without a matrix.
    pub group: String,
    /// The run.
    pub manifest: Manifest,
    /// Where its values were written.
    pub document: Document,
}

impl Cell {
    /// `GROUP/ARM`, or the arm alone.
    pub fn name(&self) -> String {
        match self.group.as_str() {
            "" => self.arm.clone(),
            group => format!("{group}/{}", self.arm),
        }
    }

    /// What `result.json` says of the arm; `None` where the run is not finished.
    ///
    /// # Errors
    /// When a file of the run is damaged.
    fn result(&self) -> Result<Option<Value>> {
        let folder = self.manifest.output();
        if !folder.join(layout::RESULT).is_file() {
            return Ok(None);
        }
        let run = Run::open(&folder)?;
        let result = run.result()?.unwrap_or_default();
        let arms = result["arms"].as_array().into_iter().flatten();
        let mut own = arms.filter(|arm| arm["name"] == self.scored());
        let missing = || {
            Error::data(format!(
                "the result of `{}` has no arm `{}`",
                folder.display(),
                self.scored()
            ))
        };
        own.next().cloned().ok_or_else(missing).map(Some)
    }

    /// The arm of the run that is scored.
    pub fn scored(&self) -> &'static str {
        match self.manifest.paints() {
            true => layout::AUGMENTED,
            false => layout::REAL,
        }
    }
}

impl Experiment {
    /// Whether a document is an experiment and not the manifest of one run.
    pub fn is(document: &Document) -> bool {
        EXPERIMENT.iter().any(|table| document.has(table))
    }

    /// Reads an experiment with its bases and overrides.
    ///
    /// # Errors
    /// With the place in the file.
    pub fn read(file: &Path, overrides: &[String]) -> Result<Self, Failure> {
        let document = Document::read(file, overrides)?;
        let settings = settings(&document)?;
        let mut plain = document.clone();
        EXPERIMENT.iter().for_each(|table| plain.remove(table));
        let Some(Value::Object(arms)) = document.value("arms") else {
            let shown = file.display();
            let error = Error::config(format!("`{shown}` has no arms, so it is no experiment"));
            return Err(Failure::from(error).hint("a table `[arms.NAME]` makes one"));
        };
        let mut experiment = Experiment {
            name: String::new(),
            folder: PathBuf::new(),
            cells: Vec::new(),
            settings,
            document: document.clone(),
        };
        let groups = groups(&document)?;
        if groups.len() * arms.len() > MOST_CELLS {
            let message = format!(
                "{} arms in {} groups are more than {MOST_CELLS} runs",
                arms.len(),
                groups.len()
            );
            return Err(document.failure("", Error::config(message).at("matrix")));
        }
        for group in &groups {
            let mut base = plain.clone();
            for (path, at, value) in &group.values {
                base.overlay(path, value, at, &document);
            }
            for (arm, changes) in arms {
                let from = format!("arms.{arm}");
                let mut own = base.clone();
                own.overlay("", changes, &from, &document);
                let manifest = Manifest::of(&own)?;
                if experiment.cells.is_empty() {
                    experiment.name.clone_from(&manifest.name);
                    experiment.folder = manifest.output();
                }
                let cell = experiment.cell(arm, &group.name, manifest, own);
                check_name(arm).map_err(|error| document.failure("", error.at(&from)))?;
                experiment.cells.push(cell);
            }
        }
        experiment.check_primary(&document)?;
        experiment.check_quoted(&document)?;
        Ok(experiment)
    }

    /// The run of an arm: one arm that is scored, in a folder of its own, in one store with all others.
    fn cell(&self, arm: &str, group: &str, mut manifest: Manifest, document: Document) -> Cell {
        let store = manifest.store();
        let paints = manifest.paints();
        manifest.evaluate.seeds = Some(self.settings.seeds.clone());
        manifest.evaluate.baseline = !paints;
        manifest.output = Some(self.folder.join(group).join(arm));
        manifest.store = Some(store);
        Cell {
            arm: arm.to_owned(),
            group: group.to_owned(),
            manifest,
            document,
        }
    }

    /// Checks that the arms of the primary comparison exist.
    fn check_primary(&self, document: &Document) -> Result<(), Failure> {
        let arms: BTreeSet<&str> = self.cells.iter().map(|cell| cell.arm.as_str()).collect();
        for arm in self.settings.primary.iter().flatten() {
            if !arms.contains(arm.as_str()) {
                let arms: Vec<&str> = arms.into_iter().collect();
                let error = Error::config(format!(
                    "`experiment.primary` names the arm `{arm}`, but the arms are {}",
                    arms.join(", ")
                ));
                return Err(document.failure("", error.at("experiment.primary")));
            }
        }
        Ok(())
    }

    /// Checks that figures are quoted for arms that exist.
    fn check_quoted(&self, document: &Document) -> Result<(), Failure> {
        let quoted = self.settings.quoted.iter();
        let mut names = quoted.flat_map(|quoted| quoted.figures.keys());
        let known = |name: &&String| {
            let cells = self.cells.iter();
            cells
                .into_iter()
                .any(|cell| cell.arm == **name || cell.name() == **name)
        };
        let tables = self
            .settings
            .quoted
            .iter()
            .flat_map(|quoted| quoted.tables.keys());
        if let Some(name) = tables
            .into_iter()
            .find(|name| !sheets::NAMES.contains(&name.as_str()))
        {
            let at = format!("experiment.quoted.tables.{name}");
            let message = format!(
                "`{at}` is no table, expected one of {}",
                sheets::NAMES.join(", ")
            );
            return Err(document.failure("", Error::config(message).at(&at)));
        }
        match names.find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                let at = "experiment.quoted.figures";
                let message = format!("`{at}` names the arm `{name}`, which there is not");
                Err(document.failure("", Error::config(message).at(at)))
            }
        }
    }

    /// Checks that every cell has the figures that are compared and shown, and that those of one name are
    /// measured alike; `figures` are those of the images of each cell.
    ///
    /// # Errors
    /// When one has not, with the place in the file.
    pub fn check_figures(&self, figures: &[Vec<Figure>]) -> Result<(), Failure> {
        let metric = &self.settings.metric;
        let columns = self.settings.columns.iter().map(|name| (name, "columns"));
        for (name, option) in std::iter::once((metric, "metric")).chain(columns) {
            let own = |all: &Vec<Figure>| all.iter().find(|one| one.name == *name).cloned();
            let at = format!("experiment.{option}");
            let failed = |message: String| {
                let error = Error::config(message).at(&at);
                self.document.failure("", error)
            };
            let mut first: Option<Figure> = None;
            for (cell, all) in self.cells.iter().zip(figures) {
                let Some(figure) = own(all) else {
                    let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
                    let names = names.join(", ");
                    return Err(failed(format!(
                        "`{at}` is `{name}`, expected one of {names}"
                    )));
                };
                if first
                    .as_ref()
                    .is_some_and(|first| first.measure != figure.measure)
                {
                    let cell = cell.name();
                    return Err(failed(format!(
                        "`{name}` is measured with other options in `{cell}` than in the first cell"
                    )));
                }
                first.get_or_insert(figure);
            }
        }
        Ok(())
    }

    /// Takes the folder of the experiment for this process, and removes what a killed one left half written.
    ///
    /// # Errors
    /// When another process has it, or it cannot be written to.
    pub fn take(&self) -> Result<File> {
        let shown = self.folder.display();
        let failed = || format!("cannot write to `{shown}`");
        let lock = results::lock(&self.folder.join(LOCK), Lock::Alone)
            .or_error(ErrorKind::Data, failed)?;
        let busy = || Error::data(format!("experiment `{shown}` is in use by another process"));
        let lock = lock.ok_or_else(busy)?;
        store::sweep_folder(&self.folder, files::is_partial, false)
            .or_error(ErrorKind::Data, failed)?;
        Ok(lock)
    }

    /// The names of the groups, in their order.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if groups.last() != Some(&cell.group.as_str()) {
                groups.push(&cell.group);
            }
        }
        groups
    }

    /// The cells of a group: the arms of the primary comparison first, or what paints nothing.
    pub fn of_group(&self, group: &str) -> Vec<&Cell> {
        let mut cells: Vec<&Cell> = self.cells.iter().filter(|c| c.group == group).collect();
        let primary = self.settings.primary.iter().flatten();
        let primary: Vec<&String> = primary.collect();
        let place = |cell: &&Cell| primary.iter().position(|arm| **arm == cell.arm);
        cells.sort_by_key(|cell| (place(cell).unwrap_or(primary.len()), cell.manifest.paints()));
        cells
    }
}

/// Checks the name of an arm, which becomes a folder's.
fn check_name(arm: &str) -> Result<()> {
    match names_folder(arm) {
        true => Ok(()),
        false => Err(Error::config(format!(
            "the arm `{arm}` must be called by letters, digits, `-`, `_` and `.`, for its name becomes \
             a folder's"
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    const BASE: &str = r#"
name = "ablation"
[dataset]
use = "phantom"
size = 32
[prompts]
use = "medical"
[generator]
use = "sdxl-inpaint"
steps = 5
[validator]
use = "iou"
[segmenter]
use = "unet"
"#;

    fn read(text: &str) -> Result<Experiment, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.toml");
        fs::write(&path, format!("{BASE}\n{text}")).unwrap();
        Experiment::read(&path, &[])
    }

    const ARMS: &str = r#"
[experiment]
seeds = [3, 5]
primary = ["traditional", "paste"]
[arms.painted]
[arms.paste]
generator.use = "seamless-paste"
[arms.traditional]
synthesis.ratio = 0
"#;

    #[test]
    fn each_arm_is_a_run_of_its_own() {
        let experiment = read(ARMS).unwrap();
        let names: Vec<String> = experiment.cells.iter().map(Cell::name).collect();
        assert_eq!(names, ["painted", "paste", "traditional"]);
        let cell = |n: usize| &experiment.cells[n];
        let scored: Vec<&str> = experiment.cells.iter().map(Cell::scored).collect();
        assert_eq!(scored, ["augmented", "augmented", "real"]);
        assert_eq!(cell(0).manifest.generator.options["steps"], 5);
        // Options of the stage that it replaces are gone.
        assert_eq!(cell(1).manifest.generator.name, "seamless-paste");
        assert!(cell(1).manifest.generator.options.is_empty());
        assert_eq!(cell(1).manifest.seeds(), [3, 5]);
        assert_eq!(cell(1).manifest.output(), Path::new("runs/ablation/paste"));
        assert_eq!(cell(1).manifest.store(), Path::new("runs"));
        assert!(!cell(0).manifest.evaluate.baseline && cell(2).manifest.evaluate.baseline);
        let ordered: Vec<&str> = experiment
            .of_group("")
            .iter()
            .map(|c| c.arm.as_str())
            .collect();
        assert_eq!(ordered, ["traditional", "paste", "painted"]);
    }

    #[test]
    fn what_is_compared_and_shown_must_be_there() {
        let figures = crate::work::scoring::basic();
        let figures = vec![figures; 3];
        assert!(read(ARMS).unwrap().check_figures(&figures).is_ok());
        for option in ["metric = \"dicey\"", "columns = [\"iou\", \"dicey\"]"] {
            let text = format!("[experiment]\n{option}\n[arms.a]");
            let failure = read(&text).unwrap().check_figures(&figures).unwrap_err();
            let found = failure.error.message.to_string();
            assert!(
                found.contains("is `dicey`, expected one of dice, iou"),
                "{found}"
            );
            assert!(failure.place.unwrap().contains("17:"));
        }
        let quoted = "[experiment.quoted]\nsource = \"x\"\nfigures.b.dice = \"0.9\"\n[arms.a]";
        let found = read(quoted).err().unwrap().error.message.to_string();
        assert!(
            found.contains("names the arm `b`, which there is not"),
            "{found}"
        );
    }

    #[test]
    fn a_matrix_multiplies_the_arms() {
        let text = "[matrix]\n\"dataset.size\" = [32, 48]\nsegmenter = [{ use = \"unet\", width = 4 }, { use = \"sdseg\" }]\n[arms.a]\n[arms.b]\nsynthesis.ratio = 0";
        let experiment = read(text).unwrap();
        assert_eq!(experiment.cells.len(), 8);
        assert_eq!(
            experiment.groups(),
            ["32-unet", "32-sdseg", "48-unet", "48-sdseg"]
        );
        let last = &experiment.cells[7];
        assert_eq!(last.manifest.dataset.options["size"], 48);
        assert_eq!(last.manifest.segmenter.name, "sdseg");
        assert_eq!(last.name(), "48-sdseg/b");
        assert_eq!(
            last.manifest.output(),
            Path::new("runs/ablation/48-sdseg/b")
        );
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_stands() {
        for (text, message, place) in [
            ("", "has no arms", None),
            ("[arms.a]\nsynthesis.ratoi = 1", "ratoi", Some("17:11")),
            ("[arms.\"a/b\"]", "becomes a folder's", Some("16:1")),
            (
                "[experiment]\nseeds = []\n[arms.a]",
                "`experiment.seeds`",
                Some("17:9"),
            ),
            (
                "[experiment]\nseed = 1\n[arms.a]",
                "unknown field `seed`",
                Some("17:1"),
            ),
            (
                "[experiment]\nprimary = [\"a\", \"b\"]\n[arms.a]",
                "the arm `b`",
                Some("17:11"),
            ),
            (
                "[matrix]\nseed = 1\n[arms.a]",
                "must be a list",
                Some("17:8"),
            ),
            (
                "[matrix]\nseed = []\n[arms.a]",
                "lists no value",
                Some("17:8"),
            ),
            (
                "[matrix]\n\"a..b\" = [1]\n[arms.a]",
                "an empty part",
                Some("17:1"),
            ),
            (
                "[matrix]\nseed = [1, -2]\n[arms.a]",
                "invalid value",
                Some("17:8"),
            ),
        ] {
            let failure = read(text).err().unwrap();
            let found = failure.error.message.to_string();
            assert!(found.contains(message), "{text}: {found}");
            let shown = failure.place.unwrap_or_default();
            assert!(
                place.is_none_or(|place| shown.contains(place)),
                "{text}: {shown}"
            );
        }
    }
}
