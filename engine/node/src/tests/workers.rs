//! Workers that do not answer, and roots that are parked, resumed and cancelled beside them.

use std::time::Duration;

use halfmoon::{App, Function, Protocol, Table};
use halfmoon_wire::{InstanceId, SeqNum};

use super::{Engine, Gate, keyed, returned, unkeyed};
use crate::command::{Ended, Invoked, RootStatus};
use crate::hot::{PARKED_MAX, ROOTS_MAX};
use crate::roots::{Origin, Root};

/// A function that writes if it is given something, and hangs at the gate.
fn hanging(gate: &Gate) -> App {
    let gate = gate.clone();
    let function = Function::new("f", move |ctx, input| {
        if !input.is_empty() {
            ctx.write("t", "k", input)?;
        }
        gate.pass();
        Ok(b"out".to_vec())
    });
    let function = function.timeout(Duration::from_secs(3)).max_attempts(3);
    App::new().table("t").function_with(function)
}

#[test]
fn a_worker_that_never_says_hello_is_killed_and_its_invocation_told() {
    let function = Function::new("f", |_, _| Ok(vec![])).max_attempts(2);
    let mut engine = Engine::new(App::new().function_with(function));
    engine.silent.set(true);
    let answer = engine.invoke(unkeyed("f", b""));
    let outcome = engine.answer(answer);
    let Invoked::GaveUp { error } = &outcome else { panic!("{outcome:?}") };
    assert!(error.contains("no hello"), "{error}");
    assert_eq!(engine.counted(|m| &m.workers_killed_total), 2);
    engine.silent.set(false);
    let answer = engine.invoke(unkeyed("f", b""));
    assert_eq!(returned(&engine.answer(answer)), Some(&b""[..]));
}

#[test]
fn a_worker_that_never_answers_is_killed_and_its_root_given_up_when_it_did_nothing() {
    let gate = Gate::default();
    let mut engine = Engine::new(hanging(&gate));
    let answer = engine.invoke(unkeyed("f", b""));
    let outcome = engine.answer(answer);
    let Invoked::GaveUp { error } = &outcome else { panic!("{outcome:?}") };
    assert!(error.contains("did not end within 3000 ms"), "{error}");
    assert_eq!(engine.counted(|m| &m.attempts_total), 3, "as often as it may be");
    assert_eq!(engine.counted(|m| &m.workers_killed_total), 3);
}

#[test]
fn a_root_that_hangs_after_a_write_is_parked_and_goes_on_when_it_is_resumed() {
    let gate = Gate::default();
    let mut engine = Engine::new(hanging(&gate));
    let request = keyed("f", "key", b"v");
    let id = request.id;
    let answer = engine.invoke(request);
    let outcome = engine.answer(answer);
    let Invoked::Parked { error } = &outcome else { panic!("{outcome:?}") };
    assert!(error.contains("did not end within 3000 ms"), "{error}");
    assert!(matches!(engine.status(id), RootStatus::Parked { attempts: 3, .. }));
    assert_eq!(engine.hot.resting.get(), 1);
    gate.open();
    engine.resume(id);
    let again = engine.invoke(keyed("f", "key", b"v"));
    assert_eq!(returned(&engine.answer(again)), Some(&b"out"[..]));
    engine.until("its Finish", |engine| engine.hot.intents.borrow().is_empty());
    assert_eq!(engine.hot.resting.get(), 0);
}

#[test]
fn parked_roots_take_no_room_from_others_until_there_are_very_many() {
    let gate = Gate::default();
    gate.open();
    let mut engine = Engine::new(hanging(&gate));
    let under_way = |engine: &Engine, count: usize| {
        let mut roots = engine.hot.roots.borrow_mut();
        roots.clear();
        for id in (0..count).map(|id| InstanceId(id as u128)) {
            roots.insert(id, Root::new(id, Origin::Log, SeqNum::ZERO));
        }
    };
    under_way(&engine, ROOTS_MAX);
    let answer = engine.invoke(unkeyed("f", b""));
    assert!(matches!(engine.answer(answer), Invoked::Overloaded(_)));
    engine.hot.resting.set(ROOTS_MAX);
    let answer = engine.invoke(unkeyed("f", b""));
    assert_eq!(returned(&engine.answer(answer)), Some(&b"out"[..]));
    under_way(&engine, PARKED_MAX);
    engine.hot.resting.set(PARKED_MAX);
    let answer = engine.invoke(unkeyed("f", b""));
    let Invoked::Overloaded(why) = engine.answer(answer) else { panic!() };
    assert!(why.contains("parked"), "{why}");
}

#[test]
fn when_the_log_is_nearly_full_what_has_begun_ends_and_nothing_else_begins() {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut engine = Engine::new(App::new().table("t").function("f", move |ctx, _| {
        at_gate.pass();
        ctx.write("t", "k", b"v")?;
        Ok(b"out".to_vec())
    }));
    let began = engine.invoke(keyed("f", "first", b""));
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    engine.world.kill_sequencer();
    let (places, _) = engine.hot.log.places();
    engine.world.log.borrow_mut().places_max = Some(places);
    engine.world.start_sequencer();
    engine.until("the limit", |engine| engine.hot.log.places().1 == places);
    let answer = engine.invoke(keyed("f", "second", b""));
    let Invoked::Overloaded(why) = engine.answer(answer) else { panic!() };
    assert!(why.contains("the log is full"), "{why}");
    gate.open();
    assert_eq!(returned(&engine.answer(began)), Some(&b"out"[..]));
    engine.until("its end", |engine| engine.hot.roots.borrow().is_empty());
    let again = engine.invoke(keyed("f", "first", b""));
    assert_eq!(returned(&engine.answer(again)), Some(&b"out"[..]), "the log knows how it ended");
    assert!(engine.hot.log.places().0 > places, "it took of what is left for it");
}

#[test]
fn a_long_error_is_not_kept_in_memory() {
    let engine = Engine::new(hanging(&Gate::default()));
    for (length, kept) in [(1024, true), (1024 * 1024, false)] {
        let error = Ended::Failed("e".repeat(length));
        engine.hot.remember(InstanceId(length as u128), &error, SeqNum::ZERO);
        assert_eq!(engine.hot.remembered(InstanceId(length as u128)).is_some(), kept);
    }
}

#[test]
fn a_root_that_is_cancelled_ends_at_its_next_step_and_its_worker_serves_on() {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let app = App::new().table("t").function("f", move |ctx, input| {
        ctx.write("t", "a", input)?;
        at_gate.pass();
        ctx.write("t", "b", input)?;
        Ok(input.to_vec())
    });
    let mut engine = Engine::new(app);
    let request = keyed("f", "key", b"v");
    let id = request.id;
    let answer = engine.invoke(request);
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    engine.cancel(id);
    assert_eq!(engine.trouble(id), None);
    gate.open();
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::Ended { ended: Ended::Cancelled, .. }), "{outcome:?}");
    engine.until("its Finish", |engine| engine.hot.intents.borrow().is_empty());
    engine.until("the worker's return", |engine| engine.counted(|m| &m.workers_busy) == 0);
    let other = engine.invoke(keyed("f", "other", b"v"));
    assert_eq!(returned(&engine.answer(other)), Some(&b"v"[..]));
    assert_eq!(engine.counted(|m| &m.workers_started_total), 1, "the same worker");
}

#[test]
fn a_root_that_is_cancelled_ends_once_what_its_callees_have_put_is_stored() {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let app = App::new().table("logged").table(Table::new("t").protocol(Protocol::HalfmoonWrite));
    let app = app.function("f", move |ctx, input| {
        let callee = ctx.call_async("g", input)?;
        at_gate.pass();
        ctx.write("logged", "k", input)?;
        Ok(ctx.join(callee)?.to_vec())
    });
    let app = app.function("g", |ctx, input| {
        ctx.write("t", "k", input)?;
        Ok(vec![])
    });
    let mut engine = Engine::new(app);
    let asked = engine.world.node(0).requests;
    for node in 0..3 {
        engine.world.node(node).mute = true;
    }
    let request = keyed("f", "key", b"v");
    let id = request.id;
    let mut answer = engine.invoke(request);
    engine.until("the put", |e| gate.arrived() == 1 && e.world.node(0).requests > asked);
    engine.cancel(id);
    gate.open();
    engine.rounds(500);
    assert!(answer.try_recv().is_err(), "a reader may see the old value, and later the new one");
    for node in 0..3 {
        engine.world.node(node).mute = false;
    }
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::Ended { ended: Ended::Cancelled, .. }), "{outcome:?}");
    let stored = (0..3).filter(|node| !engine.world.node(*node).store.cells.is_empty()).count();
    assert!(stored >= 2, "{stored}");
}

#[test]
fn a_parked_root_that_is_cancelled_ends_when_it_is_resumed() {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let function = Function::new("f", move |ctx, input| {
        ctx.write("t", "a", input)?;
        at_gate.pass();
        ctx.write("t", "b", input)?;
        Ok(input.to_vec())
    });
    let function = function.timeout(Duration::from_secs(3)).max_attempts(1);
    let mut engine = Engine::new(App::new().table("t").function_with(function));
    let request = keyed("f", "key", b"v");
    let id = request.id;
    let answer = engine.invoke(request);
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::Parked { .. }), "{outcome:?}");
    engine.cancel(id);
    gate.open();
    engine.resume(id);
    let ended =
        |status: &RootStatus| matches!(status, RootStatus::Ended { ended: Ended::Cancelled, .. });
    engine.until("the end of the root", |engine| engine.hot.intents.borrow().is_empty());
    let status = engine.status(id);
    assert!(ended(&status), "{status:?}");
}
