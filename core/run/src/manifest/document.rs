//! A manifest's text: inheritance, overrides, and the way back from a value to the line it was
//! written on.
//!
//! Files (`base = "…"`), then overrides (`--set a.b=c`) are laid over each other into one tree of
//! JSON values. For every value the tree remembers in which text and at which bytes it stands, so
//! that an error found much later, even inside a plugin, is drawn with a caret.

use crate::{
    escape,
    failure::{Failure, listed, nearest},
};
use diffaug::{Error, ResultExt, error::ErrorKind, files};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Manifests are written by hand.
const MOST_BYTES: u64 = 4 << 20;
/// How many manifests may be based on each other.
const MOST_BASES: usize = 32;
/// The table of an experiment whose keys may be whole paths.
const MATRIX: &str = "matrix";
/// How many tables and lists may lie in each other.
const MOST_LEVELS: usize = 32;

/// A text that values came from.
#[derive(Clone)]
struct Source {
    /// How to name it: a path, or `--set`.
    name: String,
    text: String,
}

/// Where a value stands.
#[derive(Clone, Debug, Default)]
struct Origin {
    source: usize,
    key: Range<usize>,
    value: Range<usize>,
}

/// A manifest as a tree of values that know where they were written.
#[derive(Clone, Default)]
pub struct Document {
    sources: Vec<Source>,
    root: Map<String, Value>,
    /// By dotted path.
    origins: BTreeMap<String, Origin>,
}

impl Document {
    /// Reads `file` and what it is based on, then applies `overrides` (`a.b=c`) in order.
    ///
    /// # Errors
    /// When a file is missing, is no TOML, or bases form a circle; when an override has no `=`.
    pub fn read(file: &Path, overrides: &[String]) -> Result<Self, Failure> {
        let mut document = Document::default();
        document.add_file(file, &mut Vec::new())?;
        for text in overrides {
            document.add_override(text)?;
        }
        Ok(document)
    }

    fn add_file(&mut self, file: &Path, chain: &mut Vec<PathBuf>) -> Result<(), Failure> {
        let shown = file.display();
        let cannot = || format!("cannot read manifest `{shown}`");
        let text = files::read_text(file, MOST_BYTES).or_error(ErrorKind::Data, cannot)?;
        // What some editors put in front of a text.
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        let real = std::fs::canonicalize(file).or_error(ErrorKind::Data, cannot)?;
        if chain.contains(&real) {
            return Err(Error::config(format!(
                "manifest `{shown}` is based on itself through `base`"
            ))
            .into());
        }
        if chain.len() >= MOST_BASES {
            return Err(Error::config(format!(
                "more than {MOST_BASES} manifests are based on each other through `base`, up to `{shown}`"
            ))
            .into());
        }
        chain.push(real);
        let source = self.sources.len();
        self.sources.push(Source {
            name: shown.to_string(),
            text: text.clone(),
        });
        let table = DeTable::parse(&text).map_err(|error| match error.span() {
            Some(span) => {
                let failure = Failure::from(Error::config(error.message()));
                self.draw(failure, source, span)
            }
            // The parser ends where keys or lists nest too deep, and does not say where.
            None => Error::config(too_many_levels("a value"))
                .context(cannot())
                .into(),
        })?;
        let table = table.into_inner();
        if let Some(key) = too_deep(&table) {
            let failure = Failure::from(Error::config(too_many_levels("a value")));
            return Err(self.draw(failure, source, key));
        }
        if let Some(base) = table.get("base") {
            let DeValue::String(name) = base.get_ref() else {
                let failure = Failure::from(Error::config("`base` must be the path of a manifest"));
                return Err(self.draw(failure, source, base.span()));
            };
            let base_file = file.parent().unwrap_or(Path::new("")).join(&**name);
            if !base_file.is_file() {
                let missing = Error::config(format!("`{}` does not exist", base_file.display()));
                return Err(self.draw(missing.into(), source, base.span()));
            }
            self.add_file(&base_file, chain)?;
        }
        for (key, value) in table {
            if key.get_ref() != "base" {
                self.lay(source, "", key, value)?;
            }
        }
        Ok(())
    }

    fn add_override(&mut self, text: &str) -> Result<(), Failure> {
        let Some((path, value)) = text.split_once('=') else {
            return Err(
                Error::config(format!("`--set {text}` needs the form `key.key=value`")).into(),
            );
        };
        let (path, value) = (path.trim(), value.trim());
        check_key(path)?;
        let source = self.sources.len();
        self.sources.push(Source {
            name: "--set".into(),
            text: text.into(),
        });
        let parsed = parse_value(value)?;
        let span = Origin {
            source,
            key: 0..path.len(),
            value: text.len() - value.len()..text.len(),
        };
        let (parents, leaf) = path.rsplit_once('.').unwrap_or(("", path));
        let parents: Vec<&str> = parents.split('.').filter(|p| !p.is_empty()).collect();
        let mut at = String::new();
        for parent in &parents {
            at = join(&at, parent);
            if !self.table_at(&at).is_some_and(Value::is_object) {
                self.put(&at, Value::Object(Map::new()), span.clone());
            }
        }
        // Another stage does not know the options of the one it replaces.
        if leaf == "use" && self.table_at(path).is_some_and(|old| *old != parsed) && !at.is_empty()
        {
            self.put(&at, Value::Object(Map::new()), span.clone());
        }
        self.put(path, parsed, span);
        Ok(())
    }

    /// Lays one entry of a file's table over what is there.
    fn lay(
        &mut self,
        source: usize,
        prefix: &str,
        key: Spanned<std::borrow::Cow<'_, str>>,
        value: Spanned<DeValue<'_>>,
    ) -> Result<(), Failure> {
        // A matrix may write them as texts: each value there is a list of its own.
        if prefix == MATRIX && key.get_ref().contains('.') {
            let origin = Origin {
                source,
                key: key.span(),
                value: value.span(),
            };
            return self.lay_dotted(key.get_ref(), to_json(value.get_ref()), &origin);
        }
        // Paths are written with dots, and no field or option has one in its name.
        if key.get_ref().contains('.') {
            let error = Error::config(format!("the key `{}` holds a dot", key.get_ref()));
            return Err(self.draw(error.into(), source, key.span()));
        }
        let path = join(prefix, key.get_ref());
        let origin = Origin {
            source,
            key: key.span(),
            value: value.span(),
        };
        let DeValue::Table(table) = value.get_ref() else {
            self.put(&path, to_json(value.get_ref()), origin);
            return Ok(());
        };
        let old = self.table_at(&path).filter(|v| v.is_object());
        let replaces = match (old.and_then(|old| old.get("use")), table.get("use")) {
            (Some(Value::String(old)), Some(new)) => {
                !matches!(new.get_ref(), DeValue::String(new) if *new == old.as_str())
            }
            _ => false,
        };
        if old.is_none() || replaces {
            self.put(&path, Value::Object(Map::new()), origin);
        } else {
            self.origins.insert(path.clone(), origin);
        }
        if let DeValue::Table(table) = value.into_inner() {
            for (key, value) in table {
                self.lay(source, &path, key, value)?;
            }
        }
        Ok(())
    }

    /// Lays the list of a matrix, whose key is a whole path.
    fn lay_dotted(&mut self, key: &str, value: Value, origin: &Origin) -> Result<(), Failure> {
        let mut at = MATRIX.to_owned();
        for part in key.split('.') {
            if part.is_empty() {
                let error = Error::config(format!("the key `{key}` has an empty part"));
                return Err(self.draw(error.into(), origin.source, origin.key.clone()));
            }
            if !self.table_at(&at).is_some_and(Value::is_object) {
                self.put(&at, Value::Object(Map::new()), origin.clone());
            }
            at = join(&at, part);
        }
        self.put(&at, value, origin.clone());
        Ok(())
    }

    /// Whether there is something under this key.
    pub fn has(&self, key: &str) -> bool {
        self.root.contains_key(key)
    }

    /// The value at a path.
    pub fn value(&self, path: &str) -> Option<&Value> {
        self.table_at(path)
    }

    /// Takes a key with all that is below it away.
    pub fn remove(&mut self, key: &str) {
        self.put(key, Value::Null, Origin::default());
        self.root.remove(key);
        self.origins.remove(key);
    }

    /// Lays `value` over what is at `path`, as a later file would; its places are those of `from` in
    /// `written`.
    pub fn overlay(&mut self, path: &str, value: &Value, from: &str, written: &Document) {
        let origin = written.origin(from);
        let origin = origin.map_or_else(Origin::default, |(_, origin)| origin.clone());
        let Value::Object(fields) = value else {
            self.put(path, value.clone(), origin);
            return;
        };
        let old = self.table_at(path).and_then(Value::as_object);
        let of = |fields: &Map<String, Value>| fields.get("use").cloned();
        // Another stage does not know the options of the one it replaces.
        let replaces = |old: &Map<String, Value>| matches!((of(old), of(fields)), (Some(old), Some(new)) if old != new);
        if !path.is_empty() && old.is_none_or(replaces) {
            self.put(path, Value::Object(Map::new()), origin);
        }
        for (key, value) in fields {
            self.overlay(&join(path, key), value, &join(from, key), written);
        }
    }

    fn table_at(&self, path: &str) -> Option<&Value> {
        let mut parts = path.split('.');
        let mut at = self.root.get(parts.next()?)?;
        for part in parts {
            at = at.as_object()?.get(part)?;
        }
        Some(at)
    }

    /// Sets the value at `path`, whose parents are tables, and forgets what stood below it.
    fn put(&mut self, path: &str, value: Value, origin: Origin) {
        let below = format!("{path}.");
        let old = self.origins.range(below.clone()..);
        let old: Vec<String> = old
            .map(|(p, _)| p.clone())
            .take_while(|p| p.starts_with(&below))
            .collect();
        for path in old {
            self.origins.remove(&path);
        }
        self.origins.insert(path.to_owned(), origin);
        let mut at = &mut self.root;
        let mut parts: Vec<&str> = path.split('.').collect();
        let Some(leaf) = parts.pop() else { return };
        for part in parts {
            let Some(Value::Object(next)) = at.get_mut(part) else {
                return;
            };
            at = next;
        }
        at.insert(leaf.to_owned(), value);
    }

    /// The tree as `T`.
    ///
    /// # Errors
    /// With the caret at the field that does not fit.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_path_to_error::deserialize(Value::Object(self.root.clone())).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." { "" } else { &path };
            let failure = self.failure("", Error::config(error.inner()).at(path));
            match failure.place {
                Some(_) => failure,
                None => failure.error.context(format!("`{}`", self.name())).into(),
            }
        })
    }

    /// Draws where `error` belongs: at its field below `prefix`, or as near to it as can be.
    pub fn failure(&self, prefix: &str, error: Error) -> Failure {
        let message = error.message.to_string();
        let mut path = join(prefix, &error.field);
        let unknown = message
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split('`').next());
        if let Some(name) = unknown
            && path.rsplit('.').next() != Some(name)
        {
            path = join(&path, name);
        }
        let is_key = unknown.is_some() || message.starts_with("missing field");
        let mut failure = Failure::from(error);
        if let Some(name) = unknown {
            let expected = message.split('`').skip(3).step_by(2);
            if let Some(near) = nearest(name, expected) {
                failure = failure.hint(format!("did you mean `{near}`?"));
            }
        }
        match self.origin(&path) {
            Some((exact, origin)) => {
                let span = if is_key || !exact {
                    origin.key.clone()
                } else {
                    origin.value.clone()
                };
                self.draw(failure, origin.source, span)
            }
            None => failure,
        }
    }

    /// [`Document::failure`] of a failure that has a hint of its own.
    pub fn place(&self, prefix: &str, failure: Failure) -> Failure {
        Failure {
            hint: failure.hint,
            ..self.failure(prefix, failure.error)
        }
    }

    /// The origin of `path` or of its nearest parent, and whether it is `path` itself.
    fn origin(&self, path: &str) -> Option<(bool, &Origin)> {
        let mut at = path;
        loop {
            if let Some(origin) = self.origins.get(at) {
                return Some((at == path, origin));
            }
            at = &at[..at.rfind(['.', '['])?];
        }
    }

    fn draw(&self, mut failure: Failure, source: usize, span: Range<usize>) -> Failure {
        let Source { name, text } = &self.sources[source];
        failure.place = Some(snippet(name, text, span));
        failure
    }

    /// The texts that were read, for messages: `a.toml`, or `b.toml (based on a.toml)`.
    pub fn name(&self) -> &str {
        self.sources.first().map_or("", |s| &s.name)
    }
}

fn join(prefix: &str, key: &str) -> String {
    match (prefix, key) {
        ("", key) => key.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, key) => format!("{prefix}.{key}"),
    }
}

/// Checks the key of an override: names with dots between them.
///
/// # Errors
/// When a name is empty, or there are too many.
pub fn check_key(path: &str) -> Result<(), Error> {
    let shown: String = path.chars().take(60).collect();
    if path.split('.').any(|part| part.trim().is_empty()) {
        return Err(Error::config(format!("`--set {shown}=…` has an empty key")));
    }
    if path.split('.').count() > MOST_LEVELS {
        let what = format!("`--set {shown}…`");
        return Err(Error::config(too_many_levels(&what)));
    }
    Ok(())
}

fn too_many_levels(what: &str) -> String {
    format!("{what} lies in more than {MOST_LEVELS} tables and lists, expected fewer")
}

/// Where a table is that lies too deep, if one does. By a list of what is still to be looked at:
/// keys with dots may nest some thousand tables, which calls of a function would not bear.
fn too_deep(table: &DeTable<'_>) -> Option<Range<usize>> {
    let mut left: Vec<(usize, &Spanned<DeValue<'_>>)> =
        table.iter().map(|(_, value)| (1, value)).collect();
    while let Some((level, value)) = left.pop() {
        if level > MOST_LEVELS {
            return Some(value.span());
        }
        match value.get_ref() {
            DeValue::Array(items) => left.extend(items.iter().map(|item| (level + 1, item))),
            DeValue::Table(table) => left.extend(table.iter().map(|(_, v)| (level + 1, v))),
            _ => {}
        }
    }
    None
}

/// An override's value: TOML where it is TOML, a string where it is not.
///
/// # Errors
/// When tables or lists lie too deep in it.
pub fn parse_value(text: &str) -> Result<Value, Error> {
    let document = format!("v = {text}");
    let Ok(table) = DeTable::parse(&document) else {
        return Ok(Value::String(text.to_owned()));
    };
    if too_deep(table.get_ref()).is_some() {
        return Err(Error::config(too_many_levels("a value of `--set`")));
    }
    let value = table.get_ref().get("v");
    Ok(match value.filter(|_| table.get_ref().len() == 1) {
        Some(value) => to_json(value.get_ref()),
        None => Value::String(text.to_owned()),
    })
}

fn to_json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(yes) => Value::Bool(*yes),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            let parsed = i64::from_str_radix(&digits, number.radix());
            parsed.map_or_else(|_| Value::String(digits), Value::from)
        }
        DeValue::Float(number) => {
            let parsed = number.as_str().replace('_', "").parse::<f64>();
            // JSON knows neither infinity nor NaN: those stay words, which no number field takes.
            parsed
                .ok()
                .and_then(serde_json::Number::from_f64)
                .map_or_else(|| Value::String(number.as_str().to_owned()), Value::Number)
        }
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => Value::Object(
            table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref())))
                .collect(),
        ),
    }
}

/// Characters of a line that are shown before and behind the place that is meant.
const AROUND: (usize, usize) = (80, 120);

/// `file:line:column`, the line, and carets below `span`.
fn snippet(name: &str, text: &str, span: Range<usize>) -> String {
    let start = floor(text, span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let number = text[..start].matches('\n').count() + 1;
    let column = text[line_start..start].chars().count();
    let end = floor(text, span.end).clamp(start, line_end);
    // Of a long line, what is near.
    let skipped = column.saturating_sub(AROUND.0);
    let before: String = text[line_start..start].chars().skip(skipped).collect();
    let meant: String = text[start..end].chars().take(AROUND.1).collect();
    let behind = text[end..line_end].trim_end_matches('\r').chars();
    let mut behind: String = behind.take(AROUND.1 + 1).collect();
    if behind.chars().count() > AROUND.1 {
        behind.pop();
        behind.push('…');
    }
    // Columns of a terminal: a tab is shown as one blank in both lines.
    let shown = |text: &str| escape::line(&text.replace('\t', " ")).into_owned();
    let before = format!("{}{}", if skipped > 0 { "…" } else { "" }, shown(&before));
    let meant = shown(&meant);
    let width = |text: &str| text.chars().count();
    let gutter = " ".repeat(number.to_string().len());
    format!(
        "{gutter}--> {}:{number}:{}\n{gutter} |\n{number} | {before}{meant}{}\n{gutter} | {}{}",
        escape::line(name),
        column + 1,
        shown(&behind),
        " ".repeat(width(&before)),
        "^".repeat(width(&meant).max(1))
    )
}

/// The last place up to `at` where a character begins.
fn floor(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// A sentence that lists what may stand at a place.
pub fn one_of<'a>(what: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    format!("{what} must be one of {}", listed(names))
}

#[cfg(test)]
mod tests;
