//! The generator `sdxl-inpaint`: paints lesions with Stable Diffusion XL (and 1.x, 2.x) inpainting
//! models in the layout of diffusers, and fine-tunes or trains them.
//!
//! What it paints is what diffusers paints: with `rng = "torch-cpu"` and `composite = "none"` the
//! same seed gives the same image, up to rounding.

#![forbid(unsafe_code)]

mod autoencoder;
mod generator;
mod inspect;
mod loader;
pub mod lora;
mod noise;
mod options;
mod picture;
mod pipeline;
mod seam;
mod stages;
pub mod text;
mod training;

pub use generator::SdxlInpaint;
pub use options::Options;

diffaug::export_plugin! {
    generator "sdxl-inpaint" for diffaug_nn::BACKEND => SdxlInpaint, "Stable Diffusion XL inpainting, guided by texts; can be fine-tuned, or trained from nothing"
}
