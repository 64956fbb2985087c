//! Noise schedules and samplers, equal to those of diffusers and described by its
//! `scheduler_config.json`.
//!
//! [`NoiseSchedule`] is for training: any timestep for any sample, differentiable. [`Sampler`] is
//! for drawing: it goes down its own timesteps, all samples at once.
//!
//! ```
//! # use diffaug_nn::{Tensor, Device, diffusion::scheduler::*};
//! # fn network(x: &Tensor, t: f64) -> candle_core::Result<Tensor> { x.affine(0.1 * t / 1000.0, 0.0) }
//! # fn draw() -> candle_core::Result<Tensor> { Tensor::ones((1, 4, 8, 8), diffaug_nn::DType::F32, &Device::Cpu) }
//! # fn main() -> diffaug::Result<()> {
//! let config = SchedulerConfig::new(SamplerName::Dpmpp2m);
//! let mut sampler = Sampler::new(&config, 20)?;
//! let mut x = (draw()? * sampler.init_noise_sigma())?;
//! for i in 0..sampler.timesteps().len() {
//!     let output = network(&sampler.scale_input(&x, i)?, sampler.timesteps()[i])?;
//!     x = sampler.step(&output, i, &x, draw)?.x;
//! }
//! # Ok(()) }
//! ```

mod config;
mod ddim;
mod ddpm;
mod dpm;
mod euler;
mod grid;
#[cfg(test)]
mod refusals;
mod sampler;
mod schedule;
#[cfg(test)]
mod tests;
mod unipc;

pub use config::{SamplerName, SchedulerConfig};
pub use sampler::{Sampler, Step};
pub use schedule::{NoiseSchedule, Prediction};
