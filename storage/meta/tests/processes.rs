//! Several processes on one store: this test binary starts itself again as the others.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use halfmoon_meta::{Durability, FileStore, cluster};
use halfmoon_wire::NodeId;

const DIRECTORY: &str = "HALFMOON_META_TEST_DIRECTORY";
const TIMES: &str = "HALFMOON_META_TEST_TIMES";

#[test]
#[ignore = "run by other tests, as another process"]
fn child_takes_epochs() {
    let directory = std::env::var(DIRECTORY).unwrap();
    let times = std::env::var(TIMES).unwrap();
    let store = FileStore::open(directory).unwrap();
    let node = NodeId(std::process::id());
    for _ in 0..times.parse::<u64>().unwrap() {
        println!("\nepoch {}", cluster::next_epoch(&store, node).unwrap().epoch());
    }
}

fn start(directory: &Path, times: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_takes_epochs", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(TIMES, times.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn epochs(child: &mut Child) -> impl Iterator<Item = u64> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.filter_map(|line| line.unwrap().strip_prefix("epoch ")?.parse().ok())
}

fn founded() -> (tempfile::TempDir, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    cluster::create(&store, 7, Durability::Flush, &[NodeId(1), NodeId(2), NodeId(3)]).unwrap();
    (directory, store)
}

#[test]
fn two_processes_never_take_the_same_epoch() {
    let (_directory, store) = founded();
    let mut children: Vec<Child> = (0..3).map(|_| start(store.directory(), 20)).collect();
    let mut seen = BTreeSet::new();
    for child in &mut children {
        let mut last = 0;
        for epoch in epochs(child) {
            assert!(epoch > last, "{epoch} after {last}");
            assert!(seen.insert(epoch), "epoch {epoch} was taken twice");
            last = epoch;
        }
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(seen, (1..=60).collect());
    assert_eq!(cluster::read(&store).unwrap().epoch().0, 60);
}

#[test]
fn a_process_killed_at_any_moment_harms_nobody_and_none_of_its_epochs_comes_again() {
    let (_directory, store) = founded();
    let mut last = 0;
    for round in 0..10 {
        let mut child = start(store.directory(), 1_000_000);
        // Killed after a different number of epochs each time, somewhere inside the next one.
        let mut taken = epochs(&mut child);
        for epoch in taken.by_ref().take(1 + round) {
            assert!(epoch > last, "{epoch} after {last}");
            last = epoch;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        last = taken.last().unwrap_or(last).max(last);
        let own = cluster::next_epoch(&store, NodeId(9)).unwrap().epoch().0;
        assert!(own > last, "{own} after {last}");
        last = own;
    }
}
