//! Short names for the random draws that scenes are made of.

use diffaug::rng::Rng;
use rand::RngExt;

/// Uniform between two bounds.
pub fn between(rng: &mut Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

/// Uniform in the logarithm: as many draws between 1 and 2 as between 2 and 4.
pub fn spread(rng: &mut Rng, low: f32, high: f32) -> f32 {
    (low * (high / low).powf(rng.random::<f32>())).clamp(low, high)
}

/// True with that probability.
pub fn chance(rng: &mut Rng, probability: f64) -> bool {
    rng.random_bool(probability)
}

/// A whole number from `low` to `high`, both included.
pub fn count(rng: &mut Rng, low: usize, high: usize) -> usize {
    rng.random_range(low..=high)
}

/// One of several, each as likely.
pub fn one_of<T: Copy, const N: usize>(rng: &mut Rng, choices: [T; N]) -> T {
    choices[rng.random_range(0..N)]
}

/// An angle of the whole circle.
pub fn turn(rng: &mut Rng) -> f32 {
    between(rng, 0.0, std::f32::consts::TAU)
}

/// A seed for [`crate::noise::Noise`].
pub fn seed(rng: &mut Rng) -> u32 {
    rng.random()
}
