//! Steps of SGD and RMSprop, as PyTorch defines them, and running means, in place.

use pulp::Arch;
use rayon::prelude::*;

/// Values that one task updates.
const CHUNK: usize = 1 << 14;

/// What one task works on: values, their gradient, and a part of each of the optimiser's tensors.
struct Part<'a> {
    values: &'a mut [f32],
    gradient: &'a [f32],
    slots: Vec<&'a mut [f32]>,
}

/// Cuts everything at the same places and lets `work` loose on the parts.
fn in_parts(
    values: &mut [f32],
    gradient: &[f32],
    slots: &mut [&mut [f32]],
    work: impl Fn(Part<'_>) + Sync,
) {
    let chunks = values.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK));
    let part = |(values, gradient)| Part {
        values,
        gradient,
        slots: Vec::new(),
    };
    let mut parts: Vec<Part<'_>> = chunks.map(part).collect();
    for slot in slots {
        for (part, chunk) in parts.iter_mut().zip(slot.chunks_mut(CHUNK)) {
            part.slots.push(chunk);
        }
    }
    parts.into_par_iter().for_each(|part| {
        Arch::new().dispatch(|| work(part));
    });
}

/// The numbers that both steps share.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Learning rate.
    pub rate: f32,
    /// Share of the value that is added to the gradient.
    pub decay: f32,
    /// What the gradient is multiplied by (clipping) before that.
    pub scale: f32,
    /// Share of the last change that goes on; the tensor for it is there when it is not 0.
    pub momentum: f32,
}

/// Gradient with clipping and weight decay.
fn decayed(step: &Step, part: &Part<'_>) -> Vec<f32> {
    let pairs = part.values.iter().zip(part.gradient);
    pairs
        .map(|(value, gradient)| gradient * step.scale + step.decay * value)
        .collect()
}

fn change(step: &Step, values: &mut [f32], change: &[f32]) {
    for (value, change) in values.iter_mut().zip(change) {
        *value -= step.rate * change;
    }
}

/// SGD; `slots` is empty or holds the momentum.
pub fn sgd(
    step: Step,
    nesterov: bool,
    values: &mut [f32],
    gradient: &[f32],
    slots: &mut [&mut [f32]],
) {
    in_parts(values, gradient, slots, |mut part| {
        let mut changes = decayed(&step, &part);
        if let [momentum] = &mut part.slots[..] {
            for (last, change) in momentum.iter_mut().zip(&mut changes) {
                *last = step.momentum * *last + *change;
                *change = if nesterov {
                    *change + step.momentum * *last
                } else {
                    *last
                };
            }
        }
        change(&step, part.values, &changes);
    });
}

/// What RMSprop adds.
#[derive(Clone, Copy, Debug)]
pub struct Rms {
    /// How much of the running means stays, and what the present gradient adds.
    pub alpha: (f32, f32),
    /// Added to the root.
    pub epsilon: f32,
    /// Whether the variance takes the place of the mean square.
    pub centered: bool,
}

/// RMSprop; `slots` are the mean square, the mean (where centred) and the momentum (where there is
/// one).
pub fn rmsprop(
    step: Step,
    rms: Rms,
    values: &mut [f32],
    gradient: &[f32],
    slots: &mut [&mut [f32]],
) {
    let average = move |mean: &mut f32, value: f32| {
        *mean = rms.alpha.0 * *mean + rms.alpha.1 * value;
        *mean
    };
    in_parts(values, gradient, slots, |mut part| {
        let mut changes = decayed(&step, &part);
        let mut slots = part.slots.iter_mut();
        if let Some(square) = slots.next() {
            let mut roots: Vec<f32> = square
                .iter_mut()
                .zip(&changes)
                .map(|(square, change)| average(square, change * change))
                .collect();
            if rms.centered
                && let Some(mean) = slots.next()
            {
                for ((root, mean), change) in roots.iter_mut().zip(mean.iter_mut()).zip(&changes) {
                    let mean = average(mean, *change);
                    *root = (*root - mean * mean).max(0.0);
                }
            }
            for (change, root) in changes.iter_mut().zip(&roots) {
                *change /= root.sqrt() + rms.epsilon;
            }
        }
        if let Some(momentum) = slots.next() {
            for (last, change) in momentum.iter_mut().zip(&mut changes) {
                *last = step.momentum * *last + *change;
                *change = *last;
            }
        }
        change(&step, part.values, &changes);
    });
}

/// Moves `means` towards `values` by `share` of the difference.
pub fn follow(means: &mut [f32], values: &[f32], share: f32) {
    in_parts(means, values, &mut [], |part| {
        for (mean, value) in part.values.iter_mut().zip(part.gradient) {
            *mean -= share * (*mean - value);
        }
    });
}
