//! The segmenters from outside, as the host uses them.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod data;
mod folders;
mod learning;
#[cfg(target_os = "linux")]
mod memory;
mod networks;
mod published;
