//! The fetching of one file: what the hub says of it, its bytes, resumed where they broke off, and
//! the proof that they are the right ones.

use super::{
    cache::{Repo, cannot},
    client::{Answer, Client, Failure, text},
    digest,
    id::Id,
    revision::{accept, address},
    words,
};
use diffaug::{Error, Result};
use diffaug_nn::weights::Files;
use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::Path,
};

/// Bytes of the largest file of weights, and of any other, which is read into memory.
const LARGEST: u64 = 1 << 40;
const LARGEST_OTHER: u64 = 64 << 20;
/// After so many bytes of a download its failed tries are forgotten.
const PROGRESS: u64 = 1 << 20;

/// The fetching of files of one commit.
pub(super) struct Transfer<'a> {
    pub client: &'a Client,
    pub repo: &'a Repo,
    pub id: &'a Id,
    pub commit: &'a str,
}

/// What the hub says of a file.
#[derive(Debug, Default)]
struct About {
    /// The name of its blob.
    etag: Option<String>,
    commit: Option<String>,
    size: Option<u64>,
}

/// What came of a download.
enum Outcome {
    Whole,
    /// More than the hub said that there would be.
    Longer,
}

impl Transfer<'_> {
    /// Fetches `file` into the cache, where it is missing or broken.
    pub fn fetch(&self, file: &str) -> Result<(), Failure> {
        if !words::is_file_name(file) {
            return Err(self.refused(format!(
                "`{}` names a file `{}`, expected a name inside its folder",
                self.id,
                words::shown(file)
            )));
        }
        let fetch = || -> Result<(), Failure> {
            let tries = self.client.patience.tries;
            let (etag, size) = self.client.patiently(tries, || self.ask(file))?;
            let _lock = self.repo.lock(&etag, self.client.patience.lock)?;
            let real = match self.repo.blob(&etag)? {
                Some(real) if self.is_sound(&real, file, size) => real,
                _ => self.download(file, &etag, size)?,
            };
            self.repo.link(self.commit, file, &etag)?;
            self.repo.mark(&real);
            Ok(())
        };
        let place = || format!("cannot fetch `{}` of `{}`", words::shown(file), self.id);
        fetch().map_err(|failure| failure.context(place()))
    }

    /// Whether the blob at `real` is what `file`, of `size` bytes, should be.
    fn is_sound(&self, real: &Path, file: &str, size: u64) -> bool {
        fs::metadata(real).is_ok_and(|meta| meta.len() == size)
            && self.repo.verify(real).is_ok()
            && sound(real, file).is_ok()
    }

    /// The name of the blob of `file`, and its size.
    fn ask(&self, file: &str) -> Result<(String, u64), Failure> {
        let path = address(self.id, self.commit, file);
        let answer = accept(
            self.client.get(&path, Some("bytes=0-0"))?,
            self.id,
            Some(file),
        )?;
        let about = self.about(&answer, file)?;
        let lacks = |header: &str| {
            let file = words::shown(file);
            self.refused(format!(
                "the hub's answer for `{file}` of `{}` has no `{header}`, which a hub of models sends",
                self.id
            ))
        };
        let etag = about.etag.ok_or_else(|| lacks("ETag"))?;
        about.commit.ok_or_else(|| lacks("x-repo-commit"))?;
        let size = about
            .size
            .or_else(|| total(&answer))
            .ok_or_else(|| lacks("Content-Range"))?;
        let largest = match file.ends_with(".safetensors") {
            true => LARGEST,
            false => LARGEST_OTHER,
        };
        if size > largest {
            return Err(self.refused(format!(
                "`{}` of `{}` has {size} bytes, expected at most {largest}",
                words::shown(file),
                self.id
            )));
        }
        Ok((etag, size))
    }

    /// What the hub itself says on the way to an answer, checked.
    fn about(&self, answer: &Answer, file: &str) -> Result<About, Failure> {
        let mut about = About::default();
        let file = words::shown(file);
        let (mut linked, mut own) = (None, None);
        for headers in &answer.from_hub {
            if let Some(said) = headers.get("x-repo-commit") {
                let said = String::from_utf8_lossy(said.as_bytes());
                if words::commit(&said).as_deref() != Some(self.commit) {
                    return Err(self.refused(format!(
                        "the hub sends `{file}` of `{}` at `{}`, expected the commit `{}`",
                        self.id,
                        words::shown(&said),
                        self.commit
                    )));
                }
                about.commit = Some(self.commit.to_owned());
            }
            // That of a large file, which lies elsewhere, goes before that of an answer, and a later
            // answer before one that sends on.
            linked = linked.or(headers.get("x-linked-etag"));
            own = headers.get("etag").or(own);
            let size = text(headers, "x-linked-size").and_then(|size| size.trim().parse().ok());
            about.size = about.size.or(size);
        }
        if let Some(said) = linked.or(own) {
            let said = String::from_utf8_lossy(said.as_bytes());
            let etag = words::etag(&said).ok_or_else(|| {
                self.refused(format!(
                    "the hub sends `{file}` of `{}` with the ETag `{}`, which is no name for a file",
                    self.id,
                    words::shown(&said)
                ))
            })?;
            about.etag = Some(etag);
        }
        if encoding(answer).is_some() {
            return Err(self.refused(format!(
                "the hub sends `{file}` of `{}` compressed, which nobody asked for",
                self.id
            )));
        }
        Ok(about)
    }

    /// Fetches the blob `etag`; one that turns out to be another is fetched once more from its start.
    /// Returns where it lies.
    fn download(&self, file: &str, etag: &str, size: u64) -> Result<std::path::PathBuf, Failure> {
        let part = self.repo.open_part(etag)?;
        let path = self.repo.part(etag)?;
        let mut broken = Error::model("it is empty");
        for _ in 0..2 {
            let outcome = self.fill(&part, file, etag, size)?;
            match check(&path, file, etag, size, &outcome) {
                Ok(()) => return Ok(self.repo.keep(&part, etag)?),
                Err(error) => {
                    broken = words::plain(error);
                    tracing::info!("`{}` came broken: {broken}", words::shown(file));
                }
            }
            part.set_len(0)
                .map_err(|error| cannot("write", &path, error))?;
        }
        drop(part);
        fs::remove_file(&path).ok();
        let message = format!("`{}` of `{}` came broken", words::shown(file), self.id);
        Err(Failure::Refused(broken.context(message)))
    }

    /// Adds to `part` what it lacks of the `size` bytes of `file`. What came is kept when this fails.
    fn fill(&self, part: &File, file: &str, etag: &str, size: u64) -> Result<Outcome, Failure> {
        let length = || Ok::<u64, Failure>(part.metadata().map_err(Error::from)?.len());
        if length()? > size {
            part.set_len(0).map_err(Error::from)?;
        }
        let mut report = Report::new(file, size);
        let (mut from, mut tried, mut best) = (length()?, 0, length()?);
        while from < size {
            match self.read_on(part, file, etag, (from, size), &mut report) {
                Ok(Outcome::Longer) => return Ok(Outcome::Longer),
                Ok(Outcome::Whole) => return Ok(Outcome::Whole),
                Err(Interruption::Broke(Failure::Passing(error, wait))) => {
                    from = length()?;
                    if from >= best + PROGRESS {
                        (tried, best) = (0, from);
                    }
                    tried += 1;
                    if tried >= self.client.patience.tries {
                        return Err(Failure::Passing(error, wait));
                    }
                    self.client.pause(tried, error, wait)?;
                }
                Err(Interruption::Broke(failure)) => return Err(failure),
                Err(Interruption::Elsewhere(error)) => {
                    tried += 1;
                    if from == 0 || tried >= self.client.patience.tries {
                        return Err(Failure::Unreachable(error));
                    }
                    from = 0;
                }
            }
        }
        Ok(Outcome::Whole)
    }

    /// Reads the bytes of `file` from `from` up to `size` into `part`, in one try.
    fn read_on(
        &self,
        mut part: &File,
        file: &str,
        etag: &str,
        (from, size): (u64, u64),
        report: &mut Report,
    ) -> Result<Outcome, Interruption> {
        let path = address(self.id, self.commit, file);
        let answer = self.client.get(&path, Some(&format!("bytes={from}-")))?;
        let mut answer = accept(answer, self.id, Some(file))?;
        let about = self.about(&answer, file)?;
        if about.etag.as_deref().is_some_and(|other| other != etag) {
            return Err(Interruption::Broke(self.refused(format!(
                "the hub changed `{}` of `{}` while it was fetched",
                words::shown(file),
                self.id
            ))));
        }
        let mut at = start(&answer, from, size)?;
        let place = self.repo.part(etag).map_err(Failure::from)?;
        let write = |error| Interruption::Broke(cannot("write", &place, error).into());
        part.seek(SeekFrom::Start(at)).map_err(write)?;
        let mut buffer = vec![0; 256 << 10];
        while at < size {
            let most = buffer
                .len()
                .min((size - at).try_into().unwrap_or(usize::MAX));
            let count = answer
                .body
                .read(&mut buffer[..most], &self.client.patience)?;
            if count == 0 {
                let error = format!("the answer broke off after {at} of {size} bytes");
                return Err(Interruption::Broke(Failure::Passing(
                    Error::model(error),
                    None,
                )));
            }
            part.write_all(&buffer[..count]).map_err(write)?;
            at += count as u64;
            report.at(at);
        }
        let more = answer.body.read(&mut buffer[..1], &self.client.patience);
        Ok(match more {
            Ok(1..) => Outcome::Longer,
            _ => Outcome::Whole,
        })
    }

    fn refused(&self, message: String) -> Failure {
        Failure::Refused(Error::model(message))
    }
}

/// Why a try of a download ended.
enum Interruption {
    Broke(Failure),
    /// The answer begins elsewhere in the file.
    Elsewhere(Error),
}

impl From<Failure> for Interruption {
    fn from(failure: Failure) -> Self {
        Interruption::Broke(failure)
    }
}

/// Where in a file of `size` bytes an answer to the question for those from `from` on begins.
fn start(answer: &Answer, from: u64, size: u64) -> Result<u64, Interruption> {
    let elsewhere = |said: &str| {
        let said = words::shown(said);
        Err(Interruption::Elsewhere(Error::model(format!(
            "the hub sends other bytes than those from {from} on of {size}: {said}"
        ))))
    };
    match answer.status {
        200 => return Ok(0),
        416 => return elsewhere("it says that there are none"),
        _ => {}
    }
    let Some(range) = text(&answer.headers, "content-range") else {
        return Ok(from);
    };
    let parse = || {
        let (part, total) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
        let start: u64 = part.split_once('-')?.0.trim().parse().ok()?;
        let whole = total == "*" || total.trim().parse() == Ok(size);
        (start <= from && whole).then_some(start)
    };
    match parse() {
        Some(start) => Ok(start),
        None => elsewhere(range),
    }
}

/// The size of the whole file that an answer gives a part of.
fn total(answer: &Answer) -> Option<u64> {
    match text(&answer.headers, "content-range") {
        Some(range) => range.rsplit_once('/')?.1.trim().parse().ok(),
        None if answer.status == 200 => text(&answer.headers, "content-length")?.parse().ok(),
        None => None,
    }
}

/// The compression of an answer, which nobody asked for.
fn encoding(answer: &Answer) -> Option<&str> {
    let encoding = text(&answer.headers, "content-encoding")?.trim();
    (!encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
}

/// Checks that what came of `file` is whole and the one that its blob is named after.
fn check(path: &Path, file: &str, etag: &str, size: u64, outcome: &Outcome) -> Result<()> {
    if matches!(outcome, Outcome::Longer) {
        return Err(Error::model(format!(
            "more than the {size} bytes came that the hub said that it has"
        )));
    }
    let found = fs::metadata(path)?.len();
    if found != size {
        return Err(Error::model(format!(
            "it has {found} bytes, expected {size}"
        )));
    }
    digest::check(path, etag)?;
    sound(path, file)
}

/// Checks that the file at `path` is whole if, by the name `file`, it holds tensors.
pub(super) fn sound(path: &Path, file: &str) -> Result<()> {
    if file.ends_with(".safetensors") {
        Files::open(&[path])?;
    }
    Ok(())
}

/// Tells of the progress of a file at every tenth of it.
struct Report {
    file: String,
    size: u64,
    told: u64,
}

impl Report {
    /// Smaller files are not worth more than a word.
    const LARGE: u64 = 100 << 20;

    fn new(file: &str, size: u64) -> Self {
        let file = words::shown(file);
        tracing::info!("fetching `{file}` ({} MB)", size.div_ceil(1_000_000));
        Report {
            file,
            size,
            told: 0,
        }
    }

    fn at(&mut self, done: u64) {
        let tenth = done * 10 / self.size.max(1);
        if self.size >= Report::LARGE && tenth > self.told {
            self.told = tenth;
            tracing::info!("`{}`: {} %", self.file, tenth * 10);
        }
    }
}
