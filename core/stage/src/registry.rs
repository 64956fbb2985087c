//! What a plugin registers, and how a stage is built from its options.

use crate::{error::*, inspect::Inspection, stage::*};
use abi_stable::{
    StableAbi,
    std_types::{RResult, RStr, RString},
};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use std::path::Path;

/// A stage that can be built from its table in a manifest.
pub trait FromConfig: Sized {
    /// The options: one serde struct, from which parsing, defaults, help and JSON schema come.
    /// Give it `#[serde(deny_unknown_fields)]`, so that a typing error is reported.
    type Config: DeserializeOwned + JsonSchema;

    /// Options that stood at the top once, and where they stand now, in words: a manifest that still has
    /// one is told so.
    fn moved() -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Checks values that the type alone cannot, without touching disk or device.
    ///
    /// # Errors
    /// [`Error::config`] with [`Error::at`] naming the option.
    fn validate(_config: &Self::Config) -> Result<()> {
        Ok(())
    }

    /// Builds the stage.
    ///
    /// # Errors
    /// When a file or the device that the options name cannot be used.
    fn from_config(config: Self::Config, context: &Context) -> Result<Self>;

    /// Says what the stage would need, for `diffaug doctor`: parameters, memory, and what is
    /// missing. Options are parsed and validated. It may look whether files are there and read
    /// their headers, but loads no weights and leaves the device alone.
    ///
    /// # Errors
    /// When nothing at all can be said; what is merely not there belongs to
    /// [`Inspection::missing`].
    fn inspect(_config: &Self::Config, _context: &Context) -> Result<Inspection> {
        Ok(Inspection::default())
    }

    /// Makes a folder of weights for this stage, `to`, of `from`, for `diffaug convert`: of a file in
    /// which others published theirs, or of a folder that training left, whose weights are then made
    /// small for sharing. Options are parsed and validated; they tell what the file does not. The
    /// result is a sentence on what was found.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where there is nothing to convert; when the file is of another
    /// kind, or the folder cannot be written.
    fn convert(_config: &Self::Config, _from: &Path, _to: &Path) -> Result<String> {
        Err(Error::unsupported("this stage has no files to convert"))
    }
}

/// What a plugin's computations run on.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// The processor; also every plugin that computes nothing heavy.
    Cpu,
    /// NVIDIA GPUs (and the processor).
    Cuda,
    /// Apple GPUs (and the processor).
    Metal,
}

/// A stage on offer: name, options and constructor.
#[repr(C)]
#[derive(StableAbi)]
pub struct Entry<S> {
    /// What a manifest calls it (`use = "…"`).
    pub name: RStr<'static>,
    /// Version of the plugin's package.
    pub version: RStr<'static>,
    /// One line of help.
    pub summary: RStr<'static>,
    /// What it was compiled for.
    pub backend: Backend,
    /// JSON schema of the options.
    pub schema: extern "C" fn() -> RString,
    /// Parses and validates options (JSON) without building anything.
    pub check: extern "C" fn(RStr<'_>) -> RResult<(), Error>,
    /// Says what a stage of these options (JSON) needs, without building it.
    pub inspect: extern "C" fn(RStr<'_>, &Context) -> RResult<Inspection, Error>,
    /// Makes a folder of weights of a published file: options (JSON), the file, the folder.
    pub convert: extern "C" fn(RStr<'_>, RStr<'_>, RStr<'_>) -> RResult<RString, Error>,
    /// Builds the stage from its options (JSON).
    pub build: extern "C" fn(RStr<'_>, &Context) -> RResult<S, Error>,
}

impl<S> Clone for Entry<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Entry<S> {}

fn parse<T: FromConfig>(json: RStr<'_>) -> Result<T::Config> {
    let mut reader = serde_json::Deserializer::from_str(json.as_str());
    let config: T::Config = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let path = e.path().to_string();
        let field = if path == "." { String::new() } else { path };
        let old = T::moved().iter().find(|(old, _)| *old == field);
        if let Some((old, place)) = old {
            return Error::config(format!("`{old}` is now {place}")).at(old);
        }
        Error::config(without_position(&e.inner().to_string())).at(field)
    })?;
    T::validate(&config)?;
    Ok(config)
}

/// serde_json adds ` at line 1 column 7`, which speaks of JSON that no user ever saw.
fn without_position(message: &str) -> &str {
    message
        .rsplit_once(" at line ")
        .map_or(message, |(text, _)| text)
}

extern "C" fn schema<T: FromConfig>() -> RString {
    // Inlined, so that the host can put it into the schema of manifests as it is.
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let schema = settings
        .into_generator()
        .into_root_schema_for::<T::Config>();
    serde_json::to_string(&schema).unwrap_or_default().into()
}

extern "C" fn check<T: FromConfig>(json: RStr<'_>) -> RResult<(), Error> {
    guard(|| parse::<T>(json).map(drop))
}

extern "C" fn inspect<T: FromConfig>(
    json: RStr<'_>,
    context: &Context,
) -> RResult<Inspection, Error> {
    guard(|| T::inspect(&parse::<T>(json)?, context))
}

extern "C" fn convert<T: FromConfig>(
    json: RStr<'_>,
    from: RStr<'_>,
    to: RStr<'_>,
) -> RResult<RString, Error> {
    guard(|| {
        let (from, to) = (Path::new(from.as_str()), Path::new(to.as_str()));
        T::convert(&parse::<T>(json)?, from, to).map(RString::from)
    })
}

macro_rules! constructors {
    ($($method:ident: $Trait:ident => $Boxed:ident, $build:ident;)+) => {
        $(
            inventory::collect!(Entry<$Boxed>);

            extern "C" fn $build<T: $Trait + FromConfig>(json: RStr<'_>, context: &Context) -> RResult<$Boxed, Error> {
                guard(|| Ok($Boxed::new(T::from_config(parse::<T>(json)?, context)?)))
            }

            impl Entry<$Boxed> {
                #[doc = concat!("Offers `T` as a [`", stringify!($Trait), "`]; called by [`export_plugin!`](crate::export_plugin).")]
                pub const fn $method<T: $Trait + FromConfig>(
                    name: &'static str,
                    version: &'static str,
                    summary: &'static str,
                    backend: Backend,
                ) -> Self {
                    Entry {
                        name: RStr::from_str(name),
                        version: RStr::from_str(version),
                        summary: RStr::from_str(summary),
                        backend,
                        schema: schema::<T>,
                        check: check::<T>,
                        inspect: inspect::<T>,
                        convert: convert::<T>,
                        build: $build::<T>,
                    }
                }
            }
        )+
    };
}

constructors! {
    dataset: Dataset => BoxDataset, build_dataset;
    prompts: PromptBank => BoxPromptBank, build_prompts;
    generator: Generator => BoxGenerator, build_generator;
    segmenter: Segmenter => BoxSegmenter, build_segmenter;
    validator: Validator => BoxValidator, build_validator;
    measure: Measure => BoxMeasure, build_measure;
}

/// Registers stages: in the host's own table when linked in, in the library's when loaded.
///
/// `KIND "NAME" => TYPE, "SUMMARY"`, one or more; KIND is `dataset`, `prompts`, `generator`,
/// `segmenter`, `validator` or `measure`. `for BACKEND` after the name says what a plugin with models was
/// compiled for.
///
/// ```ignore
/// export_plugin! { dataset "colon" => Colon, "frames of our own endoscope" }
/// export_plugin! { segmenter "unet" for BACKEND => UNet, "the U-Net of 2015" }
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($($kind:ident $name:literal $(for $backend:path)? => $ty:ty, $summary:literal);+ $(;)?) => {
        $($crate::inventory::submit! {
            $crate::Entry::$kind::<$ty>(
                $name,
                env!("CARGO_PKG_VERSION"),
                $summary,
                $crate::export_plugin!(@backend $($backend)?),
            )
        })+
    };
    (@backend) => { $crate::Backend::Cpu };
    (@backend $backend:path) => { $backend };
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::*;
    use abi_stable::std_types::{RSlice, RVec};
    use serde::Deserialize;

    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Options {
        width: u64,
    }

    /// A segmenter that cannot be built.
    struct Wide;

    impl FromConfig for Wide {
        type Config = Options;

        fn validate(options: &Options) -> Result<()> {
            match options.width {
                0 => Err(Error::config("`width` is 0, expected at least 1").at("width")),
                _ => Ok(()),
            }
        }

        fn from_config(_: Options, _: &Context) -> Result<Self> {
            Err(Error::internal("inspection needs no stage"))
        }

        fn inspect(options: &Options, context: &Context) -> Result<Inspection> {
            assert!(options.width < 100, "too wide");
            let mut inspection = Inspection {
                run_bytes: options.width * u64::from(context.size),
                ..Inspection::default()
            };
            inspection.miss("a file");
            Ok(inspection)
        }
    }

    impl Segmenter for Wide {
        fn classes(&self) -> Result<RVec<Class>> {
            Ok(RVec::new())
        }
        fn segment(
            &self,
            _: RSlice<'_, ImageRef<'_>>,
            _: &Reporter<'_>,
        ) -> Result<RVec<Segmentation>> {
            Ok(RVec::new())
        }
    }

    fn inspect_wide(json: &str) -> Result<Inspection> {
        let entry = Entry::<BoxSegmenter>::segmenter::<Wide>("wide", "0.1.0", "", Backend::Cpu);
        let context = Context {
            size: 96,
            ..Context::default()
        };
        (entry.inspect)(json.into(), &context).into_result()
    }

    #[test]
    fn an_inspection_builds_nothing() {
        let inspection = inspect_wide(r#"{"width": 2}"#).unwrap();
        assert_eq!(inspection.run_bytes, 192);
        assert_eq!(inspection.missing[0], "a file");
        assert!(inspection.components.is_empty());
    }

    #[test]
    fn options_are_validated_before_an_inspection() {
        assert_eq!(inspect_wide(r#"{"width": 0}"#).unwrap_err().field, "width");
        let error = inspect_wide(r#"{"widht": 1}"#).unwrap_err();
        assert!(
            error.message.starts_with("unknown field `widht`"),
            "{error}"
        );
    }

    #[test]
    fn a_panic_of_an_inspection_is_an_error() {
        let error = inspect_wide(r#"{"width": 100}"#).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::Panic, "too wide")
        );
    }
}
