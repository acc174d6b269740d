//! Roots of engines that are gone, and roots that other engines have.

use std::sync::atomic::Ordering;

use halfmoon::{App, Function};
use halfmoon_wire::{
    Incarnation, LocalId, NodeId, Origin, RecordKind, RecordRef, SeqNum, Tag, tag,
};

use super::fake::{ENGINE, LIFE, World};
use super::{Engine, Gate, Setup, keyed, returned};
use crate::command::{Consistency, Invoke, Invoked, RootStatus};
use crate::manifest::Protocol;
use crate::pool::PoolConfig;

const HEIR: (NodeId, Incarnation) = (NodeId(10), Incarnation(1));

/// A function that writes, waits at the gate, and returns its input.
pub(super) fn app(gate: &Gate) -> App {
    let gate = gate.clone();
    App::new().table("t").function("f", move |ctx, input| {
        ctx.write("t", "k", input)?;
        gate.pass();
        Ok(input.to_vec())
    })
}

/// The heir of an engine that died while a root was at the gate. The Evict is not in the log yet.
pub(super) fn heir(gate: &Gate) -> Engine {
    let mut engine = Engine::new(app(gate));
    drop(engine.invoke(keyed("f", "key", b"right")));
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    engine.replaced_by(HEIR)
}

/// A request with another input under that root's key, held up before it starts.
pub(super) fn wrong(heir: &mut Engine) -> tokio::sync::oneshot::Receiver<Invoked> {
    let wrong = Invoke { consistency: Consistency::Linearizable, ..keyed("f", "key", b"wrong") };
    heir.world.sequencer().holds_tails = true;
    let answer = heir.invoke(wrong);
    heir.until("the question for the tail", |heir| !heir.world.sequencer().tails.is_empty());
    answer
}

#[test]
fn a_root_that_is_inherited_while_a_request_for_it_fails_is_run_all_the_same() {
    let gate = Gate::default();
    let mut heir = heir(&gate);
    let answer = wrong(&mut heir);
    heir.world.log.borrow_mut().evict((ENGINE, LIFE), HEIR);
    heir.until("the inheritance", |heir| heir.counted(|m| &m.roots_taken_over_total) == 1);
    assert_eq!(heir.counted(|m| &m.roots_taken_over_unfinished), 1);
    heir.rounds(20);
    heir.world.sequencer().answer_tails();
    assert_eq!(heir.answer(answer), Invoked::KeyReused);
    gate.open();
    heir.until("the end of the root", |heir| heir.hot.intents.borrow().is_empty());
    heir.rounds(20);
    assert_eq!(heir.hot.least_floor(), None, "it holds the safe point no more");
    assert_eq!(heir.counted(|m| &m.roots_taken_over_unfinished), 0, "the take-over is over");
    let shown = heir.hot.takeovers.borrow().show();
    assert_eq!((&shown[0]["roots"], shown[0]["took_us"].is_u64()), (&1.into(), true));
    let right = keyed("f", "key", b"right");
    let id = right.id;
    let again = heir.invoke(right);
    assert_eq!(returned(&heir.answer(again)), Some(&b"right"[..]));
    assert!(matches!(heir.status(id), RootStatus::Ended { .. }));
}

#[test]
fn a_root_whose_end_is_refused_below_the_safe_point_is_not_taken_for_ended() {
    let gate = Gate::default();
    let mut engine = Engine::new(app(&gate));
    let request = keyed("f", "key", b"in");
    let id = request.id;
    let answer = engine.invoke(request);
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    {
        let mut log = engine.world.log.borrow_mut();
        let end = log.recs.len() as u64;
        log.move_safe_point(end);
    }
    gate.open();
    assert_eq!(returned(&engine.answer(answer)), Some(&b"in"[..]), "its Init is in the log");
    engine.until("the root parked", |engine| engine.counted(|m| &m.roots_parked_total) == 1);
    let RootStatus::Parked { error, .. } = engine.status(id) else { panic!() };
    assert!(error.contains("its snapshot is gone"), "{error}");
}

/// The record by which an engine begins a root at `key`, at an initial cursor of at least 20.
pub(super) fn init_of_another(protocol: Protocol) -> (Vec<Tag>, Vec<u8>, SeqNum) {
    let gate = Gate::default();
    let mut engine = Engine::new(under(protocol, &gate));
    engine.world.log.borrow_mut().recs.len();
    while engine.hot.log.applied() < SeqNum(20) {
        engine.world.log.borrow_mut().move_safe_point(0);
        engine.rounds(5);
    }
    drop(engine.invoke(keyed("f", "key", b"in")));
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    let log = engine.world.log.borrow();
    let record = log.recs.iter().find(|rec| rec.tags.contains(&tag::intent())).unwrap();
    let parsed = RecordRef::parse(&record.bytes).unwrap();
    (record.tags.clone(), parsed.payload().to_vec(), parsed.floor())
}

fn under(protocol: Protocol, gate: &Gate) -> Setup {
    Setup { protocol: Some(protocol), ..Setup::from(app(gate)) }
}

#[test]
fn an_engine_that_lags_joins_the_run_of_another_whose_init_it_had_not_seen() {
    joins_the_run_of_another(Protocol::HalfmoonRead);
}

/// Its first append is made before it has a run.
#[test]
fn an_engine_that_lags_and_logs_every_start_joins_the_run_of_another() {
    joins_the_run_of_another(Protocol::Boki);
}

fn joins_the_run_of_another(protocol: Protocol) {
    let (tags, payload, cursor) = init_of_another(protocol);
    let gate = Gate::default();
    gate.open();
    let mut engine = Engine::new(under(protocol, &gate));
    engine.rounds(20);
    let applied = engine.hot.log.applied().0;
    for node in 0..3 {
        engine.world.node(node).flushed = Some(applied);
    }
    {
        let mut log = engine.world.log.borrow_mut();
        while (log.recs.len() as u64) < cursor.0 {
            log.move_safe_point(0);
        }
        let origin = Origin { engine: NodeId(4), incarnation: LIFE, local: LocalId(1) };
        log.put(RecordKind::Data, origin, &tags, &payload);
        log.move_safe_point(cursor.0);
    }
    let request = keyed("f", "key", b"in");
    let answer = engine.invoke(request);
    engine.until("its first append", |engine| engine.hot.log.unanswered() > 0);
    engine.rounds(20);
    for node in 0..3 {
        engine.world.node(node).flushed = None;
    }
    let outcome = engine.answer(answer);
    assert_eq!(returned(&outcome), Some(&b"in"[..]), "{outcome:?}");
}

#[test]
fn an_engine_that_has_not_seen_the_end_of_the_log_takes_no_requests() {
    let gate = Gate::default();
    gate.open();
    let pool = PoolConfig::for_cores(2);
    let mut engine = Engine::in_world(World::new(), app(&gate), pool, (ENGINE, LIFE));
    let early = engine.invoke(keyed("f", "key", b"in"));
    assert!(matches!(engine.answer(early), Invoked::Unavailable(_)));
    engine.catch_up();
    let later = engine.invoke(keyed("f", "key", b"in"));
    assert_eq!(engine.answer(later), Invoked::Unknown(vec![]), "nothing is deployed");
    assert_eq!(engine.hot.metrics.roots_unfinished.load(Ordering::Relaxed), 0);
}

/// The records by which an engine runs a root at `key` from its Init to its Finish.
fn whole_life_of_another() -> Vec<(Vec<Tag>, Vec<u8>)> {
    let gate = Gate::default();
    gate.open();
    let mut engine = Engine::new(app(&gate));
    let answer = engine.invoke(keyed("f", "key", b"in"));
    assert_eq!(returned(&engine.answer(answer)), Some(&b"in"[..]));
    engine.until("its Finish", |engine| engine.hot.intents.borrow().is_empty());
    let log = engine.world.log.borrow();
    let all = log.recs.iter().filter(|rec| rec.tags.contains(&tag::intent()));
    let parsed = |bytes: &[u8]| RecordRef::parse(bytes).unwrap().payload().to_vec();
    all.map(|rec| (rec.tags.clone(), parsed(&rec.bytes))).collect()
}

/// An engine that runs `f` at `key` to the gate, and a peer of its that ends the root meanwhile.
/// Then the worker dies.
fn ended_by_a_peer(acts: bool) -> Invoked {
    let life = whole_life_of_another();
    assert_eq!(life.len(), 2, "Init and Finish");
    let gate = Gate::default();
    let at_gate = gate.clone();
    let crash = Function::new("f", move |ctx, _| {
        if acts {
            ctx.side_effect(|| {
                at_gate.pass();
                panic!("as the test wants it")
            })?;
        }
        at_gate.pass();
        panic!("as the test wants it");
    });
    let mut engine = Engine::new(Setup::from(App::new().function_with(crash.max_attempts(1))));
    let answer = engine.invoke(keyed("f", "key", b"in"));
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    for (tags, payload) in life {
        let origin = Origin { engine: NodeId(4), incarnation: LIFE, local: LocalId(1) };
        engine.world.log.borrow_mut().put(RecordKind::Data, origin, &tags, &payload);
    }
    let end = engine.world.log.borrow().recs.len() as u64;
    engine.until("the end of the log", |engine| engine.hot.log.applied().0 == end);
    gate.open();
    engine.answer(answer)
}

#[test]
fn a_root_that_a_peer_ended_is_not_given_up_when_its_worker_dies() {
    let outcome = ended_by_a_peer(false);
    assert_eq!(returned(&outcome), Some(&b"in"[..]), "{outcome:?}");
}

#[test]
fn a_root_that_a_peer_ended_is_not_parked_when_its_worker_dies() {
    let outcome = ended_by_a_peer(true);
    assert_eq!(returned(&outcome), Some(&b"in"[..]), "{outcome:?}");
}
