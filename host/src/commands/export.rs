//! `diffaug export`: the images of a finished run, for another tool.

use crate::{
    cli::{ExportArgs, ExportSize, Global},
    ui::{Ui, table},
};
use diffaug_export::{Exported, ExportedArm, Format, Options, Size, export as write};
use diffaug_run::{failure::Failure, manifest::Document, reader::Run, session::Session};
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
    // Whatever the run computed on: datasets compute nothing.
    let plugins = super::load(&manifest, &Document::default(), "cpu", global, ui)?;
    let session = Session::new(&ui);
    let exported = write(&run, &manifest, &plugins.registry, &options, &session)?;
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
