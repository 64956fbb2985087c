//! Every stage on offer, linked in or loaded, and where it came from.
//!
//! The key is (kind, name, backend); two offers of one key are an error that names both places.

use crate::{
    failure::{Failure, listed, nearest},
    library::{Library, Loaded, Pin},
    load,
};
use diffaug::{
    Backend, BoxDataset, BoxGenerator, BoxPromptBank, BoxSegmenter, BoxValidator, Context, Entry,
    Error, Inspection, Result, ResultExt, abi, error::ErrorKind,
};
use std::{
    env::consts::{DLL_EXTENSION, DLL_PREFIX, DLL_SUFFIX},
    fmt,
    path::{Path, PathBuf},
};

/// Where an entry came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Linked into this binary.
    BuiltIn,
    /// Loaded from a file.
    Library {
        /// The file.
        path: PathBuf,
        /// Its SHA-256 in hex.
        sha256: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::BuiltIn => f.write_str("built in"),
            Origin::Library { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// An entry and where it came from.
pub struct Offer<S> {
    /// What the plugin registered.
    pub entry: Entry<S>,
    /// Where it came from.
    pub origin: Origin,
}

/// A kind of stage, so that the code below is written once for all five.
pub trait Kind: Sized {
    /// What it is called in `diffaug plugins` and in messages.
    const NAME: &'static str;
    /// Its table.
    fn offers(registry: &Registry) -> &Vec<Offer<Self>>;
}

/// What is known of an entry whatever its kind.
pub struct Listing<'a> {
    /// `dataset`, `prompts`, `generator`, `segmenter` or `validator`.
    pub kind: &'static str,
    /// What a manifest calls it.
    pub name: &'a str,
    /// Version of the plugin's package.
    pub version: &'a str,
    /// One line of help.
    pub summary: &'a str,
    /// What it was compiled for.
    pub backend: Backend,
    /// Where it came from.
    pub origin: &'a Origin,
    /// JSON schema of the options.
    pub schema: serde_json::Value,
}

/// A library that a manifest asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// A path, or a bare file name to be searched for in the plugin folders.
    pub path: PathBuf,
    /// The SHA-256 that it must have, in hex.
    pub sha256: Option<String>,
}

/// Every stage on offer.
#[derive(Default)]
pub struct Registry {
    datasets: Vec<Offer<BoxDataset>>,
    prompts: Vec<Offer<BoxPromptBank>>,
    generators: Vec<Offer<BoxGenerator>>,
    segmenters: Vec<Offer<BoxSegmenter>>,
    validators: Vec<Offer<BoxValidator>>,
    loaded: Loaded,
    pins: Vec<Pin>,
}

macro_rules! kinds {
    ($($Boxed:ident $name:literal $field:ident;)+) => {
        $(impl Kind for $Boxed {
            const NAME: &'static str = $name;
            fn offers(registry: &Registry) -> &Vec<Offer<Self>> {
                &registry.$field
            }
        })+

        impl Registry {
            fn take(&mut self, module: Option<abi::Plugin_Ref>, origin: &Origin) -> Result<()> {
                $(
                    let entries = match &module {
                        Some(module) => (module.$field())(),
                        None => abi::$field(),
                    };
                    for entry in entries {
                        add(&mut self.$field, entry, origin)?;
                    }
                )+
                Ok(())
            }

            /// Every entry, sorted by kind and name.
            pub fn list(&self) -> Vec<Listing<'_>> {
                let mut all = Vec::new();
                $(all.extend(self.$field.iter().map(listing));)+
                all.sort_by_key(|l| (l.kind, l.name, l.backend));
                all
            }
        }
    };
}

kinds! {
    BoxDataset "dataset" datasets;
    BoxPromptBank "prompts" prompts;
    BoxGenerator "generator" generators;
    BoxSegmenter "segmenter" segmenters;
    BoxValidator "validator" validators;
}

fn add<S: Kind>(table: &mut Vec<Offer<S>>, entry: Entry<S>, origin: &Origin) -> Result<()> {
    let twin = table
        .iter()
        .find(|o| o.entry.name == entry.name && o.entry.backend == entry.backend);
    if let Some(twin) = twin {
        return Err(Error::config(format!(
            "two plugins offer the {} `{}`: one is {}, the other {origin}",
            S::NAME,
            entry.name,
            twin.origin
        )));
    }
    table.push(Offer {
        entry,
        origin: origin.clone(),
    });
    Ok(())
}

fn listing<S: Kind>(offer: &Offer<S>) -> Listing<'_> {
    let entry = &offer.entry;
    Listing {
        kind: S::NAME,
        name: entry.name.as_str(),
        version: entry.version.as_str(),
        summary: entry.summary.as_str(),
        backend: entry.backend,
        origin: &offer.origin,
        schema: serde_json::from_str(&(entry.schema)()).unwrap_or_default(),
    }
}

impl Registry {
    /// What is linked in, then every library of `folders`, then what the manifest wants, then what
    /// `device` needs besides.
    ///
    /// Nothing is loaded before everything has been read and held against all pins, for loading
    /// runs a library's code.
    pub fn new(
        folders: &[PathBuf],
        wanted: &[Wanted],
        device: &str,
        log_level: u8,
    ) -> Result<Self, Failure> {
        let mut registry = Registry::default();
        registry.take(None, &Origin::BuiltIn)?;
        let mut asked = Vec::new();
        for want in wanted {
            let library = Library::read(&search(&want.path, folders)?)?;
            if let Some(sha256) = &want.sha256 {
                registry.pins.push(Pin::new(&library, sha256));
            }
            asked.push(library);
        }
        // Before the folders are so much as listed.
        for library in &asked {
            registry.is_pinned(library)?;
        }
        let mut libraries = Vec::new();
        for folder in folders {
            for path in libraries_in(folder)? {
                libraries.push(Library::read(&path)?);
            }
        }
        libraries.append(&mut asked);
        let pinned: Vec<bool> = libraries
            .iter()
            .map(|library| registry.is_pinned(library))
            .collect::<Result<_>>()?;
        for (library, pinned) in libraries.into_iter().zip(pinned) {
            registry.load(&library, pinned, log_level)?;
        }
        registry.add_device(device, log_level)?;
        Ok(registry)
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
        if !named && !self.list().iter().any(linked_in) && path.exists() {
            let library = Library::read(&path)?;
            let pinned = self.is_pinned(&library)?;
            self.load(&library, pinned, log_level)?;
        }
        if self.list().iter().any(|l| l.backend == Backend::Cuda) {
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
        self.take(Some(module), &origin)?;
        self.loaded.add(library);
        Ok(())
    }

    /// The offer of that name that suits `device` best.
    ///
    /// # Errors
    /// When there is none; the message says what there is.
    pub fn find<S: Kind>(&self, name: &str, device: &str) -> Result<&Offer<S>, Failure> {
        let wanted = backend(device);
        let table = S::offers(self);
        let matching = table.iter().filter(|o| o.entry.name.as_str() == name);
        matching
            .max_by_key(|o| (o.entry.backend == wanted, o.entry.backend == Backend::Cpu))
            .ok_or_else(|| self.unknown::<S>(name))
    }

    fn unknown<S: Kind>(&self, name: &str) -> Failure {
        let mut names: Vec<&str> = S::offers(self)
            .iter()
            .map(|o| o.entry.name.as_str())
            .collect();
        names.sort_unstable();
        // One name may be built for several devices.
        names.dedup();
        let offered = match names.as_slice() {
            [] => "none is there; libraries are searched in --plugin-dir and DIFFAUG_PLUGIN_PATH"
                .to_owned(),
            names => format!("there are {}", listed(names.iter().copied())),
        };
        let kind = title(S::NAME);
        let listing = self.list();
        let message = match listing.iter().find(|l| l.name == name) {
            Some(other) => {
                let other = title(other.kind);
                format!("`{name}` is a {other}, not a {kind}; {offered}")
            }
            None => format!("no {kind} is called `{name}`; {offered}"),
        };
        let failure = Failure::from(Error::config(message));
        match nearest(name, names) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure,
        }
    }
}

impl<S: Kind> Offer<S> {
    /// Parses and validates options without building anything.
    pub fn check(&self, options: &serde_json::Value) -> Result<()> {
        let json = options.to_string();
        (self.entry.check)(json.as_str().into()).into_result()
    }

    /// Says what a stage of these options needs, without building it.
    pub fn inspect(&self, options: &serde_json::Value, context: &Context) -> Result<Inspection> {
        let json = options.to_string();
        (self.entry.inspect)(json.as_str().into(), context).into_result()
    }

    /// Makes a folder of weights of a published file; the result is a sentence on what was found.
    ///
    /// # Errors
    /// What the stage reports.
    pub fn convert(&self, options: &serde_json::Value, from: &Path, to: &Path) -> Result<String> {
        let json = options.to_string();
        let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
        (self.entry.convert)(json.as_str().into(), (&*from).into(), (&*to).into())
            .into_result()
            .map(String::from)
    }

    /// Builds the stage.
    pub fn build(&self, options: &serde_json::Value, context: &Context) -> Result<S> {
        let json = options.to_string();
        (self.entry.build)(json.as_str().into(), context).into_result()
    }
}

/// What plugins have to be built for to compute on `device`.
pub fn backend(device: &str) -> Backend {
    match device.split(':').next() {
        Some("cuda") => Backend::Cuda,
        Some("metal") => Backend::Metal,
        _ => Backend::Cpu,
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

/// A kind as a noun with an article.
fn title(kind: &str) -> &str {
    match kind {
        "prompts" => "prompt bank",
        kind => kind,
    }
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
