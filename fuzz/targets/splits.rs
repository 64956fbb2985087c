//! Files of ids, and tables of groups.

#![no_main]

use diffaug::{
    DatasetInfo, Item,
    pairs::Table,
    split::{SplitOptions, split},
};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().expect("a temporary file");
}

fuzz_target!(|bytes: &[u8]| FILE.with(|file| {
    std::fs::write(file.path(), bytes).expect("the temporary file can be written");
    let items: Vec<Item> = (0..9).map(|i| Item::new(&format!("s{i}"))).collect();
    let options = SplitOptions {
        file: Some(file.path().to_owned()),
        ..SplitOptions::default()
    };
    if let Ok(split) = split(&DatasetInfo::single_class("D", "polyp"), &items, &options) {
        split
            .indices(&items)
            .expect("a split speaks of what there is");
    }
    Table::read(file.path()).ok();
}));
