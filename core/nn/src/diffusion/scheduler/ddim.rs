//! Denoising diffusion implicit models (Song et al., 2021, eq. 12 and 16).

use super::{
    config::{SchedulerConfig, out_of_range},
    grid::Grid,
    sampler::{Step, combine},
    schedule::{Level, Prediction},
};
use candle_core::{Result, Tensor};
use diffaug::Error;

#[derive(Clone, Debug)]
pub(super) struct Ddim {
    output: Output,
    /// ᾱ before and after each step.
    alpha_bars: Vec<[f64; 2]>,
    eta: f64,
    /// Whether noise is what lies between the noisy latent and the clean one after it was cut off.
    of_clipped: bool,
}

impl Ddim {
    pub(super) fn new(
        config: &SchedulerConfig,
        grid: &Grid,
        steps: usize,
    ) -> diffaug::Result<Self> {
        let eta = config.eta.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&eta) {
            return Err(out_of_range("eta", eta, "a number from 0 to 1"));
        }
        let last = match config.set_alpha_to_one.unwrap_or(true) {
            true => 1.0,
            false => grid.alpha_bars[0],
        };
        let stride = grid.alpha_bars.len() / steps;
        let pair = |t: &f64| {
            let t = *t as usize;
            let after = t.checked_sub(stride).map_or(last, |t| grid.alpha_bars[t]);
            [grid.alpha_bars[t], after]
        };
        Ok(Ddim {
            output: Output::new(config, grid)?,
            alpha_bars: grid.timesteps.iter().map(pair).collect(),
            eta,
            of_clipped: config.use_clipped_model_output.unwrap_or(false),
        })
    }

    pub(super) fn step(
        &self,
        output: &Tensor,
        i: usize,
        x: &Tensor,
        noise: &mut impl FnMut() -> Result<Tensor>,
    ) -> Result<Step> {
        let [now, after] = self.alpha_bars[i];
        let z0 = self.output.clean(output, x, now)?;
        // Else noise is that of the network even where the clean latent was clipped.
        let (prediction, output) = match self.of_clipped {
            true => (Prediction::Sample, &z0),
            false => (self.output.prediction, output),
        };
        let [of_x, of_output] = prediction.noise(Level::of_alpha_bar(now));
        let variance = (1.0 - after) / (1.0 - now) * (1.0 - now / after);
        let deviation = self.eta * variance.max(0.0).sqrt();
        let direction = (1.0 - after - deviation * deviation).max(0.0).sqrt();
        let mut x = combine(&[
            (after.sqrt(), &z0),
            (direction * of_x, x),
            (direction * of_output, output),
        ])?;
        if self.eta > 0.0 {
            x = combine(&[(1.0, &x), (deviation, &noise()?)])?;
        }
        Ok(Step { x, z0 })
    }
}

/// How DDIM and DDPM take what the network answers.
#[derive(Clone, Debug)]
pub(super) struct Output {
    prediction: Prediction,
    /// Where the clean latent is cut off, if anywhere.
    clip: Option<f64>,
}

impl Output {
    /// For `config`, if the clean latent follows from the answer at every timestep of `grid`.
    pub(super) fn new(config: &SchedulerConfig, grid: &Grid) -> diffaug::Result<Self> {
        let range = config.clip_sample_range.unwrap_or(1.0);
        if range <= 0.0 || range.is_nan() {
            return Err(out_of_range("clip_sample_range", range, "a number above 0"));
        }
        let prediction = config.prediction()?;
        let lost = |t: &&f64| grid.alpha_bars[**t as usize] == 0.0;
        match grid.timesteps.iter().find(lost) {
            Some(t) if prediction == Prediction::Epsilon => {
                let message = format!(
                    "`prediction_type` is `epsilon`, but with `rescale_betas_zero_snr` timestep {t} holds no signal, and the clean latent does not follow from its noise"
                );
                Err(Error::config(message).at("prediction_type"))
            }
            _ => Ok(Output {
                prediction,
                clip: config.clip_sample.unwrap_or(true).then_some(range),
            }),
        }
    }

    /// The clean latent behind the noisy `x`.
    pub(super) fn clean(&self, output: &Tensor, x: &Tensor, alpha_bar: f64) -> Result<Tensor> {
        let [of_x, of_output] = self.prediction.clean(Level::of_alpha_bar(alpha_bar));
        let z0 = combine(&[(of_x, x), (of_output, output)])?;
        match self.clip {
            Some(range) => z0.clamp(-range as f32, range as f32),
            None => Ok(z0),
        }
    }
}
