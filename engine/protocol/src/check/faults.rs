//! What does not happen in a sound log: names that collide, records that do not parse, functions
//! that change their mind, keys that are used twice; and transactions that never get through.

use std::rc::Rc;

use halfmoon_wire::{RunId, SeqNum, tag};

use super::explore::{Explorer, set};
use super::program::Op::{R, Txn as T, W};
use super::program::{Op, Scenario, Txn, root_id};
use super::scenarios::{A, B, S, case, root};
use super::stage::{Move, Stage, When};
use crate::ops::Append;
use crate::payload::{Body, Entry, Stored};
use crate::{Object, TXN_RUNS_MAX};

fn alone(ops: &[Op]) -> Rc<Scenario> {
    Rc::new(case("alone", &[ops], &[root(0, true, &[When::AtTail, When::AtTail])]))
}

/// Lets one strand make a move, if it can.
fn step(stage: &Stage, strand: usize) -> bool {
    let moves = stage.moves();
    let mut mine = moves.into_iter().filter(|chosen| match chosen {
        Move::Answer(of, _) | Move::Post(of, _) => *of == strand,
    });
    mine.next().map(|chosen| stage.make(chosen)).is_some()
}

fn plant(stage: &Stage, tag: halfmoon_wire::Tag, payload: Vec<u8>) {
    let append = Append { tags: vec![tag], conditions: vec![], floor: SeqNum::ZERO, payload };
    stage.0.borrow_mut().world.append(&append);
}

fn violation(stage: &Stage) -> String {
    stage.0.borrow().violation.clone().unwrap_or_default()
}

#[test]
fn a_step_of_another_name_under_the_same_tag_parks_the_instance() {
    let stage = set(&alone(&[W(A, 1)]));
    assert!(step(&stage, 0), "the first attempt starts");
    let other = Entry { instance: root_id(7), run: RunId(1), init: None, body: Body::Fence };
    plant(&stage, tag::step(root_id(0)), other.encode());
    assert!(step(&stage, 0), "it meets the record by a conflict");
    assert!(violation(&stage).contains("tag collision"), "{}", violation(&stage));
    let stage = set(&alone(&[W(A, 1)]));
    plant(&stage, tag::step(root_id(0)), other.encode());
    assert!(step(&stage, 0), "it meets the record when it loads its steps");
    assert!(violation(&stage).contains("tag collision"), "{}", violation(&stage));
}

#[test]
fn a_write_of_another_object_under_the_same_tag_is_passed_over() {
    let roots = [root(0, false, &[When::AtTail]), root(1, false, &[When::AtTail])];
    let stage = set(&Rc::new(case("tags", &[&[W(A, 5)], &[R(A)]], &roots)));
    while step(&stage, 0) {}
    let other = Object { table: "another".to_owned(), key: b"k".to_vec() };
    let value = Some(Stored::Inline(vec![9, 9, 9, 9]));
    let body = Body::Write { object: other, value };
    let entry = Entry { instance: root_id(7), run: RunId(1), init: None, body };
    plant(&stage, tag::object("a", b"k"), entry.encode());
    while step(&stage, 1) {}
    let inner = stage.0.borrow();
    let observed = inner.replies[1].observed.as_ref().unwrap();
    assert_eq!((observed[0].object, observed[0].value), (A, 5));
}

#[test]
fn a_step_that_does_not_parse_is_a_fault() {
    let stage = set(&alone(&[R(A)]));
    plant(&stage, tag::step(root_id(0)), b"nonsense".to_vec());
    assert!(step(&stage, 0));
    assert!(violation(&stage).contains("does not parse"), "{}", violation(&stage));
}

#[test]
fn a_function_that_does_something_else_is_told_so() {
    let mut first = case("first", &[&[W(A, 1)]], &[root(0, true, &[When::AtTail])]);
    let stage = set(&Rc::new(first.clone()));
    while step(&stage, 0) {}
    let records: Vec<_> = {
        let inner = stage.0.borrow();
        let log = &inner.world.log;
        log.iter().map(|record| (record.tags.clone(), record.payload.to_vec())).collect()
    };
    first.functions = vec![vec![W(B, 1)]];
    let stage = set(&Rc::new(first));
    for (tags, payload) in records {
        let tags = tags.into_iter().map(|(tag, _)| tag).collect();
        let append = Append { tags, conditions: vec![], floor: SeqNum::ZERO, payload };
        stage.0.borrow_mut().world.append(&append);
    }
    while step(&stage, 0) {}
    assert!(violation(&stage).contains("in an earlier attempt"), "{}", violation(&stage));
}

#[test]
fn a_key_used_with_another_input_is_refused() {
    let mut scenario = case("key", &[&[W(A, 1)]], &[root(0, true, &[When::AtTail; 2])]);
    scenario.roots[0].inputs = vec![1];
    let stage = set(&Rc::new(scenario));
    while step(&stage, 0) {}
    while step(&stage, 1) {}
    assert!(violation(&stage).contains("with another input"), "{}", violation(&stage));
}

#[test]
fn a_transaction_that_always_meets_conflicts_gives_up_and_so_does_its_replay() {
    let writers = usize::try_from(TXN_RUNS_MAX).unwrap() + 1;
    let functions: Vec<Vec<Op>> = std::iter::once(vec![T(Txn::Increment(S)), R(S)])
        .chain((0..writers).map(|_| vec![W(S, 5)]))
        .collect();
    let functions: Vec<&[Op]> = functions.iter().map(Vec::as_slice).collect();
    let mut roots = vec![root(0, true, &[When::AtTail, When::AtTail])];
    for writer in 1..=writers {
        roots.push(root(u8::try_from(writer).unwrap(), false, &[When::AtTail]));
    }
    let scenario = Rc::new(case("conflicts", &functions, &roots));
    let stage = set(&scenario);
    assert!(step(&stage, 0), "it starts and wants to commit");
    for writer in 0..writers {
        assert!(stage.0.borrow().replies.iter().all(|reply| reply.root != 0));
        while step(&stage, 2 + writer) {}
        assert!(step(&stage, 0), "it commits and meets a conflict");
    }
    while step(&stage, 0) {}
    while step(&stage, 1) {}
    let inner = stage.0.borrow();
    let own: Vec<_> = inner.replies.iter().filter(|reply| reply.root == 0).collect();
    assert_eq!(own.len(), 2);
    assert_eq!(own[0], own[1]);
    let observed = own[0].observed.as_ref().unwrap();
    assert_eq!(observed[0].object, super::program::NO_OBJECT, "too many conflicts");
    drop(inner);
    assert_eq!(Explorer::new(&scenario).check(&stage, true), Ok(()));
}
