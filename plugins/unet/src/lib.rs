//! The segmenter `unet`: the U-Net of Ronneberger et al. (2015) in its usual present-day form,
//! with batch normalisation and windows that keep the size.

#![forbid(unsafe_code)]

mod config;
mod inspect;
mod model;
mod segmenter;
mod statistics;

pub use config::{Architecture, Loss, Optimizer, Options, Schedule};
pub use model::UNet;
pub use segmenter::Segmenter;

diffaug::export_plugin! {
    segmenter "unet" for diffaug_nn::BACKEND => Segmenter, "U-Net with batch normalisation, trained from scratch"
}
