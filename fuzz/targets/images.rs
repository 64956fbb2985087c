//! Images and masks of every format, TIFF among them: header, pixels, values.

#![no_main]

use diffaug::image::{MaskRule, open_image, open_mask, read_header, read_values};
use libfuzzer_sys::fuzz_target;

/// More pixels than this are refused, so that an input does not take long.
const MAX_PIXELS: u64 = 20_000;

thread_local! {
    static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().expect("a temporary file");
}

fuzz_target!(|bytes: &[u8]| FILE.with(|file| {
    let path = file.path();
    std::fs::write(path, bytes).expect("the temporary file can be written");
    let header = read_header(path);
    let image = open_image(path, MAX_PIXELS);
    if let (Ok(header), Ok(image)) = (&header, &image) {
        assert_eq!(header.size(), image.size());
    }
    if let Ok(values) = read_values(path, MAX_PIXELS) {
        let image = image.as_ref().ok();
        assert!(image.is_none_or(|image| image.size() == values.values.size()));
    }
    open_mask(path, MAX_PIXELS, &MaskRule::Auto { label: 1 }).ok();
}));
