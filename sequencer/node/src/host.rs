//! What a host gives the role, and takes from it.

use halfmoon_order::RecoveryError;
use halfmoon_wire::{Epoch, Incarnation, NodeId, SeqNum};

/// What one reign is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster; lanes from another are closed.
    pub cluster: u128,
    /// This node.
    pub node: NodeId,
    /// The epoch, which is this sequencer's alone.
    pub epoch: Epoch,
    /// The member sets since the last one marked committed; the last is the one in effect.
    pub member_sets: Vec<Vec<NodeId>>,
    /// How long an engine may be silent, in ms.
    pub lease_ms: u32,
    /// Bytes of recent stream kept for followers.
    pub window_bytes: usize,
}

/// The time, by two clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Ns of a clock that only grows.
    pub mono_ns: u64,
    /// Ns since 1970.
    pub wall_ns: u64,
}

/// What the host does with the metadata store, and where it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Look up where this storage node listens; answer by [`crate::Role::located`].
    Locate(NodeId),
    /// Publish this node's address: the epoch is open.
    Publish,
    /// Mark the member set in effect as committed: the opening record is.
    MarkCommitted,
}

/// Why the sequencer cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RoleError {
    /// Another sequencer has taken over. Nothing is lost; this one has to stop.
    #[error("epoch {own} is over: storage has promised to epoch {promised}")]
    Deposed {
        /// This sequencer's epoch.
        own: Epoch,
        /// The higher one.
        promised: Epoch,
    },
    /// The epoch cannot be opened.
    #[error(transparent)]
    Recovery(RecoveryError),
}

/// What a turn leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// There is more to do now: do not sleep.
    pub more: bool,
    /// When the next turn has something to do though nothing arrives, in ns of `mono_ns`.
    pub deadline_ns: Option<u64>,
}

/// How far the sequencer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The epoch.
    pub epoch: Epoch,
    /// Whether appends are ordered.
    pub is_open: bool,
    /// While the log is read: last position read, and the last there is.
    pub reading: Option<(SeqNum, SeqNum)>,
    /// Last position ordered.
    pub tail: SeqNum,
    /// Last position known to be committed.
    pub committed: SeqNum,
    /// The storage nodes, and whether each has given its promise.
    pub storage: Vec<(NodeId, bool)>,
    /// Engines that hold a lease or are waited for: id, incarnation, whether it is here.
    pub engines: Vec<(NodeId, Incarnation, bool)>,
}
