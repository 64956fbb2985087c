//! Writing files that appear whole or not at all, and are on the disk when the function returns: what is
//! written afterwards may vouch for them, also where the power fails.

use super::input;
use candle_core::{Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt, files};
use safetensors::tensor::{Dtype, TensorInfo, View};
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// Whether a file has to outlive a power failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Yes,
    /// It is made anew where it is missing or broken.
    No,
}

/// Writes `bytes` to a name beside `path` and renames it, so that `path` is never half written.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    atomically(path, Lasting::Yes, |file| Ok(file.write_all(bytes)?))
}

/// Copies the regular file `from` to `to`, and returns its length in bytes.
///
/// # Errors
/// When one cannot be read, or the other not be written.
pub fn copy_file(from: &Path, to: &Path) -> Result<u64> {
    let cannot = || format!("cannot copy `{}`", from.display());
    let mut copied = 0;
    let mut source = input::open(from).or_error(ErrorKind::Data, cannot)?;
    atomically(to, Lasting::Yes, |file| {
        copied = io::copy(&mut source, file).or_error(ErrorKind::Data, cannot)?;
        Ok(())
    })?;
    Ok(copied)
}

/// Makes the folder `path` and those above it that are missing.
///
/// # Errors
/// When one cannot be made.
pub fn make_folder(path: &Path) -> Result<()> {
    let cannot = || format!("cannot make the folder `{}`", path.display());
    files::make_folder(path).or_error(ErrorKind::Data, cannot)
}

/// Lets `write` fill a file beside `path` and renames it.
fn atomically(
    path: &Path,
    lasting: Lasting,
    mut write: impl FnMut(&mut File) -> Result<()>,
) -> Result<()> {
    let mut all = || {
        // Removed again where anything fails: a full disk is not made fuller by what nobody can use.
        let mut file = files::partial(path)?;
        write(file.as_file_mut())?;
        if lasting == Lasting::Yes {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        if lasting == Lasting::Yes {
            files::sync_folder(files::parent(path))?;
        }
        Ok::<_, Error>(())
    };
    all().or_error(ErrorKind::Data, || {
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
    save(path, tensors, metadata, Lasting::Yes)
}

/// [`save_tensors`] for what is made anew where it is missing or broken: it appears whole or not at all,
/// but may be lost when the power fails.
///
/// # Errors
/// Those of [`save_tensors`].
pub fn cache_tensors(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<()> {
    save(path, tensors, &[], Lasting::No)
}

fn save(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    metadata: &[(&str, &str)],
    lasting: Lasting,
) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    // The widest types first: so each tensor starts at a multiple of its numbers' size.
    let rank = |(name, tensor): &(String, Tensor)| {
        let dtype: Dtype = tensor.dtype().into();
        (std::cmp::Reverse(dtype), name.clone())
    };
    tensors.sort_by_cached_key(rank);
    let header = header(&tensors, metadata)?;
    atomically(path, lasting, |file| {
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
    use std::{collections::HashMap, fs};

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
    fn folders_are_made_and_files_copied() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        make_folder(&deep).unwrap();
        make_folder(&deep).unwrap();
        let (from, to) = (deep.join("from"), deep.join("to"));
        fs::write(&from, "text").unwrap();
        assert_eq!(copy_file(&from, &to).unwrap(), 4);
        assert_eq!(fs::read(&to).unwrap(), b"text");
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 2);
        let error = make_folder(&from.join("below")).unwrap_err().to_string();
        assert!(error.starts_with("cannot make the folder `"), "{error}");
        let error = copy_file(&deep, &to).unwrap_err().to_string();
        assert!(
            error.contains("it is a folder, expected a regular"),
            "{error}"
        );
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
