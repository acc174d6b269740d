//! Which roots are unfinished, and whose they are: folded from the intent stream and from the
//! records that take engines out, by every engine alike.
//!
//! - E1. A root belongs to the engine incarnation that appended its Init, until that is evicted;
//!   then to the heir, and so on.
//! - E2. The fold of an Evict hands over exactly the roots whose Init lies before it: nothing of
//!   the evicted incarnation is ordered after it.
//! - E3. A root with an Init is unfinished until its Finish is applied.

use std::collections::BTreeMap;

use halfmoon_wire::{Evict, Incarnation, InstanceId, NodeId, SeqNum};

/// One life of an engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    /// The engine.
    pub engine: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
}

/// A root with an Init and without a Finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfinished {
    /// Who is to bring it to its end.
    pub owner: Owner,
    /// A lower bound of its initial cursor: what holds the safe point.
    pub floor: SeqNum,
    /// Where its Init is.
    pub init: SeqNum,
}

/// The unfinished roots of the cluster.
#[derive(Debug, Default)]
pub struct Intents {
    roots: BTreeMap<InstanceId, Unfinished>,
}

impl Intents {
    /// The record at `init`, appended by `owner`, carries the Init of `root`.
    ///
    /// A root has one Init (it stands at a position that only one record can have); of a detached
    /// one the step that carries it is the Init.
    pub fn begins(&mut self, root: InstanceId, owner: Owner, floor: SeqNum, init: SeqNum) {
        self.roots.entry(root).or_insert(Unfinished { owner, floor, init });
    }

    /// The Finish of `root` is applied. Whether it was unfinished.
    pub fn ends(&mut self, root: InstanceId) -> bool {
        self.roots.remove(&root).is_some()
    }

    /// An engine incarnation and all before it are out. Returns the roots that changed hands.
    pub fn evicted(&mut self, evict: &Evict) -> Vec<InstanceId> {
        let heir = Owner { engine: evict.heir, incarnation: evict.heir_incarnation };
        let mut moved = Vec::new();
        for (id, root) in &mut self.roots {
            let out =
                root.owner.engine == evict.engine && root.owner.incarnation <= evict.incarnation;
            if out && root.owner != heir {
                root.owner = heir;
                moved.push(*id);
            }
        }
        moved
    }

    /// An unfinished root.
    #[must_use]
    pub fn find(&self, root: InstanceId) -> Option<&Unfinished> {
        self.roots.get(&root)
    }

    /// The unfinished roots of `owner`.
    pub fn of(&self, owner: Owner) -> impl Iterator<Item = (InstanceId, Unfinished)> {
        let own = self.roots.iter().filter(move |(_, root)| root.owner == owner);
        own.map(|(id, root)| (*id, *root))
    }

    /// The least floor of the unfinished roots of `owner`.
    #[must_use]
    pub fn least_floor(&self, owner: Owner) -> Option<SeqNum> {
        self.of(owner).map(|(_, root)| root.floor).min()
    }

    /// Unfinished roots of the whole cluster.
    #[must_use]
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Whether every root has ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(engine: u32, incarnation: u64) -> Owner {
        Owner { engine: NodeId(engine), incarnation: Incarnation(incarnation) }
    }

    fn evict(out: Owner, heir: Owner) -> Evict {
        Evict {
            engine: out.engine,
            incarnation: out.incarnation,
            heir: heir.engine,
            heir_incarnation: heir.incarnation,
        }
    }

    fn with(roots: &[(u128, Owner, u64)]) -> Intents {
        let mut intents = Intents::default();
        for (id, owner, floor) in roots {
            intents.begins(InstanceId(*id), *owner, SeqNum(*floor), SeqNum(floor + 1));
        }
        intents
    }

    #[test]
    fn the_heir_gets_what_was_unfinished_and_no_more() {
        let (a, b) = (owner(1, 1), owner(2, 7));
        let mut intents = with(&[(10, a, 5), (11, a, 3), (12, b, 9)]);
        intents.ends(InstanceId(11));
        assert_eq!(intents.evicted(&evict(a, b)), [InstanceId(10)]);
        assert_eq!(intents.of(b).map(|(id, _)| id.0).collect::<Vec<_>>(), [10, 12]);
        assert_eq!(intents.least_floor(b), Some(SeqNum(5)));
        assert_eq!(intents.least_floor(a), None);
    }

    #[test]
    fn an_heir_that_dies_hands_on_what_it_inherited() {
        let (a, b, c) = (owner(1, 1), owner(2, 1), owner(3, 1));
        let mut intents = with(&[(10, a, 5)]);
        intents.evicted(&evict(a, b));
        assert_eq!(intents.evicted(&evict(b, c)), [InstanceId(10)]);
        assert_eq!(intents.of(c).count(), 1);
    }

    #[test]
    fn an_eviction_covers_every_earlier_life_and_no_later_one() {
        let (first, second, third) = (owner(1, 1), owner(1, 2), owner(1, 3));
        let mut intents = with(&[(10, first, 5), (11, second, 6), (12, third, 7)]);
        let moved = intents.evicted(&evict(second, third));
        assert_eq!(moved, [InstanceId(10), InstanceId(11)]);
        assert_eq!(intents.of(third).count(), 3);
    }

    #[test]
    fn a_root_evicted_to_its_own_owner_does_not_move_twice() {
        let (a, b) = (owner(1, 1), owner(2, 1));
        let mut intents = with(&[(10, a, 5)]);
        intents.evicted(&evict(a, b));
        assert!(intents.evicted(&evict(a, b)).is_empty());
    }
}
