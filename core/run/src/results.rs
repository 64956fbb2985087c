//! Results of finished steps, kept by key for every run of a store.
//!
//! `.steps/KEY/` holds the result of a step once: `step.json` says what was done and what came of it, and
//! its files lie beside. Run folders hold the same files under their own names, as hard links where the
//! file system has them and as copies elsewhere; so a run folder can be moved, and either can be
//! removed without harm to the other.
//!
//! A result appears whole or not at all. Who works on a step holds the lock `.steps/locks/KEY`; others
//! that want the same step wait for it.

use crate::{
    fingerprint, layout,
    session::{Session, Step},
    store::Folder,
};
use diffaug::{Error, ErrorKind, Result, ResultExt, files};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// The folder of all results, in the folder of the store.
pub const STEPS: &str = ".steps";
/// The folder of the locks, below it.
const LOCKS: &str = "locks";
/// How the names of folders of shards end.
pub const SHARDS: &str = ".shards";
/// What a result says of itself.
pub const ABOUT: &str = "step.json";
/// No `step.json` is larger.
const MOST_ABOUT: u64 = 64 << 20;
/// How often a lock is tried that another process holds.
const PATIENCE: Duration = Duration::from_millis(300);

/// What `step.json` holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct About {
    /// Version of the program that did the step.
    pub diffaug: String,
    /// What the result depends on.
    pub inputs: Value,
    /// What the step took.
    #[serde(flatten)]
    pub cost: Cost,
    /// Models of a hub that were used, with their commits.
    #[serde(default)]
    pub hub: BTreeMap<String, String>,
    /// What came of the step.
    pub value: Value,
    /// Hashes of the files and folders of the result.
    pub files: BTreeMap<String, Value>,
}

/// What is known of the result in a folder; `None` where that is not there or damaged.
pub fn about(folder: &Path) -> Option<About> {
    let text = files::read_text(&folder.join(ABOUT), MOST_ABOUT).ok()?;
    serde_json::from_str(&text).ok()
}

/// What a step took, as it was measured by who did it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cost {
    /// From begin to end; of a step that was taken up again, the last part.
    pub seconds: f64,
    /// The most memory that the process held, in bytes; 0 where that is not known.
    pub memory: u64,
    /// Images that a network painted or found lesions in.
    pub images: u64,
    /// What those took, without reading and writing.
    pub image_seconds: f64,
}

/// A file or folder of a result.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// What the store calls it.
    pub name: &'a str,
    /// What the run folder calls it.
    pub place: &'a str,
    /// The list of checksums that vouches for it, in place of a hash of its own; a part of the result
    /// as well.
    pub listed: Option<&'a str>,
}

/// The results of a store.
pub struct Results {
    root: PathBuf,
}

impl Results {
    /// The results that `store` keeps; the folder is made when there is something to keep.
    pub fn of(store: &Path) -> Self {
        Results {
            root: store.join(STEPS),
        }
    }

    /// The folder of all results.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes the result of that key, or what is left of one, in `folder`, unless a process works on it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, key: &str, folder: &Path) -> Result<bool> {
        let path = self.root.join(LOCKS).join(key);
        let failed = || format!("cannot remove `{}`", folder.display());
        let Some(_lock) = lock(&path, Lock::Alone).or_error(ErrorKind::Data, failed)? else {
            return Ok(false);
        };
        // First what says that it is whole.
        remove(&folder.join(ABOUT)).or_error(ErrorKind::Data, failed)?;
        remove(folder).or_error(ErrorKind::Data, failed)?;
        remove(&path).or_error(ErrorKind::Data, failed)?;
        Ok(true)
    }

    /// The folder of the shards of the step of that key.
    pub fn shards(&self, key: &str) -> PathBuf {
        self.root.join(format!("{key}{SHARDS}"))
    }

    /// Takes the step of that key for this process and others that work on shards of it.
    ///
    /// # Errors
    /// When another process works on the whole of it, or the store cannot be written to.
    pub fn take_part(&self, key: &str) -> Result<File> {
        let taken = lock(&self.root.join(LOCKS).join(key), Lock::Shared);
        let taken = taken.or_error(ErrorKind::Data, || {
            format!("cannot write to `{}`", self.root.display())
        })?;
        taken.ok_or_else(|| {
            Error::data("another process works on the whole of these synthetic images: wait for it")
        })
    }

    /// Whether there is a result of that key.
    pub fn has(&self, key: &str) -> bool {
        self.root.join(key).join(ABOUT).exists()
    }

    /// What the step of that key took, where it is kept and tells.
    pub fn cost(&self, key: &str) -> Option<Cost> {
        Some(about(&self.root.join(key))?.cost)
    }

    /// Takes the step of that key for this process; waits while another has it. `None` where the file
    /// system does not allow it: then nothing is shared.
    ///
    /// # Errors
    /// When the user stops the run while it waits.
    pub fn take(&self, key: &str, label: &str, session: &Session<'_>) -> Result<Option<Taken>> {
        let mut told: Option<Box<dyn Step>> = None;
        loop {
            match self.try_take(key) {
                Ok(None) => {
                    told.get_or_insert_with(|| {
                        session.begin(&format!("waiting for another process: {label}"))
                    });
                    session.check_stopped()?;
                    thread::sleep(PATIENCE);
                }
                Ok(taken) => {
                    if let Some(step) = told {
                        step.finish("the other process is done with it");
                    }
                    return Ok(taken);
                }
                Err(error) => {
                    tracing::warn!(
                        "results are not kept for other runs in `{}`: {error}",
                        self.root.display()
                    );
                    return Ok(None);
                }
            }
        }
    }

    /// Takes the step of that key for this process; `None` while another has it.
    ///
    /// # Errors
    /// When the file system does not allow it.
    pub fn try_take(&self, key: &str) -> io::Result<Option<Taken>> {
        let taken = lock(&self.root.join(LOCKS).join(key), Lock::Alone)?;
        Ok(taken.map(|lock| Taken {
            folder: self.root.join(key),
            _lock: lock,
        }))
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lock {
    /// By one process.
    Alone,
    /// By any number that share it.
    Shared,
}

/// Locks the file at `path`, which is made; `None` while another process has it.
pub(crate) fn lock(path: &Path, how: Lock) -> io::Result<Option<File>> {
    files::make_folder(files::parent(path))?;
    let file = File::options().create(true).append(true).open(path)?;
    let taken = match how {
        Lock::Alone => file.try_lock(),
        Lock::Shared => file.try_lock_shared(),
    };
    match taken {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // It may have been removed between the two: then nobody else sees this lock.
    Ok(is_same(&file, path).then_some(file))
}

#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same(_: &File, path: &Path) -> bool {
    path.exists()
}

/// A step that no other process works on.
pub struct Taken {
    folder: PathBuf,
    _lock: File,
}

impl Taken {
    /// The folder of the result.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Begins a result that grows, unless it was begun before. Nothing vouches for its files.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&self, about: &About) -> Result<()> {
        match self.is_there() {
            true => Ok(()),
            false => Folder::new(&self.folder).write_json(ABOUT, about),
        }
    }

    /// Whether the store has a result.
    pub fn is_there(&self) -> bool {
        self.folder.join(ABOUT).exists()
    }

    /// The result, where the store has one that is whole and came of the same models of a hub. `pins` are
    /// the commits that this run knows of. One that is damaged, or cannot be read, stays until the step is
    /// done anew.
    pub fn find(&self, parts: &[Part<'_>], pins: &BTreeMap<String, String>) -> Option<About> {
        if !self.is_there() {
            return None;
        }
        let read = self.read(parts).inspect_err(|error| {
            let shown = self.folder.display();
            tracing::warn!("`{shown}` is damaged and made anew: {error}");
        });
        let differs = |(field, commit): (&String, &String)| {
            pins.get(field).is_some_and(|ours| ours != commit)
        };
        read.ok().filter(|about| !about.hub.iter().any(differs))
    }

    /// Reads the result and compares its files with their hashes.
    fn read(&self, parts: &[Part<'_>]) -> Result<About> {
        let folder = Folder::new(&self.folder);
        let missing = || Error::data(format!("`{ABOUT}` is missing"));
        let about: About = folder.read_json(ABOUT)?.ok_or_else(missing)?;
        for (name, hash) in &about.files {
            let path = folder.path(name);
            if !path.exists() || fingerprint::of(&path, &fingerprint::Step::none())? != *hash {
                return Err(Error::data(format!("`{name}` is not what it was")));
            }
        }
        for list in parts.iter().filter_map(|part| part.listed) {
            if let Some((path, how)) = folder.first_broken(list)? {
                return Err(Error::data(format!("`{}` {how}", path.display())));
            }
        }
        Ok(about)
    }

    /// Puts the files of the result where the run folder `run` has them; what is there goes.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn show(&self, parts: &[Part<'_>], run: &Folder) -> Result<()> {
        for part in parts {
            let (from, to) = (self.folder.join(part.name), run.path(part.place));
            let failed = || format!("cannot write `{}`", to.display());
            remove(&to).or_error(ErrorKind::Data, failed)?;
            if from.exists() {
                files::make_folder(files::parent(&to)).or_error(ErrorKind::Data, failed)?;
                link(&from, &to).or_error(ErrorKind::Data, failed)?;
                files::sync_folder(files::parent(&to)).or_error(ErrorKind::Data, failed)?;
            }
        }
        Ok(())
    }

    /// Keeps the result of the step, which `run` holds.
    ///
    /// # Errors
    /// When that cannot be written; nothing is left of it then.
    pub fn keep(&self, about: About, parts: &[Part<'_>], run: &Folder) -> Result<()> {
        let parent = files::parent(&self.folder);
        let failed = || format!("cannot keep a result in `{}`", parent.display());
        // Under this name nobody else writes, and what a killed process left is replaced.
        let partial = self.folder.with_extension(&files::PARTIAL[1..]);
        let write = || -> Result<()> {
            remove(&partial).or_error(ErrorKind::Data, failed)?;
            fs::create_dir(&partial).or_error(ErrorKind::Data, failed)?;
            self.write(about, parts, run, &partial)?;
            remove(&self.folder).or_error(ErrorKind::Data, failed)?;
            fs::rename(&partial, &self.folder).or_error(ErrorKind::Data, failed)?;
            files::sync_folder(parent).or_error(ErrorKind::Data, failed)
        };
        write().inspect_err(|_| {
            let _ = remove(&partial);
        })
    }

    /// Writes a result into the folder `to`.
    fn write(&self, mut about: About, parts: &[Part<'_>], run: &Folder, to: &Path) -> Result<()> {
        for part in parts {
            let from = run.path(part.place);
            if !from.exists() {
                continue;
            }
            link(&from, &to.join(part.name)).or_error(ErrorKind::Data, || {
                format!("cannot keep `{}` in `{}`", from.display(), to.display())
            })?;
            if part.listed.is_none() {
                let hash = run.fingerprint(part.place)?;
                about.files.insert(part.name.to_owned(), hash);
            }
        }
        Folder::new(to).write_json(ABOUT, &about)
    }
}

/// Removes a file or folder, should it be there.
fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Makes `to` the same file as `from`, or a folder of the same files; copies where that cannot be. What is
/// still being written, and journals, stay behind.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    if metadata.is_file() {
        return link_file(from, to);
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        let left = name
            .to_str()
            .is_some_and(|name| files::is_partial(name) || name == layout::JOURNAL_FILE);
        if !left {
            link(&from.join(&name), &to.join(&name))?;
        }
    }
    files::sync_folder(to)
}

/// Makes `to` the same file as `from`, or a copy where that cannot be; what is there goes.
pub(crate) fn link_file(from: &Path, to: &Path) -> io::Result<()> {
    remove(to)?;
    fs::hard_link(from, to).or_else(|_| {
        fs::copy(from, to)?;
        File::open(to)?.sync_all()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::Silent;
    use serde_json::json;

    const PARTS: [Part<'_>; 2] = [
        Part {
            name: "weights",
            place: "evaluate/seed-0/weights",
            listed: None,
        },
        Part {
            name: "scores.csv",
            place: "scores.csv",
            listed: None,
        },
    ];

    fn about(hub: &[(&str, &str)]) -> About {
        let pair = |(field, commit): &(&str, &str)| ((*field).to_owned(), (*commit).to_owned());
        About {
            diffaug: "1".into(),
            inputs: json!({ "step": "fit" }),
            cost: Cost::default(),
            hub: hub.iter().map(pair).collect(),
            value: json!({ "steps": 3 }),
            files: BTreeMap::new(),
        }
    }

    /// A run folder with all parts.
    fn run(root: &Path) -> Folder {
        let folder = root.join("run/evaluate/seed-0/weights");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("w.safetensors"), "weights").unwrap();
        fs::write(root.join("run/scores.csv"), "scores").unwrap();
        Folder::new(&root.join("run"))
    }

    fn take(root: &Path, key: &str) -> Taken {
        let session = Session::new(&Silent);
        Results::of(root)
            .take(key, "fit", &session)
            .unwrap()
            .unwrap()
    }

    fn none() -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    #[test]
    fn a_result_goes_from_one_run_to_another() {
        let dir = tempfile::tempdir().unwrap();
        let results = Results::of(dir.path());
        assert!(!results.has("k"));
        let taken = take(dir.path(), "k");
        assert!(taken.find(&PARTS, &none()).is_none());
        taken.keep(about(&[]), &PARTS, &run(dir.path())).unwrap();
        assert!(results.has("k"));
        fs::remove_dir_all(dir.path().join("run")).unwrap();

        let found = taken.find(&PARTS, &none()).unwrap();
        assert_eq!(found.value, json!({ "steps": 3 }));
        let other = Folder::new(&dir.path().join("other"));
        // What an interrupted training left gives way.
        fs::create_dir_all(other.path("evaluate/seed-0/weights/half")).unwrap();
        for _ in 0..2 {
            taken.show(&PARTS, &other).unwrap();
        }
        let text = |name: &str| fs::read_to_string(other.path(name)).unwrap();
        assert_eq!(text("evaluate/seed-0/weights/w.safetensors"), "weights");
        assert_eq!(text("scores.csv"), "scores");
        for gone in ["half", "journal.jsonl"] {
            assert!(
                !other
                    .path(format!("evaluate/seed-0/weights/{gone}"))
                    .exists()
            );
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            assert_eq!(fs::metadata(other.path("scores.csv")).unwrap().nlink(), 2);
        }
    }

    #[test]
    fn what_is_being_written_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("from/images")).unwrap();
        for name in ["journal.jsonl", ".abcdef.partial", "images/1.png"] {
            fs::write(path("from").join(name), "").unwrap();
        }
        link(&path("from"), &path("to")).unwrap();
        assert_eq!(fs::read_dir(path("to")).unwrap().count(), 1);
        assert!(path("to/images/1.png").exists());
    }

    #[test]
    fn a_damaged_result_is_none() {
        for damage in ["weights/w.safetensors", "step.json", "scores.csv"] {
            let dir = tempfile::tempdir().unwrap();
            let taken = take(dir.path(), "k");
            taken.keep(about(&[]), &PARTS, &run(dir.path())).unwrap();
            fs::write(dir.path().join(".steps/k").join(damage), "").unwrap();
            assert!(taken.find(&PARTS, &none()).is_none(), "{damage}");
            // Done anew, it takes the place of what was damaged.
            taken.keep(about(&[]), &PARTS, &run(dir.path())).unwrap();
            assert!(taken.find(&PARTS, &none()).is_some(), "{damage}");
        }
    }

    #[test]
    fn a_result_of_another_model_of_a_hub_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let taken = take(dir.path(), "k");
        let made = about(&[("generator.base", "1")]);
        taken.keep(made, &PARTS, &run(dir.path())).unwrap();
        for (commit, there) in [("1", true), ("2", false)] {
            let pins = about(&[("generator.base", commit)]).hub;
            assert_eq!(taken.find(&PARTS, &pins).is_some(), there);
        }
        assert!(taken.find(&PARTS, &none()).is_some());
    }

    #[test]
    fn of_two_that_want_a_step_one_waits() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), "k");
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let second = scope.spawn(|| {
                let _second = take(dir.path(), "k");
                assert!(done.load(std::sync::atomic::Ordering::SeqCst));
            });
            // Another step is free.
            drop(take(dir.path(), "other"));
            thread::sleep(PATIENCE);
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            drop(first);
            second.join().unwrap();
        });
    }

    #[test]
    fn without_a_folder_nothing_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let session = Session::new(&Silent);
        let results = Results::of(&dir.path().join("file"));
        assert!(results.take("k", "fit", &session).unwrap().is_none());
    }
}
