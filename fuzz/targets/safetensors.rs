//! Safetensors files: the header, and every tensor that it promises.

#![no_main]

use diffaug_nn::weights::{Files, Source};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().expect("a temporary file");
}

fuzz_target!(|bytes: &[u8]| FILE.with(|file| {
    std::fs::write(file.path(), bytes).expect("the temporary file can be written");
    let Ok(mut files) = Files::open(&[file.path()]) else {
        return;
    };
    for name in files.names() {
        files.take(&name).ok();
    }
}));
