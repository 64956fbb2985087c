//! One step of AdamW (Loshchilov & Hutter, 2019) in place.

use pulp::Arch;
use rayon::prelude::*;

/// Values that one task updates.
const CHUNK: usize = 1 << 14;

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Learning rate.
    pub rate: f32,
    /// Share of the value that is taken away: learning rate times weight decay.
    pub decay: f32,
    /// How much of the first moment stays, and what the gradient adds.
    pub beta1: (f32, f32),
    /// How much of the second moment stays, and what the gradient's square adds.
    pub beta2: (f32, f32),
    /// 1 / (1 - beta1^t).
    pub correction1: f32,
    /// 1 / (1 - beta2^t).
    pub correction2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// What the gradient is multiplied by (clipping).
    pub scale: f32,
}

/// Moves `values` against `gradient` and updates both moments.
pub fn step(
    step: Step,
    values: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    values
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .for_each(|(((values, gradient), first), second)| {
            Arch::new().dispatch(|| {
                let moments = first.iter_mut().zip(second);
                for ((value, gradient), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
                    let gradient = gradient * step.scale;
                    *m = step.beta1.0 * *m + step.beta1.1 * gradient;
                    *v = step.beta2.0 * *v + step.beta2.1 * gradient * gradient;
                    let root = (*v * step.correction2).sqrt() + step.epsilon;
                    *value = *value * (1.0 - step.decay) - step.rate * *m * step.correction1 / root;
                }
            });
        });
}
