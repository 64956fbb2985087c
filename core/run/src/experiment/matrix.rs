//! The table `matrix` of a manifest: every combination of its values.

use super::MOST_CELLS;
use crate::{
    failure::Failure,
    manifest::{Document, fits_name},
};
use diffaug::Error;
use serde_json::Value;

/// Characters of the name of a group of cells.
const MOST_NAME: usize = 80;

/// A combination of the values of a matrix.
#[derive(Clone, Default)]
pub(super) struct Group {
    pub name: String,
    /// Paths, where they are written, and values.
    pub values: Vec<(String, String, Value)>,
}

/// Every combination of the values of the matrix; one of none without a matrix.
pub(super) fn groups(document: &Document) -> Result<Vec<Group>, Failure> {
    let mut axes = Vec::new();
    if let Some(matrix) = document.value("matrix") {
        flatten("", matrix, &mut axes);
    }
    let mut groups = vec![Group::default()];
    for (path, values) in axes {
        let at = format!("matrix.{path}");
        let Value::Array(values) = values else {
            let message = format!("`{at}` must be a list of the values that `{path}` is to have");
            return Err(document.failure("", Error::config(message).at(&at)));
        };
        if values.is_empty() {
            let message = format!("`{at}` lists no value");
            return Err(document.failure("", Error::config(message).at(&at)));
        }
        let names = names(values);
        let with = |group: &Group| -> Vec<Group> {
            let each = values.iter().zip(&names).map(|(value, name)| {
                let mut group = group.clone();
                if !group.name.is_empty() {
                    group.name.push('-');
                }
                group.name.push_str(name);
                group.values.push((path.clone(), at.clone(), value.clone()));
                group
            });
            each.collect()
        };
        groups = groups.iter().flat_map(with).collect();
        if groups.len() > MOST_CELLS {
            let message = format!("the matrix has more than {MOST_CELLS} combinations");
            return Err(document.failure("", Error::config(message).at("matrix")));
        }
    }
    Ok(groups)
}

/// The leaves of a table, with their dotted paths.
fn flatten<'a>(path: &str, value: &'a Value, leaves: &mut Vec<(String, &'a Value)>) {
    let Value::Object(fields) = value else {
        leaves.push((path.to_owned(), value));
        return;
    };
    for (key, value) in fields {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        flatten(&path, value, leaves);
    }
}

/// What values are called in the names of folders: the last part of a path, the plugin of a stage, the
/// value itself; with a number behind those that would be called alike.
fn names(values: &[Value]) -> Vec<String> {
    let name = |value: &Value| -> String {
        let text = match value {
            Value::String(text) => text
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .map(str::to_owned),
            Value::Object(fields) => fields
                .get("use")
                .and_then(|name| Some(name.as_str()?.to_owned())),
            _ => None,
        };
        let text = text.unwrap_or_else(|| value.to_string());
        let plain = |c: char| match fits_name(c) {
            true => c,
            false => '_',
        };
        let name: String = text.chars().take(MOST_NAME).map(plain).collect();
        match name.trim_start_matches('.') {
            "" => "none".to_owned(),
            name => name.to_owned(),
        }
    };
    let plain: Vec<String> = values.iter().map(name).collect();
    let alike = |name: &String| plain.iter().filter(|other| *other == name).count() > 1;
    let numbered = plain.iter().enumerate().map(|(i, name)| match alike(name) {
        true => format!("{name}-{i}"),
        false => name.clone(),
    });
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use super::names;
    use serde_json::json;

    #[test]
    fn values_are_called_by_what_tells_them_apart() {
        let values = [
            json!("data/Kvasir-SEG"),
            json!("data/CVC/"),
            json!(0.5),
            json!(true),
        ];
        assert_eq!(names(&values), ["Kvasir-SEG", "CVC", "0.5", "true"]);
        let alike = [json!("a/x"), json!("b/x"), json!(".."), json!("a b")];
        assert_eq!(names(&alike), ["x-0", "x-1", "none", "a_b"]);
    }
}
