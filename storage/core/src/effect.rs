//! What a [`Replica`](crate::Replica) is told, answers, and wants done.

use halfmoon_wire::{Epoch, EpochStart, SeqNum};

use crate::checkpoint::FollowError;
use crate::index::Run;

/// What the shell does next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Answer a seal.
    Sealed {
        /// Who asked.
        asker: u64,
        /// The highest epoch promised.
        promised: Epoch,
        /// Epochs in the log.
        history: Vec<EpochStart>,
        /// The log's last durable position.
        end: SeqNum,
    },
    /// Tell everyone in this epoch: my log is its log up to here, durable.
    Watermark {
        /// The epoch.
        epoch: Epoch,
        /// Up to here.
        seq: SeqNum,
    },
    /// Ask the sequencer of this epoch to stream.
    Follow {
        /// The epoch.
        epoch: Epoch,
        /// First position wanted.
        from: SeqNum,
    },
    /// Ask a peer for what lies below the sequencer's window, by `ReadLog`.
    Fetch {
        /// The epoch that the peer's log must be of.
        epoch: Epoch,
        /// First position wanted.
        from: SeqNum,
    },
}

/// What a sequencer says of its log.
#[derive(Clone, Copy, Debug)]
pub struct WelcomeInfo<'a> {
    /// Its epoch.
    pub epoch: Epoch,
    /// Starts of the epochs in its log, its own last.
    pub history: &'a [EpochStart],
    /// Oldest position that it streams.
    pub window_start: SeqNum,
    /// Last position that it ordered.
    pub tail: SeqNum,
}

/// What became of records that were offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamOutcome {
    /// Accepted (or known already).
    Taken,
    /// Of another epoch, or not what is waited for.
    Ignored,
    /// No room; the node follows anew when there is.
    Full,
}

/// The sender broke the protocol: its lane is to be closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Records do not follow the log.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// Records contradict the history that their sequencer announced.
    #[error("records up to {last} contradict the announced history of epoch {epoch}")]
    History {
        /// The sequencer's epoch.
        epoch: Epoch,
        /// Last position of the records.
        last: SeqNum,
    },
    /// A welcome whose history does not end with its own epoch.
    #[error("a welcome to epoch {epoch} whose history does not end with it")]
    Welcome {
        /// The epoch.
        epoch: Epoch,
    },
    /// The sequencer's log departs from this one where this one has been trimmed.
    #[error("the log of epoch {epoch} differs from position {agreed} on, which was trimmed here")]
    Trimmed {
        /// The sequencer's epoch.
        epoch: Epoch,
        /// Last position in common.
        agreed: SeqNum,
    },
    /// One record is longer than a batch of this node's segments.
    #[error("a record of {len} bytes does not fit this node's segments")]
    Long {
        /// Bytes of the record.
        len: usize,
    },
}

/// How a read of the log is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadPlan {
    /// Not of that epoch.
    Refused,
    /// The records were copied from memory, or there are none at that position.
    Ready,
    /// They are in this run of batches.
    Disk(Run),
}
