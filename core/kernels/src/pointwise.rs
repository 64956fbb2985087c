//! Losses that compare values one by one.

use super::{buffer, sum};
use pulp::Arch;
use rayon::prelude::*;

/// Values that one task takes.
const CHUNK: usize = 1 << 13;

/// A loss that depends on a value `x` less its target `t` alone.
pub trait Pointwise: Copy + Send + Sync + 'static {
    /// What the operation is called.
    const NAME: &'static str;
    /// The loss.
    fn value(self, x: f32, t: f32) -> f32;

    /// Its slope in `x`.
    fn slope(self, x: f32, t: f32) -> f32;
}

/// |x - t|.
#[derive(Clone, Copy, Debug)]
pub struct Absolute;

impl Pointwise for Absolute {
    const NAME: &'static str = "l1";

    #[inline(always)]
    fn value(self, x: f32, t: f32) -> f32 {
        (x - t).abs()
    }

    #[inline(always)]
    fn slope(self, x: f32, t: f32) -> f32 {
        let d = x - t;
        // `signum` of 0 is 1.
        if d == 0.0 { 0.0 } else { d.signum() }
    }
}

/// (x - t)².
#[derive(Clone, Copy, Debug)]
pub struct Square;

impl Pointwise for Square {
    const NAME: &'static str = "mse";

    #[inline(always)]
    fn value(self, x: f32, t: f32) -> f32 {
        (x - t) * (x - t)
    }

    #[inline(always)]
    fn slope(self, x: f32, t: f32) -> f32 {
        2.0 * (x - t)
    }
}

/// The sum of the loss.
pub fn total(loss: impl Pointwise, x: &[f32], t: &[f32]) -> f64 {
    let chunks = x.par_chunks(CHUNK).zip(t.par_chunks(CHUNK));
    let part = |(x, t)| sum([x, t], |[x, t]| loss.value(x, t));
    let parts: Vec<f64> = chunks.map(part).collect();
    // In order, whichever thread was first.
    parts.iter().sum()
}

/// `factor` times the slope of the loss at each value.
pub fn gradient(loss: impl Pointwise, x: &[f32], t: &[f32], factor: f32) -> Vec<f32> {
    let mut out = buffer(x.len());
    out.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK).zip(t.par_chunks(CHUNK)))
        .for_each(|(out, (x, t))| {
            Arch::new().dispatch(|| {
                for (out, (x, t)) in out.iter_mut().zip(x.iter().zip(t)) {
                    *out = factor * loss.slope(*x, *t);
                }
            });
        });
    out
}
