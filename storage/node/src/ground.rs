//! What a storage node stands on besides its endpoint: a disk, somebody who makes segments ready,
//! and an embedded engine. On a machine these are a reactor, threads and files ([`crate::Role::open`]);
//! a host without any of them brings its own ([`crate::Role::on`]).

use std::net::SocketAddr;

use halfmoon_log::{Batch, BatchKind, Log, SegmentId};
use halfmoon_wire::NodeId;

use crate::NodeError;
use crate::disk::Disk;
use crate::state::{Assembler, Engine, Put};

/// Which of a node's two logs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Which {
    /// The log of the cluster.
    Log,
    /// The log of this node's state store.
    State,
}

/// A segment that may be written.
#[derive(Clone, Debug)]
pub struct Segment<F> {
    /// Which.
    pub id: SegmentId,
    /// Where it is.
    pub file: F,
    /// Whether it bypasses the page cache.
    pub direct: bool,
}

/// A log that was read back.
#[derive(Debug)]
pub struct Opened<F> {
    /// The log.
    pub log: Log,
    /// Its segments, and the one that is written next.
    pub segments: Vec<Segment<F>>,
}

/// What a node was found to have, and what it goes on with.
pub struct Ground<D: Disk> {
    /// Reads and writes segments.
    pub disk: D,
    /// Makes segments ready.
    pub keeper: Box<dyn Keeper<D::File>>,
    /// Holds the state that the state log has given up.
    pub engine: Box<dyn Engine>,
    /// The log.
    pub log: Opened<D::File>,
    /// The state log.
    pub state: Opened<D::File>,
    /// The writes in the state log.
    pub puts: Vec<Put>,
    /// It was written down that all of the state is here.
    pub whole: bool,
}

/// Does what may take long and is not on the way of an append. Each call returns at once; what came
/// of it is told by [`Keeper::next`].
pub trait Keeper<F> {
    /// Makes a segment ready to be written.
    fn prepare(&mut self, which: Which, id: SegmentId) -> Result<(), NodeError>;

    /// Takes a segment back.
    fn recycle(&mut self, which: Which, id: SegmentId) -> Result<(), NodeError>;

    /// Looks up where a peer listens.
    fn find(&mut self, node: NodeId) -> Result<(), NodeError>;

    /// What was done.
    fn next(&mut self) -> Option<Kept<F>>;

    /// Both logs have begun, durably: from the return of this call on their absence is a loss.
    fn begun(&mut self) -> Result<(), NodeError>;

    /// All of the state is here, durably: writes that down, in the directory first and then in the
    /// metadata store. Asked again, it does what is still to be done. [`Kept::Whole`] is the answer.
    fn whole(&mut self) -> Result<(), NodeError>;
}

/// What a [`Keeper`] did.
#[derive(Debug)]
pub enum Kept<F> {
    /// A segment is ready.
    Prepared(Which, Segment<F>),
    /// A peer was looked up; `None` when it has published no address.
    Found(NodeId, Option<SocketAddr>),
    /// It is written down in the directory that all of the state is here.
    Whole {
        /// In the metadata store too.
        is_known: bool,
    },
    /// Something failed: the node stops.
    Failed(NodeError),
}

/// Reads the writes of a state log back, from its batches in order.
#[derive(Debug, Default)]
pub struct PutReader {
    assembler: Assembler,
    puts: Vec<Put>,
    damaged: Option<u64>,
}

impl PutReader {
    /// The next batch.
    pub fn take(&mut self, batch: &Batch<'_>) {
        if batch.info.kind == BatchKind::Trim {
            self.puts.retain(|put| put.number > batch.info.last.0);
        } else if batch.info.kind == BatchKind::Records
            && self.assembler.take(batch.info.first.0, batch.body, &mut self.puts).is_none()
        {
            self.damaged = Some(batch.info.first.0);
        }
    }

    /// The writes that were not given up.
    ///
    /// # Errors
    /// When an entry does not parse.
    pub fn finish(self) -> Result<Vec<Put>, NodeError> {
        match self.damaged {
            Some(number) => Err(NodeError::StateLog { number }),
            None => Ok(self.puts),
        }
    }
}
