//! Reading files that others wrote: only regular files are opened, none is read beyond a limit, and a
//! git-lfs pointer is told from the file that it stands for.
//!
//! Every file of weights, configurations and vocabularies is opened here. Errors do not name the file:
//! the caller puts its name in front.

use diffaug::{Error, ErrorKind, Result, ResultExt, files};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{fs::File, io, path::Path};

/// The longest configuration that is read, in bytes.
pub const CONFIG_BYTES: u64 = 4 << 20;
/// The longest vocabulary, list of merges or list of shards that is read, in bytes.
pub const VOCABULARY_BYTES: u64 = 64 << 20;
/// What a git-lfs pointer begins with, whatever the version.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Opens the regular file at `path` for reading. Links are followed.
///
/// # Errors
/// Those of [`files::open_regular`], and when the file is a git-lfs pointer.
pub fn open(path: &Path) -> Result<File> {
    let file = files::open_regular(path)?;
    let mut start = [0; POINTER.len()];
    match read_at(&file, &mut start, 0) {
        Ok(()) if start == POINTER => Err(Error::model(
            "it is a git-lfs pointer, which stands for the file: fetch the file with `git lfs pull`",
        )),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
        _ => Ok(file),
    }
}

/// The bytes of the regular file at `path`, at most `most`.
///
/// # Errors
/// Those of [`open`], and when the file is longer.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    open(path)?;
    files::read(path, most)
}

/// The text of the regular file at `path`, at most `most` bytes.
///
/// # Errors
/// Those of [`read`], and when it is no UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    open(path)?;
    files::read_text(path, most)
}

/// What the JSON file at `path` holds; it has at most `most` bytes and 127 levels of nesting.
///
/// # Errors
/// Those of [`read`], and when it is no JSON, or not of this type: the field is named where it can be.
pub fn read_json<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T> {
    parse_json(&read(path, most)?)
}

/// What the JSON text `bytes` holds.
///
/// # Errors
/// When it is no JSON, or not of this type: the field is named where it can be.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| match field_before(bytes, &error) {
        Some(field) => Error::model(error).context(format!("at `{field}`")),
        None => Error::model(error),
    })
}

/// The value `config` as the type that it describes.
///
/// # Errors
/// Naming the field that does not fit.
pub fn typed<T: DeserializeOwned>(config: &Value) -> Result<T> {
    let parse =
        |value: &Value| serde_json::from_value::<T>(value.clone()).map_err(|e| e.to_string());
    let error = match parse(config) {
        Ok(typed) => return Ok(typed),
        Err(error) => error,
    };
    // The field without which the error is another one.
    let fields = config.as_object().into_iter().flatten();
    let culprit = fields.take(1000).find(|(name, _)| {
        let mut rest = config.clone();
        let map = rest.as_object_mut();
        map.map(|map| map.shift_remove(name.as_str()));
        parse(&rest).err().is_none_or(|other| other != error)
    });
    Err(match culprit {
        Some((name, value)) => Error::model(format!("`{name}` is {}: {error}", short(value))),
        None => Error::model(error),
    })
}

/// A value as JSON, cut where it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The name of the field in `bytes` that stands before an error.
fn field_before(bytes: &[u8], error: &serde_json::Error) -> Option<String> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let before: usize = (lines.by_ref())
        .take(error.line().checked_sub(1)?)
        .map(|line| line.len() + 1)
        .sum();
    // Far more than a name and its value take.
    let end = (before + error.column()).min(bytes.len());
    let start = end.saturating_sub(4096);
    let text = String::from_utf8_lossy(&bytes[start..end]);
    let colon = text.rfind("\":")?;
    let quote = text[..colon].rfind('"')?;
    Some(text[quote + 1..colon].to_owned())
}

/// Fills `bytes` with what stands in `file` from `start` on.
///
/// # Errors
/// Those of the disk; [`io::ErrorKind::UnexpectedEof`] when the file is shorter.
pub(super) fn read_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, bytes, start);
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(bytes)
    }
}

/// The error of a read, in words where the file has been cut.
pub(super) fn cut(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::model("the file has become shorter since it was opened")
        }
        _ => error.into(),
    }
}

/// [`read_json`] with the name of the file in front of its errors.
///
/// # Errors
/// Those of [`read_json`].
pub fn json_file<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T> {
    let shown = path.display();
    let bytes = read(path, most).or_error(ErrorKind::Model, || format!("cannot read `{shown}`"))?;
    parse_json(&bytes).or_error(ErrorKind::Model, || format!("`{shown}` is not valid JSON"))
}

/// Whether `name` is that of a file beside another: letters, digits, `-`, `_` and `.`, no folder, not
/// hidden.
pub fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=255).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::fs;

    #[test]
    fn what_is_no_regular_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| open(path).unwrap_err().to_string();
        assert_eq!(
            error(folder.path()),
            "it is a folder, expected a regular file"
        );
        assert!(error(&folder.path().join("none")).contains("No such file"));
        #[cfg(unix)]
        {
            let device = error(Path::new("/dev/zero"));
            assert_eq!(device, "it is a device, expected a regular file");
            let pipe = folder.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status();
            assert!(made.unwrap().success());
            assert_eq!(error(&pipe), "it is a named pipe, expected a regular file");
            let socket = folder.path().join("socket");
            let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            assert_eq!(error(&socket), "it is a socket, expected a regular file");
            let (a, b) = (folder.path().join("a"), folder.path().join("b"));
            std::os::unix::fs::symlink(&a, &b).unwrap();
            std::os::unix::fs::symlink(&b, &a).unwrap();
            assert!(error(&a).contains("symbolic link"), "{}", error(&a));
        }
    }

    #[test]
    fn pointers_and_long_files_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        for version in ["v1", "v2"] {
            let text = format!("version https://git-lfs.github.com/spec/{version}\nsize 3\n");
            fs::write(&path, text).unwrap();
            let error = read(&path, 10).unwrap_err().to_string();
            assert!(error.contains("is a git-lfs pointer") && error.contains("`git lfs pull`"));
        }
        fs::write(&path, "version https://").unwrap();
        assert_eq!(read(&path, 16).unwrap().len(), 16);
        let error = read(&path, 15).unwrap_err().to_string();
        assert!(error.contains("larger than 15 B"), "{error}");
        fs::write(&path, b"ab\xff").unwrap();
        let error = read_text(&path, 9).unwrap_err().to_string();
        assert_eq!(error, "it is no text in UTF-8, as its byte 2 shows");
    }

    #[test]
    fn the_field_that_does_not_fit_is_named() {
        #[derive(Debug, Deserialize)]
        struct Config {
            #[serde(default)]
            layers: usize,
            factor: f64,
        }
        let error = |text: &str| {
            parse_json::<Config>(text.as_bytes())
                .unwrap_err()
                .to_string()
        };
        let text = error("{\n \"layers\": 3,\n \"factor\": 1e400}");
        assert!(
            text.starts_with("at `factor`: number out of range"),
            "{text}"
        );
        let text = error("{\"layers\": -1, \"factor\": 1}");
        assert!(text.starts_with("at `layers`: invalid value"), "{text}");
        assert!(error("{\"factor\": NaN}").starts_with("at `factor`: expected value"));
        assert!(error("{\"layers\": 1}").contains("missing field `factor`"));
        let deep = "[".repeat(300_000);
        let error_of = parse_json::<Value>(deep.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error_of.contains("recursion limit exceeded"), "{error_of}");

        let error = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            typed::<Config>(&value).unwrap_err().to_string()
        };
        let text = error("{\"layers\": -1, \"factor\": 1}");
        assert!(text.starts_with("`layers` is -1: invalid value"), "{text}");
        let text = error("{\"layers\": 1, \"factor\": \"x\"}");
        assert!(
            text.starts_with("`factor` is \"x\": invalid type"),
            "{text}"
        );
        assert!(error("{\"layers\": 1}").contains("missing field `factor`"));
        assert!(error("[]").contains("missing") || error("[]").contains("invalid"));
        let fine: Config = typed(&serde_json::json!({"layers": 2, "factor": 0.5})).unwrap();
        assert_eq!((fine.layers, fine.factor), (2, 0.5));
    }

    #[test]
    fn plain_names_have_no_folders() {
        for name in ["model.fp16-00001-of-00002.safetensors", "a", "a_b"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in [
            "", ".", "..", ".hidden", "a/b", "a\\b", "a\0", "ä", "a b", "a\n", "C:x",
        ] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(!is_plain_name(&"x".repeat(256)));
    }
}
