//! `diffaug check`: is this manifest right?
//!
//! A manifest for a graphics card can be right on a machine without one: its options are then checked
//! by the plugins for the processor, which take the same ones.

use crate::{
    cli::{Global, Look, ManifestArgs},
    ui::Ui,
};
use diffaug::Error;
use diffaug_run::{
    experiment::Experiment,
    failure::Failure,
    manifest::{Document, Manifest},
    session::Session,
    work::{Inspected, attributes::Facts, figures, inspect, wire::Wire},
};
use serde_json::{Value, json};

/// Checks syntax, names and options; with `data`, also the split and every file of the dataset. Of an
/// experiment every cell is checked.
pub fn check(
    args: &ManifestArgs,
    data: Option<Look>,
    global: &Global,
    ui: Ui,
) -> Result<(), Failure> {
    let overrides = super::overrides(args, global);
    let document = Document::read(&args.manifest, &overrides)?;
    if Experiment::is(&document) {
        return cells(args, data, global, ui);
    }
    let manifest = Manifest::of(&document)?;
    let mut plugins = super::load(&manifest, &document, "cpu", global, ui)?;
    let device = plugins.add_device(&manifest.device, ui.library_log_level());
    let wire = Wire {
        registry: &plugins.registry,
        document: &document,
        manifest: &manifest,
    };
    wire.check_all()?;
    figures(&manifest, &document, &plugins.registry)?;
    Facts::named(&manifest).map_err(|error| document.failure("", error))?;
    let mut text = format!("{} is in order", document.name());
    let mut result = json!({ "manifest": document.name(), "valid": true });
    if let Some(look) = data {
        let found = inspect(
            &manifest,
            &document,
            &plugins.registry,
            look == Look::Full,
            &Session::new(&ui),
        )?;
        refuse(&found, document.name(), ui)?;
        describe(&found, look, &mut text, &mut result);
    }
    if let Err(failure) = device {
        let name = &manifest.device;
        text += &format!("\nbut it cannot run here: {}", failure.error);
        result["missing"] = json!(format!("device `{name}`: {}", failure.error));
    }
    ui.result(|| text, &result);
    Ok(())
}

/// Checks every cell of an experiment.
fn cells(args: &ManifestArgs, data: Option<Look>, global: &Global, ui: Ui) -> Result<(), Failure> {
    if data.is_some() {
        let message = "`--data` is for a manifest of one run, and this is an experiment";
        return Err(Error::config(message).into());
    }
    let experiment = Experiment::read(&args.manifest, &super::overrides(args, global))?;
    let mut all = Vec::new();
    for cell in &experiment.cells {
        let (manifest, document) = (&cell.manifest, &cell.document);
        let plugins = super::load(manifest, document, "cpu", global, ui)?;
        let wire = Wire {
            registry: &plugins.registry,
            document,
            manifest,
        };
        wire.check_all()?;
        all.push(figures(manifest, document, &plugins.registry)?);
        Facts::named(manifest).map_err(|error| document.failure("", error))?;
    }
    experiment.check_figures(&all)?;
    let (name, count) = (args.manifest.display(), experiment.cells.len());
    let text = || format!("{name} is in order: {count} runs");
    let json = json!({ "manifest": name.to_string(), "valid": true, "runs": count });
    ui.result(text, &json);
    Ok(())
}

/// Lists every fault, and fails if there is one.
fn refuse(found: &Inspected, manifest: &str, ui: Ui) -> Result<(), Failure> {
    let faults = &found.examined.faults;
    if faults.is_empty() {
        return Ok(());
    }
    let text = || {
        let lines = faults
            .iter()
            .map(|(name, error)| format!("{name}: {error}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let list = faults
        .iter()
        .map(|(name, error)| json!({ "id": name, "error": error.to_string() }));
    let json = json!({
        "manifest": manifest,
        "valid": false,
        "dataset": found.name,
        "faults": Value::from_iter(list),
    });
    ui.result(text, &json);
    let (count, name) = (faults.len(), &found.name);
    let noun = if count == 1 { "fault" } else { "faults" };
    Err(Error::data(format!("{name} has {count} {noun}")).into())
}

fn describe(found: &Inspected, look: Look, text: &mut String, result: &mut Value) {
    let ([train, validation, test], name) = (found.counts, &found.name);
    *text += &format!("; {name}: {train} to train, {validation} to validate, {test} to test");
    result["dataset"] = json!(name);
    result["train"] = json!(train);
    result["validation"] = json!(validation);
    result["test"] = json!(test);
    result["looked_at"] = json!(match look {
        Look::Headers => "headers",
        Look::Full => "pixels",
    });
    let Inspected { examined, .. } = found;
    if examined.framed * 2 > examined.samples {
        let note = format!(
            "{} of {} masks have labels along most of their border: are background and lesion exchanged?",
            examined.framed, examined.samples
        );
        *text += &format!("\nbut {note}");
        result["note"] = json!(note);
    }
}
