//! A node with a thread of its own.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use halfmoon_meta::{FileStore, MetaStore, nodes};
use halfmoon_storage::{Config, NodeError, RoleConfig, run, run_with};
use halfmoon_wire::{NodeId, Role};

fn config(dir: &std::path::Path, meta: &Arc<dyn MetaStore>, listen: &str) -> Config {
    let mut role = RoleConfig::new(dir.join("data"), NodeId(1), 7);
    role.segment_bytes = 1 << 20;
    role.state_segment_bytes = 1 << 20;
    Config::new(role, meta.clone(), listen.to_owned())
}

#[test]
fn a_node_publishes_its_address_when_it_serves_and_takes_it_back_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let meta: Arc<dyn MetaStore> = Arc::new(FileStore::open(dir.path().join("meta")).unwrap());
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
    let meta: Arc<dyn MetaStore> = Arc::new(FileStore::open(dir.path().join("meta")).unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = config(dir.path(), &meta, &address);
    let error = run(config, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, NodeError::Listen(_)));
    assert!(error.to_string().contains("already in use"), "{error}");
}
