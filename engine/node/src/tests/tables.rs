//! Which tables a root has.

use halfmoon::App;
use tokio::sync::oneshot;

use super::{BINARY, Engine, Gate, Setup, keyed, returned, unkeyed};
use crate::command::{Command, DeployBinary, Ended, Invoked};
use crate::manifest::{Manifest, Protocol, Version};
use crate::names::DEFAULT_NAMESPACE;

/// A function that waits at the gate and writes, and one that reads. The table is not declared.
fn undeclared(gate: &Gate) -> App {
    let gate = gate.clone();
    let app = App::new().function("write", move |ctx, input| {
        gate.pass();
        ctx.write("t", "k", input)?;
        Ok(b"written".to_vec())
    });
    app.function("read", |ctx, _| {
        Ok(ctx.read("t", "k")?.map_or_else(|| b"none".to_vec(), |value| value.to_vec()))
    })
}

fn declare(engine: &mut Engine, manifest: &str) {
    let (reply, deployed) = oneshot::channel();
    let deploy = DeployBinary {
        namespace: DEFAULT_NAMESPACE.to_owned(),
        protocol: None,
        manifest: Manifest::parse(manifest.as_bytes()).unwrap(),
        version: Version::of(BINARY),
        binary: BINARY.into(),
    };
    engine.obey(Command::Deploy(Box::new(deploy), reply));
    engine.answer(deployed).unwrap();
}

fn refused(outcome: &Invoked) -> bool {
    let Invoked::Ended { ended: Ended::Failed(text), .. } = outcome else { return false };
    text.contains("table \"t\" was not declared") && text.contains("hm_app_table")
}

#[test]
fn a_table_that_is_not_declared_is_refused_where_something_is_logged() {
    for protocol in [Protocol::Auto, Protocol::HalfmoonWrite, Protocol::Boki] {
        let gate = Gate::default();
        gate.open();
        let setup = Setup { protocol: Some(protocol), ..undeclared(&gate).into() };
        let mut engine = Engine::new(setup);
        for function in ["read", "write"] {
            let answer = engine.invoke(keyed(function, "key", b"v"));
            let outcome = engine.answer(answer);
            assert!(refused(&outcome), "{outcome:?}");
        }
    }
}

#[test]
fn a_table_that_is_not_declared_is_served_where_nothing_is_logged() {
    let gate = Gate::default();
    gate.open();
    let setup = Setup { protocol: Some(Protocol::Unlogged), ..undeclared(&gate).into() };
    let mut engine = Engine::new(setup);
    let answer = engine.invoke(unkeyed("write", b"v"));
    assert_eq!(returned(&engine.answer(answer)), Some(&b"written"[..]));
    let answer = engine.invoke(unkeyed("read", b""));
    assert_eq!(returned(&engine.answer(answer)), Some(&b"v"[..]));
}

#[test]
fn a_table_that_is_declared_while_a_root_runs_is_none_of_that_root() {
    let gate = Gate::default();
    let mut engine = Engine::new(undeclared(&gate));
    let old = engine.invoke(keyed("write", "old", b"old"));
    engine.until("the root at the gate", |_| gate.arrived() == 1);
    let table = r#"{"name":"t","protocol":"halfmoon-write"}"#;
    declare(
        &mut engine,
        &format!(r#"{{"functions":[{{"name":"write"}},{{"name":"read"}}],"tables":[{table}]}}"#),
    );
    gate.open();
    let outcome = engine.answer(old);
    assert!(refused(&outcome), "{outcome:?}");
    let read = engine.invoke(keyed("read", "a", b""));
    assert_eq!(returned(&engine.answer(read)), Some(&b"none"[..]));
    let new = engine.invoke(keyed("write", "new", b"new"));
    assert_eq!(returned(&engine.answer(new)), Some(&b"written"[..]));
    let read = engine.invoke(keyed("read", "b", b""));
    assert_eq!(returned(&engine.answer(read)), Some(&b"new"[..]));
}
