//! Normal numbers that depend on (seed, purpose, index) alone.

use diffaug::rng;
use rand::RngExt;
use std::f32::consts::TAU;

/// `count` independent numbers of mean 0 and variance 1 (Box & Muller, 1958).
pub fn normal(seed: u64, purpose: &str, index: u64, count: usize) -> Vec<f32> {
    let mut rng = rng::stream(seed, purpose, index);
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // Above 0, so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        let (sin, cos) = (TAU * rng.random::<f32>()).sin_cos();
        values.extend([radius * cos, radius * sin]);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moments_are_those_of_a_normal_distribution() {
        let count = 100_000;
        let values = normal(1, "test", 0, count);
        let moment = |power: i32| {
            let sum: f64 = values.iter().map(|v| f64::from(*v).powi(power)).sum();
            sum / count as f64
        };
        assert!(moment(1).abs() < 0.02, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!(moment(3).abs() < 0.05, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.1, "{}", moment(4));
    }

    #[test]
    fn numbers_depend_on_what_they_are_for() {
        let draw = |seed, purpose, index| normal(seed, purpose, index, 3);
        assert_eq!(draw(1, "a", 0), draw(1, "a", 0)[..3]);
        assert_ne!(draw(1, "a", 0), draw(1, "a", 1));
        assert_ne!(draw(1, "a", 0), draw(1, "b", 0));
        assert_ne!(draw(1, "a", 0), draw(2, "a", 0));
        assert_eq!(normal(1, "a", 0, 7)[..3], draw(1, "a", 0)[..]);
    }
}
