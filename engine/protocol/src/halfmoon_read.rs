//! Halfmoon-read: a read appends nothing, a write is one record.
//!
//! - R1. A read depends only on (object, cursor, log), so every attempt reads the same.
//! - R2. A version is durable before the record that reveals it, so no reader finds a hole.
//! - R3. A version id names one value for ever; that is why the run is in it.

use halfmoon_wire::{SeqNum, tag};

use crate::payload::{Body, Stored};
use crate::step_log::parse;
use crate::{Attempt, Done, Object, Ops, Stop, ids};

/// Reads `object` as of `cursor`: the last write record at or before it, else the base.
pub(crate) async fn read<O: Ops>(
    attempt: &Attempt<O>,
    object: &Object,
    cursor: SeqNum,
) -> Done<Option<O::Value>, O> {
    let cursor = if broken!(IgnoredCursor) { attempt.ops.applied() } else { cursor };
    match last_write(attempt, object, cursor).await? {
        Some(None) => Ok(None),
        Some(Some(stored)) => match attempt.load(object, &stored).await {
            // Deleted because a newer base stands for it? Then the base is looked at once more.
            Err(Stop::SnapshotTooOld) => base(attempt, object, cursor)
                .await
                .and_then(|value| value.map(Some).ok_or(Stop::SnapshotTooOld)),
            loaded => loaded.map(Some),
        },
        None => base(attempt, object, cursor).await,
    }
}

/// Writes `object`: its place in the log is the commit.
pub(crate) async fn write<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
    value: Option<&O::Value>,
) -> Done<(), O> {
    let (run, instance) = (attempt.identity.run, attempt.identity.instance);
    let step = attempt
        .step(async |attempt, position| {
            let stored = match value {
                Some(value) => {
                    let version = ids::version(run, instance, position);
                    Some(attempt.keep(object, version, value).await?) // durable first: R2
                }
                None => None,
            };
            Ok(Body::Write { object: object.clone(), value: stored })
        })
        .await?;
    let Body::Write { object: written, value: stored } = &step.body else {
        return attempt.differs(&step.body, "a write");
    };
    if written != object {
        return attempt.differs(&step.body, "a write of another object");
    }
    if broken!(CommitBeforePut)
        && let (Some(Stored::Version(version)), Some(value)) = (stored, value)
    {
        attempt.ops.put_version(object, *version, value).await.map_err(Stop::Ops)?;
    }
    Ok(())
}

/// What the last write record of `object` at or before `max` wrote.
async fn last_write<O: Ops>(
    attempt: &Attempt<O>,
    object: &Object,
    mut max: SeqNum,
) -> Done<Option<Option<Stored>>, O> {
    let stream = tag::object(&object.table, &object.key);
    while let Some(found) = attempt.ops.last(stream, max).await.map_err(Stop::Ops)? {
        let entry = parse(&found)?;
        if let Some(written) = entry.write_to(object) {
            return Ok(Some(written.cloned()));
        }
        max = found.seq.prev(); // another object under the same tag
    }
    Ok(None)
}

async fn base<O: Ops>(
    attempt: &Attempt<O>,
    object: &Object,
    cursor: SeqNum,
) -> Done<Option<O::Value>, O> {
    match attempt.ops.base(object).await.map_err(Stop::Ops)? {
        Some(base) if base.seq > cursor => Err(Stop::SnapshotTooOld),
        Some(base) => Ok(base.value),
        None => Ok(None),
    }
}
