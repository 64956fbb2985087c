//! The plugins that are linked into this binary.

#[cfg(feature = "builtin")]
use diffaug_bundle as _;
