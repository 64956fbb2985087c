//! An error on its way to the user: the sentence, where in a manifest it belongs, and a hint.

use diffaug::Error;
use std::fmt;

/// What a command fails with.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong.
    pub error: Error,
    /// The place in a manifest, drawn with a caret.
    pub place: Option<String>,
    /// What the user may do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// Adds a hint.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// 1 where the user can mend it, 2 where we must, 130 after Ctrl-C.
    pub fn exit_code(&self) -> u8 {
        match self.error.kind {
            diffaug::ErrorKind::Cancelled => 130,
            _ if self.error.is_fault() => 2,
            _ => 1,
        }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure {
            error: error.into(),
            place: None,
            hint: None,
        }
    }
}

/// Longer words are no typing errors, and comparing takes the product of both lengths.
const LONGEST: usize = 64;

/// The name among `names` that `typed` was probably meant to be.
pub fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let names = names.into_iter();
    names
        .filter(|name| typed.len() <= LONGEST && name.len() <= LONGEST)
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

/// Names in backticks, separated by commas.
pub fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typing_errors_only() {
        let names = ["guidance", "steps", "sampler"];
        assert_eq!(nearest("guidence", names), Some("guidance"));
        assert_eq!(nearest("step", names), Some("steps"));
        assert_eq!(nearest("colour", names), None);
    }
}
