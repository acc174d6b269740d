//! The programs that are explored, and what each is there for.

use super::program::Op::{Call, CallRo, D, Detach, Draw, Fence, First, Par, R, Side, Txn as T, W};
use super::program::{Op, RootSpec, Scenario, Txn, root_id};
use super::stage::When;
use crate::{Mode, Order, Protocol, TableSpec};

// Objects by number; each is the key `k` of a table of its own.
pub(crate) const A: u8 = 0; // halfmoon-read
pub(crate) const B: u8 = 1;
pub(crate) const X: u8 = 2; // halfmoon-write
pub(crate) const Z: u8 = 3;
pub(crate) const P: u8 = 4; // boki
pub(crate) const Q: u8 = 5;
pub(crate) const S: u8 = 6; // halfmoon-read, transactional
pub(crate) const U: u8 = 7;

fn tables(order: Order) -> Vec<TableSpec> {
    let table = |name: &str, protocol, transactional| TableSpec {
        name: name.to_owned(),
        protocol,
        order,
        transactional,
    };
    vec![
        table("a", Protocol::HalfmoonRead, false),
        table("b", Protocol::Auto, false),
        table("x", Protocol::HalfmoonWrite, false),
        table("z", Protocol::HalfmoonWrite, false),
        table("p", Protocol::Boki, false),
        table("q", Protocol::Boki, false),
        table("s", Protocol::HalfmoonRead, true),
        table("u", Protocol::HalfmoonRead, true),
    ]
}

pub(crate) fn root(function: u8, keyed: bool, attempts: &[When]) -> RootSpec {
    let attempts = attempts.to_vec();
    RootSpec { function, keyed, attempts, large_input: false, inputs: Vec::new() }
}

/// Two attempts under one key, at any cursors.
fn twins(function: u8) -> RootSpec {
    root(function, true, &[When::Lagging, When::Twin])
}

/// One attempt under a drawn id, at any cursor.
fn stranger(function: u8) -> RootSpec {
    root(function, false, &[When::Lagging])
}

/// One attempt at the tail.
fn at_tail(function: u8) -> RootSpec {
    root(function, false, &[When::AtTail])
}

pub(crate) fn case(name: &'static str, functions: &[&[Op]], roots: &[RootSpec]) -> Scenario {
    let mut roots = roots.to_vec();
    for root in &mut roots {
        // Its cursor makes no difference: fewer states that are alike.
        let first = functions[usize::from(root.function)].first();
        let is_step = matches!(first, Some(W(..) | D(_) | R(X | Z | P | Q)));
        if is_step && root.attempts == [When::Lagging] {
            root.attempts = vec![When::AtOnce];
        }
    }
    Scenario {
        name,
        tables: tables(Order::Sequential),
        functions: functions.iter().map(|ops| ops.to_vec()).collect(),
        roots,
        mode: Mode::Halfmoon,
        large: false,
        finish: false,
        relaxed: false,
        cancel: None,
    }
}

impl Scenario {
    pub(crate) fn large(self) -> Self {
        Self { large: true, ..self }
    }

    pub(crate) fn relaxed(self) -> Self {
        Self { relaxed: true, tables: tables(Order::Relaxed), ..self }
    }

    pub(crate) fn with_finish(self) -> Self {
        Self { finish: true, ..self }
    }

    pub(crate) fn boki(self) -> Self {
        Self { mode: Mode::Boki, ..self }
    }

    fn cancelled(self, root: usize) -> Self {
        Self { cancel: Some(root), ..self }
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [reads(), writes(), mixed(), relaxed(), boki(), transactions(), others()]
        .into_iter()
        .flatten()
        .collect()
}

fn reads() -> Vec<Scenario> {
    let peers: &[&[Op]] = &[&[R(A), W(B, 1), R(B), W(A, 2)], &[W(A, 3), R(B), W(B, 4)]];
    let short: &[&[Op]] = &[&[R(A), W(B, 1), R(B)], &[W(A, 3), R(B), W(B, 4)]];
    let call: &[&[Op]] = &[&[R(A), Call(2), R(B)], &[W(A, 3), R(B)], &[R(A), W(B, 1)]];
    vec![
        case("read: peers and a stranger", peers, &[twins(0), stranger(1)]).with_finish(),
        case(
            "read: take-over and a stranger",
            peers,
            &[root(0, false, &[When::Lagging, When::Init(root_id(0))]), stranger(1)],
        ),
        case("read: large values", short, &[twins(0), stranger(1)]).large(),
        case(
            "read: a key is used twice",
            &[&[W(A, 1), W(A, 2), D(A), R(A)], &[R(A), R(A)]],
            &[twins(0), stranger(1)],
        ),
        case("read: a call", call, &[twins(0), stranger(1)]),
        case(
            "read: a call taken over",
            call,
            &[root(0, false, &[When::Lagging, When::Init(root_id(0))]), stranger(1)],
        ),
        case(
            "read: a call before any step",
            &[&[Call(2), R(A), W(B, 1)], &[W(A, 3)], &[R(A)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "read: a callee that has finished",
            &[&[Call(2), R(A)], &[W(A, 3), R(B)], &[R(A), W(B, 1)]],
            &[twins(0), stranger(1)],
        )
        .with_finish(),
        case(
            "read: nested calls",
            &[&[Call(2), R(B)], &[W(A, 3)], &[R(A), Call(3)], &[W(B, 1)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "read: parallel callees",
            &[&[Par(2, 3), R(A)], &[R(A), W(A, 5)], &[W(A, 1)], &[W(A, 2)]],
            &[root(0, false, &[When::Lagging, When::Init(root_id(0))]), stranger(1)],
        ),
    ]
}

fn writes() -> Vec<Scenario> {
    let two: &[&[Op]] = &[&[W(Z, 1), W(X, 2), R(X)], &[W(X, 3)], &[R(X), R(Z)]];
    let later: &[&[Op]] = &[&[R(X), W(X, 1), W(X, 2)], &[W(X, 3)]];
    let parallel: &[&[Op]] =
        &[&[Par(2, 3), W(X, 4), R(X)], &[R(X)], &[W(X, 1), W(X, 2)], &[W(X, 3)]];
    vec![
        case(
            "write: peers and a stranger, one object twice",
            &[&[W(X, 1), W(X, 2), R(X), W(X, 5)], &[R(X), W(X, 3)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "write: large values",
            &[&[R(X), W(A, 1), R(X)], &[W(X, 3), W(X, 4)]],
            &[twins(0), stranger(1)],
        )
        .large(),
        case(
            "write: deletes",
            &[&[W(X, 1), D(X), R(X)], &[R(X), W(X, 3)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "write: a log-free read decides what is written",
            &[&[R(A), W(X, 1), R(X)], &[W(A, 3), R(X)]],
            &[twins(0), stranger(1)],
        ),
        case("write: two objects", two, &[stranger(0), stranger(1), stranger(2)]),
        case(
            "write: two objects and peers",
            &[&[W(Z, 1), W(X, 2), R(X)], &[R(X), R(Z), W(X, 3)]],
            &[twins(0), stranger(1)],
        ),
        case("write: a later root", later, &[at_tail(0), root(1, false, &[When::AtTailAfter(0)])]),
        case(
            "write: a later root on an engine that lags",
            later,
            &[stranger(0), root(1, false, &[When::After(0)])],
        ),
        case(
            "write: through a callee",
            &[&[Call(2), W(X, 2), R(X)], &[R(X), W(X, 7)], &[W(X, 1)]],
            &[root(0, true, &[When::AtOnce, When::Init(root_id(0))]), stranger(1)],
        )
        .with_finish(),
        case(
            "write: through a callee that writes after its caller",
            &[&[W(X, 1), Call(2), R(X)], &[R(X)], &[W(X, 2)]],
            &[root(0, false, &[When::Lagging, When::Init(root_id(0))]), stranger(1)],
        ),
        case(
            "write: through a callee after a read",
            &[&[R(A), Call(2), R(X)], &[W(A, 3), R(X)], &[W(X, 1)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "write: parallel callees",
            parallel,
            &[root(0, false, &[When::AtTail, When::Init(root_id(0))]), stranger(1)],
        ),
    ]
}

fn mixed() -> Vec<Scenario> {
    vec![
        case(
            "mixed: write, then log-free read",
            &[&[W(X, 1), R(A)], &[W(A, 2), R(X)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "mixed: parallel callees",
            &[&[Par(2, 3), R(A)], &[W(A, 2), R(X)], &[W(X, 1)], &[W(B, 4)]],
            &[at_tail(0), stranger(1)],
        ),
        case(
            "mixed: caller writes, callee reads",
            &[&[W(X, 1), Call(2), R(X)], &[R(X), W(A, 5)], &[R(A), W(X, 2)]],
            &[root(0, false, &[When::Lagging, When::Init(root_id(0))]), stranger(1)],
        ),
        case(
            "mixed: a read_only callee asks for Init",
            &[&[CallRo(2), W(A, 1)], &[W(X, 5), R(A)], &[R(X)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "mixed: a read_only callee below another asks for Init",
            &[&[CallRo(2)], &[W(X, 5)], &[CallRo(3)], &[R(X)]],
            &[stranger(0), stranger(1)],
        ),
        case(
            "mixed: a log-free root under a key",
            &[&[R(A), R(B)], &[W(A, 1), W(B, 2)]],
            &[twins(0), stranger(1)],
        ),
    ]
}

fn relaxed() -> Vec<Scenario> {
    let two: &[&[Op]] = &[&[W(Z, 1), W(X, 2), R(X)], &[W(X, 3)], &[R(X), R(Z)]];
    vec![
        case("relaxed: two objects", two, &[stranger(0), stranger(1), stranger(2)]).relaxed(),
        case(
            "relaxed: write, then log-free read",
            &[&[W(X, 1), R(A)], &[W(A, 2), R(X)]],
            &[twins(0), stranger(1)],
        )
        .relaxed(),
        case(
            "relaxed: peers, one object twice",
            &[&[W(X, 1), W(X, 2), R(X), W(X, 5)], &[R(X), W(X, 3)]],
            &[twins(0), stranger(1)],
        )
        .relaxed(),
        case(
            "relaxed: through callees",
            &[&[W(X, 1), Call(2), R(X)], &[R(X)], &[W(X, 2)]],
            &[stranger(1), root(0, false, &[When::AtOnce, When::Init(root_id(1))])],
        )
        .relaxed(),
        case(
            "relaxed: parallel callees",
            &[&[Par(2, 3), W(X, 4), R(X)], &[R(X)], &[W(X, 1), W(X, 2)], &[W(X, 3)]],
            &[root(0, false, &[When::AtOnce, When::Init(root_id(0))]), stranger(1)],
        )
        .relaxed(),
        case(
            "relaxed: a fence by hand",
            &[&[W(X, 1), Fence, R(A)], &[W(A, 2), R(X)]],
            &[twins(0), stranger(1)],
        )
        .relaxed(),
    ]
}

fn boki() -> Vec<Scenario> {
    // Init is waited for, so all runs of these are alike: two attempts of one.
    let two = root(0, true, &[When::AtOnce, When::AtOnce]);
    let taken_over = root(0, false, &[When::AtOnce, When::Init(root_id(0))]);
    let peers: &[&[Op]] = &[&[R(P), W(P, 1), R(P)], &[W(P, 3), R(P)]];
    let objects: &[&[Op]] = &[&[W(P, 1), W(Q, 2)], &[R(Q), R(P)]];
    let call: &[&[Op]] = &[&[R(P), Call(1)], &[W(P, 1)]];
    let kinds: &[&[Op]] = &[&[W(P, 1), W(X, 2), R(A)], &[W(A, 3), R(P)]];
    vec![
        case("boki: peers and a stranger", peers, &[two.clone(), stranger(1)]),
        case("boki: two objects", objects, &[two.clone(), stranger(1)]),
        case("boki: start and finish", &[&[W(P, 1)], &[R(P)]], &[two, stranger(1)]).boki(),
        case("boki: a call", call, std::slice::from_ref(&taken_over)).boki(),
        case("boki: tables of all kinds", kinds, &[taken_over, stranger(1)]),
    ]
}

fn transactions() -> Vec<Scenario> {
    let increment: &[Op] = &[T(Txn::Increment(S))];
    let seat: &[Op] = &[T(Txn::Seat(S)), R(S)];
    let skew: &[&[Op]] = &[&[T(Txn::Skew(S, U, S))], &[T(Txn::Skew(S, U, U))]];
    vec![
        case("transaction: increment", &[increment, increment], &[twins(0), twins(1)]),
        case(
            "transaction: increment twice",
            &[&[T(Txn::Increment(S)), T(Txn::Increment(S)), R(S)], increment],
            &[twins(0), stranger(1)],
        ),
        case(
            "transaction: take a seat",
            &[seat, seat, &[W(S, 5)]],
            &[twins(0), at_tail(1), at_tail(2)],
        ),
        case("transaction: write skew", skew, &[twins(0), twins(1)]),
        case(
            "transaction: read-only",
            &[&[T(Txn::Read(S, U)), R(A)], &[W(S, 1), W(U, 2)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "transaction: large values",
            &[&[T(Txn::Copy(S, U)), R(U)], &[W(S, 1), W(U, 2)]],
            &[twins(0), stranger(1)],
        )
        .large(),
        case(
            "transaction: one without a record, then one with",
            &[&[T(Txn::Read(S, U)), T(Txn::Increment(S))], &[W(S, 5), W(U, 1)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "transaction: read-only after a log-free write",
            &[&[W(X, 1), T(Txn::Read(S, U))], &[W(S, 2), R(X)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "transaction: through a callee",
            &[&[T(Txn::Through(S, 2)), R(U)], &[W(S, 7), W(U, 8)], &[R(S), W(U, 1)]],
            &[twins(0), stranger(1)],
        ),
        case(
            "transaction: draws are made again",
            &[&[T(Txn::Draw(S)), Draw, W(U, 1)], &[W(S, 5)]],
            &[twins(0), stranger(1)],
        ),
    ]
}

fn others() -> Vec<Scenario> {
    let mut two_inputs =
        case("root: a key used with two inputs", &[&[W(A, 1)], &[R(A)]], &[twins(0), stranger(1)])
            .large();
    two_inputs.roots[0].inputs = vec![1, 2];
    vec![
        two_inputs,
        case("side effect: peers", &[&[R(A), Side, W(A, 1)], &[W(A, 2)]], &[twins(0), stranger(1)]),
        case("side effect: large result", &[&[Side, Side, W(A, 1)]], &[twins(0)]).large(),
        case(
            "first-of: whichever is first is first for all",
            &[&[First(2, 3), W(A, 1)], &[R(A)], &[W(X, 1)], &[W(Z, 2)]],
            &[root(0, false, &[When::AtTail, When::Init(root_id(0))]), at_tail(1)],
        ),
        case(
            "detached: a root of its own",
            &[&[R(A), Detach(2)], &[W(A, 3)], &[R(A), W(B, 1)]],
            &[twins(0), stranger(1), root(2, false, &[When::Detached])],
        ),
        case(
            "cancel: peers",
            &[&[W(X, 1), W(B, 2), W(A, 3)], &[R(X), R(B)]],
            &[twins(0), stranger(1)],
        )
        .cancelled(0),
        case(
            "cancel: before the Init that a callee needs",
            &[&[Call(2), W(A, 3)], &[R(B)], &[W(B, 2), W(X, 1)]],
            &[at_tail(0), at_tail(1)],
        )
        .cancelled(0),
        case(
            "cancel: with a callee",
            &[&[Call(2), W(A, 3)], &[R(B)], &[W(B, 2), W(X, 1)]],
            &[root(0, false, &[When::AtTail, When::Init(root_id(0))]), at_tail(1)],
        )
        .cancelled(0),
    ]
}
