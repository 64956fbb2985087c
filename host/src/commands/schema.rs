//! `diffaug manifest schema`: the JSON schema of manifests, with the options of every plugin.

use crate::{cli::Global, ui::Ui};
use diffaug_run::{
    failure::Failure,
    manifest::Manifest,
    registry::{Listing, Registry},
    slots::{MEASURE, SLOTS, Slot},
};
use serde_json::{Value, json};

/// Prints the schema.
pub fn schema(global: &Global, ui: Ui) -> Result<(), Failure> {
    let registry = super::registry(&[], global, ui)?;
    let schema = manifest_schema(&registry);
    let text = serde_json::to_string_pretty(&schema).map_err(diffaug::Error::internal)?;
    ui.result(|| text, &schema);
    Ok(())
}

fn manifest_schema(registry: &Registry) -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    let settings = settings.with(|s| s.inline_subschemas = true);
    let mut schema: Value = settings
        .into_generator()
        .into_root_schema_for::<Manifest>()
        .into();
    let all = registry.list();
    for slot in SLOTS {
        fill(&mut schema, &slot.pointer(), slot.kind, &all);
    }
    // Each has a name of the user's choice.
    let measures = Slot::of_measure("*").pointer();
    let measures = measures.replace("/properties/*", "/additionalProperties");
    fill(&mut schema, &measures, MEASURE, &all);
    // `base` is resolved while reading; editors should still know it.
    schema["properties"]["base"] = json!({
        "type": "string",
        "description": "A manifest, relative to this one, whose values this one changes.",
    });
    // With a base, everything may come from there.
    if let Some(root) = schema.as_object_mut() {
        root.remove("required");
    }
    schema
}

/// Puts the stages of a kind in the place of a table of any stage.
fn fill(schema: &mut Value, pointer: &str, kind: &str, all: &[Listing<'_>]) {
    let mut choices: Vec<&Listing<'_>> = all.iter().filter(|l| l.kind == kind).collect();
    // Built for several devices it is still one choice, and takes the same options.
    choices.dedup_by_key(|l| l.name);
    let choices: Vec<Value> = choices.into_iter().map(stage).collect();
    if let Some(table) = schema.pointer_mut(pointer) {
        let description = table["description"].clone();
        *table = json!({ "description": description, "oneOf": choices });
    }
}

/// A stage's options with its name fixed.
fn stage(listing: &Listing<'_>) -> Value {
    let mut schema = listing.schema.clone();
    schema["title"] = json!(listing.name);
    schema["description"] = json!(listing.summary);
    schema["properties"]["use"] = json!({ "const": listing.name });
    if let Some(root) = schema.as_object_mut() {
        root.remove("$schema");
        let required = root.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            required.push(json!("use"));
        }
    }
    schema
}
