//! The run folder: what lies where, written so that a kill at any moment loses nothing.
//!
//! Files appear whole or not at all (temporary name, then rename). Nothing in them depends on when
//! or how often the run was started; times live in `log.jsonl` alone.

use crate::registry::hash_file;
use diffaug::{Error, Result, ResultExt, error::ErrorKind};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// How the names of files on their way end, here and wherever stages write; a killed run leaves
/// some, the next start removes them.
const PARTIAL: &str = ".partial";

/// An open run folder; no other process has it open.
pub struct Store {
    root: PathBuf,
    /// Held for its lock, which the system releases whenever the process ends.
    _lock: File,
}

impl Store {
    /// Opens or makes the run folder and takes it for this process.
    ///
    /// # Errors
    /// When it cannot be made or another process works in it.
    pub fn open(root: &Path) -> Result<(Self, File)> {
        let shown = root.display();
        fs::create_dir_all(root).or_error(ErrorKind::Data, || {
            format!("cannot make run folder `{shown}`")
        })?;
        let path = root.join("log.jsonl");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .or_error(ErrorKind::Data, || {
                format!("cannot write `{}`", path.display())
            })?;
        log.try_lock().map_err(|_| {
            Error::data(format!(
                "run folder `{shown}` is in use by another diffaug process"
            ))
        })?;
        let store = Store {
            root: root.to_owned(),
            _lock: log.try_clone()?,
        };
        sweep(root)?;
        Ok((store, log))
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
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let message = format!("cannot read `{}`", path.display());
                return Err(Error::from(error).context(message));
            }
        };
        serde_json::from_str(&text)
            .map(Some)
            .or_error(ErrorKind::Data, || {
                format!("`{}` is damaged; remove it to make it anew", path.display())
            })
    }

    /// Writes `lock.json`, or compares with the one that is there.
    ///
    /// # Errors
    /// When the run was begun with something else; the message names the first difference.
    pub fn lock(&self, manifest: &str, lock: &Value) -> Result<()> {
        let old: Option<Value> = self.read_json("lock.json")?;
        let Some(old) = old else {
            self.write("manifest.toml", manifest)?;
            return self.write_json("lock.json", lock);
        };
        let Some((field, was, is)) = difference("", &old, lock) else {
            return Ok(());
        };
        Err(Error::config(format!(
            "run folder `{}` was begun with `{field}` = {was}, now it is {is}: choose another \
             `output` (`--set output=…`) or remove the folder",
            self.root.display()
        )))
    }
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

/// Writes `bytes` to `path` whole.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

/// A file on its way: it appears under its name when it is finished and not before.
pub struct WholeFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Begins a file; its folder is made where it is missing.
    pub fn create(path: &Path) -> Result<Self> {
        let failed = || format!("cannot write `{}`", path.display());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::create_dir_all(folder).or_error(ErrorKind::Data, failed)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(PARTIAL);
        #[cfg(unix)]
        builder.permissions(shared());
        let file = builder.tempfile_in(folder);
        Ok(WholeFile {
            path: path.to_owned(),
            writer: BufWriter::new(file.or_error(ErrorKind::Data, failed)?),
        })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let done = self.writer.write_all(bytes);
        done.or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", self.path.display())
        })
    }

    /// Flushes to disk and renames.
    pub fn finish(self) -> Result<()> {
        let failed = || format!("cannot write `{}`", self.path.display());
        let file = self.writer.into_inner().map_err(|e| e.into_error());
        let file = file.or_error(ErrorKind::Data, failed)?;
        let synced = file.as_file().sync_data();
        synced.or_error(ErrorKind::Data, failed)?;
        let renamed = file.persist(&self.path).map_err(|e| e.error);
        renamed.map(drop).or_error(ErrorKind::Data, failed)
    }
}

/// Results are for sharing: as any new file, less what the umask takes away.
#[cfg(unix)]
fn shared() -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(0o666)
}

/// Removes what a killed run left half-written.
fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            sweep(&path)?;
        } else if entry.file_name().to_string_lossy().ends_with(PARTIAL) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// What holds times, in the folders that training leaves.
const TIMES: [&str; 2] = ["log.jsonl", "tensorboard"];

/// Names and SHA-256 of a file, or of all files below a folder in natural order, logs left out.
pub fn fingerprint(path: &Path) -> Result<Value> {
    // Not a path but a name by which the plugin knows the weights.
    if !path.exists() {
        return Ok(json!(path.to_string_lossy()));
    }
    if path.is_file() {
        return Ok(json!(hash_file(path)?));
    }
    let mut files = Vec::new();
    collect(path, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        let name = file.strip_prefix(path).unwrap_or(file);
        hash.update(name.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update(hash_file(file)?);
    }
    Ok(json!(crate::registry::hex(&hash.finalize())))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = || format!("cannot read `{}`", folder.display());
    for entry in fs::read_dir(folder).or_error(ErrorKind::Data, failed)? {
        let path = entry.or_error(ErrorKind::Data, failed)?.path();
        if TIMES.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_with_its_path() {
        let old = json!({"a": 1, "b": {"c": 2, "d": 3}});
        let new = json!({"a": 1, "b": {"c": 5, "d": 3}});
        let found = difference("", &old, &new).unwrap();
        assert_eq!(found, ("b.c".into(), "2".into(), "5".into()));
        assert_eq!(difference("", &old, &old), None);
    }

    #[test]
    fn a_folder_is_taken_once_and_swept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/.abc.partial"), "half").unwrap();
        let first = Store::open(dir.path()).unwrap();
        assert!(!dir.path().join("sub/.abc.partial").exists());
        let second = Store::open(dir.path()).err().unwrap().to_string();
        assert!(second.contains("in use by another"), "{second}");
        drop(first);
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_refuses_another_run() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _log) = Store::open(dir.path()).unwrap();
        store.lock("name = 1", &json!({"seed": 1})).unwrap();
        store.lock("name = 1", &json!({"seed": 1})).unwrap();
        let error = store.lock("name = 1", &json!({"seed": 2})).unwrap_err();
        assert!(error.message.contains("`seed` = 1, now it is 2"), "{error}");
    }
}
