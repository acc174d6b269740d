//! What a host gives the role, and takes from it.

use halfmoon_order::RecoveryError;
use halfmoon_wire::{Epoch, Incarnation, NodeId, SeqNum};

/// How a sequencer is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster; lanes from another are closed.
    pub cluster: u128,
    /// This node.
    pub node: NodeId,
    /// Whether others get their time to take over before this one does. Without it, a sequencer that
    /// finds nobody in charge when it starts takes over at once.
    pub is_patient: bool,
    /// How long an engine may be silent, in ms.
    pub lease_ms: u32,
    /// Bytes of recent stream kept for followers.
    pub window_bytes: usize,
    /// Most places of records in tags in the log's window.
    pub places_max: u64,
    /// How long the sequencer that is watched may be silent before this one takes over, in ms.
    pub suspect_ms: u32,
}

/// What one reign is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reign {
    /// The epoch, which is this sequencer's alone.
    pub epoch: Epoch,
    /// The member sets since the last one marked committed; the last is the one in effect.
    pub member_sets: Vec<Vec<NodeId>>,
}

/// Who is in charge, as the metadata store has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scene {
    /// The last epoch that was taken; 0 before the first.
    pub epoch: Epoch,
    /// Who took it, and the address that this sequencer has published.
    pub holder: Option<(NodeId, Option<String>)>,
    /// The members of the log.
    pub members: Vec<NodeId>,
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
    /// Look up who is in charge; answer by [`crate::Role::looked`].
    Look,
    /// Take the epoch after this one by compare-and-set. Answer by [`crate::Role::reign`] when it
    /// succeeds, by [`crate::Role::looked`] when somebody was faster, by
    /// [`crate::Role::not_taken`] when the store fails.
    Take {
        /// The last epoch that this sequencer knows of.
        after: Epoch,
    },
    /// Publish that this node is in charge: the epoch is open.
    Publish,
    /// Mark the member set in effect as committed: the opening record of this epoch is.
    MarkCommitted(Epoch),
}

/// Why a reign ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RoleError {
    /// Another sequencer has taken over. Nothing is lost; this one may stand by.
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
    /// The epoch of its reign; while it stands by, the last one that it knows of.
    pub epoch: Epoch,
    /// Whether appends are ordered.
    pub is_open: bool,
    /// While it stands by: whom it watches, and up to where it has learned the log.
    pub standby: Option<Watch>,
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

/// What a sequencer that stands by does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    /// The sequencer that it is connected to.
    pub watched: Option<NodeId>,
    /// The log is learned up to here.
    pub learned: SeqNum,
    /// Of that, the tables are made up to here.
    pub known: SeqNum,
}
