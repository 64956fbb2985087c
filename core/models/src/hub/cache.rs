//! The cache of a model, in the layout that the hub's other clients use too:
//!
//! ```text
//! models--org--name/blobs/ETAG                 what a file holds
//! models--org--name/snapshots/COMMIT/FILE      a link to it
//! models--org--name/refs/BRANCH                the commit that the branch was at
//! models--org--name/.diffaug/ETAG              that a blob was compared with its hash
//! ```
//!
//! Nothing outside of the model's folder is written or removed, and no link is followed out of the
//! cache: folders must be folders, only the files of a snapshot may be links. A file is synced before
//! it gets its name, and gets its name before anything vouches for it.

use super::{digest, id::Id, words};
use diffaug::{Error, ErrorKind, Result};
use std::{
    collections::BTreeSet,
    fs::{self, File, Metadata, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Files and folders of a snapshot, and folders one in another.
const MOST_ENTRIES: usize = 100_000;
const DEEPEST: usize = 16;
/// Files below this size are compared with their hash at each use, others once.
const SMALL: u64 = 4 << 20;
/// Between two looks at a lock.
const LOOK: Duration = Duration::from_millis(100);

/// Large files that this process has compared, as they were: for caches that cannot be written.
static COMPARED: Mutex<BTreeSet<(PathBuf, String)>> = Mutex::new(BTreeSet::new());

/// The place of one model in the cache.
#[derive(Debug)]
pub(super) struct Repo {
    /// The cache, which holds this model and others.
    root: PathBuf,
    name: String,
}

/// A lock on the fetching of one blob, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code)] File);

impl Repo {
    pub fn new(cache: &Path, id: &Id) -> Self {
        Repo {
            root: cache.to_owned(),
            name: format!("models--{}", id.repo.replace('/', "--")),
        }
    }

    /// The folder of the snapshot at `commit`, which may not be there.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join(&self.name).join("snapshots").join(commit)
    }

    /// The commit that `id` was at when it was fetched last, if it was.
    ///
    /// # Errors
    /// When what is noted is no commit, or a link stands where a folder or file belongs.
    pub fn commit(&self, id: &Id) -> Result<Option<String>> {
        if let Some(commit) = words::commit(&id.revision) {
            return Ok(Some(commit));
        }
        let path = self.place(&format!("refs/{}", id.revision))?;
        let shown = path.display();
        match fs::symlink_metadata(&path) {
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(cannot("read", &path, error)),
            Ok(meta) if !meta.is_file() => {
                return Err(Error::model(format!("`{shown}` is no file: remove it")));
            }
            Ok(_) => {}
        }
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(256).read_to_end(&mut text));
        read.map_err(|error| cannot("read", &path, error))?;
        let text = String::from_utf8_lossy(&text);
        let commit = words::commit(text.trim()).ok_or_else(|| {
            Error::model(format!(
                "`{shown}` holds `{}`, expected a commit of 40 digits: remove it",
                words::shown(text.trim())
            ))
        })?;
        Ok(Some(commit))
    }

    /// Checks that every link of the snapshot at `commit` stays in the cache. A snapshot that is not
    /// there is none that leads anywhere.
    pub fn check_links(&self, commit: &str) -> Result<()> {
        let folder = self.place(&format!("snapshots/{commit}/."))?;
        let mut left = MOST_ENTRIES;
        self.check_folder(&folder, DEEPEST, &mut left)
    }

    fn check_folder(&self, folder: &Path, depth: usize, left: &mut usize) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(cannot("read", folder, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| cannot("read", folder, error))?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            *left = left.checked_sub(1).filter(|_| depth > 0).ok_or_else(|| {
                let folder = folder.display();
                Error::model(format!("`{folder}` holds too many files or folders"))
            })?;
            match kind.is_dir() {
                true => self.check_folder(&path, depth - 1, left)?,
                false => drop(self.real(&path)?),
            }
        }
        Ok(())
    }

    /// Where the file `file` of the snapshot at `commit` really lies, if it is there.
    ///
    /// # Errors
    /// When a link leads out of the cache, or it is no file.
    pub fn entry(&self, commit: &str, file: &str) -> Result<Option<PathBuf>> {
        self.real(&self.place(&format!("snapshots/{commit}/{file}"))?)
    }

    /// Where the blob `etag` really lies, if it is there.
    ///
    /// # Errors
    /// When a link leads out of the cache, or it is no file.
    pub fn blob(&self, etag: &str) -> Result<Option<PathBuf>> {
        self.real(&self.place(&format!("blobs/{etag}"))?)
    }

    fn real(&self, path: &Path) -> Result<Option<PathBuf>> {
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(cannot("read", path, error)),
        };
        let (shown, root) = (path.display(), fs::canonicalize(&self.root)?);
        if !real.starts_with(&root) {
            return Err(Error::model(format!(
                "`{shown}` leads out of the cache, to `{}`: it is not used; remove it",
                real.display()
            )));
        }
        if !fs::metadata(&real)?.is_file() {
            return Err(Error::model(format!("`{shown}` is no file: remove it")));
        }
        Ok(Some(real))
    }

    /// Checks the file that really lies at `real` against the hash that it is named after, if it is:
    /// a large one once, unless it changes.
    ///
    /// # Errors
    /// When it is another file, or cannot be read.
    pub fn verify(&self, real: &Path) -> Result<()> {
        let Some(name) = real.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        if digest::Kind::of(name).is_none() {
            return Ok(());
        }
        let meta = fs::metadata(real)?;
        if meta.len() < SMALL {
            return digest::check(real, name);
        }
        let seen = (real.to_owned(), stamp(&meta));
        let compared = || COMPARED.lock().unwrap_or_else(PoisonError::into_inner);
        if compared().contains(&seen) || self.is_marked(name, &meta) {
            return Ok(());
        }
        let size = meta.len().div_ceil(1_000_000);
        tracing::info!("comparing `{}` with its hash ({size} MB)", real.display());
        digest::check(real, name)?;
        compared().insert(seen);
        self.mark(real);
        Ok(())
    }

    /// Notes that the file at `real` is the one that it is named after. In a cache that cannot be
    /// written it will be compared again.
    pub fn mark(&self, real: &Path) {
        let mark = || -> Result<()> {
            let meta = fs::metadata(real)?;
            let Some(name) = real.file_name().and_then(|name| name.to_str()) else {
                return Ok(());
            };
            if meta.len() < SMALL || digest::Kind::of(name).is_none() {
                return Ok(());
            }
            self.make_folder(".diffaug")?;
            let path = self.place(&format!(".diffaug/{name}"))?;
            write_whole(&path, stamp(&meta).as_bytes())
        };
        if let Err(error) = mark() {
            tracing::debug!("{}", words::plain(error));
        }
    }

    fn is_marked(&self, name: &str, meta: &Metadata) -> bool {
        let path = self.place(&format!(".diffaug/{name}"));
        let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
        let mut text = String::new();
        path.ok().filter(is_file).is_some_and(|path| {
            let read = File::open(path).and_then(|file| file.take(256).read_to_string(&mut text));
            read.is_ok() && text == stamp(meta)
        })
    }

    /// Opens what an earlier attempt left of the blob `etag`, or a new file for it.
    pub fn open_part(&self, etag: &str) -> Result<File> {
        self.make_folder("blobs")?;
        let path = self.part(etag)?;
        // A link, whether by name or by number, is another file's.
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file() || links(&meta) > 1) {
            fs::remove_file(&path).map_err(|error| cannot("remove", &path, error))?;
        }
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        options
            .open(&path)
            .map_err(|error| cannot("write", &path, error))
    }

    /// Where the blob `etag` is while it is fetched.
    pub fn part(&self, etag: &str) -> Result<PathBuf> {
        self.place(&format!("blobs/{etag}.part"))
    }

    /// Makes of what was fetched the blob `etag`, for good. Returns where it lies.
    pub fn keep(&self, part: &File, etag: &str) -> Result<PathBuf> {
        let (from, to) = (self.part(etag)?, self.place(&format!("blobs/{etag}"))?);
        let kept = part
            .sync_all()
            .and_then(|()| fs::rename(&from, &to))
            .and_then(|()| sync_folder(&to));
        kept.map_err(|error| cannot("write", &to, error))?;
        Ok(to)
    }

    /// Makes the blob `etag` the file `file` of the snapshot at `commit`.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let name = format!("snapshots/{commit}/{file}");
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        self.make_folder(folder)?;
        let path = self.place(&name)?;
        // From the folder of the link up to that of the model.
        let up = "../".repeat(folder.split('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let link = || -> io::Result<()> {
            let place = path.parent().unwrap_or(&self.root);
            let new = tempfile::Builder::new()
                .prefix(".new-")
                .make_in(place, |new| make_link(&target, new))?;
            new.into_temp_path().persist(&path)?;
            sync_folder(&path)
        };
        link().map_err(|error| cannot("write", &path, error))
    }

    /// Notes that the branch or tag of `id` is at `commit`.
    pub fn note(&self, id: &Id, commit: &str) -> Result<()> {
        let name = format!("refs/{}", id.revision);
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        self.make_folder(folder)?;
        match self.commit(id) {
            Ok(Some(noted)) if noted == commit => Ok(()),
            _ => write_whole(&self.place(&name)?, commit.as_bytes()),
        }
    }

    /// Waits until no other process fetches the blob `etag`.
    ///
    /// # Errors
    /// When another does and does not get on for `patience`, or there can be no lock.
    pub fn lock(&self, etag: &str, patience: Duration) -> Result<Lock> {
        let folder = format!(".locks/{}", self.name);
        make_folder(&self.root, &folder)?;
        let path = place(&self.root, &format!("{folder}/{etag}.lock"))?;
        let shown = path.display();
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return Err(Error::model(format!("`{shown}` is no file: remove it")));
        }
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false);
        let file = options
            .open(&path)
            .map_err(|error| cannot("write", &path, error))?;
        let part = self.place(&format!("blobs/{etag}"))?;
        let grown = || {
            let size = |end: &str| fs::metadata(part.with_file_name(format!("{etag}{end}")));
            [".part", ".incomplete"].map(|end| size(end).map_or(0, |meta| meta.len()))
        };
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(cannot("lock", &path, error)
                        .context("the file system of the cache has no locks: set HF_HOME to a folder on another"));
                }
            }
            let now = grown();
            if seen.is_none() {
                tracing::info!("another process fetches the same file; waiting for it");
            }
            if seen != Some(now) {
                (seen, since) = (Some(now), Instant::now());
            }
            if since.elapsed() > patience {
                return Err(Error::model(format!(
                    "another process holds `{shown}` and does not get on: stop it, or try again later"
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The path of `name` in the folder of the model, none of whose folders is a link.
    fn place(&self, name: &str) -> Result<PathBuf> {
        place(&self.root, &format!("{}/{name}", self.name))
    }

    fn make_folder(&self, name: &str) -> Result<()> {
        make_folder(&self.root, &format!("{}/{name}", self.name))
    }
}

/// The path of the file `name` below `root`.
///
/// # Errors
/// When one of its folders below `root` is there and is no folder, but a link for example.
fn place(root: &Path, name: &str) -> Result<PathBuf> {
    let mut path = root.to_owned();
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        if parts.peek().is_none() {
            break;
        }
        match fs::symlink_metadata(&path) {
            Ok(meta) if !meta.is_dir() => {
                return Err(Error::model(format!(
                    "`{}` is a link or a file, expected a folder: remove it, or set HF_HOME to another",
                    path.display()
                )));
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(cannot("read", &path, error)),
        }
    }
    Ok(path)
}

/// Makes the folder `name` below `root`, for good.
fn make_folder(root: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(root).map_err(|error| cannot("make", root, error))?;
    let mut made = String::new();
    for part in name.split('/') {
        made.push_str(part);
        let path = place(root, &made)?;
        match fs::create_dir(&path) {
            Ok(()) => sync_folder(&path).map_err(|error| cannot("make", &path, error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot("make", &path, error)),
        }
        made.push('/');
    }
    // The last of them is a folder too.
    place(root, &made).map(drop)
}

/// Writes a small file that appears whole.
fn write_whole(path: &Path, text: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".new-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // For everybody who may read the cache; the process's mask still counts.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut new = builder.tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
        new.write_all(text)?;
        new.as_file().sync_all()?;
        new.persist(path)?;
        sync_folder(path)
    };
    write().map_err(|error| cannot("write", path, error))
}

/// Makes sure that the name of the file at `path` outlasts a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        match File::open(folder)?.sync_all() {
            // Some file systems cannot, and keep what they can without.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(unix)]
fn make_link(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn make_link(target: &Path, link: &Path) -> io::Result<()> {
    let folder = link.parent().unwrap_or(Path::new("."));
    fs::hard_link(folder.join(target), link)
}

/// What changes when a file does: its size and times, and on Unix its number and the time that
/// nobody can set.
fn stamp(meta: &Metadata) -> String {
    let modified = meta.modified().ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let nanos = since.map_or(0, |time| time.as_nanos());
    #[cfg(unix)]
    let more = {
        use std::os::unix::fs::MetadataExt;
        format!(" {} {} {}", meta.ino(), meta.ctime(), meta.ctime_nsec())
    };
    #[cfg(not(unix))]
    let more = "";
    format!("{} {nanos}{more}\n", meta.len())
}

/// How many names a file has.
#[cfg(unix)]
fn links(meta: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(meta)
}

#[cfg(not(unix))]
fn links(_: &Metadata) -> u64 {
    1
}

/// Whether there is no such file.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// That something cannot be done with a file of the cache.
pub(super) fn cannot(what: &str, path: &Path, error: io::Error) -> Error {
    let message = format!("cannot {what} `{}` in the cache of models", path.display());
    let mut error = Error::from(error).context(message);
    error.kind = ErrorKind::Model;
    error
}
