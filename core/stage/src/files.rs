//! Opening files of the user: regular ones only, and texts of a bounded size.

use crate::error::{Error, ErrorKind, Result, ResultExt};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// The largest text that is read into memory unless a caller says otherwise, in bytes.
pub const MAX_TEXT: u64 = 64 << 20;

/// Opens a regular file, or what a link to one leads to, for reading.
///
/// A FIFO would keep the program waiting for a writer, a device might never end.
///
/// # Errors
/// When there is no such file, it cannot be read, or it is something else.
pub fn open_regular(path: &Path) -> Result<File> {
    let cannot = || format!("cannot read `{}`", path.display());
    let kind = std::fs::metadata(path).or_error(ErrorKind::Data, cannot)?;
    if !kind.is_file() {
        let what = if kind.is_dir() {
            "a folder"
        } else {
            "a FIFO, socket or device"
        };
        return Err(Error::data(format!(
            "`{}` is {what}, expected a regular file",
            path.display()
        )));
    }
    File::open(path).or_error(ErrorKind::Data, cannot)
}

/// Reads a text of at most `limit` bytes.
///
/// # Errors
/// As for [`open_regular`], and when the file is larger or not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let file = open_regular(path)?;
    // One byte more than allowed tells a file that is too large, whatever its size was said to be.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .or_error(ErrorKind::Data, || {
            format!("cannot read `{}`", path.display())
        })?;
    if bytes.len() as u64 > limit {
        return Err(Error::data(format!(
            "`{}` has more than {limit} bytes, which is no file of its kind",
            path.display()
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::data(format!(
            "`{}` is not UTF-8 text (byte {at})",
            path.display()
        ))
    })
}

/// The folder that `path` lies in.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes the names in `folder` durable: after a rename, a power cut could otherwise undo it.
///
/// # Errors
/// When the folder cannot be opened or synchronised.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    // Only Unix opens folders as files; elsewhere a rename is as durable as the system makes it.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| open_regular(path).unwrap_err().to_string();
        assert!(message(dir.path()).ends_with("is a folder, expected a regular file"));
        assert!(message(&dir.path().join("no")).contains("no`: No such file"));
        if cfg!(unix) {
            let device = message(Path::new("/dev/zero"));
            assert_eq!(
                device,
                "`/dev/zero` is a FIFO, socket or device, expected a regular file"
            );
        }
    }

    #[test]
    fn texts_are_bounded_and_unicode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(read_text(&path, 3).unwrap(), "abc");
        let error = read_text(&path, 2).unwrap_err().to_string();
        assert!(error.contains("has more than 2 bytes"), "{error}");
        std::fs::write(&path, b"ab\xff").unwrap();
        let error = read_text(&path, 9).unwrap_err().to_string();
        assert!(error.ends_with("is not UTF-8 text (byte 2)"), "{error}");
    }
}
