//! PyTorch's files: the zip archive, the pickle, and every tensor that it promises.

#![no_main]

use diffaug_nn::weights::{Pickle, Source};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().expect("a temporary file");
}

fuzz_target!(|bytes: &[u8]| FILE.with(|file| {
    std::fs::write(file.path(), bytes).expect("the temporary file can be written");
    let Ok(mut tensors) = Pickle::open(file.path()) else {
        return;
    };
    for name in tensors.names() {
        tensors.take(&name).ok();
    }
}));
