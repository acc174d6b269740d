//! A crash at every await: attempt one is stopped after n operations, a stranger looks and writes,
//! attempt two runs to its end. And what every operation appends, counted.

use std::rc::Rc;

use super::explore::{Explorer, set};
use super::program::Op::{Call, CallRo, Fence, Par, R, Side, Txn as T, W};
use super::program::{Op, Scenario, Txn};
use super::scenarios::{A, B, P, Q, S, U, X, Z, case, root};
use super::stage::{Move, Stage, When};
use super::world::Counts;

const fn strand(chosen: Move) -> usize {
    match chosen {
        Move::Answer(strand, _) | Move::Post(strand, _) => strand,
    }
}

/// Lets the strands that `mine` accepts make up to `limit` moves; how many they made.
fn run(stage: &Stage, limit: usize, mine: impl Fn(usize) -> bool) -> usize {
    for made in 0..limit {
        let Some(next) = stage.moves().into_iter().find(|chosen| mine(strand(*chosen))) else {
            return made;
        };
        stage.make(next);
    }
    limit
}

/// Strands 0 and 1 are the attempts, 2 is the stranger; callees come after.
fn crash_everywhere(program: &Scenario) {
    let mut program = program.clone();
    program.roots.truncate(2);
    program.roots[0].attempts = vec![When::AtTail, When::AtTail];
    program.roots[1].attempts = vec![When::AtTail];
    let scenario = Rc::new(program);
    let mut crashes = 0;
    for (limit, delivered) in (0..100).flat_map(|limit| [(limit, false), (limit, true)]) {
        let stage = set(&scenario);
        let mut explorer = Explorer::new(&scenario);
        let made = run(&stage, limit, |strand| strand == 0 || strand > 2);
        let born = stage.strands();
        for strand in (0..born).filter(|strand| *strand == 0 || *strand > 2) {
            stage.crash(strand, delivered);
        }
        run(&stage, usize::MAX, |strand| strand == 2);
        run(&stage, usize::MAX, |strand| strand != 2);
        let verdict = explorer.check(&stage, true);
        assert_eq!(verdict, Ok(()), "{}, crash after {made} operations", scenario.name);
        if made < limit {
            break;
        }
        crashes += 1;
    }
    assert!((4..200).contains(&crashes), "{} was crashed {crashes} times", scenario.name);
}

fn programs() -> Vec<Scenario> {
    let attempts = [root(0, true, &[]), root(1, false, &[])];
    let program = |name, functions: &[&[Op]]| case(name, functions, &attempts);
    vec![
        program("read", &[&[R(A), W(B, 1), R(B), W(A, 2), R(A)], &[R(B), W(A, 3), R(A)]]),
        program("read, large", &[&[R(A), W(B, 1), R(B), W(A, 2)], &[R(B), W(A, 3)]]).large(),
        program("write", &[&[W(X, 1), W(X, 2), R(X), W(Z, 3)], &[R(X), W(X, 4), R(Z)]]),
        program("mixed", &[&[W(X, 1), R(A), W(A, 2), R(X)], &[R(X), W(A, 4), W(X, 5)]]),
        program("calls", &[&[R(A), Call(2), R(B)], &[R(B), W(A, 3)], &[W(B, 1), R(A), W(X, 2)]])
            .with_finish(),
        program("parallel", &[&[Par(2, 3), R(B)], &[R(B), W(A, 3)], &[W(B, 1)], &[R(A), W(X, 2)]])
            .with_finish(),
        program("boki", &[&[R(P), W(P, 1), Call(2), R(P)], &[R(P), W(P, 3)], &[W(Q, 1), R(P)]])
            .boki(),
        program(
            "transaction",
            &[&[T(Txn::Increment(S)), T(Txn::Copy(S, U)), R(U)], &[R(S), T(Txn::Increment(S))]],
        ),
        program("side effect", &[&[Side, W(A, 1), Side, W(X, 2)], &[R(A), R(X)]]),
    ]
}

#[test]
fn a_crash_at_every_await_then_another_attempt() {
    for program in programs() {
        crash_everywhere(&program);
    }
}

#[test]
fn two_crashes_are_as_one() {
    for mut program in programs() {
        program.roots[0].keyed = true;
        // The stranger has nothing to say; attempt one crashes, then attempt two does.
        for first in 0..40 {
            let scenario = Rc::new({
                let mut program = program.clone();
                program.roots[0].attempts = vec![When::AtTail; 3];
                program.roots[1].attempts = vec![When::AtTail];
                program
            });
            let stage = set(&scenario);
            let old = stage.strands();
            let made = run(&stage, first, |strand| strand == 0 || strand >= old);
            let middle = stage.strands();
            (0..middle).filter(|strand| *strand == 0 || *strand >= old).for_each(|strand| {
                stage.crash(strand, false);
            });
            run(&stage, first / 2, |strand| strand == 1 || strand >= middle);
            let late = stage.strands();
            (0..late).filter(|strand| *strand == 1 || *strand >= middle).for_each(|strand| {
                stage.crash(strand, true);
            });
            run(&stage, usize::MAX, |_| true);
            let verdict = Explorer::new(&scenario).check(&stage, true);
            assert_eq!(verdict, Ok(()), "{}, crashes after {made}", scenario.name);
        }
    }
}

/// Runs a program alone; what it appended.
fn appended(functions: &[&[Op]], keyed: bool, change: fn(Scenario) -> Scenario) -> Counts {
    let program = case("alone", functions, &[root(0, keyed, &[When::AtTail])]);
    let scenario = Rc::new(change(program.with_finish()));
    let stage = set(&scenario);
    run(&stage, usize::MAX, |_| true);
    let verdict = Explorer::new(&scenario).check(&stage, true);
    assert_eq!(verdict, Ok(()));
    stage.0.borrow().world.counts
}

fn ours(ops: &[Op]) -> Counts {
    appended(&[ops, &[R(A)], &[W(B, 1)]], false, |program| program)
}

const NONE: Counts = Counts { init: 0, steps: 0, fences: 0, finish: 0 };

#[test]
fn a_read_only_workflow_under_halfmoon_read_appends_nothing() {
    assert_eq!(ours(&[R(A), R(B), CallRo(1), R(A), T(Txn::Read(S, U))]), NONE);
}

#[test]
fn halfmoon_read_appends_once_per_write_and_never_per_read() {
    let counts = Counts { steps: 1, finish: 1, ..NONE };
    assert_eq!(ours(&[R(A), W(A, 1), R(A), R(B)]), counts, "Init rides on the first step");
    assert_eq!(ours(&[W(A, 1), W(B, 1), W(A, 2)]), Counts { steps: 3, ..counts });
}

#[test]
fn halfmoon_write_appends_once_per_read_and_never_per_write() {
    let counts = Counts { init: 1, finish: 1, ..NONE };
    assert_eq!(ours(&[W(X, 1), W(X, 2), W(X, 3)]), counts, "Init is waited for");
    assert_eq!(ours(&[R(X), W(X, 1), R(X)]), Counts { init: 0, steps: 2, ..counts });
}

#[test]
fn sequential_order_costs_a_fence_per_further_object_and_relaxed_none() {
    let ops: &[Op] = &[W(X, 1), W(Z, 2), R(A)];
    let counts = Counts { init: 1, fences: 2, finish: 1, ..NONE };
    assert_eq!(ours(ops), counts);
    assert_eq!(appended(&[ops], false, Scenario::relaxed), Counts { fences: 0, ..counts });
    assert_eq!(ours(&[W(X, 1), Fence, R(A)]), Counts { fences: 1, ..counts });
}

#[test]
fn a_call_appends_nothing_on_the_reply_path() {
    // Init and both Finish go in the background.
    assert_eq!(ours(&[Call(2)]), Counts { init: 1, steps: 1, finish: 2, fences: 0 });
    assert_eq!(ours(&[W(A, 1), Call(2)]), Counts { steps: 2, finish: 2, ..NONE });
    assert_eq!(ours(&[W(A, 1), Call(1)]), Counts { steps: 1, finish: 1, ..NONE });
}

#[test]
fn a_log_free_root_under_a_key_appends_init_and_finish() {
    let counts = appended(&[&[R(A)]], true, |program| program);
    assert_eq!(counts, Counts { init: 1, finish: 1, ..NONE });
}

#[test]
fn a_transaction_appends_once_however_many_objects() {
    assert_eq!(ours(&[T(Txn::Copy(S, U))]), Counts { steps: 1, finish: 1, ..NONE });
}

#[test]
fn boki_appends_per_read_write_and_call_as_published() {
    let boki = |functions: &[&[Op]]| appended(functions, false, Scenario::boki);
    let root_alone = Counts { init: 1, finish: 1, ..NONE };
    assert_eq!(boki(&[&[]]), root_alone);
    assert_eq!(boki(&[&[R(P)]]), Counts { steps: 1, ..root_alone });
    assert_eq!(boki(&[&[W(P, 1)]]), Counts { steps: 2, ..root_alone });
    // Before and after by the caller, start and finish of the callee.
    assert_eq!(boki(&[&[Call(1)], &[]]), Counts { steps: 3, finish: 2, ..root_alone });
}

#[test]
fn unlogged_appends_nothing() {
    let unlogged = |program: Scenario| {
        let mut program = Scenario { mode: crate::Mode::Unlogged, ..program };
        program.tables.iter_mut().for_each(|table| {
            table.protocol = crate::Protocol::Unlogged;
            table.transactional = false;
        });
        program
    };
    let ops: &[Op] = &[R(A), W(A, 1), Call(1), Side, Fence, R(A)];
    assert_eq!(appended(&[ops, &[W(B, 1)]], true, unlogged), NONE);
}
