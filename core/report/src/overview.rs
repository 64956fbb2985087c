//! What a run was made of: the head of its section, and at its end plugins, hashes and the manifest.

use crate::{
    content::Content,
    html::{plain, share, table},
};
use diffaug_run::escape;
use maud::{Markup, html};
use serde_json::Value;

/// Name and facts of a run, and what of it is missing.
pub fn head(content: &Content) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts(content) {
                div { dt { (name) } dd { (plain(&value)) } }
            }
        }
        @if !content.missing.is_empty() {
            div.missing role="note" {
                h3 { "Not here" }
                ul { @for sentence in &content.missing { li { (plain(sentence)) } } }
            }
        }
    }
}

fn facts(content: &Content) -> Vec<(&'static str, String)> {
    let lock = &content.lock;
    let manifest = &lock["manifest"];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    };
    let mut facts = vec![
        ("dataset", text(&lock["dataset"]["name"])),
        ("images", text(&lock["dataset"]["samples"])),
    ];
    if let Some([train, validation, test]) = content.counts {
        let name = text(&lock["split"]["name"]);
        let sizes = format!("{train} train, {validation} validation, {test} test ({name})");
        facts.push(("split", sizes));
    }
    facts.push(("device", text(&manifest["device"])));
    facts.push(("diffaug", text(&lock["diffaug"])));
    facts.push(("seed", text(&manifest["seed"])));
    facts.push(("seeds of trainings", seeds(manifest)));
    let stages = match content.paints() {
        true => &["generator", "validator", "segmenter"][..],
        false => &["segmenter"][..],
    };
    let named = stages.iter().map(|stage| (*stage, content.plugin(stage)));
    facts.extend(named.map(|(stage, name)| (stage, name.to_owned())));
    if let Some(summary) = &content.summary {
        let accepted = format!(
            "{} of {} ({})",
            summary.accepted,
            summary.candidates,
            share(summary.accepted, summary.candidates)
        );
        facts.push(("accepted", accepted));
    }
    facts
}

/// The seeds of the trainings that are scored: those that are listed, or so many from the run's own on.
fn seeds(manifest: &Value) -> String {
    let evaluate = &manifest["evaluate"];
    let seeds: Vec<u64> = match evaluate["seeds"].as_array() {
        Some(seeds) => seeds.iter().filter_map(Value::as_u64).collect(),
        None => {
            let first = manifest["seed"].as_u64().unwrap_or_default();
            let runs = evaluate["runs"].as_u64().unwrap_or(1).min(1_000);
            (first..first.saturating_add(runs)).collect()
        }
    };
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    seeds.join(", ")
}

/// Plugins, hashes and the manifest.
pub fn made_of(content: &Content) -> Markup {
    html! {
        h3 { "What it was made of" }
        (plugins(content))
        (hashes(content))
        @if let Some(manifest) = &content.manifest {
            details {
                summary { "Manifest, with all defaults" }
                pre tabindex="0" { (escape::text(manifest)) }
            }
        }
    }
}

fn plugins(content: &Content) -> Markup {
    let plugins = content.lock["plugins"].as_object();
    let row = |(stage, plugin): (&String, &Value)| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let origin = match &plugin["origin"] {
            Value::Object(library) => {
                let text = |name: &str| {
                    library
                        .get(name)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                };
                format!("{} {}", text("file"), text("sha256"))
            }
            other => text(other),
        };
        vec![
            stage.clone(),
            text(&plugin["name"]),
            text(&plugin["version"]),
            origin,
        ]
    };
    let rows: Vec<Vec<String>> = plugins.into_iter().flatten().map(row).collect();
    table("Plugins", &["stage", "plugin", "version", "from"], &rows)
}

/// Every hash that the run knows of, by what it is of.
fn hashes(content: &Content) -> Markup {
    let lock = &content.lock;
    let mut rows = Vec::new();
    for (name, value) in [
        ("dataset", &lock["dataset"]["sha256"]),
        ("split", &lock["split"]["sha256"]),
        ("weights", &lock["weights"]),
        ("files", &lock["files"]),
        ("hub", &lock["hub"]),
    ] {
        add(name, value, &mut rows);
    }
    if let Some(result) = &content.result {
        add("trained", &result["weights"], &mut rows);
    }
    html! {
        details {
            summary { "Hashes of data, weights and files" }
            (table("SHA-256, and commits of a hub", &["of", "hash"], &rows))
        }
    }
}

/// A row for each text in a value.
fn add(name: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::String(hash) => rows.push(vec![name.to_owned(), hash.clone()]),
        Value::Object(fields) => {
            for (field, value) in fields {
                add(&format!("{name}: {field}"), value, rows);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn seeds_are_those_listed_or_counted_up() {
        assert_eq!(
            seeds(&json!({"seed": 3, "evaluate": {"runs": 2, "seeds": null}})),
            "3, 4"
        );
        assert_eq!(
            seeds(&json!({"seed": 3, "evaluate": {"runs": 1, "seeds": [7, 5]}})),
            "7, 5"
        );
        assert_eq!(seeds(&json!({})), "0");
    }

    #[test]
    fn hashes_are_listed_by_what_they_are_of() {
        let mut rows = Vec::new();
        add(
            "weights",
            &json!({"generator": "ab", "segmenter": {"config.json": "cd"}}),
            &mut rows,
        );
        add("hub", &json!(null), &mut rows);
        assert_eq!(
            rows,
            [
                ["weights: generator", "ab"],
                ["weights: segmenter: config.json", "cd"]
            ]
        );
    }
}
