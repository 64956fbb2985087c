//! The steps of a run, each done once, by it or by another run; among them trainings.

use super::pool::Pool;
use crate::{
    layout, machine,
    results::{About, Cost, Part, Results, Taken},
    session::Session,
    steps::{Plan, Step},
    store::Store,
};
use diffaug::{Error, ErrorKind, FitReport, Reporter, Result, image::ReadOptions, with_reporter};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    cell::Cell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A [`FitReport`] as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fit {
    /// Optimiser steps.
    pub steps: u64,
    /// The step whose weights were kept.
    pub best_step: u64,
    /// Mean training loss of the last epoch.
    pub loss: Option<f64>,
    /// What `score` measures.
    pub metric: String,
    /// The best value of that metric.
    pub score: Option<f64>,
}

impl From<FitReport> for Fit {
    fn from(report: FitReport) -> Self {
        // JSON has no NaN.
        let finite = |value: f64| value.is_finite().then_some(value);
        Fit {
            steps: report.steps,
            best_step: report.best_step,
            loss: finite(report.loss),
            metric: report.metric.to_string(),
            score: finite(report.score),
        }
    }
}

/// Does the steps of a run, each once.
pub struct Steps<'a> {
    /// The run folder.
    pub store: &'a Store,
    /// What other runs did.
    pub results: &'a Results,
    /// The keys.
    pub plan: &'a Plan,
    /// Models of a hub that this run would use now, with their commits.
    pub pins: &'a dyn Fn() -> Result<BTreeMap<String, String>>,
    /// Who follows the run.
    pub session: &'a Session<'a>,
    /// Images that a network painted or found lesions in during the step at work, and the time that took.
    pub answered: Cell<(u64, Duration)>,
}

/// What a step leaves in the run folder.
pub struct Leaves<'a> {
    /// By what the plan knows the step.
    pub place: &'a str,
    /// The file that says that it is done.
    pub marker: &'a str,
    /// Files and folders that belong to its result.
    pub parts: &'a [Part<'a>],
    /// What the marker vouches for.
    pub vouched: &'a [&'a str],
}

impl Steps<'_> {
    /// Counts images that a network painted or found lesions in, and the time that took.
    pub fn count(&self, images: u64, time: Duration) {
        let (all, total) = self.answered.get();
        self.answered.set((all + images, total + time));
    }

    /// Does `work` and writes its marker, unless that was done, by this run or, under the same key, by
    /// another.
    ///
    /// # Errors
    /// Those of `work`; when what was done is no longer what it was, and when it cannot be kept.
    pub fn once<T: Serialize + DeserializeOwned, E: From<Error>>(
        &self,
        leaves: &Leaves<'_>,
        label: &str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let done = self.store.read_marker::<T>(leaves.marker)?;
        let Some(step) = self.plan.step(leaves.place) else {
            return match done {
                Some(done) => Ok(done),
                None => self.work(leaves, work),
            };
        };
        if let Some(done) = done {
            // Whoever else works on it now keeps it.
            if !self.results.has(&step.key)
                && let Ok(Some(taken)) = self.results.try_take(&step.key)
            {
                self.keep(&taken, step, leaves, (&done, Cost::default()));
            }
            return Ok(done);
        }
        let taken = self.results.take(&step.key, label, self.session)?;
        if let Some(taken) = &taken
            && let Some(done) = self.reuse(taken, leaves, label)?
        {
            return Ok(done);
        }
        let start = Instant::now();
        self.answered.set((0, Duration::ZERO));
        machine::forget_peak_memory();
        let done = self.work(leaves, work)?;
        if let Some(taken) = &taken {
            let (images, time) = self.answered.get();
            let cost = Cost {
                seconds: start.elapsed().as_secs_f64(),
                memory: machine::peak_memory().unwrap_or(0),
                images,
                image_seconds: time.as_secs_f64(),
            };
            self.keep(taken, step, leaves, (&done, cost));
        }
        Ok(done)
    }

    /// What the step came to, where it is done and kept for other runs.
    ///
    /// # Errors
    /// When what was done is no longer what it was.
    pub fn finished<T: DeserializeOwned>(&self, leaves: &Leaves<'_>) -> Result<Option<T>> {
        match self.plan.step(leaves.place) {
            Some(step) if !self.results.has(&step.key) => Ok(None),
            _ => self.store.read_marker(leaves.marker),
        }
    }

    /// The painted images of this run's generator, where they can be kept for other runs.
    ///
    /// # Errors
    /// When the user stops the run while another has them.
    pub fn pool(&self, reading: ReadOptions) -> Result<Option<Pool>> {
        let Some(step) = self.plan.step(layout::POOL) else {
            return Ok(None);
        };
        let Some(taken) = self.results.take(&step.key, "painting", self.session)? else {
            return Ok(None);
        };
        let about = self.about(step, &())?;
        Ok(Pool::open(taken, &about, reading)
            .inspect_err(|error| tracing::warn!("painted images are not kept: {error}"))
            .ok())
    }

    fn about(&self, step: &Step, value: &impl Serialize) -> Result<About> {
        Ok(About {
            diffaug: env!("CARGO_PKG_VERSION").to_owned(),
            inputs: step.inputs.clone(),
            cost: Cost::default(),
            hub: (self.pins)()?,
            value: serde_json::to_value(value)?,
            files: BTreeMap::new(),
        })
    }

    fn work<T: Serialize, E: From<Error>>(
        &self,
        leaves: &Leaves<'_>,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let done = work()?;
        self.store
            .write_marker(leaves.marker, &done, leaves.vouched)?;
        Ok(done)
    }

    /// What another run did, put into this run's folder.
    fn reuse<T: Serialize + DeserializeOwned>(
        &self,
        taken: &Taken,
        leaves: &Leaves<'_>,
        label: &str,
    ) -> Result<Option<T>> {
        let Some(about) = taken.find(leaves.parts, &(self.pins)()?) else {
            return Ok(None);
        };
        // Where there was nothing to train, nothing is said of it.
        let step = (!about.value.is_null()).then(|| self.session.begin(label));
        let Ok(done) = serde_json::from_value::<T>(about.value) else {
            return Ok(None);
        };
        taken.show(leaves.parts, self.store)?;
        for (field, commit) in &about.hub {
            self.store.pin(field, commit)?;
        }
        self.store
            .write_marker(leaves.marker, &done, leaves.vouched)?;
        if let Some(step) = step {
            step.finish("done before");
        }
        Ok(Some(done))
    }

    /// Keeps what was done for other runs. This run has it in any case.
    fn keep(
        &self,
        taken: &Taken,
        step: &Step,
        leaves: &Leaves<'_>,
        (done, cost): (&impl Serialize, Cost),
    ) {
        let keep = || {
            let about = About {
                cost,
                ..self.about(step, done)?
            };
            taken.keep(about, leaves.parts, self.store)
        };
        if let Err(error) = keep() {
            tracing::warn!("other runs will have to do this again: {error}");
        }
    }

    /// Runs the training `work`, which leaves `folder`; `None` when there is nothing to train.
    ///
    /// # Errors
    /// Whatever the stage reports, [`ErrorKind::Unsupported`] excepted; those of [`Steps::once`].
    pub fn fit(
        &self,
        (marker, folder): (&str, &str),
        label: &str,
        work: impl FnOnce(&Reporter<'_>) -> Result<FitReport>,
    ) -> Result<Option<Fit>> {
        let part = Part {
            name: "weights",
            place: folder,
            listed: None,
        };
        let leaves = Leaves {
            place: folder,
            marker,
            parts: &[part],
            vouched: &[folder],
        };
        self.once(&leaves, label, || self.train(label, work))
    }

    fn train(
        &self,
        label: &str,
        work: impl FnOnce(&Reporter<'_>) -> Result<FitReport>,
    ) -> Result<Option<Fit>> {
        let start = Instant::now();
        let step = self.session.begin(label);
        let fit = match self.session.stage(|| with_reporter(&step, work)) {
            Ok(report) => Some(Fit::from(report)),
            Err(error) if error.kind == ErrorKind::Unsupported => None,
            Err(error) => return Err(error),
        };
        if let Some(fit) = &fit {
            let score = fit
                .score
                .map_or_else(String::new, |s| format!(", {} {s:.3}", fit.metric));
            let steps = fit.steps;
            step.finish(&format!("{steps} steps{score}"));
            let seconds = start.elapsed().as_secs_f64();
            tracing::info!(steps, seconds, "{label}: done");
        }
        Ok(fit)
    }
}
