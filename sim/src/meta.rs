//! The simulated metadata store: one map, and calls that fail or whose outcome is unknown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use halfmoon_meta::{CasError, Entry, Expected, MetaError, MetaStore, Revision};

use crate::random::{Concern, Random};

/// A metadata store. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimMeta(Arc<Mutex<Inner>>);

struct Inner {
    entries: BTreeMap<String, Entry>,
    revision: u64,
    random: Random,
    trouble: u64,
    failed: u64,
}

impl SimMeta {
    /// An empty store.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let random = Random::new(seed, Concern::Meta, 0);
        let (entries, revision, trouble, failed) = (BTreeMap::new(), 0, 0, 0);
        Self(Arc::new(Mutex::new(Inner { entries, revision, random, trouble, failed })))
    }

    /// Calls fail with so many chances in a million from now on.
    pub fn set_trouble(&self, per_million: u64) {
        self.inner().trouble = per_million;
    }

    /// Calls that failed, or whose outcome was unknown.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.inner().failed
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn trouble(&mut self) -> bool {
        let trouble = self.random.chance(self.trouble);
        self.failed += u64::from(trouble);
        trouble
    }

    fn change(
        &mut self,
        key: &str,
        expected: Expected,
        value: Option<&[u8]>,
    ) -> Result<Revision, CasError> {
        let trouble = self.trouble();
        if trouble && self.random.chance(500_000) {
            return Err(CasError::Failed(busy()));
        }
        let current = self.entries.get(key);
        if !expected.matches(current.map(|entry| entry.revision)) {
            return Err(CasError::Conflict { current: current.cloned() });
        }
        if trouble && self.random.chance(500_000) {
            return Err(CasError::Unknown { source: busy() });
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        match value {
            Some(value) => {
                let entry = Entry { value: value.to_vec(), revision };
                self.entries.insert(key.to_owned(), entry);
            }
            None => drop(self.entries.remove(key)),
        }
        if trouble {
            return Err(CasError::Unknown { source: busy() });
        }
        Ok(revision)
    }
}

fn busy() -> MetaError {
    MetaError::Busy { path: PathBuf::from("simulated"), waited_ms: 1 }
}

impl MetaStore for SimMeta {
    fn get(&self, key: &str) -> Result<Option<Entry>, MetaError> {
        let mut inner = self.inner();
        if inner.trouble() { Err(busy()) } else { Ok(inner.entries.get(key).cloned()) }
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Entry)>, MetaError> {
        let mut inner = self.inner();
        if inner.trouble() {
            return Err(busy());
        }
        let from = inner.entries.range(prefix.to_owned()..);
        let found = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, entry)| (key.clone(), entry.clone())).collect())
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Expected,
        value: &[u8],
    ) -> Result<Revision, CasError> {
        self.inner().change(key, expected, Some(value))
    }

    fn delete(&self, key: &str, expected: Revision) -> Result<(), CasError> {
        self.inner().change(key, Expected::At(expected), None).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_meta::cluster;
    use halfmoon_wire::NodeId;

    use super::*;

    #[test]
    fn no_two_calls_are_given_the_same_epoch_whatever_fails() {
        let store = SimMeta::new(3);
        let members = [NodeId(1), NodeId(2), NodeId(3)];
        cluster::create(&store, 1, cluster::Durability::Flush, &members).unwrap();
        store.set_trouble(400_000);
        let mut last = 0;
        for _ in 0..200 {
            if let Ok(info) = cluster::next_epoch(&store, NodeId(9)) {
                assert!(info.epoch().0 > last);
                last = info.epoch().0;
            }
        }
        assert!(last > 50 && store.failed() > 50, "{last}");
    }
}
