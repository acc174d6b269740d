//! The role on a thread of its own, with a metadata store on disk.
#![allow(missing_docs, clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use halfmoon_meta::{Durability, FileStore, MetaStore, NodeEntry, cluster, disks, nodes};
use halfmoon_reactor::{Options, Reactor};
use halfmoon_sequencer::{Config, RunError, run};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{Endpoint, EndpointOptions, Event};
use halfmoon_wire::{Epoch, Hello, Incarnation, Message, NodeId, Role, SeqNum};

const NODE: NodeId = NodeId(10);
const OTHER: NodeId = NodeId(11);

/// A storage node with nothing in its log, which promises and takes everything; ends with `stop`.
fn storage(store: &Arc<dyn MetaStore>, node: NodeId, stop: &AtomicBool) {
    let reactor = Reactor::shared(Options::default()).unwrap();
    let cluster = cluster::read(&**store).unwrap().id();
    let hello = Hello { cluster, role: Role::Storage, node, incarnation: Incarnation(1) };
    let mut endpoint =
        Endpoint::new(Tcp::new(reactor.clone()), EndpointOptions::new(hello.to_bytes()));
    let address = endpoint.listen("127.0.0.1:0").unwrap().parse().unwrap();
    let entry = NodeEntry::new(Role::Storage, node, Incarnation(1), address);
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
fn one_is_in_charge_and_others_take_over_when_it_ends_or_is_deposed() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn MetaStore> = Arc::new(FileStore::open(directory.path()).unwrap());
    cluster::create(&*store, 77, Durability::Flush, &[NodeId(1)]).unwrap();
    let (stop_storage, stop) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let stop_first = Arc::new(AtomicBool::new(false));
    let first = Config::new(Arc::clone(&store), NODE, "127.0.0.1:0");
    let second = Config { node: OTHER, is_standby: true, ..first.clone() };
    let published = |node| nodes::find(&*store, Role::Sequencer, node).unwrap();
    let holder = || {
        let holder = cluster::read(&*store).unwrap().holder?;
        Some((holder.node(), holder.epoch().0))
    };
    let committed = || cluster::read(&*store).unwrap().members.committed_in();
    thread::scope(|scope| {
        scope.spawn(|| storage(&store, NodeId(1), &stop_storage));
        let thread = scope.spawn(|| run(first.clone(), Arc::clone(&stop_first)));
        until(|| committed() == Some(Epoch(1)));
        let other = scope.spawn(|| run(second, Arc::clone(&stop)));
        until(|| published(OTHER).is_some());
        stop_first.store(true, Ordering::Relaxed);
        thread.join().unwrap().unwrap();
        until(|| holder() == Some((OTHER, 2)) && committed() == Some(Epoch(2)));
        assert_eq!(published(NODE), None, "it has withdrawn");
        // Started again, it stands by. One that shows no life takes the epoch from the other; of the
        // two that see it, one takes over.
        let again = scope.spawn(|| run(first.clone(), Arc::clone(&stop)));
        until(|| published(NODE).is_some());
        assert_eq!(holder(), Some((OTHER, 2)));
        cluster::take_epoch(&*store, NodeId(12), Epoch(2)).unwrap();
        until(|| committed() > Some(Epoch(3)));
        assert!([NODE, OTHER].contains(&holder().unwrap().0));
        stop.store(true, Ordering::Relaxed);
        other.join().unwrap().unwrap();
        again.join().unwrap().unwrap();
        assert_eq!((published(NODE), published(OTHER)), (None, None));
        stop_storage.store(true, Ordering::Relaxed);
    });
}

#[test]
fn members_that_are_proposed_come_into_effect_under_the_same_sequencer() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn MetaStore> = Arc::new(FileStore::open(directory.path()).unwrap());
    let [one, two, dead, new] = [1, 2, 3, 4].map(NodeId);
    cluster::create(&*store, 77, Durability::Flush, &[one, two, dead]).unwrap();
    let (stop_storage, stop) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let config = Config::new(Arc::clone(&store), NODE, "127.0.0.1:0");
    let committed = || cluster::read(&*store).unwrap().members.committed_in();
    thread::scope(|scope| {
        for node in [one, two, new] {
            let (store, stop) = (&store, &stop_storage);
            scope.spawn(move || storage(store, node, stop));
        }
        let thread = scope.spawn(|| run(config, Arc::clone(&stop)));
        until(|| committed() == Some(Epoch(1)));
        cluster::propose_members(&*store, &[one, two, new]).unwrap();
        until(|| committed() == Some(Epoch(2)));
        let info = cluster::read(&*store).unwrap();
        assert_eq!(info.members.nodes(), [one, two, new]);
        assert_eq!(info.recovery_sets().count(), 1, "those before are asked no more");
        assert_eq!(info.holder.unwrap().node(), NODE);
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap().unwrap();
        stop_storage.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_storage_node_that_is_gone_for_long_is_replaced_by_a_spare_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn MetaStore> = Arc::new(FileStore::open(directory.path()).unwrap());
    let [one, two, dead, left, spare] = [1, 2, 3, 4, 5].map(NodeId);
    cluster::create(&*store, 77, Durability::Flush, &[one, two, dead]).unwrap();
    // Spares that do not qualify: one has stored something before, one is published and not there.
    for node in [one, two, dead, left] {
        disks::claim(&*store, node, 9).unwrap();
    }
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let gone = NodeEntry::new(Role::Storage, NodeId(0), Incarnation(1), nowhere);
    nodes::publish(&*store, &gone).unwrap();
    let (stop_storage, stop) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let (stop_dead, stop_standby) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let replace_after = Duration::from_millis(500);
    let config = Config { replace_after, ..Config::new(Arc::clone(&store), NODE, "127.0.0.1:0") };
    let standby = Config { node: OTHER, is_standby: true, ..config.clone() };
    let members = || cluster::read(&*store).unwrap().members;
    thread::scope(|scope| {
        for node in [one, two, left, spare] {
            let (store, stop) = (&store, &stop_storage);
            scope.spawn(move || storage(store, node, stop));
        }
        let mortal = scope.spawn(|| storage(&store, dead, &stop_dead));
        let thread = scope.spawn(|| run(config, Arc::clone(&stop)));
        until(|| members().committed_in() == Some(Epoch(1)));
        let other = scope.spawn(|| run(standby, Arc::clone(&stop_standby)));
        // All answer, for longer than a node may be gone.
        thread::sleep(replace_after * 3);
        assert_eq!(members().version, 1);
        stop_dead.store(true, Ordering::Relaxed);
        mortal.join().unwrap();
        until(|| members().version == 2 && members().committed_in() > Some(Epoch(1)));
        assert_eq!(members().nodes(), [one, two, spare]);
        for (stop, thread) in [(&stop_standby, other), (&stop, thread)] {
            stop.store(true, Ordering::Relaxed);
            thread.join().unwrap().unwrap();
        }
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
