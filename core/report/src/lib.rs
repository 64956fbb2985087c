//! A run as one page for a browser: what it was made of, what it came to, every painted candidate.
//!
//! The page is one file without anything from elsewhere: styles, script and pictures stand in it, so it opens from a
//! disk and can be sent to somebody. Equal runs give equal pages. [`watch`] serves the same page while a run
//! goes on.
//!
//! Whatever comes from files (prompts, ids, names) is text and never markup: [`maud`] escapes it in elements, and
//! [`cards::script_json`] in the data of the script. A content security policy in the page lets its own
//! script run and no other.

#![forbid(unsafe_code)]

mod cards;
mod comparison;
mod content;
mod curves;
mod gallery;
mod html;
mod overview;
mod page;
mod painted;
mod scores;
mod svg;
mod trainings;
pub mod watch;

use content::Content;
use diffaug::{Result, files};
use diffaug_run::{layout, reader::Run};
use page::Kind;
use std::path::{Path, PathBuf};

/// The page of some runs, each with a section of its own, and of several a comparison.
///
/// What is not there or cannot be read is said on the page.
///
/// # Errors
/// When there is no run.
pub fn page(runs: &[Run]) -> Result<String> {
    page::render(&contents(runs), Kind::File(runs))
}

/// Opens the runs of some folders.
///
/// # Errors
/// When one is no folder of a run.
pub fn open(folders: &[PathBuf]) -> Result<Vec<Run>> {
    folders.iter().map(|folder| Run::open(folder)).collect()
}

/// Writes the page of a run into its folder and answers where it lies.
///
/// # Errors
/// When it is no folder of a run, or the file cannot be written.
pub fn leave(folder: &Path) -> Result<PathBuf> {
    let run = Run::open(folder)?;
    let path = folder.join(layout::REPORT);
    files::write_atomic(&path, page(&[run])?.as_bytes())?;
    Ok(path)
}

/// All that is known of each run, under names that differ.
fn contents(runs: &[Run]) -> Vec<Content> {
    let names: Vec<String> = runs.iter().map(content::name).collect();
    let unique = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
    let labelled = runs
        .iter()
        .zip(&names)
        .map(|(run, name)| match unique(name) {
            true => Content::read(run, name.clone()),
            false => Content::read(run, format!("{name} ({})", run.root().display())),
        });
    labelled.collect()
}
