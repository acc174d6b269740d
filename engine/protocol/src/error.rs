//! Why an operation did not return: the attempt is over, and what its driver does next.

use halfmoon_wire::{DecodeError, InstanceId, SeqNum};

use crate::call::Ended;
use crate::{TXN_READS_MAX, TXN_WRITES_MAX};

/// The attempt goes no further. `V` is the value handle, `E` the shell's own error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Stop<V, E> {
    /// Another run of this root has the Init; this attempt had no effect. A root's driver starts
    /// over ([`crate::root::start`] with the same request finds the winner). A callee's ends
    /// silently: no outcome, but its caller's attempt is lost as well and may be told so.
    #[error("another run of this root has won")]
    RunLost,
    /// A peer has brought the instance to its end; this is its outcome.
    #[error("a peer attempt has ended this instance")]
    Ended(Box<Ended<V>>),
    /// A cancel request stands before this step. The driver calls
    /// [`crate::Attempt::finish_cancelled`].
    #[error("the root was cancelled")]
    Cancelled,
    /// The root's initial cursor is below the safe point. The driver calls [`crate::root::reload`].
    #[error("the root's initial cursor is below the safe point")]
    RootGone,
    /// What the attempt must read has been folded away. As [`Stop::RootGone`].
    #[error("the snapshot that this attempt reads from is gone")]
    SnapshotTooOld,
    /// A fault that no retry mends: the instance is parked with it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The function asked for something that it may not do; the attempt may go on, the error goes
    /// to the function.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The shell failed; whether the operation took effect is unknown. Attempt again.
    #[error("the operation's outcome is unknown")]
    Ops(E),
}

/// Something in the log is not what this program would have written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Two full names share a 64-bit tag.
    #[error("tag collision: the record at {seq} in the stream of {wanted} belongs to {found}")]
    TagCollision {
        /// Whose stream it is.
        wanted: InstanceId,
        /// Whose record stands there.
        found: InstanceId,
        /// Where.
        seq: SeqNum,
    },
    /// The function did something else in an earlier attempt.
    #[error("step {position} was {recorded} in an earlier attempt and is {now} in this one")]
    NotDeterministic {
        /// Step position.
        position: u64,
        /// Kind of the record.
        recorded: &'static str,
        /// Kind of the operation.
        now: &'static str,
    },
    /// A record does not parse.
    #[error("the record at {seq} does not parse")]
    Corrupt {
        /// Where.
        seq: SeqNum,
        /// How.
        #[source]
        source: DecodeError,
    },
    /// A step position beyond the stream's length: a mistake in this software.
    #[error("step {position} lies beyond the end of its stream")]
    Gap {
        /// Step position.
        position: u64,
    },
    /// Init and no Finish on an engine that was not evicted, but the snapshot is gone.
    #[error("root {root} has effects and is unfinished, but its snapshot is gone")]
    SnapshotLost {
        /// Which root.
        root: InstanceId,
    },
}

/// A request of the function that the protocols refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// Effects below a function declared `read_only`.
    #[error("a read_only function may not write, call out or record side effects")]
    ReadOnly,
    /// Only reads of `halfmoon-read` tables, buffered writes and calls are allowed in a body.
    #[error("this operation is not allowed inside a transaction")]
    InTransaction,
    /// The table is not pinned to `halfmoon-read`.
    #[error("the table is not transactional; declare it so")]
    NotTransactional,
    /// Callees of a body run one after another.
    #[error("a transaction calls one function at a time")]
    ParallelInTransaction,
    /// No transaction is open.
    #[error("no transaction is open")]
    NoTransaction,
    /// More objects than one commit record can name.
    #[error("a transaction may read {TXN_READS_MAX} and write {TXN_WRITES_MAX} objects")]
    TransactionTooLarge,
    /// Under [`crate::Mode::Unlogged`] only unlogged tables can be used.
    #[error("an unlogged function can only use unlogged tables")]
    LoggedTable,
    /// A table name or key over its limit.
    #[error("a table name or key is too long")]
    NameTooLong,
    /// A value over [`halfmoon_wire::limits::VALUE_MAX_BYTES`].
    #[error("the value is too long")]
    ValueTooLong,
    /// A call index that was never begun, or was joined already.
    #[error("no such call is outstanding")]
    NoSuchCall,
    /// The function ended while callees run.
    #[error("calls are outstanding")]
    CallsOutstanding,
    /// The idempotency key was used before with another input.
    #[error("the idempotency key was used before with another input")]
    KeyReused,
}

/// Result of an operation of an attempt over `O`.
pub type Done<T, O> = Result<T, Stop<<O as crate::Ops>::Value, <O as crate::Ops>::Error>>;
