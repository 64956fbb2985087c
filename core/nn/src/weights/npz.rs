//! NumPy's archives of arrays (`.npz`) as a [`Source`]: zip archives with an entry `NAME.npy` for each.
//!
//! The format is that of NumPy Enhancement Proposal 1. What a header claims is held against the length of its
//! entry before anything is allocated, and nothing in it is executed: arrays of Python objects are refused.

use super::{
    Source,
    archive::{Archive, Entry},
    input,
};
use candle_core::{DType, Device, Tensor};
use diffaug::{Error, ErrorKind, Result, ResultExt};
use std::{collections::BTreeMap, path::Path};

/// What every array begins with.
const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header that is read, in bytes (NumPy's own limit).
const LONGEST_HEADER: u64 = 10_000;
/// Sides of an array, at most (NumPy's own limit).
const MOST_SIDES: usize = 64;

/// The arrays of an archive.
#[derive(Debug)]
pub struct Npz {
    archive: Archive,
    /// Those that have not been taken.
    left: BTreeMap<String, Place>,
}

/// Where an array is.
#[derive(Debug)]
struct Place {
    entry: Entry,
    /// Where its numbers begin, in bytes of the entry.
    start: u64,
    header: Header,
}

/// What the header of an array says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    /// NumPy's name of the type: `<f4`.
    kind: String,
    /// Whether the first index is the one that moves fastest.
    fortran: bool,
    shape: Vec<usize>,
}

impl Npz {
    /// Opens the file at `path` and reads the headers of its arrays.
    ///
    /// # Errors
    /// When the file is missing, broken or of another kind; the array is named.
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = || format!("cannot read `{}` as an archive of NumPy", path.display());
        let file = input::open(path).or_error(ErrorKind::Model, unreadable)?;
        let archive = Archive::open(file).or_error(ErrorKind::Model, unreadable)?;
        let mut left = BTreeMap::new();
        for (name, entry) in archive.entries() {
            let Some(name) = name.strip_suffix(".npy") else {
                continue;
            };
            let place = place(&archive, entry).or_error(ErrorKind::Model, || {
                let name = name.escape_default();
                format!("{}: array `{name}` cannot be read", unreadable())
            })?;
            left.insert(name.to_owned(), place);
        }
        match left.is_empty() {
            true => Err(Error::model("it holds no arrays").context(unreadable())),
            false => Ok(Npz { archive, left }),
        }
    }

    fn read(&self, place: &Place) -> Result<Tensor> {
        let Header {
            kind,
            fortran,
            shape,
        } = &place.header;
        let (dtype, _) = numbers(kind)?;
        let mut bytes = vec![0; (place.entry.len - place.start) as usize];
        self.archive.read(&place.entry, place.start, &mut bytes)?;
        if !fortran {
            return Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu)?);
        }
        let turned: Vec<usize> = shape.iter().rev().copied().collect();
        let sides: Vec<usize> = (0..shape.len()).rev().collect();
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &turned, &Device::Cpu)?;
        Ok(tensor.permute(sides)?.contiguous()?)
    }
}

impl Source for Npz {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(place) = self.left.remove(name) else {
            return Ok(None);
        };
        let tensor = self.read(&place);
        let tensor = tensor.map_err(|e| e.context(format!("array `{name}` cannot be read")))?;
        Ok(Some(tensor))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.left.get(name)?.header.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }
}

/// The type of numbers of that name, and their bytes.
fn numbers(kind: &str) -> Result<(DType, usize)> {
    Ok(match kind {
        "<f4" => (DType::F32, 4),
        "<f8" => (DType::F64, 8),
        "<f2" => (DType::F16, 2),
        "<i4" => (DType::I32, 4),
        "<i8" => (DType::I64, 8),
        "|u1" => (DType::U8, 1),
        _ => {
            return Err(Error::unsupported(format!(
                "its numbers are of the type `{}`, expected `<f4`, `<f8`, `<f2`, `<i4`, `<i8` or `|u1`",
                kind.escape_default()
            )));
        }
    })
}

/// Reads the header of an entry, and holds it against the entry's length.
fn place(archive: &Archive, entry: &Entry) -> Result<Place> {
    let mut begin = [0; 12];
    archive.read(entry, 0, &mut begin)?;
    if !begin.starts_with(MAGIC) {
        return Err(Error::model("it does not begin as an array of NumPy"));
    }
    // The length has two bytes in the first version and four in later ones.
    let short = u64::from(u16::from_le_bytes([begin[8], begin[9]]));
    let long = u64::from(u32::from_le_bytes([
        begin[8], begin[9], begin[10], begin[11],
    ]));
    let (before, len) = match begin[6] {
        1 => (10, short),
        2 | 3 => (12, long),
        other => {
            return Err(Error::unsupported(format!(
                "its format has version {other}, expected 1 to 3"
            )));
        }
    };
    if len > LONGEST_HEADER {
        return Err(Error::model(format!(
            "its header would have {len} bytes, expected at most {LONGEST_HEADER}"
        )));
    }
    let mut text = vec![0; len as usize];
    archive.read(entry, before, &mut text)?;
    let header = parse(&text)?;
    let start = before + len;
    check(&header, entry.len - start)?;
    Ok(Place {
        entry: entry.clone(),
        start,
        header,
    })
}

/// Checks that the numbers of an array fill `bytes`; what is not supported is said when it is taken.
fn check(header: &Header, bytes: u64) -> Result<()> {
    let shape = &header.shape;
    // Without the sides of 0, for strides are products as well.
    let room = shape
        .iter()
        .try_fold(8usize, |n, side| n.checked_mul((*side).max(1)));
    if room.is_none() {
        return Err(Error::model(format!("its shape {shape:?} cannot be")));
    }
    let Ok((_, width)) = numbers(&header.kind) else {
        return Ok(());
    };
    let expected = (shape.iter().product::<usize>() * width) as u64;
    match expected == bytes {
        true => Ok(()),
        false => Err(Error::model(format!(
            "its header of shape {shape:?} is followed by {bytes} bytes, expected {expected}"
        ))),
    }
}

/// Reads a header: the text of a Python dictionary of `descr`, `fortran_order` and `shape`.
fn parse(text: &[u8]) -> Result<Header> {
    let broken = || Error::model("its header is broken");
    let text = std::str::from_utf8(text).map_err(|_| broken())?.trim();
    let mut rest = text.strip_prefix('{').ok_or_else(broken)?.trim_start();
    let (mut kind, mut fortran, mut shape) = (None, None, None);
    while !rest.starts_with('}') {
        let (key, value) = quoted(rest).ok_or_else(broken)?;
        let value = value.trim_start().strip_prefix(':').ok_or_else(broken)?;
        let value = value.trim_start();
        rest = match key {
            "descr" => {
                // A list here is that of a record's fields.
                let (name, rest) = quoted(value).ok_or_else(|| {
                    Error::unsupported("it is an array of records, not of numbers")
                })?;
                kind = Some(name.to_owned());
                rest
            }
            "fortran_order" => {
                let (truth, rest) = truth(value).ok_or_else(broken)?;
                fortran = Some(truth);
                rest
            }
            "shape" => {
                let (sides, rest) = sides(value).ok_or_else(broken)?;
                shape = Some(sides);
                rest
            }
            _ => return Err(broken()),
        };
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    match (kind, fortran, shape, rest) {
        (Some(kind), Some(fortran), Some(shape), "}") => Ok(Header {
            kind,
            fortran,
            shape,
        }),
        _ => Err(broken()),
    }
}

/// The text between two quotation marks, and what is behind it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let mark = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(mark)
}

fn truth(text: &str) -> Option<(bool, &str)> {
    let found = text.strip_prefix("True").map(|rest| (true, rest));
    found.or_else(|| text.strip_prefix("False").map(|rest| (false, rest)))
}

/// The numbers of a tuple, and what is behind it.
fn sides(text: &str) -> Option<(Vec<usize>, &str)> {
    let (inside, rest) = text.strip_prefix('(')?.split_once(')')?;
    let parts: Vec<&str> = inside.split(',').map(str::trim).collect();
    // A comma may stand behind the last number.
    let parts = match parts.as_slice() {
        [before @ .., ""] => before,
        all => all,
    };
    if parts.len() > MOST_SIDES {
        return None;
    }
    let side = |part: &&str| part.parse().ok();
    Some((parts.iter().map(side).collect::<Option<_>>()?, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing;
    use std::{fs, path::PathBuf};

    fn fixture(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/npz");
        folder.join(name)
    }

    fn array(header: &str, numbers: &[u8]) -> Vec<u8> {
        let len = (header.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &len, header.as_bytes(), numbers].concat()
    }

    /// What an archive with this one array answers.
    fn opened(bytes: &[u8]) -> Result<Npz> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("w.npz");
        fs::write(&path, testing::archive(&[("x.npy", bytes)]))?;
        Npz::open(&path)
    }

    #[test]
    fn arrays_that_numpy_wrote_come_out_as_they_went_in() {
        for name in ["arrays.npz", "arrays_deflated.npz"] {
            let mut source = Npz::open(&fixture(name)).unwrap();
            let names = ["deep/er", "double", "fortran", "half", "ids", "scalar"];
            assert_eq!(source.names(), names);
            assert_eq!(source.shape("fortran"), Some(vec![3, 4]));
            let mut take = |name: &str| {
                let tensor = source.take(name).unwrap().unwrap();
                let values = tensor.to_dtype(DType::F32).unwrap();
                let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                (tensor.dtype(), tensor.dims().to_vec(), values)
            };
            let counted = |n: usize| (0..n).map(|i| i as f32 / 2.0).collect::<Vec<_>>();
            assert_eq!(take("deep/er"), (DType::F32, vec![2, 3, 2], counted(12)));
            assert_eq!(take("double"), (DType::F64, vec![5], counted(5)));
            assert_eq!(take("fortran"), (DType::F32, vec![3, 4], counted(12)));
            assert_eq!(take("half"), (DType::F16, vec![0, 3], vec![]));
            assert_eq!(take("ids"), (DType::I64, vec![2], vec![7.0, -1.0]));
            assert_eq!(take("scalar"), (DType::F32, vec![], vec![0.5]));
            assert!(source.take("ids").unwrap().is_none() && source.names().is_empty());
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = |header: &str, numbers: &[u8]| {
            let opened = opened(&array(header, numbers));
            let error = opened.and_then(|mut npz| npz.take("x")).unwrap_err();
            error.to_string()
        };
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
        assert!(opened(&array(good, &[0; 8])).is_ok());
        let text = error(good, &[0; 7]);
        assert!(
            text.contains("w.npz` as an archive of NumPy: array `x` cannot be read: its header of shape [2] is followed by 7 bytes, expected 8"),
            "{text}"
        );
        let text = error(&good.replace("<f4", ">f4"), &[0; 8]);
        assert!(text.contains("of the type `>f4`, expected `<f4`"), "{text}");
        let text = error(&good.replace("<f4", "|O"), &[0; 8]);
        assert!(text.contains("of the type `|O`"), "{text}");
        let text = error(&good.replace("'<f4'", "[('a', '<f4')]"), &[0; 8]);
        assert!(text.contains("array of records"), "{text}");
        for broken in [
            "",
            "{",
            "{}",
            "{'descr': '<f4'}",
            &good.replace("(2,)", "(-2,)"),
            &good.replace("(2,)", "(2"),
            &good.replace("False", "0"),
            &good.replace("}", "} x"),
        ] {
            let text = error(broken, &[0; 8]);
            assert!(text.contains("header is broken"), "{broken}: {text}");
        }
        let vast = good.replace("(2,)", "(0, 4611686018427387904, 16)");
        assert!(error(&vast, &[]).contains("cannot be"));
        let text = opened(b"no array of any kind").unwrap_err().to_string();
        assert!(text.contains("does not begin as an array"), "{text}");
        let mut newer = array(good, &[0; 8]);
        newer[6] = 4;
        assert!(
            opened(&newer)
                .unwrap_err()
                .to_string()
                .contains("version 4")
        );
        assert!(opened(MAGIC).is_err());
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.npz");
        fs::write(&path, b"text").unwrap();
        let error = Npz::open(&path).unwrap_err().to_string();
        assert!(error.contains("it is no zip archive"), "{error}");
        fs::write(&path, testing::archive(&[("x.txt", b"text")])).unwrap();
        let error = Npz::open(&path).unwrap_err().to_string();
        assert!(error.ends_with("it holds no arrays"), "{error}");
        assert!(Npz::open(folder.path()).is_err());
    }

    #[test]
    fn mutated_archives_are_answered() {
        let seeds = ["arrays.npz", "arrays_deflated.npz"].map(|n| fs::read(fixture(n)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.npz");
        diffaug::mutate::each("npz", &seeds, 1000, |bytes| {
            fs::write(&path, bytes).unwrap();
            let Ok(mut source) = Npz::open(&path) else {
                return;
            };
            for name in source.names() {
                source.take(&name).ok();
            }
        });
        let header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }";
        diffaug::mutate::each("npy-header", &[header.to_vec()], 3000, |text| {
            parse(text).ok();
        });
    }
}
