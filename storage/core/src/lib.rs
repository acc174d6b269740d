//! The storage node's log, without its I/O: what batches look like, where they go, what a disk's
//! bytes amount to after a crash, and which epoch may do what.
//!
//! - [`Log`]: accepts entries, lays out writes, knows what is durable.
//! - [`Scan`]: reads segments back; tells a torn tail from damage.
//! - [`Replica`]: the rules Seal and Watermark over a [`Log`].
//!
//! The same segments serve as a node's log and as its state log ([`Contents`]). The write-ahead log
//! alone holds what a node must remember: records, cuts, promises.

#![forbid(unsafe_code)]

mod batch;
mod checkpoint;
mod effect;
mod index;
pub mod limits;
mod log;
mod recover;
mod replica;
mod tail;

pub use batch::{
    BATCH_HEADER_BYTES, Batch, BatchInfo, BatchKind, LogId, Place, SegmentId, batch_bytes,
};
pub use checkpoint::{Checked, Checkpoint, FollowError};
pub use effect::{Effect, ReadPlan, StreamError, StreamOutcome, WelcomeInfo};
pub use index::{Index, Run, extract};
pub use log::{Contents, Durable, Log, LogConfig, Ticket, Write};
pub use recover::{CorruptError, Recovered, Scan};
pub use replica::{Replica, ReplicaConfig};
