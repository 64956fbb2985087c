//! `diffaug export`: the images of a finished run, for another tool.

use crate::{
    cli::{ExportArgs, ExportSize, Global},
    ui::{Ui, table},
};
use diffaug_export::{Exported, ExportedArm, Format, Options, Size, export as write};
use diffaug_run::{failure::Failure, reader::Run, session::Session};
use serde_json::json;

/// Writes the export and says what it holds.
pub fn export(args: &ExportArgs, global: &Global, ui: Ui) -> Result<(), Failure> {
    let options = Options {
        arms: args.arms.clone(),
        size: match args.size {
            ExportSize::Working => Size::Working,
            ExportSize::Native => Size::Native,
        },
        test: args.test,
        dataset_id: args.dataset_id,
        ..Options::new(Format::parse(&args.to)?, args.output.clone())
    };
    let run = Run::open(&args.run)?;
    let manifest = run.manifest()?;
    // Libraries are programs, and a run folder may come from anywhere: those that it names are not loaded.
    let registry = super::registry(&args.library, global, ui)?;
    if let Err(failure) = registry.find_any("dataset", &manifest.dataset.name, "cpu") {
        let hint =
            "`--library FILE` loads the plugin that the run had it from, if you trust that file";
        return Err(match manifest.libraries.is_empty() {
            true => failure,
            false => failure.hint(hint.to_owned()),
        });
    }
    let session = Session::new(&ui);
    let exported = write(&run, &manifest, &registry, &options, &session)?;
    ui.result(|| text(&exported), &json!(exported));
    Ok(())
}

fn text(exported: &Exported) -> String {
    let row = |arm: &ExportedArm| {
        let counts = [arm.real, arm.synthetic, arm.validation, arm.test];
        let mut cells = vec![arm.arm.clone()];
        cells.extend(counts.map(|count| count.to_string()));
        cells.push(arm.folder.display().to_string());
        cells
    };
    let header = ["arm", "real", "synthetic", "validation", "test", "folder"];
    let rows: Vec<Vec<String>> = exported.arms.iter().map(row).collect();
    let notes = exported.arms.iter().filter_map(|arm| arm.note.as_deref());
    let mut notes: Vec<&str> = notes.collect();
    notes.dedup();
    let notes: String = notes.iter().map(|note| format!("\n{note}")).collect();
    format!("{}{notes}", table(&header, &rows))
}
