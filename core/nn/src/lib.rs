//! What DiffAug's models share: differentiable operations that are right and fast, parameters
//! with seeded initial values, the training loop, and weights on disk.
//!
//! Tensors are candle's. The operations of [`ops`] replace candle's own where those are slow on a
//! processor or have a wrong gradient; on other devices they are made of candle's.

#![forbid(unsafe_code)]

pub mod batch;
pub mod budget;
mod checkpoint;
pub mod device;
pub mod diffusion;
pub mod finite;
pub mod fit;
mod given;
pub mod layers;
pub mod limits;
pub mod noise;
mod operation;
pub mod ops;
pub mod optim;
pub mod params;
pub mod perceptual;
pub mod precision;
pub mod recompute;
pub mod segmenter;
pub mod testing;
pub mod torch_rng;
pub mod weights;

pub use candle_core::{DType, Device, Tensor};

/// What this build computes on besides the processor.
pub const BACKEND: diffaug::Backend = if cfg!(feature = "cuda") {
    diffaug::Backend::Cuda
} else if cfg!(feature = "metal") {
    diffaug::Backend::Metal
} else {
    diffaug::Backend::Cpu
};
