//! `diffaug plugins`: what is there, and the options of one.

use super::grouped;
use crate::{cli::Global, ui::Ui};
use diffaug::{Backend, Context, Error};
use diffaug_run::{
    escape,
    failure::{Failure, listed, nearest},
    registry::{self, Listing, Registry},
};
use serde_json::{Value, json};
use std::path::PathBuf;

const KINDS: [&str; 6] = [
    "dataset",
    "prompts",
    "generator",
    "segmenter",
    "validator",
    "measure",
];

/// Column of the number of parameters.
const PARAMETERS: usize = 4;
/// Side of the images that parameters are counted for; the size of some networks depends on it.
const SIDE: u32 = 256;

/// Lists plugins, or the options of one.
pub fn plugins(
    kind: Option<&str>,
    name: Option<&str>,
    library: &[PathBuf],
    global: &Global,
    ui: Ui,
) -> Result<(), Failure> {
    let registry = super::registry(library, global, ui)?;
    if let Some(kind) = kind
        && !KINDS.contains(&kind)
    {
        let message = format!(
            "no kind of stage is called `{kind}`; there are {}",
            listed(KINDS)
        );
        let failure = Failure::from(Error::config(message));
        return Err(match nearest(kind, KINDS) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure,
        });
    }
    match (kind, name) {
        (Some(kind), Some(name)) => one(&registry, kind, name, ui),
        (kind, _) => {
            list(&registry, kind, ui);
            Ok(())
        }
    }
}

/// Lists all plugins, or those of a kind, and of these how many parameters their models have.
fn list(registry: &Registry, kind: Option<&str>, ui: Ui) {
    let all = registry.list();
    let chosen = all
        .iter()
        .filter(|l| kind.is_none_or(|kind| kind == l.kind));
    let chosen: Vec<(&Listing<'_>, Option<u64>)> = chosen
        .map(|l| (l, kind.and_then(|_| parameters(registry, l))))
        .collect();
    let text = || {
        let counted = chosen.iter().any(|(_, count)| count.is_some());
        let rows = chosen.iter().map(|(l, count)| row(l, counted, *count));
        let rows: Vec<Vec<String>> = rows.collect();
        // The kind leads and everything is read from the left, but for numbers.
        let columns = rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0))
            .collect();
        let lines = rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(c, (cell, &w))| match counted && c == PARAMETERS {
                true => format!("{cell:>w$}"),
                false => format!("{cell:w$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let json: Vec<Value> = chosen
        .iter()
        .map(|(l, count)| {
            let mut entry = json!({
                "kind": l.kind,
                "name": l.name,
                "version": l.version,
                "backend": registry::backend_name(l.backend),
                "origin": l.origin.to_string(),
                "summary": l.summary,
            });
            if let Some(count) = count {
                entry["parameters"] = json!(count);
            }
            entry
        })
        .collect();
    ui.result(text, &Value::Array(json));
}

/// Parameters of the model that a stage has without any options, for images of [`SIDE`]; `None` where it has no
/// model, or needs options to have one.
fn parameters(registry: &Registry, l: &Listing<'_>) -> Option<u64> {
    let offer = registry.find_any(l.kind, l.name, registry::backend_name(l.backend));
    let context = Context {
        size: SIDE,
        ..Context::default()
    };
    let needs = offer.ok()?.inspect(&json!({}), &context).ok()?;
    let counts = needs.components.iter().map(|part| part.parameters);
    Some(counts.sum()).filter(|count| *count > 0)
}

fn row(l: &Listing<'_>, counted: bool, count: Option<u64>) -> Vec<String> {
    let name = match l.backend {
        Backend::Cpu => l.name.to_owned(),
        other => format!("{} ({})", l.name, registry::backend_name(other)),
    };
    let origin = l.origin.to_string();
    let cells = [l.kind, &name, l.version, &origin, l.summary];
    let mut cells = cells.map(|cell| escape::line(cell).into_owned()).to_vec();
    if counted {
        let text = count.map(|count| format!("{} parameters", grouped(count)));
        cells.insert(PARAMETERS, text.unwrap_or_default());
    }
    cells
}

fn one(registry: &Registry, kind: &str, name: &str, ui: Ui) -> Result<(), Failure> {
    let all = registry.list();
    let Some(listing) = all.iter().find(|l| l.kind == kind && l.name == name) else {
        let mut names: Vec<&str> = all
            .iter()
            .filter(|l| l.kind == kind)
            .map(|l| l.name)
            .collect();
        names.dedup();
        let offered = listed(names.iter().copied());
        let message = format!("no {kind} is called `{name}`; there are {offered}");
        let failure = Failure::from(Error::config(message));
        return Err(match nearest(name, names) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure,
        });
    };
    ui.result(|| describe(listing), &listing.schema);
    Ok(())
}

/// The options of a plugin as a table.
fn describe(listing: &Listing<'_>) -> String {
    let title = format!("{} {}: {}", listing.kind, listing.name, listing.summary);
    let empty = serde_json::Map::new();
    let schema = &listing.schema;
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    if properties.is_empty() {
        return format!("{title}\n\nno options");
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut lines = vec![title];
    for (name, property) in properties {
        let default = match &property["default"] {
            _ if required.contains(&json!(name)) => ", required".to_owned(),
            Value::Null => String::new(),
            value => format!(", default {value}"),
        };
        let help = property["description"].as_str().unwrap_or_default();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        lines.push(format!("\n  {name} ({}{default})", type_name(property)));
        lines.push(format!("      {help}"));
    }
    lines.join("\n")
}

/// A property's type in words: `integer`, `"auto" | "png"`, `list of string`.
fn type_name(property: &Value) -> String {
    if let Some(choices) = property["enum"].as_array() {
        let choices: Vec<String> = choices.iter().map(Value::to_string).collect();
        return choices.join(" | ");
    }
    if let Some(value) = property.get("const") {
        return value.to_string();
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(choices) = property[key].as_array() {
            let mut names: Vec<String> = choices.iter().map(type_name).collect();
            names.retain(|name| name != "null");
            return names.join(" | ");
        }
    }
    match &property["type"] {
        Value::String(name) if name == "array" => {
            format!("list of {}", type_name(&property["items"]))
        }
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names = names.iter().filter_map(Value::as_str);
            names
                .filter(|n| *n != "null")
                .collect::<Vec<_>>()
                .join(" | ")
        }
        _ => "any".into(),
    }
}
