//! Weights on disk: safetensors, read with errors that name the tensor.

use crate::params::Params;
use candle_core::{DType, Device, Tensor, Var};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
};

/// Writes `bytes` to a name beside `path` and renames it, so that `path` is never half written.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", path.display())
        })
}

/// Every tensor of a safetensors file, on the processor.
///
/// # Errors
/// When the file is missing, cut short or of another kind.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let shown = path.display();
    let bytes = fs::read(path).or_error(ErrorKind::Model, || {
        format!("cannot read the weights `{shown}`")
    })?;
    // A zip archive (PyTorch since 1.6) or a bare pickle; safetensors begins with a length of
    // eight bytes, which may look like either, and then a brace.
    let zip = bytes.starts_with(b"PK\x03\x04");
    let pickle = bytes.len() > 1 && bytes[0] == 0x80 && (2..=5).contains(&bytes[1]);
    if (zip || pickle) && bytes.get(8) != Some(&b'{') {
        return Err(Error::model(format!(
            "`{shown}` is a PyTorch file, not safetensors: convert it first"
        )));
    }
    candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| {
        Error::model(&error).context(format!("`{shown}` is not a complete safetensors file"))
    })
}

/// Fills `params` with the tensors of a safetensors file; names and shapes must match exactly.
///
/// # Errors
/// When a tensor is missing, left over or has another shape: the message names it.
pub fn load(path: &Path, params: &Params) -> Result<()> {
    fill(&read(path)?, params)
        .map_err(|error| error.context(format!("`{}` does not fit this model", path.display())))
}

/// Fills `params` with `tensors`.
pub(crate) fn fill(tensors: &HashMap<String, Tensor>, params: &Params) -> Result<()> {
    let shaped = |(name, var): (&str, &Var)| (name.to_owned(), var.dims().to_vec());
    compare(tensors, &params.all().map(shaped).collect::<Vec<_>>())?;
    for (name, var) in params.all() {
        if let Some(tensor) = tensors.get(name) {
            var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
        }
    }
    Ok(())
}

/// Checks that `tensors` are those that are `expected`, by name and shape.
///
/// # Errors
/// When one is missing, left over or has another shape: the message names it and the shapes.
pub(crate) fn compare(
    tensors: &HashMap<String, Tensor>,
    expected: &[(String, Vec<usize>)],
) -> Result<()> {
    for (name, shape) in expected {
        match tensors.get(name).map(Tensor::dims) {
            None => {
                return Err(Error::model(format!(
                    "tensor `{name}` is missing, expected with shape {shape:?}"
                )));
            }
            Some(ours) if ours != shape => {
                return Err(Error::model(format!(
                    "tensor `{name}` has shape {ours:?}, expected {shape:?}"
                )));
            }
            Some(_) => {}
        }
    }
    let names: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let extra = tensors
        .iter()
        .filter(|(name, _)| !names.contains(name.as_str()));
    match extra.min_by_key(|(name, _)| name.as_str()) {
        None => Ok(()),
        Some((name, tensor)) => Err(Error::model(format!(
            "tensor `{name}` with shape {:?} is not part of it",
            tensor.dims()
        ))),
    }
}

/// Writes every tensor of `params` as safetensors. Equal values give equal bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, params: &Params) -> Result<()> {
    let tensors = params.all().map(|(name, var)| {
        let tensor = var.as_detached_tensor().to_device(&Device::Cpu)?;
        Ok((name.to_owned(), tensor))
    });
    let bytes = safetensors::serialize(tensors.collect::<Result<Vec<_>>>()?, None)?;
    write_atomically(path, &bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn params(names: &[(&str, usize)], seed: u64) -> Params {
        let mut params = Params::new(&Device::Cpu, seed);
        for (name, size) in names {
            params.root().uniform(name, &[*size, 2], 1.0).unwrap();
        }
        params.root().buffer("running", &[1], 3.0).unwrap();
        params
    }

    fn values(params: &Params) -> Vec<Vec<f32>> {
        let flat = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1().unwrap();
        params.all().map(|(_, var)| flat(var)).collect()
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let (a, b) = (params(&[("x", 3)], 1), params(&[("x", 3)], 2));
        save(&path, &a).unwrap();
        let first = fs::read(&path).unwrap();
        assert_ne!(values(&a), values(&b));
        load(&path, &b).unwrap();
        assert_eq!(values(&a), values(&b));
        save(&path, &b).unwrap();
        assert_eq!(first, fs::read(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_misfit_names_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        save(&path, &params(&[("x", 3), ("y", 1)], 1)).unwrap();
        let message = |names: &[(&str, usize)]| {
            let target = params(names, 2);
            let before = values(&target);
            let text = load(&path, &target).unwrap_err().to_string();
            assert_eq!(before, values(&target), "nothing is changed by halves");
            text
        };
        let text = message(&[("x", 3), ("y", 1), ("z", 1)]);
        assert!(text.contains("tensor `z` is missing"), "{text}");
        assert!(message(&[("x", 3)]).contains("`y` with shape [1, 2] is not part of it"));
        let text = message(&[("x", 4), ("y", 1)]);
        assert!(
            text.contains("`x` has shape [3, 2], expected [4, 2]"),
            "{text}"
        );
    }

    #[test]
    fn other_files_are_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.bin");
        let message = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path).unwrap_err().to_string()
        };
        assert!(message(b"PK\x03\x04rest").contains("is a PyTorch file"));
        assert!(message(&[0x80, 2, 0x8a, 10]).contains("is a PyTorch file"));
        assert!(message(b"").contains("not a complete safetensors file"));
        save(&path, &params(&[("x", 3)], 1)).unwrap();
        let whole = fs::read(&path).unwrap();
        assert!(message(&whole[..whole.len() - 4]).contains("not a complete"));
        let error = read(&folder.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("cannot read the weights"));
    }
}
