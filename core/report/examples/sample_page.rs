//! Writes a run folder with drawn pictures, and its page: to look at pages without a run.
//!
//! `sample_page FOLDER [CANDIDATES]`

#![allow(clippy::unwrap_used)]

#[path = "../tests/sample/mod.rs"]
mod sample;

use diffaug::{Error, Result};
use std::{env, path::PathBuf};

fn main() -> Result<()> {
    let mut words = env::args().skip(1);
    let folder = words.next().map(PathBuf::from);
    let folder = folder.ok_or_else(|| Error::config("usage: sample_page FOLDER [CANDIDATES]"))?;
    let candidates = words.next().and_then(|count| count.parse().ok());
    sample::finished(&folder, "sample", candidates.unwrap_or(200), 0.08);
    diffaug_report::leave(&folder).map(drop)
}
