//! The role on a thread of its own, with a metadata store on disk.
#![allow(missing_docs, clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use halfmoon_meta::{Durability, FileStore, MetaStore, NodeEntry, cluster, nodes};
use halfmoon_reactor::{Options, Reactor};
use halfmoon_sequencer::{Config, RunError, run};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{Endpoint, EndpointOptions, Event};
use halfmoon_wire::{Epoch, Hello, Incarnation, Message, NodeId, Role, SeqNum};

const NODE: NodeId = NodeId(10);

/// A log of one storage node, which promises and takes everything; ends with `stop`.
fn storage(store: &Arc<dyn MetaStore>, stop: &AtomicBool) {
    let reactor = Reactor::shared(Options::default()).unwrap();
    let cluster = cluster::read(&**store).unwrap().id();
    let hello =
        Hello { cluster, role: Role::Storage, node: NodeId(1), incarnation: Incarnation(1) };
    let mut endpoint =
        Endpoint::new(Tcp::new(reactor.clone()), EndpointOptions::new(hello.to_bytes()));
    let address = endpoint.listen("127.0.0.1:0").unwrap().parse().unwrap();
    let entry = NodeEntry::new(Role::Storage, NodeId(1), Incarnation(1), address);
    nodes::publish(&**store, &entry).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let mut answers = Vec::new();
        endpoint.poll(&mut |event| {
            let Event::Message { lane, bytes } = event else { return };
            let answer = match Message::parse(bytes).unwrap() {
                Message::Seal { epoch } => {
                    Message::Sealed { promised: epoch, history: vec![], end: SeqNum(0) }
                }
                Message::Welcome { .. } => Message::Follow { from: SeqNum(1) },
                Message::Stream { epoch, first, .. } => Message::Durable { epoch, seq: first },
                other => panic!("{other:?}"),
            };
            answers.push((lane, answer.to_bytes()));
        });
        for (lane, answer) in answers {
            endpoint.send(lane, &[&answer]).unwrap();
        }
        endpoint.flush();
        reactor.borrow_mut().wait(Duration::from_millis(2)).unwrap();
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "it never came");
        thread::yield_now();
    }
}

#[test]
fn every_run_is_a_new_epoch_and_a_later_one_ends_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn MetaStore> = Arc::new(FileStore::open(directory.path()).unwrap());
    cluster::create(&*store, 77, Durability::Flush, &[NodeId(1)]).unwrap();
    let (stop_storage, stop) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let config = Config::new(Arc::clone(&store), NODE, "127.0.0.1:0");
    let published = || nodes::find(&*store, Role::Sequencer, NODE).unwrap();
    let epoch = || published().map(|entry| entry.incarnation().0);
    thread::scope(|scope| {
        scope.spawn(|| storage(&store, &stop_storage));
        let first = scope.spawn(|| run(config.clone(), Arc::default()));
        until(|| epoch() == Some(1));
        let second = scope.spawn(|| run(config.clone(), Arc::clone(&stop)));
        let error = first.join().unwrap().unwrap_err();
        assert!(matches!(error, RunError::Superseded { epoch: 2 } | RunError::Role(_)), "{error}");
        until(|| epoch() == Some(2));
        until(|| cluster::read(&*store).unwrap().members.committed_in() == Some(Epoch(2)));
        stop.store(true, Ordering::Relaxed);
        second.join().unwrap().unwrap();
        assert_eq!(published(), None);
        stop_storage.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_address_in_use_and_a_store_without_a_cluster_are_told_clearly() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn MetaStore> = Arc::new(FileStore::open(directory.path()).unwrap());
    let config = Config::new(Arc::clone(&store), NODE, "127.0.0.1:0");
    let error = run(config.clone(), Arc::default()).unwrap_err();
    assert!(matches!(error, RunError::Meta(_)), "{error}");
    cluster::create(&*store, 77, Durability::Flush, &[NodeId(1)]).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let error = run(Config { listen, ..config }, Arc::default()).unwrap_err();
    assert!(error.to_string().contains("already in use"), "{error}");
}
