//! What a run reads besides its dataset: files and models that options name. `lock.json` holds their
//! hashes, so that a run is not taken up with others.

use super::{attributes, wire::Wire};
use crate::{
    fingerprint::{self, Step},
    manifest::StageTable,
    registry::Listing,
    slots::{self, DATASET, Slot},
};
use diffaug::{ErrorKind, Result};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

/// The option whose hash stands in `lock.json` by itself, and in the marker of a training.
const WEIGHTS: &str = "weights";
/// Options that name a file or folder even where it is a bare word; elsewhere a word that happens to be
/// a folder's name too is a word.
const PATHS: [&str; 9] = [
    "base",
    "checkpoint",
    "file",
    "folder",
    "lora",
    "model",
    "path",
    "tokenizer",
    "vae",
];
/// A branch or commit is a short text.
const MOST_REF: u64 = 1 << 12;

/// The tables whose options may name files. The dataset is not among them: what it reads is in the
/// fingerprint of its samples. What is not asked need not be there.
fn tables<'a>(wire: &Wire<'a>) -> impl Iterator<Item = (Slot, &'a StageTable)> {
    let manifest = wire.manifest;
    slots::of_run(manifest).filter(|(slot, _)| slot.at != DATASET && slot.is_used(manifest))
}

/// Hashes of the weights that the manifest names, by table.
///
/// # Errors
/// When they cannot be read.
pub fn weights(wire: &Wire<'_>, step: &Step<'_>) -> Result<Map<String, Value>> {
    let mut hashes = Hashes::new(step);
    for (Slot { at: name, .. }, table) in tables(wire) {
        if let Some(path) = table.given_weights() {
            hashes.add(name.to_string(), &format!("{name}.{WEIGHTS}"), path)?;
        }
    }
    Ok(hashes.by_field)
}

/// Hashes of all other files and folders that options name, by option: any text that reads like a
/// path and leads to something that is there, unless it is one of the words that the option may be.
///
/// # Errors
/// When one cannot be read.
pub fn files(wire: &Wire<'_>, step: &Step<'_>) -> Result<Map<String, Value>> {
    let listing = wire.registry.list();
    let mut hashes = Hashes::new(step);
    for (Slot { at: name, kind, .. }, table) in tables(wire) {
        let words = words(&listing, kind, &table.name);
        for (option, text) in texts(table) {
            let is_path = reads_like_a_path(&option, text) && !words.contains(text);
            if option != WEIGHTS && is_path && Path::new(text).exists() {
                let field = format!("{name}.{option}");
                hashes.add(field.clone(), &field, text)?;
            }
        }
    }
    if let Some(file) = &wire.manifest.attributes.file {
        let field = attributes::FIELD;
        hashes.add(field.into(), field, &file.to_string_lossy())?;
    }
    if let Some(folder) = &wire.manifest.synthesis.external {
        let field = "synthesis.external";
        hashes.add(field.into(), field, &folder.to_string_lossy())?;
    }
    Ok(hashes.by_field)
}

fn reads_like_a_path(option: &str, text: &str) -> bool {
    let name = option.rsplit('.').next().unwrap_or(option);
    let name = name.split('[').next().unwrap_or(name);
    let has_dot = text.trim_matches('.').contains('.');
    !text.is_empty() && (PATHS.contains(&name) || has_dot || text.contains(['/', '\\']))
}

/// Hashes by the field that names a path; a path that two fields name is read once.
struct Hashes<'a> {
    step: &'a Step<'a>,
    by_field: Map<String, Value>,
    by_path: BTreeMap<String, Value>,
}

impl<'a> Hashes<'a> {
    fn new(step: &'a Step<'a>) -> Self {
        Hashes {
            step,
            by_field: Map::new(),
            by_path: BTreeMap::new(),
        }
    }

    /// Adds the hash of `path`, which the option `field` names, as `key`.
    fn add(&mut self, key: String, field: &str, path: &str) -> Result<()> {
        let hash = match self.by_path.get(path) {
            Some(hash) => hash.clone(),
            None => {
                fingerprint::of(path.as_ref(), self.step).map_err(|error| match error.kind {
                    ErrorKind::Cancelled => error,
                    _ => error.context(format!("cannot read what `{field}` names")),
                })?
            }
        };
        self.by_path.insert(path.to_owned(), hash.clone());
        self.by_field.insert(key, hash);
        Ok(())
    }
}

/// The models of a hub that the options of `table` name, but for those of `without`, with the commits
/// that the cache has for them. After a stage was built these are the ones that it has.
pub fn hub_models(at: &str, table: &StageTable, without: &[&str]) -> Vec<(String, String)> {
    let Some(hub) = cache() else {
        return Vec::new();
    };
    let named = texts(table).into_iter();
    let named = named.filter(|(option, _)| !without.contains(&option.as_str()));
    let commits = named.filter_map(|(option, text)| {
        let commit = commit(&hub, text)?;
        Some((format!("{at}.{option}"), commit))
    });
    commits.collect()
}

/// The folder in which clients of the hub keep models.
fn cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = set("HF_HUB_CACHE") {
        return Some(PathBuf::from(cache));
    }
    let home = match set("HF_HOME") {
        Some(home) => PathBuf::from(home),
        None => env::home_dir()?.join(".cache/huggingface"),
    };
    Some(home.join("hub"))
}

/// The commit that the cache has for `org/name` or `org/name@revision`.
fn commit(cache: &Path, text: &str) -> Option<String> {
    let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
    let word = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
    };
    let (owner, name) = repo.split_once('/')?;
    let is_model = word(owner) && word(name) && revision.split('/').all(word);
    if !is_model || Path::new(text).exists() {
        return None;
    }
    let model = cache.join(format!("models--{owner}--{name}"));
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_commit(revision) {
        return fs::metadata(&model).ok().map(|_| revision.to_owned());
    }
    let noted = diffaug::files::read_text(&model.join("refs").join(revision), MOST_REF).ok()?;
    Some(noted.trim().to_owned()).filter(|noted| is_commit(noted))
}

/// Every text among the options of a table, by its path.
fn texts(table: &StageTable) -> Vec<(String, &str)> {
    fn walk<'a>(at: String, value: &'a Value, found: &mut Vec<(String, &'a str)>) {
        match value {
            Value::String(text) => found.push((at, text)),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    walk(format!("{at}[{index}]"), item, found);
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    walk(format!("{at}.{name}"), field, found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (name, value) in &table.options {
        walk(name.clone(), value, &mut found);
    }
    found
}

/// The words that options of a plugin may be (`"auto"`, `"bf16"`), which are no paths.
fn words(listing: &[Listing<'_>], kind: &str, name: &str) -> BTreeSet<String> {
    fn walk(schema: &Value, words: &mut BTreeSet<String>) {
        match schema {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match (key.as_str(), value) {
                        ("const", Value::String(word)) => drop(words.insert(word.clone())),
                        ("enum", Value::Array(all)) => {
                            let all = all.iter().filter_map(Value::as_str);
                            words.extend(all.map(str::to_owned));
                        }
                        _ => walk(value, words),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, words)),
            _ => {}
        }
    }
    let mut words = BTreeSet::new();
    let plugin = listing.iter().filter(|l| l.kind == kind && l.name == name);
    plugin.for_each(|l| walk(&l.schema, &mut words));
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_text_is_found_by_its_path() {
        let table: StageTable = serde_json::from_value(json!({
            "use": "x", "vae": "a", "steps": 3,
            "lora": [{"path": "b", "scale": 1.0}, {"path": "c"}], "train": {"base": "d"},
        }))
        .unwrap();
        let found = texts(&table);
        let found: Vec<(&str, &str)> = found.iter().map(|(at, t)| (at.as_str(), *t)).collect();
        let expected = [
            ("vae", "a"),
            ("lora[0].path", "b"),
            ("lora[1].path", "c"),
            ("train.base", "d"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_word_is_no_path_unless_the_option_says_so() {
        assert!(reads_like_a_path("vae", "word") && reads_like_a_path("lora[0]", "word"));
        assert!(reads_like_a_path("a.b[2].path", "word") && reads_like_a_path("x", "./word"));
        assert!(reads_like_a_path("x", "list.txt"));
        for text in ["", "word", ".", "..", "a polyp."] {
            assert!(!reads_like_a_path("topic", text), "{text}");
        }
    }

    #[test]
    fn the_cache_tells_the_commit_of_a_branch() {
        let dir = tempfile::tempdir().unwrap();
        let refs = dir.path().join("models--org--name/refs");
        fs::create_dir_all(refs.join("pr")).unwrap();
        let (one, other) = ("1".repeat(40), "a".repeat(40));
        fs::write(refs.join("main"), format!("{one}\n")).unwrap();
        fs::write(refs.join("pr/1"), &other).unwrap();
        fs::write(refs.join("odd"), "../../etc").unwrap();
        let found = |text| commit(dir.path(), text);
        assert_eq!(found("org/name"), Some(one));
        assert_eq!(found("org/name@pr/1"), Some(other.clone()));
        let pinned = format!("org/name@{other}");
        assert_eq!(found(&pinned), Some(other));
        for nothing in [
            "org/name@odd",
            "org/name@v2",
            "org/other",
            "name",
            "../name",
            "org/name@../../x",
            "taesdxl",
        ] {
            assert_eq!(found(nothing), None, "{nothing}");
        }
    }
}
