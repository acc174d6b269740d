//! The functions of the simulated world, written against an attempt as a session drives it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use halfmoon_protocol::attempt::{BeginTransaction, Callee};
use halfmoon_protocol::call::{Begin, Ended, Envelope, Input, Outcome};
use halfmoon_protocol::finish::Ending;
use halfmoon_protocol::transaction::Commit;
use halfmoon_protocol::{Attempt, Done, Mode, Protocol, Stop, TableSpec};

use super::ops::{Bytes, OpsError, SimOps};

/// Accounts of the bank, and what each has at first.
pub(super) const ACCOUNTS: u8 = 5;
pub(super) const BALANCE: i64 = 100;

/// Counters.
pub(super) const COUNTERS: u8 = 3;

/// What a root does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Program {
    /// Moves money, by a transaction.
    Transfer { from: u8, to: u8, amount: u8 },
    /// Adds up all accounts, in a transaction that only reads.
    Audit,
    /// Adds one to a counter.
    Increment { counter: u8 },
    /// Writes an object of its own, has callees read it and increment two counters at once, writes
    /// it again, and reads it itself.
    Workflow { first: u8, second: u8, table: u8 },
    /// Reads all counters, log-free.
    Dump,
}

/// How an operation of a session ends.
type Step<T> = Done<T, SimOps>;

/// A reply of a root or callee: numbers.
pub(super) type Reply = Vec<i64>;

/// A transaction met too many conflicts, and has no effect.
pub(super) const GAVE_UP: i64 = -1;

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Transfer { .. } => "transfer",
            Self::Audit => "audit",
            Self::Increment { .. } => "increment",
            Self::Workflow { .. } => "workflow",
            Self::Dump => "dump",
        }
    }

    pub(super) fn input(self) -> Bytes {
        let bytes = match self {
            Self::Transfer { from, to, amount } => vec![from, to, amount],
            Self::Audit | Self::Dump => vec![],
            Self::Increment { counter } => vec![counter],
            Self::Workflow { first, second, table } => vec![first, second, table],
        };
        Bytes::from(&bytes[..])
    }

    /// What a function of this name does with this input.
    fn of(name: &str, input: &[u8]) -> Option<Self> {
        Some(match (name, input) {
            ("transfer", [from, to, amount]) => {
                Self::Transfer { from: *from, to: *to, amount: *amount }
            }
            ("audit", []) => Self::Audit,
            ("increment", [counter]) => Self::Increment { counter: *counter },
            ("workflow", [first, second, table]) => {
                Self::Workflow { first: *first, second: *second, table: *table }
            }
            ("dump", []) => Self::Dump,
            _ => return None,
        })
    }

    /// How its tree is logged.
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Workflow { table: 2, .. } => Mode::Boki,
            Self::Transfer { .. }
            | Self::Audit
            | Self::Increment { .. }
            | Self::Workflow { .. }
            | Self::Dump => Mode::Halfmoon,
        }
    }

    pub(super) fn is_read_only(self) -> bool {
        matches!(self, Self::Audit | Self::Dump)
    }
}

/// The table of accounts and counters.
fn shared() -> TableSpec {
    TableSpec { transactional: true, ..TableSpec::new("shared", Protocol::HalfmoonRead) }
}

/// Tables of objects that only one root writes, one under each protocol.
fn own(table: u8) -> TableSpec {
    match table {
        0 => TableSpec::new("own-read", Protocol::HalfmoonRead),
        1 => TableSpec::new("own-write", Protocol::HalfmoonWrite),
        _ => TableSpec::new("own-boki", Protocol::Boki),
    }
}

fn account(number: u8) -> Vec<u8> {
    vec![b'a', number]
}

fn counter(number: u8) -> Vec<u8> {
    vec![b'c', number]
}

fn number(value: Option<&Bytes>, otherwise: i64) -> i64 {
    let word = value.and_then(|value| value.0.first_chunk().copied());
    word.map_or(otherwise, i64::from_le_bytes)
}

fn stored(number: i64) -> Bytes {
    Bytes::from(&number.to_le_bytes()[..])
}

pub(super) fn encode(reply: &[i64]) -> Bytes {
    let bytes: Vec<u8> = reply.iter().flat_map(|number| number.to_le_bytes()).collect();
    Bytes::from(&bytes[..])
}

pub(super) fn decode(bytes: &Bytes) -> Reply {
    let (words, _) = bytes.0.as_chunks::<8>();
    words.iter().map(|word| i64::from_le_bytes(*word)).collect()
}

/// Runs the function of an attempt to its end.
pub(super) async fn run(mut attempt: Box<Attempt<SimOps>>) -> Step<Ending<SimOps>> {
    let (name, input) = (attempt.identity().function.clone(), attempt.input().clone());
    let reply = match Program::of(&name, &input.0) {
        Some(Program::Transfer { from, to, amount }) => {
            transfer(&mut attempt, from, to, amount).await
        }
        Some(Program::Audit) => audit(&mut attempt).await,
        Some(Program::Increment { counter }) => increment(&mut attempt, counter).await,
        Some(Program::Workflow { first, second, table }) => {
            workflow(&mut attempt, (first, second), table).await
        }
        Some(Program::Dump) => dump(&mut attempt).await,
        None => peek(&mut attempt, &input.0).await,
    };
    match reply {
        Ok(reply) => attempt.finish(Ok(encode(&reply))).await,
        Err(Stop::Cancelled) => attempt.finish_cancelled().await,
        Err(stop) => Err(stop),
    }
}

async fn transfer(attempt: &mut Attempt<SimOps>, from: u8, to: u8, amount: u8) -> Step<Reply> {
    let (table, amount) = (shared(), i64::from(amount));
    loop {
        if attempt.begin_transaction().await? == BeginTransaction::TooManyConflicts {
            return Ok(vec![GAVE_UP]);
        }
        let source = number(attempt.read(&table, &account(from)).await?.as_ref(), BALANCE);
        let target = number(attempt.read(&table, &account(to)).await?.as_ref(), BALANCE);
        let (source, target) = (source - amount, target + amount);
        if from != to {
            attempt.write(&table, &account(from), Some(stored(source))).await?;
            attempt.write(&table, &account(to), Some(stored(target))).await?;
        }
        match attempt.commit().await? {
            Commit::Committed => return Ok(vec![source, target]),
            Commit::Again => {}
            Commit::TooManyConflicts => return Ok(vec![GAVE_UP]),
        }
    }
}

async fn audit(attempt: &mut Attempt<SimOps>) -> Step<Reply> {
    loop {
        if attempt.begin_transaction().await? == BeginTransaction::TooManyConflicts {
            return Ok(vec![GAVE_UP]);
        }
        let mut balances = Vec::new();
        for of in 0..ACCOUNTS {
            balances.push(number(attempt.read(&shared(), &account(of)).await?.as_ref(), BALANCE));
        }
        match attempt.commit().await? {
            Commit::Committed => return Ok(balances),
            Commit::Again => {}
            Commit::TooManyConflicts => return Ok(vec![GAVE_UP]),
        }
    }
}

async fn increment(attempt: &mut Attempt<SimOps>, of: u8) -> Step<Reply> {
    let table = shared();
    loop {
        if attempt.begin_transaction().await? == BeginTransaction::TooManyConflicts {
            return Ok(vec![GAVE_UP]);
        }
        let next = number(attempt.read(&table, &counter(of)).await?.as_ref(), 0) + 1;
        attempt.write(&table, &counter(of), Some(stored(next))).await?;
        match attempt.commit().await? {
            Commit::Committed => return Ok(vec![next]),
            Commit::Again => {}
            Commit::TooManyConflicts => return Ok(vec![GAVE_UP]),
        }
    }
}

async fn dump(attempt: &mut Attempt<SimOps>) -> Step<Reply> {
    let mut reply = Vec::new();
    for of in 0..COUNTERS {
        reply.push(number(attempt.read(&shared(), &counter(of)).await?.as_ref(), 0));
    }
    for of in 0..ACCOUNTS {
        reply.push(number(attempt.read(&shared(), &account(of)).await?.as_ref(), BALANCE));
    }
    Ok(reply)
}

/// Reads an object of the root's: table, then key.
async fn peek(attempt: &mut Attempt<SimOps>, input: &[u8]) -> Step<Reply> {
    let (table, key) = input.split_first().map_or((0, input), |(table, key)| (*table, key));
    Ok(vec![number(attempt.read(&own(table), key).await?.as_ref(), 0)])
}

async fn workflow(attempt: &mut Attempt<SimOps>, counters: (u8, u8), table: u8) -> Step<Reply> {
    let key = attempt.identity().instance.0.to_le_bytes().to_vec();
    let look = [&[table][..], &key[..]].concat();
    attempt.write(&own(table), &key, Some(stored(1))).await?;
    let first = call(attempt, &[("increment", vec![counters.0]), ("peek", look.clone())]).await?;
    attempt.write(&own(table), &key, Some(stored(2))).await?;
    let second = call(attempt, &[("peek", look), ("increment", vec![counters.1])]).await?;
    let last = number(attempt.read(&own(table), &key).await?.as_ref(), 0);
    let mut reply: Reply = first.into_iter().chain(second).collect();
    reply.push(last);
    Ok(reply)
}

/// Calls functions at once, and joins them; their replies have one number each.
async fn call(attempt: &mut Attempt<SimOps>, callees: &[(&str, Vec<u8>)]) -> Step<Reply> {
    let (mut outcomes, mut running) = (Vec::new(), Vec::new());
    for (name, input) in callees {
        let input = Input { value: Bytes::from(&input[..]), fingerprint: 0 };
        match attempt.begin_call(name, input, *name == "peek").await? {
            Begin::Recorded(outcome) => outcomes.push(outcome),
            Begin::Run(envelope) => running.push(envelope),
        }
    }
    let ops = attempt.ops().clone();
    let called = async {
        let callees = running.into_iter().map(|envelope| callee(ops.clone(), *envelope));
        all(callees.collect()).await
    };
    outcomes.extend(minding_init(attempt, Box::pin(called)).await?);
    let ended: Vec<Ended<Bytes>> = attempt.joined(outcomes).await?;
    Ok(ended.iter().map(|ended| decode(&ended.result).first().copied().unwrap_or(0)).collect())
}

async fn callee(ops: SimOps, envelope: Envelope<Bytes>) -> Step<Outcome<Bytes>> {
    let call = envelope.call;
    let ended = match Attempt::callee(ops.clone(), envelope).await? {
        Callee::Ended(outcome) => return Ok(outcome),
        Callee::Run(attempt) => Box::pin(run(attempt)).await,
    };
    match ended {
        Ok(Ending { outcome, finish }) => {
            if let Some(finish) = finish {
                let task = async move { finish.append().await.is_ok() };
                // It only spares running the callee again.
                ops.life.executor.spawn(task).map(drop).ok();
            }
            Ok(outcome)
        }
        Err(Stop::Ended(ended)) => Ok(Outcome { call, ended: *ended, transaction: None }),
        Err(stop) => Err(stop),
    }
}

/// Runs all to their ends; the first failure ends them all.
async fn all<F: Future<Output = Step<Outcome<Bytes>>>>(
    running: Vec<F>,
) -> Step<Vec<Outcome<Bytes>>> {
    let mut running: Vec<_> = running.into_iter().map(Box::pin).collect();
    let mut done = Vec::new();
    poll_fn(|context| {
        let mut failed = None;
        running.retain_mut(|future| match future.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(Ok(outcome)) => {
                done.push(outcome);
                false
            }
            Poll::Ready(Err(stop)) => {
                failed.get_or_insert(stop);
                false
            }
        });
        match failed {
            Some(stop) => Poll::Ready(Err(stop)),
            None if running.is_empty() => Poll::Ready(Ok(std::mem::take(&mut done))),
            None => Poll::Pending,
        }
    })
    .await
}

/// Waits for callees; sends Init if one of them needs it, and looks what became of it.
async fn minding_init<T>(
    attempt: &mut Attempt<SimOps>,
    called: impl Future<Output = Step<T>>,
) -> Step<T> {
    let is_root = attempt.identity().instance == attempt.identity().root;
    let need = attempt.ops().need_init.clone();
    let mut called = pin!(called);
    let asked = poll_fn(|context| match called.as_mut().poll(context) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if is_root && need.poll(context) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    if let Some(outcome) = asked.await {
        return outcome;
    }
    attempt.send_init().await?;
    let mut answered = Some(Box::pin(attempt.watch_init()));
    poll_fn(|context| {
        if let Poll::Ready(outcome) = called.as_mut().poll(context) {
            return Poll::Ready(outcome);
        }
        match answered.as_mut().map(|answer| answer.as_mut().poll(context)) {
            Some(Poll::Ready(Ok(()))) => {
                answered = None;
                Poll::Pending
            }
            Some(Poll::Ready(Err(stop))) => Poll::Ready(Err(stop)),
            Some(Poll::Pending) | None => Poll::Pending,
        }
    })
    .await
}

/// Whether the engine is of no more use for anything.
pub(super) fn is_over(error: OpsError) -> bool {
    use halfmoon_client::{LogError, StateError};
    matches!(
        error,
        OpsError::Evicted
            | OpsError::Log(LogError::Unknown | LogError::Closed | LogError::Broken)
            | OpsError::State(StateError::Closed)
    )
}
