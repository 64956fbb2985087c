//! Models of diffusion that lie on disk or in a hub, in the layouts that they are published in, and
//! small autoencoders that are trained here.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod compressor;
pub mod hub;
pub mod original;
pub mod packing;
pub mod pickled;
pub mod unshuffle;
mod vae;

pub use vae::{Moments, Vae};
