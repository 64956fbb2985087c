//! Safetensors files of any size as a [`Source`]: only their headers are read when they are opened,
//! and each tensor when it is taken, by plain reads at its place. Nothing is mapped: a file that is cut
//! meanwhile is an error and not a signal.

use super::{Source, input, numbers};
use candle_core::Tensor;
use diffaug::{Error, ErrorKind, Result, ResultExt};
use safetensors::tensor::{Dtype, Metadata};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

/// A header longer than this is no header (the format's own limit).
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes of the number that a file begins with, the length of its header.
const PREFIX: u64 = 8;

/// The tensors of one or several safetensors files. Memory holds what was taken and nothing else.
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
        let file = input::open(path).or_error(ErrorKind::Model, || {
            format!("cannot read the weights `{shown}`")
        })?;
        let (metadata, data) = header(&file, path)?;
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
        let mut fill =
            |bytes: &mut [u8]| input::read_at(file, bytes, place.start).map_err(input::cut);
        numbers::load(place.dtype, &place.shape, &mut fill)
            .or_error(ErrorKind::Model, || format!("in `{}`", path.display()))
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

/// The header of the file and where its data begins.
fn header(file: &File, path: &Path) -> Result<(Metadata, u64)> {
    let shown = path.display();
    let unreadable = || format!("cannot read the weights `{shown}`");
    let size = file
        .metadata()
        .or_error(ErrorKind::Model, unreadable)?
        .len();
    let mut start = vec![0; size.min(PREFIX + 1) as usize];
    input::read_at(file, &mut start, 0)
        .map_err(input::cut)
        .or_error(ErrorKind::Model, unreadable)?;
    if is_pytorch(&start) {
        return Err(Error::model(format!(
            "`{shown}` is a PyTorch file (a pickle), not safetensors: `diffaug convert` reads it as data and makes safetensors of it"
        )));
    }
    let parse = || {
        let length = header_length(&start, size)?;
        let mut text = vec![0; length as usize];
        input::read_at(file, &mut text, PREFIX).map_err(input::cut)?;
        parse_header(&text, size)
    };
    parse().or_error(ErrorKind::Model, || {
        format!("`{shown}` is not a complete safetensors file")
    })
}

/// The length of the header of a file of `size` bytes that begins with `start`.
fn header_length(start: &[u8], size: u64) -> Result<u64> {
    let length = start
        .first_chunk()
        .ok_or_else(|| Error::model(format!("it has {size} bytes")))?;
    let length = u64::from_le_bytes(*length);
    if length == 0 || length > LONGEST_HEADER || length > size.saturating_sub(PREFIX) {
        return Err(Error::model(format!(
            "its header would have {length} bytes, the file has {size}"
        )));
    }
    Ok(length)
}

/// What the header `text` of a safetensors file of `size` bytes says, and where its data begins: names,
/// types, shapes and places of all tensors, which lie side by side and fill the file.
///
/// # Errors
/// When it is no JSON, a tensor's place is not that of its shape, or the file has another length.
pub fn parse_header(text: &[u8], size: u64) -> Result<(Metadata, u64)> {
    let metadata: Metadata = serde_json::from_slice(text)?;
    for (name, info) in metadata.tensors() {
        numbers::check_shape(&info.shape).map_err(|error| {
            error.context(format!("tensor `{}` cannot be", name.escape_default()))
        })?;
    }
    let (data, expected) = (PREFIX + text.len() as u64, metadata.data_len() as u64);
    if data.checked_add(expected) != Some(size) {
        return Err(Error::model(format!(
            "its header is followed by {} bytes, expected {expected}",
            size.saturating_sub(data)
        )));
    }
    Ok((metadata, data))
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
    use candle_core::{DType, Device};
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
        assert!(
            error
                .to_string()
                .contains("it is a folder, expected a regular")
        );
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid x\n").unwrap();
        let error = Files::open(&[&path]).unwrap_err().to_string();
        assert!(error.contains("w.bin`: it is a git-lfs pointer"), "{error}");
    }

    #[test]
    fn mutated_safetensors_are_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let half = random("h", &[5]).to_dtype(DType::F16).unwrap();
        write(&path, &[("x", &random("x", &[3, 2])), ("h", &half)]);
        let seed = fs::read(&path).unwrap();
        diffaug::mutate::each("safetensors", std::slice::from_ref(&seed), 1000, |bytes| {
            fs::write(&path, bytes).unwrap();
            let Ok(mut files) = Files::open(&[&path]) else {
                return;
            };
            for name in files.names() {
                files.take(&name).ok();
            }
        });
        let header = &seed[8..8 + seed[0] as usize];
        diffaug::mutate::each("safetensors-header", &[header.to_vec()], 3000, |text| {
            parse_header(text, 8 + text.len() as u64 + 34).ok();
        });
    }

    #[test]
    fn sides_that_overflow_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let header =
            br#"{"x":{"dtype":"F32","shape":[0,4611686018427387904,16],"data_offsets":[0,0]}}"#;
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length[..], header].concat()).unwrap();
        let error = Files::open(&[&path]).unwrap_err().to_string();
        assert!(error.contains("tensor `x` cannot be"), "{error}");
    }
}
