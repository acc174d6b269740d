//! Log and store are away for long: no fault of the functions'.

use std::time::Duration;

use halfmoon::{App, Function, Protocol, Table};

use super::{Engine, Gate, keyed, returned};
use crate::command::Invoked;

/// Longer than two attempts, their pauses, and all patience with log and store, in rounds.
const OUTAGE_ROUNDS: usize = 60_000;

#[test]
fn storage_that_is_away_for_long_parks_no_root() {
    let function = Function::new("f", |ctx, _| {
        let value = ctx.read("t", "k")?;
        Ok(value.map_or_else(|| b"none".to_vec(), |value| value.to_vec()))
    });
    let table = Table::new("t").protocol(Protocol::HalfmoonWrite);
    let mut engine = Engine::new(App::new().table(table).function_with(function.max_attempts(2)));
    for node in 0..3 {
        engine.world.node(node).mute = true;
    }
    let request = keyed("f", "key", b"");
    let id = request.id;
    let answer = engine.invoke(request);
    engine.rounds(OUTAGE_ROUNDS);
    assert!(engine.counted(|m| &m.attempts_total) > 2);
    let trouble = engine.trouble(id).unwrap();
    assert!(trouble.contains("not answer"), "{trouble}");
    for node in 0..3 {
        engine.world.node(node).mute = false;
    }
    let outcome = engine.answer(answer);
    assert_eq!(returned(&outcome), Some(&b"none"[..]), "{outcome:?}");
}

#[test]
fn a_sequencer_that_is_away_for_long_parks_no_root() {
    let function = Function::new("f", |ctx, input| {
        ctx.write("t", "k", input)?;
        Ok(input.to_vec())
    });
    let function = function.max_attempts(2).timeout(Duration::from_secs(10));
    let mut engine = Engine::new(App::new().table("t").function_with(function));
    engine.world.kill_sequencer();
    let request = keyed("f", "key", b"in");
    let id = request.id;
    let answer = engine.invoke(request);
    engine.rounds(OUTAGE_ROUNDS);
    assert!(engine.counted(|m| &m.attempts_total) > 2);
    let trouble = engine.trouble(id).unwrap();
    assert!(trouble.contains("not answer"), "{trouble}");
    engine.world.start_sequencer();
    let outcome = engine.answer(answer);
    assert_eq!(returned(&outcome), Some(&b"in"[..]), "{outcome:?}");
    assert_eq!(engine.counted(|m| &m.roots_parked_total), 0);
}

#[test]
fn a_binary_that_cannot_be_fetched_for_long_parks_no_root() {
    let function = Function::new("f", |_, input| Ok(input.to_vec())).max_attempts(1);
    let mut engine = Engine::new(App::new().function_with(function));
    std::fs::remove_dir_all(engine.directory.path().join("binaries")).unwrap();
    std::fs::create_dir(engine.directory.path().join("binaries")).unwrap();
    for node in 0..3 {
        engine.world.node(node).mute = true;
    }
    let request = keyed("f", "key", b"in");
    let id = request.id;
    let answer = engine.invoke(request);
    engine.until("another attempt", |engine| engine.counted(|m| &m.attempts_total) > 1);
    let trouble = engine.trouble(id).unwrap();
    assert!(trouble.contains("cannot fetch binary"), "{trouble}");
    for node in 0..3 {
        engine.world.node(node).mute = false;
    }
    let outcome = engine.answer(answer);
    assert_eq!(returned(&outcome), Some(&b"in"[..]), "{outcome:?}");
}

#[test]
fn a_request_that_nobody_waits_for_ends_with_its_outage() {
    let function = Function::new("f", |ctx, _| {
        ctx.read("t", "k")?;
        Ok(vec![])
    });
    let table = Table::new("t").protocol(Protocol::HalfmoonWrite);
    let mut engine = Engine::new(App::new().table(table).function_with(function.read_only()));
    for node in 0..3 {
        engine.world.node(node).mute = true;
    }
    drop::<tokio::sync::oneshot::Receiver<Invoked>>(engine.invoke(super::unkeyed("f", b"")));
    engine.until("the end of the attempt", |engine| engine.hot.roots.borrow().is_empty());
}

#[test]
fn a_root_that_nobody_waits_for_holds_the_safe_point_while_its_init_is_under_way() {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let function = Function::new("f", move |ctx, _| {
        at_gate.pass();
        ctx.write("t", "k", b"v")?;
        Ok(vec![])
    });
    let function = function.timeout(Duration::from_secs(3));
    let mut engine = Engine::new(App::new().table("t").function_with(function));
    drop::<tokio::sync::oneshot::Receiver<Invoked>>(engine.invoke(super::unkeyed("f", b"")));
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    (0..5).for_each(|_| engine.world.log.borrow_mut().move_safe_point(0));
    let flushed = engine.world.log.borrow().recs.len() as u64;
    engine.until("the log to go on", |engine| engine.hot.log.applied().0 == flushed);
    for node in 0..3 {
        engine.world.node(node).flushed = Some(flushed);
    }
    gate.open();
    engine.until("the first append", |engine| engine.hot.log.unanswered() > 0);
    engine.rounds(OUTAGE_ROUNDS / 10);
    // What the sequencer does with the engine's report.
    let safe_point = engine.hot.least_floor().unwrap_or(engine.hot.log.applied());
    engine.world.log.borrow_mut().move_safe_point(safe_point.0);
    for node in 0..3 {
        engine.world.node(node).flushed = None;
    }
    let end = engine.world.log.borrow().recs.len() as u64;
    engine.until("the Init", |engine| engine.hot.log.applied().0 >= end);
    engine.until("the end of the root, or its rest", |engine| {
        let ended = engine.hot.roots.borrow().is_empty() && engine.hot.intents.borrow().is_empty();
        ended || engine.counted(|m| &m.roots_parked_total) > 0
    });
    assert_eq!(engine.counted(|m| &m.roots_parked_total), 0, "it ran to its end");
}
