//! The state store of a node: cells, versions, blobs, large values, crashes, and bad requests.
#![allow(missing_docs, clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;

use halfmoon_transport::{Memory, RemoteSpan, Source, memory};
use halfmoon_wire::limits::BLOB_CHUNK_BYTES;
use halfmoon_wire::*;
use proptest::prelude::*;
use support::*;

fn object(key: &[u8]) -> ObjectKey<'_> {
    ObjectKey { table: "default/rooms", key }
}

fn tuple(cursor: u64) -> CellTuple {
    CellTuple { cursor: SeqNum(cursor), counter: 0, instance: InstanceId(7) }
}

fn done(reply: &StateReply<'_>) {
    assert_eq!(*reply, StateReply::Done);
}

fn put_cell(engine: &mut Peer, node: &mut Node, key: &[u8], cursor: u64, value: Option<&[u8]>) {
    let value = value.map(ValueSource::Inline);
    let request = StateRequest::PutCell { object: object(key), tuple: tuple(cursor), value };
    engine.state(node, request, done);
}

/// Cursor and value of a cell.
type Found = Option<(u64, Option<Vec<u8>>)>;

fn get_cell(engine: &mut Peer, node: &mut Node, key: &[u8]) -> Found {
    let request = StateRequest::GetCell { object: object(key), landing: None };
    let found = engine.state(node, request, |reply| match reply {
        StateReply::Cell(cell) => cell.map(|cell| {
            let value = cell.value.map(|value| match value {
                ValueSource::Inline(bytes) => bytes.to_vec(),
                ValueSource::Staged { .. } => panic!("there is no landing"),
            });
            (cell.tuple.cursor.0, value)
        }),
        other => panic!("{other:?}"),
    });
    let request = StateRequest::GetTuple { object: object(key) };
    engine.state(node, request, |reply| {
        let cursor = found.as_ref().map(|(cursor, _)| tuple(*cursor));
        assert_eq!(*reply, StateReply::Tuple(cursor));
    });
    found
}

fn get_version(engine: &mut Peer, node: &mut Node, key: &[u8], id: u128) -> Option<Vec<u8>> {
    let request =
        StateRequest::GetVersion { object: object(key), version: VersionId(id), landing: None };
    engine.state(node, request, |reply| match reply {
        StateReply::Value(None) => None,
        StateReply::Value(Some((SeqNum(0), Some(ValueSource::Inline(bytes))))) => {
            Some(bytes.to_vec())
        }
        other => panic!("{other:?}"),
    })
}

fn engine(node: &mut Node) -> (Peer, u32) {
    let mut engine = Peer::dial(Role_::Engine, 10, node);
    let region = engine.expect(&mut [node], |message| match message {
        Message::Staging { region, .. } => Some(*region),
        _ => None,
    });
    (engine, region)
}

#[derive(Clone, Debug)]
enum Step {
    Cell {
        key: u8,
        cursor: u64,
        value: Option<u8>,
    },
    Version {
        key: u8,
        id: u128,
    },
    Get {
        key: u8,
    },
    /// Drop the node as it is. With `behind`, the embedded engine loses everything it was given.
    Restart {
        behind: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0u8..5;
    prop_oneof![
        8 => (key.clone(), 1u64..9, any::<Option<u8>>())
            .prop_map(|(key, cursor, value)| Step::Cell { key, cursor, value }),
        4 => (key.clone(), 0u128..3).prop_map(|(key, id)| Step::Version { key, id }),
        6 => key.prop_map(|key| Step::Get { key }),
        1 => any::<bool>().prop_map(|behind| Step::Restart { behind }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn cells_only_grow_and_what_was_acknowledged_survives_any_restart(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::open(dir.path(), 1);
        let (mut peer, _) = engine(&mut node);
        let mut cells: BTreeMap<u8, (u64, Option<Vec<u8>>)> = BTreeMap::new();
        let mut versions: BTreeMap<(u8, u128), Vec<u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Cell { key, cursor, value } => {
                    let value = value.map(|byte| vec![byte; 300]);
                    put_cell(&mut peer, &mut node, &[key], cursor, value.as_deref());
                    let newer = cells.get(&key).is_none_or(|(known, _)| *known < cursor);
                    if newer {
                        cells.insert(key, (cursor, value));
                    }
                }
                Step::Version { key, id } => {
                    let value = vec![key, u8::try_from(id).unwrap()];
                    let name = [key];
                    let request = StateRequest::PutVersion {
                        object: object(&name),
                        version: VersionId(id),
                        value: ValueSource::Inline(&value),
                    };
                    peer.state(&mut node, request, done);
                    versions.insert((key, id), value);
                }
                Step::Get { key } => {
                    prop_assert_eq!(get_cell(&mut peer, &mut node, &[key]), cells.get(&key).cloned());
                    for id in 0..3 {
                        let found = get_version(&mut peer, &mut node, &[key], id);
                        prop_assert_eq!(found, versions.get(&(key, id)).cloned());
                    }
                }
                Step::Restart { behind } => {
                    drop(node);
                    if behind {
                        fs::remove_dir_all(dir.path().join("node-1/store")).unwrap();
                    }
                    node = Node::open(dir.path(), 1);
                    (peer, _) = engine(&mut node);
                }
            }
        }
        for key in 0..5 {
            prop_assert_eq!(get_cell(&mut peer, &mut node, &[key]), cells.get(&key).cloned());
        }
    }
}

#[test]
fn a_write_is_answered_only_when_it_is_flushed_and_a_reader_does_not_see_it_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    put_cell(&mut peer, &mut node, b"k", 1, Some(b"old"));
    assert_eq!(get_cell(&mut peer, &mut node, b"k"), Some((1, Some(b"old".to_vec()))));
    node.disk.faults.borrow_mut().hold = true;
    let before = node.disk.faults.borrow().writes;
    let value = Some(ValueSource::Inline(b"new"));
    peer.ask(StateRequest::PutCell { object: object(b"k"), tuple: tuple(2), value });
    peer.ask(StateRequest::GetCell { object: object(b"k"), landing: None });
    let disk = node.disk.clone();
    run(&mut [&mut node], &mut [&mut peer], |_, _| disk.faults.borrow().writes > before);
    for _ in 0..20 {
        node.turn();
        peer.turn();
    }
    assert!(peer.inbox.is_empty(), "answered ahead of the flush");
    node.disk.faults.borrow_mut().hold = false;
    run(&mut [&mut node], &mut [&mut peer], |_, peers| peers[0].inbox.len() == 2);
    assert_eq!(get_cell(&mut peer, &mut node, b"k"), Some((2, Some(b"new".to_vec()))));
}

#[test]
fn an_older_write_that_is_still_under_way_does_not_hide_a_newer_value() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    put_cell(&mut peer, &mut node, b"k", 5, Some(b"newer"));
    // A node with nothing in memory does not know which of the two is newer.
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    let mut last = Sequencer::open(1, &mut node);
    last.stream(1);
    last.settle(&mut node);
    node.disk.faults.borrow_mut().hold = true;
    let value = Some(ValueSource::Inline(b"older"));
    peer.ask(StateRequest::PutCell { object: object(b"k"), tuple: tuple(3), value });
    peer.ask(StateRequest::GetTuple { object: object(b"k") });
    let found = peer.expect(&mut [&mut node], |message| match message {
        Message::StateAnswer { reply: StateReply::Tuple(found), .. } => Some(*found),
        _ => None,
    });
    assert_eq!(found, Some(tuple(5)));
    node.disk.faults.borrow_mut().hold = false;
    run(&mut [&mut node], &mut [&mut peer], |_, peers| !peers[0].inbox.is_empty());
    assert_eq!(get_cell(&mut peer, &mut node, b"k"), Some((5, Some(b"newer".to_vec()))));
}

#[test]
fn a_failed_flush_of_the_state_log_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    put_cell(&mut peer, &mut node, b"k", 1, Some(b"kept"));
    node.disk.faults.borrow_mut().fail = Some(std::io::ErrorKind::StorageFull);
    let value = Some(ValueSource::Inline(b"lost"));
    peer.ask(StateRequest::PutCell { object: object(b"k"), tuple: tuple(2), value });
    run(&mut [&mut node], &mut [&mut peer], |nodes, _| nodes[0].error.is_some());
    assert!(peer.inbox.is_empty());
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    let (cursor, _) = get_cell(&mut peer, &mut node, b"k").unwrap();
    assert!(cursor >= 1);
}

#[test]
fn a_large_value_goes_through_staging_and_comes_back_into_the_landing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, region) = engine(&mut node);
    let value: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let to = RemoteSpan { region: halfmoon_transport::RegionId(region), offset: 640 };
    peer.endpoint.write(peer.lane, to, Source::bytes(&value), None).unwrap();
    let len = u32::try_from(value.len()).unwrap();
    let put = StateRequest::PutVersion {
        object: object(b"big"),
        version: VersionId(5),
        value: ValueSource::Staged { offset: 640, len },
    };
    peer.state(&mut node, put, done);
    // Also after the node has lost its memory, and the embedded engine everything.
    drop(node);
    fs::remove_dir_all(dir.path().join("node-1/store")).unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    let (arena, arena_region) = peer.expose(4 << 20);
    let get = |capacity| StateRequest::GetVersion {
        object: object(b"big"),
        version: VersionId(5),
        landing: Some(Landing { region: arena_region, offset: 64, capacity }),
    };
    peer.state(&mut node, get(1000), |reply| {
        assert_eq!(*reply, StateReply::NeedRoom { len });
    });
    peer.state(&mut node, get(len), |reply| {
        let staged = ValueSource::Staged { offset: 0, len };
        assert_eq!(*reply, StateReply::Value(Some((SeqNum(0), Some(staged)))));
    });
    let mut landed = vec![0; value.len()];
    memory::copy_out(arena.words(), 64, &mut landed).unwrap();
    assert!(landed == value);
    let without =
        StateRequest::GetVersion { object: object(b"big"), version: VersionId(5), landing: None };
    peer.state(&mut node, without, |reply| assert_eq!(*reply, StateReply::NeedRoom { len }));
}

#[test]
fn a_binary_is_served_only_when_it_is_whole_and_its_hash_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    let binary: Vec<u8> = (0..2 * BLOB_CHUNK_BYTES + 77).map(|n| (n % 253) as u8).collect();
    let (hash, total) = (*blake3::hash(&binary).as_bytes(), binary.len() as u64);
    let put = |peer: &mut Peer, node: &mut Node, hash, index: usize| {
        let start = index * BLOB_CHUNK_BYTES;
        let bytes = &binary[start..(start + BLOB_CHUNK_BYTES).min(binary.len())];
        let request = StateRequest::PutBlob { hash, total, offset: start as u64, bytes };
        peer.state(node, request, done);
    };
    let get = |peer: &mut Peer, node: &mut Node, hash, offset| {
        let request = StateRequest::GetBlob { hash, offset };
        peer.state(node, request, |reply| match reply {
            StateReply::NoBlob => None,
            StateReply::Blob { total: of, bytes } => {
                assert_eq!(*of, total);
                Some(bytes.to_vec())
            }
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(get(&mut peer, &mut node, hash, 0), None);
    put(&mut peer, &mut node, hash, 0);
    put(&mut peer, &mut node, hash, 2);
    assert_eq!(get(&mut peer, &mut node, hash, 0), None, "a piece is missing");
    put(&mut peer, &mut node, hash, 1);
    let mut back = Vec::new();
    while let Some(piece) = get(&mut peer, &mut node, hash, back.len() as u64) {
        if piece.is_empty() {
            break;
        }
        back.extend(piece);
    }
    assert!(back == binary);
    let middle = get(&mut peer, &mut node, hash, 1000).unwrap();
    assert_eq!(middle[..], binary[1000..BLOB_CHUNK_BYTES]);
    for index in 0..3 {
        put(&mut peer, &mut node, [9; 32], index);
    }
    assert_eq!(get(&mut peer, &mut node, [9; 32], 0), None, "its hash is another");
}

#[test]
fn the_state_log_gives_back_segments_that_the_engine_has_synced() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    let value = vec![5; 30_000];
    let rounds = 60u64;
    // Many at once, so that the log is ahead of the engine.
    for first in (1..=rounds).step_by(12) {
        for cursor in first..first + 12 {
            for key in [1, 2] {
                let value = Some(ValueSource::Inline(&value));
                let tuple = tuple(cursor);
                peer.ask(StateRequest::PutCell { object: object(&[key]), tuple, value });
            }
        }
        run(&mut [&mut node], &mut [&mut peer], |_, peers| peers[0].inbox.len() == 24);
        peer.inbox.clear();
    }
    let segments = || {
        let files = fs::read_dir(dir.path().join("node-1/state")).unwrap();
        files.filter(|file| file.as_ref().unwrap().path().is_file()).count()
    };
    // 3.6 MB went through segments of half a MiB.
    run(&mut [&mut node], &mut [&mut peer], |_, _| segments() <= 4);
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    let (mut peer, _) = engine(&mut node);
    for key in [1, 2] {
        let (cursor, _) = get_cell(&mut peer, &mut node, &[key]).unwrap();
        assert_eq!(cursor, rounds);
    }
    // Without the engine's files that state is gone, and the node says so.
    drop((node, peer));
    fs::remove_dir_all(dir.path().join("node-1/store")).unwrap();
    let error = Node::try_open(config(dir.path(), 1), dir.path()).err().unwrap();
    assert!(error.to_string().contains("state that was acknowledged is missing"), "{error}");
}

#[test]
fn a_request_that_breaks_the_rules_closes_its_lane_and_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut good, _) = engine(&mut node);
    let outside = ValueSource::Staged { offset: u64::MAX - 3, len: 8 };
    let beyond = ValueSource::Staged { offset: (4 << 20) - 4, len: 8 };
    let endless = ValueSource::Staged { offset: 0, len: u32::MAX };
    let version =
        |value| StateRequest::PutVersion { object: object(b"x"), version: VersionId(1), value };
    let piece = StateRequest::PutBlob { hash: [0; 32], total: 3, offset: 2, bytes: b"four" };
    for request in [version(outside), version(beyond), version(endless), piece] {
        let (mut bad, _) = engine(&mut node);
        bad.ask(request);
        run(&mut [&mut node], &mut [&mut bad], |_, peers| peers[0].down);
    }
    put_cell(&mut good, &mut node, b"k", 1, Some(b"value"));
    assert_eq!(get_cell(&mut good, &mut node, b"k"), Some((1, Some(b"value".to_vec()))));
}

#[test]
fn a_landing_outside_what_was_exposed_costs_the_asker_its_own_lane() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut bad, _) = engine(&mut node);
    let (mut good, _) = engine(&mut node);
    put_cell(&mut good, &mut node, b"k", 1, Some(&[1; 9000]));
    let landing = Some(Landing { region: 4_000_000, offset: 0, capacity: 10_000 });
    bad.ask(StateRequest::GetCell { object: object(b"k"), landing });
    run(&mut [&mut node], &mut [&mut bad], |_, peers| peers[0].down);
    assert_eq!(get_cell(&mut good, &mut node, b"k"), Some((1, Some(vec![1; 9000]))));
}

#[test]
fn every_write_asks_for_a_flush_before_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let mut sequencer = Sequencer::open(1, &mut node);
    let (mut peer, _) = engine(&mut node);
    sequencer.stream(5);
    sequencer.settle(&mut node);
    put_cell(&mut peer, &mut node, b"k", 1, None);
    let faults = node.disk.faults.borrow();
    assert!(faults.writes > 4);
    assert_eq!(faults.writes, faults.durable_writes);
}

#[test]
fn what_is_asked_in_an_epoch_that_is_over_is_neither_read_nor_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let (mut asker, _) = engine(&mut node);
    let object = ObjectKey { table: "t", key: b"k" };
    let put = |version, bytes| StateRequest::PutVersion {
        object,
        version: VersionId(version),
        value: ValueSource::Inline(bytes),
    };
    let get =
        |version| StateRequest::GetVersion { object, version: VersionId(version), landing: None };
    let mut ask = |node: &mut Node, epoch, request| {
        asker.epoch = epoch;
        asker.state(node, request, |reply| match reply {
            StateReply::Done => "done".to_owned(),
            StateReply::Value(None) => "absent".to_owned(),
            StateReply::Value(Some(_)) => "there".to_owned(),
            StateReply::Failed(why) => (*why).to_owned(),
            other => panic!("{other:?}"),
        })
    };
    Sequencer::open(2, &mut node);
    assert_eq!(ask(&mut node, 2, put(1, b"one")), "done");
    let sequencer = Sequencer::open(3, &mut node);
    for request in [put(2, b"two"), get(1)] {
        assert_eq!(ask(&mut node, 2, request), "the epoch is over");
    }
    assert_eq!(ask(&mut node, 3, get(1)), "there");
    assert_eq!(ask(&mut node, 3, get(2)), "absent");
    // A node that was not sealed yet serves those who are ahead of it.
    assert_eq!(ask(&mut node, 4, put(2, b"two")), "done");
    drop(sequencer);
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    let (mut asker, _) = engine(&mut node);
    asker.epoch = 2;
    let refused = asker.state(&mut node, get(1), |reply| matches!(reply, StateReply::Failed(_)));
    assert!(refused, "the promise holds after a restart");
}
