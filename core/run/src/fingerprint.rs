//! What tells that files outside and inside a run folder are still the same: hashes of content.
//!
//! Times and sizes are not trusted. Hashing reads everything, as loading weights does; what is not
//! bounded by the files themselves (links in a circle, pipes) is refused.

use diffaug::{
    Error, Result, ResultExt,
    error::ErrorKind,
    files::{hash_file, hex},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// What holds times, in the folders that training leaves.
const TIMES: [&str; 2] = ["log.jsonl", "tensorboard"];
/// Most files of a folder, and most folders in each other.
const MOST_FILES: usize = 100_000;
const MOST_LEVELS: usize = 32;

/// What is called after each file.
pub struct Step<'a>(&'a dyn Fn() -> Result<()>);

impl<'a> Step<'a> {
    /// Calls `step`, whose error ends the work.
    pub fn new(step: &'a dyn Fn() -> Result<()>) -> Self {
        Step(step)
    }
}

impl Step<'static> {
    /// Calls nothing.
    pub fn none() -> Self {
        Step(&|| Ok(()))
    }
}

/// Names and SHA-256 of a file, or of all files below a folder in natural order, logs left out. A
/// path that is not there stands for itself: it is a name by which the plugin knows the weights.
///
/// Links are followed, for caches are made of them; a folder that was met already is not entered
/// again.
///
/// # Errors
/// When something cannot be read, is a pipe or a device, or there is too much of it.
pub fn of(path: &Path, step: &Step<'_>) -> Result<Value> {
    if !path.exists() {
        return Ok(json!(path.to_string_lossy()));
    }
    hash_below(path, Walk::default(), step).map(|hash| json!(hash))
}

fn hash_below(path: &Path, mut walk: Walk, step: &Step<'_>) -> Result<String> {
    if !path.is_dir() {
        let hash = hash_file(path)?;
        (step.0)()?;
        return Ok(hash);
    }
    walk.enter(path, 0)?;
    walk.files.sort();
    let mut hash = Sha256::new();
    for file in &walk.files {
        let name = file.strip_prefix(path).unwrap_or(file);
        hash.update(name.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update(hash_file(file)?);
        (step.0)()?;
    }
    Ok(hex(&hash.finalize()))
}

/// Names and SHA-256 of all files below a folder, whatever they are called and however many they are, in
/// natural order; of a file its own.
///
/// # Errors
/// When something cannot be read, or is a pipe or a device.
pub fn of_all(path: &Path, step: &Step<'_>) -> Result<String> {
    let walk = Walk {
        everything: true,
        ..Walk::default()
    };
    hash_below(path, walk, step)
}

/// The first empty file at or below `path`; a power cut leaves such.
pub fn first_empty(path: &Path) -> Option<PathBuf> {
    let is_empty = |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0);
    if is_empty(path) {
        return Some(path.to_owned());
    }
    let mut walk = Walk::default();
    if path.is_dir() {
        walk.enter(path, 0).ok()?;
    }
    walk.files.sort();
    walk.files.into_iter().find(|file| is_empty(file))
}

/// The files below a folder.
#[derive(Default)]
struct Walk {
    files: Vec<PathBuf>,
    /// Folders by their real paths.
    entered: HashSet<PathBuf>,
    /// Whether logs count too, and no number of files is too many.
    everything: bool,
}

impl Walk {
    fn enter(&mut self, folder: &Path, level: usize) -> Result<()> {
        let failed = || format!("cannot read `{}`", folder.display());
        let real = fs::canonicalize(folder).or_error(ErrorKind::Data, failed)?;
        if !self.entered.insert(real) {
            return Ok(());
        }
        if level > MOST_LEVELS {
            let message = format!(
                "`{}` lies in more than {MOST_LEVELS} folders",
                folder.display()
            );
            return Err(Error::data(message));
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).or_error(ErrorKind::Data, failed)? {
            paths.push(entry.or_error(ErrorKind::Data, failed)?.path());
        }
        // By which of two ways a folder is met first must not depend on the file system.
        paths.sort();
        for path in paths {
            if !self.everything && TIMES.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            if path.is_dir() {
                self.enter(&path, level + 1)?;
            } else {
                self.files.push(path);
            }
            if !self.everything && self.files.len() > MOST_FILES {
                return Err(Error::data(format!(
                    "`{}` belongs to more than {MOST_FILES} files, which is more than weights have",
                    folder.display()
                )));
            }
        }
        Ok(())
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn now(path: &Path) -> Result<Value> {
        of(path, &Step::none())
    }

    #[test]
    fn content_and_names_count_and_logs_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/a"), "1").unwrap();
        let first = now(dir.path()).unwrap();
        fs::write(path("sub/log.jsonl"), "times").unwrap();
        assert_eq!(now(dir.path()).unwrap(), first);
        // Of equal size, and perhaps of equal time.
        fs::write(path("sub/a"), "2").unwrap();
        assert_ne!(now(dir.path()).unwrap(), first);
        fs::write(path("sub/a"), "1").unwrap();
        fs::rename(path("sub/a"), path("sub/b")).unwrap();
        assert_ne!(now(dir.path()).unwrap(), first);
        assert_eq!(now(Path::new("no/such")).unwrap(), json!("no/such"));
    }

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("blobs")).unwrap();
        fs::create_dir_all(path("model")).unwrap();
        fs::write(path("blobs/1"), "1").unwrap();
        symlink(path("blobs/1"), path("model/weights")).unwrap();
        let first = now(&path("model")).unwrap();
        symlink(path("model"), path("model/again")).unwrap();
        symlink(dir.path(), path("model/above")).unwrap();
        let circle = now(&path("model")).unwrap();
        assert_ne!(circle, json!("model"));
        fs::write(path("blobs/1"), "2").unwrap();
        assert_ne!(now(&path("model")).unwrap(), circle);
        assert_ne!(first, circle);
    }

    #[test]
    fn a_pipe_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [dir.path(), &pipe] {
            let error = now(path).unwrap_err().to_string();
            assert!(error.contains("it is a named pipe"), "{error}");
        }
    }

    #[test]
    fn work_ends_when_the_user_wants() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        let stop = || Err(Error::cancelled());
        let error = of(dir.path(), &Step::new(&stop)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }
}
