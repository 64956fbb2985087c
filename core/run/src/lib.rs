//! What plans, stores, reads and compares runs: no networks, no printing, no global state.

#![forbid(unsafe_code)]

pub mod compare;
pub mod escape;
pub mod experiment;
pub mod failure;
mod fingerprint;
mod journal;
pub mod layout;
pub mod machine;
pub mod manifest;
pub mod needs;
pub mod reader;
pub mod registry;
mod results;
pub mod runs;
pub mod session;
pub mod slots;
pub mod statistics;
pub mod steps;
mod store;
pub mod verify;
pub mod work;
