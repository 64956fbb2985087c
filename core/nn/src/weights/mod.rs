//! Weights on disk: safetensors, read with errors that name the tensor; and PyTorch's and NumPy's files, to be
//! converted. Also how any file that others wrote is opened ([`input`]).

mod archive;
mod files;
pub mod input;
mod npz;
mod numbers;
mod pickle;
mod source;
mod write;

pub use files::{Files, parse_header};
pub use npz::Npz;
pub use pickle::Pickle;
pub use source::{Cast, Renamed, Source};
pub use write::{cache_tensors, copy_file, make_folder, save_tensors, write_atomically};

use crate::{finite, params::Params};
use candle_core::{DType, Tensor, Var};
use diffaug::{Error, Result};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

/// A file of tensors: safetensors or, read as data, PyTorch's own.
///
/// # Errors
/// When it is missing, broken or of another kind.
pub fn open(path: &Path) -> Result<Box<dyn Source>> {
    if !path.exists() {
        let shown = path.display();
        return Err(Error::model(format!("there is no file `{shown}`")));
    }
    match path.extension().is_some_and(|kind| kind == "safetensors") {
        true => Ok(Box::new(Files::open(&[path])?)),
        false => Ok(Box::new(Pickle::open(path)?)),
    }
}

/// Every tensor of a safetensors file, on the processor.
///
/// # Errors
/// When the file is missing, cut short or of another kind.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let mut files = Files::open(&[path])?;
    let mut tensors = HashMap::new();
    for name in files.names() {
        if let Some(tensor) = files.take(&name)? {
            tensors.insert(name, tensor);
        }
    }
    Ok(tensors)
}

/// Fills `params` with the tensors of a safetensors file; names and shapes must match exactly.
///
/// # Errors
/// When a tensor is missing, left over or has another shape: the message names it.
pub fn load(path: &Path, params: &Params) -> Result<()> {
    fill(Files::open(&[path])?, params)
        .map_err(|error| error.context(format!("`{}` does not fit this model", path.display())))
}

/// Fills `params` with the tensors of `source`, one after the other; names and shapes must match
/// exactly, and nothing is changed unless all do.
///
/// # Errors
/// When a tensor is missing, left over or has another shape: the message names it.
pub fn fill(mut source: impl Source, params: &Params) -> Result<()> {
    let shaped = |(name, var): (&str, &Var)| (name.to_owned(), var.dims().to_vec());
    compare(&source, &params.all().map(shaped).collect::<Vec<_>>())?;
    for (name, var) in params.all() {
        if let Some(tensor) = source.take(name)? {
            var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
        }
    }
    Ok(())
}

/// Checks that the tensors of `source` are those that are `expected`, by name and shape.
///
/// # Errors
/// When one is missing, left over or has another shape: the message names it and the shapes.
pub(crate) fn compare(source: &impl Source, expected: &[(String, Vec<usize>)]) -> Result<()> {
    for (name, shape) in expected {
        match source.shape(name) {
            None => {
                return Err(Error::model(format!(
                    "tensor `{name}` is missing, expected with shape {shape:?}"
                )));
            }
            Some(ours) if ours != *shape => {
                return Err(Error::model(format!(
                    "tensor `{name}` has shape {ours:?}, expected {shape:?}"
                )));
            }
            Some(_) => {}
        }
    }
    let names: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let given = source.names();
    match given.iter().find(|name| !names.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::model(format!(
            "tensor `{name}` with shape {:?} is not part of it",
            source.shape(name).unwrap_or_default()
        ))),
    }
}

/// The name of the first tensor that holds a value that is no number, if there is one.
///
/// # Errors
/// Those of the device.
pub fn not_finite<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<Option<&'a str>> {
    let (mut names, mut sums) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        if tensor.dtype().is_float() && tensor.elem_count() > 0 {
            names.push(name);
            sums.push(finite::witness(&tensor.flatten_all()?.unsqueeze(0)?)?);
        }
    }
    if sums.is_empty() {
        return Ok(None);
    }
    let sums: Vec<f32> = Tensor::cat(&sums, 0)?.to_vec1()?;
    let found = sums.iter().position(|sum| !sum.is_finite());
    Ok(found.map(|at| names[at]))
}

/// Writes every tensor of `params` as safetensors. Equal values give equal bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, params: &Params) -> Result<()> {
    let owned = |(name, var): (&str, &Var)| (name.to_owned(), var.as_detached_tensor());
    save_tensors(path, params.all().map(owned), &[])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::fs;

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
}
