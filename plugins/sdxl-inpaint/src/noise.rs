//! Where the noise of a picture comes from: a source for each job, so that neither the batch nor
//! its order matters.

use crate::options::Noise;
use candle_core::{Device, Result, Tensor};
use diffaug_nn::{
    noise,
    torch_rng::{CudaRng, TorchRng},
};

/// The multiprocessors of an A100 and the threads that each holds; below 221,184 values every card
/// draws the same.
const A100: (u32, u32) = (108, 2048);

/// Draws the normal numbers of one job, in the order in which diffusers draws them.
pub enum Source {
    /// [`Noise::Native`]: the seed and how many tensors were drawn.
    Native(u64, u64),
    /// [`Noise::TorchCpu`].
    Cpu(Box<TorchRng>),
    /// [`Noise::TorchCuda`].
    Cuda(CudaRng),
}

impl Source {
    /// The beginning of the stream for `seed`.
    pub fn new(kind: Noise, seed: u64) -> Self {
        match kind {
            Noise::Native => Source::Native(seed, 0),
            Noise::TorchCpu => Source::Cpu(Box::new(TorchRng::new(seed))),
            Noise::TorchCuda => Source::Cuda(CudaRng::new(seed, A100.0, A100.1)),
        }
    }

    /// The next tensor of that shape, f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn draw(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let count = shape.iter().product();
        let values = match self {
            Source::Native(seed, drawn) => {
                *drawn += 1;
                noise::normal(*seed, "latent", *drawn - 1, count)
            }
            Source::Cpu(rng) => rng.randn(count),
            Source::Cuda(rng) => rng.randn(count),
        };
        Tensor::from_vec(values, shape, device)
    }
}
