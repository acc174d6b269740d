//! Types and codecs that every role speaks: identifiers, tags, log records, messages, limits.
//!
//! Everything here is pure. Bytes that come from a peer or a disk are *parsed*: a decoder returns
//! [`DecodeError`] and never panics, whatever it is fed.

#![forbid(unsafe_code)]

mod append;
pub mod broken;
mod codec;
mod hello;
mod ids;
pub mod limits;
mod message;
mod record;
mod state;
pub mod tag;

pub use append::{Append, AppendParts, AppendView, Condition, Refusal};
pub use codec::{DecodeError, Reader, Writer};
pub use hello::{Hello, Role};
pub use ids::{
    CellTuple, Epoch, Incarnation, InstanceId, LocalId, NodeId, Origin, RunId, SeqNum, Tag,
    VersionId,
};
pub use message::{
    APPEND_EPOCH_AT, EpochStart, Message, NodeStatus, agreement, append_view, encode_append,
};
pub use record::{
    Evict, NewRecord, Open, RECORD_HEADER_BYTES, RecordKind, RecordRef, Records, SafePoint, TagPos,
    encoded_len,
};
pub use state::{Landing, ObjectKey, StateReply, StateRequest, Stored, StoredCell, ValueSource};

/// Version of everything in this package that crosses a wire or lies on a disk. Two nodes with
/// different versions do not talk.
pub const WIRE_VERSION: u32 = 1;
