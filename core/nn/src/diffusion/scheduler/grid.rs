//! At which timesteps a sampler asks the network, and how much noise there is at each.

use super::{
    config::{Class, SchedulerConfig, Spacing, out_of_range, pick},
    schedule::{Level, NoiseSchedule},
};
use diffaug::{Error, Result};

/// The smallest positive number of half precision: ᾱ where a schedule without terminal signal has
/// 0, so that its ratio of noise to signal is finite.
const NEARLY_NOTHING: f64 = 1.0 / 16_777_216.0;

/// Timesteps from the noisiest to the cleanest.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// Whole numbers, but for Euler's method.
    pub(super) timesteps: Vec<f64>,
    /// The ratio of noise to signal at each, and the one after the last step; empty for classes
    /// that do without.
    pub(super) sigmas: Vec<f64>,
    /// ᾱ of every timestep of training.
    pub(super) alpha_bars: Vec<f64>,
}

impl Grid {
    pub(super) fn new(config: &SchedulerConfig, class: Class, steps: usize) -> Result<Self> {
        let mut alpha_bars = alpha_bars(config)?;
        let most = alpha_bars.len();
        if !(1..=most).contains(&steps) {
            return Err(out_of_range("steps", steps, &format!("from 1 to {most}")));
        }
        if class.has_sigmas()
            && let Some(last) = alpha_bars.last_mut().filter(|last| **last == 0.0)
        {
            *last = NEARLY_NOTHING;
        }
        let mut grid = Grid {
            timesteps: spaced(config, class, steps, &alpha_bars)?,
            sigmas: Vec::new(),
            alpha_bars,
        };
        grid.check_timesteps(config)?;
        if class.has_sigmas() {
            grid.find_sigmas(config, class, steps)?;
            grid.check_sigmas(class, steps)?;
        }
        Ok(grid)
    }

    fn check_timesteps(&self, config: &SchedulerConfig) -> Result<()> {
        let last = self.alpha_bars.len() - 1;
        match self.timesteps.first() {
            Some(&first) if first > last as f64 => {
                let offset = config.steps_offset.unwrap_or(0);
                let message = format!(
                    "`steps_offset` {offset} leads to timestep {first}, but {last} is the last that was trained"
                );
                Err(Error::config(message).at("steps_offset"))
            }
            _ => Ok(()),
        }
    }

    fn find_sigmas(&mut self, config: &SchedulerConfig, class: Class, steps: usize) -> Result<()> {
        let ratio = |a: &f64| f64::from(((1.0 - a) / a).sqrt() as f32);
        let table: Vec<f64> = self.alpha_bars.iter().map(ratio).collect();
        self.sigmas = self.timesteps.iter().map(|&t| at(&table, t)).collect();
        let mut lowest = table[0];
        if config.use_karras_sigmas.unwrap_or(false) {
            // Euler's method stretches them between its own, the others over all of training.
            let ends = match class {
                Class::Euler => [self.sigmas[0], self.sigmas[steps - 1]],
                _ => [table[table.len() - 1], table[0]],
            };
            self.sigmas = karras(config, ends, steps)?;
            self.timesteps = karras_timesteps(config, class, &self.sigmas, &table);
            if class == Class::Unipc {
                lowest = self.sigmas[steps - 1];
            }
        }
        let known = [("zero", 0.0), ("sigma_min", lowest)];
        let last = pick("final_sigmas_type", &config.final_sigmas_type, known)?;
        self.sigmas.push(last);
        Ok(())
    }

    fn check_sigmas(&self, class: Class, steps: usize) -> Result<()> {
        let inner = &self.sigmas[..self.timesteps.len()];
        if class.is_multistep() && inner.windows(2).any(|pair| pair[0] <= pair[1]) {
            let message = format!(
                "`steps` is {steps}, too many for {}: two of them have the same noise",
                class.name()
            );
            return Err(Error::config(message).at("steps"));
        }
        Ok(())
    }
}

/// ᾱ as diffusers has it: in single precision, where 1 - ᾱ has few digits at timestep 0.
fn alpha_bars(config: &SchedulerConfig) -> Result<Vec<f64>> {
    let single = |alpha_bar: &f64| match f64::from(*alpha_bar as f32) {
        1.0 => *alpha_bar,
        single => single,
    };
    let schedule = NoiseSchedule::new(config)?;
    let alpha_bars: Vec<f64> = schedule.alpha_bars().iter().map(single).collect();
    let last = alpha_bars.len() - 1;
    match alpha_bars[..last].iter().position(|a| *a == 0.0) {
        Some(t) => {
            let message = format!(
                "no signal is left at timestep {t} of {last}: `beta_end` or `num_train_timesteps` is too large"
            );
            Err(Error::config(message).at("beta_end"))
        }
        None => Ok(alpha_bars),
    }
}

/// Timesteps as `timestep_spacing` says. The multistep methods divide the range into one interval
/// more and leave out its lower end.
fn spaced(
    config: &SchedulerConfig,
    class: Class,
    steps: usize,
    alpha_bars: &[f64],
) -> Result<Vec<f64>> {
    let count = match class {
        Class::Dpm => clipped(config, alpha_bars)?,
        _ => alpha_bars.len(),
    };
    let extra = usize::from(class.is_multistep());
    let offset = config.steps_offset.unwrap_or(0);
    let timesteps = match config.spacing(class)? {
        Spacing::Linspace => {
            let points = linspace((count - 1) as f64, steps + extra).into_iter();
            let points = points.rev().take(steps);
            match class {
                // Kept in single precision there.
                Class::Euler => points.map(|t| f64::from(t as f32)).collect(),
                _ => points.map(f64::round_ties_even).collect(),
            }
        }
        Spacing::Leading => {
            let stride = count / (steps + extra);
            let indices = (extra..steps + extra).rev();
            indices
                .map(|i| (i * stride).saturating_add(offset) as f64)
                .collect()
        }
        Spacing::Trailing => {
            let stride = alpha_bars.len() as f64 / steps as f64;
            let start = count as f64;
            // The difference as a floating point number, by which NumPy goes on. For some numbers of
            // steps its rounding brings diffusers one step more, at timestep -1: not here.
            let stride = start - (start - stride);
            let points = (0..steps).map(|i| start - i as f64 * stride);
            let points = points.map(|t| t.round_ties_even() - 1.0);
            points.take_while(|t| *t >= 0.0).collect()
        }
    };
    Ok(timesteps)
}

/// How many timesteps hold as much signal as `lambda_min_clipped` wants.
fn clipped(config: &SchedulerConfig, alpha_bars: &[f64]) -> Result<usize> {
    let Some(lowest) = config.lambda_min_clipped else {
        return Ok(alpha_bars.len());
    };
    let enough = |a: &&f64| Level::of_alpha_bar(**a).lambda() >= lowest;
    match alpha_bars.iter().filter(enough).count() {
        0 => Err(out_of_range(
            "lambda_min_clipped",
            lowest,
            "less than the signal of timestep 0",
        )),
        count => Ok(count),
    }
}

/// `count` numbers from 0 to `last`.
fn linspace(last: f64, count: usize) -> Vec<f64> {
    let stride = last / count.saturating_sub(1).max(1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * stride).collect();
    if let [_, .., end] = values.as_mut_slice() {
        *end = last;
    }
    values
}

/// The value at `t` between those at whole numbers; beyond the ends that of the end.
fn at(table: &[f64], t: f64) -> f64 {
    let low = (t.max(0.0) as usize).min(table.len() - 1);
    let high = (low + 1).min(table.len() - 1);
    table[low] + (table[high] - table[low]) * (t - low as f64)
}

/// Equal steps in the seventh root (Karras et al., 2022, eq. 5), from the first to the second of
/// `ends` unless `config` has others.
fn karras(config: &SchedulerConfig, ends: [f64; 2], steps: usize) -> Result<Vec<f64>> {
    let high = config.sigma_max.unwrap_or(ends[0]);
    let low = config.sigma_min.unwrap_or(ends[1]);
    if !(low > 0.0 && low.is_finite()) {
        return Err(out_of_range("sigma_min", low, "a number above 0"));
    }
    if !(high >= low && high.is_finite()) {
        let expected = format!("no less than `sigma_min`, {low}");
        return Err(out_of_range("sigma_max", high, &expected));
    }
    let [high, low] = [high, low].map(|sigma| sigma.powf(1.0 / 7.0));
    let ramp = linspace(1.0, steps).into_iter();
    Ok(ramp.map(|r| (high + r * (low - high)).powi(7)).collect())
}

/// Where the logarithms of `sigmas` lie between those of `table`.
fn karras_timesteps(
    config: &SchedulerConfig,
    class: Class,
    sigmas: &[f64],
    table: &[f64],
) -> Vec<f64> {
    // In single precision, which decides on which side of a whole number the ends fall.
    let single = |sigma: &f64| f64::from(sigma.ln() as f32);
    let logs: Vec<f64> = table.iter().map(single).collect();
    let between = |sigma: &f64| {
        let log = sigma.max(1e-10).ln();
        let below = logs.partition_point(|l| *l <= log);
        let low = below.saturating_sub(1).min(logs.len() - 2);
        let share = (logs[low] - log) / (logs[low] - logs[low + 1]);
        low as f64 + share.clamp(0.0, 1.0)
    };
    let cosine = config.beta_schedule.as_deref() == Some("squaredcos_cap_v2");
    let rounded = |t: f64| match class {
        Class::Euler => f64::from(t as f32),
        Class::Dpm if cosine => t.trunc(),
        _ => t.round_ties_even(),
    };
    sigmas.iter().map(between).map(rounded).collect()
}
