//! The log side of a storage node: stream, seal, watermarks, reads, catch-up, and a failing disk.
#![allow(missing_docs, clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use halfmoon_storage::NodeError;
use halfmoon_wire::*;
use support::*;

#[test]
fn what_was_acknowledged_is_there_after_the_node_was_dropped_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for epoch in 1..=10 {
        let mut node = Node::open(dir.path(), 1);
        let mut sequencer = Sequencer::open(epoch, &mut node);
        assert!(sequencer.end >= acknowledged, "epoch {epoch} lost something");
        for _ in 0..20 {
            sequencer.stream(13);
        }
        sequencer.settle(&mut node);
        acknowledged = sequencer.end;
        // More that is under way when the node goes.
        sequencer.stream(5);
        node.turn();
    }
    let mut node = Node::open(dir.path(), 1);
    let mut sequencer = Sequencer::open(11, &mut node);
    let seqs = sequencer.read_all(&mut node);
    assert_eq!(seqs, (1..=sequencer.end).collect::<Vec<_>>());
    assert!(node.role.metrics().snapshot().log_reads_disk > 0, "a fresh node reads from disk");
}

#[test]
fn an_engine_sees_the_watermark_of_its_epoch_in_its_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let mut sequencer = Sequencer::open(1, &mut node);
    let mut engine = Peer::dial(Role_::Engine, 10, &mut node);
    let (word, region) = engine.expose_word();
    let (other, other_region) = engine.expose_word();
    engine.send(&Message::WatermarkHere { epoch: Epoch(2), region: other_region });
    engine.send(&Message::WatermarkHere { epoch: Epoch(1), region });
    sequencer.stream(7);
    sequencer.settle(&mut node);
    run(&mut [&mut node], &mut [&mut engine], |_, _| load(&word) == 7);
    assert_eq!(load(&other), 0);
    // Sealed for epoch 2, the node publishes nothing of epoch 1 any more.
    sequencer.stream(3);
    let mut next = Sequencer::open(2, &mut node);
    next.stream(1);
    next.settle(&mut node);
    assert!(load(&word) <= 7);
}

#[test]
fn a_divergent_suffix_is_cut_and_followed_anew_also_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let mut first = Sequencer::open(1, &mut node);
    first.stream(10);
    first.settle(&mut node);
    // Epoch 2 was opened by others, from a log that has only six of these records.
    let mut second = Sequencer {
        peer: Peer::dial(Role_::Sequencer, 101, &mut node),
        epoch: 2,
        history: vec![
            EpochStart { epoch: Epoch(1), first: SeqNum(1) },
            EpochStart { epoch: Epoch(2), first: SeqNum(7) },
        ],
        end: 6,
        members: MEMBERS.to_vec(),
    };
    second.welcome(1);
    assert_eq!(second.follow(&mut node), 7);
    second.stream(2);
    second.settle(&mut node);
    assert_eq!(second.read_all(&mut node), (1..=8).collect::<Vec<_>>());
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    let mut third = Sequencer::open(3, &mut node);
    assert_eq!(third.end, 8);
    assert_eq!(third.history[..2], second.history[..]);
    assert_eq!(third.read_all(&mut node), (1..=8).collect::<Vec<_>>());
}

#[test]
fn a_promise_is_kept_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    Sequencer::open(5, &mut node);
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    let mut old = Peer::dial(Role_::Sequencer, 100, &mut node);
    old.send(&Message::Seal { epoch: Epoch(4) });
    let promised = old.expect(&mut [&mut node], |message| match message {
        Message::Sealed { promised, .. } => Some(*promised),
        _ => None,
    });
    assert_eq!(promised, Epoch(5));
    // It confirms no tail of epoch 4 either; only the later question is answered.
    old.send(&Message::Confirm { epoch: Epoch(4), token: 1 });
    old.send(&Message::Confirm { epoch: Epoch(5), token: 2 });
    let token = old.expect(&mut [&mut node], |message| match message {
        Message::Confirmed { token, .. } => Some(*token),
        _ => None,
    });
    assert_eq!(token, 2);
}

#[test]
fn an_empty_node_fetches_what_lies_below_the_window_from_a_peer() {
    let dir = tempfile::tempdir().unwrap();
    let mut full = Node::open(dir.path(), 1);
    let mut sequencer = Sequencer::open(1, &mut full);
    for _ in 0..30 {
        sequencer.stream(100);
    }
    sequencer.settle(&mut full);
    let mut empty = Node::open(dir.path(), 3);
    let mut second = Sequencer {
        peer: Peer::dial(Role_::Sequencer, 100, &mut empty),
        epoch: 1,
        history: sequencer.history.clone(),
        end: sequencer.end,
        members: MEMBERS.to_vec(),
    };
    // Node 2, which is asked as well, does not exist.
    second.welcome(2901);
    let from = second.peer.expect(&mut [&mut empty, &mut full], |message| match message {
        Message::Follow { from } => Some(from.0),
        _ => None,
    });
    assert!(from >= 2901);
    second.end = from - 1;
    second.settle(&mut empty);
    assert_eq!(second.read_all(&mut empty), (1..from).collect::<Vec<_>>());
}

#[test]
fn what_is_missing_is_fetched_from_the_members_of_the_epoch_that_it_is_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut full = Node::open(dir.path(), 1);
    let mut first = Sequencer::open(1, &mut full);
    for _ in 0..10 {
        first.stream(100);
    }
    first.settle(&mut full);
    let mut empty = Node::open(dir.path(), 3);
    let mut second = Sequencer {
        peer: Peer::dial(Role_::Sequencer, 100, &mut empty),
        epoch: 1,
        history: first.history.clone(),
        end: first.end,
        // Node 2 does not exist.
        members: vec![NodeId(2), NodeId(3)],
    };
    second.welcome(901);
    for _ in 0..100 {
        empty.turn();
        second.peer.turn();
    }
    let follows = |bytes: &Vec<u8>| matches!(Message::parse(bytes), Ok(Message::Follow { .. }));
    assert!(!second.peer.inbox.iter().any(follows), "nobody could be asked");
    let mut next = Sequencer::open(2, &mut full);
    next.stream(1);
    next.settle(&mut full);
    (second.epoch, second.history, second.end) = (2, next.history.clone(), next.end);
    second.members = MEMBERS.to_vec();
    second.welcome(901);
    let from = second.peer.expect(&mut [&mut empty, &mut full], |message| match message {
        Message::Follow { from } => Some(from.0),
        _ => None,
    });
    assert!(from >= 901);
}

#[test]
fn a_failed_flush_stops_the_node_and_nothing_it_held_was_acknowledged() {
    for short in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::open(dir.path(), 1);
        let mut sequencer = Sequencer::open(1, &mut node);
        sequencer.stream(9);
        sequencer.settle(&mut node);
        {
            let mut faults = node.disk.faults.borrow_mut();
            faults.short = short;
            faults.fail = (!short).then_some(std::io::ErrorKind::Other);
        }
        for _ in 0..40 {
            sequencer.stream(30);
        }
        run(&mut [&mut node], &mut [&mut sequencer.peer], |nodes, _| nodes[0].error.is_some());
        let error = node.error.take().unwrap();
        assert!(matches!(error, NodeError::Flush { .. }), "{error}");
        assert!(error.to_string().contains("start the node again"), "{error}");
        for bytes in &sequencer.peer.inbox {
            let message = Message::parse(bytes).unwrap();
            assert!(!matches!(message, Message::Durable { seq, .. } if seq > SeqNum(9)));
        }
        drop(node);
        let mut node = Node::open(dir.path(), 1);
        assert!(Sequencer::open(2, &mut node).end >= 9);
    }
}

#[test]
fn a_disk_without_room_for_a_segment_stops_the_node_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let mut sequencer = Sequencer::open(1, &mut node);
    sequencer.stream(9);
    sequencer.settle(&mut node);
    // The next segment's file is written to a device that is always full.
    let new = dir.path().join("node-1/log/pool/new");
    std::os::unix::fs::symlink("/dev/full", new).unwrap();
    let mut sent = 0;
    run(&mut [&mut node], &mut [&mut sequencer.peer], |nodes, peers| {
        if sent < 60 {
            sent += 1;
            let first = 10 + (sent - 1) * 100;
            let bytes = records(first..=first + 99, 1);
            let stream = Message::Stream { epoch: Epoch(1), first: SeqNum(first), records: &bytes };
            peers[0].send(&stream);
        }
        nodes[0].error.is_some()
    });
    let error = node.error.take().unwrap();
    assert!(error.to_string().contains("make room"), "{error}");
    let acknowledged =
        sequencer.peer.inbox.iter().filter_map(|bytes| match Message::parse(bytes).unwrap() {
            Message::Durable { seq, .. } => Some(seq.0),
            _ => None,
        });
    let acknowledged = acknowledged.max().unwrap_or(9);
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    assert!(Sequencer::open(2, &mut node).end >= acknowledged);
}

fn damage(dir: &std::path::Path, at: u64) {
    let path = dir.join("node-1/log/0000000000000001.seg");
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_damaged_segment_is_refused_with_what_to_do_and_a_torn_tail_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let mut sequencer = Sequencer::open(1, &mut node);
    for _ in 0..5 {
        sequencer.stream(1);
        sequencer.settle(&mut node);
    }
    drop(node);
    // Start, Open, Promise, then one block per record: the last is torn.
    damage(dir.path(), 7 * 4096 + 100);
    let mut node = Node::open(dir.path(), 1);
    assert_eq!(Sequencer::open(2, &mut node).end, 4);
    drop(node);
    damage(dir.path(), 4 * 4096 + 100);
    let error = Node::try_open(config(dir.path(), 1), dir.path()).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, NodeError::Corrupt { .. }), "{text}");
    assert!(text.contains("segment 1 is damaged at byte 16384"), "{text}");
    assert!(text.contains("`halfmoon node replace OLD NEW`"), "{text}");
}

#[test]
fn a_directory_is_used_by_one_node_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(dir.path(), 1);
    let open = |config| Node::try_open(config, dir.path()).err().unwrap();
    assert!(matches!(open(config(dir.path(), 1)), NodeError::Locked { .. }));
    drop(node);
    let mut node = Node::open(dir.path(), 1);
    Sequencer::open(1, &mut node);
    drop(node);
    let mut stranger = config(dir.path(), 1);
    stranger.node = NodeId(2);
    assert!(open(stranger).to_string().contains("its own directory"));
    let segments = dir.path().join("node-1/log");
    for file in fs::read_dir(&segments).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    assert!(matches!(open(config(dir.path(), 1)), NodeError::Corrupt { .. }));
    fs::write(dir.path().join("file"), "").unwrap();
    let mut nowhere = config(dir.path(), 1);
    nowhere.data_dir = dir.path().join("file/data");
    assert!(open(nowhere).to_string().contains("data directory that it may write to"));
    let mut odd = config(dir.path(), 1);
    odd.segment_bytes = 1000;
    assert!(open(odd).to_string().contains("multiple of 4096"));
}

#[test]
fn a_peer_that_breaks_the_rules_is_cut_and_nobody_else_is_harmed() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path(), 1);
    let mut sequencer = Sequencer::open(1, &mut node);
    let breaches: [&[u8]; 4] = [
        b"",
        b"\xffnoise",
        &Message::Seal { epoch: Epoch(9) }.to_bytes(),
        &Message::Tail { token: 1, seq: SeqNum(1) }.to_bytes(),
    ];
    for breach in breaches {
        let mut engine = Peer::dial(Role_::Engine, 10, &mut node);
        engine.endpoint.send(engine.lane, &[breach]).unwrap();
        run(&mut [&mut node], &mut [&mut engine], |_, peers| peers[0].down);
    }
    let mut false_sequencer = Peer::dial(Role_::Sequencer, 102, &mut node);
    let bytes = record(5, 1, b"a gap");
    false_sequencer.send(&Message::Stream { epoch: Epoch(1), first: SeqNum(1), records: &bytes });
    run(&mut [&mut node], &mut [&mut false_sequencer], |_, peers| peers[0].down);
    sequencer.stream(4);
    sequencer.settle(&mut node);
}
