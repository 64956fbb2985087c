//! Cross-entropy of class logits and labels, forward and backward.
//!
//! The forward pass leaves the logarithm of the sum of exponentials of each pixel; then every plane of
//! the gradient is a loop of its own.

use super::{buffer, loss::exp_of_negative};
use pulp::Arch;
use rayon::prelude::*;

/// Pixels that one task takes: their logits of some classes stay in the cache.
const CHUNK: usize = 1 << 11;

/// Logits `[batch, classes, pixels]` and labels `[batch, pixels]`.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a> {
    /// One for each class of each pixel.
    pub logits: &'a [f32],
    /// Less than the number of classes.
    pub labels: &'a [u32],
    /// Pixels of an image.
    pub pixels: usize,
    /// Classes of a pixel.
    pub classes: usize,
}

impl CrossEntropy<'_> {
    /// The sum of the losses, and ln Σ e^logit of each pixel.
    pub fn forward(&self) -> (f64, Vec<f32>) {
        let mut logs = buffer(self.labels.len());
        let parts: Vec<f64> = logs
            .par_chunks_mut(self.pixels)
            .enumerate()
            .flat_map(|(image, logs)| {
                let chunks = logs.par_chunks_mut(CHUNK).enumerate();
                chunks.map(move |(chunk, logs)| self.chunk(image, chunk * CHUNK, logs))
            })
            .collect();
        // In order, whichever thread was first.
        (parts.iter().sum(), logs)
    }

    /// The logits of one class for `length` pixels from `start` on.
    fn row(&self, image: usize, class: usize, start: usize, length: usize) -> &[f32] {
        let start = (image * self.classes + class) * self.pixels + start;
        &self.logits[start..start + length]
    }

    /// The loss of the pixels from `start` on.
    fn chunk(&self, image: usize, start: usize, logs: &mut [f32]) -> f64 {
        let row = |class| self.row(image, class, start, logs.len());
        let rows: Vec<&[f32]> = (0..self.classes).map(row).collect();
        let labels = &self.labels[image * self.pixels + start..][..logs.len()];
        log_sums(&rows, logs);
        let losses = labels.iter().zip(logs).enumerate();
        losses
            .map(|(at, (label, log))| f64::from(*log - rows[*label as usize][at]))
            .sum()
    }

    /// `factor` times the gradient of the logits, given what the forward pass left.
    pub fn backward(&self, logs: &[f32], factor: f32) -> Vec<f32> {
        let mut out = buffer(self.logits.len());
        out.par_chunks_mut(self.pixels)
            .enumerate()
            .for_each(|(plane, out)| {
                let (image, class) = (plane / self.classes, plane % self.classes);
                self.plane(image, class, logs, factor, out);
            });
        out
    }

    fn plane(&self, image: usize, class: usize, logs: &[f32], factor: f32, out: &mut [f32]) {
        let pixels = image * self.pixels..(image + 1) * self.pixels;
        let logits = self.row(image, class, 0, self.pixels);
        let pixels = self.labels[pixels.clone()].iter().zip(&logs[pixels]);
        let class = class as u32;
        Arch::new().dispatch(|| {
            for ((out, x), (label, log)) in out.iter_mut().zip(logits).zip(pixels) {
                let own = if *label == class { 1.0 } else { 0.0 };
                *out = factor * (exp_of_negative(x - log) - own);
            }
        });
    }
}

/// ln Σ e^x over the rows, for each place.
fn log_sums(rows: &[&[f32]], logs: &mut [f32]) {
    let mut sums = vec![0.0; logs.len()];
    Arch::new().dispatch(|| {
        logs.fill(f32::NEG_INFINITY);
        for row in rows {
            for (log, x) in logs.iter_mut().zip(*row) {
                *log = if *x > *log { *x } else { *log };
            }
        }
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
