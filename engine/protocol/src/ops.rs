//! What the protocols ask of the world. One implementation per shell: the engine, and the mock
//! world of the exhaustive tests.

use std::future::Future;
use std::sync::Arc;

use halfmoon_wire::{CellTuple, Condition, InstanceId, RunId, SeqNum, Tag, VersionId};

/// A value of an object, an input or a result. The protocols move it about and never look inside,
/// so a large one can stay where it is (a worker's arena, a landing).
pub trait Value: Clone {
    /// Bytes of the value.
    fn len_bytes(&self) -> usize;

    /// Appends the bytes to a record that is being built. Only called for values of at most
    /// [`crate::INLINE_MAX_BYTES`] (inputs: [`crate::INPUT_INLINE_MAX_BYTES`]).
    fn copy_to(&self, record: &mut Vec<u8>);
}

/// An object: a key of a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Object {
    /// Full name of the table.
    pub table: String,
    /// Key within it.
    pub key: Vec<u8>,
}

/// A request to append one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// The sub-streams that the record joins.
    pub tags: Vec<Tag>,
    /// What must hold, all or nothing. The first is judged first.
    pub conditions: Vec<Condition>,
    /// Initial cursor of the root; the sequencer refuses it below the safe point (the rule Floor).
    pub floor: SeqNum,
    /// The encoded protocol entry (see [`crate::payload`]).
    pub payload: Vec<u8>,
}

/// A committed record, as found in a sub-stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Found {
    /// Its place in the log.
    pub seq: SeqNum,
    /// Its place in the sub-stream that was asked for, from 0.
    pub position: u64,
    /// The encoded protocol entry (see [`crate::payload`]).
    pub payload: Arc<[u8]>,
}

/// What became of an append. That it is unknown is an error of [`Ops`], never one of these.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum AppendOutcome {
    /// Committed at this place, and the local index has applied it.
    Appended(SeqNum),
    /// A condition failed; nothing was appended. Told only once the winner is committed and the
    /// local index has applied it.
    Conflict {
        /// Index of the first condition that failed.
        condition: usize,
        /// The record that stands there, with its position in that condition's tag. `None`: the
        /// tag is shorter than expected (an Init that is not there yet).
        winner: Option<Found>,
    },
    /// A step position beyond the length of its stream: an error of the appender.
    Gap {
        /// Index of the condition that failed.
        condition: usize,
    },
    /// The floor, or the position of a condition, is below the safe point.
    RootGone,
}

/// A cell of the state store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cell<V> {
    /// Its place in the order of writes.
    pub tuple: CellTuple,
    /// The value; `None` is a tombstone.
    pub value: Option<V>,
}

/// What an object was before the first write record of the window.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Base<V> {
    /// The place in the log that it stands for.
    pub seq: SeqNum,
    /// The value; `None` when it was deleted.
    pub value: Option<V>,
}

/// The world of one attempt. Cheap to clone is not asked for: an [`crate::Attempt`] owns one.
///
/// Contract, numbered:
/// - O1. A dropped future may or may not have had its effect; an error says the same.
/// - O2. `append` resolves when the record is committed *and* applied to the local index.
/// - O3. A read at a bound waits until the local index has applied that bound.
/// - O4. Puts resolve when they are durable on a quorum. A cell read is atomic (it writes back).
/// - O5. Appends of one `Ops` reach the sequencer in the order in which `append` was first polled
///   and `post` was called; the protocols do not rely on it.
pub trait Ops {
    /// Handle of a value.
    type Value: Value;
    /// Failure of the shell: shutdown, deadline, no quorum. It says nothing about effects (O1).
    type Error;
    /// An append under way in the background. Dropping it does not withdraw the append.
    type Posted: Future<Output = Result<AppendOutcome, Self::Error>> + Unpin;

    /// Appends a record and waits for its outcome.
    fn append(&self, append: Append) -> impl Future<Output = Result<AppendOutcome, Self::Error>>;

    /// Sends an append now, without being polled; the handle tells the outcome.
    fn post(&self, append: Append) -> Self::Posted;

    /// All records of a sub-stream that the local index shows now, in order.
    fn stream(&self, tag: Tag) -> impl Future<Output = Result<Vec<Found>, Self::Error>>;

    /// Waits until the local index shows a record of the sub-stream; its first one.
    fn first(&self, tag: Tag) -> impl Future<Output = Result<Found, Self::Error>>;

    /// The last record of a sub-stream at or before `max` (O3).
    fn last(
        &self,
        tag: Tag,
        max: SeqNum,
    ) -> impl Future<Output = Result<Option<Found>, Self::Error>>;

    /// Up to where the local index has applied the committed log.
    fn applied(&self) -> SeqNum;

    /// The sequencer's time stamp of a record, in ns since 1970 (O3). Of 0 it is 0.
    fn timestamp(&self, seq: SeqNum) -> impl Future<Output = Result<u64, Self::Error>>;

    /// A callee must log and its index shows no Init of the root: passes this up the tree, to the
    /// session of the root, which calls [`crate::Attempt::send_init`]. Returns at once.
    fn need_init(&self, root: InstanceId, run: RunId);

    /// The cell of an object; `None` when there has never been one.
    fn get_cell(
        &self,
        object: &Object,
    ) -> impl Future<Output = Result<Option<Cell<Self::Value>>, Self::Error>>;

    /// Puts the cell if `tuple` is larger than the one that is there. Refused is success: it was
    /// overwritten by something later. `None` leaves a tombstone.
    fn put_cell(
        &self,
        object: &Object,
        tuple: CellTuple,
        value: Option<&Self::Value>,
    ) -> impl Future<Output = Result<(), Self::Error>>;

    /// An immutable value. `None` is final: two replicas do not have it.
    fn get_version(
        &self,
        object: &Object,
        version: VersionId,
    ) -> impl Future<Output = Result<Option<Self::Value>, Self::Error>>;

    /// Stores an immutable value.
    fn put_version(
        &self,
        object: &Object,
        version: VersionId,
        value: &Self::Value,
    ) -> impl Future<Output = Result<(), Self::Error>>;

    /// The base of an object, from a replica that has folded at least up to the local index's
    /// floor; `None` when there is none.
    fn base(
        &self,
        object: &Object,
    ) -> impl Future<Output = Result<Option<Base<Self::Value>>, Self::Error>>;

    /// A value from bytes that were inside a record.
    fn inline(&self, bytes: &[u8]) -> Self::Value;

    /// A number that no other attempt is ever given, nor this one again.
    fn nonce(&self) -> u128;

    /// The machine's clock, in ns since 1970. Only `unlogged` asks for it: its writes have no
    /// place in the log, so the last writer wins by this.
    fn clock_ns(&self) -> u64;
}
