//! Files as PyTorch writes them, for tests of what reads them.

use candle_core::{DType, Tensor};

/// A zip archive of stored entries.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut list) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let start = (bytes.len() as u32).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        let len = (data.len() as u32).to_le_bytes();
        // Flags, method, time and sum of the entry are zeros.
        let common = [&[0; 12][..], &len, &len, &name_len, &[0; 2]].concat();
        let header = [b"PK\x03\x04\x14\0".as_slice(), &common, name.as_bytes()].concat();
        bytes.extend([header.as_slice(), data].concat());
        let place = [&[0; 10][..], &start].concat();
        list.extend(b"PK\x01\x02\x14\0\x14\0");
        list.extend([common.as_slice(), &place, name.as_bytes()].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let [start, len] = [bytes.len(), list.len()].map(|n| (n as u32).to_le_bytes());
    let end = [&[0; 4][..], &count, &count, &len, &start, &[0; 2]].concat();
    [bytes, list, b"PK\x05\x06".to_vec(), end].concat()
}

/// The file that `torch.save` writes for a dictionary of these tensors, in f32.
///
/// # Panics
/// When a tensor cannot be read.
pub fn pytorch_file<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Vec<u8> {
    let text = |text: &str| {
        let len = (text.len() as u32).to_le_bytes();
        [b"X".as_slice(), &len, text.as_bytes()].concat()
    };
    let number = |n: usize| [b"\x8a\x08".as_slice(), &(n as u64).to_le_bytes()].concat();
    let tuple = |n: &[usize]| {
        let numbers: Vec<u8> = n.iter().flat_map(|n| number(*n)).collect();
        [b"(".as_slice(), &numbers, b"t"].concat()
    };
    let (mut pickle, mut storages) = (b"\x80\x02}".to_vec(), Vec::new());
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        let values = tensor.flatten_all().and_then(|t| t.to_dtype(DType::F32));
        let values = values.and_then(|t| t.to_vec1::<f32>());
        let values = values.unwrap_or_else(|e| panic!("{e}"));
        let class = b"ctorch\nFloatStorage\n".to_vec();
        let count = number(values.len());
        let (key, device) = (text(&i.to_string()), text("cpu"));
        let storage = [text("storage"), class, key, device, count].concat();
        let dims = tensor.dims();
        let stride = |i: usize| dims[i + 1..].iter().product();
        let strides: Vec<usize> = (0..dims.len()).map(stride).collect();
        let arguments = [number(0), tuple(dims), tuple(&strides)].concat();
        pickle.extend(
            [
                text(name),
                b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
            ]
            .concat(),
        );
        pickle.extend([storage, b"tQ".to_vec(), arguments, b"\x89NtRs".to_vec()].concat());
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        storages.push((format!("archive/data/{i}"), bytes));
    }
    pickle.push(b'.');
    let mut entries: Vec<(&str, &[u8])> = vec![("archive/data.pkl", &pickle)];
    entries.extend(
        storages
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
    );
    archive(&entries)
}
