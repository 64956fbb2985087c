//! Every stage on offer, linked in or loaded, and where it came from.
//!
//! The key is (kind, name, backend); two offers of one key are an error that names both places.

use crate::failure::{Failure, listed, nearest};
use diffaug::{
    Backend, BoxDataset, BoxGenerator, BoxMeasure, BoxPromptBank, BoxSegmenter, BoxValidator,
    Context, Entry, Error, Inspection, Result, abi,
};
use std::{
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

/// A kind of stage, so that the code below is written once for all six.
pub trait Kind: Sized {
    /// What it is called in `diffaug plugins` and in messages.
    const NAME: &'static str;
    /// Its table.
    fn offers(registry: &Registry) -> &Vec<Offer<Self>>;
}

/// What can be asked of an offer whatever its kind.
pub trait AnyOffer {
    /// Version of the plugin's package.
    fn version(&self) -> &str;
    /// What it was compiled for.
    fn backend(&self) -> Backend;
    /// Where it came from.
    fn origin(&self) -> &Origin;
    /// Parses and validates options without building anything.
    ///
    /// # Errors
    /// When the stage does not take them.
    fn check(&self, options: &serde_json::Value) -> Result<()>;
    /// Says what a stage of these options needs, without building it.
    ///
    /// # Errors
    /// What the stage reports.
    fn inspect(&self, options: &serde_json::Value, context: &Context) -> Result<Inspection>;
}

impl<S: Kind> AnyOffer for Offer<S> {
    fn version(&self) -> &str {
        self.entry.version.as_str()
    }
    fn backend(&self) -> Backend {
        self.entry.backend
    }
    fn origin(&self) -> &Origin {
        &self.origin
    }
    fn check(&self, options: &serde_json::Value) -> Result<()> {
        let json = options.to_string();
        (self.entry.check)(json.as_str().into()).into_result()
    }
    fn inspect(&self, options: &serde_json::Value, context: &Context) -> Result<Inspection> {
        let json = options.to_string();
        (self.entry.inspect)(json.as_str().into(), context).into_result()
    }
}

/// What is known of an entry whatever its kind.
pub struct Listing<'a> {
    /// `dataset`, `prompts`, `generator`, `segmenter`, `validator` or `measure`.
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

/// Every stage on offer.
#[derive(Default)]
pub struct Registry {
    datasets: Vec<Offer<BoxDataset>>,
    prompts: Vec<Offer<BoxPromptBank>>,
    generators: Vec<Offer<BoxGenerator>>,
    segmenters: Vec<Offer<BoxSegmenter>>,
    validators: Vec<Offer<BoxValidator>>,
    measures: Vec<Offer<BoxMeasure>>,
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

            /// The offer of that kind and name that suits `device` best.
            ///
            /// # Errors
            /// As for [`Registry::find`].
            pub fn find_any(
                &self,
                kind: &str,
                name: &str,
                device: &str,
            ) -> Result<&dyn AnyOffer, Failure> {
                match kind {
                    $($name => Ok(self.find::<$Boxed>(name, device)?),)+
                    _ => Err(Error::internal(format!("`{kind}` is no kind of stage")).into()),
                }
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
    BoxMeasure "measure" measures;
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
    /// What is linked into this binary.
    ///
    /// # Errors
    /// When two plugins offer the same.
    pub fn built_in() -> Result<Self> {
        let mut registry = Registry::default();
        registry.take(None, &Origin::BuiltIn)?;
        Ok(registry)
    }

    /// Adds what a library offers.
    ///
    /// # Errors
    /// When it offers what is there already.
    pub fn add(&mut self, module: abi::Plugin_Ref, origin: &Origin) -> Result<()> {
        self.take(Some(module), origin)
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

/// What a backend is called.
pub fn backend_name(backend: Backend) -> &'static str {
    match backend {
        Backend::Cpu => "cpu",
        Backend::Cuda => "cuda",
        Backend::Metal => "metal",
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

/// A kind as a noun with an article.
fn title(kind: &str) -> &str {
    match kind {
        "prompts" => "prompt bank",
        kind => kind,
    }
}
