//! The client against a sequencer and storage nodes over real lanes, in virtual time.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::wildcard_enum_match_arm, unreachable_pub, reason = "tests")]

#[expect(dead_code, reason = "shared with the tests of the engine")]
mod fake;

use std::cell::{Cell as StdCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use fake::*;
use halfmoon_client::*;
use halfmoon_transport::{HeapMemory, Memory, memory};
use halfmoon_wire::*;

const TAG: Tag = Tag(5);

fn request<'a>(conditions: &'a [Condition], tags: &'a [Tag]) -> AppendRequest<'a> {
    AppendRequest { floor: SeqNum::MAX, conditions, tags, payload: b"payload" }
}

fn at_length(length: u64) -> [Condition; 1] {
    [Condition::Length { tag: TAG, length }]
}

fn tuple(cursor: u64) -> CellTuple {
    CellTuple { cursor: SeqNum(cursor), ..CellTuple::default() }
}

fn bytes(text: &str) -> ValueIn {
    ValueIn::Bytes(text.as_bytes().into())
}

fn key() -> (String, Vec<u8>) {
    ("t".to_owned(), b"k".to_vec())
}

#[test]
fn an_append_is_answered_once_two_nodes_have_flushed_it() {
    let mut world = World::new();
    world.ready();
    for node in 1..3 {
        world.node(node).flushed = Some(1);
    }
    let log = world.driver.log();
    let end = world.start(async move { log.append(&request(&at_length(0), &[TAG])).await });
    world.rounds(50);
    assert_eq!(world.locals(), [1], "ordered, and flushed by one node");
    assert_eq!(*end.borrow(), None);
    world.node(2).flushed = None;
    world.until("the answer", |_| end.borrow().is_some());
    assert_eq!(*end.borrow(), Some(Ok(Appended::At(SeqNum(2)))));
    assert_eq!(world.driver.log().tag_len(TAG), 1);
    assert_eq!(world.driver.log().steps(TAG), [SeqNum(2)]);
}

#[test]
fn a_loser_can_read_its_winner() {
    let mut world = World::new();
    world.ready();
    let log = world.driver.log();
    let (first, second) = world.run(async move {
        let first = log.append(&request(&at_length(0), &[TAG]));
        let second = log.append(&request(&at_length(0), &[TAG])).await;
        let found = log.with_cached(SeqNum(2), |record| record.payload().to_vec());
        assert_eq!(found.as_deref(), Some(&b"payload"[..]));
        (first.await, second)
    });
    assert_eq!(first, Ok(Appended::At(SeqNum(2))));
    assert_eq!(second, Ok(Appended::Conflict { condition: 0, winner: SeqNum(2) }));
    assert_eq!(world.driver.metrics().conflicts, 1);
}

#[test]
fn appends_survive_any_number_of_sequencers_and_are_done_once() {
    let mut world = World::new();
    world.ready();
    let answers: Rc<RefCell<Vec<Appended>>> = Rc::default();
    for _ in 0..200 {
        let (log, answers) = (world.driver.log(), answers.clone());
        let task = async move {
            for _ in 0..5 {
                let answer = log.append(&request(&[], &[TAG])).await.unwrap();
                answers.borrow_mut().push(answer);
            }
        };
        world.driver.executor().spawn(task).unwrap();
    }
    for round in 0..6 {
        world.rounds(35 + 3 * round);
        world.kill_sequencer();
        world.rounds(20);
        world.start_sequencer();
    }
    // A deaf one, which takes appends and loses them with its lane.
    world.sequencer().deaf = true;
    world.rounds(30);
    world.kill_sequencer();
    world.start_sequencer();
    world.until("all answers", |_| answers.borrow().len() == 1000);
    let mut seqs: Vec<_> = answers
        .borrow()
        .iter()
        .map(|answer| match answer {
            Appended::At(seq) => *seq,
            other => panic!("{other:?}"),
        })
        .collect();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!((seqs.len(), world.locals().len(), world.distinct()), (1000, 1000, 1000));
    assert!(world.driver.metrics().epochs >= 3);
    assert_eq!(world.driver.log().unanswered(), 0);
}

#[test]
fn an_append_that_was_lost_with_its_lane_is_sent_again_in_the_same_epoch() {
    let mut world = World::new();
    world.ready();
    world.sequencer().deaf = true;
    let log = world.driver.log();
    let end = world.start(async move { log.append(&request(&[], &[])).await });
    world.until("the append", |world| world.sequencer().appends_seen == 1);
    world.sequencer().drop_lanes();
    world.sequencer().deaf = false;
    world.until("the answer", |_| end.borrow().is_some());
    assert_eq!(*end.borrow(), Some(Ok(Appended::At(SeqNum(2)))));
    assert_eq!(world.driver.metrics().epochs, 1);
}

#[test]
fn a_sequencer_without_room_is_asked_again() {
    let mut world = World::new();
    world.ready();
    world.sequencer().overloaded = 3;
    let log = world.driver.log();
    let answer = world.run(async move { log.append(&request(&[], &[])).await });
    assert_eq!(answer, Ok(Appended::At(SeqNum(2))));
    assert_eq!(world.sequencer().appends_seen, 4);
}

#[test]
fn what_lies_below_the_window_is_read_from_storage() {
    let mut world = World::with(
        |log| {
            log.open();
            for local in 1..=500 {
                let origin = Origin { engine: NodeId(4), incarnation: LIFE, local: LocalId(local) };
                log.put(RecordKind::Data, origin, &[TAG], &vec![1; 3000]);
            }
            log.window_start = 480;
        },
        Limits::default(),
    );
    world.node(0).mute = true;
    let folded = Rc::new(StdCell::new(0));
    let count = folded.clone();
    world.driver.log().on_apply(move |record| {
        count.set(count.get() + 1);
        assert_eq!(record.seq().0, count.get(), "in order, each once");
    });
    world.ready();
    assert_eq!(world.driver.log().applied(), SeqNum(502));
    assert_eq!(folded.get(), 502);
    assert_eq!(world.driver.log().tag_len(TAG), 500);
    let log = world.driver.log();
    assert_eq!(log.at(TAG, 0), Some(SeqNum(2)));
    let reads = world.run(async move {
        let prev = log.read_prev(TAG, SeqNum(300)).await;
        let next = log.read_next(TAG, SeqNum(1)).await;
        (prev, next)
    });
    assert_eq!(reads, (Ok(Some(SeqNum(300))), Ok(Some(SeqNum(2)))));
}

#[test]
fn a_read_at_a_bound_waits_for_it() {
    let mut world = World::new();
    world.ready();
    let log = world.driver.log();
    let read = world.start(async move { log.read_prev(TAG, SeqNum(3)).await });
    world.rounds(20);
    assert_eq!(*read.borrow(), None);
    for _ in 0..2 {
        world.driver.log().post(&request(&[], &[TAG])).unwrap();
    }
    world.until("the bound", |_| read.borrow().is_some());
    assert_eq!(*read.borrow(), Some(Ok(Some(SeqNum(3)))));
}

#[test]
fn whoever_waits_for_a_tail_that_is_lost_with_its_sequencer_asks_the_next_one() {
    let mut world = World::new();
    world.ready();
    for node in 0..3 {
        world.node(node).flushed = Some(1);
    }
    for local in 1..=5 {
        let origin = Origin { engine: NodeId(4), incarnation: LIFE, local: LocalId(local) };
        world.log.borrow_mut().put(RecordKind::Data, origin, &[TAG], b"payload");
    }
    let log = world.driver.log();
    let caught_up = world.start(async move { log.catch_up().await });
    world.rounds(50);
    assert_eq!(*caught_up.borrow(), None, "five records are ordered and not flushed");
    world.kill_sequencer();
    world.log.borrow_mut().recs.truncate(1);
    for node in 0..3 {
        world.node(node).flushed = None;
    }
    world.start_sequencer();
    world.until("the end of the new epoch's log", |_| caught_up.borrow().is_some());
    assert_eq!(*caught_up.borrow(), Some(Ok(())));
    assert_eq!(world.driver.log().applied(), SeqNum(2), "the opening records, and nothing else");
}

#[test]
fn a_log_that_lacks_what_was_applied_is_used_no_more() {
    let mut world = World::new();
    world.ready();
    for _ in 0..3 {
        let log = world.driver.log();
        let answer = world.run(async move { log.append(&request(&[], &[TAG])).await });
        assert!(matches!(answer, Ok(Appended::At(_))));
    }
    let log = world.driver.log();
    assert!(!log.is_broken());
    world.kill_sequencer();
    world.log.borrow_mut().recs.truncate(2);
    world.start_sequencer();
    world.until("the end of the client", |_| log.is_broken());
    let answer = world.run(async move { log.append(&request(&[], &[TAG])).await });
    assert_eq!(answer, Err(LogError::Broken));
}

#[test]
fn a_record_that_memory_has_dropped_comes_from_a_node_that_answers() {
    let limits = Limits { cache_bytes: 1 << 20, ..Limits::default() };
    let mut world = World::with(
        |log| {
            log.open();
            for local in 1..=40 {
                let origin = Origin { engine: NodeId(4), incarnation: LIFE, local: LocalId(local) };
                log.put(RecordKind::Data, origin, &[], &vec![u8::try_from(local).unwrap(); 90_000]);
            }
            log.window_start = 42;
        },
        limits,
    );
    world.ready();
    assert!(world.driver.log().with_cached(SeqNum(3), |_| ()).is_none());
    world.node(0).mute = true;
    world.kill_storage(1);
    let (log, deadline) = (world.driver.log(), world.deadline(10_000));
    let record = world.run(async move { log.record(SeqNum(3), deadline).await.unwrap() });
    assert_eq!(record.view().seq(), SeqNum(3));
    assert_eq!(record.view().payload(), vec![2; 90_000]);
    world.node(2).mute = true;
    let (log, deadline) = (world.driver.log(), world.deadline(1_000));
    let none = world.run(async move { log.record(SeqNum(4), deadline).await.map(|_| ()) });
    assert_eq!(none, Err(LogError::Unavailable));
}

#[test]
fn reports_name_what_is_applied_and_the_least_cursor() {
    let mut world = World::new();
    world.ready();
    world.driver.log().post(&request(&[], &[])).unwrap();
    world.driver.log().set_safe_point(Some(SeqNum(1)));
    let reported = |world: &mut World| world.sequencer().reports.last() == Some(&(2, 1, 1));
    world.until("a report", reported);
    world.driver.log().set_safe_point(None);
    let reported = |world: &mut World| world.sequencer().reports.last() == Some(&(2, 2, 1));
    world.until("another report", reported);
}

#[test]
fn the_tail_is_the_sequencers_also_when_it_is_another_one() {
    let mut world = World::new();
    world.ready();
    world.kill_sequencer();
    let log = world.driver.log();
    let tail = world.start(async move { log.tail().await });
    world.rounds(30);
    assert_eq!(*tail.borrow(), None);
    world.start_sequencer();
    world.sequencer().recovering = true;
    world.until("its lane", |world| !world.sequencer().lanes.is_empty());
    world.rounds(20);
    world.sequencer().recover();
    world.until("the tail", |_| tail.borrow().is_some());
    assert_eq!(*tail.borrow(), Some(Ok(SeqNum(2))));
}

#[test]
fn a_deposed_sequencer_that_lives_on_is_left() {
    let mut world = World::new();
    world.ready();
    world.sequencer().deaf = true;
    let log = world.driver.log();
    let end = world.start(async move { log.append(&request(&[], &[])).await });
    world.rounds(10);
    let deposed = world.sequencer.take();
    world.start_sequencer();
    world.until("the answer", |_| end.borrow().is_some());
    assert_eq!(*end.borrow(), Some(Ok(Appended::At(SeqNum(3)))));
    drop(deposed);
}

#[test]
fn one_that_stood_by_is_followed_as_soon_as_it_says_welcome() {
    for dies in [true, false] {
        let mut world = World::new();
        world.start_standby();
        world.ready();
        let up = |world: &mut World| {
            let all = world.driver.log().sequencers();
            all.iter().any(|one| one.node == SECOND && one.is_up && !one.is_in_charge)
        };
        world.until("a lane to the one that stands by", up);
        world.sequencer().deaf = true;
        let log = world.driver.log();
        let end = world.start(async move { log.append(&request(&[], &[])).await });
        world.rounds(10);
        // Dead, or merely stuck: nobody has to be asked where the other one is.
        let deposed = world.sequencer.take().filter(|_| !dies);
        world.is_mute.set(true);
        world.promote_standby();
        world.until("the answer", |_| end.borrow().is_some());
        assert_eq!(*end.borrow(), Some(Ok(Appended::At(SeqNum(3)))));
        let in_charge: Vec<_> = world.driver.log().sequencers();
        let in_charge: Vec<_> =
            in_charge.iter().filter(|one| one.is_in_charge).map(|one| one.node).collect();
        assert_eq!(in_charge, [SECOND]);
        drop(deposed);
    }
}

#[test]
fn a_deposed_sequencer_is_not_followed_again() {
    let mut world = World::new();
    world.start_standby();
    world.ready();
    let second_is_up = |world: &mut World| !world.standby.as_ref().unwrap().lanes.is_empty();
    world.until("a lane to the one that stands by", second_is_up);
    world.promote_standby();
    let entered = |world: &mut World| world.driver.metrics().epoch == 2;
    world.until("the new epoch", entered);
    // The old one is there still, and says welcome to whoever dials it.
    world.rounds(3000);
    let log = world.driver.log();
    let answer = world.run(async move { log.append(&request(&[], &[])).await });
    assert_eq!(answer, Ok(Appended::At(SeqNum(3))));
    assert_eq!(world.driver.metrics().epoch, 2);
}

#[test]
fn while_all_is_well_the_directory_is_left_alone() {
    let mut world = World::new();
    world.start_standby();
    world.ready();
    world.rounds(200);
    let asked = world.asked.get();
    world.rounds(5000);
    assert_eq!(world.asked.get(), asked);
    // One that stood by and is gone is looked for now and then.
    world.standby = None;
    world.rounds(5000);
    assert!((1..20).contains(&(world.asked.get() - asked)), "{}", world.asked.get() - asked);
}

#[test]
fn an_evicted_engine_is_told_so() {
    let mut world = World::new();
    world.ready();
    world.sequencer().deaf = true;
    let log = world.driver.log();
    let end = world.start(async move { log.append(&request(&[], &[])).await });
    world.rounds(10);
    let evict = Evict {
        engine: ENGINE,
        incarnation: LIFE,
        heir: NodeId(8),
        heir_incarnation: Incarnation(3),
    };
    let payload = evict.to_bytes();
    world.log.borrow_mut().put(RecordKind::Evict, Origin::default(), &[], &payload);
    world.until("the answer", |_| end.borrow().is_some());
    assert_eq!(*end.borrow(), Some(Ok(Appended::Evicted)));
    let log = world.driver.log();
    assert!(log.is_evicted());
    let again = world.run(async move { log.append(&request(&[], &[])).await });
    assert_eq!(again, Ok(Appended::Evicted));
}

#[test]
fn an_append_under_way_when_the_client_ends_is_unknown() {
    let mut world = World::new();
    world.ready();
    world.sequencer().deaf = true;
    let log = world.driver.log();
    let mut append = Box::pin(log.append(&request(&[], &[])));
    world.rounds(5);
    world.driver.close();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let polled = append.as_mut().poll(&mut context);
    assert_eq!(polled, std::task::Poll::Ready(Err(LogError::Unknown)));
    let mut append = Box::pin(log.append(&request(&[], &[])));
    let polled = append.as_mut().poll(&mut context);
    assert_eq!(polled, std::task::Poll::Ready(Err(LogError::Closed)));
}

#[test]
fn a_cell_that_two_nodes_agree_on_is_read_without_a_write() {
    let mut world = World::new();
    world.ready();
    let (state, deadline) = (world.driver.state(), world.deadline(10_000));
    let cell = world.run(async move {
        assert_eq!(state.get_cell("t", b"k", None, deadline).await, Ok(None));
        state.put_cell("t", b"k", tuple(3), Some(bytes("v")), deadline).await.unwrap();
        state.put_cell("t", b"k", tuple(2), Some(bytes("late")), deadline).await.unwrap();
        state.get_cell("t", b"k", None, deadline).await
    });
    let value = Some(Value::Bytes(b"v".to_vec()));
    assert_eq!(cell, Ok(Some(Cell { tuple: tuple(3), value })));
    world.rounds(5);
    assert_eq!(world.driver.metrics().write_backs, 0);
    for node in 0..3 {
        assert_eq!(world.node(node).puts, 2);
    }
}

#[test]
fn a_newer_cell_is_on_two_nodes_before_anyone_hears_of_it() {
    for newest in 0..3 {
        for silent in [None, Some((newest + 1) % 3)] {
            let mut world = World::new();
            world.ready();
            for node in 0..3 {
                let cursor = if node == newest { 9 } else { 4 };
                let value = Some(format!("of {cursor}").into_bytes());
                world.node(node).store.cells.insert(key(), (tuple(cursor), value));
            }
            if let Some(silent) = silent {
                world.node(silent).mute = true;
            }
            let (state, deadline) = (world.driver.state(), world.deadline(60_000));
            let cell = world
                .run(async move { state.get_cell("t", b"k", None, deadline).await })
                .unwrap()
                .unwrap();
            let has =
                |world: &mut World, node| world.node(node).store.cells[&key()].0 == cell.tuple;
            let holders = (0..3).filter(|node| has(&mut world, *node)).count();
            assert!(holders >= 2, "{newest} {silent:?} {cell:?}");
            let of = cell.tuple.cursor.0;
            assert_eq!(cell.value, Some(Value::Bytes(format!("of {of}").into_bytes())));
            if silent.is_some() {
                assert_eq!(of, 9, "one of two voices has it");
            }
        }
    }
}

#[test]
fn what_is_written_back_is_what_was_read_whatever_becomes_of_the_memory() {
    let value = vec![7; 200_000];
    for newest in 0..3 {
        let mut world = World::new();
        world.ready();
        let arena = Arc::new(HeapMemory::new(1 << 20));
        let region = world.driver.expose(arena.clone()).unwrap();
        for node in 0..3 {
            let cursor = if node == newest { 9 } else { 4 };
            world.node(node).store.cells.insert(key(), (tuple(cursor), Some(value.clone())));
        }
        let (memory, hold) = (arena.clone(), Rc::new(()));
        let lend = Lend { region, memory, offset: 0, capacity: 300_000, hold };
        let (state, deadline) = (world.driver.state(), world.deadline(60_000));
        let cell =
            world.start(async move { state.get_cell("t", b"k", Some(lend), deadline).await });
        world.until("both voices", |world| {
            (0..3).map(|node| world.node(node).requests).sum::<usize>() == 2
        });
        (0..3).for_each(|node| world.node(node).mute = true);
        world.rounds(50);
        memory::copy_in(arena.words(), 0, &vec![66; 200_000]).unwrap();
        (0..3).for_each(|node| world.node(node).mute = false);
        world.until("the cell", |_| cell.borrow().is_some());
        assert!(matches!(&*cell.borrow(), Some(Ok(Some(_)))));
        for node in 0..3 {
            let cell = &world.node(node).store.cells[&key()];
            assert!(cell.1.as_ref() == Some(&value), "{newest} {node} {:?}", cell.0);
        }
    }
}

#[test]
fn memory_is_not_held_for_a_node_that_is_slow_to_take_what_is_written_back() {
    for newest in 0..3 {
        let mut world = World::new();
        world.ready();
        let memory = Arc::new(HeapMemory::new(1 << 20));
        let region = world.driver.expose(memory.clone()).unwrap();
        for node in 0..3 {
            let cursor = if node == newest { 9 } else { 4 };
            world.node(node).store.cells.insert(key(), (tuple(cursor), Some(vec![7; 200_000])));
        }
        world.node((newest + 1) % 3).mute = true;
        let hold = Rc::new(());
        let lend = Lend { region, memory, offset: 0, capacity: 300_000, hold: hold.clone() };
        let (state, deadline) = (world.driver.state(), world.deadline(60_000));
        let cell = world.run(async move { state.get_cell("t", b"k", Some(lend), deadline).await });
        assert_eq!(cell.unwrap().unwrap().tuple, tuple(9));
        assert_eq!(world.driver.metrics().write_backs, 1);
        assert_eq!(Rc::strong_count(&hold), 1, "the reader can have the memory");
    }
}

#[test]
fn a_version_is_absent_only_if_two_nodes_say_so() {
    let mut world = World::new();
    world.ready();
    world.node(2).store.versions.insert((key(), VersionId(7)), b"v".to_vec());
    world.node(0).failing = true;
    for _ in 0..8 {
        let (state, deadline) = (world.driver.state(), world.deadline(10_000));
        let got = world
            .run(async move { state.get_version("t", b"k", VersionId(7), None, deadline).await });
        assert_eq!(got, Ok(Some(Value::Bytes(b"v".to_vec()))), "a quorum may lack it, as yet");
    }
    let (state, deadline) = (world.driver.state(), world.deadline(10_000));
    let got =
        world.run(async move { state.get_version("t", b"k", VersionId(8), None, deadline).await });
    assert_eq!(got, Ok(None));
    world.node(1).failing = true;
    let (state, deadline) = (world.driver.state(), world.deadline(3_000));
    let got =
        world.run(async move { state.get_version("t", b"k", VersionId(8), None, deadline).await });
    assert_eq!(got, Err(StateError::Unavailable), "one voice is no proof of absence");
}

#[test]
fn a_write_needs_two_nodes_and_waits_for_them() {
    let mut world = World::new();
    world.ready();
    world.kill_storage(0);
    let (state, deadline) = (world.driver.state(), world.deadline(5_000));
    let put = world
        .run(async move { state.put_version("t", b"k", VersionId(1), bytes("v"), deadline).await });
    assert_eq!(put, Ok(()));
    world.kill_storage(1);
    let (state, deadline) = (world.driver.state(), world.deadline(2_000));
    let put = world
        .run(async move { state.put_version("t", b"k", VersionId(2), bytes("v"), deadline).await });
    assert_eq!(put, Err(StateError::Unknown));
    let (state, deadline) = (world.driver.state(), world.deadline(60_000));
    let put = world.start(async move {
        state.put_version("t", b"k", VersionId(3), bytes("v"), deadline).await
    });
    world.rounds(100);
    assert_eq!(*put.borrow(), None);
    world.start_storage(0);
    world.until("a quorum", |_| put.borrow().is_some());
    assert_eq!(*put.borrow(), Some(Ok(())));
}

#[test]
fn a_write_does_not_count_who_left_before_it_was_complete() {
    let mut world = World::new();
    world.ready();
    world.kill_storage(0);
    world.node(1).mute = true;
    let (state, deadline) = (world.driver.state(), world.deadline(60_000));
    let put = world.start(async move {
        state.put_version("t", b"k", VersionId(1), bytes("v"), deadline).await
    });
    world.until("the third has it", |world| world.node(2).puts == 1);
    world.rounds(50);
    world.replace_third();
    world.until("the new one has it", |world| world.node(3).puts == 1);
    world.rounds(200);
    assert_eq!(*put.borrow(), None, "of the members one has it");
    world.node(1).mute = false;
    world.until("a quorum of the members", |_| put.borrow().is_some());
    assert_eq!(*put.borrow(), Some(Ok(())));
}

#[test]
fn who_left_and_who_came_are_not_two_voices_that_a_version_is_absent() {
    let mut world = World::new();
    world.ready();
    world.kill_storage(0);
    world.node(1).mute = true;
    let (state, deadline) = (world.driver.state(), world.deadline(30_000));
    let got = world
        .start(async move { state.get_version("t", b"k", VersionId(7), None, deadline).await });
    world.until("the third is asked", |world| world.node(2).requests >= 1);
    world.rounds(50);
    world.replace_third();
    world.until("the new one is asked", |world| world.node(3).requests >= 1);
    world.rounds(200);
    assert_eq!(*got.borrow(), None);
    world.node(1).store.versions.insert((key(), VersionId(7)), b"v".to_vec());
    world.node(1).mute = false;
    world.until("the one that has it", |_| got.borrow().is_some());
    assert_eq!(*got.borrow(), Some(Ok(Some(Value::Bytes(b"v".to_vec())))));
}

#[test]
fn what_nodes_refuse_because_the_epoch_is_over_is_done_in_the_next() {
    let mut world = World::new();
    world.ready();
    (0..3).for_each(|index| world.node(index).promised = 2);
    let (state, deadline) = (world.driver.state(), world.deadline(60_000));
    let put = world.start(async move {
        state.put_version("t", b"k", VersionId(1), bytes("v"), deadline).await?;
        state.get_version("t", b"k", VersionId(1), None, deadline).await
    });
    world.until("all have refused", |world| (0..3).all(|index| world.node(index).requests >= 1));
    world.rounds(100);
    assert_eq!(*put.borrow(), None);
    assert_eq!((0..3).map(|index| world.node(index).puts).sum::<usize>(), 0);
    world.kill_sequencer();
    world.start_sequencer();
    world.until("the next epoch", |_| put.borrow().is_some());
    assert_eq!(*put.borrow(), Some(Ok(Some(Value::Bytes(b"v".to_vec())))));
}

#[test]
fn a_large_value_goes_by_staging_and_lands_where_it_was_told() {
    let mut world = World::new();
    world.ready();
    let arena = Arc::new(HeapMemory::new(1 << 20));
    let region = world.driver.expose(arena.clone()).unwrap();
    let value: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
    memory::copy_in(arena.words(), 64, &value).unwrap();
    let put_hold = Rc::new(());
    let put =
        ValueIn::Memory { memory: arena.clone(), offset: 64, len: 200_000, hold: put_hold.clone() };
    let hold = Rc::new(());
    let lend = Lend {
        region,
        memory: arena.clone(),
        offset: 512_000,
        capacity: 300_000,
        hold: hold.clone(),
    };
    let (state, deadline) = (world.driver.state(), world.deadline(60_000));
    let (small, got, cell) = world.run(async move {
        for version in 0..20 {
            let version = VersionId(version);
            state.put_version("t", b"k", version, put.clone(), deadline).await.unwrap();
        }
        state.put_cell("t", b"k", tuple(1), Some(put), deadline).await.unwrap();
        let small = state.get_version("t", b"k", VersionId(3), None, deadline).await;
        let got = state.get_version("t", b"k", VersionId(3), Some(lend.clone()), deadline).await;
        let cell = state.get_cell("t", b"k", Some(lend), deadline).await;
        (small, got, cell)
    });
    assert_eq!(small, Err(StateError::NeedRoom { len: 200_000 }));
    assert_eq!(got, Ok(Some(Value::Landed { len: 200_000 })));
    let landed = Some(Value::Landed { len: 200_000 });
    assert_eq!(cell, Ok(Some(Cell { tuple: tuple(1), value: landed })));
    let mut found = Vec::new();
    memory::append_out(arena.words(), 512_000, 200_000, &mut found).unwrap();
    assert_eq!(found, value);
    for node in 0..3 {
        world.until("the third node", |world| world.node(node).store.versions.len() == 20);
    }
    world.until("the end of all holds", |_| {
        Rc::strong_count(&hold) == 1 && Rc::strong_count(&put_hold) == 1
    });
}

#[test]
fn memory_lent_to_a_silent_node_is_held_until_its_lane_is_down() {
    let mut world = World::new();
    world.ready();
    let arena = Arc::new(HeapMemory::new(1 << 16));
    let region = world.driver.expose(arena.clone()).unwrap();
    for node in 0..3 {
        world.node(node).store.versions.insert((key(), VersionId(1)), vec![9; 10_000]);
        world.node(node).mute = true;
    }
    let hold = Rc::new(());
    let (memory, capacity) = (arena.clone(), 20_000);
    let lend = Lend { region, memory, offset: 0, capacity, hold: hold.clone() };
    let (state, deadline) = (world.driver.state(), world.deadline(100));
    let got = world
        .run(async move { state.get_version("t", b"k", VersionId(1), Some(lend), deadline).await });
    assert_eq!(got, Err(StateError::Unavailable));
    world.rounds(20);
    assert_eq!(Rc::strong_count(&hold), 2, "the node may still write there");
    let asked = (0..3).find(|node| world.node(*node).requests > 0).unwrap();
    world.kill_storage(asked);
    world.until("the lane's end", |_| Rc::strong_count(&hold) == 1);
    // With time enough, the silent node's lane is taken down and another one asked.
    world.start_storage(asked);
    world.node(asked).store.versions.insert((key(), VersionId(1)), vec![9; 10_000]);
    let lend = Lend { region, memory: arena.clone(), offset: 0, capacity, hold: hold.clone() };
    let (state, deadline) = (world.driver.state(), world.deadline(60_000));
    let got = world
        .run(async move { state.get_version("t", b"k", VersionId(1), Some(lend), deadline).await });
    assert_eq!(got, Ok(Some(Value::Landed { len: 10_000 })));
}

#[test]
fn a_silent_node_does_not_keep_a_read_waiting() {
    let mut world = World::new();
    world.ready();
    for node in 0..3 {
        let cell = (tuple(1), Some(b"v".to_vec()));
        world.node(node).store.cells.insert(key(), cell);
    }
    world.node(1).mute = true;
    for _ in 0..10 {
        let (state, deadline) = (world.driver.state(), world.deadline(400));
        let cell = world.run(async move { state.get_cell("t", b"k", None, deadline).await });
        assert!(cell.unwrap().is_some());
    }
}

#[test]
fn a_blob_of_many_pieces_comes_back_from_whoever_has_it() {
    let mut world = World::new();
    world.ready();
    world.node(1).failing = true;
    let blob: Rc<[u8]> = (0..900_000u32).map(|at| (at % 253) as u8).collect();
    let (state, deadline) = (world.driver.state(), world.deadline(60_000));
    let put = blob.clone();
    let (absent, got) = world.run(async move {
        let absent = state.get_blob([1; 32], deadline).await;
        state.put_blob([1; 32], put, deadline).await.unwrap();
        (absent, state.get_blob([1; 32], deadline).await)
    });
    assert_eq!(absent, Ok(None));
    assert_eq!(got.unwrap().unwrap(), blob.to_vec());
}

#[test]
fn a_node_of_another_release_is_left_alone_and_the_others_are_enough() {
    let mut world = World::new();
    world.ready();
    world.kill_storage(1);
    let greeted = world.start_stranger(1);
    let greeted = |_: &mut World| greeted.try_recv().is_ok();
    world.until("a greeting of the other release", greeted);
    let (state, deadline) = (world.driver.state(), world.deadline(60_000));
    let cell = world.run(async move {
        state.put_cell("t", b"k", tuple(1), Some(bytes("v")), deadline).await.unwrap();
        state.get_cell("t", b"k", None, deadline).await
    });
    assert!(cell.unwrap().is_some());
    world.start_storage(1);
    let lanes = |world: &mut World| !world.node(1).lanes().is_empty();
    world.until("a lane to the node that is mended", lanes);
}

/// A world in which all three nodes have a blob of five pieces.
fn world_with_a_blob() -> (World, Vec<u8>) {
    let mut world = World::new();
    world.ready();
    let blob: Vec<u8> = (0..1_200_000u32).map(|at| (at % 253) as u8).collect();
    for node in 0..3 {
        world.node(node).store.blobs.insert([1; 32], blob.clone());
    }
    (world, blob)
}

fn pieces(world: &mut World) -> Vec<u64> {
    world.storage.iter_mut().flatten().flat_map(|node| std::mem::take(&mut node.pieces)).collect()
}

#[test]
fn a_blob_comes_from_disks_that_are_slower_than_the_first_patience() {
    let (mut world, blob) = world_with_a_blob();
    for node in 0..3 {
        world.node(node).slow = 300;
    }
    let (state, deadline) = (world.driver.state(), world.deadline(30_000));
    let got = world.run(async move { state.get_blob([1; 32], deadline).await });
    assert_eq!(got, Ok(Some(blob)));
    let asked = pieces(&mut world);
    assert!(asked.len() < 20, "patience that was learnt is kept: {asked:?}");
}

#[test]
fn a_blob_goes_on_at_another_node_where_the_first_one_left_it() {
    let (mut world, blob) = world_with_a_blob();
    for node in 0..3 {
        world.node(node).slow = 3;
    }
    let (state, deadline) = (world.driver.state(), world.deadline(30_000));
    let got = world.start(async move { state.get_blob([1; 32], deadline).await });
    let is_giver = |world: &mut World, node: usize| world.node(node).pieces.len() == 3;
    world.until("the third piece", |world| (0..3).any(|node| is_giver(world, node)));
    let giver = (0..3).find(|node| is_giver(&mut world, *node)).unwrap();
    world.kill_storage(giver);
    world.until("the rest", |_| got.borrow().is_some());
    assert_eq!(got.take(), Some(Ok(Some(blob))));
    assert!(!pieces(&mut world).contains(&0), "nobody else was asked for the beginning");
}

#[test]
fn names_and_values_over_their_limits_are_refused_at_once() {
    let mut world = World::new();
    world.ready();
    let (state, deadline) = (world.driver.state(), world.deadline(1_000));
    let results = world.run(async move {
        let long = vec![0; limits::KEY_MAX_BYTES + 1];
        let name = "t".repeat(limits::TABLE_NAME_MAX_BYTES + 1);
        let value = ValueIn::Bytes(vec![0; limits::VALUE_MAX_BYTES + 1].into());
        let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(64));
        let outside = ValueIn::Memory { memory, offset: 60, len: 8, hold: Rc::new(()) };
        [
            state.get_cell("t", &long, None, deadline).await.map(|_| ()),
            state.put_cell(&name, b"k", tuple(1), None, deadline).await,
            state.put_cell("t", b"k", tuple(1), Some(value), deadline).await,
            state.put_cell("t", b"k", tuple(1), Some(outside), deadline).await,
            state.put_blob([1; 32], Rc::new([]), deadline).await,
        ]
    });
    assert!(matches!(results[0], Err(StateError::TooLarge { what: "key", .. })));
    assert!(matches!(results[1], Err(StateError::TooLarge { what: "table name", .. })));
    assert!(matches!(results[2], Err(StateError::TooLarge { what: "value", .. })));
    assert_eq!(results[3], Err(StateError::OutOfBounds));
    assert_eq!(results[4], Err(StateError::Empty));
}
