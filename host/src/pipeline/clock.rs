//! How much of a run's time is spent in stages; the rest is the pipeline's own overhead. Stages that
//! work at the same time count once.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

static BUSY: Mutex<Busy> = Mutex::new(Busy {
    at_work: 0,
    since: None,
    total: Duration::ZERO,
});

/// The time in which at least one stage is at work.
struct Busy {
    at_work: usize,
    since: Option<Instant>,
    total: Duration,
}

impl Busy {
    fn enter(&mut self, now: Instant) {
        if self.at_work == 0 {
            self.since = Some(now);
        }
        self.at_work += 1;
    }

    fn leave(&mut self, now: Instant) {
        self.at_work = self.at_work.saturating_sub(1);
        if self.at_work == 0
            && let Some(since) = self.since.take()
        {
            self.total += now.saturating_duration_since(since);
        }
    }
}

/// Leaves also when a stage panics.
struct AtWork;

impl Drop for AtWork {
    fn drop(&mut self) {
        lock().leave(Instant::now());
    }
}

fn lock() -> std::sync::MutexGuard<'static, Busy> {
    BUSY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a stage's work and counts its time.
pub fn stage<T>(work: impl FnOnce() -> T) -> T {
    lock().enter(Instant::now());
    let _at_work = AtWork;
    work()
}

/// The time in stages so far.
pub fn in_stages() -> Duration {
    lock().total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_work_counts_once() {
        let mut busy = Busy {
            at_work: 0,
            since: None,
            total: Duration::ZERO,
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        busy.enter(at(0));
        busy.enter(at(1));
        busy.leave(at(3));
        busy.leave(at(4));
        busy.enter(at(10));
        busy.leave(at(11));
        assert_eq!(busy.total, Duration::from_secs(5));
    }
}
