//! PyTorch's own files as a [`Source`], for conversion: the zip archives that it writes since 1.6.
//! Their pickles are read as data by a small bounded machine; nothing in them is executed.

mod machine;
mod tensors;
#[cfg(test)]
mod tests;

use super::{
    Source,
    archive::{Archive, Entry},
    input, numbers,
};
use candle_core::Tensor;
use diffaug::{Error, ErrorKind, Result, ResultExt};
use safetensors::tensor::Dtype;
use std::{collections::BTreeMap, fs::File, path::Path};
use tensors::Described;

/// The longest pickle that is read, in bytes: a thousand bytes for each of 30 thousand tensors.
const LONGEST_PICKLE: u64 = 32 << 20;
/// All tensors together may have as many times the bytes of their storages, for they may share them.
const SHARED: u64 = 4;
/// Beyond that, what small tensors that repeat a few numbers may have.
const REPEATED: u64 = 64 << 20;

/// The tensors of a PyTorch file.
#[derive(Debug)]
pub struct Pickle {
    archive: Archive,
    /// Those that have not been taken.
    left: BTreeMap<String, Place>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    entry: Entry,
    dtype: std::result::Result<Dtype, String>,
    shape: Vec<usize>,
    /// In bytes, of the entry.
    start: u64,
    /// Bytes from the first number to the last, that one included.
    span: u64,
    /// Where each number is, in numbers; `None` where they lie side by side.
    strides: Option<Vec<u64>>,
}

impl Pickle {
    /// Opens the file at `path`; tensors are those of its dictionary `state_dict` where it has one
    /// (as Lightning's checkpoints do), else its own.
    ///
    /// # Errors
    /// When the file is missing, broken or of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file =
            input::open(path).or_error(ErrorKind::Model, || format!("cannot read `{shown}`"))?;
        let left = Self::of(file).or_error(ErrorKind::Model, || {
            format!("cannot read `{shown}` as a PyTorch file (a zip archive with a pickle)")
        })?;
        match left.left.is_empty() {
            true => Err(Error::model(format!("`{shown}` holds no tensors"))),
            false => Ok(left),
        }
    }

    /// The tensors in an open file, perhaps none.
    ///
    /// # Errors
    /// When it is broken or of another kind.
    pub fn of(file: File) -> Result<Self> {
        let mut start = [0; 2];
        if input::read_at(&file, &mut start, 0).is_ok() && start[0] == 0x80 {
            return Err(Error::unsupported(
                "it is a bare pickle, as PyTorch wrote before 1.6: load it with a later PyTorch and save it again",
            ));
        }
        let archive = Archive::open(file)?;
        let (folder, pickle) = pickle(&archive)?;
        if let Some(order) = archive.entries().get(&format!("{folder}byteorder"))
            && archive.whole(order, 16)? != b"little"
        {
            return Err(Error::unsupported(
                "its numbers are stored with the highest byte first, which is not supported",
            ));
        }
        let bytes = archive.whole(pickle, LONGEST_PICKLE).map_err(|error| {
            error.context(format!("the entry `{}data.pkl`", folder.escape_default()))
        })?;
        let described = tensors::described(&machine::run(&bytes)?)?;
        let mut left = BTreeMap::new();
        for (name, tensor) in described {
            let place = place(&archive, folder, tensor).map_err(|error| {
                error.context(format!("tensor `{}` cannot be read", name.escape_default()))
            })?;
            left.insert(name, place);
        }
        check_total(&archive, &left)?;
        Ok(Pickle { archive, left })
    }

    /// The names of the tensors that a pickle by itself describes, the entry `data.pkl` of an archive.
    ///
    /// # Errors
    /// When it is broken, or larger than a pickle is.
    pub fn names_in(pickle: &[u8]) -> Result<Vec<String>> {
        let described = tensors::described(&machine::run(pickle)?)?;
        Ok(described.into_keys().collect())
    }

    fn read(&self, place: &Place) -> Result<Tensor> {
        let dtype = place.dtype.clone().map_err(|name| {
            let name = name.escape_default();
            Error::unsupported(format!("its type is `{name}`, which is not supported"))
        })?;
        let Some(strides) = &place.strides else {
            let mut fill = |bytes: &mut [u8]| self.archive.read(&place.entry, place.start, bytes);
            return numbers::load(dtype, &place.shape, &mut fill);
        };
        let mut span = vec![0; place.span as usize];
        self.archive.read(&place.entry, place.start, &mut span)?;
        let width = dtype.bitsize() / 8;
        let mut fill = |bytes: &mut [u8]| {
            gather(&span, &place.shape, strides, width, bytes);
            Ok(())
        };
        numbers::load(dtype, &place.shape, &mut fill)
    }
}

/// The folder in the archive, with its slash, and the pickle in it.
fn pickle(archive: &Archive) -> Result<(&str, &Entry)> {
    let entries = archive.entries().iter();
    let mut found = entries.filter_map(|(name, entry)| {
        let folder = name.strip_suffix("data.pkl")?;
        (folder.is_empty() || folder.ends_with('/')).then_some((folder, entry))
    });
    match (found.next(), found.next()) {
        (Some(found), None) => Ok(found),
        (None, _) => Err(Error::model("the archive has no entry `data.pkl`")),
        (Some(_), Some(_)) => Err(Error::model("the archive has several entries `data.pkl`")),
    }
}

/// Where the tensor is, after its numbers have been held against the entry of its storage.
fn place(archive: &Archive, folder: &str, tensor: Described) -> Result<Place> {
    let name = format!("{folder}data/{}", tensor.storage);
    let entry = archive.entries().get(&name).ok_or_else(|| {
        Error::model(format!(
            "the archive has no entry `{}`",
            name.escape_default()
        ))
    })?;
    numbers::check_shape(&tensor.shape)?;
    // Of types that are not supported the places are never used.
    let width = tensor.dtype.as_ref().map_or(1, |dtype| dtype.bitsize() / 8) as u64;
    let held = entry.len / width;
    let count = (tensor.shape.iter()).try_fold(1u64, |n, side| n.checked_mul(*side as u64));
    let reach =
        |(side, stride): (&usize, &u64)| (*side as u64).saturating_sub(1).checked_mul(*stride);
    let last = (tensor.shape.iter().zip(&tensor.strides))
        .try_fold(tensor.offset, |sum, pair| sum.checked_add(reach(pair)?));
    let (count, last) = match (count, last) {
        (Some(0), _) => (0, 0),
        (Some(count), Some(last)) if last < held => (count, last),
        _ => {
            return Err(Error::model(format!(
                "its shape {:?} reaches behind its storage, which has {held} numbers",
                tensor.shape
            )));
        }
    };
    if count > held && count.saturating_mul(width) > REPEATED {
        return Err(Error::model(format!(
            "it has {count} numbers and its storage {held}"
        )));
    }
    let start = if count == 0 { 0 } else { tensor.offset * width };
    let aside = !side_by_side(&tensor.shape, &tensor.strides) && count > 0;
    Ok(Place {
        entry: entry.clone(),
        dtype: tensor.dtype,
        start,
        span: if count == 0 {
            0
        } else {
            (last + 1) * width - start
        },
        shape: tensor.shape,
        strides: aside.then_some(tensor.strides),
    })
}

/// Whether numbers of these strides lie one after the other.
fn side_by_side(shape: &[usize], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    shape.iter().zip(strides).rev().all(|(side, stride)| {
        let fits = *side == 1 || *stride == expected;
        expected = expected.saturating_mul(*side as u64);
        fits
    })
}

/// Copies numbers of `width` bytes at their `strides` in `span` to `bytes`, one after the other.
fn gather(span: &[u8], shape: &[usize], strides: &[u64], width: usize, bytes: &mut [u8]) {
    let mut place = vec![0usize; shape.len()];
    for out in bytes.chunks_exact_mut(width) {
        let at: usize = place
            .iter()
            .zip(strides)
            .map(|(i, stride)| i * *stride as usize)
            .sum();
        out.copy_from_slice(&span[at * width..][..width]);
        for (i, side) in place.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *side {
                break;
            }
            *i = 0;
        }
    }
}

/// Checks that the tensors do not have many times the bytes of the archive.
fn check_total(archive: &Archive, tensors: &BTreeMap<String, Place>) -> Result<()> {
    let lengths = archive.entries().values().map(|entry| entry.len);
    let held = lengths.fold(0, u64::saturating_add);
    let bytes = |place: &Place| {
        let width = place.dtype.as_ref().map_or(1, |dtype| dtype.bitsize() / 8);
        let count = place
            .shape
            .iter()
            .fold(1, |n: u64, side| n.saturating_mul(*side as u64));
        count.saturating_mul(width as u64)
    };
    let total = tensors.values().map(bytes).fold(0, u64::saturating_add);
    match total > held.saturating_mul(SHARED).saturating_add(REPEATED) {
        true => Err(Error::model(format!(
            "its tensors have {total} bytes, all entries of the archive {held}"
        ))),
        false => Ok(()),
    }
}

impl Source for Pickle {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(place) = self.left.remove(name) else {
            return Ok(None);
        };
        let tensor = self.read(&place);
        tensor
            .or_error(ErrorKind::Model, || {
                format!("cannot read tensor `{}`", name.escape_default())
            })
            .map(Some)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.left.get(name)?.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }
}
