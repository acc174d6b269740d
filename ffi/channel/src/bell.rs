//! Waking the other side, with a system call only when it sleeps.
//!
//! The sleeper says so (`sleeps` = 1), then looks at its ring once more; the other side publishes a
//! message, then looks whether the sleeper sleeps. A full fence stands between the two steps of
//! each, so one of them sees the other: no wake-up is lost, and none is made for nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use std::{hint, io};

use rustix::event::EventfdFlags;
use rustix::thread::futex;

use self::atomics::{AtomicU32, Ordering};
pub(crate) use self::handshake::{must_wake, prepare_sleep};

/// What `handshake` is made of. The model of it below has its own.
mod atomics {
    pub(super) use std::sync::atomic::{AtomicU32, Ordering, fence};
}
mod handshake;
#[cfg(test)]
mod model;

/// The eventfd that workers ring when their engine sleeps. An engine may have one for all of its
/// workers, or one for each.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<OwnedFd>);

impl Doorbell {
    /// A fresh one, non-blocking and closed on exec.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(rustix::event::eventfd(0, flags)?)))
    }

    pub(crate) fn owned(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// Takes away what was rung. Needed only where nothing else reads the descriptor.
    pub fn drain(&self) {
        let mut count = [0; 8];
        // Empty, which is the only failure of a non-blocking eventfd, is what is wanted.
        _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until `sleeps` is no longer 1, for `patience` at most.
pub(crate) fn sleep(sleeps: &AtomicU32, patience: Duration) {
    let timeout = futex::Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    // Interrupted, timed out, or changed before the sleep began: the caller looks again anyway.
    _ = futex::wait(sleeps, futex::Flags::empty(), 1, Some(&timeout));
    sleeps.store(0, Ordering::Relaxed);
}

/// Ends the sleep of the one process that sleeps on this word.
pub(crate) fn wake(sleeps: &AtomicU32) {
    // It fails only for bad addresses, and this one is mapped.
    _ = futex::wake(sleeps, futex::Flags::empty(), 1);
}

/// Rings a doorbell that was inherited.
pub(crate) fn ring(doorbell: BorrowedFd<'_>) {
    // Full, which is the only failure of a non-blocking eventfd, has woken the engine as well.
    _ = rustix::io::write(doorbell, &1_u64.to_ne_bytes());
}

/// How long to look before sleeping: doubles while looking helps, halves while it does not.
#[derive(Debug)]
pub(crate) struct Spin {
    max: u32,
    budget: u32,
}

/// Least number of looks while spinning is on at all.
const SPIN_MIN: u32 = 16;

impl Spin {
    /// At most `max` looks; 0 turns spinning off.
    pub(crate) const fn new(max: u32) -> Self {
        Self { max, budget: max }
    }

    /// Looks until `is_ready` or the budget is used up; returns what it saw last.
    pub(crate) fn until(&mut self, is_ready: impl Fn() -> bool) -> bool {
        if is_ready() {
            return true;
        }
        for _ in 0..self.budget {
            hint::spin_loop();
            if is_ready() {
                self.budget = self.budget.saturating_mul(2).min(self.max);
                return true;
            }
        }
        self.budget = (self.budget / 2).max(SPIN_MIN.min(self.max));
        false
    }
}
