//! One physical execution of an instance: what a session driver holds.
//!
//! ```text
//! root:    root::start ─▶ Attempt ─ operations ─▶ finish ─▶ reply ─▶ Finish::append
//! callee:  begin_call ─▶ Envelope ─▶ Attempt::callee ─ operations ─▶ finish ─▶ Outcome ─▶ joined
//! ```
//! Operations run one after another (`&mut self`); callees are attempts of their own and may be
//! outstanding meanwhile, any number of them. Dropping an attempt is a crash.

use halfmoon_wire::InstanceId;

use crate::call::{Begin, Ended, Envelope, Input, Outcome};
use crate::finish::Ending;
use crate::root::{Identity, Request};
use crate::transaction::Commit;
use crate::{Done, Ops, TableSpec};

/// What a callee's start led to.
pub enum Callee<O: Ops> {
    /// Run the function.
    Run(Box<Attempt<O>>),
    /// It has ended before: hand this to [`Attempt::joined`].
    Ended(Outcome<O::Value>),
}

/// What to do about a side effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SideEffect<V> {
    /// An earlier attempt has recorded this result: do not run the closure.
    Recorded(V),
    /// Run the closure, then [`Attempt::record_side_effect`]. It may run more than once: it is
    /// at-least-once until its result is recorded.
    Run,
}

/// How a transaction begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeginTransaction {
    /// Run the body.
    Run,
    /// It met conflicts too often in an earlier attempt: do not run the body.
    TooManyConflicts,
}

/// One attempt of one instance.
pub struct Attempt<O: Ops> {
    ops: O,
    identity: Identity,
}

impl<O: Ops> Attempt<O> {
    /// Starts an attempt of a callee.
    pub async fn callee(ops: O, envelope: Envelope<O::Value>) -> Done<Callee<O>, O> {
        let _ = (ops, envelope);
        todo!()
    }

    /// Who is running. For a root whose run is in the log, function and version are the log's.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The input to run with: for a root whose run is in the log, the log's.
    #[must_use]
    pub fn input(&self) -> &O::Value {
        todo!()
    }

    /// The world that it was given.
    #[must_use]
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// True while nothing of this attempt can be in the log: it may be dropped without a trace.
    #[must_use]
    pub fn is_traceless(&self) -> bool {
        todo!()
    }

    /// Reads an object. Inside a transaction, as of the body's place in the log, own writes first.
    pub async fn read(&mut self, table: &TableSpec, key: &[u8]) -> Done<Option<O::Value>, O> {
        let _ = (table, key);
        todo!()
    }

    /// Writes an object; `None` deletes it. Inside a transaction the write is buffered.
    pub async fn write(
        &mut self,
        table: &TableSpec,
        key: &[u8],
        value: Option<O::Value>,
    ) -> Done<(), O> {
        let _ = (table, key, value);
        todo!()
    }

    /// Begins a transaction, or runs its body again after [`Commit::Again`]. `update(key, f)` is a
    /// transaction with one object: begin, read, f, write, commit.
    pub async fn begin_transaction(&mut self) -> Done<BeginTransaction, O> {
        todo!()
    }

    /// Ends the body and commits.
    pub async fn commit(&mut self) -> Done<Commit, O> {
        todo!()
    }

    /// Ends the body and forgets its writes. What it read is a snapshot; nothing is recorded
    /// unless an attempt of the body has met a conflict.
    pub async fn abandon(&mut self) -> Done<Commit, O> {
        todo!()
    }

    /// Begins a call. `read_only` as the callee is declared. Unless it is, a root's Init is sent
    /// in the background.
    pub async fn begin_call(
        &mut self,
        function: &str,
        input: Input<O::Value>,
        read_only: bool,
    ) -> Done<Begin<O::Value>, O> {
        let _ = (function, input, read_only);
        todo!()
    }

    /// Joins callees that have ended, in whatever order they came; returns how they ended, in the
    /// order of their calls. A callee that was cancelled cancels the caller ([`crate::Stop`]).
    pub async fn joined(
        &mut self,
        outcomes: Vec<Outcome<O::Value>>,
    ) -> Done<Vec<Ended<O::Value>>, O> {
        let _ = outcomes;
        todo!()
    }

    /// First-of: which call won is recorded as a step. Returns the winner of all attempts, which
    /// may be another than `call`; that one is to be waited for and joined.
    pub async fn select(&mut self, call: u32) -> Done<u32, O> {
        let _ = call;
        todo!()
    }

    /// Starts a function that nobody waits for, as a root of its own: a step of this instance that
    /// carries its Init. The driver (of this attempt, or the intent scan) then starts it with
    /// [`crate::root::start`] and no request.
    pub async fn call_detached(&mut self, request: Request<O::Value>) -> Done<InstanceId, O> {
        let _ = request;
        todo!()
    }

    /// Looks a side effect up; makes Init durable before saying [`SideEffect::Run`].
    pub async fn begin_side_effect(&mut self) -> Done<SideEffect<O::Value>, O> {
        todo!()
    }

    /// Records the result of a side effect; returns the recorded one, which may be a peer's.
    pub async fn record_side_effect(&mut self, result: O::Value) -> Done<O::Value, O> {
        let _ = result;
        todo!()
    }

    /// An empty step: what was written before it is seen by others before what comes after.
    pub async fn fence(&mut self) -> Done<(), O> {
        todo!()
    }

    /// Time stamp of the record at the cursor, in ns since 1970: the same in every attempt.
    pub async fn now(&mut self) -> Done<u64, O> {
        todo!()
    }

    /// 32 bytes drawn from (instance, draw index): the same in every attempt, never repeated.
    pub fn random(&mut self) -> [u8; 32] {
        todo!()
    }

    /// Sends the root's Init in the background, if it was not sent: a callee needs it (the
    /// [`Ops::need_init`] of an attempt further down). Callees ignore it.
    pub async fn send_init(&mut self) -> Done<(), O> {
        todo!()
    }

    /// Waits until the Init of this run is durable: before an asynchronous request is acknowledged.
    pub async fn ensure_init(&mut self) -> Done<(), O> {
        todo!()
    }

    /// The function has returned (`Ok`) or failed (`Err`).
    pub async fn finish(self, result: Result<O::Value, O::Value>) -> Done<Ending<O>, O> {
        let _ = result;
        todo!()
    }

    /// After [`crate::Stop::Cancelled`].
    pub async fn finish_cancelled(self) -> Done<Ending<O>, O> {
        todo!()
    }
}
