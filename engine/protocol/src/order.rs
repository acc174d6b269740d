//! Fences: what keeps log-free operations of one instance in an order that others can believe.
//!
//! A log-free write is back-dated to its cursor. Two of them to different objects, or one followed
//! by a log-free read, can be seen in an order that no sequential history has; an empty step
//! between them forbids it. Whether one is due depends only on (counter, last object written), so
//! every attempt fences at the same places. The table of the *later* operation decides whether it
//! is wanted.

use crate::payload::Body;
use crate::{Attempt, Done, Object, Ops, Order};

/// Before a log-free read of a halfmoon-read object.
pub(crate) async fn before_read<O: Ops>(attempt: &mut Attempt<O>, promised: Order) -> Done<(), O> {
    let due = promised == Order::Sequential && attempt.point.counter > 0;
    if due && !broken!(NoFenceBeforeRead) {
        fence(attempt).await?;
    }
    Ok(())
}

/// Before a log-free write of `object`. Writes of its own to the same object need none.
pub(crate) async fn before_write<O: Ops>(
    attempt: &mut Attempt<O>,
    promised: Order,
    object: &Object,
) -> Done<(), O> {
    let same = attempt.last_written.as_ref() == Some(object);
    let due = promised == Order::Sequential && attempt.point.counter > 0 && !same;
    if due && !broken!(NoFenceBeforeWrite) {
        fence(attempt).await?;
    }
    Ok(())
}

/// An empty step: the cursor becomes its seqnum, the counter 0.
pub(crate) async fn fence<O: Ops>(attempt: &mut Attempt<O>) -> Done<(), O> {
    let step = attempt.step(async |_, _| Ok(Body::Fence)).await?;
    if step.body != Body::Fence {
        return attempt.differs(&step.body, "a fence");
    }
    Ok(())
}
