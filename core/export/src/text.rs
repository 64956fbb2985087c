//! Text files that are written piece by piece, so that none is held in memory.

use diffaug::{ErrorKind, Result, ResultExt, files};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

/// A text file on its way.
pub struct TextFile {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl TextFile {
    /// Begins a file that is not there yet; its folder is made where it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot write `{}`", path.display());
        files::make_folder(files::parent(path)).or_error(ErrorKind::Data, cannot)?;
        let file = File::create_new(path).or_error(ErrorKind::Data, cannot)?;
        Ok(TextFile {
            path: path.to_owned(),
            writer: BufWriter::new(file),
        })
    }

    /// Begins a file without a name, to be read back by [`TextFile::append`]; `folder` has room for it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn nameless(folder: &Path) -> Result<Self> {
        let cannot = || format!("cannot write below `{}`", folder.display());
        let file = tempfile::tempfile_in(folder).or_error(ErrorKind::Data, cannot)?;
        Ok(TextFile {
            path: folder.to_owned(),
            writer: BufWriter::new(file),
        })
    }

    /// Appends text.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let done = self.writer.write_all(text.as_bytes());
        done.or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", self.path.display())
        })
    }

    /// Appends a value as JSON in one line, and the end of the line.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn line(&mut self, value: &impl Serialize) -> Result<()> {
        self.write(&(serde_json::to_string(value)? + "\n"))
    }

    /// Appends all that was written to `other`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn append(&mut self, other: TextFile) -> Result<()> {
        let cannot = || format!("cannot write `{}`", self.path.display());
        let file = other.writer.into_inner().map_err(|e| e.into_error());
        let mut file = file.or_error(ErrorKind::Data, cannot)?;
        file.rewind().or_error(ErrorKind::Data, cannot)?;
        let copied = io::copy(&mut file, &mut self.writer);
        copied.map(drop).or_error(ErrorKind::Data, cannot)
    }

    /// Writes out what is left.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(mut self) -> Result<()> {
        let done = self.writer.flush();
        done.or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", self.path.display())
        })
    }
}

/// The items of a JSON array, one a line, with commas between them.
#[derive(Default)]
pub struct Items {
    begun: bool,
}

impl Items {
    /// Appends an item to `file`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn add(&mut self, file: &mut TextFile, item: &impl Serialize) -> Result<()> {
        let comma = if self.begun { ",\n" } else { "\n" };
        self.begun = true;
        file.write(&(comma.to_owned() + &serde_json::to_string(item)?))
    }
}
