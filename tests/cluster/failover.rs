//! The sequencer dies, or is stopped and goes on, while requests flow.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use halfmoon_meta::{FileStore, MetaStore, cluster, nodes};
use halfmoon_wire::{NodeId, Role};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Dev, HALFMOON, Scratch, Shared, block_on, halfmoon};

/// Requests on their way at once.
const CLIENTS: usize = 4;
/// Requests of each client that are to be answered in each stage.
const PER_STAGE: u64 = 15;

fn store(data: &Path) -> FileStore {
    FileStore::open(data.join("meta")).unwrap()
}

/// The sequencer in charge, and the last epoch.
fn in_charge(data: &Path) -> (NodeId, u64) {
    in_charge_of(&store(data))
}

pub fn in_charge_of(store: &dyn MetaStore) -> (NodeId, u64) {
    let holder = cluster::read(store).unwrap().holder.unwrap();
    (holder.node(), holder.epoch().0)
}

fn process(data: &Path, node: NodeId) -> Pid {
    process_of(&store(data), node)
}

pub fn process_of(store: &dyn MetaStore, node: NodeId) -> Pid {
    let entry = nodes::find(store, Role::Sequencer, node).unwrap().unwrap();
    Pid::from_raw(i32::try_from(entry.pid).unwrap()).unwrap()
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(tokio::time::Instant::now() < end, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends keyed requests until as many as there should be are acknowledged.
pub async fn load(dev: &Dev, stage: &str, acknowledged: &Shared<BTreeSet<String>>) {
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        clients.push(async move {
            for number in 0..PER_STAGE {
                let id = format!("{stage}-{client}-{number}");
                while !matches!(
                    dev.invoke("order", &json!({ "id": id }), Some(&id)).await,
                    Ok(reply) if reply.status == 200
                ) {}
                acknowledged.lock().unwrap().insert(id);
            }
        });
    }
    let [a, b, c, d]: [_; CLIENTS] = clients.try_into().unwrap_or_else(|_| unreachable!());
    tokio::join!(a, b, c, d);
}

/// Every acknowledged order was processed, and once.
pub async fn check(dev: &Dev, acknowledged: &Shared<BTreeSet<String>>) {
    let ids: Vec<String> = acknowledged.lock().unwrap().iter().cloned().collect();
    for ids in ids.chunks(100) {
        let found: Value = dev.result("inspect", &json!({ "ids": ids }), None).await;
        for id in ids {
            assert_eq!(found["orders"][id], json!(1), "order {id}");
        }
    }
}

/// The sequencers as an engine knows them: node, role, whether there is a lane.
fn sequencers(dev: &Dev) -> BTreeSet<(u64, String, bool)> {
    let output = halfmoon(&["status", "--server", &dev.server(), "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = status["sequencers"].as_array().unwrap().clone();
    let show = |one: Value| {
        let role = one["role"].as_str().unwrap().to_owned();
        (one["node"].as_u64().unwrap(), role, one["connected"] == true)
    };
    all.into_iter().map(show).collect()
}

#[test]
fn a_sequencer_that_is_killed_is_succeeded_and_comes_back_to_stand_by() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start(&data);
    dev.deploy(HALFMOON);
    let acknowledged: Shared<BTreeSet<String>> = Arc::new(Mutex::new(BTreeSet::new()));
    block_on(async {
        for round in 0..4 {
            let (first, epoch) = in_charge(&data);
            let all_up = || {
                let known = sequencers(&dev);
                known.len() == 2 && known.iter().all(|(_, _, connected)| *connected)
            };
            until("one that stands by", all_up).await;
            let killed = async {
                tokio::time::sleep(Duration::from_millis(20 + round * 37)).await;
                kill_process(process(&data, first), Signal::KILL).unwrap();
            };
            let stage = round.to_string();
            tokio::join!(load(&dev, &stage, &acknowledged), killed);
            until("another in charge", || in_charge(&data).1 > epoch).await;
            assert_ne!(in_charge(&data).0, first, "the one that stood by");
        }
        check(&dev, &acknowledged).await;
    });
    assert!(dev.stop());
}

#[test]
fn a_sequencer_that_goes_on_after_it_was_succeeded_does_no_harm() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start(&data);
    dev.deploy(HALFMOON);
    let acknowledged: Shared<BTreeSet<String>> = Arc::new(Mutex::new(BTreeSet::new()));
    block_on(async {
        load(&dev, "before", &acknowledged).await;
        let (first, epoch) = in_charge(&data);
        let zombie = process(&data, first);
        kill_process(zombie, Signal::STOP).unwrap();
        load(&dev, "stopped", &acknowledged).await;
        let (second, next) = in_charge(&data);
        assert_ne!((second, next), (first, epoch));
        // It goes on with all that engines had sent to it.
        kill_process(zombie, Signal::CONT).unwrap();
        load(&dev, "resumed", &acknowledged).await;
        check(&dev, &acknowledged).await;
        let expected = BTreeSet::from([
            (u64::from(first.0), "standby".to_owned(), true),
            (u64::from(second.0), "active".to_owned(), true),
        ]);
        until("the old one stands by", || sequencers(&dev) == expected).await;
        assert_eq!(in_charge(&data), (second, next), "and takes nothing back");
    });
    assert!(dev.stop());
}
