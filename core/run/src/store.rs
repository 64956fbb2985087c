//! The run folder: what lies where, written so that a kill or a power cut at any moment loses
//! nothing.
//!
//! Files appear whole or not at all (see [`diffaug::files`]). Nothing in them depends on when or how
//! often the run was started; times live in `log.jsonl` alone.
//!
//! A *marker* is a JSON file that says that a step is done. It holds hashes of what the step left,
//! which is on the disk before the marker is; so a later start notices when that is no longer what
//! it was.
//!
//! A folder is a run folder if it is empty or has the `lock.json` of a run; nothing is written into
//! any other.

mod folder;

pub use folder::Folder;

use crate::layout::{
    GALLERY, IMAGES, LOCK, LOG, MANIFEST, MASKS, MEASURES, PAINTED, SYNTHETIC, TRAINED, Training,
};
use diffaug::{
    Error, Result, ResultExt,
    error::ErrorKind,
    files::{self, is_partial},
};
use folder::{FILES, MOST_JSON};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, BufRead, Read},
    ops::Deref,
    path::Path,
};

/// Fields of `lock.json` that older runs do not have, and that say nothing against them.
const LATER: [&str; 2] = [FILES, STEPS];
/// Where `lock.json` keeps the keys of the steps.
pub const STEPS: &str = "steps";
/// What may differ in `lock.json` without another step being begun otherwise.
const HARMLESS: [&str; 5] = [
    "/steps",
    "/manifest/name",
    "/manifest/evaluate/runs",
    "/manifest/evaluate/seeds",
    "/manifest/evaluate/baseline",
];
/// The field of `lock.json` that is filled while the run goes on.
const HUB: &str = "hub";
/// Set where a file system knows no locks and the user knows that nobody else works there.
const NO_LOCK: &str = "DIFFAUG_NO_LOCK";

/// What the names of files end with that stages write under `NAME.partial` first.
const WRITTEN: [&str; 4] = [".json", ".jsonl", ".safetensors", ".txt"];

/// An open run folder; no other process has it open.
pub struct Store {
    folder: Folder,
    /// Held for its lock, which the system releases whenever the process ends.
    _lock: File,
}

impl Deref for Store {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl Store {
    /// Opens or makes the run folder and takes it for this process.
    ///
    /// # Errors
    /// When it holds what no run made, cannot be made, or another process works in it. Until then
    /// nothing in it has changed.
    pub fn open(root: &Path) -> Result<(Self, File)> {
        let shown = root.display();
        recognise(root).map_err(|error| error.at("output"))?;
        files::make_folder(root).or_error(ErrorKind::Data, || {
            format!("cannot make run folder `{shown}`")
        })?;
        let path = root.join(LOG);
        let mut options = File::options();
        options.create(true).append(true);
        // A link that took its place meanwhile is not followed.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            &mut options,
            rustix::fs::OFlags::NOFOLLOW.bits() as i32,
        );
        let log = options.open(&path).or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", path.display())
        })?;
        if let Err(error) = log.try_lock() {
            refuse_lock(root, error, std::env::var_os(NO_LOCK).is_some())?;
        }
        let store = Store {
            folder: Folder::new(root),
            _lock: log.try_clone()?,
        };
        Ok((store, log))
    }

    /// Writes `lock.json`, or compares with the one that is there; then removes what a killed run
    /// left half-written.
    ///
    /// A run may be taken up with another manifest as long as every step that was begun stays what it is:
    /// with more trainings, say.
    ///
    /// # Errors
    /// When a step was begun that depends on something else now; the message names the first difference.
    pub fn lock(&self, manifest: &str, lock: &Value) -> Result<()> {
        let old = self.read_json::<Value>(LOCK)?;
        let new = match &old {
            None => lock.clone(),
            Some(old) => self.continued(old, lock)?,
        };
        let changed = old.as_ref() != Some(&new);
        if changed {
            self.write_json(LOCK, &new)?;
        }
        // It may be edited by the user, who then has it, or have been lost with an old run.
        let path = self.path(MANIFEST);
        if changed || path.symlink_metadata().map_or(0, |m| m.len()) == 0 {
            self.write(MANIFEST, manifest)?;
        }
        sweep(self.root()).or_error(ErrorKind::Data, || {
            format!("cannot clear up `{}`", self.root().display())
        })
    }

    /// The lock of a run that was begun with `old` and goes on with `new`.
    fn continued(&self, old: &Value, new: &Value) -> Result<Value> {
        let mut lock = new.clone();
        if let Some(hub) = old.get(HUB) {
            lock[HUB] = hub.clone();
        }
        let Some(steps) = old.get(STEPS).and_then(Value::as_object) else {
            // Written before runs had steps: nothing may differ.
            return match first_difference(old, new) {
                None => Ok(lock),
                Some(found) => Err(self.begun_otherwise(found)),
            };
        };
        let mut old_scores = Vec::new();
        for (place, key) in steps {
            if !self.path(place).exists() {
                continue;
            }
            match new[STEPS].get(place) {
                Some(ours) if ours == key => {}
                // It is measured again, from the same weights or images.
                Some(_) if only_measures_differ(place, old, new) => {
                    old_scores.push(self.path(place))
                }
                Some(ours) => {
                    let step = || {
                        (
                            format!("{STEPS}.{place}"),
                            key.to_string(),
                            ours.to_string(),
                        )
                    };
                    return Err(
                        self.begun_otherwise(first_difference(old, new).unwrap_or_else(step))
                    );
                }
                // No longer wanted, but there.
                None => lock[STEPS][place] = key.clone(),
            }
        }
        for path in old_scores {
            let failed = || format!("cannot remove `{}`", path.display());
            fs::remove_file(&path).or_error(ErrorKind::Data, failed)?;
        }
        Ok(lock)
    }

    fn begun_otherwise(&self, (field, was, is): (String, String, String)) -> Error {
        Error::config(format!(
            "run folder `{}` was begun with `{field}` = {was}, now it is {is}: choose another \
             `output` (`--set output=…`) or remove the folder",
            self.root().display()
        ))
    }

    /// The models of a hub that the run has, with their commits, by the options that name them.
    ///
    /// # Errors
    /// When `lock.json` cannot be read.
    pub fn pins(&self) -> Result<BTreeMap<String, String>> {
        let lock: Value = self.read_json(LOCK)?.unwrap_or_default();
        let hub = lock.get(HUB).cloned().unwrap_or_else(|| json!({}));
        Ok(serde_json::from_value(hub)?)
    }

    /// Notes in `lock.json` that the model of a hub behind the option `field` is `commit`, or
    /// compares with what is noted there.
    ///
    /// # Errors
    /// When the run was begun with another commit.
    pub fn pin(&self, field: &str, commit: &str) -> Result<()> {
        let mut lock: Value = self.read_json(LOCK)?.unwrap_or_default();
        let Some(fields) = lock.as_object_mut() else {
            return Ok(());
        };
        let hub = fields.entry(HUB).or_insert_with(|| json!({}));
        match hub.get(field).and_then(Value::as_str) {
            Some(was) if was == commit => Ok(()),
            Some(was) => {
                let field = format!("{HUB}.{field}");
                Err(self.begun_otherwise((field, was.to_owned(), commit.to_owned())))
            }
            None => {
                hub[field] = json!(commit);
                self.write_json(LOCK, &lock)
            }
        }
    }
}

/// Whether what lies at `place` is made of the same by two locks, but for what is measured.
fn only_measures_differ(place: &str, old: &Value, new: &Value) -> bool {
    let same = |at: &str| old.pointer(at) == new.pointer(at);
    let same_step = |place: &str| old[STEPS][place] == new[STEPS][place];
    match Training::of_scores(place) {
        Some(training) => same_step(&training.weights()) && same("/manifest/evaluate/resolution"),
        None => place.starts_with(MEASURES) && same_step(SYNTHETIC),
    }
}

/// Checks that `root` may become or is a run folder, without changing anything.
fn recognise(root: &Path) -> Result<()> {
    let shown = root.display();
    let failed = || format!("cannot read run folder `{shown}`");
    match fs::metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if root.symlink_metadata().is_ok() {
                let message = format!("run folder `{shown}` is a link to nothing");
                return Err(Error::data(message));
            }
            return Ok(());
        }
        Err(error) => return Err(error).or_error(ErrorKind::Data, failed),
        Ok(metadata) if !metadata.is_dir() => {
            let message = format!("`{shown}` is to become a run folder, but is a file");
            return Err(Error::data(message));
        }
        Ok(_) => {}
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(root).or_error(ErrorKind::Data, failed)? {
        let entry = entry.or_error(ErrorKind::Data, failed)?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        names.push((entry.file_name().to_string_lossy().into_owned(), is_file));
    }
    names.sort();
    let has = |wanted: &str| names.iter().any(|(name, _)| name == wanted);
    if has(LOCK) {
        return match is_lock(&root.join(LOCK)) {
            true if !has(LOG) || names.contains(&(LOG.to_owned(), true)) => Ok(()),
            true => Err(Error::data(format!("`{shown}/{LOG}` is not a file"))),
            false => Err(Error::data(format!(
                "`{shown}/{LOCK}` is damaged or not of diffaug: choose another `output` (`--set \
                 output=…`), or remove the folder if a run made it"
            ))),
        };
    }
    // A run that ended before it was locked leaves its log, and a killed one half a lock.
    let begun = names.contains(&(LOG.to_owned(), true)) && is_log(&root.join(LOG));
    let ours =
        |(name, is_file): &&(String, bool)| *is_file && begun && (name == LOG || is_partial(name));
    match names.iter().find(|entry| !ours(entry)) {
        None => Ok(()),
        Some((name, _)) => Err(Error::data(format!(
            "`{shown}` is no folder of a run and not empty (there is `{name}`), so nothing is \
             written there: choose another `output` (`--set output=…`)"
        ))),
    }
}

/// Whether a file is the `lock.json` of a run.
fn is_lock(path: &Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|m| m.is_file());
    let text = files::read_text(path, MOST_JSON).ok().filter(|_| is_file);
    let lock: Option<Value> = text.and_then(|text| serde_json::from_str(&text).ok());
    lock.is_some_and(|lock| lock["diffaug"].is_string() && lock["manifest"].is_object())
}

/// Whether a file is the log of a run that wrote nothing else: empty, or begun as ours are.
fn is_log(path: &Path) -> bool {
    let Ok(file) = files::open_regular(path) else {
        return false;
    };
    let mut first = Vec::new();
    let mut reader = io::BufReader::new(file).take(1 << 16);
    if reader.read_until(b'\n', &mut first).is_err() {
        return false;
    }
    let event: Option<Value> = serde_json::from_slice(&first).ok();
    let is_ours = |event: Value| {
        event["fields"]["message"].is_string()
            && event["target"]
                .as_str()
                .is_some_and(|target| target.starts_with("diffaug") || target == "plugin")
    };
    first.is_empty() || event.is_some_and(is_ours)
}

/// Says why a run folder was not locked, or goes on without a lock where the user allows that.
fn refuse_lock(root: &Path, error: TryLockError, allowed: bool) -> Result<()> {
    let shown = root.display();
    let error = match error {
        TryLockError::WouldBlock => {
            return Err(Error::data(format!(
                "run folder `{shown}` is in use by another diffaug process"
            )));
        }
        TryLockError::Error(error) => error,
    };
    if !knows_no_locks(&error) {
        let message = format!("cannot lock run folder `{shown}`");
        return Err(error).or_error(ErrorKind::Data, || message);
    }
    if allowed {
        tracing::warn!(
            "run folder `{shown}` is not locked ({error}): no other process may work in it"
        );
        return Ok(());
    }
    Err(error).or_error(ErrorKind::Data, || {
        format!(
            "the file system of run folder `{shown}` keeps no locks: choose an `output` elsewhere \
             (`--set output=…`), or set {NO_LOCK}=1 if no other process works in it"
        )
    })
}

/// Whether a lock failed for the file system has none: some network file systems, and old kernels.
fn knows_no_locks(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let codes = [
            Errno::NOLCK,
            Errno::OPNOTSUPP,
            Errno::NOTSUP,
            Errno::NOSYS,
            Errno::INVAL,
        ];
        let code = error.raw_os_error();
        if codes.iter().any(|errno| code == Some(errno.raw_os_error())) {
            return true;
        }
    }
    error.kind() == io::ErrorKind::Unsupported
}

/// The first difference between two locks that a step may depend on.
fn first_difference(old: &Value, new: &Value) -> Option<(String, String, String)> {
    let (mut old, mut new) = (old.clone(), new.clone());
    if let (Some(old), Some(new)) = (old.as_object_mut(), new.as_object_mut()) {
        old.remove(HUB);
        new.remove(HUB);
        for field in LATER {
            if !old.contains_key(field) {
                new.remove(field);
            }
        }
    }
    for pointer in HARMLESS {
        for lock in [&mut old, &mut new] {
            lock.pointer_mut(pointer).map(Value::take);
        }
    }
    // Causes before what follows from them.
    let fields = ["diffaug", "manifest", "files", "weights"];
    let first = fields.iter().find_map(|field| {
        let of = |lock: &Value| lock.get(*field).cloned().unwrap_or_default();
        difference(field, &of(&old), &of(&new))
    });
    first.or_else(|| difference("", &old, &new))
}

/// The first field in which two values differ, with both.
fn difference(path: &str, old: &Value, new: &Value) -> Option<(String, String, String)> {
    if old == new {
        return None;
    }
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let keys = old
            .keys()
            .chain(new.keys().filter(|k| !old.contains_key(*k)));
        for key in keys {
            let below = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let (old, new) = (old.get(key), new.get(key));
            let (old, new) = (old.unwrap_or(&Value::Null), new.unwrap_or(&Value::Null));
            if let Some(found) = difference(&below, old, new) {
                return Some(found);
            }
        }
    }
    let show = |value: &Value| match value {
        Value::Null => "absent".to_owned(),
        other => other.to_string(),
    };
    Some((path.to_owned(), show(old), show(new)))
}

/// Removes what a killed run left half-written: files by our own temporary names, in the folders
/// that a run makes. Links are neither followed nor removed.
fn sweep(root: &Path) -> io::Result<()> {
    sweep_folder(root, is_partial, false)?;
    for folder in PAINTED.map(|name| root.join(name)) {
        if is_real(&folder) {
            sweep_folder(&folder, is_partial, false)?;
            for folder in [IMAGES, MASKS].map(|name| folder.join(name)) {
                if is_real(&folder) {
                    sweep_folder(&folder, is_partial, true)?;
                }
            }
        }
    }
    for folder in [GALLERY, MEASURES].map(|name| root.join(name)) {
        if is_real(&folder) {
            sweep_folder(&folder, is_partial, true)?;
        }
    }
    let on_its_way = |name: &str| {
        let whole = name.strip_suffix(files::PARTIAL);
        is_partial(name) || whole.is_some_and(|w| WRITTEN.iter().any(|end| w.ends_with(end)))
    };
    for folder in TRAINED.map(|name| root.join(name)) {
        if is_real(&folder) {
            sweep_folder(&folder, on_its_way, true)?;
        }
    }
    Ok(())
}

/// Whether a folder is there, and no link to one.
fn is_real(folder: &Path) -> bool {
    folder.symlink_metadata().is_ok_and(|m| m.is_dir())
}

pub(crate) fn sweep_folder(
    folder: &Path,
    ours: impl Fn(&str) -> bool + Copy,
    below: bool,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && below {
            sweep_folder(&entry.path(), ours, below)?;
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(ours) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
