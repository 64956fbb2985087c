//! Safetensors files of any size as a [`Source`]: only their headers are read when they are opened,
//! and each tensor when it is taken.

use super::Source;
use candle_core::{Device, Tensor, safetensors::Load};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// A header longer than this is no header (the format's own limit).
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes of the number that a file begins with, the length of its header.
const PREFIX: u64 = 8;

/// The tensors of one or several safetensors files. A tensor is copied out of a mapping of its own
/// part of the file, which ends with the copy: memory holds what was taken and nothing else.
#[derive(Debug)]
pub struct Files {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Place>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    len: usize,
}

impl Files {
    /// Reads the headers of `paths`.
    ///
    /// # Errors
    /// When a file is missing, cut short or of another kind, or two of them have a tensor of one
    /// name.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut opened = Files {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        for path in paths {
            opened.add(path.as_ref())?;
        }
        Ok(opened)
    }

    /// What the files say about themselves in words.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What the tensors that have not been taken have in the files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|place| place.len as u64).sum()
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let shown = path.display();
        let mut file = File::open(path).or_error(ErrorKind::Model, || {
            format!("cannot read the weights `{shown}`")
        })?;
        let (metadata, data) = header(&mut file, path)?;
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let place = Place {
                file: index,
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data + start as u64,
                len: end - start,
            };
            if let Some(other) = self.tensors.insert(name.clone(), place) {
                let other = self.files[other.file].0.display();
                return Err(Error::model(format!(
                    "tensor `{name}` is both in `{other}` and in `{shown}`"
                )));
            }
        }
        let words: Option<HashMap<_, _>> = metadata.metadata().clone();
        self.metadata.extend(words.into_iter().flatten());
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    fn copy(&self, place: &Place) -> Result<Tensor> {
        let (path, file) = &self.files[place.file];
        let read = || {
            let end = place.start + place.len as u64;
            if file.metadata()?.len() < end {
                return Err(Error::model(
                    "the file has become shorter since it was opened",
                ));
            }
            let mapping = map(file, place.start, place.len)?;
            let view = TensorView::new(place.dtype, place.shape.clone(), &mapping)?;
            Ok::<_, Error>(view.load(&Device::Cpu)?)
        };
        read().or_error(ErrorKind::Model, || format!("in `{}`", path.display()))
    }
}

impl Source for Files {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(place) = self.tensors.remove(name) else {
            return Ok(None);
        };
        let tensor = self.copy(&place);
        let tensor = tensor.map_err(|e| e.context(format!("cannot read tensor `{name}`")))?;
        Ok(Some(tensor))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
}

/// `len` bytes of `file` from `start` on.
#[allow(unsafe_code)]
fn map(file: &File, start: u64, len: usize) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the bytes must not change, nor the file become shorter, while they are mapped. Nothing
    // here writes to a file that may be mapped (files are replaced by renaming), its length has just
    // been looked at, and a mapping lasts no longer than the copying of one tensor.
    unsafe { memmap2::MmapOptions::new().offset(start).len(len).map(file) }
}

/// The header of the file and where its data begins.
fn header(file: &mut File, path: &Path) -> Result<(Metadata, u64)> {
    let shown = path.display();
    let unreadable = || format!("cannot read the weights `{shown}`");
    let size = file
        .metadata()
        .or_error(ErrorKind::Model, unreadable)?
        .len();
    let mut start = Vec::new();
    let mut head = file.take(PREFIX + 1);
    head.read_to_end(&mut start)
        .or_error(ErrorKind::Model, unreadable)?;
    if is_pytorch(&start) {
        return Err(Error::model(format!(
            "`{shown}` is a PyTorch file (a pickle), not safetensors: convert it first"
        )));
    }
    let mut parse = || {
        let (length, first) = start
            .split_first_chunk()
            .ok_or_else(|| Error::model(format!("it has {size} bytes")))?;
        let length = u64::from_le_bytes(*length);
        if length == 0 || length > LONGEST_HEADER || length > size.saturating_sub(PREFIX) {
            return Err(Error::model(format!(
                "its header would have {length} bytes, the file has {size}"
            )));
        }
        let mut text = first.to_vec();
        let rest = length - first.len() as u64;
        file.take(rest).read_to_end(&mut text)?;
        let metadata: Metadata = serde_json::from_slice(&text)?;
        let (data, expected) = (PREFIX + length, metadata.data_len() as u64);
        if size != data + expected {
            return Err(Error::model(format!(
                "its header is followed by {} bytes, expected {expected}",
                size - data
            )));
        }
        Ok((metadata, data))
    };
    parse().or_error(ErrorKind::Model, || {
        format!("`{shown}` is not a complete safetensors file")
    })
}

/// Whether a file begins as a zip archive (PyTorch since 1.6) or a bare pickle. Safetensors begins
/// with a length of eight bytes, which may look like either, and then a brace.
fn is_pytorch(start: &[u8]) -> bool {
    let zip = start.starts_with(b"PK\x03\x04");
    let pickle = start.len() > 1 && start[0] == 0x80 && (2..=5).contains(&start[1]);
    (zip || pickle) && start.get(8) != Some(&b'{')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{params::Params, testing::random, weights::save_tensors};
    use candle_core::DType;
    use std::{fs, io::Write};

    fn write(path: &Path, tensors: &[(&str, &Tensor)]) {
        let owned = |(name, tensor): &(&str, &Tensor)| ((*name).to_owned(), (*tensor).clone());
        save_tensors(path, tensors.iter().map(owned), &[("format", "pt")]).unwrap();
    }

    #[test]
    fn tensors_of_several_files_and_types_come_out_as_they_went_in() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["1", "2"].map(|name| folder.path().join(name));
        let (x, y) = (random("x", &[3, 5]), random("y", &[7]));
        let half = y.to_dtype(DType::BF16).unwrap();
        let ids = Tensor::arange(0i64, 4, &Device::Cpu).unwrap();
        let empty = Tensor::zeros((0, 2), DType::F32, &Device::Cpu).unwrap();
        write(&first, &[("x", &x), ("half", &half)]);
        write(&second, &[("ids", &ids), ("empty", &empty)]);
        let mut files = Files::open(&[&first, &second]).unwrap();
        assert_eq!(files.names(), ["empty", "half", "ids", "x"]);
        assert_eq!(files.metadata()["format"], "pt");
        assert_eq!(files.shape("x"), Some(vec![3, 5]));
        let mut take = |name: &str| files.take(name).unwrap().unwrap();
        assert_eq!(
            take("x").to_vec2::<f32>().unwrap(),
            x.to_vec2::<f32>().unwrap()
        );
        let values = |t: &Tensor| t.to_vec1::<half::bf16>().unwrap();
        assert_eq!(values(&take("half")), values(&half));
        assert_eq!(take("ids").to_vec1::<i64>().unwrap(), [0, 1, 2, 3]);
        assert_eq!(take("empty").dims(), [0, 2]);
        assert!(files.take("x").unwrap().is_none() && files.names().is_empty());

        let mut files = Files::open(&[&first]).unwrap();
        File::options()
            .write(true)
            .open(&first)
            .unwrap()
            .set_len(8)
            .unwrap();
        let error = files.take("x").unwrap_err().to_string();
        assert!(
            error.contains("tensor `x`") && error.contains("has become shorter"),
            "{error}"
        );
        write(&first, &[("x", &x)]);

        let error = Files::open(&[&first, &first]).unwrap_err().to_string();
        assert!(error.contains("is both in"), "{error}");
    }

    /// A file of 64 GiB, all of it a hole but for one small tensor at the end.
    #[cfg(unix)]
    #[test]
    fn only_what_is_taken_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge");
        let large = 1usize << 36;
        let header = serde_json::json!({
            "large": {"dtype": "F32", "shape": [1u64 << 17, 1u64 << 17], "data_offsets": [0, large]},
            "small": {"dtype": "F32", "shape": [2], "data_offsets": [large, large + 8]},
        });
        let header = header.to_string();
        let mut file = File::create(&path).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes())
            .unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len(8 + (header.len() + large + 8) as u64).unwrap();
        let mut params = Params::from_source(&Device::Cpu, Files::open(&[path]).unwrap());
        let small = params.root().uniform("small", &[2], 1.0).unwrap();
        assert_eq!(small.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        let error = params.root().uniform("large", &[3], 1.0).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("has shape [131072, 131072], expected [3]"),
            "{text}"
        );
        assert_eq!(params.left_over(), ["large"]);
    }

    #[test]
    fn other_files_are_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.bin");
        let message = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Files::open(&[&path]).unwrap_err().to_string()
        };
        assert!(message(b"PK\x03\x04rest").contains("is a PyTorch file"));
        assert!(message(&[0x80, 2, 0x8a, 10]).contains("is a PyTorch file"));
        assert!(message(b"").contains("not a complete safetensors file: it has 0 bytes"));
        assert!(message(&[9; 100]).contains("its header would have 651061555542690057 bytes"));
        write(&path, &[("x", &random("x", &[3]))]);
        let whole = fs::read(&path).unwrap();
        let text = message(&whole[..whole.len() - 4]);
        assert!(text.contains("followed by 8 bytes, expected 12"), "{text}");
        assert!(message(&[&whole[..], &[0]].concat()).contains("13 bytes, expected 12"));
        assert!(message(&whole[..20]).contains("not a complete"));
        let error = Files::open(&[folder.path().join("none")]).unwrap_err();
        assert!(error.to_string().contains("cannot read the weights"));
        let error = Files::open(&[folder.path()]).unwrap_err();
        assert!(error.to_string().contains("cannot read the weights"));
    }
}
