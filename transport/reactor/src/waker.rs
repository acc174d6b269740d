//! Ends the sleep of a reactor from another thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use halfmoon_transport::Wake;
use rustix::event::{EventfdFlags, eventfd};

/// Wakes one reactor; cheap to clone, and cheap to call again before the reactor has woken.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    event: Arc<OwnedFd>,
    /// Somebody woke, and the reactor has not noticed yet.
    signalled: AtomicBool,
    /// The reactor sleeps or is about to: only then does waking take a system call.
    asleep: AtomicBool,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (signalled, asleep) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { shared: Arc::new(Shared { event, signalled, asleep }) })
    }

    /// Makes the reactor's current or next wait return. What is to be noticed is published before.
    pub fn wake(&self) {
        // SeqCst, with `prepare_sleep`: of the store here and the one there, one is first, so
        // either the reactor sees the signal before it sleeps, or it is seen here to be asleep.
        if self.shared.signalled.swap(true, Ordering::SeqCst) {
            return;
        }
        if self.shared.asleep.load(Ordering::SeqCst) {
            // The counter cannot overflow, and nothing else fails on an event that is open.
            rustix::io::write(&self.shared.event, &1u64.to_ne_bytes()).ok();
        }
    }

    /// The descriptor to be watched; child processes may be given it to wake this reactor.
    #[must_use]
    pub fn event(&self) -> &Arc<OwnedFd> {
        &self.shared.event
    }

    /// Whether somebody woke since the last call.
    pub(crate) fn take(&self) -> bool {
        // The swap makes what was published before the signal visible.
        self.is_signalled() && self.shared.signalled.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn is_signalled(&self) -> bool {
        self.shared.signalled.load(Ordering::SeqCst)
    }

    /// Announces sleep; returns whether it is allowed, which it is not if somebody woke.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.shared.asleep.store(true, Ordering::SeqCst);
        !self.is_signalled()
    }

    /// The sleep is over.
    pub(crate) fn slept(&self) {
        self.shared.asleep.store(false, Ordering::SeqCst);
    }

    /// Empties the event, which was watched and is ready.
    pub(crate) fn empty(&self) {
        let mut count = [0; 8];
        rustix::io::read(&self.shared.event, &mut count).ok();
    }
}

impl Wake for Waker {
    fn wake(&self) {
        Self::wake(self);
    }
}
