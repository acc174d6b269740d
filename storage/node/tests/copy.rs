//! A new member copies the state: from all whom it takes, during writes, and again after a crash.
#![allow(missing_docs, clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use halfmoon_meta::{FileStore, cluster};
use halfmoon_wire::limits::{BLOB_CHUNK_BYTES, SCAN_PAGE_BYTES};
use halfmoon_wire::*;
use proptest::prelude::*;
use support::*;

/// Who holds the state once 4 has taken the place of 3.
const LATER: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(4)];

fn object(key: &[u8]) -> ObjectKey<'_> {
    ObjectKey { table: "default/rooms", key }
}

fn tuple(cursor: u64) -> CellTuple {
    CellTuple { cursor: SeqNum(cursor), counter: 0, instance: InstanceId(7) }
}

fn done(reply: &StateReply<'_>) {
    assert_eq!(*reply, StateReply::Done);
}

fn put_cell(engine: &mut Peer, node: &mut Node, key: u8, cursor: u64) {
    let value = vec![key; cursor as usize % 5 * 100];
    let value = Some(ValueSource::Inline(&value)).filter(|_| !cursor.is_multiple_of(7));
    let request = StateRequest::PutCell {
        object: object(std::slice::from_ref(&key)),
        tuple: tuple(cursor),
        value,
    };
    engine.state(node, request, done);
}

fn put_version(engine: &mut Peer, node: &mut Node, key: u8, value: &[u8]) {
    let (object, version, value) =
        (object(std::slice::from_ref(&key)), VersionId(1), ValueSource::Inline(value));
    engine.state(node, StateRequest::PutVersion { object, version, value }, done);
}

/// The cursor of a cell; an error when the node says that it cannot tell.
fn cursor_of(engine: &mut Peer, node: &mut Node, key: u8) -> Result<Option<u64>, String> {
    let request = StateRequest::GetTuple { object: object(std::slice::from_ref(&key)) };
    engine.state(node, request, |reply| match reply {
        StateReply::Tuple(tuple) => Ok(tuple.map(|tuple| tuple.cursor.0)),
        StateReply::Failed(why) => Err((*why).to_owned()),
        other => panic!("{other:?}"),
    })
}

fn version_of(engine: &mut Peer, node: &mut Node, key: u8) -> Option<Vec<u8>> {
    let object = object(std::slice::from_ref(&key));
    let request = StateRequest::GetVersion { object, version: VersionId(1), landing: None };
    engine.state(node, request, |reply| match reply {
        StateReply::Value(None) => None,
        StateReply::Value(Some((_, Some(ValueSource::Inline(bytes))))) => Some(bytes.to_vec()),
        other => panic!("{other:?}"),
    })
}

/// A function binary of two pieces.
fn binary() -> ([u8; 32], Vec<u8>) {
    let bytes: Vec<u8> = (0..BLOB_CHUNK_BYTES + 1000).map(|n| (n % 251) as u8).collect();
    (*blake3::hash(&bytes).as_bytes(), bytes)
}

fn put_binary(engine: &mut Peer, node: &mut Node) {
    let (hash, bytes) = binary();
    let mut offset = 0;
    for piece in bytes.chunks(BLOB_CHUNK_BYTES) {
        let total = bytes.len() as u64;
        engine.state(node, StateRequest::PutBlob { hash, total, offset, bytes: piece }, done);
        offset += piece.len() as u64;
    }
}

fn get_binary(engine: &mut Peer, node: &mut Node) -> Vec<u8> {
    let (hash, _) = binary();
    let mut whole = Vec::new();
    loop {
        let request = StateRequest::GetBlob { hash, offset: whole.len() as u64 };
        let (total, piece) = engine.state(node, request, |reply| match reply {
            StateReply::Blob { total, bytes } => (*total, bytes.to_vec()),
            other => panic!("{other:?}"),
        });
        whole.extend(piece);
        if whole.len() as u64 == total {
            return whole;
        }
    }
}

fn replace_three_by_four(dir: &Path) {
    let meta = FileStore::open(dir.join("meta")).unwrap();
    cluster::propose_members(&meta, &LATER).unwrap();
}

fn is_known_to_be_whole(dir: &Path, node: u32) -> bool {
    let meta = FileStore::open(dir.join("meta")).unwrap();
    cluster::read(&meta).unwrap().has_state(NodeId(node))
}

fn says_whole(dir: &Path, node: u32) -> bool {
    let text = std::fs::read_to_string(dir.join(format!("node-{node}/identity"))).unwrap();
    text.lines().any(|line| line == "whole yes")
}

fn is_whole(node: &Node) -> bool {
    node.role.metrics().snapshot().state_whole == 1
}

/// Turns the nodes until all of the state is on the last of them, and written down.
fn copy(dir: &Path, nodes: &mut [&mut Node]) {
    run(nodes, &mut [], |nodes, _| is_whole(nodes.last().unwrap()) && is_known_to_be_whole(dir, 4));
}

fn engine(node: &mut Node) -> Peer {
    Peer::dial(Role_::Engine, 10, node)
}

#[test]
fn a_new_member_has_what_either_of_two_members_had_whatever_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (Node::open(dir.path(), 1), Node::open(dir.path(), 2));
    let (mut to_one, mut to_two) = (engine(&mut one), engine(&mut two));
    // One of them missed some writes, the other one others.
    put_cell(&mut to_one, &mut one, 1, 10);
    put_cell(&mut to_two, &mut two, 1, 20);
    put_cell(&mut to_one, &mut one, 2, 31);
    put_cell(&mut to_two, &mut two, 2, 30);
    put_cell(&mut to_two, &mut two, 3, 7);
    put_version(&mut to_one, &mut one, 1, b"");
    put_version(&mut to_two, &mut two, 2, b"short");
    // A value of several pages, between others.
    let long: Vec<u8> = (0..SCAN_PAGE_BYTES * 3 / 2).map(|n| (n / 1000) as u8).collect();
    for key in [3, 4] {
        put_version(&mut to_one, &mut one, key, &long);
        put_version(&mut to_two, &mut two, key, &long);
    }
    put_binary(&mut to_two, &mut two);
    replace_three_by_four(dir.path());
    let _of_one = Sequencer::open_with(2, &LATER, &mut one);
    let _of_two = Sequencer::open_with(2, &LATER, &mut two);
    let mut four = Node::open(dir.path(), 4);
    let _of_four = Sequencer::open_with(2, &LATER, &mut four);
    copy(dir.path(), &mut [&mut one, &mut two, &mut four]);
    let mut asker = engine(&mut four);
    for (key, cursor) in [(1, Some(20)), (2, Some(31)), (3, Some(7)), (4, None)] {
        assert_eq!(cursor_of(&mut asker, &mut four, key).unwrap(), cursor);
    }
    assert_eq!(version_of(&mut asker, &mut four, 1), Some(vec![]));
    assert_eq!(version_of(&mut asker, &mut four, 2), Some(b"short".to_vec()));
    assert_eq!(version_of(&mut asker, &mut four, 3).as_ref(), Some(&long));
    assert_eq!(version_of(&mut asker, &mut four, 4).as_ref(), Some(&long));
    assert_eq!(version_of(&mut asker, &mut four, 5), None);
    assert_eq!(get_binary(&mut asker, &mut four), binary().1);
    assert!(four.role.metrics().snapshot().copied_bytes > 4 * long.len() as u64);
    // It was copied once. Started again, with nobody there, the node has it.
    drop((one, two, four));
    let mut four = Node::open(dir.path(), 4);
    let mut asker = engine(&mut four);
    assert_eq!(cursor_of(&mut asker, &mut four, 1).unwrap(), Some(20));
    assert_eq!(get_binary(&mut asker, &mut four), binary().1);
}

#[test]
fn nothing_is_read_from_a_member_before_two_others_have_given_all_they_had() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (Node::open(dir.path(), 1), Node::open(dir.path(), 2));
    let mut to_two = engine(&mut two);
    put_cell(&mut to_two, &mut two, 1, 3);
    replace_three_by_four(dir.path());
    let _of_one = Sequencer::open_with(2, &LATER, &mut one);
    let mut four = Node::open(dir.path(), 4);
    let _of_four = Sequencer::open_with(2, &LATER, &mut four);
    // The second has not promised the epoch: it still acknowledges writes of the one before.
    let mut asker = engine(&mut four);
    for turn in 0..200 {
        four.turn();
        one.turn();
        two.turn();
        if turn % 50 == 0 {
            let refused = cursor_of(&mut asker, &mut four, 1).unwrap_err();
            assert_eq!(refused, "this node still copies the state");
        }
    }
    put_cell(&mut to_two, &mut two, 1, 5);
    // It takes writes meanwhile, newer ones and older ones.
    put_cell(&mut asker, &mut four, 1, 4);
    put_cell(&mut asker, &mut four, 2, 9);
    assert!(!is_known_to_be_whole(dir.path(), 4) && !says_whole(dir.path(), 4));
    let _of_two = Sequencer::open_with(2, &LATER, &mut two);
    copy(dir.path(), &mut [&mut one, &mut two, &mut four]);
    assert!(says_whole(dir.path(), 4));
    assert_eq!(cursor_of(&mut asker, &mut four, 1), Ok(Some(5)));
    assert_eq!(cursor_of(&mut asker, &mut four, 2), Ok(Some(9)));
}

#[test]
fn who_was_there_from_the_start_copies_nothing_and_says_so_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = Node::open(dir.path(), 1);
    run(&mut [&mut one], &mut [], |_, _| {
        dir.path().join("node-1/identity").exists() && says_whole(dir.path(), 1)
    });
    let mut asker = engine(&mut one);
    assert_eq!(cursor_of(&mut asker, &mut one, 1), Ok(None));
    // An engine is no member that copies.
    asker.epoch = 1;
    asker.ask(StateRequest::Scan { after: b"", offset: 0 });
    run(&mut [&mut one], &mut [&mut asker], |_, peers| peers[0].down);
}

#[derive(Clone, Debug)]
enum Step {
    /// On one of the sources, or the new member.
    Put {
        node: usize,
        key: u8,
        cursor: u64,
    },
    Turn(usize),
    /// The new member dies and is started again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..3, 0u8..40, 1u64..500)
            .prop_map(|(node, key, cursor)| Step::Put { node, key, cursor }),
        8 => (0usize..3).prop_map(Step::Turn),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_during_writes_and_crashes_has_the_newest_of_all_that_was_there(
        before in prop::collection::vec((0usize..2, 0u8..40, 1u64..500), 0..60),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = [Node::open(dir.path(), 1), Node::open(dir.path(), 2)];
        let mut engines = nodes.each_mut().map(engine);
        let mut newest: BTreeMap<u8, u64> = BTreeMap::new();
        for (node, key, cursor) in before {
            put_cell(&mut engines[node], &mut nodes[node], key, cursor);
            let known = newest.entry(key).or_default();
            *known = cursor.max(*known);
        }
        replace_three_by_four(dir.path());
        let [mut one, mut two] = nodes;
        let [mut to_one, mut to_two] = engines;
        let _of_one = Sequencer::open_with(2, &LATER, &mut one);
        let _of_two = Sequencer::open_with(2, &LATER, &mut two);
        let mut four = Node::open(dir.path(), 4);
        let mut of_four = Sequencer::open_with(2, &LATER, &mut four);
        let mut to_four = engine(&mut four);
        for step in steps {
            match step {
                Step::Put { node, key, cursor } => match node {
                    0 => put_cell(&mut to_one, &mut one, key, cursor),
                    1 => put_cell(&mut to_two, &mut two, key, cursor),
                    _ => {
                        put_cell(&mut to_four, &mut four, key, cursor);
                        let known = newest.entry(key).or_default();
                        *known = cursor.max(*known);
                    }
                },
                Step::Turn(0) => one.turn(),
                Step::Turn(1) => two.turn(),
                Step::Turn(_) => four.turn(),
                Step::Restart => {
                    drop(four);
                    four = Node::open(dir.path(), 4);
                    of_four = Sequencer::open_with(of_four.epoch + 1, &LATER, &mut four);
                    to_four = engine(&mut four);
                    for node in [&mut one, &mut two] {
                        Sequencer::open_with(of_four.epoch, &LATER, node);
                    }
                }
            }
        }
        copy(dir.path(), &mut [&mut one, &mut two, &mut four]);
        for (key, cursor) in newest {
            let found = cursor_of(&mut to_four, &mut four, key).unwrap();
            prop_assert!(found >= Some(cursor), "{}: {:?} < {}", key, found, cursor);
        }
    }
}
