//! Documents about an engine.

use halfmoon_client::{PeerLane, SequencerLane};
use halfmoon_protocol::{Order, Protocol};
use halfmoon_transport::{Share, Traffic};
use halfmoon_wire::Role;
use serde_json::{Value, json};

use crate::command::Document;
use crate::hot::Hot;

/// Roots that are listed; there may be more.
const LISTED_MAX: usize = 100;

/// What does not change while an engine runs.
pub(crate) struct Constants {
    pub(crate) durability: &'static str,
    pub(crate) backend: String,
}

/// What goes over the network.
pub(crate) struct Network {
    pub(crate) traffic: Traffic,
    pub(crate) lanes: Vec<PeerLane>,
}

pub(crate) fn show(hot: &Hot, what: Document, constants: &Constants, network: &Network) -> Value {
    match what {
        Document::Functions => functions(hot),
        Document::Tables => tables(hot),
        Document::Engine => engine(hot, constants, network),
    }
}

fn share(share: Share) -> Value {
    json!({ "lanes": share.lanes, "bytes": share.bytes })
}

/// A role, as commands and metrics name it.
pub(crate) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Sequencer => "sequencer",
        Role::Storage => "storage",
        Role::Engine => "engine",
        Role::Observer => "observer",
    }
}

/// A lane, with what it goes over, and why not over RDMA.
fn lane(lane: &PeerLane) -> Option<Value> {
    let carrier = lane.carrier?;
    Some(json!({
        "role": role_name(lane.role),
        "node": lane.node.0,
        "transport": carrier.name(),
        "why": carrier.instead().map(|why| why.to_string()),
    }))
}

fn functions(hot: &Hot) -> Value {
    let registry = hot.registry.borrow();
    let functions: Vec<Value> = registry
        .functions()
        .map(|function| {
            json!({
                "name": function.name.to_string(),
                "version": function.version,
                "read_only": function.spec.read_only,
                "timeout_ms": function.spec.timeout_ms,
                "max_attempts": function.spec.max_attempts,
                "concurrency": function.spec.concurrency,
            })
        })
        .collect();
    json!({ "functions": functions })
}

fn tables(hot: &Hot) -> Value {
    let registry = hot.registry.borrow();
    let tables: Vec<Value> = registry
        .tables()
        .map(|table| {
            let order = match table.order {
                Order::Sequential => "sequential",
                Order::Relaxed => "relaxed",
            };
            json!({
                "name": table.name,
                "protocol": protocol(table.effective()),
                "order": order,
                "transactional": table.transactional,
                "pinned": table.transactional,
            })
        })
        .collect();
    json!({ "tables": tables })
}

const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Auto => "auto",
        Protocol::HalfmoonRead => "halfmoon-read",
        Protocol::HalfmoonWrite => "halfmoon-write",
        Protocol::Boki => "boki",
        Protocol::Unlogged => "unlogged",
    }
}

/// The sequencers that this engine knows, and whether there are lanes to them.
fn sequencers(hot: &Hot) -> Vec<Value> {
    let show = |lane: &SequencerLane| {
        json!({
            "node": lane.node.0,
            "role": if lane.is_in_charge { "active" } else { "standby" },
            "connected": lane.is_up,
        })
    };
    hot.log.sequencers().iter().map(show).collect()
}

fn engine(hot: &Hot, constants: &Constants, network: &Network) -> Value {
    let roots = hot.roots.borrow();
    let listed: Vec<Value> = roots
        .values()
        .take(LISTED_MAX)
        .map(|root| {
            let parked = root.parked.borrow();
            json!({
                "id": root.id.to_string(),
                "function": *root.function.borrow(),
                "attempts": root.attempts.get(),
                "cursor": root.floor.get().0,
                "parked": *parked,
                "trouble": root.trouble(hot.executor.now_ns()),
            })
        })
        .collect();
    let workers: Vec<Value> = hot
        .workers
        .show()
        .into_iter()
        .filter_map(|worker| {
            let running = worker.running.as_ref();
            Some(json!({
                "pid": worker.pid?,
                "version": worker.version,
                "function": running.map(|running| running.function.to_string()),
                "instance": running.map(|running| running.instance.to_string()),
            }))
        })
        .collect();
    json!({
        "node": hot.me.engine.0,
        "incarnation": hot.me.incarnation.0,
        "epoch": hot.log.epoch().0,
        "open": hot.log.is_open(),
        "sequencers": sequencers(hot),
        "applied": hot.log.applied().0,
        "committed": hot.log.committed().0,
        "safe_point": hot.log.safe_point().0,
        "unanswered_appends": hot.log.unanswered(),
        "unfinished_roots": roots.len(),
        "unfinished_roots_of_cluster": hot.intents.borrow().len(),
        "takeovers": hot.takeovers.borrow().show(),
        "roots": listed,
        "workers": workers,
        "transport": {
            "tcp": share(network.traffic.tcp),
            "rdma": share(network.traffic.rdma),
            "lanes": network.lanes.iter().filter_map(lane).collect::<Vec<_>>(),
        },
        "durability": constants.durability,
        "backend": constants.backend,
        "stopping": hot.stopping.get(),
    })
}
