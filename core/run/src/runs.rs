//! What a store holds: its runs, and results that none of them refers to.

use crate::{
    experiment::tasks,
    layout,
    reader::Run,
    results::{Results, SHARDS, about},
    steps::Step,
    store,
};
use diffaug::{Result, ResultExt, error::ErrorKind, files, metrics::mean};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, Metadata},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Run folders are looked for so many folders below the store: those of tasks of an experiment lie in
/// `EXPERIMENT/.tasks/GROUP/ARM/PART`.
const MOST_LEVELS: usize = 5;

/// A run of a store.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// The run folder.
    pub folder: PathBuf,
    /// Whether it has its result.
    pub finished: bool,
    /// The dataset's name.
    pub dataset: String,
    /// Its arms with the trainings of each that are scored.
    pub arms: Vec<(String, usize)>,
    /// Bytes of all its files, those that it shares included.
    pub bytes: u64,
    /// When something was written there last, in seconds since 1970.
    pub written: u64,
}

/// A result that no run refers to.
#[derive(Debug, Serialize)]
pub struct Unused {
    /// Its key.
    pub key: String,
    /// What step it is of; empty for what a killed process left.
    pub step: String,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// Where it lies.
    #[serde(skip)]
    folder: PathBuf,
}

/// What a store holds.
#[derive(Debug, Serialize)]
pub struct Held {
    /// Its runs, by their folders.
    pub runs: Vec<Listed>,
    /// How many results are kept.
    pub results: usize,
    /// Bytes of the results that no run shares.
    pub bytes: u64,
}

/// What `store` has of the steps of a plan.
pub struct Known {
    results: Results,
    /// Seconds of a step of each kind, a mean over those that are kept.
    seconds: BTreeMap<String, f64>,
}

impl Known {
    /// What `store` has.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn of(store: &Path) -> Result<Self> {
        let results = Results::of(store);
        let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (_, folder) in entries(&results)? {
            let Some(about) = about(&folder).filter(|about| about.cost.seconds > 0.0) else {
                continue;
            };
            if let Some(step) = about.inputs["step"].as_str() {
                all.entry(step.to_owned())
                    .or_default()
                    .push(about.cost.seconds);
            }
        }
        let means = all.into_iter();
        let means = means.filter_map(|(step, seconds)| Some((step, mean(&seconds)?)));
        Ok(Known {
            results,
            seconds: means.collect(),
        })
    }

    /// Whether a step is done.
    pub fn has(&self, step: &Step) -> bool {
        self.results.has(&step.key)
    }

    /// How long a step of its kind took before; `None` where none was kept.
    pub fn seconds(&self, step: &Step) -> Option<f64> {
        self.seconds.get(step.kind()).copied()
    }
}

/// The runs of `store` and what is kept for them.
///
/// # Errors
/// When a folder cannot be read.
pub fn list(store: &Path) -> Result<Held> {
    let folders = run_folders(store)?.into_iter();
    // Those of tasks are parts of an experiment's.
    let folders = folders.filter(|folder| !folder.iter().any(|part| part == tasks::FOLDER));
    let runs = folders.map(|folder| listed(&folder));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let results = Results::of(store);
    let entries = entries(&results)?;
    let folders: Vec<&Path> = entries.iter().map(|(_, folder)| folder.as_path()).collect();
    Ok(Held {
        runs,
        results: entries.len(),
        bytes: own_bytes(&folders)?,
    })
}

/// The results of `store` that none of its runs refers to, and the bytes that removing them frees.
///
/// # Errors
/// When a folder cannot be read.
pub fn unused(store: &Path) -> Result<(Vec<Unused>, u64)> {
    let mut used = BTreeSet::new();
    for folder in run_folders(store)? {
        let lock = files::read_text(&folder.join(layout::LOCK), u64::MAX)?;
        let lock: Value = serde_json::from_str(&lock)?;
        let steps = lock[store::STEPS].as_object().into_iter().flatten();
        used.extend(steps.filter_map(|(_, key)| key.as_str().map(str::to_owned)));
    }
    let mut unused = Vec::new();
    for (key, folder) in entries(&Results::of(store))? {
        if used.contains(&key) {
            continue;
        }
        let step = about(&folder).and_then(|about| Some(about.inputs["step"].as_str()?.to_owned()));
        unused.push(Unused {
            step: step.unwrap_or_default(),
            made: seconds(&fs::metadata(&folder)?),
            folder,
            key,
        });
    }
    let folders: Vec<&Path> = unused.iter().map(|one| one.folder.as_path()).collect();
    let bytes = own_bytes(&folders)?;
    Ok((unused, bytes))
}

/// Removes results; those that a process works on stay. Answers how many were removed.
///
/// # Errors
/// When one cannot be removed.
pub fn remove(store: &Path, unused: &[Unused]) -> Result<usize> {
    let results = Results::of(store);
    let mut removed = 0;
    for one in unused {
        removed += usize::from(results.remove(&one.key, &one.folder)?);
    }
    Ok(removed)
}

/// The run folders of `store`, by name, those of tasks included.
fn run_folders(store: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![(store.to_owned(), 0)];
    while let Some((folder, level)) = left.pop() {
        if folder.join(layout::LOCK).is_file() {
            found.push(folder);
            continue;
        }
        let failed = || format!("cannot read `{}`", folder.display());
        for entry in fs::read_dir(&folder).or_error(ErrorKind::Data, failed)? {
            let entry = entry.or_error(ErrorKind::Data, failed)?;
            let name = entry.file_name();
            let is_hidden = name.to_string_lossy().starts_with('.') && name != tasks::FOLDER;
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !is_hidden && level < MOST_LEVELS {
                left.push((entry.path(), level + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn listed(folder: &Path) -> Result<Listed> {
    let run = Run::open(folder)?;
    let mut arms = Vec::new();
    for name in run.arms()? {
        let trainings = run.arm(&name)?.trainings.len();
        arms.push((name, trainings));
    }
    let mut all = Vec::new();
    walk(folder, &mut all)?;
    let written = all.iter().map(seconds).max().unwrap_or_default();
    Ok(Listed {
        folder: folder.to_owned(),
        finished: folder.join(layout::RESULT).is_file(),
        dataset: run.dataset().to_owned(),
        arms,
        bytes: all.iter().map(Metadata::len).sum(),
        written,
    })
}

/// Every result with its key, and what killed processes left of some.
fn entries(results: &Results) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let Ok(all) = fs::read_dir(results.root()) else {
        return Ok(found);
    };
    for entry in all {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ends = [files::PARTIAL, SHARDS].into_iter();
        let key = ends.filter_map(|end| name.strip_suffix(end)).next();
        let key = key.unwrap_or(&name);
        let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_hexdigit());
        if is_key && entry.file_type()?.is_dir() {
            found.push((key.to_owned(), entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes of files that have no name outside `folders`.
fn own_bytes(folders: &[&Path]) -> Result<u64> {
    let mut all = Vec::new();
    for folder in folders {
        walk(folder, &mut all)?;
    }
    // By file: its size, its names, and those that were met.
    let mut met: HashMap<(u64, u64), (u64, u64, u64)> = HashMap::new();
    for (number, metadata) in all.iter().enumerate() {
        let (id, names) = identity(number, metadata);
        met.entry(id).or_insert((metadata.len(), names, 0)).2 += 1;
    }
    let own = met.values().filter(|(_, names, met)| met >= names);
    Ok(own.map(|(bytes, ..)| bytes).sum())
}

#[cfg(unix)]
fn identity(_: usize, metadata: &Metadata) -> ((u64, u64), u64) {
    use std::os::unix::fs::MetadataExt;
    ((metadata.dev(), metadata.ino()), metadata.nlink())
}

#[cfg(not(unix))]
fn identity(number: usize, _: &Metadata) -> ((u64, u64), u64) {
    ((0, number as u64), 1)
}

/// Every file below a folder; links are not followed.
fn walk(folder: &Path, all: &mut Vec<Metadata>) -> Result<()> {
    let failed = || format!("cannot read `{}`", folder.display());
    for entry in fs::read_dir(folder).or_error(ErrorKind::Data, failed)? {
        let entry = entry.or_error(ErrorKind::Data, failed)?;
        let metadata = entry.metadata().or_error(ErrorKind::Data, failed)?;
        match metadata.is_dir() {
            true => walk(&entry.path(), all)?,
            false => all.push(metadata),
        }
    }
    Ok(())
}

fn seconds(metadata: &Metadata) -> u64 {
    let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let since = written.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
