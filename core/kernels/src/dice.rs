//! Overlap of probabilities and targets, plane by plane.

use super::{buffer, sum};
use pulp::Arch;
use rayon::prelude::*;

/// What Dice needs to know of a plane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overlap {
    /// Probability times target, summed.
    pub shared: f64,
    /// Sizes of both: their values or the squares of them, summed.
    pub sizes: f64,
}

impl std::ops::Add for Overlap {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Overlap {
            shared: self.shared + other.shared,
            sizes: self.sizes + other.sizes,
        }
    }
}

/// The overlap of every plane of `size` values.
pub fn overlaps(p: &[f32], t: &[f32], size: usize, squared: bool) -> Vec<Overlap> {
    p.par_chunks(size)
        .zip(t.par_chunks(size))
        .map(|(p, t)| Overlap {
            shared: sum([p, t], |[p, t]| p * t),
            sizes: if squared {
                sum([p, t], |[p, t]| p * p + t * t)
            } else {
                sum([p, t], |[p, t]| p + t)
            },
        })
        .collect()
}

/// The slope of a plane: a constant, times the target, and times the probability.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slope {
    /// What does not depend on the pixel.
    pub constant: f32,
    /// Factor of the target.
    pub by_target: f32,
    /// Factor of the probability.
    pub by_probability: f32,
}

/// The gradient of the probabilities, given the slope of each plane of `size` values.
pub fn gradient(p: &[f32], t: &[f32], size: usize, slopes: &[Slope]) -> Vec<f32> {
    let mut out = buffer(p.len());
    out.par_chunks_mut(size)
        .zip(p.par_chunks(size).zip(t.par_chunks(size)))
        .zip(slopes)
        .for_each(|((out, (p, t)), slope)| {
            Arch::new().dispatch(|| {
                for (out, (p, t)) in out.iter_mut().zip(p.iter().zip(t)) {
                    *out = slope.constant + slope.by_target * t + slope.by_probability * p;
                }
            });
        });
    out
}
