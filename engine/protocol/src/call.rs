//! Calls: an envelope goes down, an outcome comes back, and nothing is appended for either.

use halfmoon_wire::{InstanceId, RunId, SeqNum};

use crate::Mode;
use crate::transaction::Frame;

/// How far an instance has seen the log, and how many log-free writes it has made since.
///
/// Of its parts an instance at a join takes the larger of each (component-wise): the counter is
/// also the mark that there are writes which no record covers yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Point {
    /// The log up to here has been seen.
    pub cursor: SeqNum,
    /// Log-free writes since the cursor moved.
    pub counter: u32,
}

/// What a function is given: a value, and a fingerprint of its bytes by which two requests under
/// one idempotency key are compared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Input<V> {
    /// The bytes.
    pub value: V,
    /// 128 bits of a cryptographic hash of the bytes, made by whoever has them.
    pub fingerprint: u128,
}

/// What a function is called with: all that a callee must know of the tree above it.
#[derive(Clone, Debug)]
pub struct Envelope<V> {
    /// The callee's id: H(run, caller, call index).
    pub instance: InstanceId,
    /// The root of the tree.
    pub root: InstanceId,
    /// Its run.
    pub run: RunId,
    /// The root's initial cursor: the floor of every append of the tree.
    pub floor: SeqNum,
    /// The caller's number for this call.
    pub call: u32,
    /// Name of the function.
    pub function: String,
    /// The input.
    pub input: V,
    /// How the tree is logged.
    pub mode: Mode,
    /// The caller's point; the callee goes on from it.
    pub point: Point,
    /// The callee, or one above it, is declared `read_only`.
    pub read_only: bool,
    /// Where the Init of the run is, when the caller knows it to be committed.
    pub init: Option<SeqNum>,
    /// The open transaction that the callee takes part in.
    pub transaction: Option<Frame<V>>,
}

/// How an instance ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Status {
    /// The function returned a value.
    Returned = 0,
    /// The function returned an error; the value describes it.
    Failed = 1,
    /// A cancel request took effect; the value is empty.
    Cancelled = 2,
    /// It was parked by its attempts; the value describes why. Never in the log.
    Parked = 3,
}

/// The end of an instance: what its Finish says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended<V> {
    /// How.
    pub status: Status,
    /// The result, or what describes the failure.
    pub result: V,
    /// Its point at the end, all its callees joined.
    pub point: Point,
}

/// What a callee's session hands back to its caller's.
#[derive(Clone, Debug)]
pub struct Outcome<V> {
    /// The caller's number for the call.
    pub call: u32,
    /// How it ended.
    pub ended: Ended<V>,
    /// The transaction that it took part in, with its reads and writes.
    pub transaction: Option<Frame<V>>,
}

/// What to do about a call.
#[derive(Clone, Debug)]
pub enum Begin<V> {
    /// Run the callee: [`crate::Attempt::callee`] with this.
    Run(Box<Envelope<V>>),
    /// Its result is in the caller's own steps (only under [`Mode::Boki`]): join this at once.
    Recorded(Outcome<V>),
}
