//! `halfmoon node`: who is there, and replacing a storage node.

mod replace;

use std::process::ExitCode;
use std::sync::Arc;

use halfmoon_meta::{ClusterInfo, MetaStore};
use halfmoon_wire::{NodeId, Role};
use serde_json::{Value, json};

use crate::census::{self, Census, Seen, State};
use crate::cli::{Node, NodeList, Whose};
use crate::commands::show::print;
use crate::layout::Layout;

pub(crate) fn run(options: &Node) -> anyhow::Result<ExitCode> {
    match options {
        Node::List(options) => list(options),
        Node::Replace(options) => replace::run(options),
    }
}

fn open(whose: &Whose) -> anyhow::Result<Arc<dyn MetaStore>> {
    match &whose.meta {
        Some(address) => Ok(halfmoon_meta::open(address)?),
        None => Layout::new(whose.data_dir.clone())?.open(),
    }
}

fn list(options: &NodeList) -> anyhow::Result<ExitCode> {
    let census = census::take(&open(&options.whose)?)?;
    if options.json {
        print(&as_json(&census).to_string());
    } else {
        described(&census).iter().for_each(|line| print(line));
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(census: &Census) -> Value {
    let info = &census.info;
    let nodes: Vec<Value> = census.seen.iter().map(|seen| node_as_json(info, seen)).collect();
    json!({
        "cluster": format!("{:032x}", info.id()),
        "epoch": info.epoch().0,
        "in_charge": info.holder.as_ref().map(|holder| holder.node().0),
        "members": numbers(&info.members.nodes()),
        "members_version": info.members.version,
        "members_committed_in_epoch": info.members.committed_in().map(|epoch| epoch.0),
        "nodes": nodes,
    })
}

fn node_as_json(info: &ClusterInfo, seen: &Seen) -> Value {
    let entry = seen.entry.as_ref();
    let mut node = json!({
        "node": seen.node.0,
        "role": role_name(seen.role),
        "state": seen.state,
        "answers": seen.answers,
        "address": entry.map(|entry| entry.address.to_string()),
        "gateway": entry.and_then(|entry| entry.gateway).map(|gateway| gateway.to_string()),
        "incarnation": entry.map(|entry| entry.incarnation().0),
        "pid": entry.map(|entry| entry.pid),
    });
    match seen.role {
        Role::Storage => {
            let is_member = info.members.nodes().contains(&seen.node);
            node["member"] = json!(is_member);
            node["has_state"] = json!(is_member && info.has_state(seen.node));
            if let Some(status) = seen.status {
                node["epoch_promised"] = json!(status.promised.0);
                node["log_end"] = json!(status.end.0);
                node["watermark"] = json!(status.durable.0);
                node["watermark_epoch"] = json!(status.epoch.0);
                node["copied_bytes"] = json!(status.copied_bytes);
            }
        }
        Role::Sequencer => node["in_charge"] = json!(is_in_charge(info, seen.node)),
        Role::Engine | Role::Observer => {}
    }
    node
}

fn described(census: &Census) -> Vec<String> {
    let info = &census.info;
    let committed = match info.members.committed_in() {
        Some(_) => "",
        None => ", not in effect yet",
    };
    let members = joined(&info.members.nodes());
    let holder = info.holder.as_ref().map_or_else(
        || "no epoch yet".to_owned(),
        |holder| format!("epoch {}, of sequencer {}", holder.epoch(), holder.node()),
    );
    let mut lines = vec![
        format!("{holder}; members {members} (version {}{committed})", info.members.version),
        format!(
            "{:>5} {:<10} {:<26} {:<22} {:>8} {:>11} {:>6} {:>11} {:>11}",
            "NODE",
            "ROLE",
            "STATE",
            "ADDRESS",
            "PID",
            "INCARNATION",
            "EPOCH",
            "LOG END",
            "WATERMARK"
        ),
    ];
    lines.extend(census.seen.iter().map(|seen| line(info, seen)));
    lines
}

fn line(info: &ClusterInfo, seen: &Seen) -> String {
    let status = seen.status;
    let state = match (seen.state, seen.role) {
        (State::Copying, _) => {
            format!("copying, {} so far", bytes(status.map_or(0, |status| status.copied_bytes)))
        }
        (State::Down, Role::Storage) if !info.has_state(seen.node) => {
            "down, has not copied all".to_owned()
        }
        (State::Up, Role::Sequencer) if is_in_charge(info, seen.node) => "up, in charge".to_owned(),
        (State::Up, Role::Sequencer) => "up, stands by".to_owned(),
        (State::Leaving | State::Left, _) if seen.answers => {
            format!("{}, still runs", state_name(seen.state))
        }
        (state, _) => state_name(state).to_owned(),
    };
    let entry = seen.entry.as_ref();
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let address = entry.map(|entry| entry.gateway.unwrap_or(entry.address).to_string());
    format!(
        "{:>5} {:<10} {:<26} {:<22} {:>8} {:>11} {:>6} {:>11} {:>11}",
        seen.node.0,
        role_name(seen.role),
        state,
        text(address),
        text(entry.map(|entry| entry.pid.to_string())),
        text(entry.map(|entry| entry.incarnation().0.to_string())),
        text(status.map(|status| status.promised.0.to_string())),
        text(status.map(|status| status.end.0.to_string())),
        text(status.map(|status| status.durable.0.to_string())),
    )
    .trim_end()
    .to_owned()
}

const fn state_name(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::Down => "down",
        State::Copying => "copying",
        State::Spare => "spare",
        State::Leaving => "leaving",
        State::Left => "left",
    }
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Sequencer => "sequencer",
        Role::Storage => "storage",
        Role::Engine => "engine",
        Role::Observer => "observer",
    }
}

fn is_in_charge(info: &ClusterInfo, node: NodeId) -> bool {
    info.holder.as_ref().is_some_and(|holder| holder.node() == node)
}

fn numbers(nodes: &[NodeId]) -> Vec<u32> {
    nodes.iter().map(|node| node.0).collect()
}

fn joined(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Bytes, as a person reads them.
#[expect(clippy::cast_precision_loss, reason = "three digits of it are shown")]
fn bytes(count: u64) -> String {
    match count {
        0..10_240 => format!("{count} bytes"),
        10_240..10_485_760 => format!("{:.0} KiB", count as f64 / 1024.0),
        10_485_760..10_737_418_240 => format!("{:.0} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfmoon_meta::{Durability, FileStore, NodeEntry, cluster};
    use halfmoon_wire::{Epoch, Incarnation, NodeStatus, SeqNum};

    #[test]
    fn nodes_are_listed_for_a_person_and_for_a_program() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        cluster::create(&store, 7, Durability::Flush, &[1, 2, 3].map(NodeId)).unwrap();
        cluster::take_epoch(&store, NodeId(10), Epoch(0)).unwrap();
        cluster::replace_member(&store, NodeId(2), NodeId(4)).unwrap();
        let info = cluster::read(&store).unwrap();
        let of = |role, node, state| {
            let (node, address) = (NodeId(node), ([127, 0, 0, 1], 4000).into());
            let mut entry = NodeEntry::new(role, node, Incarnation(5), address);
            entry.pid = 77;
            let answers = state != State::Down;
            Seen { role, node, entry: Some(entry), state, answers, status: None }
        };
        let copied_bytes = 50 << 20;
        let status = NodeStatus {
            promised: Epoch(3),
            end: SeqNum(90),
            epoch: Epoch(3),
            durable: SeqNum(88),
            copied_bytes,
        };
        let census = Census {
            info,
            seen: vec![
                of(Role::Storage, 2, State::Leaving),
                Seen { status: Some(status), ..of(Role::Storage, 4, State::Copying) },
                Seen { entry: None, ..of(Role::Storage, 3, State::Down) },
                of(Role::Sequencer, 10, State::Up),
                of(Role::Sequencer, 11, State::Up),
            ],
        };
        let lines = described(&census);
        assert_eq!(
            lines[0],
            "epoch 1, of sequencer 10; members 1, 3, 4 (version 2, not in effect yet)"
        );
        let words = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(2), "2 storage leaving, still runs 127.0.0.1:4000 77 5 - - -");
        assert_eq!(words(3), "4 storage copying, 50 MiB so far 127.0.0.1:4000 77 5 3 90 88");
        assert_eq!(words(4), "3 storage down - - - - - -");
        assert_eq!(words(5), "10 sequencer up, in charge 127.0.0.1:4000 77 5 - - -");
        assert_eq!(words(6), "11 sequencer up, stands by 127.0.0.1:4000 77 5 - - -");
        let json = as_json(&census);
        assert_eq!(json["members"], json!([1, 3, 4]));
        assert_eq!(json["members_committed_in_epoch"], Value::Null);
        assert_eq!(json["nodes"][1]["copied_bytes"], json!(copied_bytes));
        assert_eq!(json["nodes"][1]["state"], "copying");
        assert_eq!(json["nodes"][1]["has_state"], false);
        assert_eq!(json["nodes"][0]["member"], false);
        assert_eq!(json["nodes"][3]["in_charge"], true);
    }
}
