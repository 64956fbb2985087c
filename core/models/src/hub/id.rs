//! Names of checkpoints: a path on this machine, or a model of the hub at a revision.

use super::words;
use diffaug::{Error, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Bytes of the longest name of an owner or a model, and of a part of a revision.
const LONGEST_WORD: usize = 128;

/// A model of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Id {
    /// Reads `org/name` or `org/name@revision`.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_model = repo.split('/').count() == 2
            && repo.split('/').all(is_word)
            && revision.split('/').count() <= 8
            && revision.split('/').all(is_word)
            && !repo.ends_with(".safetensors");
        is_model.then(|| Id {
            repo: repo.to_owned(),
            revision: words::commit(revision).unwrap_or_else(|| revision.to_owned()),
        })
    }

    /// Whether the revision is a commit, which never changes.
    pub fn is_pinned(&self) -> bool {
        words::commit(&self.revision).is_some()
    }
}

fn is_word(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty()
        && name.len() <= LONGEST_WORD
        && !name.starts_with('.')
        && name.chars().all(plain)
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

/// What the name of a checkpoint stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Path(PathBuf),
    Model(Id),
}

impl Name {
    /// A path if there is one of this name, else a model of the hub.
    pub fn parse(weights: &str) -> Result<Self> {
        let path = Path::new(weights);
        if path.exists() {
            return Ok(Name::Path(path.to_owned()));
        }
        Id::parse(weights).map(Name::Model).ok_or_else(|| {
            Error::model(format!(
                "there is no folder or file `{}` (a model of the hub is named `org/name` or `org/name@revision`)",
                words::shown(weights)
            ))
            .at("weights")
        })
    }
}
