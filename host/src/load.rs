//! Loads plugin libraries; the only file of the project with `unsafe` code of its own.
//!
//! A library stays loaded until the process ends: abi_stable rules unloading out, and stages that
//! outlive their library would crash. Loading runs the library's code, so every loaded path is
//! logged, and a manifest may pin a library's SHA-256. What is loaded is a copy of the bytes that
//! were hashed, where the system can load one.

#![allow(unsafe_code)]

use crate::library::{Library, Place};
use diffaug::{
    Error,
    abi::Plugin_Ref,
    abi_stable::{
        library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule},
        std_types::RStr,
    },
    log::LogSink,
};
use diffaug_run::failure::Failure;
use std::{error::Error as _, mem::ManuallyDrop, path::Path};

/// Opens a library that was read, checks its ABI and attaches its log. `pinned`: only its very bytes
/// will do.
///
/// # Errors
/// One sentence when the file is not a library, not a plugin, built against another ABI, or needs
/// a library that is not there.
pub fn open(file: &Library, pinned: bool, log_level: u8) -> Result<Plugin_Ref, Failure> {
    let shown = file.path.display();
    // Never unloaded: see the top of this file.
    let library = ManuallyDrop::new(mapped(file, pinned)?);
    // SAFETY: a symbol of this name is abi_stable's `AbiHeaderRef` by that crate's convention; the
    // header itself carries the magic string and version that `upgrade` checks below.
    let header =
        unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) }
            .map(|symbol| *symbol)
            .map_err(|_| {
                Error::data(format!("`{shown}` is a library, but not a diffaug plugin"))
            })?;
    let header = header.upgrade().map_err(|error| {
        tracing::debug!("{error}");
        Error::data(format!(
            "`{shown}` was built with another version of abi_stable: rebuild it against this \
             host's version of `diffaug`"
        ))
    })?;
    let module = header.init_root_module::<Plugin_Ref>().map_err(|error| {
        // abi_stable explains itself over hundreds of lines.
        tracing::debug!("{error}");
        let theirs = header.version_strings().version;
        let ours = Plugin_Ref::VERSION_STRINGS.version;
        let built = if theirs == ours {
            format!("another revision of diffaug {ours}")
        } else {
            format!("diffaug {theirs}, but this host has {ours}")
        };
        Error::data(format!("`{shown}` was built against {built}: rebuild it"))
    })?;
    (module.attach())(LogSink {
        level: log_level,
        write,
    });
    tracing::info!(library = %shown, "loaded plugin library");
    Ok(module)
}

/// Has the system load a library from the first place that it takes it from.
fn mapped(file: &Library, pinned: bool) -> Result<libloading::Library, Failure> {
    let mut failed = None;
    for place in file.places(pinned)? {
        let copy = match file.at(place) {
            Ok(copy) => copy,
            Err(error) => {
                tracing::debug!("no copy of `{}`: {error}", file.path.display());
                let message = format!("cannot copy `{}`", file.path.display());
                failed.get_or_insert(Error::from(error).context(message).into());
                continue;
            }
        };
        // SAFETY: the library's initialisers run here. That is what loading a plugin means: the user
        // named this file, and CONTRIBUTING says that a plugin is trusted like the program itself.
        // Its headers were found to stay within its bytes.
        match unsafe { libloading::Library::new(&copy.path) } {
            Ok(library) => {
                copy.keep();
                return Ok(library);
            }
            Err(error) => {
                let text = words(&error);
                let retry = place != Place::Itself && is_about_the_place(&text, &copy.path);
                let failure = refused(&file.path, &copy.path, &text);
                if !retry {
                    return Err(failure);
                }
                failed.get_or_insert(failure);
            }
        }
    }
    Err(failed.unwrap_or_else(|| Error::internal("a library without a place").into()))
}

fn words(error: &libloading::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// Whether the system does not run anything from there, in the words of glibc and musl.
fn is_about_the_place(text: &str, copy: &Path) -> bool {
    let words = [
        "failed to map",
        "cannot open shared object file",
        "Permission denied",
        "Operation not permitted",
    ];
    text.contains(&*copy.to_string_lossy()) && words.iter().any(|w| text.contains(w))
}

/// Why the system did not load the library at `path`, of which `copy` is what it was given.
fn refused(path: &Path, copy: &Path, text: &str) -> Failure {
    let shown = path.display();
    let text = text.replace(&*copy.to_string_lossy(), &path.to_string_lossy());
    let own = path.to_string_lossy();
    let Some(missing) = missing_dependency(&text).filter(|missing| *missing != own) else {
        return Error::data(text)
            .context(format!("cannot load `{shown}`"))
            .into();
    };
    let Some(source) = nvidia(missing) else {
        let message = format!("`{shown}` needs the library `{missing}`, which was not found");
        return Error::data(message).into();
    };
    let message = format!(
        "`{shown}` is built for CUDA and needs `{missing}` of {source}, which was not found"
    );
    Failure::from(Error::data(message)).hint(format!(
        "install {source} (LD_LIBRARY_PATH names more folders to search), or compute on the \
         processor: `device = \"cpu\"`, without this library"
    ))
}

/// The library that another one depends on and that is missing, in the words of glibc.
fn missing_dependency(text: &str) -> Option<&str> {
    let (name, _) = text.split_once(": cannot open shared object file")?;
    Some(name)
}

/// What of NVIDIA's a library belongs to.
fn nvidia(library: &str) -> Option<&'static str> {
    let name = library.split('.').next()?;
    match name {
        "libcuda" => Some("NVIDIA's driver"),
        "libcudnn" => Some("NVIDIA's cuDNN"),
        "libcudart" | "libcublas" | "libcublasLt" | "libcurand" | "libnvrtc" => {
            Some("NVIDIA's CUDA toolkit")
        }
        _ => None,
    }
}

/// Hands a library's event to the host's own `tracing`.
extern "C" fn write(level: u8, target: RStr<'_>, text: RStr<'_>) {
    // A panic in a subscriber must not cross the border.
    let _ = std::panic::catch_unwind(|| match level {
        1 => tracing::error!(target: "plugin", "{target}: {text}"),
        2 => tracing::warn!(target: "plugin", "{target}: {text}"),
        3 => tracing::info!(target: "plugin", "{target}: {text}"),
        4 => tracing::debug!(target: "plugin", "{target}: {text}"),
        _ => tracing::trace!(target: "plugin", "{target}: {text}"),
    });
}
