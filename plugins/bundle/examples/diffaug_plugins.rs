//! All plugins of this repository as a library, from which a host without any loads them:
//! `cargo build --workspace --example diffaug_plugins`.

use diffaug_bundle as _;
