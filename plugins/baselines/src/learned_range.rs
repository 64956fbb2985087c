//! Noise whose variance a network has a say in (Nichol & Dhariwal, Improved denoising diffusion
//! probabilistic models, 2021): the logarithm of a step's variance lies between that of the posterior and
//! that of beta, and a value of the network says where (`LEARNED_RANGE` of guided-diffusion).
//!
//! All is computed in f32, whatever the type of the inputs.

use candle_core::{DType, Result, Tensor, bail};
use std::f64::consts::{LN_2, PI};

/// Half the width of a grey value where black is -1 and white 1.
const HALF_LEVEL: f64 = 1.0 / 255.0;
/// From where on a value counts as black or white, whose level has no outer border.
const END: f64 = 0.999;
/// The least probability whose logarithm is taken.
const LEAST: f64 = 1e-12;

/// A schedule of noise, its posteriors, and what a network's answers mean under it.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedRange {
    alpha_bars: Vec<f64>,
    log_betas: Vec<f64>,
    /// What the clean and the noisy mask are multiplied by in the mean of the posterior.
    mean: [Vec<f64>; 2],
    /// Logarithm of the posterior's variance; at the first step, where that is 0, of the second step's.
    log_variance: Vec<f64>,
}

/// What a network says of the mask one step before.
struct Predicted {
    /// Its mean.
    mean: Tensor,
    /// The logarithm of its variance.
    log_variance: Tensor,
}

impl LearnedRange {
    /// The schedule of these betas, from the first step to the last.
    ///
    /// # Errors
    /// When there are fewer than two, or one is not above 0 and below 1.
    pub fn new(betas: &[f64]) -> Result<Self> {
        if betas.len() < 2 {
            bail!(
                "a schedule needs at least two betas, but there are {}",
                betas.len()
            );
        }
        if let Some(i) = betas.iter().position(|beta| !(*beta > 0.0 && *beta < 1.0)) {
            bail!(
                "beta {i} is {}, expected a number between 0 and 1",
                betas[i]
            );
        }
        let mut product = 1.0;
        let alpha_bars: Vec<f64> = betas
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        let before = |i: usize| if i == 0 { 1.0 } else { alpha_bars[i - 1] };
        let each = |f: &dyn Fn(usize) -> f64| (0..betas.len()).map(f).collect::<Vec<f64>>();
        let variance = |i: usize| betas[i] * (1.0 - before(i)) / (1.0 - alpha_bars[i]);
        Ok(LearnedRange {
            log_betas: each(&|i| betas[i].ln()),
            mean: [
                each(&|i| betas[i] * before(i).sqrt() / (1.0 - alpha_bars[i])),
                each(&|i| (1.0 - before(i)) * (1.0 - betas[i]).sqrt() / (1.0 - alpha_bars[i])),
            ],
            log_variance: each(&|i| variance(i.max(1)).ln()),
            alpha_bars,
        })
    }

    /// The schedule in which these shares of the clean mask's variance are left, from the first step to the last.
    ///
    /// # Errors
    /// Those of [`LearnedRange::new`] for the betas that follow.
    pub fn of_alpha_bars(alpha_bars: &[f64]) -> Result<Self> {
        let before = std::iter::once(&1.0).chain(alpha_bars);
        let betas = alpha_bars
            .iter()
            .zip(before)
            .map(|(bar, before)| 1.0 - bar / before);
        LearnedRange::new(&betas.collect::<Vec<f64>>())
    }

    #[cfg(test)]
    /// Betas from 0.0001 to 0.02, evenly spaced, times 1000 / `steps` (Ho et al., 2020, for any number of
    /// steps).
    ///
    /// # Errors
    /// When there are so few steps that a beta reaches 1.
    pub fn linear(steps: usize) -> Result<Self> {
        let scale = 1000.0 / steps as f64;
        let (first, last) = (scale * 1e-4, scale * 0.02);
        let gap = (last - first) / (steps.max(2) - 1) as f64;
        let betas: Vec<f64> = (0..steps).map(|i| first + gap * i as f64).collect();
        LearnedRange::new(&betas)
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.alpha_bars.len()
    }

    /// The share of the clean mask's variance after each step.
    pub fn alpha_bars(&self) -> &[f64] {
        &self.alpha_bars
    }

    /// One value for each image, made of the step that it is at, `[n, 1, 1, 1]`.
    fn of_steps(&self, t: &[u32], like: &Tensor, f: impl Fn(usize) -> f64) -> Result<Tensor> {
        let (images, ..) = like.dims4()?;
        if t.len() != images {
            bail!("{images} images need as many timesteps, not {}", t.len());
        }
        if let Some(late) = t.iter().find(|t| **t as usize >= self.steps()) {
            bail!(
                "timestep {late} is none of a schedule of {} steps",
                self.steps()
            );
        }
        let values: Vec<f32> = t.iter().map(|t| f(*t as usize) as f32).collect();
        Tensor::from_vec(values, (images, 1, 1, 1), like.device())
    }

    /// `a` times `x` plus `b` times `y`, with factors for each step.
    fn mix(
        &self,
        t: &[u32],
        (a, x): (impl Fn(usize) -> f64, &Tensor),
        (b, y): (impl Fn(usize) -> f64, &Tensor),
    ) -> Result<Tensor> {
        let (x, y) = (&wide(x)?, &wide(y)?);
        let (a, b) = (self.of_steps(t, x, a)?, self.of_steps(t, y, b)?);
        x.broadcast_mul(&a)? + y.broadcast_mul(&b)?
    }

    /// The clean mask that `noisy`, `[n, masks, height, width]`, is made of if `noise` is what was added at the
    /// steps `t`, one for each image.
    ///
    /// # Errors
    /// When the shapes differ, or a step is none of the schedule.
    pub fn clean(&self, noise: &Tensor, noisy: &Tensor, t: &[u32]) -> Result<Tensor> {
        let inverse = |i: usize| self.alpha_bars[i].recip();
        let (there, back) = (|i| inverse(i).sqrt(), |i| -(inverse(i) - 1.0).sqrt());
        self.mix(t, (there, noisy), (back, noise))
    }

    /// Mean, variance and the logarithm of the variance (at the first step, where it is 0, of the second
    /// step's) of the mask one step before, if `clean` is what `noisy` is made of.
    ///
    /// # Errors
    /// Those of [`LearnedRange::clean`].
    pub fn posterior(&self, clean: &Tensor, noisy: &Tensor, t: &[u32]) -> Result<[Tensor; 3]> {
        let [of_clean, of_noisy] = &self.mean;
        let mean = self.mix(t, (|i| of_clean[i], clean), (|i| of_noisy[i], noisy))?;
        let exact = |i: usize| {
            if i == 0 {
                0.0
            } else {
                self.log_variance[i].exp()
            }
        };
        let variance = self.of_steps(t, &mean, exact)?;
        let log = self.of_steps(t, &mean, |i| self.log_variance[i])?;
        let dims = mean.dims().to_vec();
        let stretched = |values: Tensor| values.broadcast_as(dims.as_slice());
        let (variance, log) = (stretched(variance)?, stretched(log)?);
        Ok([mean, variance, log])
    }

    /// The logarithm of a step's variance where the network says `variance`, -1 to 1.
    fn log_variance(&self, variance: &Tensor, t: &[u32]) -> Result<Tensor> {
        let variance = wide(variance)?;
        let most = self.of_steps(t, &variance, |i| self.log_betas[i])?;
        let least = self.of_steps(t, &variance, |i| self.log_variance[i])?;
        let share = variance.affine(0.5, 0.5)?;
        let rest = share.affine(-1.0, 1.0)?;
        share.broadcast_mul(&most)? + rest.broadcast_mul(&least)?
    }

    /// What an image's step adds to the bound of the data's likelihood where a network answers with `noise` and
    /// `variance` (where between the two bounds it lies, -1 to 1), as a mean over its values, in bits,
    /// `[n]`: the divergence of what is predicted from the posterior; at the first step how improbable the
    /// clean mask is, as grey values from -1 to 1.
    ///
    /// Only the variance learns from it: the noise is taken as it is.
    ///
    /// # Errors
    /// Those of [`LearnedRange::clean`].
    pub fn variational_bound(
        &self,
        noise: &Tensor,
        variance: &Tensor,
        clean: &Tensor,
        noisy: &Tensor,
        t: &[u32],
    ) -> Result<Tensor> {
        let found = self.clean(&noise.detach(), noisy, t)?;
        let [mean, ..] = self.posterior(&found, noisy, t)?;
        let predicted = Predicted {
            mean,
            log_variance: self.log_variance(variance, t)?,
        };
        let [mean, _, log_variance] = self.posterior(clean, noisy, t)?;
        let divergence = in_bits(&divergence(&mean, &log_variance, &predicted)?)?;
        if !t.contains(&0) {
            return Ok(divergence);
        }
        let improbable = in_bits(&log_likelihood(&wide(clean)?, &predicted)?.neg()?)?;
        let first: Vec<u8> = t.iter().map(|t| u8::from(*t == 0)).collect();
        let first = Tensor::from_vec(first, t.len(), divergence.device())?;
        first.where_cond(&improbable, &divergence)
    }
}

/// As f32.
fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// The mean over all values of each image, in bits.
fn in_bits(nats: &Tensor) -> Result<Tensor> {
    nats.flatten_from(1)?.mean(1)? / LN_2
}

/// The divergence of what is predicted from the true distribution, value by value (Kullback & Leibler, 1951).
fn divergence(mean: &Tensor, log_variance: &Tensor, predicted: &Predicted) -> Result<Tensor> {
    let gap = (&predicted.log_variance - log_variance)?;
    let ratio = gap.neg()?.exp()?;
    let far = (mean - &predicted.mean)?.sqr()?;
    let far = (far * predicted.log_variance.neg()?.exp()?)?;
    (((gap + ratio)? + far)? - 1.0)? * 0.5
}

/// The logarithm of the probability of the grey values `x` (-1 to 1) under what is predicted, value by value.
fn log_likelihood(x: &Tensor, predicted: &Predicted) -> Result<Tensor> {
    let centred = (x - &predicted.mean)?;
    let inverse = (&predicted.log_variance * -0.5)?.exp()?;
    let up_to = |border: f64| distribution(&((&centred + border)? * &inverse)?);
    let (upper, lower) = (up_to(HALF_LEVEL)?, up_to(-HALF_LEVEL)?);
    let log = |p: Tensor| p.clamp(LEAST as f32, f32::MAX)?.log();
    let black = log(upper.clone())?;
    let white = log(lower.affine(-1.0, 1.0)?)?;
    let between = log((upper - lower)?)?;
    let upwards = x.gt(END)?.where_cond(&white, &between)?;
    x.lt(-END)?.where_cond(&black, &upwards)
}

/// The distribution function of the standard normal distribution, nearly.
fn distribution(x: &Tensor) -> Result<Tensor> {
    let bent = (x + (x.sqr()? * x)?.affine(0.044_715, 0.0)?)?;
    (bent * (2.0 / PI).sqrt())?.tanh()?.affine(0.5, 0.5)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use diffaug_nn::{
        diffusion::scheduler::{Sampler, SamplerName, SchedulerConfig},
        testing::{Fixtures, close},
    };

    const CASES: [(&str, usize); 2] = [("thousand", 1000), ("hundred", 100)];

    fn fixtures() -> Fixtures {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        Fixtures::open(folder.join("learned_range.safetensors"))
    }

    fn steps(t: &Tensor) -> Vec<u32> {
        let t = t.to_vec1::<f32>().unwrap();
        t.iter().map(|t| *t as u32).collect()
    }

    #[test]
    fn noise_and_posteriors_are_those_of_the_reference() {
        let fixtures = fixtures();
        for (case, count) in CASES {
            let get = |name: &str| fixtures.get(case, name);
            let schedule = LearnedRange::linear(count).unwrap();
            assert_eq!(schedule.steps(), count);
            let t = steps(get("t"));
            let (clean, noise, noisy) = (get("clean"), get("noise"), get("noisy"));
            close(&schedule.clean(noise, noisy, &t).unwrap(), clean, 1e-3);
            let [mean, variance, log] = schedule.posterior(clean, noisy, &t).unwrap();
            close(&mean, get("mean"), 1e-6);
            close(&variance, get("variance"), 1e-6);
            close(&log, get("log_variance"), 1e-6);
        }
    }

    #[test]
    fn the_bound_is_that_of_the_reference_and_only_the_variance_learns_from_it() {
        let fixtures = fixtures();
        for (case, count) in CASES {
            let get = |name: &str| fixtures.get(case, name);
            let schedule = LearnedRange::linear(count).unwrap();
            let (noise, v) = (
                Var::from_tensor(get("eps")).unwrap(),
                Var::from_tensor(get("v")).unwrap(),
            );
            let t = steps(get("t"));
            let bound = schedule
                .variational_bound(&noise, &v, get("clean"), get("noisy"), &t)
                .unwrap();
            close(&bound, get("bound"), 1e-5);
            let grads = bound.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&noise).is_none());
            close(grads.get(&v).unwrap(), get("dv"), 1e-5);
        }
    }

    /// What draws masks is the scheduler's, which is to draw what the reference draws.
    #[test]
    fn steps_are_those_of_the_reference() {
        let fixtures = fixtures();
        for (case, count) in CASES {
            let get = |name: &str| fixtures.get(case, name);
            let scale = 1000.0 / count as f64;
            for (kind, clips) in [("clipped", true), ("free", false)] {
                let mut config = SchedulerConfig::new(SamplerName::Ddpm);
                config.num_train_timesteps = Some(count);
                (config.beta_start, config.beta_end) = (Some(scale * 1e-4), Some(scale * 0.02));
                config.variance_type = Some("learned_range".to_owned());
                config.clip_sample = Some(clips);
                let mut sampler = Sampler::new(&config, count).unwrap();
                for (image, t) in steps(get("t")).into_iter().enumerate() {
                    let of = |name: &str| get(name).narrow(0, image, 1).unwrap();
                    let output = Tensor::cat(&[of("eps"), of("v")], 1).unwrap();
                    let index = count - 1 - t as usize;
                    let draw = || Ok(of("drawn"));
                    let step = sampler.step(&output, index, &of("noisy"), draw).unwrap();
                    close(&step.x, &of(&format!("learned.{kind}")), 1e-5);
                }
            }
        }
    }

    #[test]
    fn shares_that_are_left_say_the_betas() {
        let linear = LearnedRange::linear(1000).unwrap();
        let other = LearnedRange::of_alpha_bars(linear.alpha_bars()).unwrap();
        for (a, b) in linear.log_betas.iter().zip(&other.log_betas) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
    }

    #[test]
    fn misfits_are_named() {
        let says = |result: Result<LearnedRange>, text: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        says(LearnedRange::new(&[0.5]), "at least two betas");
        says(LearnedRange::new(&[0.5, f64::NAN]), "beta 1 is NaN");
        says(
            LearnedRange::linear(10),
            "expected a number between 0 and 1",
        );
        says(LearnedRange::linear(0), "at least two betas");
        let schedule = LearnedRange::linear(100).unwrap();
        let x = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let error = |t: &[u32]| schedule.clean(&x, &x, t).unwrap_err().to_string();
        assert!(error(&[100]).contains("timestep 100 is none of a schedule of 100"));
        assert!(error(&[1, 2]).contains("need as many timesteps, not 2"));
    }

    #[test]
    fn half_precision_is_computed_in_f32() {
        let schedule = LearnedRange::linear(1000).unwrap();
        let x = Tensor::zeros((1, 1, 2, 2), DType::BF16, &Device::Cpu).unwrap();
        let bound = schedule.variational_bound(&x, &x, &x, &x, &[0]).unwrap();
        assert!(bound.to_vec1::<f32>().unwrap()[0].is_finite());
    }
}
