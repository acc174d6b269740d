//! Rules that a simulation may break, to prove that it would notice.
//!
//! In production builds nothing can be broken: the question is answered by the constant `false`. With
//! the feature `mutants`, one rule can be broken on one thread. The rules of the protocols have a
//! list of their own, in `halfmoon-protocol`.

#[cfg(feature = "mutants")]
use std::cell::Cell;

macro_rules! rules {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// One rule, broken on purpose.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Broken {
            $($(#[doc = $doc])* $name,)*
        }

        impl Broken {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

rules! {
    /// A storage node writes the watermark of an epoch into the word that was named for another.
    OldEpochWatermark,
    /// After a seal, a storage node takes its own log for the new epoch's without comparing.
    OwnLengthAfterSeal,
    /// A storage node answers a seal while writes are under way, and goes on publishing for the old
    /// epoch until it is welcomed to the new one.
    FlushAfterSeal,
    /// A storage node that has promised an epoch takes the stream of the one before.
    OldEpochAccepted,
    /// A promise is kept in memory only.
    SealNotPersisted,
    /// A recovery takes the longest log, whatever the epoch of its last record.
    LongestLog,
    /// A recovery is content with one storage node.
    RecoveryWithoutQuorum,
    /// A recovery asks the newest members only, although the change to them is not committed.
    MembersSwappedAtOnce,
    /// What a recovery chose counts as committed before it is on a quorum.
    SuffixNotReplicated,
    /// One storage node's watermark commits.
    CommittedByOne,
    /// A storage node publishes what it has accepted, before it is flushed.
    WatermarkBeforeFlush,
    /// Writes complete without being durable.
    WriteNotDurable,
    /// A flush that failed counts as done.
    FailedFlushCounts,
    /// A batch is taken although its checksum does not match.
    TornBatchAccepted,
    /// On entering an epoch an engine keeps what it held back.
    HeldBackKept,
    /// What an engine has appended is recognised by the highest id, not one by one.
    DedupByHighest,
    /// The sequencer forgets which appends are in its window.
    DedupForgets,
    /// An engine resubmits only what is above the highest of its appends that the log has.
    ResubmitsAboveHighest,
    /// A verdict outlives the epoch in which it was given.
    VerdictOutlivesEpoch,
    /// A loser is told before its winner is committed.
    LoserBeforeWinner,
    /// An append is ordered whatever came after the position that it names.
    NothingAfterUnchecked,
    /// An append is ordered whatever the length of the tag that it names.
    LengthUnchecked,
    /// An engine incarnation that was evicted goes on appending.
    EvictedAppends,
    /// The tail is told without asking storage whether the epoch is over.
    TailUnconfirmed,
    /// A cell that two nodes have differently is not written back before it is returned.
    CellNotWrittenBack,
    /// A cell is read from one node.
    CellFromOne,
    /// A write of the state store ends when one node has it.
    PutOnOne,
    /// A member that copies the state is asked what it has before it has all of it.
    ReadsBeforeWhole,
    /// A new member copies the state from one node.
    CopiedFromOne,
    /// A node tells what its embedded engine has before that has all that it acknowledged.
    ScanMissesOverlay,
    /// A member says that it has copied the state before that is durable.
    CopiedBeforeDurable,
}

#[cfg(feature = "mutants")]
thread_local! {
    static BROKEN: Cell<Option<Broken>> = const { Cell::new(None) };
}

/// Breaks a rule on this thread, or mends all.
#[cfg(feature = "mutants")]
pub fn set(rule: Option<Broken>) {
    BROKEN.with(|broken| broken.set(rule));
}

/// Is this rule broken on this thread?
#[cfg(feature = "mutants")]
#[must_use]
pub fn is(rule: Broken) -> bool {
    BROKEN.with(Cell::get) == Some(rule)
}

/// Is this rule broken? Never, outside a simulation that breaks it.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn is(_: Broken) -> bool {
    false
}

/// Whether a rule of [`broken`](mod@crate::broken) is broken: never, but in a simulation.
#[macro_export]
macro_rules! broken {
    ($rule:ident) => {
        $crate::broken::is($crate::broken::Broken::$rule)
    };
}
