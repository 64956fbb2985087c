//! Writes the page of some run folders.
//!
//! `report PAGE RUN…`

use diffaug::{Error, Result, files};
use std::{env, path::PathBuf};

fn main() -> Result<()> {
    let mut words = env::args().skip(1).map(PathBuf::from);
    let page = words.next();
    let page = page.ok_or_else(|| Error::config("usage: report PAGE RUN…"))?;
    let folders: Vec<PathBuf> = words.collect();
    let runs = diffaug_report::open(&folders)?;
    files::write_atomic(&page, diffaug_report::page(&runs)?.as_bytes())
}
