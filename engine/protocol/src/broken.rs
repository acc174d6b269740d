//! Rules that the tests may break, to prove that they would notice.
//!
//! In production builds nothing can be broken: the question is answered by the constant `false`.
//! Under test, and with the feature `mutants`, a rule can be broken on one thread.

#[cfg(any(test, feature = "mutants"))]
use std::cell::Cell;

/// One rule of the protocols, broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Broken {
    /// The record that names a version is appended before the version is put.
    CommitBeforePut,
    /// A log-free read answers from the end of the log.
    IgnoredCursor,
    /// The counter stays 0 within an instance.
    DroppedCounter,
    /// The counter is not handed to callees.
    CounterNotHandedDown,
    /// A transaction that met a conflict and then writes nothing leaves no record.
    RetryWithoutRecord,
    /// On a conflict the loser keeps its own outcome and its own cursor.
    AdoptedNothing,
    /// On a conflict the loser takes the winner's seqnum but keeps its own outcome.
    AdoptedSeqnumOnly,
    /// A callee is content with an Init of any run of its root.
    ConditionNamesRoot,
    /// A callee's steps have no condition on Init, and wait for none.
    NoInitCondition,
    /// Version ids leave out the run.
    VersionWithoutRun,
    /// Version ids of a transaction leave out the cursor that it read at.
    TransactionVersionWithoutCursor,
    /// The version id of a large logged read leaves out what was read.
    ReadVersionWithoutTuple,
    /// The version id of a large side effect leaves out whose it is.
    SideEffectVersionWithoutNonce,
    /// A run is named by its root and cursor alone, whatever its input.
    RunWithoutInput,
    /// Finish leaves out the counter.
    FinishWithoutCounter,
    /// The cursor of who replays a callee moves to its Finish.
    FinishMovesCursor,
    /// A standalone Init moves the cursor.
    InitMovesCursor,
    /// A join takes the point of the last callee only.
    JoinForgetsCallee,
    /// A join takes the lexicographic maximum.
    JoinLexicographic,
    /// A call leaves the caller's point as it was.
    PointNotReturned,
    /// Log-free writes do not wait for Init.
    WriteBeforeInit,
    /// A keyed reply does not wait for Init.
    ReplyBeforeInit,
    /// A side effect does not wait for Init.
    SideEffectBeforeInit,
    /// A log-free write below the seqnum of Init.
    CursorBelowInit,
    /// No fence before a log-free read.
    NoFenceBeforeRead,
    /// No fence before a log-free write to another object.
    NoFenceBeforeWrite,
    /// A commit does not check what it read.
    UncheckedReads,
    /// A commit checks objects that it found, not those that it found absent.
    UncheckedAbsence,
    /// Of a failed list, Cancel is judged before the step position.
    CancelJudgedFirst,
    /// A root whose run lost goes on at its own cursor.
    NoRestart,
    /// A callee that must log does not ask for Init.
    NeverAsksForInit,
    /// A root does not hear that the Init which its callee waits for was refused.
    NeverWatchesInit,
    /// Any commit record found at the next position is taken for this transaction's.
    AnyCommitIsMine,
    /// A transaction goes on at its own cursor when a peer committed at another.
    CommitCursorIgnored,
    /// A transaction that only read leaves no record though log-free writes came before it.
    UncoveredReadOnly,
    /// A side effect keeps its own result although a peer's is recorded.
    SideEffectNotAdopted,
    /// Call and draw indices run on over the runs of a transaction's body.
    IndicesRunOn,
    /// A write of a transaction's caller is not seen by its callee.
    BufferStaysAbove,
}

#[cfg(any(test, feature = "mutants"))]
thread_local! {
    static BROKEN: Cell<Option<Broken>> = const { Cell::new(None) };
}

/// Breaks a rule on this thread, or mends all.
#[cfg(any(test, feature = "mutants"))]
pub fn set(rule: Option<Broken>) {
    BROKEN.with(|broken| broken.set(rule));
}

/// Is this rule broken on this thread?
#[cfg(any(test, feature = "mutants"))]
pub(crate) fn is(rule: Broken) -> bool {
    BROKEN.with(Cell::get) == Some(rule)
}

/// Is this rule broken? Never, outside the tests.
#[cfg(not(any(test, feature = "mutants")))]
pub(crate) const fn is(_: Broken) -> bool {
    false
}

macro_rules! broken {
    ($rule:ident) => {
        crate::broken::is(crate::broken::Broken::$rule)
    };
}
