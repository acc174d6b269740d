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
    /// Whether the event was signalled since the reactor last looked.
    signalled: AtomicBool,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Self { shared: Arc::new(Shared { event, signalled: AtomicBool::new(false) }) })
    }

    /// Makes the reactor's current or next wait return.
    pub fn wake(&self) {
        // SeqCst orders this with what the waker's thread published before, and with the reactor's
        // reset: a signal that is skipped here is one that the reactor has yet to see.
        if !self.shared.signalled.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow, and nothing else fails on an event that is open.
            rustix::io::write(&self.shared.event, &1u64.to_ne_bytes()).ok();
        }
    }

    /// The descriptor to be watched; child processes may be given it to wake this reactor.
    #[must_use]
    pub fn event(&self) -> &Arc<OwnedFd> {
        &self.shared.event
    }

    /// Takes the signals there are.
    pub(crate) fn reset(&self) {
        let mut count = [0; 8];
        rustix::io::read(&self.shared.event, &mut count).ok();
        self.shared.signalled.store(false, Ordering::SeqCst);
    }
}

impl Wake for Waker {
    fn wake(&self) {
        Self::wake(self);
    }
}
