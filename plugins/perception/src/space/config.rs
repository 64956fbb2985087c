//! Folders as transformers writes them: `config.json` beside `model.safetensors`.

use candle_core::DType;
use diffaug::{Error, ErrorKind, Result, ResultExt, files};
use diffaug_nn::weights::{self, Cast, Renamed, Source};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The longest configuration that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Configuration and weights of a folder.
pub fn files(folder: &Path) -> [PathBuf; 2] {
    ["config.json", "model.safetensors"].map(|name| folder.join(name))
}

/// What stands in the configuration of a folder.
///
/// # Errors
/// When it is not there or no JSON; the message names the file.
pub fn read(folder: &Path) -> Result<Value> {
    let [path, _] = files(folder);
    let cannot = || format!("cannot read `{}`", path.display());
    let text = files::read_text(&path, LONGEST).or_error(ErrorKind::Model, cannot)?;
    serde_json::from_str(&text).or_error(ErrorKind::Model, cannot)
}

/// The configuration that a part of that is.
///
/// # Errors
/// When it is none; the message names the file and what was expected.
pub fn parse<T: DeserializeOwned>(folder: &Path, written: Value) -> Result<T> {
    let [path, _] = files(folder);
    let cannot = || format!("cannot read `{}`", path.display());
    if !written.is_object() {
        let error = Error::model(format!("`{written}` stands where an object was expected"));
        return Err(error.context(cannot()));
    }
    serde_json::from_value(written).or_error(ErrorKind::Model, cannot)
}

/// The tensors of a folder in f32, without those whose names begin with one of `passed_over`.
///
/// # Errors
/// When the file is not there or broken.
pub fn tensors(folder: &Path, passed_over: &'static [&'static str]) -> Result<impl Source + use<>> {
    let [_, path] = files(folder);
    let kept = |name: &str| {
        let counts = !passed_over.iter().any(|prefix| name.starts_with(prefix));
        counts.then(|| name.to_owned())
    };
    Ok(Cast::new(
        Renamed::new(weights::open(&path)?, kept)?,
        DType::F32,
    ))
}

/// An error that says that the weights of `path` are those of another network, and why.
pub fn misfit(path: &Path, what: &str, error: impl Into<Error>) -> Error {
    let mut error = error.into();
    error.kind = ErrorKind::Model;
    error.context(format!("`{}` does not hold {what}", path.display()))
}

/// Checks that no tensor is left over.
///
/// # Errors
/// Naming the first that is.
pub fn nothing_left(names: &[String]) -> Result<()> {
    match names.first() {
        None => Ok(()),
        Some(name) => Err(Error::model(format!("tensor `{name}` is not part of it"))),
    }
}
