//! What engine and worker say to each other.
//!
//! ```text
//! worker                                     engine
//!   Hello ─────────────────────────────────▶
//!         ◀───────────────────────────────── Invoke
//!   Ask{id, operation} ────────────────────▶
//!         ◀───────────────────────────────── Reply{id, outcome}      … one per Ask
//!   Finish ────────────────────────────────▶                         every Ask is answered before
//! ```
//! The engine handles the operations of an invocation in the order in which they stand in the ring
//! and may answer them in any order. Ids ascend by one for as long as the worker lives.
//!
//! State buffers. One that the worker names in an operation is the engine's to read until it has
//! answered that operation; one named in `Finish`, until the next `Invoke`. One that the engine
//! names is the worker's to read until the worker releases it.

use crate::arena::Buffer;

/// Bytes that travel inside the message, or lie in a state buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data<'a> {
    /// At most [`crate::limits::INLINE_MAX_BYTES`].
    Inline(&'a [u8]),
    /// In the sender's half of the arena.
    Shared(Buffer),
}

impl Data<'_> {
    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::Shared(buffer) => buffer.len_bytes(),
        }
    }
}

/// What the engine sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToWorker<'a> {
    /// Run a function.
    Invoke(Invoke<'a>),
    /// The answer to one request.
    Reply {
        /// Of which request.
        id: u64,
        /// The answer.
        outcome: Outcome<'a>,
    },
    /// End the process. Sent while no invocation runs.
    Shutdown,
}

/// One attempt of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invoke<'a> {
    /// The function's name, as registered.
    pub function: &'a str,
    /// What is executed, however often it is attempted.
    pub instance: u128,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Milliseconds that the attempt has; 0 is without end. The engine kills what overstays.
    pub deadline_ms: u64,
    /// The input.
    pub input: Data<'a>,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Outcome<'a> {
    /// It is done; there is nothing to say.
    Done,
    /// A value: what was read, a callee's result, a recorded side effect.
    Value(Data<'a>),
    /// The object does not exist.
    Absent,
    /// The transaction is committed.
    Committed,
    /// The transaction met a conflict and is over: begin it again and run its body again.
    Conflict,
    /// No result of this side effect is recorded: make it, then say so.
    Go,
    /// A time, in ns since 1970.
    Time(u64),
    /// The id of an instance.
    Instance(u128),
    /// Random bytes, the same in every attempt.
    Draw([u8; 32]),
    /// The callee returned an error, which is its result; these are its bytes.
    CalleeFailed(Data<'a>),
    /// The operation was refused. The attempt may go on.
    Refused {
        /// Why.
        code: Refusal,
        /// The same, for people.
        text: &'a str,
    },
    /// This attempt is over: whatever it asks from now on is answered so. Its worker unwinds and
    /// sends `Finish::Unwound`.
    Ended(EndReason),
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $code,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code on the ring.
            #[must_use]
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The one with this code.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Why an operation was refused.
    Refusal {
        /// The table is not declared by the deployed functions.
        UnknownTable = 1,
        /// No such function is deployed.
        UnknownFunction = 2,
        /// A name, key or value exceeds its limit.
        TooLong = 3,
        /// The operation may not be used here: effects below a function declared read-only, or
        /// something that a transaction's body may not do.
        NotAllowed = 4,
        /// The table is not declared transactional.
        NotTransactional = 5,
        /// The transaction met conflicts more often than the limit.
        TooManyConflicts = 6,
        /// The transaction touches more objects than the limit.
        TransactionTooLarge = 7,
        /// No such call is outstanding.
        NoSuchCall = 8,
        /// The callee was parked after its last attempt.
        CalleeParked = 9,
        /// No state buffer is free for the value: the function holds on to too many.
        ArenaFull = 10,
    }
}

codes! {
    /// Why an attempt ends before its function does.
    EndReason {
        /// Another attempt or run has taken the instance over or has ended it.
        Superseded = 1,
        /// The root was cancelled.
        Cancelled = 2,
        /// The instance is attempted again from a later place in the log.
        Restart = 3,
        /// The engine is stopping, or has lost its lease.
        Stopping = 4,
        /// The instance is parked with an error.
        Parked = 5,
    }
}

codes! {
    /// How urgent a line of log is.
    Level {
        /// Someone must act.
        Error = 1,
        /// Something is wrong.
        Warn = 2,
        /// Something happened.
        Info = 3,
        /// For the developer.
        Debug = 4,
    }
}

/// What the worker sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// First of all: who speaks.
    Hello {
        /// Layout that the worker was built for.
        layout: u32,
        /// Name and version of its SDK.
        sdk: &'a str,
    },
    /// An operation, to be answered by a reply with this id.
    Ask {
        /// Ascends by one from 1.
        id: u64,
        /// The operation.
        operation: Operation<'a>,
    },
    /// A buffer of the engine's is read no more. Not answered.
    Release(Buffer),
    /// A line of log. Not answered.
    Log {
        /// How urgent.
        level: Level,
        /// The line.
        text: &'a str,
    },
    /// The function has ended. Not answered.
    Finish(Finish<'a>),
}

/// What a function asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// → `Value` or `Absent`.
    Read {
        /// The table.
        table: &'a str,
        /// The key.
        key: &'a [u8],
    },
    /// → `Done`.
    Write {
        /// The table.
        table: &'a str,
        /// The key.
        key: &'a [u8],
        /// The value; none deletes.
        value: Option<Data<'a>>,
    },
    /// Begins a transaction: operations until its end are part of it. → `Done`.
    TxnBegin,
    /// → `Committed` or `Conflict`.
    TxnCommit,
    /// Forgets the transaction's writes. → `Committed` (the outcome stands) or `Conflict`.
    TxnAbort,
    /// Calls a function and waits. → `Value` or `CalleeFailed`.
    Call {
        /// Its name.
        function: &'a str,
        /// Its input.
        input: Data<'a>,
    },
    /// Begins a call; this request's id names it. → `Done`, as soon as the input is taken.
    CallBegin {
        /// Its name.
        function: &'a str,
        /// Its input.
        input: Data<'a>,
    },
    /// Waits for a call that was begun. → `Value` or `CalleeFailed`.
    Join {
        /// The id of its `CallBegin`.
        call: u64,
    },
    /// Starts a function that nobody waits for, as a root of its own. → `Instance`.
    Spawn {
        /// Its name.
        function: &'a str,
        /// Its input.
        input: Data<'a>,
    },
    /// → `Value` (recorded by an earlier attempt) or `Go`.
    SideEffectBegin,
    /// The result of the side effect that was begun last. → `Done` (recorded), or `Value` (a peer
    /// recorded this one before).
    SideEffectDone {
        /// The result.
        result: Data<'a>,
    },
    /// An empty step: what was written before is seen by others before what comes after. → `Done`.
    Fence,
    /// → `Time`, the same in every attempt.
    Now,
    /// → `Draw`, the same in every attempt and never twice.
    Random,
}

/// How a function ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finish<'a> {
    /// It returned this.
    Returned(Data<'a>),
    /// It returned an error, which is its result like any other: not attempted again.
    Failed(Data<'a>),
    /// It unwound after an `Ended`.
    Unwound,
    /// The attempt is lost by the function's own doing (it panicked): attempt again.
    Crashed {
        /// What is known about it.
        text: &'a str,
    },
}
