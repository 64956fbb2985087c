//! What training leaves, made small for sharing: weights in half precision, and nothing of what only
//! going on with the training would need.

use candle_core::{DType, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use diffaug_nn::weights::{self, Files, Source};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// What packing made of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Values of weights.
    pub values: usize,
    /// Bytes of the files that were written.
    pub bytes: u64,
}

impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes as f64 / 1e6;
        write!(
            f,
            "{} values in half precision, {megabytes:.1} MB",
            self.values
        )
    }
}

/// Copies the folder `from` to `to`, without the files and folders called one of `skip` at its top;
/// floating-point tensors of `.safetensors` files become f16.
///
/// # Errors
/// Naming a file that cannot be read or written, or a weight that f16 cannot hold.
pub fn pack(from: &Path, to: &Path, skip: &[&str]) -> Result<Packed> {
    let mut packed = Packed::default();
    for path in entries(from)? {
        let name = path.file_name().unwrap_or_default();
        if !skip.iter().any(|skipped| *skipped == name) {
            copy(&path, &to.join(name), 0, &mut packed)?;
        }
    }
    Ok(packed)
}

/// What lies in a folder, in order of names; last what describes the rest, and vouches for it.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
        let mut paths = paths.collect::<std::io::Result<Vec<_>>>()?;
        let describes = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
        paths.sort_by_key(|path| (describes(path), path.clone()));
        Ok(paths)
    };
    read().or_error(ErrorKind::Data, || {
        format!("cannot read the folder `{}`", folder.display())
    })
}

/// Folders within folders, at most.
const DEEPEST: usize = 16;

fn copy(from: &Path, to: &Path, depth: usize, packed: &mut Packed) -> Result<()> {
    let cannot = || format!("cannot copy `{}` to `{}`", from.display(), to.display());
    if from.is_dir() {
        if from.is_symlink() || depth >= DEEPEST {
            let what = match from.is_symlink() {
                true => "it is a link to a folder, which is not followed".to_owned(),
                false => format!("folders lie in folders, more than {DEEPEST} deep"),
            };
            return Err(Error::data(what).context(cannot()));
        }
        return entries(from)?.iter().try_for_each(|path| {
            let to = to.join(path.file_name().unwrap_or_default());
            copy(path, &to, depth + 1, packed)
        });
    }
    if let Some(folder) = to.parent() {
        weights::make_folder(folder)?;
    }
    if from.extension().is_some_and(|end| end == "safetensors") {
        packed.values += halve(from, to)?;
        packed.bytes += fs::metadata(to).or_error(ErrorKind::Data, cannot)?.len();
        return Ok(());
    }
    packed.bytes += weights::copy_file(from, to)?;
    Ok(())
}

/// Writes the tensors of a file in half precision and returns how many values they have.
fn halve(from: &Path, to: &Path) -> Result<usize> {
    let mut source = Files::open(&[from])?;
    let words: Vec<(String, String)> = source.metadata().clone().into_iter().collect();
    let words: Vec<(&str, &str)> = words
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let mut tensors = Vec::new();
    for name in source.names() {
        let Some(tensor) = source.take(&name)? else {
            continue;
        };
        let half = half(&tensor).or_error(ErrorKind::Model, || {
            format!("tensor `{name}` of `{}`", from.display())
        })?;
        tensors.push((name, half));
    }
    let values = tensors.iter().map(|(_, tensor)| tensor.elem_count()).sum();
    weights::save_tensors(to, tensors, &words)?;
    Ok(values)
}

/// The tensor in half precision; integers stay what they are.
fn half(tensor: &Tensor) -> Result<Tensor> {
    if !tensor.dtype().is_float() {
        return Ok(tensor.clone());
    }
    let half = tensor.to_dtype(DType::F16)?;
    let largest: f32 = match half.elem_count() {
        0 => 0.0,
        _ => half.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar()?,
    };
    match largest.is_finite() {
        true => Ok(half),
        false => Err(Error::model("has a value that half precision cannot hold")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::Device;
    use diffaug_nn::testing::{close, random};

    fn save(path: &Path, tensors: &[(&str, &Tensor)]) {
        let tensors = tensors.iter().map(|(n, t)| ((*n).to_owned(), (*t).clone()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        weights::save_tensors(path, tensors, &[("format", "pt")]).unwrap();
    }

    #[test]
    fn weights_shrink_and_training_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let x = random("x", &[5, 3]);
        let ids = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
        save(
            &from.join("unet/weights.safetensors"),
            &[("x", &x), ("ids", &ids)],
        );
        save(&from.join("last.safetensors"), &[("x", &x)]);
        fs::create_dir_all(from.join("training")).unwrap();
        fs::write(from.join("training/config.json"), "{}").unwrap();
        fs::write(from.join("config.json"), "{}").unwrap();
        let packed = pack(&from, &to, &["training", "last.safetensors"]).unwrap();
        assert_eq!(packed.values, 17);
        assert!(to.join("config.json").is_file());
        assert!(!to.join("training").exists() && !to.join("last.safetensors").exists());
        let path = to.join("unet/weights.safetensors");
        let found = weights::read(&path).unwrap();
        assert_eq!(found["x"].dtype(), DType::F16);
        assert_eq!(found["ids"].dtype(), DType::U32);
        close(&found["x"].to_dtype(DType::F32).unwrap(), &x, 2e-3);
        let words = Files::open(&[&path]).unwrap().metadata().clone();
        assert_eq!(words["format"], "pt");
        assert_eq!(packed.bytes, fs::metadata(&path).unwrap().len() + 2);
        assert_eq!(packed.to_string(), "17 values in half precision, 0.0 MB");
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&from, from.join("a/b/loop")).unwrap();
        let error = pack(&from, &to, &[]).unwrap_err().to_string();
        assert!(
            error.contains("a/b/loop` to `") && error.contains("a link to a folder"),
            "{error}"
        );
        fs::remove_file(from.join("a/b/loop")).unwrap();
        fs::create_dir_all(from.join("a/".repeat(30))).unwrap();
        let error = pack(&from, &to, &[]).unwrap_err().to_string();
        assert!(error.contains("more than 16 deep"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        let large = Tensor::new(&[1e6f32], &Device::Cpu).unwrap();
        save(&from.join("w.safetensors"), &[("large", &large)]);
        let error = pack(&from, &folder.path().join("to"), &[]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("tensor `large` of") && text.contains("half precision cannot hold"),
            "{text}"
        );
        let error = pack(Path::new("nowhere"), folder.path(), &[]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("cannot read the folder `nowhere`")
        );
    }
}
