//! Disks that are full, may not be written, or do not give back what was written.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use halfmoon_meta::{FileStore, nodes};
use halfmoon_wire::{NodeId, Role};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Dev, HALFMOON, Scratch, example, halfmoon, skip, text};

/// `halfmoon` in a mount namespace of its own, in which a line of shell was run; `None` where that is
/// not allowed. What was mounted goes with the process.
fn in_own_mounts(prepare: &str) -> Option<Command> {
    // As root, or as root of a user namespace.
    for own in [&["--mount"][..], &["--mount", "--map-root-user"]] {
        let mut unshare = Command::new("unshare");
        unshare.args(own).args(["sh", "-ec", "mount -t tmpfs none /mnt"]);
        if unshare.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            let mut command = Command::new("unshare");
            let script = format!("{prepare}\nexec \"$@\"");
            command.args(own).args(["sh", "-ec", &script, "sh", HALFMOON]);
            return Some(command);
        }
    }
    None
}

const NO_MOUNTS: &str =
    "no file system can be mounted here, neither as root nor in a user namespace";

fn count(dev: &Dev, expected: u64) {
    let output = halfmoon(&["invoke", "count", "calls", "--server", &dev.server()]);
    assert_eq!(text(&output.stdout), format!("{expected}\n"), "{}", text(&output.stderr));
}

/// Fills a file system to the last byte.
fn fill(file: &Path) {
    let (mut ballast, block) = (File::create(file).unwrap(), vec![1; 1 << 20]);
    let error = loop {
        if let Err(error) = ballast.write_all(&block) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

#[test]
fn a_full_disk_stops_its_node_with_what_to_do_and_the_cluster_goes_on() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let disk = data.join("storage-1");
    let prepare = format!("mkdir -p {0}; mount -t tmpfs -o size=256m none {0}", disk.display());
    let Some(command) = in_own_mounts(&prepare) else {
        return skip(
            "a_full_disk_stops_its_node_with_what_to_do_and_the_cluster_goes_on",
            NO_MOUNTS,
        );
    };
    let dev = Dev::start_by(command, &data, &["--segment-mib", "1"]);
    dev.deploy(&example("unruly"));
    count(&dev, 1);
    // As that process sees it.
    let disk = PathBuf::from(format!("/proc/{}/root", dev.pid().as_raw_nonzero()))
        .join(disk.strip_prefix("/").unwrap());
    let ballast = disk.join("ballast");
    fill(&ballast);
    let server = dev.server();
    for _ in 0..60 {
        let output = halfmoon(&["invoke", "grow", "200000", "--server", &server]);
        assert_eq!(text(&output.stdout), "200000\n", "{}", text(&output.stderr));
    }
    let said = dev.until_said("the disk is full");
    assert!(said.contains("make room and start the node again"), "{said}");
    assert!(said.contains("storage-1"), "{said}");
    count(&dev, 2);
    // With room it comes back, and does its part.
    std::fs::remove_file(&ballast).unwrap();
    let meta = FileStore::open(data.join("meta")).unwrap();
    let other = nodes::find(&meta, Role::Storage, NodeId(2)).unwrap().unwrap();
    let other = Pid::from_raw(i32::try_from(other.pid).unwrap()).unwrap();
    kill_process(other, Signal::STOP).unwrap();
    count(&dev, 3);
    kill_process(other, Signal::CONT).unwrap();
    assert!(dev.stop());
}

#[test]
fn a_data_directory_that_may_not_be_written_is_named() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let prepare = format!("mkdir {0}; mount -t tmpfs -o ro none {0}", data.display());
    let Some(mut command) = in_own_mounts(&prepare) else {
        return skip("a_data_directory_that_may_not_be_written_is_named", NO_MOUNTS);
    };
    let output = command.args(["dev", "--port", "0", "--data-dir"]).arg(&data).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let expected = [data.to_str().unwrap(), "Read-only", "--data-dir"];
    assert!(expected.iter().all(|part| said.contains(part)), "{said}");
}

#[test]
fn a_damaged_segment_stops_its_node_with_what_to_do_and_the_cluster_goes_on() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start_with(&data, &["--segment-mib", "1"]);
    dev.deploy(&example("unruly"));
    for calls in 1..=5 {
        count(&dev, calls);
    }
    assert!(dev.stop());
    let segment = data.join("storage-2/log/0000000000000001.seg");
    let file = File::options().read(true).write(true).open(segment).unwrap();
    // The head of the batch after the segment's start, whatever was batched.
    let (at, mut byte) = (4096, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let dev = Dev::start_with(&data, &["--segment-mib", "1"]);
    let said = dev.until_said("is damaged at byte");
    assert!(said.contains("storage-2") && said.contains("halfmoon node replace"), "{said}");
    count(&dev, 6);
    assert!(dev.stop());
}
