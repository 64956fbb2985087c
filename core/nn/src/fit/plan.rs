//! How epochs are cut into steps and steps into batches, and the threads that prepare them.

use super::{Learner, Settings, mix::Mixture};
use diffaug::{BoxDataset, Dataset, Error, Result, Sample, rng};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::sync::{
    Arc,
    mpsc::{Receiver, SyncSender, sync_channel},
};
use std::thread::{self, Scope};

/// How the order is drawn: a permutation of the samples (Fisher & Yates) for each epoch, from the
/// random stream of that purpose. A change of it needs another name.
const SCHEME: &str = "order/fisher-yates";
/// How it is drawn where real and synthetic samples are mixed: a permutation for each pass over a kind.
const MIXED: &str = "order/fisher-yates-by-kind";
pub(super) const PURPOSE: &str = "order";

/// How epochs are cut into steps.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub samples: u64,
    pub steps_per_epoch: u64,
    pub total: u64,
    /// Batches of a step.
    pub accumulate: u64,
    seed: u64,
    /// How steps are made where kinds are mixed. An epoch is then so many steps, and no pass.
    mixture: Option<Arc<Mixture>>,
}

/// The numbers below `count` in the order of pass `pass`.
pub(super) fn permutation(seed: u64, count: u64, pass: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..count).collect();
    let mut rng = rng::stream(seed, PURPOSE, pass);
    for i in (1..order.len()).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}

/// What the order of samples follows from, for checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Order {
    scheme: String,
    seed: u64,
    samples: u64,
    steps_per_epoch: u64,
    accumulate: u64,
    epoch: u64,
    /// Of the order of that epoch; where kinds are mixed, of the samples of the next step.
    digest: u64,
}

impl Plan {
    /// The plan for as many samples as `synthetic` has entries; each says whether that sample is.
    ///
    /// # Errors
    /// When kinds are to be mixed and no sample is real.
    pub fn new(settings: &Settings, synthetic: &[bool]) -> Result<Self> {
        let samples = synthetic.len() as u64;
        let accumulate = settings.accumulate.max(1) as u64;
        let size = settings.batch.max(1) as u64 * accumulate;
        let steps_per_epoch = samples.div_ceil(size);
        let total = settings.steps.unwrap_or(steps_per_epoch * settings.epochs);
        let seed = settings.seed;
        let mixture = settings
            .mix
            .map(|mix| Mixture::new(mix, synthetic, size, total, seed));
        Ok(Plan {
            samples,
            steps_per_epoch,
            total,
            accumulate,
            seed,
            mixture: mixture.transpose()?.map(Arc::new),
        })
    }

    /// The samples in the order of `epoch`.
    fn order(&self, epoch: u64) -> Vec<u64> {
        permutation(self.seed, self.samples, epoch)
    }

    /// The indices (beyond the last one for later epochs) of the samples of `step`.
    pub fn indices(&self, step: u64) -> Vec<u64> {
        if let Some(mixture) = &self.mixture {
            return mixture.indices(step);
        }
        let (epoch, place) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        let order = self.order(epoch);
        // Steps of equal size: a last one of a single sample would upset batch normalisation.
        let edge = |place: u64| (place * self.samples / self.steps_per_epoch) as usize;
        let part = &order[edge(place)..edge(place + 1)];
        part.iter().map(|i| epoch * self.samples + i).collect()
    }

    /// The indices of batch `batch`, counted over all steps, and its share of the step; empty in
    /// steps of fewer samples than batches.
    pub fn batch(&self, batch: u64) -> (Vec<u64>, f64) {
        let (step, place) = (batch / self.accumulate, batch % self.accumulate);
        let indices = self.indices(step);
        let count = indices.len() as u64;
        let parts = self.accumulate.min(count).max(1);
        if place >= parts {
            return (Vec::new(), 0.0);
        }
        let edge = |place: u64| (place * count / parts) as usize;
        let part = indices[edge(place)..edge(place + 1)].to_vec();
        let share = part.len() as f64 / count as f64;
        (part, share)
    }

    /// What the order of the samples after `step` steps follows from.
    pub fn describe(&self, step: u64) -> Order {
        let epoch = step / self.steps_per_epoch;
        let (scheme, order) = match &self.mixture {
            None => (SCHEME, self.order(epoch)),
            Some(mixture) => (MIXED, mixture.indices(step)),
        };
        let order: Vec<String> = order.iter().map(u64::to_string).collect();
        Order {
            scheme: scheme.into(),
            seed: self.seed,
            samples: self.samples,
            steps_per_epoch: self.steps_per_epoch,
            accumulate: self.accumulate,
            epoch,
            digest: rng::derive(0, "indices", &order.join(",")),
        }
    }
}

/// A batch that is ready, with its share of the step.
pub(super) type Ready<B> = Result<Option<(B, f64)>>;

/// Batches in order, made by several threads.
pub(super) struct Batches<B> {
    queues: Vec<Receiver<Ready<B>>>,
    next: usize,
}

impl<B> Batches<B> {
    /// Starts threads that prepare all batches from step `start` on; they stop when this is
    /// dropped.
    pub fn start<'scope, 'env, L: Learner<Batch = B>>(
        scope: &'scope Scope<'scope, 'env>,
        learner: &'env L,
        train: &'env BoxDataset,
        plan: &Plan,
        start: u64,
    ) -> Self
    where
        B: Send + 'scope,
    {
        let workers = thread::available_parallelism().map_or(1, |n| n.get().min(4));
        let (first, end) = (start * plan.accumulate, plan.total * plan.accumulate);
        let queues = (0..workers as u64).map(|worker| {
            // One batch waits while the next is made.
            let (sender, receiver) = sync_channel(1);
            let plan = plan.clone();
            scope.spawn(move || {
                let numbers = (first + worker..end).step_by(workers);
                prepare(learner, train, &plan, numbers, &sender);
            });
            receiver
        });
        Batches {
            queues: queues.collect(),
            next: 0,
        }
    }

    pub fn next(&mut self) -> Ready<B> {
        let queue = &self.queues[self.next % self.queues.len()];
        self.next += 1;
        queue
            .recv()
            .map_err(|_| Error::internal("a thread that prepares batches is gone"))?
    }
}

/// Sends the batches with these numbers until one fails or nobody listens any more.
fn prepare<L: Learner>(
    learner: &L,
    train: &BoxDataset,
    plan: &Plan,
    numbers: impl Iterator<Item = u64>,
    queue: &SyncSender<Ready<L::Batch>>,
) {
    for number in numbers {
        let (indices, share) = plan.batch(number);
        let batch = || {
            if indices.is_empty() {
                return Ok(None);
            }
            let samples = indices.iter().map(|i| train.sample(*i));
            let samples: Vec<Sample> = samples.collect::<Result<_>>()?;
            Ok(Some((learner.prepare(samples, number)?, share)))
        };
        let batch = batch();
        let failed = batch.is_err();
        if queue.send(batch).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fit::Mix;

    fn plan(batch: usize, accumulate: usize) -> Plan {
        let settings = Settings {
            epochs: 3,
            batch,
            accumulate,
            seed: 5,
            ..Settings::default()
        };
        Plan::new(&settings, &[false; 7]).unwrap()
    }

    #[test]
    fn a_mixed_step_is_the_same_however_it_is_cut() {
        let plan = |batch: usize, accumulate: usize| {
            let settings = Settings {
                steps: Some(40),
                batch,
                accumulate,
                seed: 5,
                mix: Mix::of(Some(0.3), 0.25),
                ..Settings::default()
            };
            let kinds = [true, false, false, true, false, true, true];
            Plan::new(&settings, &kinds).unwrap()
        };
        let (whole, cut) = (plan(8, 1), plan(4, 2));
        for step in 0..40 {
            assert_eq!(whole.indices(step), cut.indices(step));
            let (first, a) = cut.batch(2 * step);
            let (second, b) = cut.batch(2 * step + 1);
            assert_eq!([first, second].concat(), whole.batch(step).0);
            assert_eq!((a, b), (0.5, 0.5));
        }
        assert_ne!(whole.describe(3), whole.describe(4));
        assert_eq!(whole.describe(3), plan(8, 1).describe(3));
    }

    #[test]
    fn every_epoch_visits_every_sample_once() {
        let plan = plan(3, 1);
        for epoch in 0..3 {
            let steps = epoch * 3..(epoch + 1) * 3;
            let mut seen: Vec<u64> = steps.flat_map(|step| plan.indices(step)).collect();
            let first = seen.clone();
            seen.sort_unstable();
            assert_eq!(seen, (epoch * 7..(epoch + 1) * 7).collect::<Vec<_>>());
            assert_ne!(seen, first);
        }
    }

    #[test]
    fn the_batches_of_a_step_are_its_samples() {
        for accumulate in [1, 2, 3, 5] {
            let plan = plan(1, accumulate);
            for step in 0..plan.total {
                let first = step * plan.accumulate;
                let batches = (first..first + plan.accumulate).map(|batch| plan.batch(batch));
                let batches: Vec<_> = batches.collect();
                let shares: f64 = batches.iter().map(|batch| batch.1).sum();
                assert!((shares - 1.0).abs() < 1e-12);
                let all: Vec<u64> = batches.into_iter().flat_map(|batch| batch.0).collect();
                assert_eq!(all, plan.indices(step));
            }
        }
    }

    #[test]
    fn an_order_is_told_by_seed_and_epoch() {
        assert_eq!(plan(3, 1).describe(3), plan(3, 1).describe(5));
        assert_ne!(plan(3, 1).describe(2), plan(3, 1).describe(3));
    }
}
