//! What plans, stores, reads and compares runs: no networks, no printing, no global state.

#![forbid(unsafe_code)]

pub mod compare;
pub mod reader;
pub mod session;
pub mod statistics;
