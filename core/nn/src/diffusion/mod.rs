//! The networks of latent diffusion models, with the tensor names of diffusers, so that its
//! checkpoints load as they are and what is trained here loads there; and the noise they are
//! trained with and sampled from.
//!
//! Those of `candle-transformers` are not used. They are for inference alone: gradients end without a
//! word at their fused layer normalisation and softmax, which have no backward pass, and the
//! upsampling's overwrites others. Their UNet takes one timestep for a whole batch and knows neither
//! SDXL's pooled text and sizes nor GELU by the error function, so it does not paint what diffusers
//! paints.

mod autoencoder;
mod embedding;
pub mod original;
mod resnet;
pub mod scheduler;
mod tiny_autoencoder;
mod transformer;
mod unet;

pub use autoencoder::{Autoencoder, AutoencoderConfig, Decoder, Encoder, Posterior, SampleSize};
pub use embedding::{TimestepEmbedding, sinusoids};
pub use resnet::{Downsample, ResnetBlock, Upsample};
pub use tiny_autoencoder::{TinyAutoencoder, TinyAutoencoderConfig};
pub use transformer::{Transformer, TransformerConfig};
pub use unet::{Added, CachedTextUNet, PerBlock, UNet, UNetConfig};
