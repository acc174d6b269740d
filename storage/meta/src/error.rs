//! What can go wrong, told apart by what the caller may conclude.

use std::io;
use std::path::PathBuf;

use crate::store::{ENTRIES_MAX, Entry, KEY_MAX_BYTES, VALUE_MAX_BYTES};

/// A read failed, or a change was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The operating system refused.
    #[error("metadata store: cannot {what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process has held the store for too long; it may be stopped or its disk may hang.
    #[error(
        "metadata store: {} has been held by another process for {waited_ms} ms; look for a \
         stopped process with this file open",
        path.display()
    )]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long this call has waited.
        waited_ms: u64,
    },
    /// What should be the address of a metadata store is none.
    #[error(
        "{address:?} is no address of a metadata store: {why}; it is a directory, or \
             etcd://HOST:PORT[,HOST:PORT…][/PREFIX]"
    )]
    BadAddress {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// etcd did not answer, or refused.
    #[error("metadata store: etcd at {endpoint} does not answer: {why}; is it up, and reachable?")]
    Etcd {
        /// Which member of it was asked last.
        endpoint: String,
        /// What it said, or the system.
        why: String,
    },
    /// What is stored is damaged or foreign. It is left as it is.
    #[error(
        "metadata store: {place} is not usable: {why}; restore it from a backup, or remove the \
         whole data directory if the cluster is to start empty"
    )]
    Corrupt {
        /// The file, or the key.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key is empty, too long, or has characters other than printable ASCII without spaces.
    #[error("metadata store: {key:?} is not a key: 1 to {KEY_MAX_BYTES} graphic ASCII characters")]
    BadKey {
        /// The key, cut to the limit.
        key: String,
    },
    /// The value is above the limit.
    #[error("metadata store: value of {key:?} has {bytes} bytes; at most {VALUE_MAX_BYTES}")]
    ValueTooLarge {
        /// Its key.
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// The store holds as many keys as it may.
    #[error("metadata store: full, it holds {ENTRIES_MAX} keys")]
    Full,
}

/// A change did not take place, or it is not known whether it did.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// Something else is there. Nothing was changed.
    #[error("metadata store: somebody else has changed this key")]
    Conflict {
        /// What is there now.
        current: Option<Entry>,
    },
    /// The change may or may not have taken effect. Read again to find out.
    #[error("metadata store: it is not known whether the change took effect: {source}")]
    Unknown {
        /// What happened after the point of no return.
        source: MetaError,
    },
    /// Nothing was changed.
    #[error(transparent)]
    Failed(#[from] MetaError),
}

/// An operation on the cluster's own metadata did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The store holds no cluster yet.
    #[error("the metadata store holds no cluster; was it ever started with this data directory?")]
    NoCluster,
    /// The store holds another cluster already.
    #[error("the metadata store already holds cluster {found:032x}")]
    Exists {
        /// Its id.
        found: u128,
    },
    /// The members named are not a set of members.
    #[error("{given} members given: a log is held by 1 to {max} different nodes")]
    BadMembers {
        /// How many different ones were given.
        given: usize,
        /// How many there may be.
        max: usize,
    },
    /// The quorums of two sets of different sizes need not meet where the state is.
    #[error("{to} members given: this cluster was founded with {from}, and keeps that number")]
    SizeChanged {
        /// How many there are.
        from: usize,
        /// How many were given.
        to: usize,
    },
    /// Too many changes of members wait for a sequencer that opens with them.
    #[error("{pending} changes of members are not in effect yet; start a sequencer first")]
    TooManyPending {
        /// How many wait.
        pending: usize,
    },
    /// Too few of the members who have the state would stay.
    #[error(
        "{kept} members that hold all of the state would stay, and {needed} must: replace one \
         member at a time, and wait until it has copied the state"
    )]
    StateLost {
        /// How many would.
        kept: usize,
        /// How many must.
        needed: usize,
    },
    /// Who is to be replaced is no member.
    #[error("storage node {node} is no member: the members are {}", numbers(members))]
    NotMember {
        /// Who.
        node: u32,
        /// The members.
        members: Vec<u32>,
    },
    /// Who is to be added is a member.
    #[error("storage node {node} is a member already: a new member is one that is none")]
    IsMember {
        /// Who.
        node: u32,
    },
    /// A node that is to be added has stored something before.
    #[error("storage node {node} has been a member before: give the new member a new number")]
    DiskKnown {
        /// The node.
        node: u32,
    },
    /// A storage node has another directory than the one that it has served from.
    #[error(
        "storage node {node} has served from another data directory than this one: what it held \
         is counted on. Bring that directory back, or replace the node by a new one"
    )]
    DiskReplaced {
        /// The node.
        node: u32,
    },
    /// The member set was dropped: a later one is in effect.
    #[error("member set {version} is no longer one of the cluster's; {current} is")]
    MembersSuperseded {
        /// The one that was named.
        version: u64,
        /// The latest.
        current: u64,
    },
    /// The epoch that was to be followed is not the last one any more.
    #[error("sequencer {by} has taken epoch {epoch}")]
    EpochTaken {
        /// The last epoch.
        epoch: u64,
        /// Who took it.
        by: u32,
    },
    /// A later incarnation of this node has published itself.
    #[error("{key} belongs to incarnation {current}, which is later than {own}")]
    NodeSuperseded {
        /// Its key.
        key: String,
        /// Who is there.
        current: u64,
        /// Who asked.
        own: u64,
    },
    /// Others changed the same key again and again.
    #[error("gave up on {key} after {attempts} attempts: others keep changing it")]
    Contended {
        /// The key.
        key: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The store failed. If the operation was a change, nothing was changed.
    #[error(transparent)]
    Store(#[from] MetaError),
    /// The change may or may not have taken effect.
    #[error("it is not known whether the change took effect: {0}")]
    Unknown(#[source] MetaError),
}

fn numbers(of: &[u32]) -> String {
    of.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
