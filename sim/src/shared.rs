//! What the parts of a simulated world share: the time, and who is to be woken when.

use std::cell::{Cell, RefCell};

thread_local! {
    /// The time of the run on this thread, for what is said of it.
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// The virtual time of the run on this thread, in ns.
#[must_use]
pub fn now_ns() -> u64 {
    NOW.get()
}

/// The time, and wishes to be woken.
#[derive(Debug, Default)]
pub struct Shared {
    now: Cell<u64>,
    wakes: RefCell<Vec<(u64, usize)>>,
}

impl Shared {
    /// The true time, in ns.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// Sets the time.
    pub fn set_now(&self, now: u64) {
        self.now.set(now);
        NOW.set(now);
    }

    /// A node has something to do at this time.
    pub fn wake(&self, at: u64, node: usize) {
        self.wakes.borrow_mut().push((at, node));
    }

    /// Takes a wish to be woken.
    #[must_use]
    pub fn next_wake(&self) -> Option<(u64, usize)> {
        self.wakes.borrow_mut().pop()
    }
}
