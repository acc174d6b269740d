//! Transactions: the body runs at one place in the log and buffers its writes; the commit is one
//! record, on the condition that nothing which was read has changed since.
//!
//! - T1. The record holds where the body read, so a replay runs it once, there.
//! - T2. Only a first run that buffered nothing leaves no record, and only when no log-free write
//!   came before it; after any conflict the outcome is a record, even of nothing.
//! - T3. The record holds the number of its transaction: one that left no record must not take a
//!   later one's for its own.
//! - T4. A run of the body that did not commit has not happened: calls and draws are numbered anew.

use std::collections::{BTreeMap, BTreeSet};

use halfmoon_wire::{Condition, SeqNum, tag};

use crate::attempt::BeginTransaction;
use crate::payload::{Body, Stored};
use crate::step_log::Logged;
use crate::{
    Attempt, Done, Mode, Object, Ops, Refused, TXN_READS_MAX, TXN_RUNS_MAX, TXN_WRITES_MAX,
    halfmoon_read, ids,
};

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

/// A transaction that this attempt takes part in.
pub(crate) struct Open<V> {
    pub(crate) frame: Frame<V>,
    /// `None` in a callee: its caller's.
    pub(crate) own: Option<Run>,
}

/// One run of the body of a transaction of this attempt's own.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// Number of the transaction within the instance.
    number: u32,
    /// Which run it is, from 1.
    run: u32,
    /// Where it reads.
    cursor: SeqNum,
    /// Calls and draws before the body.
    calls: u32,
    draws: u64,
}

/// What the log has at this transaction's position.
enum Recorded {
    At(SeqNum),
    TooManyConflicts,
}

/// Begins a transaction, or the next run of its body.
pub(crate) async fn begin<O: Ops>(attempt: &mut Attempt<O>) -> Done<BeginTransaction, O> {
    if attempt.transaction.is_some() {
        return Err(Refused::InTransaction.into());
    }
    if attempt.identity.mode == Mode::Unlogged {
        return Err(Refused::LoggedTable.into());
    }
    if !attempt.outstanding.is_empty() {
        return Err(Refused::CallsOutstanding.into());
    }
    let mut run = match attempt.rerun.take() {
        Some(run) => run,
        None => first_run(attempt),
    };
    match recorded(attempt, run.number)? {
        Some(Recorded::At(cursor)) if !broken!(CommitCursorIgnored) => run.cursor = cursor,
        Some(Recorded::TooManyConflicts) => {
            attempt.replay().await?;
            return Ok(BeginTransaction::TooManyConflicts);
        }
        Some(Recorded::At(_)) | None => {}
    }
    if !broken!(IndicesRunOn) {
        (attempt.calls, attempt.draws) = (run.calls, run.draws);
    }
    let frame = Frame { cursor: run.cursor, reads: BTreeSet::new(), writes: BTreeMap::new() };
    attempt.transaction = Some(Open { frame, own: Some(run) });
    Ok(BeginTransaction::Run)
}

/// Reads within a body: own writes first, else the log at the body's place.
pub(crate) async fn read<O: Ops>(
    attempt: &mut Attempt<O>,
    object: &Object,
) -> Done<Option<O::Value>, O> {
    let Some(open) = &attempt.transaction else { return Err(Refused::NoTransaction.into()) };
    if let Some(written) = open.frame.writes.get(object) {
        return Ok(written.clone());
    }
    let value = halfmoon_read::read(attempt, object, open.frame.cursor).await?;
    if let Some(open) = &mut attempt.transaction
        && !(broken!(UncheckedAbsence) && value.is_none())
    {
        if open.frame.reads.len() == TXN_READS_MAX && !open.frame.reads.contains(object) {
            return Err(Refused::TransactionTooLarge.into());
        }
        open.frame.reads.insert(object.clone());
    }
    Ok(value)
}

/// Buffers a write.
pub(crate) fn write<O: Ops>(
    attempt: &mut Attempt<O>,
    object: Object,
    value: Option<O::Value>,
) -> Done<(), O> {
    let Some(open) = &mut attempt.transaction else { return Err(Refused::NoTransaction.into()) };
    let writes = &mut open.frame.writes;
    if writes.len() == TXN_WRITES_MAX && !writes.contains_key(&object) {
        return Err(Refused::TransactionTooLarge.into());
    }
    writes.insert(object, value);
    Ok(())
}

/// Ends a run of the body.
pub(crate) async fn commit<O: Ops>(attempt: &mut Attempt<O>) -> Done<Commit, O> {
    if !attempt.outstanding.is_empty() {
        return Err(Refused::CallsOutstanding.into());
    }
    let Some((frame, run)) = attempt
        .transaction
        .take_if(|open| open.own.is_some())
        .and_then(|open| Some((open.frame, open.own?)))
    else {
        return Err(Refused::NoTransaction.into());
    };
    loop {
        match recorded(attempt, run.number)? {
            Some(Recorded::At(cursor))
                if cursor == frame.cursor || broken!(CommitCursorIgnored) =>
            {
                attempt.replay().await?;
                return Ok(Commit::Committed);
            }
            Some(Recorded::At(cursor)) => return Ok(again(attempt, run, cursor)),
            Some(Recorded::TooManyConflicts) => {
                attempt.replay().await?;
                return Ok(Commit::TooManyConflicts);
            }
            None => {}
        }
        if leaves_no_record(attempt, &frame, run) {
            return Ok(Commit::Committed);
        }
        attempt.init_of_step().await?;
        if let Some((_, entry)) = attempt.peek()? {
            match recorded(attempt, run.number)? {
                Some(_) => continue,
                None => return attempt.differs(&entry.body, "a transaction"),
            }
        }
        match log_outcome(attempt, &frame, run).await? {
            Logged::Step(step) => {
                let gave_up = step.body == Body::TooManyConflicts { transaction: run.number };
                return Ok(if gave_up { Commit::TooManyConflicts } else { Commit::Committed });
            }
            Logged::Again => {}
            Logged::Refused(winner) => {
                let cursor = attempt.ops.applied().max(winner);
                return Ok(again(attempt, run, cursor));
            }
        }
    }
}

fn first_run<O: Ops>(attempt: &mut Attempt<O>) -> Run {
    let number = attempt.transactions;
    attempt.transactions += 1;
    let (calls, draws) = (attempt.calls, attempt.draws);
    Run { number, run: 1, cursor: attempt.point.cursor, calls, draws }
}

/// The outcome at the next position, if it is this transaction's.
fn recorded<O: Ops>(attempt: &mut Attempt<O>, number: u32) -> Done<Option<Recorded>, O> {
    let Some((_, entry)) = attempt.peek()? else { return Ok(None) };
    if entry.body == (Body::TooManyConflicts { transaction: number }) {
        return Ok(Some(Recorded::TooManyConflicts));
    }
    let Body::Commit { transaction, cursor, .. } = entry.body else { return Ok(None) };
    let mine = transaction == number || broken!(AnyCommitIsMine);
    Ok(mine.then_some(Recorded::At(cursor)))
}

/// T2.
fn leaves_no_record<O: Ops>(attempt: &Attempt<O>, frame: &Frame<O::Value>, run: Run) -> bool {
    let first = run.run == 1 || broken!(RetryWithoutRecord);
    let covered = attempt.point.counter == 0 || broken!(UncoveredReadOnly);
    frame.writes.is_empty() && first && covered
}

fn again<O: Ops>(attempt: &mut Attempt<O>, run: Run, cursor: SeqNum) -> Commit {
    attempt.rerun = Some(Run { cursor, run: run.run + 1, ..run });
    Commit::Again
}

/// Appends the commit, or that there were too many conflicts.
async fn log_outcome<O: Ops>(
    attempt: &mut Attempt<O>,
    frame: &Frame<O::Value>,
    run: Run,
) -> Done<Logged, O> {
    let transaction = run.number;
    if run.run > TXN_RUNS_MAX {
        return attempt.append_step(Body::TooManyConflicts { transaction }, &[]).await;
    }
    let (id, instance, position) =
        (attempt.identity.run, attempt.identity.instance, attempt.log.next);
    let mut writes: Vec<(Object, Option<Stored>)> = Vec::with_capacity(frame.writes.len());
    for (object, value) in &frame.writes {
        let stored = match value {
            Some(value) => {
                let version =
                    ids::transaction_version(id, instance, position, object, frame.cursor);
                Some(attempt.keep(object, version, value).await?)
            }
            None => None,
        };
        writes.push((object.clone(), stored));
    }
    let unchanged = |object: &Object| Condition::NothingAfter {
        tag: tag::object(&object.table, &object.key),
        after: frame.cursor,
    };
    let reads: Vec<Condition> = match broken!(UncheckedReads) {
        true => Vec::new(),
        false => frame.reads.iter().map(unchanged).collect(),
    };
    let body = Body::Commit { transaction, cursor: frame.cursor, writes };
    attempt.append_step(body, &reads).await
}
