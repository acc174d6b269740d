//! Transactions.

use std::collections::{BTreeMap, BTreeSet};

use halfmoon_wire::SeqNum;

use crate::Object;

/// An open transaction: travels down into callees and back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame<V> {
    /// The body reads at this place in the log.
    pub cursor: SeqNum,
    /// Objects read from the log, present or absent.
    pub reads: BTreeSet<Object>,
    /// Buffered writes; `None` deletes.
    pub writes: BTreeMap<Object, Option<V>>,
}

/// What became of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Commit {
    /// The transaction has happened; go on.
    Committed,
    /// Run the body again, from its start: reads now answer from another place in the log.
    Again,
    /// It met conflicts too often; recorded, so that every attempt is told the same.
    TooManyConflicts,
}
