//! Fetching what a pipeline needs from a hub into its cache.

use super::{Id, is_commit};
use crate::checkpoint::{Checkpoint, Chosen, ModelIndex, Options, choose, read_json, shards};
use diffaug::{Error, Result};
use diffaug_nn::weights::Files;
use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{Api, ApiBuilder, ApiError},
    },
};
use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// How often a download that broke off is taken up again.
const RETRIES: usize = 2;
const ENDPOINT: &str = "https://huggingface.co";

/// The files of an autoencoder that is by itself.
const AUTOENCODER: [&str; 2] = ["config.json", "diffusion_pytorch_model.safetensors"];

/// A hub and the cache for it.
pub(super) struct Hub {
    pub endpoint: String,
    pub cache: Cache,
    pub token: Option<String>,
    /// Whether nothing is to be asked of it.
    pub offline: bool,
}

/// Why the hub did not give what was asked for.
enum Failure {
    /// It was not reached, or broke off.
    Unreachable(Error),
    /// It answered, and this is what is wrong.
    Refused(Error),
}

/// A revision of a model as the hub describes it.
struct Revision {
    commit: String,
    files: Vec<String>,
}

impl Hub {
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let home = match (set("HF_HOME"), env::home_dir()) {
            (Some(home), _) => PathBuf::from(home),
            (None, Some(home)) => home.join(".cache/huggingface"),
            (None, None) => {
                let error = "there is no home folder to keep models in: set HF_HOME";
                return Err(Error::model(error));
            }
        };
        let offline = set("HF_HUB_OFFLINE");
        Ok(Hub {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            cache: Cache::new(home.join("hub")),
            token: set("HF_TOKEN").map(|token| token.trim().to_owned()),
            offline: offline.is_some_and(|value| value != "0" && value != "false"),
        })
    }

    /// The folder of the pipeline `id` in the cache, complete.
    pub fn fetch(&self, id: &Id, options: &Options) -> Result<PathBuf> {
        let cached = self.cached(id, options);
        self.get(id, cached, |download| download.all(options))
    }

    /// The folder of the autoencoder `id` in the cache, complete.
    pub fn fetch_autoencoder(&self, id: &Id) -> Result<PathBuf> {
        let cached = self.snapshot(id).and_then(|folder| {
            let whole = AUTOENCODER.iter().all(|file| folder.join(file).is_file());
            match whole {
                true => Ok((folder, true)),
                false => Err(Error::model("it is not in the cache")),
            }
        });
        self.get(id, cached, |download| download.autoencoder())
    }

    /// What is in the cache, with whether it is just what is wanted, or what `fetch` fetches.
    fn get(
        &self,
        id: &Id,
        cached: Result<(PathBuf, bool)>,
        fetch: impl FnOnce(&Download<'_>) -> Result<PathBuf, Failure>,
    ) -> Result<PathBuf> {
        if let (true, Ok((folder, true))) = (id.is_pinned(), &cached) {
            return Ok(folder.clone());
        }
        let cause = match self.online(id, fetch) {
            Ok(folder) => return Ok(folder),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Unreachable(error)) => error,
        };
        match cached {
            Ok((folder, _)) => {
                tracing::info!("the hub cannot be reached; `{id}` is taken from the cache, `{}`", folder.display());
                Ok(folder)
            }
            Err(_) => Err(cause.context(format!(
                "cannot reach the hub for `{id}`: give a folder, or download it elsewhere and set HF_HOME"
            ))),
        }
    }

    /// The folder of `id` in the cache, as far as it is there.
    fn snapshot(&self, id: &Id) -> Result<PathBuf> {
        let place = self.cache.path().join(repo(id, "main").folder_name());
        let commit = match id.is_pinned() {
            true => id.revision.clone(),
            false => fs::read_to_string(place.join("refs").join(&id.revision))?,
        };
        Ok(place.join("snapshots").join(commit.trim()))
    }

    /// The folder of the pipeline `id` in the cache if it is whole, and whether all of its weights
    /// are of the variant that is wanted.
    pub fn cached(&self, id: &Id, options: &Options) -> Result<(PathBuf, bool)> {
        let folder = self.snapshot(id)?;
        let checkpoint = Checkpoint::open(&folder, options)?;
        for component in checkpoint.components() {
            // Reads the headers of its files, so that a broken one is found.
            component.source()?;
        }
        let as_wanted = checkpoint
            .components()
            .all(|c| c.variant == options.variant);
        Ok((folder, as_wanted))
    }

    fn online(
        &self,
        id: &Id,
        fetch: impl FnOnce(&Download<'_>) -> Result<PathBuf, Failure>,
    ) -> Result<PathBuf, Failure> {
        if self.offline {
            return Err(Failure::Unreachable(Error::model("HF_HUB_OFFLINE is set")));
        }
        let mut builder = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.trim_end_matches('/').to_owned())
            .with_progress(false)
            .with_retries(RETRIES);
        if self.token.is_some() {
            builder = builder.with_token(self.token.clone());
        }
        let api = builder.build().map_err(|error| failure(error, id, None))?;
        let revision = revision(&api, id)?;
        let commit = &revision.commit;
        if !id.is_pinned() {
            tracing::info!("`{id}` is commit `{commit}`");
        }
        let download = Download {
            api: &api,
            cache: &self.cache,
            id,
            repo: repo(id, commit),
            revision: &revision,
        };
        let folder = fetch(&download)?;
        if !id.is_pinned() {
            // So that the branch is found without the hub.
            let branch = self.cache.repo(repo(id, &id.revision));
            let noted = branch.create_ref(commit);
            noted.map_err(|error| Failure::Refused(error.into()))?;
        }
        Ok(folder)
    }
}

fn repo(id: &Id, revision: &str) -> Repo {
    Repo::with_revision(id.repo.clone(), RepoType::Model, revision.to_owned())
}

/// What the hub says of `id`.
fn revision(api: &Api, id: &Id) -> Result<Revision, Failure> {
    let info = api.repo(repo(id, &id.revision)).info();
    let info = info.map_err(|error| failure(error, id, None))?;
    if !is_commit(&info.sha) {
        let sha = info.sha;
        return Err(Failure::Refused(Error::model(format!(
            "the hub says that `{id}` is at `{sha}`, expected a commit of 40 digits"
        ))));
    }
    Ok(Revision {
        commit: info.sha,
        files: info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect(),
    })
}

/// What an error of the hub's client means, met at `file` or at the description of `id`.
fn failure(error: ApiError, id: &Id, file: Option<&str>) -> Failure {
    let error = match error {
        ApiError::TooManyRetries(last) => *last,
        other => other,
    };
    let cannot = match file {
        Some(file) => format!("cannot fetch `{file}` of `{id}`"),
        None => format!("cannot ask for `{id}`"),
    };
    match error {
        ApiError::RequestError(request) => match *request {
            ureq::Error::StatusCode(code) => Failure::Refused(status(code, id, file)),
            other => Failure::Unreachable(Error::model(other).context(cannot)),
        },
        ApiError::IoError(io) if !is_local(io.kind()) => {
            Failure::Unreachable(Error::model(io).context(cannot))
        }
        other => Failure::Refused(Error::model(other).context(cannot)),
    }
}

/// Whether an error is that of a disk, not of a connection.
fn is_local(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::PermissionDenied
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::AlreadyExists
    )
}

/// What a status that is no success means.
fn status(code: u16, id: &Id, file: Option<&str>) -> Error {
    Error::model(match (code, file) {
        (401 | 403, _) => format!(
            "the hub refuses `{id}` (status {code}): it is gated, private or not there; accept its terms in a browser and set HF_TOKEN"
        ),
        (404, None) => format!("the hub has no revision `{}` of `{}`", id.revision, id.repo),
        (404, Some(file)) => format!("`{id}` has no file `{file}` on the hub"),
        _ => format!("the hub answered with status {code} for `{id}`"),
    })
}

/// The fetching of one revision.
struct Download<'a> {
    api: &'a Api,
    cache: &'a Cache,
    id: &'a Id,
    /// At the commit, so that all files are of one state.
    repo: Repo,
    revision: &'a Revision,
}

impl Download<'_> {
    /// Fetches what the pipeline needs and is not there, and nothing else.
    fn all(&self, options: &Options) -> Result<PathBuf, Failure> {
        let index = "model_index.json";
        if !self.has(index) {
            return Err(Failure::Refused(Error::model(format!(
                "`{}` has no `{index}`: it is no pipeline in the layout of diffusers",
                self.id
            ))));
        }
        let path = self.file(index)?;
        let plan = || ModelIndex::parse(&read_json(&path)?, &path);
        let pipeline = plan().map_err(Failure::Refused)?;
        self.file_if_there("scheduler/scheduler_config.json")?;
        for tokenizer in pipeline.tokenizers() {
            for file in [
                "vocab.json",
                "merges.txt",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
            ] {
                self.file_if_there(&format!("{tokenizer}/{file}"))?;
            }
        }
        for (network, _) in pipeline.networks() {
            self.file_if_there(&format!("{network}/config.json"))?;
            self.weights(network, options)?;
        }
        let folder = self.folder();
        let opened = Checkpoint::open(&folder, options).map(|_| folder);
        opened.map_err(|error| {
            Failure::Refused(error.context(format!("`{}` cannot be used", self.id)))
        })
    }

    /// Fetches an autoencoder that is by itself.
    fn autoencoder(&self) -> Result<PathBuf, Failure> {
        for file in AUTOENCODER {
            self.file(file)?;
        }
        Ok(self.folder())
    }

    fn weights(&self, network: &str, options: &Options) -> Result<(), Failure> {
        let prefix = format!("{network}/");
        let own = |file: &String| Some(file.strip_prefix(&prefix)?.to_owned());
        let files: Vec<String> = self.revision.files.iter().filter_map(own).collect();
        let (chosen, _) = choose(network, &files, options.variant.as_deref()).map_err(|error| {
            Failure::Refused(error.context(format!("`{}` cannot be used", self.id)))
        })?;
        match chosen {
            Chosen::File(file) => self.file(&format!("{prefix}{file}")).map(drop),
            Chosen::Index(list) => {
                let list = self.file(&format!("{prefix}{list}"))?;
                for file in shards(&list).map_err(Failure::Refused)? {
                    self.file(&format!("{prefix}{file}"))?;
                }
                Ok(())
            }
        }
    }

    fn folder(&self) -> PathBuf {
        self.cache
            .repo(self.repo.clone())
            .pointer_path(&self.revision.commit)
    }

    fn has(&self, file: &str) -> bool {
        self.revision.files.iter().any(|name| name == file)
    }

    fn file_if_there(&self, file: &str) -> Result<(), Failure> {
        if self.has(file) {
            self.file(file)?;
        }
        Ok(())
    }

    /// The path of `file` in the cache, fetched if it is not there or broken.
    fn file(&self, file: &str) -> Result<PathBuf, Failure> {
        let path = self.folder().join(file);
        if path.exists() && sound(&path).is_ok() {
            return Ok(path);
        }
        // A link to a file that is gone would be in the way too.
        discard(&path);
        let fail = |error| failure(error, self.id, Some(file));
        let repo = self.api.repo(self.repo.clone());
        let metadata = self.api.metadata(&repo.url(file)).map_err(fail)?;
        let size = metadata.size() as u64;
        // What an earlier attempt left is taken up, unless there is nothing to be added to it.
        let part = self
            .cache
            .repo(self.repo.clone())
            .blob_path(metadata.etag());
        let part = part.with_extension("part");
        if fs::metadata(&part).is_ok_and(|part| part.len() >= size) {
            fs::remove_file(&part).ok();
        }
        let progress = Report::new(file, size);
        let path = repo.download_with_progress(file, progress).map_err(fail)?;
        check(&path, size).map_err(|error| {
            discard(&path);
            Failure::Refused(error.context(format!("`{file}` of `{}` came broken", self.id)))
        })?;
        Ok(path)
    }
}

/// Checks that the file at `path` has `size` bytes and, if it holds tensors, is whole.
fn check(path: &Path, size: u64) -> Result<()> {
    let found = fs::metadata(path)?.len();
    if found != size {
        return Err(Error::model(format!(
            "it has {found} bytes, expected {size}"
        )));
    }
    sound(path)
}

fn sound(path: &Path) -> Result<()> {
    if path.extension().is_some_and(|end| end == "safetensors") {
        Files::open(&[path])?;
    }
    Ok(())
}

/// Removes a file of the cache and what it is a link to.
fn discard(path: &Path) {
    if let Ok(blob) = fs::canonicalize(path) {
        fs::remove_file(blob).ok();
    }
    fs::remove_file(path).ok();
}

/// Tells of the progress of a file at every tenth of it.
struct Report {
    file: String,
    size: u64,
    done: u64,
    told: u64,
}

impl Report {
    /// Smaller files are not worth more than a word.
    const LARGE: u64 = 100 << 20;

    fn new(file: &str, size: u64) -> Self {
        tracing::info!("fetching `{file}` ({} MB)", size.div_ceil(1_000_000));
        Report {
            file: file.to_owned(),
            size,
            done: 0,
            told: 0,
        }
    }
}

impl Progress for Report {
    fn init(&mut self, _: usize, _: &str) {
        self.done = 0;
    }

    fn update(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let tenth = self.done * 10 / self.size.max(1);
        if self.size >= Report::LARGE && tenth > self.told {
            self.told = tenth;
            tracing::info!("`{}`: {} %", self.file, tenth * 10);
        }
    }

    fn finish(&mut self) {}
}
