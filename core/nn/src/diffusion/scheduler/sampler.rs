//! What all samplers have in common, and the choice between them.

use super::{
    config::{Class, SchedulerConfig},
    ddim::Ddim,
    ddpm::Ddpm,
    dpm::Dpm,
    euler::Euler,
    grid::Grid,
    schedule::Level,
    unipc::Unipc,
};
use candle_core::{DType, Result, Tensor, bail};

/// What a step leads to, both f32 and of the shape of the noisy latent.
#[derive(Clone, Debug)]
pub struct Step {
    /// The less noisy latent.
    pub x: Tensor,
    /// The clean latent as predicted in this step, for previews.
    pub z0: Tensor,
}

#[derive(Clone, Debug)]
enum Method {
    Euler(Euler),
    Ddim(Ddim),
    Ddpm(Ddpm),
    Dpm(Dpm),
    Unipc(Unipc),
}

/// Goes from noise to a latent. Steps are counted from 0, the noisiest.
///
/// `dpmpp-2m` and `unipc` remember the steps before, so theirs must follow each other;
/// [`Sampler::begin`] makes them forget. The others can take any step at any time.
#[derive(Clone, Debug)]
pub struct Sampler {
    steps: usize,
    next: usize,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    /// Of each step.
    levels: Vec<Level>,
    method: Method,
}

impl Sampler {
    /// A sampler as `config` describes it, of so many steps.
    ///
    /// # Errors
    /// Naming the field that is unknown, out of range or not offered, or `steps`.
    pub fn new(config: &SchedulerConfig, steps: usize) -> diffaug::Result<Self> {
        let class = config.class()?;
        config.check_rest(class)?;
        let grid = Grid::new(config, class, steps)?;
        let method = match class {
            Class::Euler => Method::Euler(Euler::new(config, &grid)?),
            Class::Ddim => Method::Ddim(Ddim::new(config, &grid, steps)?),
            Class::Ddpm => Method::Ddpm(Ddpm::new(config, &grid)?),
            Class::Dpm => Method::Dpm(Dpm::new(config, &grid)?),
            Class::Unipc => Method::Unipc(Unipc::new(config, &grid)?),
        };
        let level = |(i, t): (usize, &f64)| match grid.sigmas.get(i) {
            Some(&ratio) => Level::of_ratio(ratio),
            None => Level::of_alpha_bar(grid.alpha_bars[*t as usize]),
        };
        Ok(Sampler {
            steps,
            next: 0,
            levels: grid.timesteps.iter().enumerate().map(level).collect(),
            timesteps: grid.timesteps,
            sigmas: grid.sigmas,
            method,
        })
    }

    /// The timesteps to ask the network at, highest first. Those of `euler` may lie between whole
    /// numbers. There may be fewer than asked for where `lambda_min_clipped` says so.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The ratio of noise to signal at each timestep and, as one more, where the last step ends;
    /// empty for `ddim` and `ddpm`, which have none of their own.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// The first step when an image is to change by `strength`, from 0 to 1: 0 for 1, and as many
    /// as there are steps (nothing left to do) where it is too small.
    pub fn start_at(&self, strength: f64) -> usize {
        let wanted = (self.steps as f64 * strength) as usize;
        self.steps - wanted.min(self.steps)
    }

    /// What noise of variance 1 is multiplied by to start from it alone at step 0.
    pub fn init_noise_sigma(&self) -> f64 {
        match &self.method {
            Method::Euler(euler) => euler.init_noise_sigma(),
            _ => 1.0,
        }
    }

    /// What the network is to be given for the noisy latent `x` at step `i`.
    ///
    /// # Errors
    /// When there is no such step.
    pub fn scale_input(&self, x: &Tensor, i: usize) -> Result<Tensor> {
        let level = self.level(i)?;
        match self.method {
            Method::Euler(_) => x * level.alpha,
            _ => Ok(x.clone()),
        }
    }

    /// The latent `z0` with so much of `noise` as to start at step `i`.
    ///
    /// # Errors
    /// When shapes do not fit, or there is no such step.
    pub fn noised(&self, z0: &Tensor, noise: &Tensor, i: usize) -> Result<Tensor> {
        let Level { alpha, sigma } = self.level(i)?;
        match self.method {
            Method::Euler(_) => combine(&[(1.0, z0), (sigma / alpha, noise)]),
            _ => combine(&[(alpha, z0), (sigma, noise)]),
        }
    }

    /// Forgets what was; the next step is `start`.
    pub fn begin(&mut self, start: usize) {
        self.next = start;
        match &mut self.method {
            Method::Dpm(dpm) => dpm.forget(),
            Method::Unipc(unipc) => unipc.forget(),
            Method::Euler(_) | Method::Ddim(_) | Method::Ddpm(_) => {}
        }
    }

    /// Goes on with those latents of a batch whose places `kept` holds, in that order.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn keep(&mut self, kept: &Tensor) -> Result<()> {
        match &mut self.method {
            Method::Dpm(dpm) => dpm.keep(kept),
            Method::Unipc(unipc) => unipc.keep(kept),
            Method::Euler(_) | Method::Ddim(_) | Method::Ddpm(_) => Ok(()),
        }
    }

    /// Takes step `i` from the noisy latent `x`, for which the network answered `output`; both of
    /// one shape and any floating point type.
    ///
    /// `noise` is asked for noise of variance 1 and the same shape at most once: by `ddim` in every
    /// step if `eta` is above 0, by `ddpm` in every step above timestep 0.
    ///
    /// # Errors
    /// When shapes do not fit, there is no such step, or it is not the next one of a sampler that
    /// remembers; those of `noise`.
    pub fn step(
        &mut self,
        output: &Tensor,
        i: usize,
        x: &Tensor,
        mut noise: impl FnMut() -> Result<Tensor>,
    ) -> Result<Step> {
        self.level(i)?;
        let (x, output) = (&x.to_dtype(DType::F32)?, &output.to_dtype(DType::F32)?);
        if matches!(self.method, Method::Dpm(_) | Method::Unipc(_)) && i != self.next {
            bail!(
                "step {i} was asked for, but {} is next; `begin` starts anew",
                self.next
            );
        }
        let step = match &mut self.method {
            Method::Euler(euler) => euler.step(output, i, x)?,
            Method::Ddim(ddim) => ddim.step(output, i, x, &mut noise)?,
            Method::Ddpm(ddpm) => ddpm.step(output, i, x, &mut noise)?,
            Method::Dpm(dpm) => dpm.step(output, i, x)?,
            Method::Unipc(unipc) => unipc.step(output, i, x)?,
        };
        self.next = i + 1;
        Ok(step)
    }

    fn level(&self, i: usize) -> Result<Level> {
        match self.levels.get(i) {
            Some(level) => Ok(*level),
            None => bail!(
                "step {i} was asked for, but there are {}",
                self.levels.len()
            ),
        }
    }
}

/// The sum of tensors times numbers, in f32. What is multiplied by 0 costs nothing.
pub(super) fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (factor, tensor) in terms.iter().filter(|(factor, _)| *factor != 0.0) {
        let tensor = tensor.to_dtype(DType::F32)?;
        let term = if *factor == 1.0 {
            tensor
        } else {
            (tensor * *factor)?
        };
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    match (sum, terms.first()) {
        (Some(sum), _) => Ok(sum),
        (None, Some((_, tensor))) => tensor.to_dtype(DType::F32)?.zeros_like(),
        (None, None) => bail!("there is nothing to combine"),
    }
}
