//! Writing files that appear whole or not at all.

use candle_core::{Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use safetensors::tensor::{Dtype, TensorInfo, View};
use serde_json::{Map, Value};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

/// Writes `bytes` to a name beside `path` and renames it, so that `path` is never half written.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    atomically(path, |file| Ok(file.write_all(bytes)?))
}

/// Lets `write` fill a file beside `path` and renames it.
fn atomically(path: &Path, mut write: impl FnMut(&mut File) -> Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let mut all = || {
        write(&mut File::create(&partial)?)?;
        Ok::<_, Error>(fs::rename(&partial, path)?)
    };
    let written = all();
    if written.is_err() {
        // A full disk is not made fuller by what nobody can use.
        fs::remove_file(&partial).ok();
    }
    written.or_error(ErrorKind::Data, || {
        format!("cannot write `{}`", path.display())
    })
}

/// Writes `tensors` as safetensors, one after the other, with the words of `metadata` (PyTorch's
/// readers want `("format", "pt")`). Equal values give equal bytes, whatever their order.
///
/// # Errors
/// When the file cannot be written or two tensors have one name.
pub fn save_tensors(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    // The widest types first: so each tensor starts at a multiple of its numbers' size.
    let rank = |(name, tensor): &(String, Tensor)| {
        let dtype: Dtype = tensor.dtype().into();
        (std::cmp::Reverse(dtype), name.clone())
    };
    tensors.sort_by_cached_key(rank);
    let header = header(&tensors, metadata)?;
    atomically(path, |file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, tensor) in &tensors {
            let tensor = tensor.to_device(&Device::Cpu)?;
            file.write_all(&tensor.data())?;
        }
        Ok(file.flush()?)
    })
}

/// What stands before the data, filled up with spaces to a multiple of eight bytes.
fn header(tensors: &[(String, Tensor)], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        let words = metadata
            .iter()
            .map(|(key, text)| ((*key).to_owned(), Value::from(*text)));
        map.insert("__metadata__".to_owned(), words.collect());
    }
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.data_len();
        let info = TensorInfo {
            dtype: tensor.dtype().into(),
            shape: tensor.dims().to_vec(),
            data_offsets: (start, end),
        };
        if map
            .insert(name.clone(), serde_json::to_value(info)?)
            .is_some()
        {
            return Err(Error::internal(format!("two tensors are called `{name}`")));
        }
    }
    let mut bytes = serde_json::to_vec(&map)?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::random;
    use candle_core::DType;
    use std::collections::HashMap;

    #[test]
    fn the_bytes_are_those_of_the_reference_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let x = random("x", &[3, 2]);
        let half = random("half", &[5]).to_dtype(DType::F16).unwrap();
        let tensors = [("b", &x), ("a", &half), ("c", &x)].map(|(n, t)| (n.to_owned(), t.clone()));
        let words = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        for (metadata, theirs) in [(&[("format", "pt")][..], Some(words)), (&[], None)] {
            save_tensors(&path, tensors.clone(), metadata).unwrap();
            let expected = safetensors::serialize(tensors.clone(), theirs).unwrap();
            assert_eq!(fs::read(&path).unwrap(), expected);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_tensors_of_one_name_are_refused_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let x = ("x".to_owned(), random("x", &[3]));
        let error = save_tensors(&path, [x.clone(), x.clone()], &[]).unwrap_err();
        assert!(error.to_string().contains("two tensors are called `x`"));
        fs::create_dir(&path).unwrap();
        let error = save_tensors(&path, [x], &[]).unwrap_err().to_string();
        assert!(error.contains("cannot write `"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
