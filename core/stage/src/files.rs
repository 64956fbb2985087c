//! Reading what others wrote without waiting or filling memory, and writing what survives a power
//! cut.
//!
//! A file is written under another name, flushed to the disk and renamed; then its folder is
//! flushed. So whatever is written afterwards never outlives it.

use crate::{
    error::{Error, ErrorKind, Result, ResultExt},
    inspect::human_bytes,
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, FileType, Metadata},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// How the names of files on their way end.
pub const PARTIAL: &str = ".partial";

/// The largest text that is read into memory unless a caller says otherwise, in bytes.
pub const MAX_TEXT: u64 = 64 << 20;

/// Opens a file for reading.
///
/// # Errors
/// When it cannot be opened, or is a folder, a pipe, a socket or a device: opening a pipe waits for
/// its other end, and a device may have no end.
pub fn open_regular(path: &Path) -> Result<File> {
    regular(&fs::metadata(path)?)?;
    let mut options = File::options();
    options.read(true);
    // Another file may have taken its place meanwhile.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits() as i32,
    );
    let file = options.open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// Checks that a file is one whose bytes can be read in any order, and end.
fn regular(metadata: &Metadata) -> Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(Error::data(format!(
            "it is {}, expected a regular file",
            kind(metadata.file_type())
        ))),
    }
}

#[cfg(unix)]
fn kind(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "no file",
    }
}

#[cfg(not(unix))]
fn kind(kind: FileType) -> &'static str {
    if kind.is_dir() { "a folder" } else { "no file" }
}

/// The bytes of a file.
///
/// # Errors
/// Those of [`open_regular`]; when there are more than `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let most = human_bytes(most);
        return Err(Error::data(format!("it is larger than {most}")));
    }
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// Those of [`read`]; when it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read(path, most)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::data(format!("it is no text in UTF-8, as its byte {at} shows"))
    })
}

/// SHA-256 of a file, in hex.
///
/// # Errors
/// Those of [`open_regular`]; when it cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let failed = || format!("cannot read `{}`", path.display());
    let mut file = open_regular(path).or_error(ErrorKind::Data, failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).or_error(ErrorKind::Data, failed)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// SHA-256 of bytes, in hex.
pub fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes as lower-case hexadecimal text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `text` is a SHA-256 in hex, of either case.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Makes a folder and its parents, so that they survive a power cut.
///
/// # Errors
/// When one cannot be made.
pub fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent(path);
    if !parent.exists() {
        make_folder(parent)?;
    }
    match fs::create_dir(path) {
        // Another thread may be as far.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(parent),
    }
}

/// The folder that `path` lies in.
pub fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Flushes the names in a folder to the disk.
///
/// # Errors
/// Those of the disk; a file system that flushes no folders is none.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    // Elsewhere folders cannot be opened, and renaming is durable by itself.
    if cfg!(not(unix)) {
        return Ok(());
    }
    let refused = |error: &io::Error| {
        use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
        matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
    };
    match File::open(path).and_then(|folder| folder.sync_all()) {
        Err(error) if !refused(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Flushes a folder and everything below it to the disk; links are not followed.
///
/// # Errors
/// Those of the disk.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            sync_file(&entry.path())?;
        }
    }
    sync_folder(path)
}

fn sync_file(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) if cfg!(unix) => file.sync_all(),
        Ok(_) => Ok(()),
        // What must not be read was not written by a stage of this run.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes `bytes` to `path` whole.
///
/// # Errors
/// When the file cannot be written; what was there before stays.
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
        make_folder(parent(path)).or_error(ErrorKind::Data, failed)?;
        let file = partial(path).or_error(ErrorKind::Data, failed)?;
        Ok(WholeFile {
            path: path.to_owned(),
            writer: BufWriter::new(file),
        })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let done = self.writer.write_all(bytes);
        done.or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", self.path.display())
        })
    }

    /// Flushes to the disk and renames.
    pub fn finish(self) -> Result<()> {
        let failed = || format!("cannot write `{}`", self.path.display());
        let file = self.writer.into_inner().map_err(|e| e.into_error());
        let file = file.or_error(ErrorKind::Data, failed)?;
        let synced = file.as_file().sync_all();
        synced.or_error(ErrorKind::Data, failed)?;
        let renamed = file.persist(&self.path).map_err(|e| e.error);
        renamed.map(drop).or_error(ErrorKind::Data, failed)?;
        sync_folder(parent(&self.path)).or_error(ErrorKind::Data, failed)
    }
}

/// A file beside `path` that is to get its name when it is finished, and is removed otherwise.
///
/// # Errors
/// When the folder is not there or cannot be written to.
pub fn partial(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(PARTIAL);
    // Temporary files are private by default; what is kept shall follow the user's umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(parent(path))
}

/// Whether `name` is one that [`partial`] makes: a dot, six letters or digits, `.partial`.
pub fn is_partial(name: &str) -> bool {
    let middle = name
        .strip_prefix('.')
        .and_then(|rest| rest.strip_suffix(PARTIAL));
    middle.is_some_and(|m| m.len() == 6 && m.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Checks that a file can be written to `path`: its folder is there, it is no folder or device, and none of
/// the files that are read.
///
/// # Errors
/// When one of these does not hold.
pub fn check_output(path: &Path, inputs: &[&Path]) -> Result<()> {
    let shown = path.display();
    let folder = parent(path);
    if !folder.is_dir() {
        return Err(Error::config(format!(
            "cannot write `{shown}`: there is no folder `{}`",
            folder.display()
        )));
    }
    if path.exists() && !path.is_file() {
        return Err(Error::config(format!(
            "cannot write `{shown}`: it is no regular file"
        )));
    }
    let real = |path: &Path| fs::canonicalize(path).ok();
    let output = real(path);
    match inputs
        .iter()
        .find(|input| output.is_some() && real(input) == output)
    {
        Some(input) => Err(Error::config(format!(
            "`{shown}` is the file `{}` that is read: choose another name",
            input.display()
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_on_their_way_are_told_from_those_of_others() {
        assert!(is_partial(".aB3xYz.partial"));
        for name in [
            "data.partial",
            ".partial",
            ".abc.partial",
            ".abcdefg.partial",
        ] {
            assert!(!is_partial(name), "{name}");
        }
    }

    #[test]
    fn what_is_read_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert_eq!(read(&path, 4).unwrap_err().message, "it is larger than 4 B");
        fs::write(&path, b"ab\xff").unwrap();
        let error = read_text(&path, 5).unwrap_err();
        assert_eq!(error.message, "it is no text in UTF-8, as its byte 2 shows");
        let error = read(dir.path(), 5).unwrap_err();
        assert_eq!(error.message, "it is a folder, expected a regular file");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pipes_and_devices_are_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            let error = read(path, 5).unwrap_err();
            assert!(
                error.message.ends_with("expected a regular file"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_renamed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // A folder stands where the file is to go.
        fs::create_dir_all(dir.path().join("out/full")).unwrap();
        write_atomic(&dir.path().join("out"), b"text").unwrap_err();
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["out"]);
        write_atomic(&dir.path().join("a/b/c"), b"text").unwrap();
        assert_eq!(fs::read(dir.path().join("a/b/c")).unwrap(), b"text");
    }
}
