//! A plugin library as a file: read once, checked, hashed, and kept as the very bytes that are
//! loaded afterwards, whatever happens to the file in between.

mod elf;

use diffaug::{Error, Result, ResultExt, error::ErrorKind, files};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Libraries are of some megabytes, those for GPUs of some hundred.
const MOST_BYTES: u64 = 8 << 30;

/// A library that was read.
pub struct Library {
    /// As the user wrote it.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// Whether it looks for other libraries beside itself, which a copy elsewhere does not find.
    searches_beside: bool,
    identity: Identity,
    bytes: Vec<u8>,
}

/// What tells that two paths mean one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    real: PathBuf,
    /// Device and number; two names of one file have the same.
    number: Option<(u64, u64)>,
}

impl Identity {
    fn is(&self, other: &Identity) -> bool {
        self.real == other.real || (self.number.is_some() && self.number == other.number)
    }
}

impl Library {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is not a regular file, or no whole library for this machine.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let real = fs::canonicalize(path).or_error(ErrorKind::Data, || {
            format!("cannot open plugin library `{shown}`")
        })?;
        let cannot = || format!("cannot load `{shown}`");
        let metadata = fs::metadata(&real).or_error(ErrorKind::Data, cannot)?;
        let bytes = files::read(&real, MOST_BYTES).or_error(ErrorKind::Data, cannot)?;
        let searches_beside = if cfg!(all(unix, not(target_vendor = "apple"))) {
            let elf = elf::check(&bytes)
                .map_err(|why| Error::data(format!("cannot load `{shown}`: the file {why}")))?;
            elf.searches_beside
        } else {
            false
        };
        Ok(Library {
            path: path.to_owned(),
            sha256: files::hash(&bytes),
            searches_beside,
            identity: Identity {
                number: number(&metadata),
                real,
            },
            bytes,
        })
    }

    /// The last parts of its path as it was written and as it is without links.
    fn names(&self) -> [Option<&std::ffi::OsStr>; 2] {
        [self.path.file_name(), self.identity.real.file_name()]
    }

    /// Where it can be loaded from, best first. `pinned`: only what was hashed will do.
    ///
    /// # Errors
    /// When it is pinned, but works at its own place alone.
    pub fn places(&self, pinned: bool) -> Result<Vec<Place>> {
        if pinned && self.searches_beside {
            return Err(Error::data(format!(
                "`{}` is pinned, but looks for other libraries beside itself (`$ORIGIN`), of which \
                 the pin says nothing: build it without, or drop the pin",
                self.path.display()
            )));
        }
        let linux = cfg!(target_os = "linux");
        let mut places = Vec::new();
        if linux && !self.searches_beside {
            places.push(Place::Memory);
        }
        if pinned || (linux && !self.searches_beside) {
            places.push(Place::Temporary);
        }
        if !pinned {
            places.push(Place::Itself);
        }
        Ok(places)
    }

    /// Puts its bytes to `place`.
    ///
    /// # Errors
    /// When the system has no room for it, or no such place.
    pub fn at(&self, place: Place) -> io::Result<Copy> {
        match place {
            Place::Memory => in_memory(&self.bytes),
            Place::Temporary => {
                let mut file = tempfile::Builder::new().prefix("diffaug-").tempfile()?;
                file.write_all(&self.bytes)?;
                file.flush()?;
                let temporary = file.into_temp_path();
                Ok(Copy {
                    path: temporary.to_path_buf(),
                    held: Held::Temporary(temporary),
                })
            }
            Place::Itself => Ok(Copy {
                path: self.path.clone(),
                held: Held::Nothing,
            }),
        }
    }
}

/// Where a library is loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A copy in memory that nobody can change.
    Memory,
    /// A copy in a file that is this user's alone, for systems that run nothing from memory.
    Temporary,
    /// The file itself.
    Itself,
}

/// A library at the place that it is loaded from.
pub struct Copy {
    /// What the system is given.
    pub path: PathBuf,
    held: Held,
}

enum Held {
    Nothing,
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Memory(File),
    Temporary(tempfile::TempPath),
}

impl Copy {
    /// Keeps what a loaded library needs.
    pub fn keep(self) {
        match self.held {
            Held::Nothing => {}
            // The system knows a library by its path, so this number must not be given out again.
            Held::Memory(file) => std::mem::forget(file),
            // Unix needs no name for what is mapped; elsewhere a loaded file cannot be removed.
            Held::Temporary(path) if cfg!(unix) => drop(path),
            Held::Temporary(path) => drop(path.keep()),
        }
    }
}

#[cfg(target_os = "linux")]
fn in_memory(bytes: &[u8]) -> io::Result<Copy> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::os::fd::AsRawFd;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let name = "diffaug-plugin";
    // Newer kernels want to be told that this will be run; older ones do not know the flag.
    let made = memfd_create(name, flags | MemfdFlags::EXEC).or_else(|_| memfd_create(name, flags));
    let mut file = File::from(made?);
    file.write_all(bytes)?;
    fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    Ok(Copy {
        path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        held: Held::Memory(file),
    })
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &[u8]) -> io::Result<Copy> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn number(metadata: &fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn number(_: &fs::Metadata) -> Option<(u64, u64)> {
    None
}

/// The SHA-256 that a library must have.
pub struct Pin {
    names: Vec<std::ffi::OsString>,
    identity: Identity,
    sha256: String,
}

impl Pin {
    /// What `sha256` says of `library` and of whatever else has its name.
    pub fn new(library: &Library, sha256: &str) -> Self {
        let names = library.names().into_iter().flatten();
        Pin {
            names: names.map(ToOwned::to_owned).collect(),
            identity: library.identity.clone(),
            sha256: sha256.to_owned(),
        }
    }

    /// Whether it speaks of `library`.
    ///
    /// # Errors
    /// When it does, and `library` is not what it says.
    pub fn covers(&self, library: &Library) -> Result<bool> {
        let same_name = |name: &std::ffi::OsStr| {
            let same = |own: &std::ffi::OsString| match cfg!(any(windows, target_vendor = "apple"))
            {
                true => own.eq_ignore_ascii_case(name),
                false => own == name,
            };
            self.names.iter().any(same)
        };
        let named = library.names().into_iter().flatten().any(same_name);
        if !named && !self.identity.is(&library.identity) {
            return Ok(false);
        }
        if self.sha256.eq_ignore_ascii_case(&library.sha256) {
            return Ok(true);
        }
        Err(Error::data(format!(
            "`{}` has the sha256 {}, but the manifest pins {}: it is not loaded",
            library.path.display(),
            library.sha256,
            self.sha256
        )))
    }
}

/// Libraries that are loaded.
#[derive(Default)]
pub struct Loaded(Vec<(Identity, String)>);

impl Loaded {
    /// Whether `library` is there already. A pinned one is known by its bytes as well.
    pub fn has(&self, library: &Library, pinned: bool) -> bool {
        self.0.iter().any(|(identity, sha256)| {
            identity.is(&library.identity) || (pinned && *sha256 == library.sha256)
        })
    }

    /// Whether one of that file name is there.
    pub fn has_name(&self, name: Option<&std::ffi::OsStr>) -> bool {
        self.0.iter().any(|(id, _)| id.real.file_name() == name)
    }

    /// Notes that `library` is there.
    pub fn add(&mut self, library: &Library) {
        self.0
            .push((library.identity.clone(), library.sha256.clone()));
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn library(dir: &Path, name: &str, search: &str) -> Library {
        let path = dir.join(name);
        fs::write(&path, elf::tests::small(search)).unwrap();
        Library::read(&path).unwrap()
    }

    #[test]
    fn what_was_read_is_what_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let read = library(dir.path(), "a.so", "/lib");
        fs::write(&read.path, "exchanged").unwrap();
        for place in [Place::Memory, Place::Temporary] {
            let copy = read.at(place).unwrap();
            assert_eq!(files::hash(&fs::read(&copy.path).unwrap()), read.sha256);
        }
        // Not even this process can change the copy in memory.
        let copy = read.at(Place::Memory).unwrap();
        let Held::Memory(mut file) = copy.held else {
            panic!("held otherwise");
        };
        file.write_all(b"x").unwrap_err();
        file.set_len(0).unwrap_err();
    }

    #[test]
    fn a_pinned_library_is_never_loaded_from_its_own_place() {
        let dir = tempfile::tempdir().unwrap();
        let plain = library(dir.path(), "a.so", "/lib");
        assert_eq!(
            plain.places(true).unwrap(),
            [Place::Memory, Place::Temporary]
        );
        let beside = library(dir.path(), "b.so", "$ORIGIN");
        assert_eq!(beside.places(false).unwrap(), [Place::Itself]);
        let error = beside.places(true).unwrap_err();
        assert!(error.message.contains("beside itself"), "{error}");
    }

    #[test]
    fn a_pin_covers_names_links_and_the_file_itself() {
        let dir = tempfile::tempdir().unwrap();
        let pinned = library(dir.path(), "a.so", "/lib");
        let right = Pin::new(&pinned, &pinned.sha256.to_uppercase());
        assert!(right.covers(&pinned).unwrap());
        let wrong = Pin::new(&pinned, &"0".repeat(64));
        assert!(wrong.covers(&pinned).is_err());
        let other = library(dir.path(), "b.so", "/lib");
        assert!(!wrong.covers(&other).unwrap());
        fs::create_dir(dir.path().join("sub")).unwrap();
        let path = |name: &str| dir.path().join("sub").join(name);
        std::os::unix::fs::symlink(&pinned.path, path("c.so")).unwrap();
        fs::hard_link(&pinned.path, path("d.so")).unwrap();
        std::os::unix::fs::symlink(&other.path, path("a.so")).unwrap();
        for name in ["a.so", "c.so", "d.so"] {
            let found = Library::read(&path(name)).unwrap();
            assert!(wrong.covers(&found).is_err(), "{name}");
        }
        let mut loaded = Loaded::default();
        loaded.add(&pinned);
        assert!(loaded.has(&Library::read(&path("d.so")).unwrap(), false));
        assert!(!loaded.has(&other, false));
    }
}
