//! Roots: where they start, what makes one of their runs win, what to do when one has lost.

use halfmoon_wire::{InstanceId, RunId, SeqNum};

use crate::call::{Ended, Input};
use crate::{Attempt, Done, Mode, Ops};

/// A client's request to run a function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<V> {
    /// Name of the function.
    pub function: String,
    /// Version of its binary (BLAKE3).
    pub version: [u8; 32],
    /// Its input.
    pub input: Input<V>,
    /// How the tree is logged.
    pub mode: Mode,
    /// The id is the client's idempotency key: Init must be durable before the reply.
    pub keyed: bool,
    /// The function is declared `read_only`.
    pub read_only: bool,
}

/// How to start an attempt of a root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start<V> {
    /// The root's id.
    pub root: InstanceId,
    /// The engine's committed position; a tail just asked for (`linearizable`); at least the lower
    /// bound that the client passed. All attempts that one engine makes of a root under a drawn id
    /// use the same. Ignored when the log has an Init.
    pub cursor: SeqNum,
    /// What the client asked for; `None` at a take-over, where the log knows.
    pub request: Option<Request<V>>,
}

/// What a start led to.
pub enum Started<O: Ops> {
    /// Run the function.
    Run(Box<Attempt<O>>),
    /// It has ended before; this is the reply.
    Ended(Ended<O::Value>),
    /// No client asks and the log has no Init: there is nothing to do.
    Nothing,
}

/// What a driver does about an attempt whose snapshot or floor is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reload<V> {
    /// A peer ended it; this is the reply.
    Ended(Ended<V>),
    /// It had no effect: start over with a new cursor.
    StartOver,
}

/// Who is running: everything that an attempt knows of its place in the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// This instance.
    pub instance: InstanceId,
    /// The root of its tree.
    pub root: InstanceId,
    /// The root's run.
    pub run: RunId,
    /// The root's initial cursor.
    pub floor: SeqNum,
    /// Name of the function; for a root, what the log says if it has an Init.
    pub function: String,
    /// Version of the root's binary; zero for callees, which run whatever is deployed with it.
    pub version: [u8; 32],
    /// How the tree is logged.
    pub mode: Mode,
    /// It, or one above it, is declared `read_only`.
    pub read_only: bool,
}

/// Starts an attempt of a root: loads `Step(root)` from the local index and decides on a run.
///
/// With an Init in the log the attempt is of that run: at its cursor, with its function version
/// and input ([`Attempt::identity`], [`Attempt::input`]), whatever the request says; a request
/// with another input is [`crate::Refused::KeyReused`]. Without, it is of the run that starts at
/// `start.cursor`. Called again after [`crate::Stop::RunLost`].
pub async fn start<O: Ops>(ops: O, start: Start<O::Value>) -> Done<Started<O>, O> {
    let _ = (ops, start);
    todo!()
}

/// Decides what follows [`crate::Stop::RootGone`] and [`crate::Stop::SnapshotTooOld`] of a root.
/// `ops` must show the log up to a tail asked for after the stop.
pub async fn reload<O: Ops>(ops: &O, root: InstanceId) -> Done<Reload<O::Value>, O> {
    let _ = (ops, root);
    todo!()
}

/// Asks for a root to be cancelled. A request, no verdict: the canceller is then told the root's
/// result, whichever it is.
pub async fn cancel<O: Ops>(ops: &O, root: InstanceId) -> Done<(), O> {
    let _ = (ops, root);
    todo!()
}
