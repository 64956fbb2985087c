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
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

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
    let labelled = runs.iter().zip(labels(runs));
    labelled
        .map(|(run, label)| Content::read(run, label))
        .collect()
}

/// What each run is called: by its manifest or, where several are called alike, as arms of an experiment are, by so
/// many of the last parts of their folders as tell them apart.
fn labels(runs: &[Run]) -> Vec<String> {
    let differ = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    let names: Vec<String> = runs.iter().map(content::name).collect();
    if differ(&names) {
        return names;
    }
    let folders: Vec<&Path> = runs.iter().map(Run::root).collect();
    let parts = |count: usize| -> Vec<String> {
        let last = |folder: &&Path| {
            let all: Vec<_> = folder.components().collect();
            let some: PathBuf = all[all.len().saturating_sub(count)..].iter().collect();
            some.display().to_string()
        };
        folders.iter().map(last).collect()
    };
    let longest = folders
        .iter()
        .map(|folder| folder.components().count())
        .max();
    let mut all = (1..=longest.unwrap_or(0)).map(parts);
    // One folder may have been named twice.
    all.find(differ).unwrap_or_else(|| {
        let numbered = names.iter().enumerate();
        numbered
            .map(|(place, name)| format!("{name} ({})", place + 1))
            .collect()
    })
}
