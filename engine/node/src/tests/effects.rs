//! What a client is told about effects: never that there are none when there may be some.

use halfmoon::{App, Function};

use super::{Engine, Gate, Setup, keyed, returned, unkeyed};
use crate::command::{Ended, Invoked, RootStatus};
use crate::manifest::Protocol;
use crate::pool::{DEPTH_MAX, PoolConfig};

/// `f` sends Init in the background, for a callee that does not need it, and crashes.
fn crashing() -> App {
    let crash = Function::new("f", |ctx, _| {
        ctx.call("g", b"")?;
        panic!("as the test wants it");
    });
    App::new().function_with(crash.max_attempts(1)).function("g", |_, _| Ok(vec![]))
}

fn hear(engine: &mut Engine) {
    engine.world.sequencer().deaf = false;
    engine.world.sequencer().drop_lanes();
}

#[test]
fn a_root_is_not_given_up_as_without_effect_while_its_init_is_under_way() {
    let mut engine = Engine::new(crashing());
    engine.world.sequencer().deaf = true;
    let request = unkeyed("f", b"");
    let id = request.id;
    let answer = engine.invoke(request);
    assert_eq!(engine.answer(answer), Invoked::Running);
    assert!(engine.trouble(id).is_some());
    hear(&mut engine);
    engine.until("the root parked", |engine| engine.counted(|m| &m.roots_parked_total) == 1);
    let RootStatus::Parked { error, .. } = engine.status(id) else { panic!() };
    assert!(error.contains("as the test wants it"), "{error}");
}

#[test]
fn a_root_whose_init_gets_into_the_log_before_it_is_given_up_is_parked() {
    let mut engine = Engine::new(crashing());
    let flushed = engine.world.log.borrow().recs.len() as u64;
    for node in 0..3 {
        engine.world.node(node).flushed = Some(flushed);
    }
    let answer = engine.invoke(unkeyed("f", b""));
    engine.until("the crash", |engine| engine.counted(|m| &m.calls_total) == 1);
    engine.until("the crash", |engine| engine.hot.workers.show().len() < 2);
    engine.rounds(100);
    for node in 0..3 {
        engine.world.node(node).flushed = None;
    }
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::Parked { .. }), "{outcome:?}");
}

#[test]
fn an_unlogged_root_that_has_written_is_parked_and_not_given_up() {
    let function = Function::new("f", |ctx, _| {
        ctx.write("t", "k", b"v")?;
        panic!("as the test wants it");
    });
    let app = App::new().table("t").function_with(function.max_attempts(1));
    let mut engine = Engine::new(Setup { protocol: Some(Protocol::Unlogged), ..app.into() });
    let answer = engine.invoke(unkeyed("f", b""));
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::Parked { .. }), "{outcome:?}");
}

#[test]
fn an_unlogged_root_that_did_nothing_is_given_up() {
    let function = Function::new("f", |_, _| panic!("as the test wants it"));
    let app = App::new().function_with(function.max_attempts(1));
    let mut engine = Engine::new(Setup { protocol: Some(Protocol::Unlogged), ..app.into() });
    let answer = engine.invoke(unkeyed("f", b""));
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::GaveUp { .. }), "{outcome:?}");
}

#[test]
fn an_unlogged_root_that_nobody_waits_for_is_attempted_again() {
    let gate = Gate::default();
    gate.open();
    let at_gate = gate.clone();
    let app = App::new().function("f", |ctx, _| ctx.spawn("g", b"").map(|_| vec![])).function(
        "g",
        move |_, _| {
            at_gate.pass();
            assert!(at_gate.arrived() > 1, "as the test wants it");
            Ok(vec![])
        },
    );
    let mut engine = Engine::new(Setup { protocol: Some(Protocol::Unlogged), ..app.into() });
    let answer = engine.invoke(unkeyed("f", b""));
    assert_eq!(returned(&engine.answer(answer)), Some(&b""[..]));
    engine.until("a second attempt", |_| gate.arrived() == 2);
    engine.until("its end", |engine| engine.hot.roots.borrow().is_empty());
}

#[test]
fn a_root_that_finds_no_worker_is_not_refused_while_its_init_is_under_way() {
    let (first, second) = (Gate::default(), Gate::default());
    let (at_first, at_second) = (first.clone(), second.clone());
    let app = App::new()
        .function("f", move |ctx, _| {
            let callee = ctx.call_async("g", b"")?;
            at_first.pass();
            ctx.call("g", b"")?;
            Ok(ctx.join(callee)?.to_vec())
        })
        .function("g", move |_, _| {
            at_second.pass();
            Ok(b"out".to_vec())
        });
    // One root runs at once, and one callee; one invocation waits.
    let workers_max = DEPTH_MAX + 1;
    let pool = PoolConfig { workers_max, queue_max: 1, ..PoolConfig::for_cores(2) };
    let mut engine = Engine::new(Setup { pool, ..app.into() });
    engine.world.sequencer().deaf = true;
    let request = keyed("f", "a", b"");
    let id = request.id;
    let answer = engine.invoke(request);
    engine.until("both functions", |_| (first.arrived(), second.arrived()) == (1, 1));
    drop(engine.invoke(keyed("f", "b", b"")));
    engine.rounds(20);
    first.open();
    assert_eq!(engine.answer(answer), Invoked::Running);
    assert!(engine.trouble(id).is_some());
    second.open();
    hear(&mut engine);
    engine.until("its end", |engine| matches!(engine.status(id), RootStatus::Ended { .. }));
}

/// `f` waits at the gate and calls `g`, which must log.
fn calling(gate: &Gate) -> App {
    let gate = gate.clone();
    let app = App::new().table("t").function("f", move |ctx, input| {
        gate.pass();
        Ok(ctx.call("g", input)?.to_vec())
    });
    app.function("g", |ctx, input| {
        ctx.write("t", "k", input)?;
        Ok(input.to_vec())
    })
}

#[test]
fn a_root_that_is_cancelled_before_its_init_does_not_wait_for_its_callee() {
    let gate = Gate::default();
    let mut engine = Engine::new(calling(&gate));
    let request = keyed("f", "key", b"in");
    let id = request.id;
    let answer = engine.invoke(request);
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    engine.cancel(id);
    gate.open();
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::Ended { ended: Ended::Cancelled, .. }), "{outcome:?}");
    assert_eq!(engine.counted(|m| &m.attempts_total), 1, "at once, not when its time was up");
}

#[test]
fn a_root_whose_init_is_refused_below_the_safe_point_starts_over() {
    let gate = Gate::default();
    let mut engine = Engine::new(calling(&gate));
    let answer = engine.invoke(keyed("f", "key", b"in"));
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    {
        let mut log = engine.world.log.borrow_mut();
        let end = log.recs.len() as u64;
        log.move_safe_point(end + 1);
    }
    gate.open();
    let outcome = engine.answer(answer);
    assert_eq!(returned(&outcome), Some(&b"in"[..]), "{outcome:?}");
    assert_eq!(engine.counted(|m| &m.attempts_total), 2, "at once, not when its time was up");
}

#[test]
fn a_root_that_was_cancelled_before_it_was_accepted_is_answered_so() {
    let app = App::new().function("f", |_, _| Ok(vec![]));
    let mut engine = Engine::new(app);
    let request =
        crate::command::Invoke { wait: crate::command::Wait::Accepted, ..keyed("f", "key", b"in") };
    engine.cancel(request.id);
    let answer = engine.invoke(request);
    let outcome = engine.answer(answer);
    assert!(matches!(&outcome, Invoked::Ended { ended: Ended::Cancelled, .. }), "{outcome:?}");
}
