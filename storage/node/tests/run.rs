//! A node with a thread of its own.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use halfmoon_meta::{Durability, FileStore, MetaStore, cluster, disks, nodes};
use halfmoon_storage::{Config, NodeError, Pace, RoleConfig, run, run_with};
use halfmoon_tcp::greet::{Heard, Next, greet};
use halfmoon_wire::{Epoch, Hello, Incarnation, Message, NodeId, NodeStatus, Role};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(dir: &std::path::Path, meta: &Arc<dyn MetaStore>, listen: &str) -> Config {
    let mut role = RoleConfig::new(dir.join("data"), NodeId(1), 7);
    role.segment_bytes = 1 << 20;
    role.state_segment_bytes = 1 << 20;
    Config::new(role, meta.clone(), listen.to_owned())
}

fn founded(dir: &std::path::Path) -> Arc<dyn MetaStore> {
    let meta = FileStore::open(dir.join("meta")).unwrap();
    cluster::create(&meta, 7, Durability::Flush, &[1, 2, 3].map(NodeId)).unwrap();
    Arc::new(meta)
}

/// Runs a node until it serves, and stops it.
fn serve_once(config: Config) -> Result<(), NodeError> {
    let stop = AtomicBool::new(false);
    run_with(config, &stop, |_| stop.store(true, Ordering::Relaxed))
}

#[test]
fn a_node_that_lost_its_disk_does_not_serve_as_if_it_had_never_held_anything() {
    let dir = tempfile::tempdir().unwrap();
    let meta = founded(dir.path());
    let config = config(dir.path(), &meta, "127.0.0.1:0");
    serve_once(config.clone()).unwrap();
    serve_once(config.clone()).unwrap();
    let (data, kept) = (dir.path().join("data"), dir.path().join("kept"));
    std::fs::rename(&data, &kept).unwrap();
    let error = serve_once(config.clone()).unwrap_err();
    assert!(matches!(error, NodeError::DiskLost { node: NodeId(1), .. }), "{error}");
    // Nor does another directory of the same node.
    std::fs::remove_dir_all(&data).unwrap();
    let elsewhere = founded(&dir.path().join("elsewhere"));
    serve_once(Config { meta: elsewhere, ..config.clone() }).unwrap();
    let error = serve_once(config.clone()).unwrap_err();
    assert!(matches!(error, NodeError::Meta(_)), "{error}");
    // The disk is found again.
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&kept, &data).unwrap();
    serve_once(config).unwrap();
}

#[test]
fn a_node_that_is_no_member_any_more_does_not_serve() {
    let dir = tempfile::tempdir().unwrap();
    let meta = founded(dir.path());
    let config = config(dir.path(), &meta, "127.0.0.1:0");
    serve_once(config.clone()).unwrap();
    cluster::propose_members(&*meta, &[4, 2, 3].map(NodeId)).unwrap();
    serve_once(config.clone()).unwrap();
    cluster::mark_committed(&*meta, 2, Epoch(1)).unwrap();
    let error = serve_once(config).unwrap_err();
    assert!(matches!(error, NodeError::NoMember { node: NodeId(1) }), "{error}");
}

/// How a node that listens there says that it is; `None`: it does not answer.
fn status_of(address: std::net::SocketAddr) -> Option<NodeStatus> {
    let hello =
        Hello { cluster: 7, role: Role::Observer, node: NodeId(99), incarnation: Incarnation(1) };
    let mut status = None;
    greet(&[address.to_string()], &hello.to_bytes(), PATIENCE, |_, heard| match heard {
        Heard::Hello(_) => Next::Ask(Message::AskStatus.to_bytes()),
        Heard::Message(bytes) => {
            let Message::Status(said) = Message::parse(bytes).unwrap() else { return Next::Wait };
            status = Some(said);
            Next::Done
        }
    })
    .unwrap();
    status
}

#[test]
fn a_node_that_is_no_member_yet_waits_as_a_spare_without_a_vote_until_it_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let meta = founded(dir.path());
    let four = NodeId(4);
    // Under a fixed address, as a node on a machine of its own has one.
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = config(dir.path(), &meta, &listen.to_string());
    config.role.node = four;
    let stop = Arc::new(AtomicBool::new(false));
    let (started, serves) = channel();
    let node = thread::spawn({
        let (stop, config) = (stop.clone(), config.clone());
        move || run_with(config, &stop, |metrics| started.send(metrics).unwrap())
    });
    let published = || nodes::find(&*meta, Role::Storage, four).unwrap();
    while published().is_none() {
        thread::yield_now();
    }
    let spare = published().unwrap();
    assert_eq!(spare.address, listen);
    assert_eq!(status_of(listen), Some(NodeStatus::default()));
    // A sequencer that takes it for a member gets no promise.
    let sequencer =
        Hello { cluster: 7, role: Role::Sequencer, node: NodeId(10), incarnation: Incarnation(1) };
    let (mut asked, mut promised) = (false, false);
    let brief = Duration::from_millis(200);
    greet(&[listen.to_string()], &sequencer.to_bytes(), brief, |_, heard| match heard {
        Heard::Hello(_) => {
            asked = true;
            Next::Ask(Message::Seal { epoch: Epoch(1) }.to_bytes())
        }
        Heard::Message(_) => {
            promised = true;
            Next::Done
        }
    })
    .unwrap();
    assert!(asked && !promised);
    assert_eq!(disks::find(&*meta, four).unwrap(), None, "nothing is counted on");
    // Nobody else may wait on its directory.
    let error = serve_once(Config { listen: "127.0.0.1:0".into(), ..config.clone() }).unwrap_err();
    assert!(matches!(error, NodeError::Locked { .. }), "{error}");
    cluster::propose_members(&*meta, &[1, 2, 4].map(NodeId)).unwrap();
    serves.recv().unwrap();
    let member = published().unwrap();
    assert_eq!(member.address, listen);
    assert!(member.incarnation() > spare.incarnation());
    assert!(disks::find(&*meta, four).unwrap().is_some());
    stop.store(true, Ordering::Relaxed);
    node.join().unwrap().unwrap();
    assert_eq!(published(), None);
}

#[test]
fn a_spare_that_is_stopped_takes_its_address_back_and_has_left_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let meta = founded(dir.path());
    let mut config = config(dir.path(), &meta, "127.0.0.1:0");
    config.role.node = NodeId(4);
    let published = || nodes::find(&*meta, Role::Storage, NodeId(4)).unwrap();
    for _ in 0..2 {
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, of) = (stop.clone(), config.clone());
        let node = thread::spawn(move || run(of, &asked));
        while published().is_none() {
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        node.join().unwrap().unwrap();
        assert_eq!(published(), None);
    }
    // A directory that was in use is that of a node which was replaced.
    config.role.node = NodeId(1);
    serve_once(config.clone()).unwrap();
    cluster::propose_members(&*meta, &[2, 3, 5].map(NodeId)).unwrap();
    cluster::mark_committed(&*meta, 2, Epoch(1)).unwrap();
    let error = serve_once(config.clone()).unwrap_err();
    assert!(matches!(error, NodeError::NoMember { .. }), "{error}");
    // With an empty directory it is still the node that was counted on.
    config.role.data_dir = dir.path().join("empty");
    let error = serve_once(config).unwrap_err();
    assert!(matches!(error, NodeError::NoMember { .. }), "{error}");
}

#[test]
fn a_node_publishes_its_address_when_it_serves_and_takes_it_back_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let meta = founded(dir.path());
    for no_uring in [false, true] {
        let mut config = config(dir.path(), &meta, "127.0.0.1:0");
        config.no_uring = no_uring;
        let stop = Arc::new(AtomicBool::new(false));
        let (started, wait) = channel();
        let node = thread::spawn({
            let stop = stop.clone();
            move || run_with(config, &stop, |metrics| started.send(metrics).unwrap())
        });
        let metrics = wait.recv().unwrap();
        assert_eq!(metrics.snapshot().flush_before_ack, 1);
        let entry = nodes::find(&*meta, Role::Storage, NodeId(1)).unwrap().unwrap();
        assert_ne!(entry.address.port(), 0);
        stop.store(true, Ordering::Relaxed);
        node.join().unwrap().unwrap();
        assert!(nodes::find(&*meta, Role::Storage, NodeId(1)).unwrap().is_none());
    }
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let meta = founded(dir.path());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = config(dir.path(), &meta, &address);
    let error = run(config, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, NodeError::Listen(_)));
    assert!(error.to_string().contains("already in use"), "{error}");
}

#[test]
fn a_node_whose_disk_gives_back_something_else_than_was_written_finds_out_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let meta = founded(dir.path());
    let pace = Pace { every: Duration::from_millis(1), bytes_per_s: u64::MAX };
    let config = Config { scrub: pace, ..config(dir.path(), &meta, "127.0.0.1:0") };
    // What one life has written is what a later one counts on.
    serve_once(config.clone()).unwrap();
    let (started, serves) = channel();
    let node = thread::spawn(move || {
        run_with(config, &AtomicBool::new(false), |metrics| started.send(metrics).unwrap())
    });
    let metrics = serves.recv_timeout(PATIENCE).unwrap();
    let scrubs = || metrics.snapshot().scrubs;
    while scrubs() < 2 {
        thread::yield_now();
    }
    assert!(!node.is_finished(), "all is well");
    let segment = dir.path().join("data/log/0000000000000001.seg");
    let file = std::fs::File::options().read(true).write(true).open(segment).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 64).unwrap();
    file.sync_all().unwrap();
    let error = node.join().unwrap().unwrap_err();
    assert!(matches!(error, NodeError::Corrupt { .. }), "{error}");
}
