//! Files of PyTorch are read as PyTorch reads them, and hostile ones are refused.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{archive, pytorch_file, random};
use candle_core::{DType, IndexOp};
use diffaug::mutate;
use std::{fs, io::Write, path::PathBuf};

fn fixture(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pickle");
    Path::new(folder).join(name)
}

fn opened(bytes: &[u8]) -> Result<Pickle> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Pickle::of(file)
}

/// The error that reading the pickle `bytes`, beside a storage `0` of 8 bytes, ends in.
fn refused(bytes: &[u8]) -> String {
    let entries: [(&str, &[u8]); 2] = [("a/data.pkl", bytes), ("a/data/0", &[0; 8])];
    opened(&archive(&entries)).unwrap_err().to_string()
}

/// A pickle of one tensor `x` of f32 in the storage `0`, with these numbers.
fn tensor(offset: u64, shape: &[u64], strides: &[u64]) -> Vec<u8> {
    let number = |n: u64| [b"\x8a\x09".as_slice(), &n.to_le_bytes(), &[0]].concat();
    let tuple = |n: &[u64]| {
        let numbers: Vec<u8> = n.iter().flat_map(|n| number(*n)).collect();
        [b"(".as_slice(), &numbers, b"t"].concat()
    };
    let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQ";
    let start = b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n(";
    let end = b"\x89NtRs.";
    let middle = [number(offset), tuple(shape), tuple(strides)].concat();
    [start.as_slice(), storage, &middle, end].concat()
}

#[test]
fn files_of_pytorch_are_read() {
    let expected = crate::weights::read(&fixture("expected.safetensors")).unwrap();
    let mut compared = 0;
    for name in [
        "types",
        "views",
        "module",
        "parameters",
        "older",
        "newer",
        "lightning",
        "tied",
        "deflated",
    ] {
        let mut pickle = Pickle::open(&fixture(&format!("{name}.pt"))).unwrap();
        let names = pickle.names();
        let own = |key: &&String| key.starts_with(&format!("{name}/"));
        assert_eq!(names.len(), expected.keys().filter(own).count(), "{name}");
        for key in names {
            let theirs = &expected[&format!("{name}/{key}")];
            assert_eq!(
                pickle.shape(&key).as_deref(),
                Some(theirs.dims()),
                "{name}/{key}"
            );
            let ours = pickle.take(&key).unwrap().unwrap();
            assert_eq!(
                (ours.dims(), ours.dtype()),
                (theirs.dims(), theirs.dtype()),
                "{name}/{key}"
            );
            let values = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
            assert_eq!(
                values(&ours).unwrap(),
                values(theirs).unwrap(),
                "{name}/{key}"
            );
            assert!(pickle.take(&key).unwrap().is_none());
            compared += 1;
        }
        assert!(pickle.names().is_empty());
    }
    assert_eq!(compared, expected.len());
}

#[test]
fn the_stand_in_for_files_of_pytorch_is_read() {
    let x = random("x", &[2, 3, 4]);
    let mut pickle = opened(&pytorch_file([("x", &x), ("y", &x.i(1).unwrap())])).unwrap();
    assert_eq!(pickle.names(), ["x", "y"]);
    crate::testing::close(&pickle.take("x").unwrap().unwrap(), &x, 0.0);
}

#[test]
fn what_is_not_supported_is_named() {
    let error = Pickle::open(&fixture("legacy.pt")).unwrap_err().to_string();
    assert!(
        error.contains("before 1.6: load it with a later PyTorch"),
        "{error}"
    );
    let mut complex = Pickle::open(&fixture("complex.pt")).unwrap();
    assert!(complex.take("x").unwrap().is_some());
    let error = complex.take("z").unwrap_err().to_string();
    assert!(
        error.contains("tensor `z`: its type is `ComplexFloatStorage`"),
        "{error}"
    );
    let error = Pickle::open(&fixture("expected.safetensors"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("it is no zip archive"), "{error}");
    let big = [
        ("a/data.pkl", b"\x80\x02}.".as_slice()),
        ("a/byteorder", b"big"),
    ];
    let error = opened(&archive(&big)).unwrap_err().to_string();
    assert!(error.contains("highest byte first"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.pt");
    fs::write(&path, archive(&[("a/data.pkl", b"\x80\x02}.")])).unwrap();
    let error = Pickle::open(&path).unwrap_err().to_string();
    assert!(error.ends_with("none.pt` holds no tensors"), "{error}");
}

#[test]
fn numbers_are_held_against_the_storage() {
    let read = |offset, shape: &[u64], strides: &[u64]| {
        let entries = [("a/data.pkl", tensor(offset, shape, strides))];
        let data: Vec<u8> = [1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let [(name, pickle)] = &entries;
        let mut source = opened(&archive(&[(name, pickle), ("a/data/0", &data)]))?;
        let tensor = source.take("x")?.unwrap();
        Ok::<_, Error>(tensor.flatten_all()?.to_vec1::<f32>()?)
    };
    assert_eq!(read(0, &[2], &[1]).unwrap(), [1.0, 2.0]);
    assert_eq!(read(1, &[1], &[1]).unwrap(), [2.0]);
    assert_eq!(read(0, &[2, 2], &[0, 1]).unwrap(), [1.0, 2.0, 1.0, 2.0]);
    assert!(read(7, &[0, 5], &[5, 1]).unwrap().is_empty());
    let vast = u64::MAX / 2;
    for (offset, shape, strides) in [
        (0, &[3][..], &[1][..]),
        (2, &[1], &[1]),
        (1, &[2], &[1]),
        (0, &[2], &[2]),
        (vast, &[1], &[1]),
        (0, &[2_000_000_000], &[1]),
        (0, &[2, 2], &[vast, vast]),
    ] {
        let error = read(offset, shape, strides).unwrap_err().to_string();
        assert!(
            error.contains("reaches behind its storage, which has 2 numbers"),
            "{error}"
        );
    }
    let error = read(0, &[2_000_000_000], &[0]).unwrap_err().to_string();
    assert!(
        error.contains("it has 2000000000 numbers and its storage 2"),
        "{error}"
    );
    let error = read(0, &[0, 1 << 62, 1 << 40], &[1, 1, 1])
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot be"), "{error}");
    let error = read(0, &[2], &[1, 1]).unwrap_err().to_string();
    assert!(error.contains("its shape is not described"), "{error}");
    let many = vec![1; 65];
    assert!(read(0, &many, &many).is_err());
}

#[test]
fn bombs_are_refused() {
    // Lists in lists, and a tuple in a tuple, as deep as the file is long.
    let deep = [
        b"\x80\x02".as_slice(),
        &[b']'; 300_000],
        &[b'a'; 299_999],
        b".",
    ]
    .concat();
    let error = opened(&archive(&[("a/data.pkl", &deep)])).map(|pickle| pickle.names());
    assert_eq!(error.unwrap(), [""; 0]);
    let deep = [b"\x80\x02)".as_slice(), &[0x85; 1_900_000], b"."].concat();
    assert!(
        opened(&archive(&[("a/data.pkl", &deep)]))
            .unwrap()
            .names()
            .is_empty()
    );
    // A list and a dictionary that hold themselves.
    assert!(
        opened(&archive(&[("a/data.pkl", b"\x80\x02]q\0h\0a.")]))
            .unwrap()
            .names()
            .is_empty()
    );
    let own = b"\x80\x02}q\0X\x0a\0\0\0state_dicth\0s.";
    assert!(
        opened(&archive(&[("a/data.pkl", own)]))
            .unwrap()
            .names()
            .is_empty()
    );
    // Each list holds the one before ten times.
    let laughs: Vec<u8> = (0..200u8)
        .flat_map(|i| {
            let mut list = vec![b']', b'('];
            (0..10).for_each(|_| list.extend([b'h', i.saturating_sub(1)]));
            list.extend([b'e', b'q', i]);
            list
        })
        .collect();
    let laughs = [b"\x80\x02Nq\0".as_slice(), &laughs, b"."].concat();
    assert!(
        opened(&archive(&[("a/data.pkl", &laughs)]))
            .unwrap()
            .names()
            .is_empty()
    );
    let many = [b"\x80\x02".as_slice(), &[b'N'; 2_000_001], b"."].concat();
    assert!(refused(&many).contains("more than 2000000 values"));
    let many = [b"\x80\x02N".as_slice(), &[b'2'; 8_000_001], b"."].concat();
    assert!(refused(&many).contains("more than 8000000 references"));
    assert!(
        refused(b"\x80\x02X\xff\xff\xff\x7fx.").contains("2147483647 bytes are expected and 2")
    );
    assert!(refused(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.").contains("at byte 2"));
    assert!(refused(b"\x80\x02Nr\xff\xff\xff\x7f.").contains("at place 2147483647"));
    assert!(refused(b"\x80\x02h\x05.").contains("a value that it has not kept"));
    assert!(refused(b"\x80\x02t.").contains("it has no mark"));
    assert!(refused(b"\x80\x02(a.").contains("its stack is empty"));
    assert!(refused(b"\x80\x02").contains("1 bytes are expected and 0 are left"));
    assert!(refused(b"\x80\x09.").contains("its protocol is 9"));
    assert!(refused(b"cposix\nsystem\nS'echo'\ntR.").contains("none that PyTorch writes"));
    assert!(refused(b"\x80\x02cposix\nsystem").contains("a name has no end"));
}

#[test]
fn archives_that_cannot_be_are_refused() {
    let pickle: (&str, &[u8]) = ("a/data.pkl", b"\x80\x02}.");
    let good = archive(&[pickle, ("a/data/0", &[0; 8])]);
    assert!(opened(&good).is_ok());
    // Where the list begins, and its second entry.
    let list = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let second = list + 46 + pickle.0.len();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        opened(&changed).unwrap_err().to_string()
    };
    let vast = &[0xf0, 0xff, 0xff, 0xff];
    let error = with(second + 20, vast);
    assert!(
        error.contains("`a/data/0` would have 4294967280 bytes"),
        "{error}"
    );
    let error = with(second + 24, vast);
    assert!(
        error.contains("would unfold from 8 bytes to 4294967280"),
        "{error}"
    );
    let error = with(
        second + 10,
        &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0xff, 0, 0, 1],
    );
    assert!(
        error.contains("would unfold from 8 bytes to 16777471"),
        "{error}"
    );
    assert!(with(second + 10, &[12]).contains("compressed by method 12"));
    assert!(with(second + 8, &[1]).contains("is encrypted"));
    assert!(with(second + 42, &[2]).contains("of the archive overlap"));
    let end = good.len() - 22;
    assert!(with(end + 10, &[9]).contains("list of entries is broken"));
    assert!(with(end + 12, vast).contains("claims a list of 2 entries in 4294967280 bytes"));
    assert!(with(end, b"XX").contains("it is no zip archive"));
    let twice = archive(&[pickle, pickle]);
    let error = opened(&twice).unwrap_err().to_string();
    assert!(error.contains("two entries `a/data.pkl`"), "{error}");
    let two = archive(&[pickle, ("b/data.pkl", b".")]);
    assert!(
        opened(&two)
            .unwrap_err()
            .to_string()
            .contains("several entries `data.pkl`")
    );
    let none = archive(&[("a/x", b"")]);
    assert!(
        opened(&none)
            .unwrap_err()
            .to_string()
            .contains("has no entry `data.pkl`")
    );
    let lost = archive(&[("a/data.pkl", &tensor(0, &[1], &[1]))]);
    let error = opened(&lost).unwrap_err().to_string();
    assert!(
        error.contains("tensor `x` cannot be read: the archive has no entry `a/data/0`"),
        "{error}"
    );
}

#[test]
fn tensors_that_share_a_storage_are_bounded() {
    // A thousand tensors of all of a storage of 1 MB.
    let one = tensor(0, &[1 << 18], &[1]);
    let call = &one[9..one.len() - 2];
    let mut pickle = b"\x80\x02}".to_vec();
    for i in 0..1000u32 {
        pickle.extend(
            [
                b"X\x04\0\0\0".as_slice(),
                format!("{i:04}").as_bytes(),
                call,
                b"s",
            ]
            .concat(),
        );
    }
    pickle.push(b'.');
    let bytes = archive(&[("a/data.pkl", &pickle), ("a/data/0", &vec![0; 1 << 20])]);
    let error = opened(&bytes).unwrap_err().to_string();
    assert!(
        error.contains("its tensors have 1048576000 bytes"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_cut_while_it_is_open_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    fs::copy(fixture("types.pt"), &path).unwrap();
    let mut pickle = Pickle::open(&path).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(9)
        .unwrap();
    let error = pickle.take("float32").unwrap_err().to_string();
    assert!(
        error.contains("has become shorter since it was opened"),
        "{error}"
    );
}

#[test]
fn mutated_pickles_are_answered() {
    for (name, count) in [
        ("types", 300),
        ("lightning", 300),
        ("deflated", 300),
        ("views", 300),
    ] {
        let seed = fs::read(fixture(&format!("{name}.pt"))).unwrap();
        mutate::each(name, &[seed], count, |bytes| {
            let Ok(mut pickle) = opened(bytes) else {
                return;
            };
            for name in pickle.names() {
                pickle.take(&name).ok();
            }
        });
    }
    // The pickle itself, without the archive around it.
    let seed = fs::read(fixture("lightning.pt")).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&seed).unwrap();
    let whole = Archive::open(file).unwrap();
    let (_, entry) = pickle(&whole).unwrap();
    let seed = whole.whole(entry, LONGEST_PICKLE).unwrap();
    mutate::each("pickle", &[seed], 3000, |bytes| {
        Pickle::names_in(bytes).ok();
    });
}
