//! Loads plugin libraries; the only file of the project with `unsafe` code of its own.
//!
//! A library stays loaded until the process ends: abi_stable rules unloading out, and stages that
//! outlive their library would crash. Loading runs the library's code, so every loaded path is
//! logged, and a manifest may pin a library's SHA-256.

#![allow(unsafe_code)]

use diffaug::{
    Error, Result, ResultExt,
    abi::Plugin_Ref,
    abi_stable::{
        library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule},
        std_types::RStr,
    },
    error::ErrorKind,
    log::LogSink,
};
use std::{mem::ManuallyDrop, path::Path};

/// Opens the library at `path`, checks its ABI and attaches its log.
///
/// # Errors
/// One sentence when the file is not a library, not a plugin, or built against another
/// ABI.
pub fn open(path: &Path, log_level: u8) -> Result<Plugin_Ref> {
    let shown = path.display();
    // SAFETY: the library's initialisers run here. That is what loading a plugin means: the user
    // named this file, and CONTRIBUTING says that a plugin is trusted like the program itself.
    let library = unsafe { libloading::Library::new(path) }
        .or_error(ErrorKind::Data, || format!("cannot load `{shown}`"))?;
    // Never unloaded: see the top of this file.
    let library = ManuallyDrop::new(library);
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
