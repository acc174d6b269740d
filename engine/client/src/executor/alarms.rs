//! Wakers that wait for a number to be reached: a time, or a position of the log.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

use rustc_hash::FxHashMap;

/// Cancelled entries that the heap may hold beyond as many as there are live ones.
const STALE_MAX: usize = 256;

/// Wakers by the number that they wait for.
#[derive(Default)]
pub(crate) struct Alarms {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    /// By id; what is not here was cancelled.
    wakers: FxHashMap<u64, Waker>,
    ids: u64,
}

/// One waker in [`Alarms`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AlarmId(u64);

impl Alarms {
    /// Wakes when `at` is reached.
    pub(crate) fn set(&mut self, at: u64, waker: Waker) -> AlarmId {
        if self.heap.len() > 2 * self.wakers.len() + STALE_MAX {
            let wakers = &self.wakers;
            self.heap.retain(|Reverse((_, id))| wakers.contains_key(id));
        }
        self.ids += 1;
        self.heap.push(Reverse((at, self.ids)));
        self.wakers.insert(self.ids, waker);
        AlarmId(self.ids)
    }

    /// Wakes another one instead. Without effect if it has fired.
    pub(crate) fn update(&mut self, id: AlarmId, waker: &Waker) {
        if let Some(found) = self.wakers.get_mut(&id.0) {
            found.clone_from(waker);
        }
    }

    /// Forgets it.
    pub(crate) fn cancel(&mut self, id: AlarmId) {
        self.wakers.remove(&id.0);
    }

    /// Wakes all that wait for `reached` or less.
    pub(crate) fn fire(&mut self, reached: u64) {
        while let Some(Reverse((at, id))) = self.heap.peek().copied()
            && at <= reached
        {
            self.heap.pop();
            if let Some(waker) = self.wakers.remove(&id) {
                waker.wake();
            }
        }
    }

    /// Wakes all, whatever they wait for.
    pub(crate) fn fire_all(&mut self) {
        self.fire(u64::MAX);
    }

    /// The least number that is waited for.
    pub(crate) fn next(&mut self) -> Option<u64> {
        while let Some(Reverse((at, id))) = self.heap.peek().copied() {
            if self.wakers.contains_key(&id) {
                return Some(at);
            }
            self.heap.pop();
        }
        None
    }
}
