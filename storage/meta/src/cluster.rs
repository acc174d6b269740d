//! The cluster's identity, its durability, the members of its log, and who took the last epoch.
//!
//! All of it is one value under one key. So a sequencer that takes an epoch sees, at the same
//! instant, every member set that its recovery has to ask. Were the two read one after the other, a
//! change of members in between could be missed, and with it a committed record.

use std::io::Read as _;

use halfmoon_wire::{Epoch, NodeId};
use serde::{Deserialize, Serialize};

use crate::typed::{self, Change};
use crate::{ClusterError, MetaError, MetaStore, disks};

/// Most members of one log.
pub const MEMBERS_MAX: usize = 7;

/// Most changes of members that may wait for a sequencer which opens with them. Each adds a quorum
/// that recovery must find.
pub const PENDING_SETS_MAX: usize = 4;

const KEY: &str = "cluster";

/// The version of the first member set.
const FOUNDING_VERSION: u64 = 1;

/// When an append counts as committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Flushed to the disks of a quorum: survives loss of power everywhere.
    #[default]
    Flush,
    /// In the memory of a quorum, flushed later: does not survive loss of power everywhere.
    MemoryQuorum,
}

/// The storage nodes that hold the log, from one change of members to the next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberSet {
    /// Grows by one with each change; the first is 1.
    pub version: u64,
    /// Node ids, ascending and different.
    nodes: Vec<u32>,
    /// The epoch whose opening record a quorum of this set committed; `None` until then.
    committed_in: Option<u64>,
}

impl MemberSet {
    /// The members, ascending.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().map(NodeId).collect()
    }

    /// How many members make a quorum: more than half.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// The epoch whose opening record a quorum of this set committed; `None` until that was written
    /// down here.
    #[must_use]
    pub fn committed_in(&self) -> Option<Epoch> {
        self.committed_in.map(Epoch)
    }

    /// How many members hold between them all that any quorum of this set ever acknowledged.
    #[must_use]
    pub fn blocking(&self) -> usize {
        blocking(self.nodes.len())
    }

    /// Whether `answered` has a quorum of this set.
    #[must_use]
    pub fn has_quorum(&self, answered: &[NodeId]) -> bool {
        self.nodes.iter().filter(|id| answered.contains(&NodeId(**id))).count() >= self.quorum()
    }
}

/// Who took an epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochHolder {
    epoch: u64,
    node: u32,
    /// Process id on its host, for a person who looks for it.
    pub pid: u32,
}

impl EpochHolder {
    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// The sequencer that took it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }
}

/// What the cluster knows of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterInfo {
    #[serde(with = "hex128")]
    cluster: u128,
    /// When an append of this cluster's log counts as committed.
    pub durability: Durability,
    /// The last epoch that was taken, and by whom; `None` before the first.
    pub holder: Option<EpochHolder>,
    /// The latest member set: the one that a new epoch opens with.
    pub members: MemberSet,
    /// The sets before it that a recovery must ask too, ascending by version.
    older: Vec<MemberSet>,
    /// Members that have not copied the state yet, ascending.
    #[serde(default)]
    copying: Vec<u32>,
}

impl ClusterInfo {
    /// The cluster's id; lanes between different ones are refused.
    #[must_use]
    pub fn id(&self) -> u128 {
        self.cluster
    }

    /// The last epoch that was taken; [`Epoch`] 0 before the first.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.holder.as_ref().map_or(Epoch(0), EpochHolder::epoch)
    }

    /// Every set since the last one marked committed, that one included, ascending by version. A
    /// recovery needs a quorum of *each*: until a set is marked, records may still be committed by
    /// the ones before.
    pub fn recovery_sets(&self) -> impl Iterator<Item = &MemberSet> {
        self.older.iter().chain([&self.members])
    }

    /// Whether this member has all of the state: it was there from the start, or has copied it.
    #[must_use]
    pub fn has_state(&self, node: NodeId) -> bool {
        self.members.nodes.contains(&node.0) && !self.copying.contains(&node.0)
    }

    /// Whether the node has a part in the log: as a member, or as one of before whom a recovery
    /// still asks.
    #[must_use]
    pub fn has_part(&self, node: NodeId) -> bool {
        self.recovery_sets().any(|set| set.nodes.contains(&node.0))
    }

    /// Whether all of the cluster's members are those that founded it, so that one without anything
    /// on its disk has missed nothing that it was asked to keep.
    #[must_use]
    pub fn is_as_founded(&self) -> bool {
        self.members.version == FOUNDING_VERSION
    }

    /// Whether `answered` has a quorum of every set that a recovery must ask.
    #[must_use]
    pub fn may_recover_from(&self, answered: &[NodeId]) -> bool {
        self.recovery_sets().all(|set| set.has_quorum(answered))
    }

    /// Refuses what no version of this code has written.
    fn check(self) -> Result<Self, MetaError> {
        let ascending = self.recovery_sets().is_sorted_by(|a, b| a.version < b.version);
        let filled = self.recovery_sets().all(|set| members_are_valid(&set.nodes));
        if !ascending || !filled {
            let why = "its member sets are empty or out of order".to_owned();
            return Err(MetaError::Corrupt { place: format!("key {KEY}"), why });
        }
        Ok(self)
    }
}

/// An id for a new cluster, from the operating system's random numbers.
///
/// # Errors
/// When they cannot be read.
pub fn random_id() -> Result<u128, MetaError> {
    let path = std::path::Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| MetaError::Io { what: "read", path: path.to_owned(), source })?;
    Ok(u128::from_le_bytes(bytes))
}

/// Founds the cluster: its first member set is marked from the start, as no other came before.
/// Founding it again, by its id, changes nothing and returns what is there.
///
/// # Errors
/// [`ClusterError::Exists`] when another cluster is there; [`ClusterError::BadMembers`].
pub fn create(
    store: &dyn MetaStore,
    id: u128,
    durability: Durability,
    members: &[NodeId],
) -> Result<ClusterInfo, ClusterError> {
    let (version, committed_in) = (FOUNDING_VERSION, Some(0));
    let members = MemberSet { version, nodes: sorted(members)?, committed_in };
    let (holder, older, copying) = (None, vec![], vec![]);
    let wanted = ClusterInfo { cluster: id, durability, holder, members, older, copying };
    typed::change(store, KEY, |current: Option<ClusterInfo>| match current {
        None => Ok(Change::Write(wanted.clone(), wanted.clone())),
        Some(found) if found.cluster == id => Ok(Change::Keep(found.check()?)),
        Some(found) => Err(ClusterError::Exists { found: found.cluster }),
    })
}

/// What the cluster knows of itself now.
///
/// # Errors
/// [`ClusterError::NoCluster`] when none was founded in this store.
pub fn read(store: &dyn MetaStore) -> Result<ClusterInfo, ClusterError> {
    typed::read::<ClusterInfo>(store, KEY)?
        .ok_or(ClusterError::NoCluster)?
        .check()
        .map_err(ClusterError::from)
}

/// Takes the next epoch for the sequencer `node`, and returns the cluster as of that instant: its
/// [`ClusterInfo::epoch`] is the caller's alone, its [`ClusterInfo::recovery_sets`] are the ones to
/// seal before anything is ordered.
///
/// No two calls ever return the same epoch. One whose outcome was unknown is skipped, which is
/// harmless: epochs need to grow, not to be dense.
///
/// # Errors
/// When the store fails; an epoch may have been taken then, and is not used by anyone.
pub fn next_epoch(store: &dyn MetaStore, node: NodeId) -> Result<ClusterInfo, ClusterError> {
    let pid = std::process::id();
    change_cluster(store, |mut info| {
        let epoch = info.epoch().next().0;
        info.holder = Some(EpochHolder { epoch, node: node.0, pid });
        Ok(Change::Write(info.clone(), info))
    })
}

/// Takes the epoch after `after` for the sequencer `node`, if no other has been taken since: of
/// several who saw the same sequencer fall silent, one gets it.
///
/// # Errors
/// [`ClusterError::EpochTaken`] when somebody was faster. It may have been this very call, when the
/// outcome of its write was unknown; the epoch is skipped then, which is harmless.
pub fn take_epoch(
    store: &dyn MetaStore,
    node: NodeId,
    after: Epoch,
) -> Result<ClusterInfo, ClusterError> {
    let pid = std::process::id();
    change_cluster(store, |mut info| {
        if let Some(holder) = info.holder.as_ref().filter(|holder| holder.epoch() != after) {
            return Err(ClusterError::EpochTaken { epoch: holder.epoch, by: holder.node });
        }
        let epoch = after.next().0;
        info.holder = Some(EpochHolder { epoch, node: node.0, pid });
        Ok(Change::Write(info.clone(), info))
    })
}

/// Proposes new members. They come into effect with the next epoch; until its opening record is
/// committed by a quorum of them and [`mark_committed`] has written that down, every recovery also
/// asks the sets before. Proposing what is the latest set already changes nothing.
///
/// Whoever is added has to copy the state, and is not asked for it before [`mark_copied`]. So many of
/// the latest set who have it must stay that every write which its quorum ever acknowledged is on one
/// of them, and that the new set could not acknowledge any without them: of three, two.
///
/// # Errors
/// [`ClusterError::TooManyPending`], [`ClusterError::BadMembers`], [`ClusterError::StateLost`] when
/// too few stay, [`ClusterError::DiskKnown`] when an added node has stored something before, or the
/// store's.
pub fn propose_members(
    store: &dyn MetaStore,
    members: &[NodeId],
) -> Result<MemberSet, ClusterError> {
    let nodes = sorted(members)?;
    change_cluster(store, |info| changed_to(store, info, nodes.clone()))
}

/// Proposes the latest members with `new` in the place of `old`, as [`propose_members`] does. Proposing
/// it again, once `new` is a member and `old` is none any more, changes nothing.
///
/// # Errors
/// [`ClusterError::NotMember`], [`ClusterError::IsMember`], and those of [`propose_members`].
pub fn replace_member(
    store: &dyn MetaStore,
    old: NodeId,
    new: NodeId,
) -> Result<MemberSet, ClusterError> {
    change_cluster(store, |info| {
        let is_member = |node: NodeId| info.members.nodes.contains(&node.0);
        match (is_member(old), is_member(new)) {
            (true, false) => {}
            (false, true) if info.has_part(old) || disks::find(store, old)?.is_some() => {
                return Ok(Change::Keep(info.members));
            }
            (true, true) => return Err(ClusterError::IsMember { node: new.0 }),
            (false, _) => {
                let members = info.members.nodes;
                return Err(ClusterError::NotMember { node: old.0, members });
            }
        }
        let mut nodes = info.members.nodes.clone();
        nodes.retain(|node| *node != old.0);
        nodes.push(new.0);
        nodes.sort_unstable();
        changed_to(store, info, nodes)
    })
}

fn changed_to(
    store: &dyn MetaStore,
    mut info: ClusterInfo,
    nodes: Vec<u32>,
) -> Result<Change<ClusterInfo, MemberSet>, ClusterError> {
    if info.members.nodes == nodes {
        return Ok(Change::Keep(info.members));
    }
    let pending = info.recovery_sets().filter(|set| set.committed_in.is_none()).count();
    if pending >= PENDING_SETS_MAX {
        return Err(ClusterError::TooManyPending { pending });
    }
    let before = &info.members;
    if nodes.len() != before.nodes.len() {
        return Err(ClusterError::SizeChanged { from: before.nodes.len(), to: nodes.len() });
    }
    let is_kept = |id: &&u32| nodes.contains(id) && !info.copying.contains(id);
    let kept = before.nodes.iter().filter(is_kept).count();
    let needed = blocking(nodes.len());
    if kept < needed {
        return Err(ClusterError::StateLost { kept, needed });
    }
    let added: Vec<u32> = nodes.iter().copied().filter(|id| !before.nodes.contains(id)).collect();
    for id in &added {
        if disks::find(store, NodeId(*id))?.is_some() {
            return Err(ClusterError::DiskKnown { node: *id });
        }
    }
    info.copying.retain(|id| nodes.contains(id));
    info.copying.extend(added);
    info.copying.sort_unstable();
    let version = info.members.version.saturating_add(1);
    let set = MemberSet { version, nodes, committed_in: None };
    info.older.push(std::mem::replace(&mut info.members, set.clone()));
    Ok(Change::Write(info, set))
}

/// Writes down that a member has copied all of the state. Saying it twice, or of a node that is no
/// member any more, changes nothing.
///
/// # Errors
/// When the store fails.
pub fn mark_copied(store: &dyn MetaStore, node: NodeId) -> Result<(), ClusterError> {
    change_cluster(store, |mut info| {
        if !info.copying.contains(&node.0) {
            return Ok(Change::Keep(()));
        }
        info.copying.retain(|id| *id != node.0);
        Ok(Change::Write(info, ()))
    })
}

/// Writes down that the opening record of `epoch` is committed by a quorum of member set `version`,
/// and drops the sets before it: no recovery asks them again. Saying it twice changes nothing.
///
/// # Errors
/// [`ClusterError::MembersSuperseded`] when a later set was marked before, or there is no such set.
pub fn mark_committed(
    store: &dyn MetaStore,
    version: u64,
    epoch: Epoch,
) -> Result<ClusterInfo, ClusterError> {
    change_cluster(store, |mut info| {
        let current = info.members.version;
        let set = if version == current {
            Some(&mut info.members)
        } else {
            info.older.iter_mut().find(|set| set.version == version)
        };
        let Some(set) = set else {
            return Err(ClusterError::MembersSuperseded { version, current });
        };
        if set.committed_in.is_some_and(|known| known >= epoch.0) {
            return Ok(Change::Keep(info));
        }
        set.committed_in = Some(epoch.0);
        info.older.retain(|set| set.version >= version);
        Ok(Change::Write(info.clone(), info))
    })
}

fn change_cluster<R>(
    store: &dyn MetaStore,
    mut decide: impl FnMut(ClusterInfo) -> Result<Change<ClusterInfo, R>, ClusterError>,
) -> Result<R, ClusterError> {
    typed::change(store, KEY, |current: Option<ClusterInfo>| {
        decide(current.ok_or(ClusterError::NoCluster)?.check()?)
    })
}

fn sorted(members: &[NodeId]) -> Result<Vec<u32>, ClusterError> {
    let mut nodes: Vec<u32> = members.iter().map(|id| id.0).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if members_are_valid(&nodes) && nodes.len() == members.len() {
        Ok(nodes)
    } else {
        Err(ClusterError::BadMembers { given: nodes.len(), max: MEMBERS_MAX })
    }
}

/// The least number of members of which at least one is in every quorum.
#[must_use]
pub const fn blocking(members: usize) -> usize {
    members - members / 2
}

fn members_are_valid(nodes: &[u32]) -> bool {
    (1..=MEMBERS_MAX).contains(&nodes.len()) && nodes.is_sorted_by(|a, b| a < b)
}

/// JSON numbers are doubles to many readers; an id is text.
mod hex128 {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(id: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{id:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        u128::from_str_radix(&String::deserialize(from)?, 16).map_err(D::Error::custom)
    }
}
