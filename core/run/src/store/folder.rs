//! A folder of results: files that appear whole, and markers that vouch for what lies beside them.

use crate::fingerprint::{self, Step};
use diffaug::{
    Error, Result, ResultExt,
    error::ErrorKind,
    files::{self, hash_file, write_atomic},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Most bytes of a JSON file in a run folder; the ids of a large dataset take some megabytes.
pub(super) const MOST_JSON: u64 = 1 << 30;
/// Where a marker keeps the hashes of what it vouches for.
pub(super) const FILES: &str = "files";

/// A folder of results.
pub struct Folder {
    root: PathBuf,
    /// Fingerprints that were taken in this process, of what does not change any more.
    known: Mutex<BTreeMap<String, Value>>,
}

impl Folder {
    /// The folder `root`, of which nothing is read yet.
    pub fn new(root: &Path) -> Self {
        Folder {
            root: root.to_owned(),
            known: Mutex::default(),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a text file whole.
    pub fn write(&self, name: impl AsRef<Path>, text: &str) -> Result<()> {
        write_atomic(&self.path(name), text.as_bytes())
    }

    /// Writes a value as JSON.
    pub fn write_json(&self, name: impl AsRef<Path>, value: &impl Serialize) -> Result<()> {
        self.write(name, &(serde_json::to_string_pretty(value)? + "\n"))
    }

    /// Reads a value that [`Store::write_json`] wrote; `None` where there is no such file.
    pub fn read_json<T: DeserializeOwned>(&self, name: impl AsRef<Path>) -> Result<Option<T>> {
        let path = self.path(name);
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let damaged = || {
            let shown = path.display();
            format!("`{shown}` is damaged; remove it to make it anew")
        };
        let text = files::read_text(&path, MOST_JSON).or_error(ErrorKind::Data, damaged)?;
        serde_json::from_str(&text)
            .map(Some)
            .or_error(ErrorKind::Data, damaged)
    }

    /// Writes a marker: `value`, and that `done` (files or folders below the run folder) are what
    /// they are now. Those are flushed to the disk first.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn write_marker(&self, name: &str, value: &impl Serialize, done: &[&str]) -> Result<()> {
        let mut value = serde_json::to_value(value)?;
        if let Value::Object(fields) = &mut value {
            let mut hashes = Map::new();
            for name in done {
                let path = self.path(name);
                let failed = || format!("cannot flush `{}` to the disk", path.display());
                if path.is_dir() {
                    files::sync_tree(&path).or_error(ErrorKind::Data, failed)?;
                }
                files::sync_folder(files::parent(&path)).or_error(ErrorKind::Data, failed)?;
                if path.exists() {
                    hashes.insert((*name).to_owned(), self.fingerprint(name)?);
                }
            }
            fields.insert(FILES.to_owned(), Value::Object(hashes));
        }
        self.write_json(name, &value)
    }

    /// Reads what [`Store::write_marker`] wrote; `None` where there is no such marker.
    ///
    /// # Errors
    /// When it is damaged, or something that it vouches for is not what it was.
    pub fn read_marker<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(mut value) = self.read_json::<Value>(name)? else {
            return Ok(None);
        };
        let done = value.as_object_mut().and_then(|v| v.remove(FILES));
        if let Some(Value::Object(done)) = done {
            for (what, hash) in &done {
                self.vouch(name, what, hash)?;
            }
        }
        serde_json::from_value(value)
            .map(Some)
            .or_error(ErrorKind::Data, || {
                let shown = self.path(name).display().to_string();
                format!("`{shown}` is damaged; remove it to make it anew")
            })
    }

    fn vouch(&self, marker: &str, what: &str, hash: &Value) -> Result<()> {
        let path = self.path(what);
        let found = match path.exists() {
            true => self.fingerprint(what)?,
            false => Value::Null,
        };
        if found == *hash {
            return Ok(());
        }
        let how = match (found, fingerprint::first_empty(&path)) {
            (Value::Null, _) => "is gone".to_owned(),
            (_, Some(empty)) if empty == path => "is empty".to_owned(),
            (_, Some(empty)) => format!("is damaged (`{}` is empty)", empty.display()),
            _ => "is not what it was".to_owned(),
        };
        Err(self.broken(marker, &path, &how))
    }

    /// The error that `path`, which `marker` vouches for, is not what it was.
    pub fn broken(&self, marker: &str, path: &Path, how: &str) -> Error {
        Error::data(format!(
            "`{}` {how} since `{marker}` was written: put it back, or remove it and `{}` to make it \
             anew",
            path.display(),
            self.path(marker).display()
        ))
    }

    /// The fingerprint of a file or folder below the run folder that does not change any more.
    pub fn fingerprint(&self, name: &str) -> Result<Value> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(name) {
            return Ok(found.clone());
        }
        let found = fingerprint::of(&self.path(name), &Step::none())?;
        known().insert(name.to_owned(), found.clone());
        Ok(found)
    }

    /// Compares every file of a list of checksums, as `sha256sum -c` reads it; the first that is not as
    /// it was, and how.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn first_broken(&self, list: &str) -> Result<Option<(PathBuf, &'static str)>> {
        use rayon::prelude::*;
        let path = self.path(list);
        let text = files::read_text(&path, u64::MAX)?;
        let lines: Vec<(&str, &str)> = text.lines().filter_map(|l| l.split_once("  ")).collect();
        // The first, whatever the number of threads.
        Ok(lines.par_iter().find_map_first(|(hash, name)| {
            let path = self.path(name);
            let how = match hash_file(&path) {
                Ok(found) if found == *hash => return None,
                Ok(_) if path.metadata().is_ok_and(|m| m.len() == 0) => "is empty",
                Ok(_) => "is not what it was",
                Err(_) => "is gone or cannot be read",
            };
            Some((path, how))
        }))
    }
}
