//! Steps: a stream of records per instance, one history for all attempts of it.
//!
//! - S1. Record k of instance i stands at position k of `Step(i)`, once and for all.
//! - S2. A step that is there is replayed, never executed; who loses a position to a peer adopts
//!   the peer's record, whatever else stood in its way.
//! - S3. The cursor after a step is the record's place in the log, so it is equal in all attempts.
//!
//! Replay and adoption are here and in no protocol.

use std::collections::BTreeMap;

use halfmoon_wire::limits::INLINE_MAX_BYTES;
use halfmoon_wire::{Condition, InstanceId, SeqNum, Tag, VersionId, tag};

use crate::call::{Ended, Point};
use crate::init::InitState;
use crate::ops::{Append, AppendOutcome, Found, Value};
use crate::payload::{Body, Entry, Stored};
use crate::{Attempt, Done, Fault, Object, Ops, Stop, ids};

/// What an attempt knows of its step stream.
#[derive(Default)]
pub(crate) struct StepLog {
    records: BTreeMap<u64, Found>,
    /// Position of the next step.
    pub(crate) next: u64,
}

/// A step that has been passed.
pub(crate) struct Step {
    pub(crate) seq: SeqNum,
    pub(crate) body: Body,
    /// Made by another attempt, so values that this one holds may differ.
    pub(crate) adopted: bool,
}

/// What became of trying to log a step.
pub(crate) enum Logged {
    Step(Step),
    /// Something stands at the position now: look at it.
    Again,
    /// One of the step's own conditions failed, because of the record here.
    Refused(SeqNum),
}

impl StepLog {
    /// Keeps records of the stream.
    pub(crate) fn learn(&mut self, found: impl IntoIterator<Item = Found>) {
        self.records.extend(found.into_iter().map(|found| (found.position, found)));
    }

    /// The loaded records from the next position on.
    pub(crate) fn ahead(&self) -> impl Iterator<Item = &Found> {
        self.records.range(self.next..).map(|(_, found)| found)
    }
}

impl<O: Ops> Attempt<O> {
    /// Takes the next step: the one that is recorded, or else what `prepare` makes for the
    /// position. `prepare` runs again if the position turns out to be taken by an Init.
    pub(crate) async fn step<P>(&mut self, prepare: P) -> Done<Step, O>
    where
        P: AsyncFn(&Self, u64) -> Done<Body, O>,
    {
        loop {
            if let Some(step) = self.replay().await? {
                return Ok(step);
            }
            self.init_of_step().await?;
            if self.peek()?.is_some() {
                continue;
            }
            let body = prepare(self, self.log.next).await?;
            match self.append_step(body, &[]).await? {
                Logged::Step(step) => return Ok(step),
                Logged::Again | Logged::Refused(_) => {}
            }
        }
    }

    /// Moves past the next step if it is recorded.
    pub(crate) async fn replay(&mut self) -> Done<Option<Step>, O> {
        let Some((seq, entry)) = self.peek()? else { return Ok(None) };
        if let Body::Finish { status, result, point } = entry.body {
            let result = self.load(&ids::own_object(self.identity.instance), &result).await?;
            return Err(Stop::Ended(Box::new(Ended { status, result, point })));
        }
        self.pass(seq);
        Ok(Some(Step { seq, body: entry.body, adopted: true }))
    }

    /// The record at the next position, if it is known. A standalone Init is no step: it is noted
    /// and passed over.
    pub(crate) fn peek(&mut self) -> Done<Option<(SeqNum, Entry)>, O> {
        while let Some(found) = self.log.records.get(&self.log.next) {
            let (seq, entry) = (found.seq, parse(found)?);
            let own = entry.init_of(self.identity.instance);
            if entry.instance != self.identity.instance && own.is_none() {
                return Err(collision(self.identity.instance, entry.instance, seq));
            }
            if let Some(init) = own {
                if init.run() != self.identity.run && !broken!(NoRestart) {
                    return Err(Stop::RunLost);
                }
                self.init = InitState::Known(seq);
                let standalone =
                    entry.instance != self.identity.instance || matches!(entry.body, Body::Init);
                if standalone {
                    if broken!(InitMovesCursor) {
                        self.point.cursor = seq;
                    }
                    self.log.next += 1;
                    continue;
                }
            }
            return Ok(Some((seq, entry)));
        }
        Ok(None)
    }

    /// Appends a step at the next position, on the conditions that every step has and `own`.
    pub(crate) async fn append_step(&mut self, body: Body, own: &[Condition]) -> Done<Logged, O> {
        let identity = &self.identity;
        let step = Condition::Length { tag: tag::step(identity.instance), length: self.log.next };
        let cancel = Condition::Length { tag: tag::cancel(identity.root), length: 0 };
        let mut tags = vec![tag::step(identity.instance)];
        let mut conditions = vec![step];
        if !self.is_root() && !broken!(ConditionNamesRoot) && !broken!(NoInitCondition) {
            // Names the run: an Init of another run of this root does not do.
            conditions.push(Condition::Length { tag: tag::init(identity.run), length: 1 });
        }
        conditions.push(cancel);
        if broken!(CancelJudgedFirst) {
            conditions.reverse();
        }
        conditions.extend_from_slice(own);
        let mut entry = self.entry(body.clone());
        if self.is_root() && matches!(self.init, InitState::Unknown) {
            entry.init = Some(self.draft_init().await?);
            tags.extend([tag::init(self.identity.run), tag::intent()]);
        }
        tags_of(&body, &mut tags);
        let floor = self.identity.floor;
        let append = Append { tags, conditions, floor, payload: entry.encode() };
        let judged = append.conditions.clone();
        match self.ops.append(append).await.map_err(Stop::Ops)? {
            AppendOutcome::Appended(seq) => {
                if entry.init.is_some() {
                    self.init = InitState::Known(seq);
                }
                self.pass(seq);
                Ok(Logged::Step(Step { seq, body, adopted: false }))
            }
            AppendOutcome::Conflict { condition, winner } => match judged.get(condition) {
                Some(failed) if *failed == step => self.adopt(winner, body),
                Some(failed) if *failed == cancel => Err(Stop::Cancelled),
                Some(failed) if own.contains(failed) => {
                    let winner = winner.map_or(SeqNum::ZERO, |winner| winner.seq);
                    Ok(Logged::Refused(winner))
                }
                // Init was there when this step was prepared, and is no more: trimmed.
                Some(_) | None => Err(Stop::RootGone),
            },
            AppendOutcome::Gap { condition: 0 } => {
                Err(Fault::Gap { position: self.log.next }.into())
            }
            AppendOutcome::Gap { .. } | AppendOutcome::RootGone => Err(Stop::RootGone),
        }
    }

    /// The position is taken: the record that stands there is this step's outcome.
    fn adopt(&mut self, winner: Option<Found>, body: Body) -> Done<Logged, O> {
        let position = self.log.next;
        let winner = winner.ok_or(Stop::Fault(Fault::Gap { position }))?;
        self.log.learn([winner]);
        let keeps_own = broken!(AdoptedNothing) || broken!(AdoptedSeqnumOnly);
        if keeps_own && let Some((seq, entry)) = self.peek()? {
            if self.log.next != position || matches!(entry.body, Body::Finish { .. }) {
                return Ok(Logged::Again);
            }
            let point = self.point;
            self.pass(seq);
            if broken!(AdoptedNothing) {
                self.point = point;
            }
            return Ok(Logged::Step(Step { seq, body, adopted: false }));
        }
        Ok(Logged::Again)
    }

    fn pass(&mut self, seq: SeqNum) {
        self.log.next += 1;
        self.has_effects = true;
        self.last_written = None;
        self.point = Point { cursor: seq, counter: 0 };
    }

    /// A record of this instance.
    pub(crate) const fn entry(&self, body: Body) -> Entry {
        Entry { instance: self.identity.instance, run: self.identity.run, init: None, body }
    }

    /// Makes a value ready to be named by a record: a large one is durable when this returns (R2).
    pub(crate) async fn keep(
        &self,
        object: &Object,
        version: VersionId,
        value: &O::Value,
    ) -> Done<Stored, O> {
        if value.len_bytes() <= INLINE_MAX_BYTES {
            let mut bytes = Vec::with_capacity(value.len_bytes());
            value.copy_to(&mut bytes);
            return Ok(Stored::Inline(bytes));
        }
        if !broken!(CommitBeforePut) {
            self.ops.put_version(object, version, value).await.map_err(Stop::Ops)?;
        }
        Ok(Stored::Version(version))
    }

    /// The value that a record names.
    pub(crate) async fn load(&self, object: &Object, stored: &Stored) -> Done<O::Value, O> {
        load(&self.ops, object, stored).await
    }

    /// The function did something else than the recorded step.
    pub(crate) fn differs<T>(&self, recorded: &Body, now: &'static str) -> Done<T, O> {
        let position = self.log.next.saturating_sub(1);
        Err(Fault::NotDeterministic { position, recorded: recorded.kind(), now }.into())
    }
}

/// The value that a record names.
pub(crate) async fn load<O: Ops>(ops: &O, object: &Object, stored: &Stored) -> Done<O::Value, O> {
    match stored {
        Stored::Inline(bytes) => Ok(ops.inline(bytes)),
        Stored::Version(version) => {
            let value = ops.get_version(object, *version).await.map_err(Stop::Ops)?;
            value.ok_or(Stop::SnapshotTooOld)
        }
    }
}

/// Parses a record.
pub(crate) fn parse<V, E>(found: &Found) -> Result<Entry, Stop<V, E>> {
    Entry::decode(&found.payload)
        .map_err(|source| Stop::Fault(Fault::Corrupt { seq: found.seq, source }))
}

/// Two names, one tag.
pub(crate) fn collision<V, E>(wanted: InstanceId, found: InstanceId, seq: SeqNum) -> Stop<V, E> {
    Stop::Fault(Fault::TagCollision { wanted, found, seq })
}

/// The tags that a step has besides its own stream's.
fn tags_of(body: &Body, tags: &mut Vec<Tag>) {
    match body {
        Body::Write { object, .. } => tags.push(tag::object(&object.table, &object.key)),
        Body::Commit { writes, .. } => {
            tags.extend(writes.iter().map(|(object, _)| tag::object(&object.table, &object.key)));
        }
        Body::Detached(init) => {
            tags.extend([tag::step(init.root), tag::init(init.run()), tag::intent()]);
        }
        Body::Init
        | Body::Read { .. }
        | Body::WriteIntent { .. }
        | Body::WriteDone { .. }
        | Body::TooManyConflicts { .. }
        | Body::SideEffect { .. }
        | Body::Fence
        | Body::Select { .. }
        | Body::CallIntent { .. }
        | Body::CallDone { .. }
        | Body::Begin
        | Body::Finish { .. }
        | Body::Cancel => {}
    }
    // A detached call as the first step of a root would name the intent stream twice.
    let mut seen = Vec::with_capacity(tags.len());
    tags.retain(|tag| {
        !seen.contains(tag) && {
            seen.push(*tag);
            true
        }
    });
}
