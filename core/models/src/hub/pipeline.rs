//! Which files of a model are needed, and whether those in the cache are whole.

use super::{
    cache::Repo,
    client::Failure,
    id::Id,
    revision::{Revision, missing},
    transfer::{Transfer, sound},
    words,
};
use crate::checkpoint::{Checkpoint, Chosen, ModelIndex, OpenOptions, choose, read_json, shards};
use diffaug::{Error, Result};
use std::path::{Path, PathBuf};

/// The description of a pipeline.
const INDEX: &str = "model_index.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// What a model that was trained here says of how it wants to be used.
const OWN: &str = "diffaug.json";
/// What an adapter that was trained here says of the model that it belongs to, and itself.
const BASE: &str = "base.json";
const ADAPTER: &str = "pytorch_lora_weights.safetensors";
/// The files of an autoencoder that is by itself.
const AUTOENCODER: [&str; 2] = ["config.json", "diffusion_pytorch_model.safetensors"];
/// What a tokenizer may consist of.
const TOKENIZER: [&str; 6] = [
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
/// The most files that a network may be in.
const MOST_SHARDS: usize = 1024;

/// What is wanted of a model.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// A pipeline, or an adapter that was trained here.
    Pipeline(&'a OpenOptions),
    /// An autoencoder by itself.
    Autoencoder,
}

/// A model in the cache, whole.
pub(super) struct Cached {
    pub folder: PathBuf,
    /// Whether all of its weights are of the variant that is wanted.
    pub as_wanted: bool,
}

/// The snapshot at `commit` if it is there; whether its files are those that they are named after is
/// checked where `thorough`.
///
/// # Errors
/// When it is there in part or damaged, or a link leads out of the cache.
pub(super) fn cached(
    repo: &Repo,
    commit: &str,
    wanted: Wanted<'_>,
    thorough: bool,
) -> Result<Option<Cached>> {
    repo.check_links(commit)?;
    let folder = repo.snapshot(commit);
    if !folder.is_dir() {
        return Ok(None);
    }
    let snapshot = Snapshot {
        repo,
        commit,
        folder: &folder,
        thorough,
    };
    let as_wanted = match wanted {
        Wanted::Autoencoder => {
            snapshot.expect(&AUTOENCODER)?;
            true
        }
        Wanted::Pipeline(_) if is_adapter(&folder) => {
            snapshot.expect(&[BASE, ADAPTER])?;
            check_base(&folder.join(BASE))?;
            snapshot.compare(&[OWN.to_owned()])?;
            true
        }
        Wanted::Pipeline(options) => snapshot.pipeline(options)?,
    };
    Ok(Some(Cached { folder, as_wanted }))
}

/// Whether the folder is that of an adapter, which belongs to a model elsewhere.
fn is_adapter(folder: &Path) -> bool {
    folder.join(BASE).is_file() && !folder.join(INDEX).is_file()
}

/// A snapshot that is looked at.
struct Snapshot<'a> {
    repo: &'a Repo,
    commit: &'a str,
    folder: &'a Path,
    thorough: bool,
}

impl Snapshot<'_> {
    /// Checks the files of a pipeline, and returns whether its weights are of the variant that is
    /// wanted.
    fn pipeline(&self, options: &OpenOptions) -> Result<bool> {
        self.compare(&[INDEX.to_owned()])?;
        let checkpoint = Checkpoint::open(self.folder, options)?;
        for component in checkpoint.components() {
            // Reads the headers of its files, so that a broken one is found.
            component.source()?;
        }
        let index = self.folder.join(INDEX);
        let pipeline = ModelIndex::parse(&read_json(&index)?, &index)?;
        let mut files = small_files(&pipeline);
        for path in checkpoint.components().flat_map(|part| part.files()) {
            let name = path.strip_prefix(self.folder).unwrap_or(path);
            files.push(name.to_string_lossy().into_owned());
        }
        self.compare(&files)?;
        Ok(checkpoint
            .components()
            .all(|c| c.variant == options.variant))
    }

    /// Checks that `files` are there, and whole.
    fn expect(&self, files: &[&str]) -> Result<()> {
        for file in files {
            let folder = self.folder.display();
            let real = self.repo.entry(self.commit, file)?;
            let real = real.ok_or_else(|| Error::model(format!("`{folder}` has no `{file}`")))?;
            sound(&real, file)?;
        }
        let names: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        self.compare(&names)
    }

    /// Checks those of `files` that are there against the hashes that they are named after.
    fn compare(&self, files: &[String]) -> Result<()> {
        for file in files.iter().filter(|_| self.thorough) {
            if let Some(real) = self.repo.entry(self.commit, file)? {
                let path = self.folder.join(file);
                let verified = self.repo.verify(&real);
                verified
                    .map_err(|error| error.context(format!("`{}` is damaged", path.display())))?;
            }
        }
        Ok(())
    }
}

/// The files of a pipeline that are no weights, as far as it has them.
fn small_files(pipeline: &ModelIndex) -> Vec<String> {
    let mut files: Vec<String> = [SCHEDULER, OWN].map(str::to_owned).into();
    for tokenizer in pipeline.tokenizers() {
        files.extend(TOKENIZER.map(|file| format!("{tokenizer}/{file}")));
    }
    for (network, _) in pipeline.networks() {
        files.extend(["config.json", OWN].map(|file| format!("{network}/{file}")));
    }
    files
}

/// Checks that the adapter whose `base.json` is at `path` belongs to a model of a hub. A path in it is
/// one on the machine of whoever shared it, and would be read on this one.
fn check_base(path: &Path) -> Result<()> {
    let base = &read_json(path)?["base"];
    match base.as_str().and_then(Id::parse) {
        Some(_) => Ok(()),
        None => Err(Error::model(format!(
            "`base` in `{}` is {}, expected a model of a hub, `org/name`",
            path.display(),
            words::shown(&base.to_string())
        ))),
    }
}

/// The fetching of what is needed of one revision.
pub(super) struct Download<'a> {
    pub transfer: Transfer<'a>,
    pub revision: &'a Revision,
}

impl Download<'_> {
    /// Fetches what is wanted and is not there, and nothing else. Returns the folder.
    pub fn fetch(&self, wanted: Wanted<'_>) -> Result<PathBuf, Failure> {
        match wanted {
            Wanted::Autoencoder => {
                for file in AUTOENCODER {
                    self.file(file)?;
                }
                self.file_if_there(OWN)?;
            }
            Wanted::Pipeline(_) if self.revision.has(BASE) && !self.revision.has(INDEX) => {
                let base = self.file(BASE)?;
                check_base(&base).map_err(|error| self.unusable(error))?;
                self.file(ADAPTER)?;
                self.file_if_there(OWN)?;
            }
            Wanted::Pipeline(options) => self.pipeline(options)?,
        }
        Ok(self.folder())
    }

    fn pipeline(&self, options: &OpenOptions) -> Result<(), Failure> {
        if !self.revision.has(INDEX) {
            return Err(Failure::Refused(Error::model(format!(
                "`{}` has no `{INDEX}`: it is no pipeline in the layout of diffusers",
                self.transfer.id
            ))));
        }
        let path = self.file(INDEX)?;
        let plan = || ModelIndex::parse(&read_json(&path)?, &path);
        let pipeline = plan()?;
        for file in small_files(&pipeline) {
            self.file_if_there(&file)?;
        }
        for (network, _) in pipeline.networks() {
            self.weights(network, options)?;
        }
        let opened = Checkpoint::open(&self.folder(), options);
        opened.map_err(|error| self.unusable(error)).map(drop)
    }

    fn weights(&self, network: &str, options: &OpenOptions) -> Result<(), Failure> {
        let prefix = format!("{network}/");
        let own = |file: &String| Some(file.strip_prefix(&prefix)?.to_owned());
        let files: Vec<String> = self.revision.files.iter().filter_map(own).collect();
        let (chosen, _) = choose(network, &files, options.variant.as_deref())
            .map_err(|error| self.unusable(error))?;
        match chosen {
            Chosen::File(file) => self.file(&format!("{prefix}{file}")).map(drop),
            Chosen::Index(list) => {
                let list = self.file(&format!("{prefix}{list}"))?;
                let files = shards(&list)?;
                if files.len() > MOST_SHARDS {
                    return Err(self.unusable(Error::model(format!(
                        "`{}` names {} files, expected at most {MOST_SHARDS}",
                        list.display(),
                        files.len()
                    ))));
                }
                for file in files {
                    self.file(&format!("{prefix}{file}"))?;
                }
                Ok(())
            }
        }
    }

    fn folder(&self) -> PathBuf {
        self.transfer.repo.snapshot(self.transfer.commit)
    }

    fn unusable(&self, error: Error) -> Failure {
        Failure::Refused(error.context(format!("`{}` cannot be used", self.transfer.id)))
    }

    fn file_if_there(&self, file: &str) -> Result<(), Failure> {
        if self.revision.has(file) {
            self.file(file)?;
        }
        Ok(())
    }

    /// The path of `file` in the cache, fetched if it is not there or broken.
    fn file(&self, file: &str) -> Result<PathBuf, Failure> {
        let Transfer {
            repo, id, commit, ..
        } = self.transfer;
        if !self.revision.has(file) {
            return Err(Failure::Refused(Error::model(missing(id, file))));
        }
        let whole = |real: &Path| repo.verify(real).is_ok() && sound(real, file).is_ok();
        if !repo.entry(commit, file)?.is_some_and(|real| whole(&real)) {
            self.transfer.fetch(file)?;
        }
        Ok(self.folder().join(file))
    }
}
