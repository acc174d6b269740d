//! Who is there: what the metadata store says of each node, and whether the node answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use halfmoon_bench::http::{Call, Client};
use halfmoon_meta::{ClusterInfo, MetaStore, NodeEntry, cluster, disks, nodes};
use halfmoon_tcp::greet::{Heard, Next, greet};
use halfmoon_wire::{Hello, Incarnation, Message, NodeId, NodeStatus, Role};
use hyper::Method;
use serde::Serialize;

/// How long a node may take to answer: it is a matter of two turns of its loop.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Under which number nodes are greeted: that of no node.
const GREETER: NodeId = NodeId(u32::MAX);

/// What a node is to the cluster, and whether it is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// It answers, and is all that it should be.
    Up,
    /// It does not answer.
    Down,
    /// A member that has not copied all of the state yet.
    Copying,
    /// No member, and ready to be one.
    Spare,
    /// No member any more; recoveries still ask it.
    Leaving,
    /// It was replaced. What it holds is of no use.
    Left,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) role: Role,
    pub(crate) node: NodeId,
    /// What it has published, if that is still there.
    pub(crate) entry: Option<NodeEntry>,
    pub(crate) state: State,
    pub(crate) answers: bool,
    /// How a storage node says that it is.
    pub(crate) status: Option<NodeStatus>,
}

/// The cluster and its nodes, by role and number.
pub(crate) struct Census {
    pub(crate) info: ClusterInfo,
    pub(crate) seen: Vec<Seen>,
}

/// Looks at all nodes at once; it takes as long as the slowest, at most [`ANSWER_WITHIN`].
pub(crate) fn take(meta: &Arc<dyn MetaStore>) -> anyhow::Result<Census> {
    let info = cluster::read(&**meta)?;
    let entries = nodes::list(&**meta)?;
    let used: BTreeSet<NodeId> = disks::list(&**meta)?.into_iter().collect();
    let statuses = greeted(info.id(), &entries)?;
    let engines = healthy(&entries)?;
    let mut all: BTreeMap<(Role, NodeId), Option<NodeEntry>> = BTreeMap::new();
    let members = info.recovery_sets().flat_map(halfmoon_meta::MemberSet::nodes);
    all.extend(members.chain(used.iter().copied()).map(|node| ((Role::Storage, node), None)));
    all.extend(entries.into_iter().map(|entry| ((entry.role(), entry.node()), Some(entry))));
    let see = |((role, node), entry): ((Role, NodeId), Option<NodeEntry>)| {
        let greeting = statuses.get(&(role, node)).copied();
        let answers = greeting.is_some() || engines.contains(&(role, node));
        let status = greeting.flatten();
        let state = match role {
            Role::Storage => storage_state(&info, node, answers, used.contains(&node)),
            Role::Sequencer | Role::Engine | Role::Observer if answers => State::Up,
            Role::Sequencer | Role::Engine | Role::Observer => State::Down,
        };
        Seen { role, node, entry, state, answers, status }
    };
    let seen = all.into_iter().map(see).collect();
    Ok(Census { info, seen })
}

/// How one storage node is; `None`: it has published no address, or does not answer.
pub(crate) fn storage_status(
    meta: &dyn MetaStore,
    node: NodeId,
) -> anyhow::Result<Option<NodeStatus>> {
    let Some(entry) = nodes::find(meta, Role::Storage, node)? else { return Ok(None) };
    let answers = greeted(cluster::read(meta)?.id(), &[entry])?;
    Ok(answers.into_values().next().flatten())
}

fn storage_state(info: &ClusterInfo, node: NodeId, answers: bool, used: bool) -> State {
    let is_member = info.members.nodes().contains(&node);
    match (is_member, info.has_part(node), answers) {
        (true, _, true) if info.has_state(node) => State::Up,
        (true, _, true) => State::Copying,
        (false, true, _) => State::Leaving,
        (false, false, _) if used => State::Left,
        (false, false, true) => State::Spare,
        (true, _, false) | (false, false, false) => State::Down,
    }
}

/// The sequencers and storage nodes that answer; storage nodes also say how they are.
fn greeted(
    cluster: u128,
    entries: &[NodeEntry],
) -> anyhow::Result<BTreeMap<(Role, NodeId), Option<NodeStatus>>> {
    let peers: Vec<&NodeEntry> =
        entries.iter().filter(|entry| entry.role() != Role::Engine).collect();
    let addresses: Vec<String> = peers.iter().map(|entry| entry.address.to_string()).collect();
    let hello = Hello { cluster, role: Role::Observer, node: GREETER, incarnation: Incarnation(0) };
    let mut found = BTreeMap::new();
    greet(&addresses, &hello.to_bytes(), ANSWER_WITHIN, |index, heard| {
        let name = (peers[index].role(), peers[index].node());
        match heard {
            // Another node may listen there by now.
            Heard::Hello(hello) => {
                let is_it = Hello::parse(hello).is_ok_and(|hello| {
                    (hello.cluster, hello.role, hello.node) == (cluster, name.0, name.1)
                });
                if is_it && name.0 == Role::Storage {
                    return Next::Ask(Message::AskStatus.to_bytes());
                }
                if is_it {
                    found.insert(name, None);
                }
                Next::Done
            }
            Heard::Message(bytes) => {
                let Ok(Message::Status(status)) = Message::parse(bytes) else { return Next::Wait };
                found.insert(name, Some(status));
                Next::Done
            }
        }
    })?;
    Ok(found)
}

/// The engines that answer.
fn healthy(entries: &[NodeEntry]) -> anyhow::Result<BTreeSet<(Role, NodeId)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut asked = tokio::task::JoinSet::new();
        for entry in entries {
            if let Some(gateway) = entry.gateway {
                let name = (entry.role(), entry.node());
                asked.spawn(async move { answers(gateway).await.then_some(name) });
            }
        }
        Ok(asked.join_all().await.into_iter().flatten().collect())
    })
}

/// Whether an engine says anything: also one that has no log at the moment is there.
async fn answers(gateway: SocketAddr) -> bool {
    let call = Call {
        method: Method::GET,
        path: "/healthz",
        headers: &[],
        body: Bytes::new(),
        timeout: ANSWER_WITHIN,
    };
    Client::new(gateway).send(call).await.is_ok()
}
