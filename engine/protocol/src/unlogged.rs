//! Unlogged: store operations alone. Nothing is promised; it is what the others are measured by.
//!
//! - U1. A second attempt does everything again.
//! - U2. Writes have no place in the log, so the last one by the engine's clock wins.

use halfmoon_wire::{CellTuple, SeqNum};

use crate::{Attempt, Done, Object, Ops, Stop};

/// Reads the cell.
pub(crate) async fn read<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
) -> Done<Option<O::Value>, O> {
    let cell = attempt.ops.get_cell(object).await.map_err(Stop::Ops)?;
    Ok(cell.and_then(|cell| cell.value))
}

/// Writes the cell.
pub(crate) async fn write<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
    value: Option<&O::Value>,
) -> Done<(), O> {
    let cursor = SeqNum(attempt.ops.clock_ns());
    let tuple = CellTuple { cursor, counter: 0, instance: attempt.identity.instance };
    attempt.ops.put_cell(object, tuple, value).await.map_err(Stop::Ops)
}
