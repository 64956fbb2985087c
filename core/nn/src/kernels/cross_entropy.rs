//! Cross-entropy of class logits and labels, forward and backward.
//!
//! The forward pass leaves two numbers for each pixel, the logarithm of the sum of exponentials and
//! the slope in the log-probability of the label; then every plane of the gradient is a loop of its
//! own.

use super::{buffer, loss::exp_of_negative};
use pulp::Arch;
use rayon::prelude::*;

/// Pixels that one task takes: their logits of some classes stay in the cache.
const CHUNK: usize = 1 << 11;

/// The label of a pixel that does not count.
pub(crate) const IGNORED: u32 = u32::MAX;

/// Logits `[batch, classes, pixels]`, labels `[batch, pixels]`, and how they are weighed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy<'a> {
    pub logits: &'a [f32],
    /// Less than the number of classes, or [`IGNORED`].
    pub labels: &'a [u32],
    pub pixels: usize,
    /// Of each class.
    pub weights: &'a [f32],
    /// Share of the label's probability that is spread over all classes.
    pub smoothing: f32,
    /// Power of the focal loss; 0 for plain cross-entropy.
    pub gamma: f32,
}

/// What the forward pass leaves of each pixel.
pub(crate) struct Left {
    /// ln Σ e^logit.
    logs: Vec<f32>,
    /// The slope of the loss in the log-probability of the label.
    slopes: Vec<f32>,
}

impl CrossEntropy<'_> {
    fn classes(&self) -> usize {
        self.weights.len()
    }

    /// Share of the spread probability that each class gets.
    fn spread(&self) -> f32 {
        self.smoothing / self.classes() as f32
    }

    /// -(1 - p)^γ ln p and its slope in l = ln p.
    fn focal(&self, l: f32) -> (f32, f32) {
        if self.gamma == 0.0 {
            return (-l, -1.0);
        }
        let missed = -l.exp_m1();
        if missed <= 0.0 {
            return (0.0, 0.0);
        }
        let power = missed.powf(self.gamma);
        let slope = self.gamma * power / missed * l.exp() * l - power;
        (-power * l, slope)
    }

    /// The weighted sum of the losses.
    pub fn forward(&self) -> (f64, Left) {
        let (mut logs, mut slopes) = (buffer(self.labels.len()), buffer(self.labels.len()));
        let images = logs
            .par_chunks_mut(self.pixels)
            .zip(slopes.par_chunks_mut(self.pixels));
        let parts: Vec<f64> = images
            .enumerate()
            .flat_map(|(image, (logs, slopes))| {
                logs.par_chunks_mut(CHUNK)
                    .zip(slopes.par_chunks_mut(CHUNK))
                    .enumerate()
                    .map(move |(chunk, (logs, slopes))| {
                        self.chunk(image, chunk * CHUNK, logs, slopes)
                    })
            })
            .collect();
        // In order, whichever thread was first.
        (parts.iter().sum(), Left { logs, slopes })
    }

    /// The logits of one class for `length` pixels from `start` on.
    fn row(&self, image: usize, class: usize, start: usize, length: usize) -> &[f32] {
        let start = (image * self.classes() + class) * self.pixels + start;
        &self.logits[start..start + length]
    }

    /// The loss of the pixels from `start` on.
    fn chunk(&self, image: usize, start: usize, logs: &mut [f32], slopes: &mut [f32]) -> f64 {
        let row = |class| self.row(image, class, start, logs.len());
        let rows: Vec<&[f32]> = (0..self.classes()).map(row).collect();
        log_sums(&rows, logs, slopes);
        let labels = &self.labels[image * self.pixels + start..][..logs.len()];
        let mut total = 0.0;
        for (at, (label, slope)) in labels.iter().zip(slopes).enumerate() {
            *slope = 0.0;
            if *label == IGNORED {
                continue;
            }
            let class = *label as usize;
            let weight = self.weights[class] * (1.0 - self.smoothing);
            let (loss, by_log) = self.focal(rows[class][at] - logs[at]);
            total += f64::from(weight * loss);
            *slope = weight * by_log;
            if self.smoothing > 0.0 {
                let rows = rows.iter().zip(self.weights);
                let spread: f32 = rows.map(|(row, w)| w * (logs[at] - row[at])).sum();
                total += f64::from(self.spread() * spread);
            }
        }
        total
    }

    /// `factor` times the gradient of the logits.
    pub fn backward(&self, left: &Left, factor: f32) -> Vec<f32> {
        let mut out = buffer(self.logits.len());
        out.par_chunks_mut(self.pixels)
            .enumerate()
            .for_each(|(plane, out)| {
                let (image, class) = (plane / self.classes(), plane % self.classes());
                self.plane(image, class, left, factor, out);
            });
        out
    }

    fn plane(&self, image: usize, class: usize, left: &Left, factor: f32, out: &mut [f32]) {
        let pixels = image * self.pixels..(image + 1) * self.pixels;
        let logits = self.row(image, class, 0, self.pixels);
        let left = left.logs[pixels.clone()]
            .iter()
            .zip(&left.slopes[pixels.clone()]);
        let pixels = self.labels[pixels].iter().zip(left);
        let by_share = factor * self.spread() * self.weights.iter().sum::<f32>();
        let by_class = factor * self.spread() * self.weights[class];
        let class = class as u32;
        Arch::new().dispatch(|| {
            for ((out, x), (label, (log, slope))) in out.iter_mut().zip(logits).zip(pixels) {
                let share = exp_of_negative(x - log);
                let own = if *label == class { 1.0 } else { 0.0 };
                let spread = by_share * share - by_class;
                let spread = if *label == IGNORED { 0.0 } else { spread };
                *out = factor * slope * (own - share) + spread;
            }
        });
    }
}

/// ln Σ e^x over the rows, for each place; `sums` is room to work in.
fn log_sums(rows: &[&[f32]], logs: &mut [f32], sums: &mut [f32]) {
    Arch::new().dispatch(|| {
        logs.fill(f32::NEG_INFINITY);
        for row in rows {
            for (log, x) in logs.iter_mut().zip(*row) {
                *log = if *x > *log { *x } else { *log };
            }
        }
        sums.fill(0.0);
        for row in rows {
            for ((sum, log), x) in sums.iter_mut().zip(&*logs).zip(*row) {
                *sum += exp_of_negative(x - log);
            }
        }
    });
    for (log, sum) in logs.iter_mut().zip(sums) {
        *log += sum.ln();
    }
}
