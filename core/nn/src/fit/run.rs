//! A training run at work.

use super::{
    Averaging, Keep, Learner, Settings, WEIGHTS,
    log::{Line, Log},
    plan::{Batches, Order, Plan},
    state::{Epoch, Evaluation, Report, State},
    write_json,
};
use crate::{
    checkpoint::{self, Parts},
    optim::{Ema, Optimizer, Schedule},
    precision::LossScale,
    recompute, weights,
};
use candle_core::{DType, backprop::GradStore};
use diffaug::{BoxDataset, Error, ErrorKind, FitReport, Reporter, Result};
use std::{path::Path, thread};

/// The checkpoint to go on from, in a run's folder.
pub const LAST: &str = "last.safetensors";
/// The running mean of the weights beside the best ones, in a run's folder.
pub const AVERAGED: &str = "ema.safetensors";

/// A training run at work.
pub(super) struct Run<'a, 'r, L> {
    learner: &'a L,
    settings: &'a Settings,
    validation: &'a BoxDataset,
    out: &'a Path,
    reporter: &'a Reporter<'r>,
    optimizer: Optimizer,
    ema: Option<Ema>,
    state: State,
    plan: Plan,
    log: Option<Log>,
    /// The step of the last checkpoint.
    saved: Option<u64>,
}

impl<'a, 'r, L: Learner> Run<'a, 'r, L> {
    /// A run that goes on from the checkpoint in `out`, or begins.
    pub fn new(
        learner: &'a L,
        settings: &'a Settings,
        validation: &'a BoxDataset,
        plan: Plan,
        out: &'a Path,
        reporter: &'a Reporter<'r>,
    ) -> Result<Self> {
        let params = learner.params();
        let optimizer = Optimizer::new(params.trainable(), &settings.optimizer())?;
        let average = |ema: Averaging| {
            let wanted = |name: &str| ema.only.is_none_or(|start| name.starts_with(start));
            Ema::new(optimizer.vars().filter(|(name, _)| wanted(name)), ema.decay)
        };
        let ema = settings.ema.map(average).transpose()?;
        let mut run = Run {
            learner,
            settings,
            validation,
            out,
            reporter,
            optimizer,
            ema,
            state: State::default(),
            plan,
            log: None,
            saved: None,
        };
        run.state.scale = learner.precision().scales_loss().then(LossScale::default);
        if out.join(LAST).exists() {
            run.restore()?;
            tracing::info!(step = run.state.step, "going on from the last checkpoint");
        }
        if settings.log_every > 0 {
            let State {
                step, evaluated, ..
            } = run.state;
            run.log = Some(Log::open(out, step, evaluated, settings.tensorboard)?);
        }
        Ok(run)
    }

    fn restore(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        let path = self.out.join(LAST);
        let parts = Parts {
            params: self.learner.params(),
            optimizer: &mut self.optimizer,
            ema: self.ema.as_mut(),
        };
        let accept = |state: &State| {
            same_order(state.order.as_ref(), &plan.describe(state.step))?;
            Ok((state.updates, state.averaged))
        };
        self.state = checkpoint::load(&path, parts, accept)?;
        self.saved = Some(self.state.step);
        Ok(())
    }

    /// Makes all steps that are left, while other threads prepare the next batches.
    pub fn all(&mut self, train: &BoxDataset) -> Result<()> {
        let (start, learner) = (self.state.step, self.learner);
        thread::scope(|scope| {
            let mut batches = Batches::start(scope, learner, train, &self.plan, start);
            loop {
                let outcome = self.settle();
                self.checkpoint_if_cancelled(outcome)?;
                if self.is_done() {
                    return Ok(());
                }
                self.step(&mut batches)?;
                let outcome = self.report();
                self.checkpoint_if_cancelled(outcome)?;
            }
        })
    }

    fn is_done(&self) -> bool {
        let patience = self.settings.patience;
        self.state.step >= self.plan.total || patience > 0 && self.state.stale >= patience
    }

    fn rate(&self, step: u64) -> f64 {
        let Settings {
            schedule,
            warmup,
            learning_rate,
            ..
        } = self.settings;
        let plateau = &self.state.plateau;
        schedule.rate(step, self.plan.total, *warmup, *learning_rate, plateau)
    }

    fn step(&mut self, batches: &mut Batches<L::Batch>) -> Result<()> {
        let factor = self.state.scale.map_or(1.0, |scale| scale.factor());
        let (grads, loss) = self.gradients(batches, factor)?;
        let rate = self.rate(self.state.step);
        let norm = self.optimizer.step_scaled(&grads, rate, factor)?;
        let fine = match &mut self.state.scale {
            Some(scale) => scale.observe(norm.is_finite()),
            None => norm.is_finite(),
        };
        if !fine {
            return Err(self.diverged("the gradient", norm, self.state.step + 1));
        }
        self.state.updates = self.optimizer.steps();
        if let Some(ema) = &mut self.ema
            && norm.is_finite()
        {
            ema.update()?;
            self.state.averaged = ema.updates();
        }
        self.state.step += 1;
        self.state.loss += loss;
        self.log_step(loss, rate, norm)
    }

    /// The gradients of a step, `factor` times as large as they are, and its loss: means over the
    /// step's batches, each by its share of the samples.
    fn gradients(&self, batches: &mut Batches<L::Batch>, factor: f64) -> Result<(GradStore, f64)> {
        let (mut total, mut value) = (None, 0.0);
        let first = self.state.step * self.plan.accumulate;
        for number in first..first + self.plan.accumulate {
            let Some((batch, share)) = batches.next()? else {
                continue;
            };
            let loss = self.learner.loss(batch, number)?.to_dtype(DType::F32)?;
            let grads = match share * factor {
                1.0 => recompute::backward(&loss)?,
                scale => recompute::backward(&(&loss * scale)?)?,
            };
            // Asked only now, so that a device has its work for the backward pass and goes on.
            value += share * f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(self.diverged("the loss", value, self.state.step + 1));
            }
            total = Some(match total {
                None => grads,
                Some(total) => self.sum(total, grads)?,
            });
        }
        let total = total.ok_or_else(|| Error::internal("a step without samples"))?;
        Ok((total, value))
    }

    fn sum(&self, mut total: GradStore, mut more: GradStore) -> Result<GradStore> {
        for (_, var) in self.optimizer.vars() {
            if let Some(grad) = more.remove(var) {
                let sum = match total.remove(var) {
                    Some(sum) => (sum + grad)?,
                    None => grad,
                };
                total.insert(var, sum);
            }
        }
        Ok(total)
    }

    fn log_step(&mut self, loss: f64, rate: f64, norm: f64) -> Result<()> {
        let step = self.state.step;
        let due = step.is_multiple_of(self.settings.log_every.max(1)) || step == self.plan.total;
        let line = Line {
            step,
            epoch: Some((step - 1) / self.plan.steps_per_epoch + 1),
            loss: Some(loss),
            lr: Some(rate),
            grad_norm: Some(norm),
            ..Line::default()
        };
        match &mut self.log {
            Some(log) if due => log.write(line),
            _ => Ok(()),
        }
    }

    fn diverged(&self, what: &str, value: f64, step: u64) -> Error {
        let best = self.state.best.map(|best| (WEIGHTS, best.step));
        let last = self.saved.map(|step| (LAST, step));
        let kept: String = [best, last]
            .into_iter()
            .flatten()
            .map(|(file, step)| format!("; `{file}` holds those of step {step}"))
            .collect();
        // Before the first change it is not for the learning rate.
        let cure = match step {
            1 if self.state.updates == 0 => {
                "look whether the weights that it begins with are numbers, and try `f32` or `bf16` in place of `f16`"
            }
            _ => "try a lower learning rate",
        };
        Error::model(format!(
            "{what} became {value} at step {step} (epoch {}): {cure}{kept}",
            step.saturating_sub(1) / self.plan.steps_per_epoch + 1,
        ))
    }

    /// Mean loss of the present epoch, after at least one step of it.
    fn mean_loss(&self) -> f64 {
        let done = (self.state.step.max(1) - 1) % self.plan.steps_per_epoch + 1;
        self.state.loss / done as f64
    }

    fn report(&self) -> Result<()> {
        let mut note = format!("loss {:.3}", self.mean_loss());
        let epochs = self.state.history.iter().rev();
        let last = epochs.filter_map(|e| Some((e.step, e.score?))).next();
        let between = self.state.evaluations.last().map(|e| (e.step, e.score));
        let latest = [last, between].into_iter().flatten().max_by_key(|e| e.0);
        if let Some((_, score)) = latest {
            note = format!("{note}, {} {score:.3}", self.learner.metric());
        }
        self.reporter.step(self.state.step, self.plan.total, &note)
    }

    /// What is due between two steps: evaluation, the end of an epoch, a checkpoint. Does nothing
    /// when called again, also after the run was stopped in between.
    fn settle(&mut self) -> Result<()> {
        let step = self.state.step;
        let epoch = step / self.plan.steps_per_epoch;
        // In the midst of an epoch, or closed before the run was stopped, the two are equal.
        let closes = epoch as usize != self.state.history.len();
        let by_epoch = step >= self.plan.total
            || closes && epoch.is_multiple_of(self.settings.evaluate_every.max(1));
        let every = self.settings.evaluate_steps;
        let by_step = every > 0 && step.is_multiple_of(every);
        // What the schedule makes of the score is for the next step.
        let rate = self.rate(step.saturating_sub(1));
        let score = match (by_epoch || by_step) && self.state.evaluated < step {
            true => Some(self.evaluate(closes)?),
            false => None,
        };
        if closes {
            self.close_epoch(score, rate);
        }
        let every = self.settings.checkpoint_every;
        let due = every > 0 && step > 0 && step.is_multiple_of(every);
        let by_epoch = closes && self.settings.steps.is_none();
        if by_epoch || score.is_some() || due && self.saved != Some(step) {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Scores the weights and keeps them if they are the best, or the last so far. The state changes at the end, so
    /// that an evaluation that is broken off is made again.
    fn evaluate(&mut self, closes_epoch: bool) -> Result<f64> {
        let (step, params) = (self.state.step, self.learner.params());
        let judge = || {
            let score = self.learner.score(self.validation, self.reporter)?;
            if !score.is_finite() {
                return Err(self.diverged("the validation score", score, step));
            }
            let better = match self.settings.keep {
                Keep::Best => self.state.best.is_none_or(|best| score > best.score),
                // The last evaluation is after the last step.
                Keep::Last => true,
            };
            if better {
                self.check_weights(step)?;
                weights::save(&self.out.join(WEIGHTS), params)?;
            }
            Ok((score, better))
        };
        let evaluate_mean = self.settings.ema.is_some_and(|ema| ema.evaluate);
        let (score, better) = match &self.ema {
            Some(ema) if evaluate_mean => ema.in_place(judge),
            _ => judge(),
        }?;
        if let Some(ema) = &self.ema
            && better
            && !evaluate_mean
        {
            ema.in_place(|| weights::save(&self.out.join(AVERAGED), params))?;
        }
        let state = &mut self.state;
        state.stale += 1;
        if better {
            state.stale = 0;
            state.best = Some(Evaluation { step, score });
        }
        if let Schedule::Plateau(plateau) = &self.settings.schedule {
            state.plateau.observe(plateau, score);
        }
        state.evaluated = step;
        if !closes_epoch {
            state.evaluations.push(Evaluation { step, score });
        }
        if let Some(log) = &mut self.log {
            log.write(Line {
                step,
                score: Some(score),
                ..Line::default()
            })?;
        }
        Ok(score)
    }

    /// Checks that every weight that is to be kept is a number.
    fn check_weights(&self, step: u64) -> Result<()> {
        let params = self.learner.params();
        let all = params.all().map(|(name, var)| (name, var.as_tensor()));
        match weights::not_finite(all)? {
            None => Ok(()),
            Some(name) => {
                let what = format!("a value of the weight `{name}`");
                Err(self.diverged(&what, f64::NAN, step.max(1)))
            }
        }
    }

    fn close_epoch(&mut self, score: Option<f64>, rate: f64) {
        let state = &self.state;
        let entry = Epoch {
            step: state.step,
            loss: state.loss / self.plan.steps_per_epoch as f64,
            rate,
            score,
        };
        self.state.history.push(entry);
        self.state.loss = 0.0;
        tracing::info!(
            epoch = self.state.history.len(),
            step = entry.step,
            loss = entry.loss,
            score = entry.score,
            metric = self.learner.metric(),
            lr = entry.rate,
            "epoch"
        );
    }

    fn checkpoint(&mut self) -> Result<()> {
        let path = self.out.join(LAST);
        self.state.order = Some(self.plan.describe(self.state.step));
        let params = self.learner.params();
        checkpoint::save(
            &path,
            params,
            &self.optimizer,
            self.ema.as_ref(),
            &self.state,
        )?;
        self.saved = Some(self.state.step);
        Ok(())
    }

    fn checkpoint_if_cancelled(&mut self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = &outcome
            && error.kind == ErrorKind::Cancelled
        {
            self.checkpoint()?;
        }
        outcome
    }

    /// Writes the report and removes the checkpoint.
    pub fn finish(self) -> Result<FitReport> {
        let Some(best) = self.state.best else {
            return Err(Error::config("there is nothing to train in 0 epochs").at("epochs"));
        };
        let closed = self.state.step.is_multiple_of(self.plan.steps_per_epoch);
        let last = self.state.history.last().map(|epoch| epoch.loss);
        let report = Report {
            steps: self.state.step,
            best_step: best.step,
            loss: last.filter(|_| closed).unwrap_or_else(|| self.mean_loss()),
            metric: self.learner.metric().to_owned(),
            score: best.score,
            epochs: self.state.history,
            evaluations: self.state.evaluations,
        };
        write_json(&self.out.join(super::REPORT), &report)?;
        super::drop_checkpoint(self.settings, self.out)?;
        Ok(report.summary(self.learner.metric()))
    }
}

/// Whether a checkpoint's samples come in the order of this run.
fn same_order(saved: Option<&Order>, ours: &Order) -> Result<()> {
    let (saved, ours) = (serde_json::to_value(saved)?, serde_json::to_value(ours)?);
    match super::difference(&saved, &ours, "order") {
        None => Ok(()),
        Some((name, saved, ours)) => Err(Error::model(format!(
            "its samples are ordered with `{name}` = {saved}, not {ours}"
        ))),
    }
}
