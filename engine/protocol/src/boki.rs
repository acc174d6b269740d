//! Boki, the baseline as published: everything is logged.
//!
//! - B1. A read is logged after it was made: every attempt reads the same.
//! - B2. A write's place is logged before it is made, and that it was made is logged after, so it
//!   takes effect once, at a place that every attempt agrees on.

use halfmoon_wire::CellTuple;

use crate::payload::Body;
use crate::{Attempt, Done, Object, Ops, Stop, halfmoon_write};

/// Reads the cell, then logs what it read: one append, as in `halfmoon-write`.
pub(crate) async fn read<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
) -> Done<Option<O::Value>, O> {
    halfmoon_write::read(attempt, object).await
}

/// Logs the intent, puts the cell under its place, logs that it did: two appends.
pub(crate) async fn write<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
    value: Option<&O::Value>,
) -> Done<(), O> {
    let intent = attempt.step(async |_, _| Ok(Body::WriteIntent { object: object.clone() }));
    let intent = intent.await?;
    if !matches!(&intent.body, Body::WriteIntent { object: written } if written == object) {
        return attempt.differs(&intent.body, "the start of a write");
    }
    // Whatever stands next was logged after the put was made.
    if attempt.peek()?.is_none() {
        let instance = attempt.identity.instance;
        let tuple = CellTuple { cursor: intent.seq, counter: 0, instance };
        attempt.ops.put_cell(object, tuple, value).await.map_err(Stop::Ops)?;
    }
    let done = attempt.step(async |_, _| Ok(Body::WriteDone { object: object.clone() })).await?;
    if !matches!(&done.body, Body::WriteDone { object: written } if written == object) {
        return attempt.differs(&done.body, "the end of a write");
    }
    Ok(())
}
