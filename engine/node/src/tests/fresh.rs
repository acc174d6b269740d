//! How old what a root sees may be.

use halfmoon::{App, Function};
use halfmoon_wire::SeqNum;

use super::{Engine, returned, unkeyed};
use crate::fresh::TAIL_LEASE_NS;

fn engine() -> Engine {
    let function = Function::new("f", |ctx, _| {
        let value = ctx.read("t", "k")?;
        Ok(value.map_or_else(|| b"none".to_vec(), |value| value.to_vec()))
    });
    Engine::new(App::new().table("t").function_with(function.read_only()))
}

fn pass(engine: &mut Engine, ns: u64) {
    let until_ns = engine.world.now_ns + ns;
    engine.until("that time", |engine| engine.world.now_ns >= until_ns);
}

#[test]
fn an_engine_that_is_cut_off_starts_roots_for_no_longer_than_its_lease_on_the_tail() {
    let mut engine = engine();
    engine.world.kill_sequencer();
    let answer = engine.invoke(unkeyed("f", b""));
    let outcome = engine.answer(answer);
    assert_eq!(returned(&outcome), Some(&b"none"[..]), "{outcome:?}");
    pass(&mut engine, TAIL_LEASE_NS * 2);
    let mut answer = engine.invoke(unkeyed("f", b""));
    pass(&mut engine, TAIL_LEASE_NS * 2);
    assert!(answer.try_recv().is_err(), "it may lack what was committed elsewhere since");
    engine.world.start_sequencer();
    let outcome = engine.answer(answer);
    assert_eq!(returned(&outcome), Some(&b"none"[..]), "{outcome:?}");
}

#[test]
fn a_root_starts_where_the_log_ended_when_the_lease_was_renewed_or_later() {
    let mut engine = engine();
    for node in 0..3 {
        engine.world.node(node).flushed = Some(engine.hot.log.applied().0);
    }
    (0..3).for_each(|_| engine.world.log.borrow_mut().move_safe_point(0));
    let end = SeqNum(engine.world.log.borrow().recs.len() as u64);
    pass(&mut engine, TAIL_LEASE_NS * 2);
    assert!(engine.hot.log.applied() < end, "nothing of that is committed");
    let mut answer = engine.invoke(unkeyed("f", b""));
    pass(&mut engine, TAIL_LEASE_NS * 2);
    assert!(answer.try_recv().is_err(), "the log's end is ordered, and not known to be lost");
    for node in 0..3 {
        engine.world.node(node).flushed = None;
    }
    engine.answer(answer);
    assert!(engine.hot.log.applied() >= end);
}
