//! Losses that compare values one by one.

use super::{
    buffer,
    loss::{exp_of_negative, ln_1p, sigmoid},
    sum,
};
use pulp::Arch;
use rayon::prelude::*;

/// Values that one task takes.
const CHUNK: usize = 1 << 13;

/// A loss of a value `x` and its target `t`.
pub(crate) trait Pointwise: Copy + Send + Sync + 'static {
    /// What the operation is called.
    const NAME: &'static str;
    /// Whether the loss depends on x - t alone, so that the target's slope is the negative.
    const OF_DIFFERENCE: bool;

    /// The loss.
    fn value(self, x: f32, t: f32) -> f32;

    /// Its slope in `x`.
    fn slope(self, x: f32, t: f32) -> f32;
}

/// |x - t|.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Absolute;

impl Pointwise for Absolute {
    const NAME: &'static str = "l1";
    const OF_DIFFERENCE: bool = true;

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
pub(crate) struct Square;

impl Pointwise for Square {
    const NAME: &'static str = "mse";
    const OF_DIFFERENCE: bool = true;

    #[inline(always)]
    fn value(self, x: f32, t: f32) -> f32 {
        (x - t) * (x - t)
    }

    #[inline(always)]
    fn slope(self, x: f32, t: f32) -> f32 {
        2.0 * (x - t)
    }
}

/// `scale` times: (x - t)² / 2 near the target, and |x - t| less a constant beyond `knee`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bent {
    /// Where the parabola becomes a line.
    pub knee: f32,
    /// 1 for Huber's loss.
    pub scale: f32,
}

impl Pointwise for Bent {
    const NAME: &'static str = "huber";
    const OF_DIFFERENCE: bool = true;

    #[inline(always)]
    fn value(self, x: f32, t: f32) -> f32 {
        let d = (x - t).abs();
        let near = 0.5 * d * d;
        let far = self.knee * (d - 0.5 * self.knee);
        self.scale * if d > self.knee { far } else { near }
    }

    #[inline(always)]
    fn slope(self, x: f32, t: f32) -> f32 {
        let d = x - t;
        let bounded = if d > self.knee { self.knee } else { d };
        let bounded = if d < -self.knee { -self.knee } else { bounded };
        self.scale * bounded
    }
}

/// ln(1 + e^x).
#[inline(always)]
fn softplus(x: f32) -> f32 {
    let positive = if x < 0.0 { 0.0 } else { x };
    positive + ln_1p(exp_of_negative(-x.abs()))
}

/// -`positive` t ln s(x) - (1 - t) ln(1 - s(x)) with the logistic function s.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy {
    /// Weight of the positive class.
    pub positive: f32,
}

impl Pointwise for CrossEntropy {
    const NAME: &'static str = "bce_with_logits";
    const OF_DIFFERENCE: bool = false;

    #[inline(always)]
    fn value(self, x: f32, t: f32) -> f32 {
        self.positive * t * softplus(-x) + (1.0 - t) * softplus(x)
    }

    #[inline(always)]
    fn slope(self, x: f32, t: f32) -> f32 {
        (1.0 - t) * sigmoid(x) - self.positive * t * sigmoid(-x)
    }
}

/// Cross-entropy times (1 - the probability of what is true)^`gamma`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Focal {
    /// Weights of the positive and the negative class.
    pub weights: (f32, f32),
    pub gamma: f32,
}

impl Focal {
    /// Probability of what is false, and `weight`.
    #[inline(always)]
    fn missed(self, x: f32, t: f32) -> (f32, f32) {
        let (positive, negative) = self.weights;
        let missed = t * sigmoid(-x) + (1.0 - t) * sigmoid(x);
        (missed, positive * t + negative * (1.0 - t))
    }
}

impl Pointwise for Focal {
    const NAME: &'static str = "focal_with_logits";
    const OF_DIFFERENCE: bool = false;

    #[inline(always)]
    fn value(self, x: f32, t: f32) -> f32 {
        let (missed, weight) = self.missed(x, t);
        weight * missed.powf(self.gamma) * CrossEntropy { positive: 1.0 }.value(x, t)
    }

    #[inline(always)]
    fn slope(self, x: f32, t: f32) -> f32 {
        let (missed, weight) = self.missed(x, t);
        let entropy = CrossEntropy { positive: 1.0 };
        let by_entropy = missed.powf(self.gamma) * entropy.slope(x, t);
        let steep = sigmoid(x) * sigmoid(-x) * (1.0 - 2.0 * t);
        // Where nothing is missed the loss is flat, whatever the power says.
        let by_power = if missed > 0.0 {
            self.gamma * missed.powf(self.gamma - 1.0) * steep * entropy.value(x, t)
        } else {
            0.0
        };
        weight * (by_entropy + by_power)
    }
}

/// The sum of the loss, each value times its weight if there are any.
pub(crate) fn total(loss: impl Pointwise, x: &[f32], t: &[f32], weights: Option<&[f32]>) -> f64 {
    let part = |(chunk, (x, t)): (usize, (&[f32], &[f32]))| match weights {
        Some(weights) => {
            let start = chunk * CHUNK;
            let weights = &weights[start..start + x.len()];
            sum([x, t, weights], |[x, t, weight]| weight * loss.value(x, t))
        }
        None => sum([x, t], |[x, t]| loss.value(x, t)),
    };
    let chunks = x.par_chunks(CHUNK).zip(t.par_chunks(CHUNK));
    let parts: Vec<f64> = chunks.enumerate().map(part).collect();
    // In order, whichever thread was first.
    parts.iter().sum()
}

/// `factor` times the slope of the loss at each value, times its weight if there are any.
pub(crate) fn gradient(
    loss: impl Pointwise,
    x: &[f32],
    t: &[f32],
    weights: Option<&[f32]>,
    factor: f32,
) -> Vec<f32> {
    let mut out = buffer(x.len());
    out.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK).zip(t.par_chunks(CHUNK)))
        .enumerate()
        .for_each(|(chunk, (out, (x, t)))| {
            Arch::new().dispatch(|| {
                for (out, (x, t)) in out.iter_mut().zip(x.iter().zip(t)) {
                    *out = factor * loss.slope(*x, *t);
                }
                if let Some(weights) = weights {
                    let weights = &weights[chunk * CHUNK..];
                    out.iter_mut().zip(weights).for_each(|(out, w)| *out *= w);
                }
            });
        });
    out
}
