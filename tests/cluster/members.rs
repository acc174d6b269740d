//! Storage nodes are lost and replaced while requests flow.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use halfmoon_meta::{ClusterInfo, FileStore, cluster, nodes};
use halfmoon_wire::{NodeId, Role};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::failover::{check, load, until};
use crate::support::{Dev, HALFMOON, Scratch, Shared, block_on, halfmoon, text};

fn info(data: &Path) -> ClusterInfo {
    cluster::read(&FileStore::open(data.join("meta")).unwrap()).unwrap()
}

fn members(data: &Path) -> Vec<u32> {
    info(data).members.nodes().iter().map(|node| node.0).collect()
}

/// SIGKILL to a storage node whose disk is gone with it: it is started again in vain.
fn lose(data: &Path, node: u32) {
    let store = FileStore::open(data.join("meta")).unwrap();
    let entry = nodes::find(&store, Role::Storage, NodeId(node)).unwrap().unwrap();
    let directory = data.join(format!("storage-{node}"));
    std::fs::rename(&directory, directory.with_extension("lost")).unwrap();
    kill_process(Pid::from_raw(i32::try_from(entry.pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

/// `halfmoon node` with these arguments: whether it succeeded, and what it printed.
fn node(data: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let place = ["--data-dir", data.to_str().unwrap()];
    let output = halfmoon(&[&["node"], arguments, &place].concat());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// The state of each storage node, as `halfmoon node list` tells it.
fn states(data: &Path) -> BTreeSet<(u64, String)> {
    let (code, listed) = node(data, &["list", "--json"]);
    assert_eq!(code, Some(0), "{listed}");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let all = listed["nodes"].as_array().unwrap().clone();
    let storage = all.into_iter().filter(|one| one["role"] == "storage");
    let state = |one: &Value| one["state"].as_str().unwrap().to_owned();
    storage.map(|one| (one["node"].as_u64().unwrap(), state(&one))).collect()
}

fn is(state: &str) -> impl Fn(&[u64]) -> BTreeSet<(u64, String)> {
    let state = state.to_owned();
    move |nodes| nodes.iter().map(|node| (*node, state.clone())).collect()
}

#[test]
fn a_storage_node_that_lost_its_disk_is_replaced_under_load() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start_with(&data, &["--spares", "1"]);
    dev.deploy(HALFMOON);
    let acknowledged: Shared<BTreeSet<String>> = Arc::new(Mutex::new(BTreeSet::new()));
    let mut both = is("up")(&[1, 2, 3]);
    both.extend(is("spare")(&[4]));
    block_on(async {
        until("a spare", || states(&data) == both).await;
        load(&dev, "before", &acknowledged).await;
        lose(&data, 2);
        load(&dev, "without", &acknowledged).await;
        let (code, said) = node(&data, &["replace", "2", "4", "--no-wait"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("proposed: members 1, 3, 4"), "{said}");
        load(&dev, "replaced", &acknowledged).await;
        until("in effect", || info(&data).members.committed_in().is_some()).await;
        // Said again, it waits for the same change.
        let (code, said) = node(&data, &["replace", "2", "4"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("4 is whole, in the place of 2"), "{said}");
        load(&dev, "whole", &acknowledged).await;
        check(&dev, &acknowledged).await;
        let mut then = is("up")(&[1, 3, 4]);
        then.extend(is("left")(&[2]));
        then.extend(is("spare")(&[5]));
        until("a new spare", || states(&data) == then).await;
    });
    dev.until_said("storage 2 was replaced and ends");
    assert!(dev.stop());
    let output = halfmoon(&["verify", "--data-dir", data.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    // Started again it runs the members, and not who was one.
    std::fs::remove_dir_all(data.join("storage-2")).unwrap();
    let dev = Dev::start(&data);
    block_on(check(&dev, &acknowledged));
    assert_eq!(states(&data).iter().filter(|(_, state)| state == "up").count(), 3);
    assert!(!data.join("storage-2").exists(), "nobody has run it");
    assert!(dev.stop());
}

#[test]
fn what_cannot_be_replaced_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start_with(&data, &["--engines", "1", "--spares", "2", "--segment-mib", "1"]);
    let ready = is("spare")(&[4, 5]);
    block_on(until("spares", || states(&data).is_superset(&ready)));
    for (arguments, parts) in [
        (["7", "4"], &["storage node 7 is no member", "the members are 1, 2, 3"][..]),
        (["2", "3"], &["storage node 3 is a member already"]),
        (["2", "2"], &["storage node 2 is a member already"]),
        (["2", "9"], &["storage node 9 does not run", "halfmoon run --role storage --node 9"]),
    ] {
        let (code, said) = node(&data, &[&["replace"][..], &arguments].concat());
        assert_eq!(code, Some(1), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part:?} in {said}");
        }
    }
    assert_eq!((members(&data), info(&data).members.version), (vec![1, 2, 3], 1));
    // One at a time: 4 does not copy anything while it is stopped.
    let store = FileStore::open(data.join("meta")).unwrap();
    let spare = nodes::find(&store, Role::Storage, NodeId(4)).unwrap().unwrap();
    kill_process(Pid::from_raw(i32::try_from(spare.pid).unwrap()).unwrap(), Signal::STOP).unwrap();
    let (code, said) = node(&data, &["replace", "2", "4"]);
    assert_eq!(code, Some(1), "one that hangs does not run: {said}");
    cluster::replace_member(&store, NodeId(2), NodeId(4)).unwrap();
    let (code, said) = node(&data, &["replace", "3", "5", "--json"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("replace one member at a time"), "{said}");
    assert_eq!(members(&data), [1, 3, 4]);
    // Who waits for it may leave; it goes on.
    let waiting = Command::new(HALFMOON)
        .args(["node", "replace", "2", "4", "--data-dir", data.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut waiting = Waiting(waiting);
    let mut lines = BufReader::new(waiting.0.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("proposed") || first.contains("4 copies the state"), "{first}");
    let pid = Pid::from_raw(i32::try_from(waiting.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert!(lines.any(|line| line.unwrap().contains("interrupted: the change goes on")));
    assert_eq!(waiting.0.wait().unwrap().code(), Some(75));
    assert_eq!(members(&data), [1, 3, 4]);
    drop(dev);
}

/// A command that does not outlive its test.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_storage_node_that_is_gone_for_long_is_replaced_without_anybody_asking() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start_with(&data, &["--spares", "1", "--replace-after-s", "1"]);
    dev.deploy(HALFMOON);
    let acknowledged: Shared<BTreeSet<String>> = Arc::new(Mutex::new(BTreeSet::new()));
    block_on(async {
        load(&dev, "before", &acknowledged).await;
        lose(&data, 3);
        until("a change", || members(&data) == [1, 2, 4]).await;
        until("in effect", || info(&data).members.committed_in().is_some()).await;
        load(&dev, "after", &acknowledged).await;
        check(&dev, &acknowledged).await;
    });
    let said = dev.until_said("a spare takes its place");
    assert!(said.contains("old=3") && said.contains("new=4"), "{said}");
    assert!(dev.stop());
}

#[test]
fn every_node_is_listed_with_how_it_is() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start_with(&data, &["--engines", "1", "--segment-mib", "1"]);
    let stands_by = || node(&data, &["list"]).1.contains("up, stands by");
    block_on(until("one that stands by", stands_by));
    let (code, listed) = node(&data, &["list"]);
    assert_eq!(code, Some(0), "{listed}");
    assert!(listed.contains("members 1, 2, 3 (version 1)"), "{listed}");
    assert!(listed.contains("up, in charge"), "{listed}");
    assert_eq!(listed.lines().filter(|line| line.contains(" up")).count(), 6, "{listed}");
    let (_, listed) = node(&data, &["list", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["members"], json!([1, 2, 3]));
    let storage = &listed["nodes"].as_array().unwrap().iter().find(|one| one["node"] == 2).unwrap();
    assert_eq!(storage["epoch_promised"], listed["epoch"]);
    assert!(storage["watermark"].as_u64().unwrap() > 0, "{storage}");
    // One that hangs is not there, though its system accepts for it.
    let pid = Pid::from_raw(i32::try_from(storage["pid"].as_u64().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    assert!(states(&data).is_superset(&is("down")(&[2])));
    kill_process(pid, Signal::CONT).unwrap();
    assert!(states(&data).is_superset(&is("up")(&[1, 2, 3])));
    assert!(dev.stop());
    // Nobody is there, and that can be told.
    assert!(states(&data).is_superset(&is("down")(&[1, 2, 3])));
}
