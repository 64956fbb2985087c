//! The segmenters `latent-seg` and `sdseg`: masks are denoised in the latent space of a frozen
//! autoencoder, in one step, on a condition that a trainable encoder makes of the image.
//!
//! `latent-seg` is the paper's validator (its section 3.2); `sdseg` the model it builds on (Lin et
//! al., Stable Diffusion Segmentation for Biomedical Images with Single-step Reverse Process, 2024).

#![forbid(unsafe_code)]

mod begin;
mod convert;
mod denoiser;
mod description;
mod inspect;
mod network;
mod options;
mod segmenter;
mod shares;
mod training;

pub use denoiser::{Denoiser, DenoiserConfig};
pub use options::Options;
pub use segmenter::{LatentSeg, SdSeg};

diffaug::export_plugin! {
    segmenter "latent-seg" for diffaug_nn::BACKEND => LatentSeg, "the paper's: two encoders, masks denoised in latent space in one step";
    segmenter "sdseg" for diffaug_nn::BACKEND => SdSeg, "Stable Diffusion Segmentation: a vision encoder of pixels, one step in latent space"
}

#[cfg(test)]
mod tests;
