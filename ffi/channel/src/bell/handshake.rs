//! The steps by which a sleeper and a waker do not miss each other: see the module above.

use super::atomics::{AtomicU32, Ordering, fence};

/// Says that this side is about to sleep. True if it may: nothing has come meanwhile.
pub(in super::super) fn prepare_sleep(sleeps: &AtomicU32, is_empty: impl FnOnce() -> bool) -> bool {
    sleeps.store(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    if is_empty() {
        return true;
    }
    sleeps.store(0, Ordering::Relaxed);
    false
}

/// Called after a message is published: true if the other side must be woken, by this call's
/// caller and nobody else.
pub(in super::super) fn must_wake(sleeps: &AtomicU32) -> bool {
    fence(Ordering::SeqCst);
    sleeps.load(Ordering::Relaxed) != 0 && sleeps.swap(0, Ordering::SeqCst) != 0
}
