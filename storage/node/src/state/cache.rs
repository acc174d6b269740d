//! Values kept in memory, oldest out first.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

/// Stored values by key, up to a number of bytes.
pub(crate) struct Cache {
    values: FxHashMap<Arc<[u8]>, Arc<[u8]>>,
    order: VecDeque<Arc<[u8]>>,
    bytes: usize,
    limit: usize,
}

impl Cache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { values: FxHashMap::default(), order: VecDeque::new(), bytes: 0, limit }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<[u8]>> {
        self.values.get(key)
    }

    /// Replaces what there is. A value that would crowd out the rest is not kept.
    pub(crate) fn insert(&mut self, key: Arc<[u8]>, value: Arc<[u8]>) {
        self.remove(&key);
        if value.len() > self.limit / 4 {
            return;
        }
        self.bytes += key.len() + value.len();
        self.values.insert(key.clone(), value);
        self.order.push_back(key);
        while self.bytes > self.limit || self.order.len() > 2 * self.values.len() + 16 {
            let Some(oldest) = self.order.pop_front() else { return };
            self.remove(&oldest);
        }
    }

    /// Forgets a value. Its place in the order stays until its turn comes.
    fn remove(&mut self, key: &[u8]) {
        if let Some(value) = self.values.remove(key) {
            self.bytes -= key.len() + value.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_keeps_the_newest_value_and_its_limit() {
        let mut cache = Cache::new(1000);
        let key = |n: u32| -> Arc<[u8]> { Arc::new(n.to_le_bytes()) };
        for n in 0..500 {
            cache.insert(key(n % 50), vec![1; n as usize % 100].into());
            assert!(cache.bytes <= 1000 && cache.order.len() <= 2 * cache.values.len() + 16);
        }
        assert_eq!(cache.get(&key(49)).map(|value| value.len()), Some(99));
        cache.insert(key(49), vec![1; 500].into());
        assert!(cache.get(&key(49)).is_none());
    }
}
