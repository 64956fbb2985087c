//! What a command has on offer: the plugins that are linked in, those of libraries that are asked for,
//! and what the device needs besides.

use crate::{
    library::{Library, Loaded, Pin},
    load,
};
use diffaug::{Backend, Error, Result, ResultExt, error::ErrorKind};
use diffaug_run::{
    failure::Failure,
    manifest,
    registry::{Listing, Origin, Registry, backend},
};
use std::{
    env::consts::{DLL_EXTENSION, DLL_PREFIX, DLL_SUFFIX},
    path::{Path, PathBuf},
};

/// A registry that libraries are loaded into.
#[derive(Default)]
pub struct Plugins {
    /// What is on offer.
    pub registry: Registry,
    loaded: Loaded,
    pins: Vec<Pin>,
}

impl Plugins {
    /// What is linked in, then every library of `folders` and of the folders that DIFFAUG_PLUGIN_PATH
    /// lists, then those that a manifest names, then what `device` needs besides.
    ///
    /// Nothing is loaded before everything has been read and held against all pins, for loading
    /// runs a library's code.
    ///
    /// # Errors
    /// When a library is not there, not what its pin says, or no plugin, and when two plugins offer the
    /// same.
    pub fn new(
        folders: &[PathBuf],
        libraries: &[manifest::Library],
        device: &str,
        log_level: u8,
    ) -> Result<Self, Failure> {
        let mut folders = folders.to_vec();
        if let Some(path) = std::env::var_os("DIFFAUG_PLUGIN_PATH") {
            folders.extend(std::env::split_paths(&path).filter(|p| !p.as_os_str().is_empty()));
        }
        let mut plugins = Plugins {
            registry: Registry::built_in()?,
            ..Plugins::default()
        };
        let mut asked = Vec::new();
        for named in libraries {
            let (path, sha256) = match named {
                manifest::Library::Path(path) => (path, None),
                manifest::Library::Pinned(pinned) => (&pinned.path, Some(&pinned.sha256)),
            };
            let library = Library::read(&search(path, &folders)?)?;
            plugins
                .pins
                .extend(sha256.map(|sha256| Pin::new(&library, sha256)));
            asked.push(library);
        }
        // Before the folders are so much as listed.
        for library in &asked {
            plugins.is_pinned(library)?;
        }
        let mut libraries = Vec::new();
        for folder in &folders {
            for path in libraries_in(folder)? {
                libraries.push(Library::read(&path)?);
            }
        }
        libraries.append(&mut asked);
        let pinned: Vec<bool> = libraries
            .iter()
            .map(|library| plugins.is_pinned(library))
            .collect::<Result<_>>()?;
        for (library, pinned) in libraries.into_iter().zip(pinned) {
            plugins.load(&library, pinned, log_level)?;
        }
        plugins.add_device(device, log_level)?;
        Ok(plugins)
    }

    /// Whether a pin speaks of `library`.
    ///
    /// # Errors
    /// When one does and the library is another.
    fn is_pinned(&self, library: &Library) -> Result<bool> {
        let mut pinned = false;
        for pin in &self.pins {
            pinned |= pin.covers(library)?;
        }
        Ok(pinned)
    }

    /// Loads what `device` needs besides.
    ///
    /// # Errors
    /// When that is not there, or cannot be loaded.
    pub fn add_device(&mut self, device: &str, log_level: u8) -> Result<(), Failure> {
        match backend(device) {
            Backend::Cuda => self.add_cuda(device, log_level),
            _ => Ok(()),
        }
    }

    /// Loads the plugins for CUDA from beside the program: linked in, they would keep it from
    /// starting where there is no driver.
    fn add_cuda(&mut self, device: &str, log_level: u8) -> Result<(), Failure> {
        let path = cuda_library()?;
        // A library of that name that was asked for is meant to be used in place of this one.
        let named = self.loaded.has_name(path.file_name());
        let linked_in =
            |l: &Listing<'_>| l.backend == Backend::Cuda && *l.origin == Origin::BuiltIn;
        if !named && !self.registry.list().iter().any(linked_in) && path.exists() {
            let library = Library::read(&path)?;
            let pinned = self.is_pinned(&library)?;
            self.load(&library, pinned, log_level)?;
        }
        if self
            .registry
            .list()
            .iter()
            .any(|l| l.backend == Backend::Cuda)
        {
            return Ok(());
        }
        Err(nothing_for_cuda(device, &path))
    }

    fn load(&mut self, library: &Library, pinned: bool, log_level: u8) -> Result<(), Failure> {
        if self.loaded.has(library, pinned) {
            return Ok(());
        }
        let module = load::open(library, pinned, log_level)?;
        let origin = Origin::Library {
            path: library.path.clone(),
            sha256: library.sha256.clone(),
        };
        self.registry.add(module, &origin)?;
        self.loaded.add(library);
        Ok(())
    }
}

/// Where the plugins for CUDA are looked for: beside the program.
pub fn cuda_library() -> Result<PathBuf> {
    let program = std::env::current_exe().and_then(std::fs::canonicalize);
    let program = program.or_error(
        ErrorKind::Internal,
        || "cannot tell where this program lies",
    )?;
    let name = format!("{DLL_PREFIX}diffaug_cuda{DLL_SUFFIX}");
    Ok(program.with_file_name(name))
}

fn nothing_for_cuda(device: &str, path: &Path) -> Failure {
    let lacks = if path.exists() {
        "offers none"
    } else {
        "does not exist"
    };
    let message = format!(
        "device `{device}` needs plugins that are built for CUDA, but none is loaded and `{}` {lacks}",
        path.display()
    );
    Failure::from(Error::config(message).at("device")).hint(
        "the README, section CUDA, tells how to build that file; `device = \"cpu\"` does without it",
    )
}

fn libraries_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("cannot read plugin folder `{}`", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).or_error(ErrorKind::Data, failed)? {
        let path = entry.or_error(ErrorKind::Data, failed)?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if extension == Some(DLL_EXTENSION) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A bare file name is searched for in `folders`; anything else is a path as it stands.
fn search(path: &Path, folders: &[PathBuf]) -> Result<PathBuf> {
    let bare = path.components().count() == 1 && !path.is_absolute();
    if !bare {
        return Ok(path.to_owned());
    }
    let found = folders.iter().map(|f| f.join(path)).find(|p| p.is_file());
    found.ok_or_else(|| {
        let places = match folders {
            [] => "no folder is given by --plugin-dir or DIFFAUG_PLUGIN_PATH".to_owned(),
            some => format!(
                "it is not in {}",
                some.iter()
                    .map(|f| format!("`{}`", f.display()))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        Error::data(format!(
            "plugin library `{}` was not found: {places} (write `./{}` for the current folder)",
            path.display(),
            path.display()
        ))
    })
}
