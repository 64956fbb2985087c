//! The folder of an export, which appears whole or not at all.

use diffaug::{Error, ErrorKind, Result, ResultExt, files};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A folder on its way: beside the one that it is to become, and removed unless it is finished.
pub struct PartialFolder {
    output: PathBuf,
    folder: TempDir,
}

impl PartialFolder {
    /// Begins the folder `output`.
    ///
    /// # Errors
    /// When there is something already, or nothing can be written beside it.
    pub fn begin(output: &Path) -> Result<Self> {
        let cannot = || format!("cannot write `{}`", output.display());
        // `.` has no parent to write beside.
        let output = &std::path::absolute(output).or_error(ErrorKind::Data, cannot)?;
        check_free(output)?;
        let parent = files::parent(output);
        files::make_folder(parent).or_error(ErrorKind::Data, cannot)?;
        check_replaceable(output, parent)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(files::PARTIAL);
        // Temporary folders are private by default; what is kept shall follow the user's umask.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = builder
            .tempdir_in(parent)
            .or_error(ErrorKind::Data, cannot)?;
        Ok(PartialFolder {
            output: output.to_owned(),
            folder,
        })
    }

    /// Where to write for now.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Flushes everything to the disk and gives the folder its name.
    ///
    /// # Errors
    /// When the disk refuses, or something took the name meanwhile.
    pub fn finish(self) -> Result<()> {
        let cannot = || format!("cannot write `{}`", self.output.display());
        files::sync_tree(self.path()).or_error(ErrorKind::Data, cannot)?;
        check_free(&self.output)?;
        if self.output.is_dir() {
            fs::remove_dir(&self.output).or_error(ErrorKind::Data, cannot)?;
        }
        fs::rename(self.path(), &self.output).or_error(ErrorKind::Data, cannot)?;
        let parent = files::parent(&self.output);
        files::sync_folder(parent).or_error(ErrorKind::Data, cannot)?;
        // It has another name now, so nothing is left to be removed.
        drop(self.folder.keep());
        Ok(())
    }
}

/// Checks that an empty folder can give way to another: one that a file system is mounted at cannot.
#[cfg(unix)]
fn check_replaceable(output: &Path, parent: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
    if output.is_dir() && device(output) != device(parent) {
        let shown = output.display();
        return Err(Error::config(format!(
            "a file system is mounted at `{shown}`, so it cannot be replaced: name a folder in it"
        )));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_replaceable(_: &Path, _: &Path) -> Result<()> {
    Ok(())
}

/// Checks that nothing, or an empty folder, has the name.
fn check_free(output: &Path) -> Result<()> {
    let shown = output.display();
    // A link to nothing is there as well, and would be replaced.
    let Ok(found) = output.symlink_metadata() else {
        return Ok(());
    };
    if !found.is_dir() {
        let message = format!("`{shown}` is there already and no folder");
        return Err(Error::config(message));
    }
    let cannot = || format!("cannot list `{shown}`");
    let mut inside = fs::read_dir(output).or_error(ErrorKind::Data, cannot)?;
    match inside.next() {
        None => Ok(()),
        Some(_) => Err(Error::config(format!(
            "the folder `{shown}` is not empty: choose another, for nothing is written over"
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_and_writes_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("a/out");
        let partial = PartialFolder::begin(&output).unwrap();
        fs::write(partial.path().join("file"), "text").unwrap();
        assert!(!output.exists());
        partial.finish().unwrap();
        assert_eq!(fs::read(output.join("file")).unwrap(), b"text");
        let error = PartialFolder::begin(&output).err().unwrap();
        assert!(error.message.contains("is not empty"), "{error}");
        // What is given up leaves nothing.
        drop(PartialFolder::begin(&dir.path().join("a/other")).unwrap());
        let left = fs::read_dir(dir.path().join("a")).unwrap().count();
        assert_eq!(left, 1);
        // An empty folder is as good as none.
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        PartialFolder::begin(&empty).unwrap().finish().unwrap();
        let file = dir.path().join("a/out/file");
        assert!(PartialFolder::begin(&file).is_err());
    }
}
