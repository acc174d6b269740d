//! The contract of a metadata store, kept by every implementation: a directory, and a real etcd
//! where one is installed.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests and their helpers")]

#[path = "support/etcd.rs"]
mod etcd;

use std::collections::BTreeSet;
use std::sync::Arc;

use halfmoon_meta::{
    CasError, Durability, Entry, EtcdStore, Expected, FileStore, MetaError, MetaStore, Revision,
    VALUE_MAX_BYTES, cluster,
};
use halfmoon_wire::NodeId;

use etcd::{Etcd, free_port};

/// Opens a store: those of one name are the same.
type Open<'a> = &'a dyn Fn(&str) -> Arc<dyn MetaStore>;

type Check = fn(Open<'_>);

const CONTRACT: [(&str, Check); 8] = [
    ("what was set is read by another opener", what_was_set_is_read),
    ("a change that expects something else changes nothing", a_wrong_expectation),
    ("a key made again does not get its old revision back", a_key_made_again),
    ("what is deleted is gone, once", what_is_deleted_is_gone),
    ("a list has the prefix and is ascending", a_list),
    ("values that are no text come back unchanged", values_that_are_no_text),
    ("what is outside the limits is refused", outside_the_limits),
    ("of several that change one key each succeeds alone", several_at_once),
];

fn what_was_set_is_read(open: Open<'_>) {
    let revision = open("set").compare_and_set("a", Expected::Absent, b"one").unwrap();
    let other = open("set");
    assert_eq!(other.get("a").unwrap(), Some(Entry { value: b"one".to_vec(), revision }));
    assert_eq!(other.get("b").unwrap(), None);
}

fn a_wrong_expectation(open: Open<'_>) {
    let store = open("expect");
    let first = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    let second = store.compare_and_set("a", Expected::At(first), b"two").unwrap();
    assert!(second > first);
    for expected in [Expected::Absent, Expected::At(first)] {
        let error = store.compare_and_set("a", expected, b"three").unwrap_err();
        let CasError::Conflict { current } = error else { panic!("{error}") };
        assert_eq!(current, Some(Entry { value: b"two".to_vec(), revision: second }));
    }
    let error = store.compare_and_set("b", Expected::At(first), b"x").unwrap_err();
    assert!(matches!(error, CasError::Conflict { current: None }), "{error}");
    assert_eq!(store.get("a").unwrap().unwrap().value, b"two");
}

fn a_key_made_again(open: Open<'_>) {
    let store = open("again");
    let first = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    store.delete("a", first).unwrap();
    assert_eq!(store.get("a").unwrap(), None);
    let again = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    assert_ne!(first, again);
    assert!(matches!(store.delete("a", first), Err(CasError::Conflict { current: Some(_) })));
}

fn what_is_deleted_is_gone(open: Open<'_>) {
    let store = open("delete");
    let revision = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    store.compare_and_set("ab", Expected::Absent, b"other").unwrap();
    store.delete("a", revision).unwrap();
    assert!(matches!(store.delete("a", revision), Err(CasError::Conflict { current: None })));
    assert_eq!(store.get("ab").unwrap().unwrap().value, b"other");
}

fn a_list(open: Open<'_>) {
    let store = open("list");
    for key in ["nodes/b", "nodes/a", "nodes0", "node", "cluster"] {
        store.compare_and_set(key, Expected::Absent, key.as_bytes()).unwrap();
    }
    let keys: Vec<String> = store.list("nodes/").unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["nodes/a", "nodes/b"]);
    assert_eq!(store.list("").unwrap().len(), 5);
    assert_eq!(store.list("nothing/").unwrap(), []);
}

fn values_that_are_no_text(open: Open<'_>) {
    let store = open("bytes");
    let all: Vec<u8> = (0..=255).collect();
    for (key, value) in [("all", &all[..]), ("none", b""), ("most", &[7; VALUE_MAX_BYTES])] {
        store.compare_and_set(key, Expected::Absent, value).unwrap();
        assert_eq!(store.get(key).unwrap().unwrap().value, value, "{key}");
    }
}

fn outside_the_limits(open: Open<'_>) {
    let store = open("limits");
    for key in ["", "a b", "ä", "line\n", &"k".repeat(257)] {
        let error = store.compare_and_set(key, Expected::Absent, b"").unwrap_err();
        assert!(matches!(error, CasError::Failed(MetaError::BadKey { .. })), "{key:?}");
        assert!(matches!(store.get(key), Err(MetaError::BadKey { .. })), "{key:?}");
    }
    let large = vec![0; VALUE_MAX_BYTES + 1];
    let error = store.compare_and_set("a", Expected::Absent, &large).unwrap_err();
    assert!(matches!(error, CasError::Failed(MetaError::ValueTooLarge { .. })), "{error}");
    assert_eq!(store.list("").unwrap(), []);
}

fn several_at_once(open: Open<'_>) {
    let members = [NodeId(1), NodeId(2), NodeId(3)];
    cluster::create(&*open("several"), 7, Durability::Flush, &members).unwrap();
    let stores: Vec<_> = (0..3).map(|_| open("several")).collect();
    let threads = stores.into_iter().map(|store| {
        std::thread::spawn(move || {
            let take = |_| cluster::next_epoch(&*store, NodeId(9)).unwrap().epoch().0;
            (0..10).map(take).collect::<Vec<u64>>()
        })
    });
    let threads: Vec<_> = threads.collect();
    let taken: Vec<Vec<u64>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(taken.iter().all(|epochs| epochs.is_sorted_by(|a, b| a < b)));
    assert_eq!(taken.concat().into_iter().collect::<BTreeSet<_>>(), (1..=30).collect());
}

fn keep(open: Open<'_>) {
    for (name, check) in CONTRACT {
        eprintln!("{name}");
        check(open);
    }
}

#[test]
fn a_directory_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    keep(&|name| Arc::new(FileStore::open(directory.path().join(name)).unwrap()));
}

#[test]
fn etcd_keeps_the_contract() {
    let Some(etcd) = Etcd::start("etcd_keeps_the_contract") else { return };
    keep(&|name| etcd.open(name));
}

#[test]
fn of_a_change_that_etcd_took_and_did_not_answer_the_outcome_is_unknown() {
    let name = "of_a_change_that_etcd_took_and_did_not_answer_the_outcome_is_unknown";
    let Some(etcd) = Etcd::start(name) else { return };
    let store = etcd.open("stopped");
    let first = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    etcd.signal(rustix::process::Signal::STOP);
    // The kernel takes the question; etcd reads it when it goes on.
    let error = store.compare_and_set("a", Expected::At(first), b"two").unwrap_err();
    assert!(matches!(error, CasError::Unknown { .. }), "{error}");
    etcd.signal(rustix::process::Signal::CONT);
    let found = store.get("a").unwrap().unwrap();
    assert!(found.value == b"one" || found.value == b"two");
    store.compare_and_set("a", Expected::At(found.revision), b"three").unwrap();
}

#[test]
fn a_member_that_is_gone_is_passed_over() {
    let Some(etcd) = Etcd::start("a_member_that_is_gone_is_passed_over") else { return };
    // Nobody listens on the first.
    let address = format!("etcd://127.0.0.1:{},{}/gone", free_port(), etcd.address());
    let store = EtcdStore::new(&address).unwrap();
    let revision = store.compare_and_set("a", Expected::Absent, b"one").unwrap();
    assert_eq!(store.get("a").unwrap().unwrap().revision, revision);
}

#[test]
fn without_etcd_reads_fail_and_changes_are_not_made() {
    let Some(mut etcd) = Etcd::start("without_etcd_reads_fail_and_changes_are_not_made") else {
        return;
    };
    let store = etcd.open("dead");
    etcd.kill();
    assert!(matches!(store.get("a"), Err(MetaError::Etcd { .. })));
    let error = store.compare_and_set("a", Expected::At(Revision(1)), b"x").unwrap_err();
    assert!(matches!(error, CasError::Failed(MetaError::Etcd { .. })), "{error}");
}
