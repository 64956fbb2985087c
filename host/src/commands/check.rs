//! `diffaug check`: is this manifest right?

use crate::{
    cli::{Global, ManifestArgs},
    failure::Failure,
    pipeline::{inspect, wire::Wire},
    ui::Ui,
};
use serde_json::json;

/// Checks syntax, names and options; with `data`, also the dataset and its split.
pub fn check(args: &ManifestArgs, data: bool, global: &Global, ui: Ui) -> Result<(), Failure> {
    let (manifest, document, registry) = super::open(args, global, ui)?;
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
    ui.result(|| text, &result);
    Ok(())
}
