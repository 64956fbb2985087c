//! How much of a run's time is spent in stages; the rest is the pipeline's own overhead.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

static IN_STAGES: AtomicU64 = AtomicU64::new(0);

/// Runs a stage's work and counts its time.
pub fn stage<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = work();
    let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    IN_STAGES.fetch_add(nanoseconds, Ordering::Relaxed);
    out
}

/// The time in stages so far.
pub fn in_stages() -> Duration {
    Duration::from_nanos(IN_STAGES.load(Ordering::Relaxed))
}
