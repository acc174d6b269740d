//! What an engine says of roots that it does not run.

use halfmoon_wire::{LocalId, NodeId, Origin, RecordKind};

use super::fake::{ENGINE, LIFE, World};
use super::inherited::{app, init_of_another};
use super::{Engine, Gate, keyed};
use crate::command::{Command, RootStatus};
use crate::manifest::Protocol;
use crate::pool::PoolConfig;

#[test]
fn an_engine_that_has_not_seen_the_end_of_the_log_does_not_say_that_a_root_is_unknown() {
    let gate = Gate::default();
    let pool = PoolConfig::for_cores(2);
    let mut engine = Engine::in_world(World::new(), app(&gate), pool, (ENGINE, LIFE));
    let status = engine.status(keyed("f", "key", b"in").id);
    assert!(matches!(status, RootStatus::Unavailable(_)), "{status:?}");
}

#[test]
fn an_engine_that_lags_does_not_say_that_a_root_is_unknown() {
    let (tags, payload, _) = init_of_another(Protocol::HalfmoonRead);
    let gate = Gate::default();
    let mut engine = Engine::new(app(&gate));
    engine.rounds(20);
    let applied = engine.hot.log.applied().0;
    for node in 0..3 {
        engine.world.node(node).flushed = Some(applied);
    }
    let origin = Origin { engine: NodeId(4), incarnation: LIFE, local: LocalId(1) };
    engine.world.log.borrow_mut().put(RecordKind::Data, origin, &tags, &payload);
    let (reply, answer) = tokio::sync::oneshot::channel();
    engine.obey(Command::Status(keyed("f", "key", b"in").id, reply));
    engine.rounds(20);
    for node in 0..3 {
        engine.world.node(node).flushed = None;
    }
    let status = engine.answer(answer);
    assert!(matches!(status, RootStatus::Running { here: false, .. }), "{status:?}");
}
