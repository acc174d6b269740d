//! Roots inherited from evicted engines, and how long it takes until all of them have ended.

use std::collections::{BTreeSet, VecDeque};

use halfmoon_wire::{Evict, InstanceId, SeqNum};
use serde_json::{Value, json};

/// Take-overs that are shown: the last ones.
const SHOWN_MAX: usize = 16;

/// The engine's latest inheritances.
#[derive(Default)]
pub(crate) struct Takeovers {
    latest: VecDeque<Takeover>,
    /// Roots of all of them that have not ended.
    unfinished: u64,
}

struct Takeover {
    evict: Evict,
    /// Where the log says so.
    at: SeqNum,
    roots: usize,
    unfinished: BTreeSet<InstanceId>,
    begun_ns: u64,
    /// From the eviction, as this engine applied it, to the end of the last root.
    took_ns: Option<u64>,
}

impl Takeovers {
    /// An eviction was applied whose heir this engine is. How long it took, if there is nothing to
    /// take over.
    pub(crate) fn begins(
        &mut self,
        evict: Evict,
        at: SeqNum,
        roots: &[InstanceId],
        now_ns: u64,
    ) -> Option<u64> {
        while self.latest.len() >= SHOWN_MAX {
            let forgotten = self.latest.pop_front();
            self.unfinished -= forgotten.map_or(0, |one| one.unfinished.len() as u64);
        }
        let unfinished: BTreeSet<InstanceId> = roots.iter().copied().collect();
        self.unfinished += unfinished.len() as u64;
        let took_ns = unfinished.is_empty().then_some(0);
        let roots = roots.len();
        self.latest.push_back(Takeover { evict, at, roots, unfinished, begun_ns: now_ns, took_ns });
        took_ns
    }

    /// The log says that a root has ended, whoever ended it. How long its take-over took, if it was
    /// the last of one.
    pub(crate) fn ends(&mut self, root: InstanceId, now_ns: u64) -> Option<u64> {
        if self.unfinished == 0 {
            return None;
        }
        // The latest: an heir that was evicted itself has left its roots to the next.
        let of = self.latest.iter_mut().rev().find(|one| one.unfinished.contains(&root))?;
        of.unfinished.remove(&root);
        self.unfinished -= 1;
        if !of.unfinished.is_empty() {
            return None;
        }
        of.took_ns = Some(now_ns.saturating_sub(of.begun_ns));
        of.took_ns
    }

    /// Roots that were inherited and have not ended.
    pub(crate) fn unfinished(&self) -> u64 {
        self.unfinished
    }

    /// For `status`: the latest, oldest first.
    pub(crate) fn show(&self) -> Vec<Value> {
        let show = |one: &Takeover| {
            json!({
                "engine": one.evict.engine.0,
                "incarnation": one.evict.incarnation.0,
                "at": one.at.0,
                "roots": one.roots,
                "unfinished": one.unfinished.len(),
                "took_us": one.took_ns.map(|ns| ns / 1000),
            })
        };
        self.latest.iter().map(show).collect()
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_wire::{Incarnation, NodeId};

    use super::*;

    fn evict(engine: u32) -> Evict {
        let (heir, heir_incarnation) = (NodeId(9), Incarnation(1));
        Evict { engine: NodeId(engine), incarnation: Incarnation(3), heir, heir_incarnation }
    }

    fn roots(ids: &[u128]) -> Vec<InstanceId> {
        ids.iter().copied().map(InstanceId).collect()
    }

    #[test]
    fn a_take_over_ends_with_its_last_root() {
        let mut takeovers = Takeovers::default();
        assert_eq!(takeovers.begins(evict(1), SeqNum(50), &roots(&[1, 2]), 1_000), None);
        assert_eq!(takeovers.unfinished(), 2);
        assert_eq!(takeovers.ends(InstanceId(7), 2_000), None, "no inherited one");
        assert_eq!(takeovers.ends(InstanceId(2), 3_000), None);
        assert_eq!(takeovers.ends(InstanceId(2), 4_000), None, "it ends once");
        assert_eq!(takeovers.ends(InstanceId(1), 5_000_000), Some(4_999_000));
        assert_eq!(takeovers.unfinished(), 0);
        let shown = &takeovers.show()[0];
        assert_eq!((&shown["engine"], &shown["incarnation"]), (&json!(1), &json!(3)));
        assert_eq!((&shown["roots"], &shown["unfinished"]), (&json!(2), &json!(0)));
        assert_eq!(shown["took_us"], 4999);
    }

    #[test]
    fn one_of_an_engine_without_roots_is_over_at_once() {
        let mut takeovers = Takeovers::default();
        assert_eq!(takeovers.begins(evict(1), SeqNum(50), &[], 1_000), Some(0));
        assert_eq!(takeovers.show()[0]["took_us"], 0);
    }

    #[test]
    fn only_the_latest_are_kept() {
        let mut takeovers = Takeovers::default();
        for engine in 0..40 {
            takeovers.begins(evict(engine), SeqNum(1), &roots(&[engine.into()]), 0);
        }
        assert_eq!(takeovers.show().len(), SHOWN_MAX);
        assert_eq!(takeovers.unfinished(), SHOWN_MAX as u64);
        assert_eq!(takeovers.ends(InstanceId(0), 1), None, "forgotten");
        assert_eq!(takeovers.ends(InstanceId(39), 1), Some(1));
    }
}
