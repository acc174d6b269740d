//! Reads: from the overlay, the cache, or the engine on its thread.

use std::sync::Arc;

use halfmoon_wire::StateReply;

use crate::lanes::Lanes;
use crate::limits::STATE_READS_MAX;
use crate::metrics::add;
use crate::state::answer::{Ask, What};
use crate::state::entry::newer;
use crate::state::{Reading, State};

impl<F: Clone> State<F> {
    pub(super) fn read(&mut self, ask: Ask, lanes: &mut Lanes) {
        let What::Value(shape, key, landing) = &ask.what else { return };
        if let Some(found) = self.overlay.get(key).filter(|found| found.settled) {
            if found.number > self.log.durable().end.0 {
                let number = found.number;
                return self.wait(number, ask, lanes);
            }
            add(&self.metrics.state_memory_hits, 1);
            let value = found.value.clone();
            return ask.answer_value(*shape, Some(value), *landing, lanes);
        }
        if !self.overlay.contains_key(key)
            && let Some(found) = self.cache.get(key)
        {
            add(&self.metrics.state_memory_hits, 1);
            let value = found.clone();
            return ask.answer_value(*shape, Some(value), *landing, lanes);
        }
        if self.reading.len() >= STATE_READS_MAX {
            return ask.answer(StateReply::Failed("busy: too many reads"), lanes);
        }
        let shadowed = self.overlay.contains_key(key);
        self.last_read += 1;
        self.engine.read(self.last_read, key.clone());
        self.reading.insert(self.last_read, Reading { ask, applies: self.applies, shadowed });
    }

    /// The engine has answered a read; the overlay may hold something newer.
    pub(super) fn found(&mut self, reading: Reading, found: Option<Arc<[u8]>>, lanes: &mut Lanes) {
        let Reading { ask, applies, shadowed } = reading;
        let What::Value(shape, key, landing) = &ask.what else { return };
        let Some(at) = self.overlay.get_mut(key) else {
            if shadowed {
                // The engine took what shadowed the value; whether before it was read is unknown.
                return self.read(ask, lanes);
            }
            if let Some(found) = found.as_ref().filter(|_| applies == self.applies) {
                self.cache.insert(key.clone(), found.clone());
            }
            return ask.answer_value(*shape, found, *landing, lanes);
        };
        if at.since > applies {
            // The engine took a write after this one was begun, and another is in its place: neither
            // says whether the first was read.
            return self.read(ask, lanes);
        }
        if let Some(found) = found.filter(|found| newer(found, &at.value)) {
            // The engine will drop what the overlay holds.
            return ask.answer_value(*shape, Some(found), *landing, lanes);
        }
        at.settled = true;
        self.read(ask, lanes);
    }

    /// Whether the engine has all that was ever written.
    pub(super) fn has_caught_up(&self) -> bool {
        self.unapplied.is_empty() && self.applying.is_empty()
    }

    /// Reads of blobs ask the engine only, so they wait until it has what was written before.
    pub(super) fn read_blobs(&mut self, lanes: &mut Lanes) {
        let caught_up = self.has_caught_up();
        while let Some((number, _)) = self.blobs.front() {
            if *number > self.applied && !caught_up {
                return;
            }
            let Some((_, ask)) = self.blobs.pop_front() else { return };
            if self.reading.len() >= STATE_READS_MAX {
                ask.answer(StateReply::Failed("busy: too many reads"), lanes);
                continue;
            }
            if let What::Blob(hash, offset) = ask.what {
                self.last_read += 1;
                self.engine.read_blob(self.last_read, hash, offset);
                let (applies, shadowed) = (self.applies, false);
                self.reading.insert(self.last_read, Reading { ask, applies, shadowed });
            }
        }
    }
}
