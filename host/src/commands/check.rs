//! `diffaug check`: is this manifest right?
//!
//! A manifest for a graphics card can be right on a machine without one: its options are then checked
//! by the plugins for the processor, which take the same ones.

use crate::{
    cli::{Global, ManifestArgs},
    failure::Failure,
    pipeline::{
        inspect,
        wire::{self, Wire},
    },
    ui::Ui,
};
use serde_json::json;

/// Checks syntax, names and options; with `data`, also the dataset and its split.
pub fn check(args: &ManifestArgs, data: bool, global: &Global, ui: Ui) -> Result<(), Failure> {
    let (manifest, document) = super::read(args, global)?;
    let mut registry = super::load(&manifest, &document, "cpu", global, ui)?;
    let device = registry.add_device(&manifest.device, wire::log_level(ui));
    let wire = Wire {
        registry: &registry,
        document: &document,
        manifest: &manifest,
    };
    wire.check_all()?;
    let mut text = format!("{} is in order", document.name());
    let mut result = json!({ "manifest": document.name(), "valid": true });
    if data {
        let ([train, validation, test], name) = inspect(&manifest, &document, &registry)?;
        text += &format!("; {name}: {train} to train, {validation} to validate, {test} to test");
        result["dataset"] = json!(name);
        result["train"] = json!(train);
        result["validation"] = json!(validation);
        result["test"] = json!(test);
    }
    if let Err(failure) = device {
        let name = &manifest.device;
        text += &format!("\nbut it cannot run here: {}", failure.error);
        result["missing"] = json!(format!("device `{name}`: {}", failure.error));
    }
    ui.result(|| text, &result);
    Ok(())
}
