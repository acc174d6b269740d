//! Rows that the embedded engine does not have yet.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

type Bytes = Arc<[u8]>;

/// The latest value of each row that is on its way.
#[derive(Default)]
pub(super) struct Overlay {
    rows: FxHashMap<Bytes, (u64, Bytes)>,
    /// Every put, oldest first.
    order: VecDeque<(u64, Arc<[u8]>, usize)>,
    bytes: usize,
}

impl Overlay {
    pub(super) fn put(&mut self, position: u64, key: Arc<[u8]>, value: Arc<[u8]>) {
        let bytes = key.len() + value.len();
        self.bytes += bytes;
        self.order.push_back((position, Arc::clone(&key), bytes));
        self.rows.insert(key, (position, value));
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.rows.get(key).map(|(_, value)| Arc::clone(value))
    }

    /// Forgets what was put at or below `position`, and not again since.
    pub(super) fn forget(&mut self, position: u64) {
        while let Some((put_at, _, _)) = self.order.front()
            && *put_at <= position
        {
            let Some((put_at, key, bytes)) = self.order.pop_front() else { break };
            self.bytes -= bytes;
            if self.rows.get(&key).is_some_and(|(latest, _)| *latest == put_at) {
                self.rows.remove(&key);
            }
        }
    }

    /// Bytes of all puts that were not forgotten.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}
