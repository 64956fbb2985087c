//! How much noise each timestep of training holds, and what follows from it for single samples:
//! the side of the network that is trained.

use super::config::{SchedulerConfig, out_of_range, pick};
use candle_core::{Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a network predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Prediction {
    /// The noise.
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The velocity of Salimans & Ho (2022).
    #[serde(rename = "v_prediction")]
    Velocity,
    /// The clean latent.
    #[serde(rename = "sample")]
    Sample,
}

impl Prediction {
    /// The clean latent is the first number times the noisy one plus the second times what was
    /// predicted.
    pub(super) fn clean(self, Level { alpha, sigma }: Level) -> [f64; 2] {
        match self {
            Prediction::Epsilon => [1.0 / alpha, -sigma / alpha],
            Prediction::Velocity => [alpha, -sigma],
            Prediction::Sample => [0.0, 1.0],
        }
    }

    /// The same of the noise.
    pub(super) fn noise(self, Level { alpha, sigma }: Level) -> [f64; 2] {
        match self {
            Prediction::Epsilon => [0.0, 1.0],
            Prediction::Velocity => [sigma, alpha],
            Prediction::Sample => [1.0 / sigma, -alpha / sigma],
        }
    }
}

/// A noisy latent is `alpha` times the clean one plus `sigma` times noise; their squares sum to 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) alpha: f64,
    pub(super) sigma: f64,
}

impl Level {
    /// Of ᾱ.
    pub(super) fn of_alpha_bar(alpha_bar: f64) -> Self {
        Level {
            alpha: alpha_bar.sqrt(),
            sigma: (1.0 - alpha_bar).sqrt(),
        }
    }

    /// Of the ratio of noise to signal.
    pub(super) fn of_ratio(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Level {
            alpha,
            sigma: ratio * alpha,
        }
    }

    /// Logarithm of the ratio of signal to noise; infinite without noise.
    pub(super) fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}

/// The noise of training. Timesteps are whole numbers from 0, one for each sample of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    alpha_bars: Vec<f64>,
}

impl NoiseSchedule {
    /// The noise that `config` describes, whatever its class (diffusers trains with
    /// `DDPMScheduler`).
    ///
    /// # Errors
    /// Naming the field that is unknown or out of range.
    pub fn new(config: &SchedulerConfig) -> diffaug::Result<Self> {
        let mut alpha_bars = betas(config)?;
        let mut product = 1.0;
        for value in &mut alpha_bars {
            product *= 1.0 - *value;
            *value = product;
        }
        if config.rescale_betas_zero_snr.unwrap_or(false) {
            without_terminal_signal(&mut alpha_bars);
        }
        Ok(NoiseSchedule { alpha_bars })
    }

    /// ᾱ of every timestep, the share of the signal in the variance.
    pub fn alpha_bars(&self) -> &[f64] {
        &self.alpha_bars
    }

    /// ᾱ / (1 - ᾱ), signal to noise, of the timesteps `t`.
    ///
    /// # Errors
    /// When there is no such timestep.
    pub fn snr(&self, t: &[u32]) -> Result<Vec<f64>> {
        let ratio = |alpha_bar: f64| alpha_bar / (1.0 - alpha_bar);
        t.iter().map(|&t| Ok(ratio(self.alpha_bar(t)?))).collect()
    }

    /// √ᾱ `z0` + √(1 - ᾱ) `noise`, both `[batch, …]` (DiffAug, eq. 3 and 10).
    ///
    /// # Errors
    /// When shapes do not fit, or there is no such timestep.
    pub fn add_noise(&self, z0: &Tensor, noise: &Tensor, t: &[u32]) -> Result<Tensor> {
        self.mix(z0, noise, t, |Level { alpha, sigma }| [alpha, sigma])
    }

    /// √ᾱ `noise` - √(1 - ᾱ) `z0`, both `[batch, …]`: what [`Prediction::Velocity`] predicts.
    ///
    /// # Errors
    /// Those of [`NoiseSchedule::add_noise`].
    pub fn velocity(&self, z0: &Tensor, noise: &Tensor, t: &[u32]) -> Result<Tensor> {
        self.mix(z0, noise, t, |Level { alpha, sigma }| [-sigma, alpha])
    }

    /// What a network with this `prediction` should answer.
    ///
    /// # Errors
    /// Those of [`NoiseSchedule::add_noise`].
    pub fn target(
        &self,
        prediction: Prediction,
        z0: &Tensor,
        noise: &Tensor,
        t: &[u32],
    ) -> Result<Tensor> {
        match prediction {
            Prediction::Epsilon => Ok(noise.clone()),
            Prediction::Velocity => self.velocity(z0, noise, t),
            Prediction::Sample => Ok(z0.clone()),
        }
    }

    /// The clean latent that the network's `output` for the noisy latent `x` amounts to, both
    /// `[batch, …]` (DiffAug, eq. 11, for [`Prediction::Epsilon`]).
    ///
    /// # Errors
    /// Those of [`NoiseSchedule::add_noise`]; when noise was predicted for a timestep without
    /// signal, since any latent may be behind it.
    pub fn clean(
        &self,
        prediction: Prediction,
        output: &Tensor,
        x: &Tensor,
        t: &[u32],
    ) -> Result<Tensor> {
        if prediction == Prediction::Sample {
            return Ok(output.clone());
        }
        if prediction == Prediction::Epsilon {
            let lost = |t: &u32| self.alpha_bars.get(*t as usize) == Some(&0.0);
            if let Some(at) = t.iter().position(lost) {
                bail!(
                    "sample {at} of the batch has timestep {}, which holds no signal: the clean latent does not follow from its noise",
                    t[at]
                );
            }
        }
        self.mix(x, output, t, |level| prediction.clean(level))
    }

    /// The noise that the network's `output` for the noisy latent `x` amounts to, both
    /// `[batch, …]`.
    ///
    /// # Errors
    /// Those of [`NoiseSchedule::add_noise`].
    pub fn noise(
        &self,
        prediction: Prediction,
        output: &Tensor,
        x: &Tensor,
        t: &[u32],
    ) -> Result<Tensor> {
        if prediction == Prediction::Epsilon {
            return Ok(output.clone());
        }
        self.mix(x, output, t, |level| prediction.noise(level))
    }

    fn alpha_bar(&self, t: u32) -> Result<f64> {
        match self.alpha_bars.get(t as usize) {
            Some(value) => Ok(*value),
            None => bail!("timestep {t} is not one of 0 to {}", self.last()),
        }
    }

    fn last(&self) -> usize {
        self.alpha_bars.len().saturating_sub(1)
    }

    /// `a` and `b` times the two numbers that `weights` gives for each sample's noise level.
    fn mix(
        &self,
        a: &Tensor,
        b: &Tensor,
        t: &[u32],
        weights: impl Fn(Level) -> [f64; 2],
    ) -> Result<Tensor> {
        if a.dims() != b.dims() || a.dims().first() != Some(&t.len()) {
            bail!(
                "tensors of {:?} and {:?} with {} timesteps, expected equal shapes and a timestep for each sample",
                a.dims(),
                b.dims(),
                t.len()
            );
        }
        let levels = t
            .iter()
            .map(|&t| Ok(weights(Level::of_alpha_bar(self.alpha_bar(t)?))));
        let levels = levels.collect::<Result<Vec<_>>>()?;
        let mut shape = vec![1; a.rank()];
        shape[0] = t.len();
        let column = |which: usize| {
            let values: Vec<f32> = levels.iter().map(|w| w[which] as f32).collect();
            Tensor::from_vec(values, shape.clone(), a.device())?.to_dtype(a.dtype())
        };
        a.broadcast_mul(&column(0)?)? + b.to_dtype(a.dtype())?.broadcast_mul(&column(1)?)?
    }
}

#[derive(Clone, Copy)]
enum Growth {
    Linear,
    Root,
    Cosine,
}

/// More timesteps than this are a mistake.
const MOST: usize = 1_000_000;

/// The variance that each timestep adds.
fn betas(config: &SchedulerConfig) -> diffaug::Result<Vec<f64>> {
    let count = config.num_train_timesteps.unwrap_or(1000);
    if !(2..=MOST).contains(&count) {
        let expected = format!("from 2 to {MOST}");
        return Err(out_of_range("num_train_timesteps", count, &expected));
    }
    // Less would be lost in 1 - beta.
    let inside = |field: &str, value: f64| match value > f64::EPSILON && value < 1.0 {
        true => Ok(value),
        false => Err(out_of_range(field, value, "a number between 0 and 1")),
    };
    if let Some(betas) = &config.trained_betas {
        if betas.len() != count {
            let expected = format!("as many as `num_train_timesteps`, {count}");
            return Err(out_of_range("trained_betas", betas.len(), &expected));
        }
        let betas = betas.iter().map(|&beta| inside("trained_betas", beta));
        return betas.collect();
    }
    let start = inside("beta_start", config.beta_start.unwrap_or(1e-4))?;
    let end = inside("beta_end", config.beta_end.unwrap_or(0.02))?;
    let known = [
        ("linear", Growth::Linear),
        ("scaled_linear", Growth::Root),
        ("squaredcos_cap_v2", Growth::Cosine),
    ];
    let growth = pick("beta_schedule", &config.beta_schedule, known)?;
    let between = |from: f64, to: f64, i: usize| from + (to - from) * i as f64 / (count - 1) as f64;
    let beta = |i: usize| match growth {
        Growth::Linear => between(start, end, i),
        Growth::Root => between(start.sqrt(), end.sqrt(), i).powi(2),
        Growth::Cosine => {
            let share = |i: usize| cosine(i as f64 / count as f64);
            (1.0 - share(i + 1) / share(i)).min(0.999)
        }
    };
    Ok((0..count).map(beta).collect())
}

/// The ᾱ of Nichol & Dhariwal (2021) from `t` 0 to 1.
fn cosine(t: f64) -> f64 {
    let angle = (t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
    angle.cos().powi(2)
}

/// Moves and stretches √ᾱ so that the last is 0 and the first stays (Lin et al., 2024, algorithm 1).
fn without_terminal_signal(alpha_bars: &mut [f64]) {
    let (Some(first), Some(last)) = (alpha_bars.first(), alpha_bars.last()) else {
        return;
    };
    let (first, last) = (first.sqrt(), last.sqrt());
    for value in alpha_bars {
        *value = ((value.sqrt() - last) * first / (first - last)).powi(2);
    }
}
