//! Halfmoon-write: a write appends nothing, a read is one record.
//!
//! - W1. The tuple of a write is a function of the log, so every attempt writes under the same one.
//! - W2. Cells only grow: a refusal means that something later is there, which is success.
//! - W3. Nothing is written before the Init of this run is durable, nor at a cursor below it;
//!   else an earlier root's write would beat a later one's.

use std::cell::RefCell;

use crate::call::Point;
use crate::payload::Body;
use crate::{Attempt, Done, Object, Ops, Order, Stop, ids, order};

/// Reads the cell of `object`, then logs what it read.
pub(crate) async fn read<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
) -> Done<Option<O::Value>, O> {
    let (run, instance) = (attempt.identity.run, attempt.identity.instance);
    let seen = RefCell::new(None);
    let step = attempt
        .step(async |attempt, position| {
            let cell = attempt.ops.get_cell(object).await.map_err(Stop::Ops)?;
            let mut stored = None;
            if let Some((tuple, value)) = cell.and_then(|cell| Some((cell.tuple, cell.value?))) {
                let version = ids::read_version(run, instance, position, tuple);
                stored = Some(attempt.keep(object, version, &value).await?);
                seen.replace(Some(value));
            } else {
                seen.replace(None);
            }
            Ok(Body::Read { object: object.clone(), value: stored })
        })
        .await?;
    let Body::Read { object: read, value: stored } = &step.body else {
        return attempt.differs(&step.body, "a read");
    };
    if read != object {
        return attempt.differs(&step.body, "a read of another object");
    }
    if !step.adopted {
        return Ok(seen.take());
    }
    match stored {
        Some(stored) => attempt.load(object, stored).await.map(Some),
        None => Ok(None),
    }
}

/// Writes the cell of `object` under (cursor, counter, instance).
pub(crate) async fn write<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
    value: Option<&O::Value>,
    promised: Order,
) -> Done<(), O> {
    if !broken!(WriteBeforeInit) {
        let init = attempt.init_known().await?; // W3
        if attempt.point.cursor < init && !broken!(CursorBelowInit) {
            attempt.point = Point { cursor: init, counter: 0 };
            attempt.last_written = None;
        }
    }
    order::before_write(attempt, promised, object).await?;
    let tuple = attempt.tuple(); // W1
    attempt.ops.put_cell(object, tuple, value).await.map_err(Stop::Ops)?; // W2
    attempt.point.counter += u32::from(!broken!(DroppedCounter));
    attempt.last_written = Some(object.clone());
    attempt.has_effects = true;
    Ok(())
}
