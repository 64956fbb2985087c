//! Everything that is tested from outside: the binary `diffaug` with libraries, manifests and
//! folders as users have them.
//!
//! One test binary, for it links once. Tests that need the linked-in plugins are behind the feature
//! `builtin`; `cargo test -p diffaug-host --no-default-features` runs the others.

#![allow(clippy::unwrap_used)]

mod abi;
mod cli;
mod compare;
#[cfg(all(target_os = "linux", not(feature = "cuda")))]
mod cuda;
mod doctor;
#[cfg(feature = "builtin")]
mod experiment;
#[cfg(feature = "builtin")]
mod export;
#[cfg(feature = "builtin")]
mod facts;
#[cfg(feature = "builtin")]
mod gate;
#[cfg(feature = "builtin")]
mod inputs;
#[cfg(all(unix, feature = "builtin"))]
mod kubernetes;
mod manifests;
mod measures;
mod misbehave;
#[cfg(feature = "builtin")]
mod mixing;
#[cfg(feature = "builtin")]
mod paper;
#[cfg(feature = "builtin")]
mod pipeline;
#[cfg(feature = "builtin")]
mod report;
mod safety;
#[cfg(feature = "builtin")]
mod synthesis;
mod util;
#[cfg(feature = "builtin")]
mod weights;
