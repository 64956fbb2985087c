//! Experiments: a manifest with arms, each a change to it, and a matrix of values for all of them.
//!
//! Every arm under every combination of the matrix is a *cell*: a run of its own, with one arm that is
//! scored. Cells share whatever steps they have in common through the store.

pub mod cluster;
pub mod jobs;
pub mod outlook;
pub mod sheets;
pub mod table;
pub mod tasks;

use crate::{
    failure::Failure,
    layout,
    manifest::{Document, EXPERIMENT, Manifest, fits_name, names_folder},
    results::{self, Lock},
    store,
    work::measuring::Figure,
};
use diffaug::{Error, ErrorKind, Result, ResultExt, files};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

/// Held by the process that works on an experiment, in its folder.
const LOCK: &str = ".lock";
/// No experiment has more cells.
const MOST_CELLS: usize = 1_000;
/// Characters of the name of a group of cells.
const MOST_NAME: usize = 80;

/// The table `experiment` of a manifest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The seeds of the trainings of every arm; those of generator and judge are the manifest's.
    pub seeds: Vec<u64>,
    /// The two arms whose comparison was decided on beforehand: the second against the first.
    pub primary: Option<[String; 2]>,
    /// The figure that is compared: dice, iou, sensitivity, fnr, specificity, or one of a measure of
    /// predictions.
    pub metric: String,
    /// How far every cell goes.
    pub goal: Until,
    /// The figures that tables show, in this order; without it all of them.
    pub columns: Vec<String>,
    /// Groups of test images, such as `small` or `size: below 2 %`, of which a further table has the scores.
    pub groups: Vec<String>,
    /// Whether a further table tells of the painted images: acceptance, looks and measures of images.
    pub pools: bool,
    /// Whether a further table tells what each arm took: parameters, time and memory of training, images a
    /// second.
    pub cost: bool,
    /// Figures that others published, set beside ours.
    pub quoted: Option<Quoted>,
}

/// How far the cells of an experiment go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// Their datasets are opened and counted; nothing is trained.
    Data,
    /// Images are painted and judged.
    Synthesis,
    /// Segmenters are trained and scored.
    #[default]
    Scores,
}

/// Figures that others published.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quoted {
    /// Where they stand.
    pub source: String,
    /// By the name of the arm (`GROUP/ARM` with a matrix) and that of the figure, as they are to be printed.
    #[serde(default)]
    pub figures: BTreeMap<String, BTreeMap<String, String>>,
    /// The same for further tables (`groups`, `pools`, `cost`): by the table, the first two cells of a row
    /// (`small / unet`) and the column.
    #[serde(default)]
    pub tables: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            seeds: vec![0],
            primary: None,
            metric: "dice".to_owned(),
            goal: Until::default(),
            columns: Vec::new(),
            groups: Vec::new(),
            pools: false,
            cost: false,
            quoted: None,
        }
    }
}

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
        match names.find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                let at = "experiment.quoted.figures";
                let message = format!("`{at}` names the arm `{name}`, which there is not");
                Err(document.failure("", Error::config(message).at(at)))
            }
        }
    }

    /// Checks that a cell whose images will have `figures` has the one that is compared.
    ///
    /// # Errors
    /// When it has not.
    pub fn check_metric(&self, figures: &[Figure]) -> Result<(), Failure> {
        let metric = &self.settings.metric;
        let is_there = |name: &String| figures.iter().any(|figure| figure.name == *name);
        let wanted = &self.settings.columns;
        let wanted =
            std::iter::once((metric, "metric")).chain(wanted.iter().map(|c| (c, "columns")));
        let Some((metric, option)) = wanted.into_iter().find(|(name, _)| !is_there(name)) else {
            return Ok(());
        };
        let at = format!("experiment.{option}");
        let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
        let error = Error::config(format!(
            "`{at}` is `{metric}`, expected one of {}",
            names.join(", ")
        ));
        Err(self.document.failure("", error.at(&at)))
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

fn settings(document: &Document) -> Result<Settings, Failure> {
    let Some(value) = document.value("experiment") else {
        return Ok(Settings::default());
    };
    let failure = |error: Error| document.failure("experiment", error);
    let settings: Settings = serde_json::from_value(value.clone())
        .map_err(|error| failure(Error::config(error.to_string())))?;
    let distinct: BTreeSet<&u64> = settings.seeds.iter().collect();
    if settings.seeds.is_empty() || distinct.len() < settings.seeds.len() {
        let error = Error::config("`experiment.seeds` must be one or more seeds that differ");
        return Err(failure(error.at("seeds")));
    }
    Ok(settings)
}

/// A combination of the values of a matrix.
#[derive(Clone, Default)]
struct Group {
    name: String,
    /// Paths, where they are written, and values.
    values: Vec<(String, String, Value)>,
}

/// Every combination of the values of the matrix; one of none without a matrix.
fn groups(document: &Document) -> Result<Vec<Group>, Failure> {
    let mut axes = Vec::new();
    if let Some(matrix) = document.value("matrix") {
        flatten("", matrix, &mut axes);
    }
    let mut groups = vec![Group::default()];
    for (path, values) in axes {
        let at = format!("matrix.{path}");
        let Value::Array(values) = values else {
            let message = format!("`{at}` must be a list of the values that `{path}` is to have");
            return Err(document.failure("", Error::config(message).at(&at)));
        };
        if values.is_empty() {
            let message = format!("`{at}` lists no value");
            return Err(document.failure("", Error::config(message).at(&at)));
        }
        let names = names(values);
        let with = |group: &Group| -> Vec<Group> {
            let each = values.iter().zip(&names).map(|(value, name)| {
                let mut group = group.clone();
                if !group.name.is_empty() {
                    group.name.push('-');
                }
                group.name.push_str(name);
                group.values.push((path.clone(), at.clone(), value.clone()));
                group
            });
            each.collect()
        };
        groups = groups.iter().flat_map(with).collect();
        if groups.len() > MOST_CELLS {
            let message = format!("the matrix has more than {MOST_CELLS} combinations");
            return Err(document.failure("", Error::config(message).at("matrix")));
        }
    }
    Ok(groups)
}

/// The leaves of a table, with their dotted paths.
fn flatten<'a>(path: &str, value: &'a Value, leaves: &mut Vec<(String, &'a Value)>) {
    let Value::Object(fields) = value else {
        leaves.push((path.to_owned(), value));
        return;
    };
    for (key, value) in fields {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        flatten(&path, value, leaves);
    }
}

/// What values are called in the names of folders: the last part of a path, the plugin of a stage, the
/// value itself; with a number behind those that would be called alike.
fn names(values: &[Value]) -> Vec<String> {
    let name = |value: &Value| -> String {
        let text = match value {
            Value::String(text) => text
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .map(str::to_owned),
            Value::Object(fields) => fields
                .get("use")
                .and_then(|name| Some(name.as_str()?.to_owned())),
            _ => None,
        };
        let text = text.unwrap_or_else(|| value.to_string());
        let plain = |c: char| match fits_name(c) {
            true => c,
            false => '_',
        };
        let name: String = text.chars().take(MOST_NAME).map(plain).collect();
        match name.trim_start_matches('.') {
            "" => "none".to_owned(),
            name => name.to_owned(),
        }
    };
    let plain: Vec<String> = values.iter().map(name).collect();
    let alike = |name: &String| plain.iter().filter(|other| *other == name).count() > 1;
    let numbered = plain.iter().enumerate().map(|(i, name)| match alike(name) {
        true => format!("{name}-{i}"),
        false => name.clone(),
    });
    numbered.collect()
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
    use serde_json::json;
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
        assert!(read(ARMS).unwrap().check_metric(&figures).is_ok());
        for option in ["metric = \"dicey\"", "columns = [\"iou\", \"dicey\"]"] {
            let text = format!("[experiment]\n{option}\n[arms.a]");
            let failure = read(&text).unwrap().check_metric(&figures).unwrap_err();
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
    fn values_are_called_by_what_tells_them_apart() {
        let values = [
            json!("data/Kvasir-SEG"),
            json!("data/CVC/"),
            json!(0.5),
            json!(true),
        ];
        assert_eq!(names(&values), ["Kvasir-SEG", "CVC", "0.5", "true"]);
        let alike = [json!("a/x"), json!("b/x"), json!(".."), json!("a b")];
        assert_eq!(names(&alike), ["x-0", "x-1", "none", "a_b"]);
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
