//! Who is told what under an idempotency key.

use halfmoon::App;
use halfmoon_wire::SeqNum;

use super::inherited::{heir, wrong};
use super::{Engine, Gate, keyed, returned};
use crate::command::{Consistency, Invoke, Invoked};

#[test]
fn the_right_request_is_not_told_of_reuse_because_a_wrong_one_came_first() {
    let gate = Gate::default();
    let mut heir = heir(&gate);
    let wrong = wrong(&mut heir);
    let right = heir.invoke(keyed("f", "key", b"right"));
    heir.rounds(20);
    heir.world.sequencer().answer_tails();
    gate.open();
    assert_eq!(heir.answer(wrong), Invoked::KeyReused);
    let outcome = heir.answer(right);
    assert_eq!(returned(&outcome), Some(&b"right"[..]), "{outcome:?}");
}

#[test]
fn a_wrong_request_is_told_at_once_when_the_log_says_whose_the_key_is() {
    let gate = Gate::default();
    let mut heir = heir(&gate);
    let right = heir.invoke(keyed("f", "key", b"right"));
    heir.until("the root at the gate again", |_| gate.arrived() == 2);
    let wrong = heir.invoke(keyed("f", "key", b"wrong"));
    assert_eq!(heir.answer(wrong), Invoked::KeyReused);
    gate.open();
    assert_eq!(returned(&heir.answer(right)), Some(&b"right"[..]));
}

fn echo() -> App {
    App::new().function("f", |_, input| Ok(input.to_vec()))
}

#[test]
fn a_key_is_free_again_when_the_request_that_had_it_comes_to_nothing() {
    let mut engine = Engine::new(echo());
    engine.world.sequencer().holds_tails = true;
    let beyond = Invoke { cursor: SeqNum(1 << 40), ..keyed("f", "key", b"first") };
    let first = engine.invoke(beyond);
    engine.until("the question for the tail", |e| !e.world.sequencer().tails.is_empty());
    let second = engine.invoke(keyed("f", "key", b"second"));
    engine.rounds(20);
    engine.world.sequencer().answer_tails();
    let first = engine.answer(first);
    let beyond =
        matches!(first, Invoked::BeyondTail { cursor: SeqNum(cursor), .. } if cursor == 1 << 40);
    assert!(beyond, "{first:?}");
    assert_eq!(returned(&engine.answer(second)), Some(&b"second"[..]));
}

#[test]
fn a_cursor_that_nobody_was_given_is_refused_and_one_that_lags_is_waited_for() {
    let mut engine = Engine::new(echo());
    let applied = engine.hot.log.applied();
    let beyond = Invoke { cursor: applied.next(), ..keyed("f", "a", b"") };
    let answer = engine.invoke(beyond);
    let refused = Invoked::BeyondTail { cursor: applied.next(), tail: applied };
    assert_eq!(engine.answer(answer), refused);
    engine.world.log.borrow_mut().move_safe_point(0);
    let consistency = Consistency::Sequential;
    let within = Invoke { cursor: applied.next(), consistency, ..keyed("f", "b", b"in") };
    let answer = engine.invoke(within);
    assert_eq!(returned(&engine.answer(answer)), Some(&b"in"[..]));
}
