//! Three stations of one line at once: while one batch is written, the next is judged and the one
//! after it painted, so that a run takes no longer than its slowest station.

use crate::session::Session;
use diffaug::{Error, Result};
use std::{
    ops::ControlFlow,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// Batches that wait between two stations: enough that an uneven station does not hold up the others,
/// few enough that little is painted in vain once nothing more is wanted.
const WAITING: usize = 1;

/// Tells what is under way that nothing more is wanted of it.
pub struct StopFlag<'a> {
    set: AtomicBool,
    session: &'a Session<'a>,
}

impl<'a> StopFlag<'a> {
    /// A flag that is not set.
    pub fn new(session: &'a Session<'a>) -> Self {
        StopFlag {
            set: AtomicBool::new(false),
            session,
        }
    }

    /// Whether the line has come to its end, or the run is to stop.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Relaxed) || self.session.stopped()
    }
}

/// Sends what `first` makes through `second` to `third`, in order, each on a thread of its own (the
/// last on this one), until `first` has nothing more or `third` breaks.
///
/// # Errors
/// The first of any station; what came before it has gone through `third`.
pub fn line<A: Send, B: Send>(
    session: &Session<'_>,
    first: impl FnMut(&StopFlag<'_>) -> Result<Option<A>> + Send,
    second: impl FnMut(A, &StopFlag<'_>) -> Result<B> + Send,
    mut third: impl FnMut(B) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let stop = StopFlag::new(session);
    thread::scope(|scope| {
        let (to_second, from_first) = sync_channel(WAITING);
        let (to_third, from_second) = sync_channel(WAITING);
        let flag = &stop;
        let begin = thread::Builder::new().name("painting".to_owned());
        let painting = begin.spawn_scoped(scope, move || begins(first, &to_second, flag))?;
        let pass = thread::Builder::new().name("judging".to_owned());
        let judging = pass.spawn_scoped(scope, move || {
            passes_on(second, from_first, &to_third, flag);
        })?;
        let mut finish = || {
            for item in &from_second {
                if third(item?)?.is_break() {
                    break;
                }
            }
            Ok(())
        };
        let outcome = finish();
        flag.set.store(true, Ordering::Relaxed);
        // The others notice when they next hand something over.
        drop(from_second);
        for station in [painting, judging] {
            if let Err(panic) = station.join() {
                std::panic::resume_unwind(panic);
            }
        }
        outcome
    })
}

/// Makes items until there are none, an error or nobody to take them.
fn begins<A>(
    mut make: impl FnMut(&StopFlag<'_>) -> Result<Option<A>>,
    to: &SyncSender<Result<A>>,
    stop: &StopFlag<'_>,
) {
    while let Some(item) = make(stop).transpose() {
        let failed = item.is_err();
        if to.send(item).is_err() || failed {
            return;
        }
    }
}

/// Works on items until there are none, an error or nobody to take them.
fn passes_on<A, B>(
    mut work: impl FnMut(A, &StopFlag<'_>) -> Result<B>,
    from: Receiver<Result<A>>,
    to: &SyncSender<Result<B>>,
    stop: &StopFlag<'_>,
) {
    for item in from {
        let done: Result<B, Error> = item.and_then(|item| work(item, stop));
        let failed = done.is_err();
        if to.send(done).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::AtomicUsize,
        time::{Duration, Instant},
    };

    /// The numbers from 0 on, up to `end`.
    fn numbers(end: u64) -> impl FnMut(&StopFlag<'_>) -> Result<Option<u64>> {
        let mut next = 0..end;
        move |_| Ok(next.next())
    }

    #[test]
    fn everything_goes_through_in_order() {
        let session = Session::new(&diffaug::Silent);
        let mut seen = Vec::new();
        let keep = |n| {
            seen.push(n);
            Ok(ControlFlow::Continue(()))
        };
        line(&session, numbers(20), |n, _| Ok(n * n), keep).unwrap();
        assert_eq!(seen, (0..20).map(|n| n * n).collect::<Vec<_>>());
    }

    /// Waits for something that happens at once unless it never does.
    fn until(happened: impl Fn() -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while !happened() {
            if Instant::now() > end {
                return Err(Error::internal("waited in vain"));
            }
            thread::yield_now();
        }
        Ok(())
    }

    #[test]
    fn stations_work_at_the_same_time() {
        let session = Session::new(&diffaug::Silent);
        // The third batch is painted, the second judged and the first written only together.
        let together = AtomicUsize::new(0);
        let meet = |wanted: u64, n: u64| {
            if n == wanted {
                together.fetch_add(1, Ordering::SeqCst);
                until(|| together.load(Ordering::SeqCst) == 3)?;
            }
            Ok(n)
        };
        let mut next = 0..3;
        let first = |_: &StopFlag<'_>| next.next().map(|n| meet(2, n)).transpose();
        let third = |n| meet(0, n).map(|_| ControlFlow::Continue(()));
        line(&session, first, |n, _| meet(1, n), third).unwrap();
    }

    #[test]
    fn a_break_ends_the_line_and_tells_the_others() {
        let session = Session::new(&diffaug::Silent);
        let mut made = 0;
        // From the fourth on, an item is only done when nothing more is wanted.
        let first = |stop: &StopFlag<'_>| {
            made += 1;
            if made > 3 {
                until(|| stop.is_set())?;
            }
            Ok(Some(made))
        };
        let mut taken = 0;
        let third = |_| {
            taken += 1;
            Ok(match taken {
                3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
        };
        line(&session, first, |n, _| Ok(n), third).unwrap();
        assert_eq!(taken, 3);
    }

    #[test]
    fn a_panic_of_a_station_keeps_its_words() {
        let run = || {
            let session = Session::new(&diffaug::Silent);
            let second = |n: u64, _: &StopFlag<'_>| match n {
                2 => panic!("two is too much"),
                n => Ok(n),
            };
            line(&session, numbers(9), second, |_| {
                Ok(ControlFlow::Continue(()))
            })
        };
        let panic = std::panic::catch_unwind(run).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"two is too much"));
    }

    #[test]
    fn an_error_comes_after_what_was_before_it() {
        let session = Session::new(&diffaug::Silent);
        for fails_first in [true, false] {
            let mut kept = Vec::new();
            let mut next = 0..9;
            let first = |_: &StopFlag<'_>| match next.next() {
                Some(4) if fails_first => Err(Error::data("four")),
                n => Ok(n),
            };
            let second = |n, _: &StopFlag<'_>| match n {
                4 => Err(Error::data("four")),
                n => Ok(n),
            };
            let third = |n| {
                kept.push(n);
                Ok(ControlFlow::Continue(()))
            };
            let error = line(&session, first, second, third).unwrap_err();
            assert_eq!(error.to_string(), "four");
            assert_eq!(kept, [0, 1, 2, 3]);
        }
        let error = line(
            &session,
            numbers(5),
            |n, _| Ok(n),
            |_| Err(Error::data("the disk is full")),
        );
        assert_eq!(error.unwrap_err().to_string(), "the disk is full");
    }
}
