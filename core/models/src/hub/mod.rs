//! Checkpoints by name: a folder or file on this machine, or a model of a hub, of which the needed
//! files are fetched into the cache that the hub's other clients use too.
//!
//! Environment: `HF_HOME` (the cache is `hub` in it) or `HF_HUB_CACHE` (the cache itself),
//! `HF_ENDPOINT` (another hub), `HF_TOKEN` (else the file that the hub's command line leaves: `token`
//! in `HF_HOME`, or `HF_TOKEN_PATH`), `HF_HUB_OFFLINE` (no request is made), `HF_HUB_DOWNLOAD_TIMEOUT`
//! (seconds without a byte after which an answer is given up).

mod cache;
mod client;
mod digest;
mod id;
mod pipeline;
mod revision;
mod transfer;
mod words;

use crate::checkpoint::OpenOptions;
use cache::Repo;
use client::{Client, Failure, Patience, Token};
use diffaug::{Error, Result};
use id::{Id, Name};
use pipeline::{Cached, Download, Wanted};
use revision::Revision;
use std::{
    env,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};
use transfer::Transfer;

const ENDPOINT: &str = "https://huggingface.co";
/// Bytes that are read of a file with a token.
const LONGEST_TOKEN: u64 = 4096;

/// The folder or file of the checkpoint that `weights` names: a path, or a model of the hub as
/// `org/name` or `org/name@revision`, where a revision is a branch, a tag or a commit. What the hub
/// sends is checked; the commit is reported; what is in the cache already is not fetched again.
///
/// # Errors
/// When there is no such path, or the hub cannot be reached, refuses or sends broken files, and the
/// cache has not everything.
pub fn locate(weights: &str, options: &OpenOptions) -> Result<PathBuf> {
    match Name::parse(weights)? {
        Name::Path(path) => Ok(path),
        Name::Model(id) => Hub::from_env()?.fetch(&id, Wanted::Pipeline(options)),
    }
}

/// Whether the checkpoint that `weights` names is on this machine; asks no hub.
pub fn is_there(weights: &str, options: &OpenOptions) -> bool {
    match Name::parse(weights) {
        Ok(Name::Path(_)) => true,
        Ok(Name::Model(id)) => Hub::from_env().is_ok_and(|hub| {
            let cached = hub.cached(&id, Wanted::Pipeline(options), false);
            matches!(cached, Ok(Some(_)))
        }),
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
        Name::Model(id) => Hub::from_env()?.fetch(&id, Wanted::Autoencoder),
    }
}

/// What a model of the hub was when it was fetched last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its folder in the cache.
    pub folder: PathBuf,
    /// The commit of 40 hexadecimal digits.
    pub commit: String,
}

/// The commit that a model of the hub was at when it was fetched last, and where it lies; `None` for
/// a path, and for a model of which nothing was fetched. Asks no hub: after [`locate`] it is what that
/// has found, whole or not where that failed.
///
/// # Errors
/// When `weights` names neither, or what the cache has noted cannot be used.
pub fn resolved(weights: &str) -> Result<Option<Resolved>> {
    match Name::parse(weights)? {
        Name::Path(_) => Ok(None),
        Name::Model(id) => Hub::from_env()?.resolved(&id),
    }
}

/// A hub and the cache for it.
#[derive(Debug)]
struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<Token>,
    /// Whether nothing is to be asked of it.
    offline: bool,
    patience: Patience,
}

impl Hub {
    fn from_env() -> Result<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(env::home_dir()?.join(".cache/huggingface")));
        let cache = set("HF_HUB_CACHE").map(PathBuf::from);
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::model("there is no home folder to keep models in: set HF_HOME")
        })?;
        let token = match set("HF_TOKEN") {
            Some(token) => Some(Token::parse(&token, "HF_TOKEN")?),
            None => {
                let named = set("HF_TOKEN_PATH").map(PathBuf::from);
                let path = named.or_else(|| Some(home?.join("token")));
                path.map_or(Ok(None), |path| token_file(&path))?
            }
        };
        let mut patience = Patience::default();
        let seconds = set("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok());
        if let Some(seconds) = seconds.filter(|seconds| (1..=3600).contains(seconds)) {
            patience.answer = Duration::from_secs(seconds);
        }
        let offline = set("HF_HUB_OFFLINE");
        Ok(Hub {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            cache,
            token,
            offline: offline.is_some_and(|value| value != "0" && value != "false"),
            patience,
        })
    }

    /// The folder of `id` in the cache, with all that is wanted of it.
    fn fetch(&self, id: &Id, wanted: Wanted<'_>) -> Result<PathBuf> {
        self.get(id, wanted).map_err(words::plain)
    }

    fn get(&self, id: &Id, wanted: Wanted<'_>) -> Result<PathBuf> {
        let cached = self.cached(id, wanted, true);
        let complete = |found: &&Cached| id.is_pinned() && found.as_wanted;
        if let Some(found) = cached
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .filter(complete)
        {
            return Ok(found.folder.clone());
        }
        let tries = match &cached {
            Ok(Some(_)) => self.patience.tries_if_cached,
            _ => self.patience.tries,
        };
        let cause = match self.online(id, wanted, tries) {
            Ok(folder) => return Ok(folder),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Unreachable(error) | Failure::Passing(error, _)) => words::plain(error),
        };
        match cached {
            Ok(Some(Cached { folder, .. })) => {
                let shown = folder.display();
                tracing::info!("the hub cannot be reached; `{id}` is taken from the cache, `{shown}`: {cause}");
                Ok(folder)
            }
            Ok(None) => Err(cause.context(format!(
                "cannot reach the hub for `{id}`: give a folder, or download it elsewhere and set HF_HOME"
            ))),
            Err(error) => Err(error.context(format!(
                "`{id}` in the cache cannot be used, and the hub cannot be reached ({cause})"
            ))),
        }
    }

    /// What is in the cache of `id`, if it is whole; `None` when nothing of it is. `thorough` compares
    /// its files with their hashes.
    fn cached(&self, id: &Id, wanted: Wanted<'_>, thorough: bool) -> Result<Option<Cached>> {
        let repo = Repo::new(&self.cache, id);
        match repo.commit(id)? {
            Some(commit) => pipeline::cached(&repo, &commit, wanted, thorough),
            None => Ok(None),
        }
    }

    fn resolved(&self, id: &Id) -> Result<Option<Resolved>> {
        let repo = Repo::new(&self.cache, id);
        let found = repo.commit(id)?.map(|commit| Resolved {
            folder: repo.snapshot(&commit),
            commit,
        });
        Ok(found.filter(|found| found.folder.is_dir()))
    }

    fn online(&self, id: &Id, wanted: Wanted<'_>, tries: usize) -> Result<PathBuf, Failure> {
        if self.offline {
            return Err(Failure::Unreachable(Error::model("HF_HUB_OFFLINE is set")));
        }
        let client = Client::new(&self.endpoint, self.token.clone(), self.patience)?;
        let revision = Revision::ask(&client, id, tries)?;
        let commit = &revision.commit;
        if !id.is_pinned() {
            tracing::info!("`{id}` is commit `{commit}`");
        }
        let repo = Repo::new(&self.cache, id);
        let download = Download {
            transfer: Transfer {
                client: &client,
                repo: &repo,
                id,
                commit,
            },
            revision: &revision,
        };
        let folder = download.fetch(wanted)?;
        // Before anything is read by a path that leads through links.
        repo.check_links(commit)?;
        if !id.is_pinned() {
            // So that the branch is found without the hub.
            repo.note(id, commit)?;
        }
        Ok(folder)
    }
}

/// The token in the file at `path`, if there is one.
fn token_file(path: &Path) -> Result<Option<Token>> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut text));
    match read.is_ok() && !text.trim().is_empty() {
        true => Token::parse(&text, &format!("`{}`", path.display())).map(Some),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests;
