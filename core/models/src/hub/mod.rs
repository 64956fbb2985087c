//! Checkpoints by name: a folder or file on this machine, or a model of a hub, of which the needed
//! files are fetched into the cache that the hub's other clients use too.
//!
//! Environment: `HF_HOME` (the cache), `HF_ENDPOINT` (another hub), `HF_TOKEN` (else the file that
//! the hub's command line leaves), `HF_HUB_OFFLINE` (no request is made).

mod fetch;

use crate::checkpoint::Options;
use diffaug::{Error, Result};
use fetch::Hub;
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The folder or file of the checkpoint that `weights` names: a path, or a model of the hub as
/// `org/name` or `org/name@revision`, where a revision is a branch, a tag or a commit. What the hub
/// sends is checked; the commit is reported; what is in the cache already is not fetched again.
///
/// # Errors
/// When there is no such path, or the hub cannot be reached, refuses or sends broken files, and the
/// cache has not everything.
pub fn locate(weights: &str, options: &Options) -> Result<PathBuf> {
    match Name::parse(weights)? {
        Name::Path(path) => Ok(path),
        Name::Model(id) => Hub::from_env()?.fetch(&id, options),
    }
}

/// Whether the checkpoint that `weights` names is on this machine; asks no hub.
pub fn is_there(weights: &str, options: &Options) -> bool {
    match Name::parse(weights) {
        Ok(Name::Path(_)) => true,
        Ok(Name::Model(id)) => Hub::from_env().is_ok_and(|hub| hub.cached(&id, options).is_ok()),
        Err(_) => false,
    }
}

/// [`locate`] for an autoencoder that is by itself, in the layout of diffusers.
///
/// # Errors
/// Those of [`locate`].
pub fn locate_autoencoder(name: &str) -> Result<PathBuf> {
    match Name::parse(name)? {
        Name::Path(path) => Ok(path),
        Name::Model(id) => Hub::from_env()?.fetch_autoencoder(&id),
    }
}

/// A model of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Id {
    repo: String,
    revision: String,
}

impl Id {
    /// Whether the revision is a commit, which never changes.
    fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

#[derive(Debug, PartialEq, Eq)]
enum Name {
    Path(PathBuf),
    Model(Id),
}

impl Name {
    fn parse(weights: &str) -> Result<Self> {
        let path = Path::new(weights);
        if path.exists() {
            return Ok(Name::Path(path.to_owned()));
        }
        let (repo, revision) = weights.split_once('@').unwrap_or((weights, "main"));
        let word = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
        };
        let is_model = repo.split('/').count() == 2
            && repo.split('/').all(word)
            && revision.split('/').all(word)
            && !repo.ends_with(".safetensors");
        if !is_model {
            return Err(Error::model(format!(
                "there is no folder or file `{weights}` (a model of the hub is named `org/name` or `org/name@revision`)"
            ))
            .at("weights"));
        }
        Ok(Name::Model(Id {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests;
