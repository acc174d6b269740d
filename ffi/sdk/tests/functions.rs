//! Functions against an engine in memory.

use std::sync::atomic::{AtomicU32, Ordering};

use halfmoon::testing::{Ended, FakeError, harness};
use halfmoon::{App, Ctx, Error, Refusal, Result, Table};

fn returned(bytes: &[u8]) -> Ended {
    Ended::Returned(bytes.to_vec())
}

fn one(handler: impl Fn(&mut Ctx, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static) -> App {
    App::new()
        .table("t")
        .function("f", handler)
        .function("echo", |_, input| Ok(input.to_vec()))
        .function("fail", |_, _| Err("no".into()))
}

fn transfer(ctx: &mut Ctx, _input: &[u8]) -> Result<Vec<u8>> {
    ctx.transaction(|txn| {
        let balance = |value: Option<halfmoon::Value>| -> Result<u64> {
            value.map_or(Ok(0), |value| value.view::<u64>().copied())
        };
        let (a, b) = (balance(txn.read("t", "a")?)?, balance(txn.read("t", "b")?)?);
        if a < 10 {
            return Err("not enough".into());
        }
        txn.write("t", "a", (a - 10).to_ne_bytes())?;
        txn.write("t", "b", (b + 10).to_ne_bytes())
    })?;
    Ok(b"moved".to_vec())
}

#[test]
fn a_transaction_moves_money_once_however_often_it_conflicts() {
    let mut engine = harness(&one(transfer)).unwrap();
    engine.set_object("t", b"a", &15_u64.to_ne_bytes());
    engine.conflict_next(3);
    assert_eq!(engine.invoke("f", b"").unwrap(), returned(b"moved"));
    assert_eq!(engine.object("t", b"a"), Some(&5_u64.to_ne_bytes()[..]));
    assert_eq!(engine.object("t", b"b"), Some(&10_u64.to_ne_bytes()[..]));
    assert_eq!(engine.invoke("f", b"").unwrap(), Ended::Failed(b"not enough".to_vec()));
    assert_eq!(engine.object("t", b"a"), Some(&5_u64.to_ne_bytes()[..]));
}

/// One of everything.
fn workflow(ctx: &mut Ctx, input: &[u8]) -> Result<Vec<u8>> {
    let seen = ctx.read("t", "k")?;
    assert!(seen.is_none());
    ctx.write("t", "k", input)?;
    let draw = ctx.random()?;
    let pending = [ctx.call_async("echo", "one")?, ctx.call_async("echo", "two")?];
    let made = ctx.side_effect(|| b"made".to_vec())?;
    let joined = ctx.join_all(pending)?;
    let long = ctx.call("echo", vec![7; 100_000])?;
    let id = ctx.uuid()?;
    ctx.fence()?;
    ctx.spawn("echo", "later")?;
    let count = ctx.update("t", "count", |old| vec![old.map_or(1, |old| old[0] + 1)])?;
    let mut draft = ctx.draft(50_000)?;
    draft.fill(b'd');
    ctx.write_draft("t", "long", draft)?;
    ctx.delete("t", "k")?;
    let time = ctx.now_ns()?;
    let texts: Vec<String> =
        joined.into_iter().map(|value| Ok(value?.text()?.to_owned())).collect::<Result<_>>()?;
    let text = format!("{} {} {draw} {id} {count:?} {time}", texts.join("+"), made.text()?);
    Ok(format!("{text} {}", long.len()).into_bytes())
}

#[test]
fn an_attempt_broken_off_anywhere_ends_with_the_same_result_and_effects() {
    let mut whole = harness(&one(workflow)).unwrap();
    let expected = whole.invoke("f", b"in").unwrap();
    let attempts = whole.attempts();
    assert!(matches!(&expected, Ended::Returned(text) if text.starts_with(b"one+two made ")));
    for index in 0.. {
        let mut engine = harness(&one(workflow)).unwrap();
        engine.interrupt_at(index);
        assert_eq!(engine.invoke("f", b"in").unwrap(), expected, "broken off at {index}");
        assert_eq!(engine.object("t", b"count"), Some(&[1][..]), "broken off at {index}");
        assert_eq!(engine.object("t", b"k"), None);
        assert_eq!(engine.object("t", b"long"), Some(&vec![b'd'; 50_000][..]));
        if engine.attempts() == attempts {
            assert!(index > 15, "the workflow has more operations than that");
            break;
        }
    }
}

#[test]
fn a_recorded_side_effect_is_not_made_again() {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let app = one(|ctx, _| {
        let made =
            ctx.side_effect(|| vec![u8::try_from(MADE.fetch_add(1, Ordering::SeqCst)).unwrap()])?;
        ctx.fence()?;
        Ok(made.to_vec())
    });
    let mut engine = harness(&app).unwrap();
    engine.interrupt_at(2);
    assert_eq!(engine.invoke("f", b"").unwrap(), returned(&[0]));
    assert_eq!((MADE.load(Ordering::SeqCst), engine.attempts()), (1, 2));
}

#[test]
fn an_error_is_a_result_and_a_panic_is_an_attempt() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let mut engine = harness(&one(|ctx, input| match input {
        b"err" => Err(Error::app("bad input")),
        b"callee" => Ok(ctx.call("fail", "")?.to_vec()),
        _ if CALLS.fetch_add(1, Ordering::SeqCst) == 0 => panic!("only once"),
        _ => Ok(b"second".to_vec()),
    }))
    .unwrap();
    assert_eq!(engine.invoke("f", b"err").unwrap(), Ended::Failed(b"bad input".to_vec()));
    assert_eq!(engine.attempts(), 1);
    assert_eq!(engine.invoke("f", b"callee").unwrap(), Ended::Failed(b"fail: no".to_vec()));
    assert_eq!(engine.invoke("f", b"panic").unwrap(), returned(b"second"));
    let parked = harness(&one(|_, _| panic!("always"))).unwrap().invoke("f", b"").unwrap_err();
    assert!(matches!(&parked, FakeError::Parked { text, .. } if text == "panic: always"));
}

#[test]
fn what_is_swallowed_after_the_end_of_an_attempt_is_ignored() {
    let app = one(|ctx, _| {
        let first = ctx.write("t", "k", "v");
        let second = ctx.fence();
        if matches!((&first, &second), (Err(Error::Ended(_)), Err(Error::Ended(_)))) {
            return Ok(b"wrong".to_vec());
        }
        first.and(second)?;
        Ok(b"right".to_vec())
    });
    let mut engine = harness(&app).unwrap();
    engine.interrupt_at(0);
    assert_eq!(engine.invoke("f", b"").unwrap(), returned(b"right"));
}

#[test]
fn a_call_that_is_not_joined_is_waited_for() {
    let app = one(|ctx, _| {
        let forgotten = ctx.call_async("echo", "x")?;
        drop(forgotten);
        Ok(Vec::new())
    });
    assert_eq!(harness(&app).unwrap().invoke("f", b"").unwrap(), returned(b""));
}

#[test]
fn more_calls_than_may_be_outstanding_are_begun_one_after_another() {
    let app = one(|ctx, _| {
        let pending: Result<Vec<_>> =
            (0..300_u32).map(|n| ctx.call_async("echo", n.to_le_bytes())).collect();
        let values = ctx.join_all(pending?)?;
        for (n, value) in (0_u32..).zip(values) {
            assert_eq!(&*value?, n.to_le_bytes());
        }
        Ok(b"all".to_vec())
    });
    assert_eq!(harness(&app).unwrap().invoke("f", b"").unwrap(), returned(b"all"));
}

#[test]
fn an_unknown_table_is_refused_and_the_function_may_go_on() {
    let app = one(|ctx, _| {
        let read = ctx.read("nowhere", "k").unwrap_err();
        assert!(matches!(read, Error::Refused { code: Refusal::UnknownTable, .. }));
        let in_body = ctx.transaction(|txn| txn.write("nowhere", "k", "v")).unwrap_err();
        assert!(matches!(in_body, Error::Refused { code: Refusal::UnknownTable, .. }));
        Ok(b"went on".to_vec())
    });
    assert_eq!(harness(&app).unwrap().invoke("f", b"").unwrap(), returned(b"went on"));
}

#[test]
fn what_differs_between_attempts_is_found() {
    let app = one(|ctx, _| {
        ctx.write("t", "k", ctx.attempt().to_string())?;
        ctx.fence()?;
        Ok(Vec::new())
    });
    let mut engine = harness(&app).unwrap();
    engine.interrupt_at(1);
    let error = engine.invoke("f", b"").unwrap_err();
    assert!(matches!(error, FakeError::NotDeterministic { index: 0, .. }));
}

#[test]
fn too_long_a_key_is_refused_before_it_is_sent() {
    let app = one(|ctx, _| {
        let error = ctx.read("t", vec![0; 2000]).unwrap_err();
        assert!(matches!(error, Error::TooLong(_)));
        ctx.write("t", "k", vec![0; halfmoon::limits::VALUE_MAX_BYTES + 1]).unwrap_err();
        ctx.read("t", "k")?;
        Ok(b"ok".to_vec())
    });
    assert_eq!(harness(&app).unwrap().invoke("f", b"").unwrap(), returned(b"ok"));
}

#[test]
fn json_goes_in_and_out() {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Order {
        item: String,
        count: u32,
    }
    fn place(ctx: &mut Ctx, order: Order) -> Result<u32> {
        ctx.write_json("t", &order.item, &order)?;
        let read: Order = ctx.read_json("t", &order.item)?.ok_or("gone")?;
        let echoed: Order = ctx.call_json("echo", &read)?;
        assert_eq!(echoed, order);
        ctx.side_effect_json(|| order.count * 2)
    }
    let app = one(halfmoon::json(place));
    let mut engine = harness(&app).unwrap();
    let input = br#"{"item":"tea","count":21}"#;
    assert_eq!(engine.invoke("f", input).unwrap(), returned(b"42"));
    let Ended::Failed(text) = engine.invoke("f", b"{").unwrap() else { panic!("no JSON") };
    assert!(text.starts_with(b"the value is no input of this function"));
}

#[test]
fn the_manifest_names_everything_and_is_json() {
    let app = App::new()
        .table("plain")
        .table(
            Table::new("bank")
                .protocol(halfmoon::Protocol::HalfmoonRead)
                .order(halfmoon::Order::Relaxed)
                .transactional(),
        )
        .function("transfer", transfer)
        .function_with(
            halfmoon::Function::new("look", transfer)
                .read_only()
                .timeout(std::time::Duration::from_secs(2))
                .max_attempts(3)
                .concurrency(5),
        );
    let manifest: serde_json::Value = serde_json::from_str(&app.manifest()).unwrap();
    let expected = serde_json::json!({
        "sdk": halfmoon::SDK, "layout": 1,
        "functions": [
            {"name": "transfer", "read_only": false, "timeout_ms": null, "max_attempts": null,
             "concurrency": null},
            {"name": "look", "read_only": true, "timeout_ms": 2000, "max_attempts": 3,
             "concurrency": 5},
        ],
        "tables": [
            {"name": "plain", "protocol": "auto", "order": "sequential", "transactional": false},
            {"name": "bank", "protocol": "halfmoon-read", "order": "relaxed", "transactional": true},
        ],
    });
    assert_eq!(manifest, expected);
}

#[test]
fn names_that_cannot_be_are_refused() {
    let echo = |_: &mut Ctx, input: &[u8]| Ok(input.to_vec());
    App::new().check().unwrap_err();
    App::new().function("a b", echo).check().unwrap_err();
    App::new().function("a", echo).function("a", echo).check().unwrap_err();
    App::new().function("a", echo).table("").check().unwrap_err();
    App::new().function("a", echo).table("t").check().unwrap();
}
