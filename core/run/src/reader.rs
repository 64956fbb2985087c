//! Reads runs: their arms, the trainings of each, and the scores of every test image; what they were made of, what
//! was painted and accepted, and how trainings went. A run need not be finished.

mod painted;
mod synthetic;
mod trainings;

pub use painted::Painted;
pub use synthetic::{Records, Synthetic};
pub use trainings::{Point, TrainingLog};

use crate::{
    layout,
    manifest::Manifest,
    slots,
    work::{measuring::Figure, pool_figures::Outcomes, scoring},
};
use diffaug::{DatasetInfo, Error, Result, ResultExt, error::ErrorKind, files};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// No file of a run that is read whole is larger.
const MOST_BYTES: u64 = 256 << 20;

/// A run folder.
#[derive(Debug)]
pub struct Run {
    root: PathBuf,
    lock: Value,
    /// `None` where the run was ended before it was written.
    split: Option<Split>,
}

/// The stages of which a painted image depends on the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// What painted it.
    Generator,
    /// What painted the image that the generator began with.
    Start,
    /// The segmenters that the validator asked.
    Judge,
}

/// The part of `split.json` that comparisons need.
#[derive(Debug, Deserialize)]
struct Split {
    train: Vec<String>,
    validation: Vec<String>,
    test: Vec<String>,
}

/// An arm of a run: what its trainings came to.
#[derive(Clone, Debug)]
pub struct Arm {
    /// What it is called, with the run: `runs/paint:augmented`.
    pub name: String,
    /// Every training that was scored, by seed.
    pub trainings: Vec<Training>,
    /// Every figure that its images have, in the order of tables.
    pub figures: Vec<Figure>,
}

/// A training and the scores of each test image.
#[derive(Clone, Debug)]
pub struct Training {
    /// Its seed.
    pub seed: u64,
    /// Steps that it took; `None` where nothing was trained.
    pub steps: Option<u64>,
    /// By the images' ids.
    pub images: BTreeMap<String, Scores>,
}

/// The scores of an image.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Its patient or video; empty where unknown.
    pub group: String,
    /// By the names of figures (`dice`, `iou`, …); undefined ones are missing.
    pub figures: BTreeMap<String, f64>,
}

/// The part of `scores.json` that is read here.
#[derive(Deserialize)]
struct Scored {
    seed: u64,
    fit: Option<Fitted>,
    #[serde(default)]
    figures: Vec<Figure>,
}

#[derive(Deserialize)]
struct Fitted {
    steps: u64,
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let shown = || format!("`{}` is damaged", path.display());
    let text = files::read_text(path, MOST_BYTES)?;
    serde_json::from_str(&text).or_error(ErrorKind::Data, shown)
}

/// As [`read_json`]; `None` where there is no such file.
fn read_json_if_there<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    path.exists().then(|| read_json(path)).transpose()
}

impl Run {
    /// Opens the run of a folder.
    ///
    /// # Errors
    /// When it is no folder of a run.
    pub fn open(root: &Path) -> Result<Self> {
        let lock = root.join(layout::LOCK);
        if !lock.is_file() {
            return Err(Error::data(format!(
                "`{}` is no folder of a run: it has no {}",
                root.display(),
                layout::LOCK
            )));
        }
        Ok(Run {
            root: root.to_owned(),
            lock: read_json(&lock)?,
            split: read_json_if_there(&root.join(layout::SPLIT))?,
        })
    }

    /// What the run is made of: `lock.json`.
    pub fn lock(&self) -> &Value {
        &self.lock
    }

    /// How many images are to train, to validate and to test; `None` where the run had not come so far.
    pub fn counts(&self) -> Option<[usize; 3]> {
        let split = self.split.as_ref()?;
        Some([&split.train, &split.validation, &split.test].map(Vec::len))
    }

    /// The manifest with all defaults; `None` where it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn manifest_text(&self) -> Result<Option<String>> {
        let path = self.root.join(layout::MANIFEST);
        path.exists()
            .then(|| files::read_text(&path, MOST_BYTES))
            .transpose()
    }

    /// Everything that was measured, as `result.json` has it; `None` where the run is not finished.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn result(&self) -> Result<Option<Value>> {
        read_json_if_there(&self.root.join(layout::RESULT))
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The name of its dataset.
    pub fn dataset(&self) -> &str {
        self.lock["dataset"]["name"].as_str().unwrap_or_default()
    }

    /// What measures say of the painted images and the verdicts of the run, by their names.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn measured(&self) -> Result<Outcomes> {
        let outcome = |name: String| {
            let found = read_json(&self.root.join(layout::measure(&name)))?;
            Ok((name, found))
        };
        self.measures()?.into_iter().map(outcome).collect()
    }

    /// The names of the measures that have said something.
    fn measures(&self) -> Result<Vec<String>> {
        let files = files_of(&self.root.join(layout::MEASURES))?.into_iter();
        let files = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let name = |path: PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
        Ok(files.filter_map(name).collect())
    }

    /// The key of the step that leaves `place`.
    pub fn key(&self, place: &str) -> Option<&str> {
        self.lock["steps"][place].as_str()
    }

    /// The version of the program that made it.
    pub fn version(&self) -> &str {
        self.lock["diffaug"].as_str().unwrap_or_default()
    }

    /// SHA-256 of its dataset as `lock.json` has it: of pixels, masks, ids and facts at the run's size.
    pub fn dataset_sha256(&self) -> &str {
        self.lock["dataset"]["sha256"].as_str().unwrap_or_default()
    }

    /// SHA-256 of the file `lock.json`, which identifies the run.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn lock_sha256(&self) -> Result<String> {
        files::hash_file(&self.root.join(layout::LOCK))
    }

    /// The manifest of the run, as `lock.json` has it; `manifest.toml` may have been edited since.
    ///
    /// # Errors
    /// When this version of the program does not understand it.
    pub fn manifest(&self) -> Result<Manifest> {
        let failed = || {
            format!(
                "the manifest in `{}`, written by diffaug {}, is none of this version",
                self.root.join(layout::LOCK).display(),
                self.version()
            )
        };
        serde_json::from_value(self.lock["manifest"].clone()).or_error(ErrorKind::Data, failed)
    }

    /// How the run divided its dataset.
    ///
    /// # Errors
    /// When `split.json` cannot be read or is not what `lock.json` vouches for.
    pub fn split(&self) -> Result<diffaug::split::Split> {
        let path = self.root.join(layout::SPLIT);
        let split: diffaug::split::Split = read_json(&path)?;
        if self.lock["split"]["sha256"].as_str() != Some(&split.sha256()) {
            return Err(Error::data(format!(
                "`{}` lists other images than those of the run: its SHA-256 is not the one in {}",
                path.display(),
                layout::LOCK
            )));
        }
        Ok(split)
    }

    /// The accepted images of the run; `None` where it paints none. Each is compared with its checksum.
    /// `info` tells the classes of the run's dataset.
    ///
    /// # Errors
    /// When the synthesis is not finished, or what it left is damaged.
    pub fn synthetic(&self, info: &DatasetInfo) -> Result<Option<Synthetic>> {
        match self.manifest()?.paints() {
            true => Synthetic::open(&self.root, info).map(Some),
            false => Ok(None),
        }
    }

    /// SHA-256 of the weights of a stage that paints or judges, given (as `lock.json` has them) or trained
    /// by the run. Empty where the stage has none, or a model of a hub, which the lock has by name and commit.
    ///
    /// # Errors
    /// When what says that it is trained is damaged.
    pub fn weights(&self, stage: Weights) -> Result<Vec<String>> {
        let (at, mut trained) = match stage {
            Weights::Generator => (slots::GENERATOR, vec![layout::GENERATOR.to_owned()]),
            Weights::Start => (slots::START, vec![layout::START.to_owned()]),
            Weights::Judge => (slots::SEGMENTER, vec![layout::SEGMENTER.to_owned()]),
        };
        if stage == Weights::Judge {
            let several = folders(&self.root.join(layout::SEGMENTERS))?.into_iter();
            trained.extend(several.map(|name| format!("{}/{name}", layout::SEGMENTERS)));
        }
        if let Some(given) = self.lock["weights"][at].as_str() {
            let hash = files::is_sha256(given).then(|| given.to_owned());
            return Ok(hash.into_iter().collect());
        }
        let mut hashes = Vec::new();
        for folder in trained {
            let marker = self.root.join(layout::marker(&folder));
            if marker.is_file() {
                let marker: Value = read_json(&marker)?;
                hashes.extend(marker["files"][&folder].as_str().map(str::to_owned));
            }
        }
        Ok(hashes)
    }

    /// The names of the arms that have scores.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn arms(&self) -> Result<Vec<String>> {
        let folder = self.root.join(layout::EVALUATE);
        let mut names = Vec::new();
        for name in folders(&folder)? {
            if !self.trainings(&name)?.is_empty() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The trainings of `arm` that have scores.
    fn trainings(&self, arm: &str) -> Result<Vec<layout::Training>> {
        let folder = layout::arm(arm);
        let all = folders(&self.root.join(&folder))?.into_iter();
        let all = all.map(|name| layout::Training::at(format!("{folder}/{name}")));
        Ok(all
            .filter(|training| self.root.join(training.scores()).is_file())
            .collect())
    }

    /// An arm with the scores of every image.
    ///
    /// # Errors
    /// When there is no such arm or a file of it cannot be read.
    pub fn arm(&self, name: &str) -> Result<Arm> {
        let mut trainings = Vec::new();
        let mut figures = scoring::basic();
        for files in self.trainings(name)? {
            let scored: Scored = read_json(&self.root.join(files.scores()))?;
            let new = scored.figures.into_iter();
            for figure in new {
                if !figures.iter().any(|known| known.name == figure.name) {
                    figures.push(figure);
                }
            }
            trainings.push(Training {
                seed: scored.seed,
                steps: scored.fit.map(|fit| fit.steps),
                images: read_scores(&self.root.join(files.per_image()))?,
            });
        }
        if trainings.is_empty() {
            return Err(Error::data(format!(
                "run `{}` has no scores of an arm `{name}`; those it has: {}",
                self.root.display(),
                self.arms()?.join(", ")
            )));
        }
        trainings.sort_by_key(|training| training.seed);
        Ok(Arm {
            name: format!("{}:{name}", self.root.display()),
            trainings,
            figures,
        })
    }

    /// What `other` has that keeps its scores from being compared with these; `None` where nothing does.
    pub fn differs(&self, other: &Run) -> Option<String> {
        let fields = [
            ("another dataset", "/dataset/sha256"),
            ("images of another size", "/manifest/images/size"),
            ("scores at another size", "/manifest/evaluate/resolution"),
        ];
        let different = |at: &str| self.lock.pointer(at) != other.lock.pointer(at);
        if let Some((what, _)) = fields.iter().find(|(_, at)| different(at)) {
            return Some((*what).to_owned());
        }
        let sorted = |run: &Run| {
            let mut ids = run.split.as_ref().map(|split| split.test.clone());
            if let Some(ids) = &mut ids {
                ids.sort();
            }
            ids
        };
        (sorted(self) != sorted(other)).then(|| "other test images".to_owned())
    }
}

/// Everything in a folder, by name; nothing where it is not there.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = || format!("cannot list `{}`", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).or_error(ErrorKind::Data, failed)? {
        paths.push(entry.or_error(ErrorKind::Data, failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The names of the folders in a folder.
fn folders(folder: &Path) -> Result<Vec<String>> {
    let paths = entries(folder)?.into_iter().filter(|path| path.is_dir());
    let name = |path: PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    Ok(paths.filter_map(name).collect())
}

/// The files in a folder.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = entries(folder)?.into_iter();
    Ok(paths.filter(|path| path.is_file()).collect())
}

/// The scores of each image, of a file `per_image.csv`.
fn read_scores(path: &Path) -> Result<BTreeMap<String, Scores>> {
    let failed = || format!("`{}` is damaged", path.display());
    let text = files::read_text(path, MOST_BYTES)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().or_error(ErrorKind::Data, failed)?.clone();
    // Behind the figures stand counts of pixels and facts of images, which may have any name.
    let end = header.iter().position(|name| name == scoring::PIXELS[0]);
    let end = end.unwrap_or(header.len());
    let mut images = BTreeMap::new();
    for row in reader.records() {
        let row = row.or_error(ErrorKind::Data, failed)?;
        let mut id = None;
        let mut scores = Scores::default();
        for (place, (name, cell)) in header.iter().zip(&row).enumerate() {
            match (place, name, cell.parse::<f64>()) {
                (0, "id", _) => id = Some(cell.to_owned()),
                (1, "group", _) => cell.clone_into(&mut scores.group),
                (place, _, Ok(value)) if place < end && value.is_finite() => {
                    scores.figures.insert(name.to_owned(), value);
                }
                _ => {}
            }
        }
        let id = id.ok_or_else(|| Error::data(format!("{}: it has no column `id`", failed())))?;
        if images.insert(id.clone(), scores).is_some() {
            let message = format!("{}: it names `{id}` twice", failed());
            return Err(Error::data(message));
        }
    }
    Ok(images)
}

/// The arms that were asked for; of a run without an arm's name all, in the order of their names but
/// `real` first.
pub fn arms(wanted: &[String]) -> Result<Vec<Arm>> {
    let mut first: Option<Run> = None;
    let mut arms = Vec::new();
    for name in wanted {
        let (folder, arm) = match name.rsplit_once(':') {
            Some((folder, arm)) if !Path::new(name).exists() => (folder, Some(arm)),
            _ => (name.as_str(), None),
        };
        let run = Run::open(Path::new(folder))?;
        if let Some(what) = first.as_ref().and_then(|first| first.differs(&run)) {
            return Err(Error::data(format!(
                "`{folder}` cannot be compared with the first run: it has {what}"
            )));
        }
        match arm {
            Some(arm) => arms.push(run.arm(arm)?),
            None => {
                let mut names = run.arms()?;
                names.sort_by_key(|name| name != "real");
                if names.is_empty() {
                    let message = format!("run `{folder}` has no scores yet");
                    return Err(Error::data(message));
                }
                for name in names {
                    arms.push(run.arm(&name)?);
                }
            }
        }
        first.get_or_insert(run);
    }
    Ok(arms)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, Scores>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("per_image.csv");
        fs::write(&path, text).unwrap();
        read_scores(&path)
    }

    #[test]
    fn facts_that_are_called_like_figures_are_none() {
        let images = read("id,dice,iou,true_positive,dice,group\na,0.5,,9,0.9,7\n").unwrap();
        let scores = &images["a"];
        assert_eq!(scores.figures, [("dice".to_owned(), 0.5)].into());
        assert_eq!(scores.group, "");
        let text = "id,group,dice,hd95,true_positive,group\na,video 1,0.5,2.5,9,other\n";
        let images = read(text).unwrap();
        assert_eq!(images["a"].group, "video 1");
        assert_eq!(images["a"].figures["hd95"], 2.5);
    }

    #[test]
    fn a_file_of_scores_names_every_image_once() {
        let error = read("id,dice\na,0.5\na,0.6\n").unwrap_err();
        assert!(error.message.contains("names `a` twice"), "{error}");
        let error = read("dice\n0.5\n").unwrap_err();
        assert!(error.message.contains("no column `id`"), "{error}");
        assert!(read("id,dice\na,0.5,1\n").is_err());
    }
}
