//! Incarnations and addresses of nodes.

use std::net::SocketAddr;

use halfmoon_wire::{Incarnation, NodeId, Role};
use serde::{Deserialize, Serialize};

use crate::typed::{self, Change};
use crate::{CasError, ClusterError, MetaStore};

/// What carries the lanes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TransportKind {
    /// Memory of one process.
    Local,
    /// TCP on the reactor.
    Tcp,
}

/// Where a node listens.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    #[serde(with = "role_name")]
    role: Role,
    node: u32,
    incarnation: u64,
    /// Where lanes to it are dialled.
    pub address: SocketAddr,
    /// Where it answers requests from outside over HTTP; engines only.
    pub gateway: Option<SocketAddr>,
    /// What carries its lanes.
    pub transport: TransportKind,
    /// Process id on its host, for a person who looks for it.
    pub pid: u32,
}

impl NodeEntry {
    /// This process, listening at `address` over TCP, without a gateway.
    #[must_use]
    pub fn new(role: Role, node: NodeId, incarnation: Incarnation, address: SocketAddr) -> Self {
        Self {
            role,
            node: node.0,
            incarnation: incarnation.0,
            address,
            gateway: None,
            transport: TransportKind::Tcp,
            pid: std::process::id(),
        }
    }

    /// What the node does.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Who it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    /// Which life of it; for a sequencer its epoch.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counter {
    incarnation: u64,
    pid: u32,
}

/// Takes the next incarnation of `node`: above every one taken before, and the caller's alone. One
/// whose outcome was unknown is skipped.
///
/// # Errors
/// When the store fails.
pub fn next_incarnation(store: &dyn MetaStore, node: NodeId) -> Result<Incarnation, ClusterError> {
    let key = format!("incarnations/{node}");
    typed::change(store, &key, |current: Option<Counter>| {
        let incarnation = current.map_or(0, |counter| counter.incarnation).saturating_add(1);
        let next = Counter { incarnation, pid: std::process::id() };
        Ok(Change::Write(next, Incarnation(incarnation)))
    })
}

/// Tells the others where a node listens, in place of what an earlier incarnation of it told.
///
/// # Errors
/// [`ClusterError::NodeSuperseded`] when a later incarnation is there: the caller is a leftover and
/// should exit.
pub fn publish(store: &dyn MetaStore, entry: &NodeEntry) -> Result<(), ClusterError> {
    let key = key(entry.role, entry.node());
    typed::change(store, &key, |current: Option<NodeEntry>| match current {
        Some(found) if found.incarnation > entry.incarnation => Err(ClusterError::NodeSuperseded {
            key: key.clone(),
            current: found.incarnation,
            own: entry.incarnation,
        }),
        Some(found) if found == *entry => Ok(Change::Keep(())),
        Some(_) | None => Ok(Change::Write(entry.clone(), ())),
    })
}

/// Takes a node's address back at its orderly end. What another life of it published stays.
///
/// # Errors
/// When the store fails.
pub fn withdraw(store: &dyn MetaStore, entry: &NodeEntry) -> Result<(), ClusterError> {
    let key = key(entry.role, entry.node());
    let Some(found) = store.get(&key)? else { return Ok(()) };
    if typed::decode::<NodeEntry>(&key, &found)? != *entry {
        return Ok(());
    }
    match store.delete(&key, found.revision) {
        // Changed since: by a later incarnation, as this one is here.
        Ok(()) | Err(CasError::Conflict { .. }) => Ok(()),
        Err(CasError::Failed(error)) => Err(error.into()),
        Err(CasError::Unknown { source }) => Err(ClusterError::Unknown(source)),
    }
}

/// Where a node listens; `None` when it has published nothing.
///
/// # Errors
/// When the store fails.
pub fn find(
    store: &dyn MetaStore,
    role: Role,
    node: NodeId,
) -> Result<Option<NodeEntry>, ClusterError> {
    Ok(typed::read(store, &key(role, node))?)
}

/// All nodes that have published themselves, by role and then by id.
///
/// # Errors
/// When the store fails or an entry is damaged.
pub fn list(store: &dyn MetaStore) -> Result<Vec<NodeEntry>, ClusterError> {
    let mut nodes = Vec::new();
    for (key, entry) in store.list("nodes/")? {
        nodes.push(typed::decode::<NodeEntry>(&key, &entry)?);
    }
    nodes.sort_by_key(|entry| (entry.role, entry.node));
    Ok(nodes)
}

fn key(role: Role, node: NodeId) -> String {
    format!("nodes/{}-{node}", role_name::of(role))
}

mod role_name {
    use halfmoon_wire::Role;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    const ALL: [Role; 4] = [Role::Sequencer, Role::Storage, Role::Engine, Role::Observer];

    pub(super) fn of(role: Role) -> &'static str {
        match role {
            Role::Sequencer => "sequencer",
            Role::Storage => "storage",
            Role::Engine => "engine",
            Role::Observer => "observer",
        }
    }

    pub(super) fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(of(*role))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
        let name = String::deserialize(from)?;
        let found = ALL.into_iter().find(|role| of(*role) == name);
        found.ok_or_else(|| D::Error::custom(format_args!("{name:?} is not a role")))
    }
}
