//! `halfmoon verify` on what a cluster left behind: sound, and damaged in every way that matters.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use halfmoon_meta::{FileStore, cluster, disks, nodes};
use halfmoon_wire::{NodeId, Role};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::failover::until;
use crate::support::{Dev, HALFMOON, Scratch, block_on, example, halfmoon, text};

/// A cluster that has done something of each kind, killed and started once in between.
fn used(data: &Path) {
    let dev = Dev::start(data);
    dev.deploy(HALFMOON);
    block_on(async {
        for number in 0..20 {
            let id = format!("verify-{number}");
            dev.result("order", &json!({ "id": id }), Some(&id)).await;
        }
    });
    dev.kill_everything();
    let dev = Dev::start(data);
    block_on(dev.result("order", &json!({ "id": "last" }), Some("last")));
    assert!(dev.stop());
}

fn verify(data: &Path) -> (bool, Value) {
    let output = halfmoon(&["verify", "--json", "--data-dir", data.to_str().unwrap()]);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.success(), report.unwrap_or_else(|_| json!(text(&output.stderr))))
}

fn segments(data: &Path, node: u32, log: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(data.join(format!("storage-{node}")).join(log)).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    files
}

/// Flips a bit in the header of the batch that lies at this block of a file.
fn flip(path: &Path, block: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (block * 4096 + 20, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn what_a_cluster_leaves_behind_is_sound_and_damage_is_found() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    used(&data);
    let (sound, report) = verify(&data);
    assert!(sound, "{report:#}");
    assert_eq!(report["flaws"], 0);
    assert_eq!(report["unfinished_roots"], 0, "{report:#}");
    for counted in ["records", "roots", "steps", "on_quorum"] {
        assert!(report[counted].as_u64().unwrap() >= 20, "{counted}: {report:#}");
    }
    assert!(report["epochs"].as_u64().unwrap() >= 2, "{report:#}");
    assert_eq!(report["state"]["nodes"], 3);
    assert_eq!(report["state"]["binaries"], 1);

    // A bit in the middle of what was flushed.
    flip(&segments(&data, 2, "log")[0], 2);
    let (sound, report) = verify(&data);
    assert!(!sound, "{report:#}");
    let told = report["told"].to_string();
    assert!(told.contains("damaged") && told.contains("storage-2"), "{told}");
    flip(&segments(&data, 2, "log")[0], 2);

    // Directories may be named, wherever they lie.
    let (one, kept) = (data.join("storage-1"), scratch.path("kept"));
    std::fs::rename(&one, &kept).unwrap();
    let output =
        halfmoon(&["verify", data.join("storage-2").to_str().unwrap(), kept.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    assert!(text(&output.stdout).ends_with("flaws 0\n"));
}

#[test]
fn what_a_member_that_has_not_copied_the_state_lacks_is_no_flaw() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start_with(&data, &["--engines", "1", "--segment-mib", "1"]);
    dev.deploy(&example("unruly"));
    let store = FileStore::open(data.join("meta")).unwrap();
    let pid = |node| {
        let entry = nodes::find(&store, Role::Storage, NodeId(node)).unwrap().unwrap();
        Pid::from_raw(i32::try_from(entry.pid).unwrap()).unwrap()
    };
    // What is written now is on 1 and 2 alone.
    kill_process(pid(3), Signal::STOP).unwrap();
    for _ in 0..3 {
        let output = halfmoon(&["invoke", "grow", "200000", "--server", &dev.server()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    dev.kill_everything();
    // 3 is given the log, and nobody gives it the state.
    let dev = Dev::start_with(&data, &["--engines", "1", "--segment-mib", "1"]);
    let have_the_log = || {
        let listed = halfmoon(&["node", "list", "--json", "--data-dir", data.to_str().unwrap()]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let all = listed["nodes"].as_array().unwrap();
        let ends: Vec<_> = all.iter().filter_map(|one| one["watermark"].as_u64()).collect();
        ends.len() == 3 && ends.iter().all(|end| *end > 0 && *end == ends[0])
    };
    block_on(until("the log on all", have_the_log));
    assert!(dev.stop());
    let (sound, report) = verify(&data);
    assert!(sound, "{report:#}");
    assert!(report["state"]["versions_named"].as_u64().unwrap() >= 3, "{report:#}");
    let set = cluster::replace_member(&store, NodeId(2), NodeId(4)).unwrap();
    let epoch = cluster::read(&store).unwrap().epoch();
    cluster::mark_committed(&store, set.version, epoch).unwrap();
    let meta = data.join("meta");
    let mut four = Command::new(HALFMOON)
        .args(["run", "--role", "storage", "--node", "4", "--segment-mib", "1", "--data-dir"])
        .arg(data.join("storage-4"))
        .args(["--until-stdin-ends", "--meta"])
        .arg(&meta)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    block_on(until("a member", || disks::find(&store, NodeId(4)).unwrap().is_some()));
    drop(four.stdin.take());
    assert!(four.wait().unwrap().success());
    let (sound, report) = verify(&data);
    assert!(sound, "1 has them, and 4 cannot have: {report:#}");
    assert!(report["notes"].to_string().contains("node 4 has not copied all"), "{report:#}");
    // Had it copied everything, they would be missing.
    let identity = data.join("storage-4/identity");
    let said = std::fs::read_to_string(&identity).unwrap();
    assert!(said.contains("whole no\n"), "{said}");
    std::fs::write(&identity, said.replace("whole no\n", "whole yes\n")).unwrap();
    let (sound, report) = verify(&data);
    assert!(!sound && report["told"].to_string().contains("which only 1 nodes have"), "{report:#}");
}

#[test]
fn a_cluster_that_runs_can_be_looked_at() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start(&data);
    dev.deploy(HALFMOON);
    block_on(dev.result("order", &json!({ "id": "one" }), Some("one")));
    let (sound, report) = verify(&data);
    assert!(sound, "{report:#}");
    assert!(report["records"].as_u64().unwrap() > 0);
    assert_eq!(report["state"], Value::Null, "its state has another user");
    assert!(report["notes"].to_string().contains("runs"));
    assert!(dev.stop());
}
