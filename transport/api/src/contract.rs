//! What every transport promises: one-sided writes into regions that the peer exposed.
//!
//! The rules, each with a test in `conformance` that every transport runs:
//!
//! - **T1 Order.** The writes of a lane are applied, and complete, in the order they were posted.
//!   Lanes are not ordered among each other.
//! - **T2 Tearing.** The words of one write become visible in any order; only an aligned word of
//!   eight bytes is whole.
//! - **T3 Completion** of a write means: placed in the peer's volatile memory. Not durable, not
//!   noticed. Durability is a message of the storage role.
//! - **T4 Failure.** The first failure kills the lane, for good. Whether a write that had not
//!   completed was applied is *unknown*.
//! - **T5 No surprise.** `post_write` neither blocks, nor completes within the call, nor fails
//!   because of the network; work is done in `poll` and `flush`. A full queue is a return value.
//!
//! The weakest transport defines the contract. A peer is not trusted: a write out of the bounds of
//! a region, or to a region that was never exposed to that lane, is not applied in any part and
//! kills the lane; a write to a region that has been withdrawn is dropped and harms nobody,
//! because it may have been posted before the peer learned of that.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::carrier::Carrier;
use crate::memory::Memory;

/// One connection between two endpoints, in both directions.
///
/// Unique within an endpoint for its whole life: a slot and how often it has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId {
    slot: u32,
    generation: u32,
}

impl LaneId {
    /// The lane that is the `generation`th in `slot`.
    pub fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// The slot, dense from 0.
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    /// How often the slot was used before.
    pub fn generation(self) -> u32 {
        self.generation
    }

    /// Slot and generation as one number, for completions that carry one; `from_raw` is its
    /// inverse.
    pub fn raw(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The lane with this number.
    pub fn from_raw(raw: u64) -> Self {
        Self { slot: raw as u32, generation: (raw >> 32) as u32 }
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane {}.{}", self.slot, self.generation)
    }
}

/// A region exposed by one endpoint. Never reused by it; 0 is never a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u32);

/// A place in a peer's region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteSpan {
    /// The region, as the peer named it.
    pub region: RegionId,
    /// Offset in it, in bytes.
    pub offset: u64,
}

/// Chosen by whoever posts a write, and given back when it has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What a write carries.
pub enum Source<'a> {
    /// Bytes copied during the call, one after the other.
    Bytes {
        /// First.
        head: &'a [u8],
        /// Then these.
        parts: &'a [&'a [u8]],
        /// Last.
        tail: &'a [u8],
    },
    /// A range of memory, which the transport may read until the write completes. Whoever changes
    /// it before that has written either the old or the new words.
    Memory {
        /// The memory.
        memory: Arc<dyn Memory>,
        /// Where the range begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: usize,
    },
}

impl<'a> Source<'a> {
    /// A source of plain bytes.
    pub fn bytes(bytes: &'a [u8]) -> Self {
        Source::Bytes { head: bytes, parts: &[], tail: &[] }
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Source::Bytes { head, parts, tail } => {
                head.len() + parts.iter().map(|part| part.len()).sum::<usize>() + tail.len()
            }
            Source::Memory { len, .. } => *len,
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Who may write to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every peer with a lane to this endpoint.
    Any,
    /// The peer on this lane. The region is withdrawn when the lane goes down.
    Lane(LaneId),
}

/// What a transport reports from `poll`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occurrence {
    /// A peer has dialled; `greet` it.
    Incoming {
        /// The new lane.
        lane: LaneId,
    },
    /// The peer's greeting is here and the lane carries writes, once `greet` was called.
    Greeted {
        /// The lane.
        lane: LaneId,
        /// What the peer said; not to be trusted.
        greeting: Vec<u8>,
    },
    /// A signalled write, and all before it on that lane, have completed (T3).
    Completed {
        /// The lane.
        lane: LaneId,
        /// As given to `post_write`.
        token: Token,
    },
    /// The lane is dead, and this is the last that is heard of it. What had not completed is
    /// unknown (T4).
    Down {
        /// The lane.
        lane: LaneId,
        /// Why.
        reason: DownReason,
    },
}

/// Why a lane went down.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DownReason {
    /// This side closed it.
    #[error("closed by this side")]
    Closed,
    /// The peer closed it, or its process ended.
    #[error("the peer closed the connection")]
    PeerClosed,
    /// No connection came about.
    #[error("cannot connect: {0}")]
    Unreachable(std::io::ErrorKind),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(std::io::ErrorKind),
    /// The peer did not greet in time.
    #[error("the peer did not greet in time")]
    Silent,
    /// What the peer sent first is not a greeting of a Halfmoon node.
    #[error("the peer is not a Halfmoon node")]
    NotHalfmoon,
    /// The peer speaks another version.
    #[error(
        "the peer speaks lane version {theirs}, this node speaks {ours}: \
         run the same release of Halfmoon on both"
    )]
    WrongVersion {
        /// This side's version.
        ours: u16,
        /// The peer's version.
        theirs: u16,
    },
    /// The peer wrote where it may not.
    #[error("the peer wrote outside what was exposed to it")]
    OutOfBounds,
    /// The peer sent bytes that are no frame, ring entry or credit.
    #[error("the peer sent corrupt bytes")]
    Corrupt,
}

impl DownReason {
    /// Whether trying again is in vain until a person mends something.
    #[must_use]
    pub const fn is_for_operators(&self) -> bool {
        matches!(self, Self::WrongVersion { .. })
    }
}

/// Why no address is listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The address does not parse.
    #[error("{address:?} is no address to listen on; give one like 127.0.0.1:0")]
    BadAddress {
        /// As given.
        address: String,
    },
    /// The address is taken.
    #[error("{address} is already in use; stop what listens there or choose another port")]
    InUse {
        /// As given.
        address: String,
    },
    /// The system refuses.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// As given.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why dialling did not even begin. That a peer is not there is told by [`DownReason`].
#[derive(Debug, Error)]
pub enum DialError {
    /// The address does not parse.
    #[error("{address:?} is no address to dial")]
    BadAddress {
        /// As given.
        address: String,
    },
    /// There are as many lanes as there may be.
    #[error("all {limit} lanes are in use")]
    TooManyLanes {
        /// How many there may be.
        limit: usize,
    },
    /// The system refuses.
    #[error("cannot dial {address}: {source}")]
    Io {
        /// As given.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a region was not exposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ExposeError {
    /// There are as many regions as there may be.
    #[error("all {limit} regions are in use")]
    TooManyRegions {
        /// How many there may be.
        limit: usize,
    },
    /// The lane it is for is not there.
    #[error("the lane is down")]
    Dead,
}

/// Why a write was not posted. It has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PostError {
    /// The lane has no room now.
    #[error("the lane is full")]
    Full,
    /// The lane is down, or not up yet.
    #[error("the lane is not up")]
    Dead,
    /// Longer than any write may be, or not within the source memory.
    #[error("the write is too long or its source is out of bounds")]
    BadSource,
}

/// What goes over lanes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Lanes that are up.
    pub lanes: u64,
    /// Bytes of writes that were posted on such lanes, since the transport was made.
    pub bytes: u64,
}

/// What goes which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Over TCP.
    pub tcp: Share,
    /// Over RDMA.
    pub rdma: Share,
}

/// Most bytes of one write.
pub const MAX_WRITE_BYTES: usize = 64 << 20;

/// Most bytes of one greeting.
pub const MAX_GREETING_BYTES: usize = 8 << 10;

/// One-sided writes, posted and polled. The rules are those of the [module](self).
pub trait Transport {
    /// Accepts lanes at `address` from now on; returns the address with the port that was given.
    fn listen(&mut self, address: &str) -> Result<String, ListenError>;

    /// Starts a lane to `address`. It is up after [`Occurrence::Greeted`].
    fn dial(&mut self, address: &str) -> Result<LaneId, DialError>;

    /// Says `greeting` (at most [`MAX_GREETING_BYTES`]) to the peer. Once per lane, before any
    /// write. Without effect on a lane that is down.
    fn greet(&mut self, lane: LaneId, greeting: &[u8]);

    /// Takes the lane down. What was posted before is still handed over if the peer takes it.
    fn close(&mut self, lane: LaneId, reason: DownReason);

    /// Lets peers write to `memory`.
    fn expose(&mut self, memory: Arc<dyn Memory>, access: Access) -> Result<RegionId, ExposeError>;

    /// Ends that. What peers write from now on is dropped, and their lanes live.
    ///
    /// What is under way may still land: a receive into the memory that has begun, or what a peer's
    /// adapter writes before the peer has heard, which it has a second for. Until nothing can land
    /// any more, the transport holds a reference to the memory; whoever wants to use it for something
    /// else waits until that is gone.
    fn withdraw(&mut self, region: RegionId);

    /// Posts a write. With a token, its completion is reported.
    fn post_write(
        &mut self,
        lane: LaneId,
        to: RemoteSpan,
        source: Source<'_>,
        token: Option<Token>,
    ) -> Result<(), PostError>;

    /// Whether the lane is up and takes another write now. A lane takes writes of any length until
    /// more than a limit is queued, so that even the longest write gets its turn.
    fn has_room(&self, lane: LaneId) -> bool;

    /// Starts to carry out what was posted, with few system calls. Does not block.
    fn flush(&mut self);

    /// Does the work that can be done now and appends what happened to `occurrences`.
    fn poll(&mut self, occurrences: &mut Vec<Occurrence>);

    /// What goes over the network, for those who look after it. Nothing does in a transport that has
    /// none.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    /// What a lane that is up goes over; `None` if it is not up, or over no network at all.
    fn carrier(&self, _lane: LaneId) -> Option<Carrier> {
        None
    }
}

/// Ends the sleep of the thread that owns an endpoint. The reactor's waker is one.
pub trait Wake: Send + Sync + 'static {
    /// Makes the next or current wait of that thread return. Cheap if it was already called.
    fn wake(&self);
}
