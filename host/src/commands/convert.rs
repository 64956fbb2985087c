//! `diffaug convert`: a published checkpoint as a folder of weights of a stage, or what training left
//! as a small one.

use crate::{
    cli::{ConvertArgs, Global},
    ui::Ui,
};
use diffaug::{BoxGenerator, BoxSegmenter, Error, ErrorKind, ResultExt, files};
use diffaug_run::{
    failure::Failure,
    registry::{Kind, Registry},
};
use serde_json::json;
use std::fs;

/// Converts; the folder appears whole or not at all.
///
/// # Errors
/// When there is no such stage, it converts nothing, the file is of another kind, or the folder is
/// there already.
pub fn convert(args: &ConvertArgs, global: &Global, ui: Ui) -> Result<(), Failure> {
    let registry = super::registry(&args.library, global, ui)?;
    let found = match args.kind.as_str() {
        "generator" => run::<BoxGenerator>(&registry, args, global)?,
        "segmenter" => run::<BoxSegmenter>(&registry, args, global)?,
        other => {
            let message = format!("`{other}` is neither `generator` nor `segmenter`");
            return Err(Error::config(message).into());
        }
    };
    let output = args.output.display().to_string();
    let facts = json!({ "output": output, "found": found });
    ui.result(|| format!("wrote {output}: {found}"), &facts);
    Ok(())
}

fn run<S: Kind>(
    registry: &Registry,
    args: &ConvertArgs,
    global: &Global,
) -> Result<String, Failure> {
    let offer = registry.find::<S>(&args.name, super::device(global))?;
    let shown = args.output.display();
    // A link to nothing is there as well, and would be replaced.
    if args.output.symlink_metadata().is_ok() {
        return Err(Error::data(format!("`{shown}` is there already")).into());
    }
    let parent = files::parent(&args.output);
    let cannot = || format!("cannot write `{shown}`");
    files::make_folder(parent).or_error(ErrorKind::Data, cannot)?;
    let partial = tempfile::Builder::new()
        .suffix(".partial")
        .tempdir_in(parent)
        .or_error(ErrorKind::Data, cannot)?;
    let options = super::options(&args.set)?;
    let found = offer.convert(&options, &args.file, partial.path())?;
    files::sync_tree(partial.path()).or_error(ErrorKind::Data, cannot)?;
    let renamed = fs::rename(partial.path(), &args.output);
    renamed.or_error(ErrorKind::Data, cannot)?;
    // It has another name now, so nothing is left to be removed.
    drop(partial.keep());
    files::sync_folder(parent).or_error(ErrorKind::Data, cannot)?;
    Ok(found)
}
