//! `diffaug report`: everything of some runs on one page.

use crate::{cli::ReportArgs, ui::Ui};
use diffaug::files;
use diffaug_run::{failure::Failure, layout};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Writes the page and prints where it is.
pub fn report(args: &ReportArgs, ui: Ui) -> Result<(), Failure> {
    let runs = diffaug_report::open(&args.runs)?;
    // What makes a folder a run must not become a page.
    let read = [
        layout::LOCK,
        layout::SPLIT,
        layout::MANIFEST,
        layout::LOG,
        layout::RESULT,
        layout::METADATA,
        layout::REJECTED_LIST,
        layout::CHECKSUMS,
        layout::SYNTHESIS,
        layout::CONTACT_SHEET,
    ];
    let read = args
        .runs
        .iter()
        .flat_map(|run| read.map(|name| run.join(name)));
    let read: Vec<PathBuf> = read.collect();
    let read: Vec<&Path> = read.iter().map(PathBuf::as_path).collect();
    files::check_output(&args.output, &read)?;
    let page = diffaug_report::page(&runs)?;
    files::write_atomic(&args.output, page.as_bytes())?;
    let shown = args.output.display().to_string();
    ui.result(|| shown.clone(), &json!({ "report": args.output }));
    Ok(())
}

/// Leaves the page of a finished run in its folder. The run is what it is without one, so that it cannot be
/// written is a warning.
pub fn leave(folder: &Path) {
    if let Err(error) = diffaug_report::leave(folder) {
        tracing::warn!("the report of the run is not written: {error}");
    }
}
