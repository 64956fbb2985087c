//! What a DiffAug plugin is written against.
//!
//! A plugin is an ordinary library: implement one of the six stage traits, say how to build it
//! from its options, and register it. Linked into the host it appears among the built-ins; built
//! as a `cdylib` it is loaded at run time. Nothing else changes.
//!
//! ```
//! use diffaug::prelude::*;
//!
//! /// A dataset of grey squares.
//! struct Squares {
//!     count: u64,
//! }
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Options {
//!     /// How many samples there are.
//!     #[serde(default = "ten")]
//!     count: u64,
//! }
//!
//! fn ten() -> u64 {
//!     10
//! }
//!
//! impl FromConfig for Squares {
//!     type Config = Options;
//!     fn from_config(options: Options, _: &Context) -> Result<Self> {
//!         Ok(Squares { count: options.count })
//!     }
//! }
//!
//! impl Dataset for Squares {
//!     fn info(&self) -> Result<DatasetInfo> {
//!         Ok(DatasetInfo::single_class("squares", "square"))
//!     }
//!     fn items(&self) -> Result<RVec<Item>> {
//!         Ok((0..self.count).map(|i| Item::new(&format!("square-{i}"))).collect())
//!     }
//!     fn sample(&self, index: u64) -> Result<Sample> {
//!         let mut mask = vec![0; 64 * 64];
//!         mask[32 * 64 + 32] = 1;
//!         Ok(Sample {
//!             id: format!("square-{index}").into(),
//!             image: Image::new(64, 64, vec![128; 64 * 64 * 3])?,
//!             mask: Mask::new(64, 64, mask)?,
//!             attributes: Attributes::new(),
//!         })
//!     }
//! }
//!
//! diffaug::export_plugin! { dataset "squares" => Squares, "grey squares, to show how it is done" }
//! # fn main() {}
//! ```
//!
//! The host measures masks and images, resizes, splits, augments and scores; a plugin need not. A stage with a
//! model says in [`FromConfig::inspect`] how large it is and what it lacks, for `diffaug doctor`.

pub mod abi;
pub mod appearance;
pub mod augment;
pub mod bands;
pub mod data;
pub mod error;
pub mod files;
pub mod image;
pub mod inspect;
pub mod lesion;
pub mod log;
pub mod metrics;
#[doc(hidden)]
pub mod mutate;
pub mod pairs;
pub mod poisson;
pub mod published;
pub mod records;
pub mod registry;
pub mod rng;
pub mod segmenting;
pub mod split;
pub mod stage;
pub mod staple;
pub mod view;

#[doc(hidden)]
pub use {abi_stable, inventory};

pub use data::*;
pub use error::{Error, ErrorKind, Result, ResultExt};
pub use inspect::{Component, Inspection, human_bytes};
pub use registry::{Backend, Entry, FromConfig};
pub use stage::*;

/// Everything that a plugin's file wants in scope.
pub mod prelude {
    pub use crate::data::*;
    pub use crate::error::{Error, ErrorKind, Result, ResultExt};
    pub use crate::export_plugin;
    pub use crate::inspect::{Component, Inspection};
    pub use crate::registry::{Backend, FromConfig};
    pub use crate::stage::{
        BoxDataset, BoxPromptBank, BoxSegmenter, Context, Dataset, Generator, Measure, PromptBank,
        Reporter, Segmenter, Validator, Watcher,
    };
    pub use abi_stable::std_types::{RNone, ROption, RSlice, RSome, RStr, RString, RVec};
    pub use schemars::JsonSchema;
    pub use serde::Deserialize;
}
