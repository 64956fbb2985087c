//! Batch normalisation with the ReLU behind it, forward and backward, a channel to a task.

use super::{by_channel, sum};
use pulp::Arch;
use rayon::prelude::*;

/// Mean and biased variance of every channel of a batch.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// One for each channel.
    pub mean: Vec<f32>,
    /// One for each channel.
    pub variance: Vec<f32>,
}

/// What is normalised: `[batch, channels, size]` values.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// The values.
    pub x: &'a [f32],
    /// Channels of an image.
    pub channels: usize,
    /// Values of a channel of an image.
    pub size: usize,
    /// Scales of all channels, then shifts of all channels.
    pub affine: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether negative results become 0.
    pub relu: bool,
}

impl<'a> Norm<'a> {
    /// The channel's part of every image of `values`.
    fn parts<'b>(&self, values: &'b [f32], channel: usize) -> impl Iterator<Item = &'b [f32]> {
        let parts = values.chunks_exact(self.size).skip(channel);
        parts.step_by(self.channels)
    }

    /// Number of values of a channel.
    fn count(&self) -> f64 {
        (self.x.len() / self.channels) as f64
    }

    /// Mean and variance of each channel, in two passes: one would lose the variance of values
    /// that lie far from 0.
    pub fn moments(&self) -> Moments {
        let moments = |channel| {
            let parts = || self.parts(self.x, channel);
            let total: f64 = parts().map(|part| sum([part], |[v]| v)).sum();
            let mean = (total / self.count()) as f32;
            let squares = parts().map(|part| {
                sum([part], |[v]| {
                    let distance = v - mean;
                    distance * distance
                })
            });
            (mean, (squares.sum::<f64>() / self.count()) as f32)
        };
        let both: Vec<(f32, f32)> = (0..self.channels).into_par_iter().map(moments).collect();
        let (mean, variance) = both.into_iter().unzip();
        Moments { mean, variance }
    }

    /// (x - mean) / sqrt(variance + epsilon) * scale + shift, then the ReLU if asked for.
    pub fn forward(&self, moments: &Moments) -> Vec<f32> {
        let mut out = vec![0.0; self.x.len()];
        by_channel(&mut out, self.channels, self.size)
            .into_par_iter()
            .enumerate()
            .for_each(|(channel, parts)| {
                let variance = moments.variance[channel];
                // An infinite variance would make zeros, and hide that there is one.
                let inverse = match variance.is_finite() {
                    true => 1.0 / (variance + self.epsilon).sqrt(),
                    false => f32::NAN,
                };
                let scale = self.affine[channel] * inverse;
                let shift = self.affine[self.channels + channel] - moments.mean[channel] * scale;
                let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
                for (out, x) in parts.into_iter().zip(self.parts(self.x, channel)) {
                    Arch::new().dispatch(|| {
                        for (out, x) in out.iter_mut().zip(x) {
                            let y = x * scale + shift;
                            // Not `max`, which would hide a NaN.
                            *out = if y < floor { floor } else { y };
                        }
                    });
                }
            });
        out
    }

    /// Gradients of x and of scales and shifts, given the result `y` and its gradient `dy`.
    /// `batch` says whether `moments` came from x itself (training) or are constants.
    pub fn backward(
        &self,
        moments: &Moments,
        y: &[f32],
        dy: &[f32],
        batch: bool,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut dx = vec![0.0; self.x.len()];
        let affine: Vec<(f32, f32)> = by_channel(&mut dx, self.channels, self.size)
            .into_par_iter()
            .enumerate()
            .map(|(channel, parts)| self.channel_backward(channel, moments, (y, dy), batch, parts))
            .collect();
        let (mut scales, shifts): (Vec<f32>, Vec<f32>) = affine.into_iter().unzip();
        scales.extend(shifts);
        (dx, scales)
    }

    fn channel_backward(
        &self,
        channel: usize,
        moments: &Moments,
        (y, dy): (&[f32], &[f32]),
        batch: bool,
        parts: Vec<&mut [f32]>,
    ) -> (f32, f32) {
        let mean = moments.mean[channel];
        let inverse = 1.0 / (moments.variance[channel] + self.epsilon).sqrt();
        // Where the ReLU cut off, nothing flows back.
        let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        let arch = Arch::new();
        let (mut shift, mut scale) = (0.0, 0.0);
        let sources = || {
            let (y, dy) = (self.parts(y, channel), self.parts(dy, channel));
            self.parts(self.x, channel).zip(y.zip(dy))
        };
        for (x, (y, dy)) in sources() {
            let flow = |y: f32, dy: f32| if y > floor { dy } else { 0.0 };
            shift += sum([y, dy], |[y, dy]| flow(y, dy));
            scale += sum([x, y, dy], |[x, y, dy]| flow(y, dy) * (x - mean));
        }
        let scale = scale * f64::from(inverse);
        let factor = self.affine[channel] * inverse;
        // Through mean and variance every value pulls at every other of its channel.
        let (by_mean, by_variance) = if batch {
            let pull = scale / self.count() * f64::from(inverse);
            ((shift / self.count()) as f32, pull as f32)
        } else {
            (0.0, 0.0)
        };
        for (dx, (x, (y, dy))) in parts.into_iter().zip(sources()) {
            arch.dispatch(|| {
                for (dx, (x, (y, dy))) in dx.iter_mut().zip(x.iter().zip(y.iter().zip(dy))) {
                    let flow = if *y > floor { *dy } else { 0.0 };
                    *dx = factor * (flow - by_mean - (x - mean) * by_variance);
                }
            });
        }
        (scale as f32, shift as f32)
    }
}
