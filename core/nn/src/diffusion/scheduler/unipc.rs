//! UniPC with data prediction, of first and second order (Zhao et al., 2023, algorithms 5 to 8): a
//! predictor, and a corrector that mends its result once the network was asked there.

use super::{
    config::{SchedulerConfig, pick},
    grid::Grid,
    sampler::{Step, combine},
    schedule::{Level, Prediction},
};
use candle_core::{Result, Tensor};
use diffaug::Error;

/// The function B(h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Solver {
    /// h.
    Bh1,
    /// eʰ - 1.
    Bh2,
}

#[derive(Clone, Debug)]
pub(super) struct Unipc {
    prediction: Prediction,
    /// Before each step, and after the last.
    levels: Vec<Level>,
    order: usize,
    solver: Solver,
    lower_at_end: bool,
    uncorrected: Vec<usize>,
    past: Option<Past>,
}

/// What the next step needs of those before.
#[derive(Clone, Debug)]
struct Past {
    /// The latent that the last prediction started from.
    x: Tensor,
    /// The clean latent there.
    z0: Tensor,
    /// The one before it.
    before: Option<Tensor>,
    /// The order of that prediction.
    order: usize,
}

/// What predictor and corrector share: from one level to another.
struct Span {
    h: f64,
    alpha: f64,
    /// Factor of the latent.
    keep: f64,
    /// e⁻ʰ - 1.
    phi: f64,
    /// B(-h).
    b: f64,
}

impl Unipc {
    pub(super) fn new(config: &SchedulerConfig, grid: &Grid) -> diffaug::Result<Self> {
        // The last three belong to other classes, and diffusers takes them for its own default.
        let known = [
            ("bh2", Solver::Bh2),
            ("bh1", Solver::Bh1),
            ("midpoint", Solver::Bh2),
            ("heun", Solver::Bh2),
            ("logrho", Solver::Bh2),
        ];
        let order = config.order()?;
        let lower_at_end = config.lower_order_final.unwrap_or(true);
        if order > 1 && !lower_at_end && grid.sigmas.last() == Some(&0.0) {
            let message = "`lower_order_final` is false, but UniPC reaches `final_sigmas_type` `zero` in first order only";
            return Err(Error::config(message).at("lower_order_final"));
        }
        Ok(Unipc {
            prediction: config.prediction()?,
            levels: grid.sigmas.iter().map(|&s| Level::of_ratio(s)).collect(),
            order,
            solver: pick("solver_type", &config.solver_type, known)?,
            lower_at_end,
            uncorrected: config.disable_corrector.clone().unwrap_or_default(),
            past: None,
        })
    }

    /// Goes on with those places of a batch.
    pub(super) fn keep(&mut self, kept: &Tensor) -> Result<()> {
        if let Some(past) = &mut self.past {
            past.x = past.x.index_select(kept, 0)?;
            past.z0 = past.z0.index_select(kept, 0)?;
            if let Some(before) = &mut past.before {
                *before = before.index_select(kept, 0)?;
            }
        }
        Ok(())
    }

    pub(super) fn forget(&mut self) {
        self.past = None;
    }

    pub(super) fn step(&mut self, output: &Tensor, i: usize, x: &Tensor) -> Result<Step> {
        let [of_x, of_output] = self.prediction.clean(self.levels[i]);
        let z0 = combine(&[(of_x, x), (of_output, output)])?;
        let past = self.past.take();
        let x = match &past {
            Some(past) if !self.uncorrected.contains(&(i - 1)) => self.correct(i, past, &z0)?,
            _ => x.clone(),
        };
        let left = self.levels.len() - 1 - i;
        let order = match self.lower_at_end {
            true => self.order.min(left),
            false => self.order,
        };
        // The first step of a run knows no other.
        let before = past.map(|past| past.z0);
        let order = order.min(1 + usize::from(before.is_some()));
        let next = self.predict(i, order, &x, &z0, before.as_ref())?;
        self.past = Some(Past {
            x,
            z0: z0.clone(),
            before,
            order,
        });
        Ok(Step { x: next, z0 })
    }

    fn span(&self, from: usize) -> Span {
        let (now, after) = (self.levels[from], self.levels[from + 1]);
        let h = after.lambda() - now.lambda();
        let phi = (-h).exp_m1();
        Span {
            h,
            alpha: after.alpha,
            keep: after.sigma / now.sigma,
            phi,
            b: match self.solver {
                Solver::Bh1 => -h,
                Solver::Bh2 => phi,
            },
        }
    }

    /// Where the step before `from` started, in units of the step from `from`: below 0.
    fn back(&self, from: usize, h: f64) -> f64 {
        (self.levels[from - 1].lambda() - self.levels[from].lambda()) / h
    }

    /// From `x` at step `i` to the next.
    fn predict(
        &self,
        i: usize,
        order: usize,
        x: &Tensor,
        z0: &Tensor,
        before: Option<&Tensor>,
    ) -> Result<Tensor> {
        let span = self.span(i);
        let gain = -span.alpha * span.phi;
        match before {
            // Without a way to go, `back` is undefined.
            Some(before) if order == 2 && span.h != 0.0 => {
                let slope = 0.5 * span.alpha * span.b / self.back(i, span.h);
                combine(&[(span.keep, x), (gain + slope, z0), (-slope, before)])
            }
            _ => combine(&[(span.keep, x), (gain, z0)]),
        }
    }

    /// The latent at step `i`, now that the clean latent there, `here`, is known.
    fn correct(&self, i: usize, past: &Past, here: &Tensor) -> Result<Tensor> {
        let span = self.span(i - 1);
        let (base, scale) = (-span.alpha * span.phi, -span.alpha * span.b);
        match &past.before {
            Some(before) if past.order == 2 => {
                // The two weights solve a system of order 2 in the distances `back` and 1.
                let back = self.back(i - 1, span.h);
                let once = span.phi / -span.h - 1.0;
                let twice = once / -span.h - 0.5;
                let (first, second) = (once / span.b, 2.0 * twice / span.b);
                let old = (first - second) / (1.0 - back);
                let new = first - old;
                let (old, new) = (scale * old / back, scale * new);
                combine(&[
                    (span.keep, &past.x),
                    (base - old - new, &past.z0),
                    (old, before),
                    (new, here),
                ])
            }
            _ => combine(&[
                (span.keep, &past.x),
                (base - 0.5 * scale, &past.z0),
                (0.5 * scale, here),
            ]),
        }
    }
}
