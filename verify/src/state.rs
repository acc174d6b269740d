//! Whether the replicas' state stores agree with each other and with the log.

use std::collections::BTreeMap;

use halfmoon_protocol::audit::StoredValue;
use halfmoon_storage::{Inspection, NodeError, StateItem};
use halfmoon_wire::{CellTuple, ObjectKey, VersionId};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::{Report, VerifyError};

/// Cursors of cells are positions of the log. The baseline without a log orders its writes by the
/// clock instead, in ns since 1970, which is above every position.
const CLOCK_LEAST: u64 = 1 << 56;

/// What the state stores hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StateReport {
    /// Nodes whose store was looked at.
    pub nodes: u64,
    /// Objects with a cell.
    pub cells: u64,
    /// Of these, cells whose newest write is on fewer nodes than a quorum: never acknowledged.
    pub cells_behind: u64,
    /// Immutable values.
    pub versions: u64,
    /// Of these, named by a record.
    pub versions_named: u64,
    /// Objects with a base.
    pub bases: u64,
    /// Function binaries that are whole.
    pub binaries: u64,
}

#[derive(Default)]
struct Stores {
    cells: BTreeMap<(String, Vec<u8>), Cell>,
    versions: FxHashMap<(u64, VersionId), Value>,
    bases: u64,
    binaries: BTreeMap<[u8; 32], u64>,
}

struct Cell {
    tuple: CellTuple,
    hash: u64,
    /// Nodes that have this one.
    holders: usize,
}

#[derive(Clone, Copy)]
struct Value {
    hash: u64,
    holders: usize,
    named: bool,
}

/// Compares the stores of all nodes that do not run.
pub(crate) fn compare(
    nodes: &[Inspection],
    quorum: usize,
    stored: &[StoredValue],
    report: &mut Report,
) -> Result<(), VerifyError> {
    let (mut stores, mut looked_at, mut whole) = (Stores::default(), 0, 0);
    for node in nodes.iter().filter(|node| !node.is_running()) {
        let id = node.node().0;
        match node.state(|item| stores.take(id, item, report)) {
            Ok(()) => {
                looked_at += 1;
                whole += usize::from(node.has_state());
            }
            Err(error @ (NodeError::Corrupt { .. } | NodeError::StateLog { .. })) => {
                report.flaw(|| format!("node {id}: {error}"));
            }
            Err(error) => return Err(VerifyError::Node(error)),
        }
    }
    if looked_at == 0 {
        return Ok(());
    }
    // Whoever was not looked at may have it, and whoever has not copied all lacks some.
    let needed = needed(quorum, nodes.len(), whole);
    stores.named(stored, needed, report);
    let behind = stores.cells.values().filter(|cell| cell.holders < needed).count() as u64;
    let named = stores.versions.values().filter(|value| value.named).count() as u64;
    report.state = Some(StateReport {
        nodes: looked_at,
        cells: stores.cells.len() as u64,
        cells_behind: behind,
        versions: stores.versions.len() as u64,
        versions_named: named,
        bases: stores.bases,
        binaries: stores.binaries.len() as u64,
    });
    Ok(())
}

/// On how many nodes a value must be found that a quorum was told of, when so many of these nodes
/// were looked at and have all of the state.
fn needed(quorum: usize, nodes: usize, whole: usize) -> usize {
    quorum.saturating_sub(nodes.max(2 * quorum - 1) - whole)
}

impl Stores {
    fn take(&mut self, node: u32, item: StateItem<'_>, report: &mut Report) {
        match item {
            StateItem::Cell { object, tuple, value } => {
                let end = report.end;
                if tuple.cursor.0 > end && tuple.cursor.0 < CLOCK_LEAST {
                    report.flaw(|| {
                        let cursor = tuple.cursor;
                        format!(
                            "node {node}: the cell of {} was written at {cursor}, and the log ends \
                             at {end}",
                            name(object)
                        )
                    });
                }
                self.cell(node, object, tuple, value.map_or(0, |value| hash(value) | 1), report);
            }
            StateItem::Version { object, version, value } => {
                let key = (object_hash(object), version);
                let fresh = Value { hash: hash(value), holders: 0, named: false };
                let known = self.versions.entry(key).or_insert(fresh);
                known.holders += 1;
                if known.hash != fresh.hash {
                    report.flaw(|| {
                        format!(
                            "node {node}: version {:032x} of {} has another value than elsewhere",
                            version.0,
                            name(object)
                        )
                    });
                }
            }
            StateItem::Base { .. } => self.bases += 1,
            StateItem::Binary { hash, whole, damaged } => {
                *self.binaries.entry(hash).or_default() += u64::from(whole);
                if damaged {
                    report.flaw(|| format!("node {node}: a binary is not what its hash says"));
                }
            }
            StateItem::Unknown { key } => {
                report.flaw(|| format!("node {node}: a key that nobody writes: {key:02x?}"));
            }
        }
    }

    fn cell(
        &mut self,
        node: u32,
        object: ObjectKey<'_>,
        tuple: CellTuple,
        hash: u64,
        report: &mut Report,
    ) {
        let key = (object.table.to_owned(), object.key.to_vec());
        let known = self.cells.entry(key).or_insert(Cell { tuple, hash, holders: 0 });
        if tuple > known.tuple {
            *known = Cell { tuple, hash, holders: 0 };
        }
        if tuple == known.tuple {
            known.holders += 1;
            if hash != known.hash {
                report.flaw(|| {
                    format!(
                        "node {node}: the cell of {} has another value than elsewhere, and was \
                             written at the same place",
                        name(object)
                    )
                });
            }
        }
    }

    /// What a record names must be there: it was durable before the record was.
    fn named(&mut self, stored: &[StoredValue], needed: usize, report: &mut Report) {
        for StoredValue { object, version } in stored {
            let object = ObjectKey { table: &object.table, key: &object.key };
            let found = self.versions.get_mut(&(object_hash(object), *version));
            let holders = found.map_or(0, |value| {
                value.named = true;
                value.holders
            });
            if holders < needed {
                report.flaw(|| {
                    format!(
                        "a record names version {:032x} of {}, which only {holders} nodes have",
                        version.0,
                        name(object)
                    )
                });
            }
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    blake3::hash(bytes).as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn object_hash(object: ObjectKey<'_>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(object.table.len() as u64).to_le_bytes());
    hasher.update(object.table.as_bytes()).update(object.key);
    hasher.finalize().as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn name(object: ObjectKey<'_>) -> String {
    format!("{}/{}", object.table, String::from_utf8_lossy(object.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_be_on_whoever_was_not_looked_at_or_still_copies() {
        assert_eq!([3, 2, 1, 0].map(|whole| needed(2, 3, whole)), [2, 1, 0, 0]);
        // The directory of a lost node is not among them.
        assert_eq!(needed(2, 2, 2), 1);
        // Until a change of members is committed there may be one more.
        assert_eq!(needed(2, 4, 3), 1);
    }
}
