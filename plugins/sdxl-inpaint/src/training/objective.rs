//! What the denoising network minimises: the error of its target, over the whole latent or under the
//! hole, with what must be preserved outside of it (Eq. 7), and the weight of each timestep.

use super::options::{Loss, Training};
use candle_core::{Device, Tensor};
use diffaug::Result;
use diffaug_nn::diffusion::scheduler::{NoiseSchedule, Prediction};

/// The least share of a latent by which a region's error is divided: below it a hole of a few cells
/// would count as much as one of hundreds, and their noise would lead.
const LEAST_REGION: f64 = 0.05;

/// Latents of a batch, before and after noise was added.
pub struct Noisy<'a> {
    /// Clean latents, `[n, channels, h, w]`.
    pub z0: &'a Tensor,
    /// The noise, of that shape.
    pub noise: &'a Tensor,
    /// What the network saw, of that shape.
    pub noisy: &'a Tensor,
    /// The holes, `[n, 1, h, w]`: 1 where is to be painted.
    pub mask: &'a Tensor,
    /// Timesteps, `n` of them.
    pub t: &'a [u32],
}

/// What is minimised.
pub struct Objective<'a> {
    /// Which error, with what weights.
    pub training: &'a Training,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The noise of training.
    pub schedule: &'a NoiseSchedule,
}

impl Objective<'_> {
    /// The loss of each picture, `[n]`, for the network's `output`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn losses(&self, batch: &Noisy<'_>, output: &Tensor) -> Result<Tensor> {
        let error = self.target_error(batch, output)?;
        match self.training.loss {
            Loss::Mse => Ok(error.flatten_from(1)?.mean(1)?),
            Loss::Masked => region_mean(&error, batch.mask),
            Loss::Paper => {
                let painted = region_mean(&error, batch.mask)?;
                let outside = batch.mask.affine(-1.0, 1.0)?;
                let kept = region_mean(&self.preserve_error(batch, output)?, &outside)?;
                Ok((painted + (kept * self.training.preserve)?)?)
            }
        }
    }

    /// The squared error of what the network is to predict. For one that predicts the noise this is
    /// Eq. 7's; for velocities the error of the noise would vanish where there is no signal.
    fn target_error(&self, batch: &Noisy<'_>, output: &Tensor) -> Result<Tensor> {
        let (z0, noise) = (batch.z0, batch.noise);
        let target = self.schedule.target(self.prediction, z0, noise, batch.t)?;
        Ok((output - target)?.sqr()?)
    }

    /// How far the clean latent that the network sees is from the true one, times √ᾱ. With √ᾱ the noise
    /// is merely taken off, so that nothing is divided by a small number. The true latent, and not that
    /// of the picture with its hole, whose cells at the border hold some of the grey of the hole.
    fn preserve_error(&self, batch: &Noisy<'_>, output: &Tensor) -> Result<Tensor> {
        let found = self
            .schedule
            .noise(self.prediction, output, batch.noisy, batch.t)?;
        let expected = self.schedule.add_noise(batch.z0, &found, batch.t)?;
        Ok((batch.noisy - expected)?.sqr()?)
    }

    /// The weight of each timestep, `[n]`: all 1 without `min_snr`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn weights(&self, t: &[u32], device: &Device) -> Result<Tensor> {
        let snr = self.schedule.snr(t)?;
        let weights: Vec<f32> = snr.into_iter().map(|snr| self.weight(snr) as f32).collect();
        Ok(Tensor::from_vec(weights, t.len(), device)?)
    }

    /// The weight at a ratio of signal to noise (Hang et al., 2023, section 3.4): that of the clean
    /// latent's error, the smaller of the ratio and `min_snr`, brought to what is predicted. For
    /// velocities `snr_floor` is added to it, since without signal it would be 0 and the first step of
    /// painting never learnt.
    fn weight(&self, snr: f64) -> f64 {
        let Some(gamma) = self.training.min_snr else {
            return 1.0;
        };
        match self.prediction {
            // Noise without signal, where the limit is 1.
            Prediction::Epsilon if snr == 0.0 => 1.0,
            Prediction::Epsilon => snr.min(gamma) / snr,
            Prediction::Velocity => (snr.min(gamma) + self.training.snr_floor) / (snr + 1.0),
            Prediction::Sample => snr.min(gamma) + self.training.snr_floor,
        }
    }
}

/// The mean of `error` `[n, channels, h, w]` over the cells where `region` `[n, 1, h, w]` is 1, `[n]`;
/// a region below [`LEAST_REGION`] of the latent is divided by that share.
fn region_mean(error: &Tensor, region: &Tensor) -> Result<Tensor> {
    let inside = error.broadcast_mul(region)?.flatten_from(1)?.mean(1)?;
    let share = region.flatten_from(1)?.mean(1)?;
    Ok((inside / share.clamp(LEAST_REGION, 1.0)?)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::training::architecture::Architecture;
    use diffaug_nn::{
        diffusion::scheduler::{SamplerName, SchedulerConfig},
        testing::{close, random},
    };

    const SHAPE: [usize; 4] = [3, 4, 8, 8];
    const T: [u32; 3] = [20, 500, 990];

    /// Holes of one cell, of a half and of everything.
    fn holes() -> Tensor {
        let cell = |picture: usize, at: usize| match picture {
            0 => f32::from(at == 27),
            1 => f32::from(at < 32),
            _ => 1.0,
        };
        let values = (0..3).flat_map(|picture| (0..64).map(move |at| cell(picture, at)));
        Tensor::from_vec(values.collect::<Vec<_>>(), (3, 1, 8, 8), &Device::Cpu).unwrap()
    }

    fn schedule(zero: bool) -> NoiseSchedule {
        let config = SchedulerConfig {
            rescale_betas_zero_snr: Some(zero),
            ..SchedulerConfig::new(SamplerName::Ddim)
        };
        NoiseSchedule::new(&config).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.to_vec1().unwrap()
    }

    #[test]
    fn a_perfect_prediction_has_no_loss_anywhere() {
        let (z0, noise) = (random("z0", &SHAPE), random("noise", &SHAPE));
        let schedule = schedule(false);
        let (mask, noisy) = (holes(), schedule.add_noise(&z0, &noise, &T).unwrap());
        let batch = Noisy {
            z0: &z0,
            noise: &noise,
            noisy: &noisy,
            mask: &mask,
            t: &T,
        };
        for prediction in [
            Prediction::Epsilon,
            Prediction::Velocity,
            Prediction::Sample,
        ] {
            let perfect = schedule.target(prediction, &z0, &noise, &T).unwrap();
            for loss in [Loss::Paper, Loss::Mse, Loss::Masked] {
                let training = Training {
                    loss,
                    ..Training::default()
                };
                let objective = Objective {
                    training: &training,
                    prediction,
                    schedule: &schedule,
                };
                let losses = values(&objective.losses(&batch, &perfect).unwrap());
                assert!(losses.iter().all(|loss| *loss < 1e-10), "{losses:?}");
                let wrong = (&perfect + 0.5).unwrap();
                let losses = values(&objective.losses(&batch, &wrong).unwrap());
                assert!(losses.iter().all(|loss| *loss > 1e-3), "{losses:?}");
            }
        }
    }

    #[test]
    fn an_error_counts_alike_in_small_and_large_holes() {
        let z0 = random("z0", &SHAPE);
        let (noise, schedule) = (random("noise", &SHAPE), schedule(false));
        let (mask, noisy) = (holes(), schedule.add_noise(&z0, &noise, &T).unwrap());
        let batch = Noisy {
            z0: &z0,
            noise: &noise,
            noisy: &noisy,
            mask: &mask,
            t: &T,
        };
        let training = Training {
            loss: Loss::Masked,
            ..Training::default()
        };
        let objective = Objective {
            training: &training,
            prediction: Prediction::Epsilon,
            schedule: &schedule,
        };
        let losses = values(&objective.losses(&batch, &(&noise + 2.0).unwrap()).unwrap());
        // One cell of 64 is less than a twentieth.
        let small = 4.0 / 64.0 / 0.05;
        for (loss, wanted) in losses.iter().zip([small, 4.0, 4.0]) {
            assert!((loss - wanted).abs() < 1e-5, "{loss} for {wanted}");
        }
    }

    #[test]
    fn no_timestep_is_left_without_weight() {
        let schedule = NoiseSchedule::new(&Architecture::default().scheduler().unwrap()).unwrap();
        let training = Training {
            min_snr: Some(5.0),
            ..Training::default()
        };
        let objective = |prediction| Objective {
            training: &training,
            prediction,
            schedule: &schedule,
        };
        let t = [0, 500, 999];
        let snr = schedule.snr(&t).unwrap();
        assert_eq!(snr[2], 0.0);
        let weights = |prediction| {
            let weights = objective(prediction).weights(&t, &Device::Cpu).unwrap();
            values(&weights)
        };
        close(
            &Tensor::new(weights(Prediction::Velocity), &Device::Cpu).unwrap(),
            &Tensor::new(
                &[
                    (5.25 / (snr[0] + 1.0)) as f32,
                    ((snr[1] + 0.25) / (snr[1] + 1.0)) as f32,
                    0.25,
                ],
                &Device::Cpu,
            )
            .unwrap(),
            1e-6,
        );
        let epsilon = weights(Prediction::Epsilon);
        assert!((f64::from(epsilon[0]) - 5.0 / snr[0]).abs() < 1e-6);
        assert_eq!(epsilon[1..], [1.0, 1.0]);
        let plain = Training::default();
        let all = Objective {
            training: &plain,
            prediction: Prediction::Velocity,
            schedule: &schedule,
        };
        assert_eq!(values(&all.weights(&t, &Device::Cpu).unwrap()), [1.0; 3]);
    }
}
