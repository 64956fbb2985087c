//! DPM-Solver++ with data prediction, the multistep method of first and second order (Lu et al.,
//! 2022, algorithm 2).

use super::{
    config::{SchedulerConfig, pick},
    grid::Grid,
    sampler::{Step, combine},
    schedule::{Level, Prediction},
};
use candle_core::{Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Solver {
    Midpoint,
    Heun,
}

/// Fewer steps than this end with lower orders.
const FEW: usize = 15;

#[derive(Clone, Debug)]
pub(super) struct Dpm {
    prediction: Prediction,
    /// Before each step, and after the last.
    levels: Vec<Level>,
    order: usize,
    solver: Solver,
    /// Whether the last step is of first order.
    low_end: bool,
    /// The clean latent of the step before.
    before: Option<Tensor>,
}

impl Dpm {
    pub(super) fn new(config: &SchedulerConfig, grid: &Grid) -> diffaug::Result<Self> {
        pick(
            "algorithm_type",
            &config.algorithm_type,
            [("dpmsolver++", ()), ("deis", ())],
        )?;
        // The last three belong to other classes, and diffusers takes them for its own default.
        let known = [
            ("midpoint", Solver::Midpoint),
            ("heun", Solver::Heun),
            ("logrho", Solver::Midpoint),
            ("bh1", Solver::Midpoint),
            ("bh2", Solver::Midpoint),
        ];
        // These are DDPM's and do not matter here; a learned variance would come from the network.
        let fixed = [
            ("fixed_small", ()),
            ("fixed_small_log", ()),
            ("fixed_large", ()),
            ("fixed_large_log", ()),
        ];
        pick("variance_type", &config.variance_type, fixed)?;
        let few = config.lower_order_final.unwrap_or(true) && grid.timesteps.len() < FEW;
        Ok(Dpm {
            prediction: config.prediction()?,
            levels: grid.sigmas.iter().map(|&s| Level::of_ratio(s)).collect(),
            order: config.order()?,
            solver: pick("solver_type", &config.solver_type, known)?,
            low_end: few
                || config.euler_at_final.unwrap_or(false)
                || grid.sigmas.last() == Some(&0.0),
            before: None,
        })
    }

    /// Goes on with those places of a batch.
    pub(super) fn keep(&mut self, kept: &Tensor) -> Result<()> {
        if let Some(before) = &mut self.before {
            *before = before.index_select(kept, 0)?;
        }
        Ok(())
    }

    pub(super) fn forget(&mut self) {
        self.before = None;
    }

    pub(super) fn step(&mut self, output: &Tensor, i: usize, x: &Tensor) -> Result<Step> {
        let (now, after) = (self.levels[i], self.levels[i + 1]);
        let [of_x, of_output] = self.prediction.clean(now);
        let z0 = combine(&[(of_x, x), (of_output, output)])?;
        let h = after.lambda() - now.lambda();
        let gain = -after.alpha * (-h).exp_m1();
        let is_last = i + 2 == self.levels.len();
        let before = self.before.replace(z0.clone());
        let before = before.filter(|_| self.order == 2 && !(is_last && self.low_end));
        // How far the line through both clean latents is followed.
        let slope = match before {
            None => 0.0,
            Some(_) => {
                let ratio = h / (now.lambda() - self.levels[i - 1].lambda());
                ratio * self.bend(h, gain, after.alpha)
            }
        };
        let mut terms = vec![(after.sigma / now.sigma, x), (gain + slope, &z0)];
        terms.extend(before.as_ref().map(|before| (-slope, before)));
        let x = combine(&terms)?;
        Ok(Step { x, z0 })
    }

    /// Weight of the second order.
    fn bend(&self, h: f64, gain: f64, alpha: f64) -> f64 {
        match self.solver {
            Solver::Midpoint => 0.5 * gain,
            // Nothing is left to do, and the quotient is undefined.
            Solver::Heun if h == 0.0 => 0.0,
            Solver::Heun => alpha - gain / h,
        }
    }
}
