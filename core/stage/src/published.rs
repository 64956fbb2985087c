//! What was published of a dataset: how many samples, where, under which terms.
//!
//! A dataset plugin states it in the JSON schema of its options, so that it crosses the border with them:
//!
//! ```
//! use diffaug::{prelude::*, published::Published};
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[schemars(extend("x-published" = published()))]
//! struct Options {
//!     /// The folder of the images.
//!     root: std::path::PathBuf,
//! }
//!
//! fn published() -> Published {
//!     Published {
//!         samples: 612,
//!         groups: Some(29),
//!         homepage: "https://example.org/colon".into(),
//!         terms: "research".into(),
//!     }
//! }
//! # let schema = schemars::schema_for!(Options);
//! # assert_eq!(Published::of(schema.as_value()), Some(published()));
//! ```
//!
//! `diffaug dataset verify` compares a copy of the dataset with it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What was published of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// How many images with masks.
    pub samples: u64,
    /// How many videos or patients they are of, where the plugin tells them apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<u64>,
    /// Where to get it.
    pub homepage: String,
    /// What its publishers allow, in a few words; the page has the last word.
    pub terms: String,
}

impl Published {
    /// The key of a schema under which it stands.
    pub const KEY: &'static str = "x-published";

    /// What the schema of a dataset's options states; `None` where it states nothing that can be read.
    pub fn of(schema: &Value) -> Option<Self> {
        serde_json::from_value(schema.get(Self::KEY)?.clone()).ok()
    }
}
