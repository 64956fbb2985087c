//! Makes a small run of generated images in a folder and exports it in every format, for `tests/exports/check`.
//!
//! ```sh
//! cargo run -p diffaug-export --example sample_runs -- FOLDER
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/common/mod.rs"]
mod common;

use diffaug::Silent;
use diffaug_export::{Format, Options, export};
use diffaug_run::{reader::Run, session::Session};
use std::path::PathBuf;

fn main() {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| PathBuf::from("exports"));
    for kind in ["colon", "fundus"] {
        let folder = folder.join(kind);
        std::fs::create_dir_all(&folder).unwrap();
        let run = Run::open(&common::run(&folder, kind, &[])).unwrap();
        let manifest = run.manifest().unwrap();
        for format in Format::ALL {
            let options = Options {
                test: true,
                ..Options::new(format, folder.join(format.name()))
            };
            let session = Session::new(&Silent);
            let done = export(&run, &manifest, &common::registry(), &options, &session).unwrap();
            println!("{kind} {}: {:?}", format.name(), done.arms[0]);
        }
    }
}
