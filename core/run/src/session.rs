//! How a run is followed from outside: progress of its steps, the wish that it stop, and the time that
//! its stages take.

use diffaug::{Error, Progress, Result, Silent};
use std::{
    fs::File,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Shows what a run does, and knows whether it is to stop.
pub trait Monitor: Send + Sync {
    /// Begins to show a step.
    fn begin(&self, label: &str) -> Box<dyn Step>;
    /// Whether the run is to stop at the next chance.
    fn stopped(&self) -> bool;
    /// Sends what is logged to the run's own file from now on.
    fn log_to(&self, file: File);
}

/// A step that is shown.
pub trait Step: Progress {
    /// Ends it; `summary` says what came of it.
    fn finish(self: Box<Self>, summary: &str);
}

impl Progress for Box<dyn Step> {
    fn progress(&self, done: u64, total: u64, note: &str) {
        (**self).progress(done, total, note);
    }
    fn cancelled(&self) -> bool {
        (**self).cancelled()
    }
}

/// Shows nothing and never stops: for tests.
impl Monitor for Silent {
    fn begin(&self, _: &str) -> Box<dyn Step> {
        Box::new(Silent)
    }
    fn stopped(&self) -> bool {
        false
    }
    fn log_to(&self, _: File) {}
}

impl Step for Silent {
    fn finish(self: Box<Self>, _: &str) {}
}

/// A run in this process: who follows it, and how long its stages were at work.
pub struct Session<'a> {
    monitor: &'a dyn Monitor,
    busy: Mutex<Busy>,
}

impl<'a> Session<'a> {
    /// A session that `monitor` follows.
    pub fn new(monitor: &'a dyn Monitor) -> Self {
        Session {
            monitor,
            busy: Mutex::default(),
        }
    }

    /// Begins to show a step.
    pub fn begin(&self, label: &str) -> Box<dyn Step> {
        self.monitor.begin(label)
    }

    /// Sends what is logged to the run's own file from now on.
    pub fn log_to(&self, file: File) {
        self.monitor.log_to(file);
    }

    /// Whether the run is to stop at the next chance.
    pub fn stopped(&self) -> bool {
        self.monitor.stopped()
    }

    /// Ends the work where the run is to stop.
    ///
    /// # Errors
    /// [`Error::cancelled`] then.
    pub fn check_stopped(&self) -> Result<()> {
        match self.stopped() {
            true => Err(Error::cancelled()),
            false => Ok(()),
        }
    }

    /// Does the work of a stage and counts its time.
    pub fn stage<T>(&self, work: impl FnOnce() -> T) -> T {
        self.busy().begin(Instant::now());
        let _at_work = AtWork(self);
        work()
    }

    /// The time in which at least one stage was at work; the rest of a run's time is its own.
    pub fn in_stages(&self) -> Duration {
        self.busy().total
    }

    fn busy(&self) -> MutexGuard<'_, Busy> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time in which at least one stage is at work.
#[derive(Default)]
struct Busy {
    at_work: usize,
    since: Option<Instant>,
    total: Duration,
}

impl Busy {
    fn begin(&mut self, now: Instant) {
        if self.at_work == 0 {
            self.since = Some(now);
        }
        self.at_work += 1;
    }

    fn end(&mut self, now: Instant) {
        self.at_work = self.at_work.saturating_sub(1);
        if self.at_work == 0
            && let Some(since) = self.since.take()
        {
            self.total += now.saturating_duration_since(since);
        }
    }
}

/// Ends the count also when a stage panics.
struct AtWork<'a, 'b>(&'a Session<'b>);

impl Drop for AtWork<'_, '_> {
    fn drop(&mut self) {
        self.0.busy().end(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_work_counts_once() {
        let mut busy = Busy::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        busy.begin(at(0));
        busy.begin(at(1));
        busy.end(at(3));
        busy.end(at(4));
        busy.begin(at(10));
        busy.end(at(11));
        assert_eq!(busy.total, Duration::from_secs(5));
    }
}
