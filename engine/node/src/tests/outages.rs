//! Log and store are away for long: no fault of the functions'.

use std::time::Duration;

use halfmoon::{App, Function, Protocol, Table};

use super::{Engine, keyed, returned};
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
