//! Euler's method along the probability flow (Karras et al., 2022, algorithm 1 without its second
//! half). The noisy latent is the clean one plus sigma times noise: its variance is not kept at 1.

use super::{
    config::{Class, SchedulerConfig, Spacing},
    grid::Grid,
    sampler::{Step, combine},
    schedule::Prediction,
};
use candle_core::{Result, Tensor};

#[derive(Clone, Debug)]
pub(super) struct Euler {
    prediction: Prediction,
    sigmas: Vec<f64>,
    init_noise_sigma: f64,
}

impl Euler {
    pub(super) fn new(config: &SchedulerConfig, grid: &Grid) -> diffaug::Result<Self> {
        let highest = grid.sigmas.iter().copied().fold(0.0, f64::max);
        Ok(Euler {
            prediction: config.prediction()?,
            sigmas: grid.sigmas.clone(),
            init_noise_sigma: match config.spacing(Class::Euler)? {
                Spacing::Leading => (highest * highest + 1.0).sqrt(),
                Spacing::Linspace | Spacing::Trailing => highest,
            },
        })
    }

    pub(super) fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    pub(super) fn step(&self, output: &Tensor, i: usize, x: &Tensor) -> Result<Step> {
        let (sigma, after) = (self.sigmas[i], self.sigmas[i + 1]);
        let squares = sigma * sigma + 1.0;
        let [of_x, of_output] = match self.prediction {
            Prediction::Epsilon => [1.0, -sigma],
            Prediction::Velocity => [1.0 / squares, -sigma / squares.sqrt()],
            Prediction::Sample => [0.0, 1.0],
        };
        // The slope is (x - z0) / sigma.
        let reach = (after - sigma) / sigma;
        Ok(Step {
            x: combine(&[
                (1.0 + reach * (1.0 - of_x), x),
                (-reach * of_output, output),
            ])?,
            z0: combine(&[(of_x, x), (of_output, output)])?,
        })
    }
}
