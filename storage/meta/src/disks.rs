//! Which disk each storage node has begun on.
//!
//! A node that has answered anybody is counted on: what it said it holds may be held by nobody else.
//! If it comes back with an empty directory it must not answer under the same name, as if it had
//! never held anything. Its directory cannot tell, so this does.

use halfmoon_wire::NodeId;
use serde::{Deserialize, Serialize};

use crate::typed::{self, Change};
use crate::{ClusterError, MetaError, MetaStore};

/// What a node's directory is known by: the name of its log, which was drawn at random.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    log: u64,
}

/// Writes down that a node serves from the directory whose log has this name. Saying it again changes
/// nothing.
///
/// # Errors
/// [`ClusterError::DiskReplaced`] when it has served from another one.
pub fn claim(store: &dyn MetaStore, node: NodeId, log: u64) -> Result<(), ClusterError> {
    typed::change(store, &key(node), |current: Option<Disk>| match current {
        Some(found) if found.log == log => Ok(Change::Keep(())),
        Some(_) => Err(ClusterError::DiskReplaced { node: node.0 }),
        None => Ok(Change::Write(Disk { log }, ())),
    })
}

/// The name of the log in the directory that a node has served from; `None` when it has never served.
///
/// # Errors
/// When the store fails.
pub fn find(store: &dyn MetaStore, node: NodeId) -> Result<Option<u64>, ClusterError> {
    let found: Option<Disk> = typed::read(store, &key(node))?;
    Ok(found.map(|disk| disk.log))
}

/// The nodes that have served from some directory, ascending.
///
/// # Errors
/// When the store fails, or a key is not one of a node.
pub fn list(store: &dyn MetaStore) -> Result<Vec<NodeId>, ClusterError> {
    let mut nodes = Vec::new();
    for (key, _) in store.list(PREFIX)? {
        let node = key.strip_prefix(PREFIX).and_then(|number| number.parse().ok());
        let why = || "it is not the number of a node".to_owned();
        nodes.push(NodeId(
            node.ok_or_else(|| MetaError::Corrupt { place: key.clone(), why: why() })?,
        ));
    }
    nodes.sort_unstable();
    Ok(nodes)
}

const PREFIX: &str = "disks/";

fn key(node: NodeId) -> String {
    format!("{PREFIX}{node}")
}
