//! The session driver that runs small programs.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use super::mock::Mock;
use super::program::{NO_OBJECT, Observed, Op, RootSpec, Scenario, Txn, root_id};
use super::stage::{Never, Reply, When};
use super::world::Val;
use crate::attempt::{BeginTransaction, Callee, SideEffect};
use crate::call::{Begin, Ended, Envelope, Input, Outcome, Point, Status};
use crate::root::{Request, Start, Started};
use crate::transaction::Commit;
use crate::{Attempt, Mode, Stop, root};

type Stopped = Stop<Val, Never>;

enum Returned {
    Outcome(Outcome<Val>, Option<Vec<Observed>>),
    Lost,
}

/// What a session hears that waits for callees.
enum Heard {
    Done,
    WantsInit,
    Init(Result<(), Stopped>),
}

type Return = Rc<RefCell<Option<Returned>>>;

/// One run of one function.
struct Session<'a> {
    scenario: &'a Rc<Scenario>,
    mock: &'a Mock,
    function: u8,
    /// The value read or returned last.
    seen: u32,
    observed: Vec<Observed>,
}

fn number(value: Option<&Val>) -> u32 {
    let bytes = value.and_then(|value| value.bytes.first_chunk()).copied();
    bytes.map_or(0, u32::from_le_bytes)
}

fn encode(seen: u32, observed: &[Observed]) -> Val {
    let mut bytes = seen.to_le_bytes().to_vec();
    for one in observed {
        bytes.extend([one.function, one.op, one.object, u8::from(one.write)]);
        bytes.extend(one.value.to_le_bytes());
    }
    Val::small(&bytes)
}

fn decode(value: &Val) -> (u32, Vec<Observed>) {
    let (seen, rest) = value.bytes.split_at(value.bytes.len().min(4));
    let one = |bytes: &[u8]| Observed {
        function: bytes[0],
        op: bytes[1],
        object: bytes[2],
        write: bytes[3] == 1,
        value: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    let seen = seen.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    (seen, rest.chunks_exact(8).map(one).collect())
}

/// What a client sends.
fn input(scenario: &Scenario, spec: &RootSpec, attempt: usize) -> Input<Val> {
    let number = spec.inputs.get(attempt).copied().unwrap_or(0);
    let large = spec.large_input || scenario.large;
    let value = Val { bytes: number.to_le_bytes().as_slice().into(), large };
    Input { value, fingerprint: u128::from(number) }
}

/// An attempt of root number `index`, as an engine would drive it.
pub(crate) async fn root_session(
    scenario: Rc<Scenario>,
    index: usize,
    attempt_number: usize,
    mock: Mock,
) {
    let spec = &scenario.roots[index];
    let when = spec.attempts[attempt_number];
    let (cursor, detached) = mock.start(when).await;
    let asked = !matches!(when, When::Init(_) | When::Detached);
    let request = || Request {
        function: format!("f{}", spec.function),
        version: [0; 32],
        input: input(&scenario, spec, attempt_number),
        mode: scenario.mode,
        keyed: spec.keyed,
        read_only: false,
    };
    let root = detached.unwrap_or_else(|| root_id(index));
    loop {
        let start = Start { root, cursor, request: asked.then(request) };
        let mut attempt = match root::start(mock.clone(), start).await {
            Ok(Started::Run(attempt)) => attempt,
            Ok(Started::Ended(ended)) => return replied(&mock, index, &ended, None),
            Ok(Started::Nothing) => return,
            Err(Stop::RunLost) => continue,
            Err(Stop::Cancelled) => return,
            Err(Stop::Refused(crate::Refused::KeyReused)) if spec.inputs.len() > 1 => return,
            Err(stop) => return mock.violated(format!("root {index} did not start: {stop}")),
        };
        let mut session = Session {
            scenario: &scenario,
            mock: &mock,
            function: spec.function,
            seen: number(Some(attempt.input())),
            observed: Vec::new(),
        };
        let ending = match session.run(&mut attempt).await {
            Ok(()) => {
                let result = encode(session.seen, &session.observed);
                attempt.finish(Ok(result)).await
            }
            Err(Stop::Cancelled) => attempt.finish_cancelled().await,
            Err(stop) => Err(stop),
        };
        match ending {
            Ok(ending) => {
                replied(&mock, index, &ending.outcome.ended, Some(session.observed));
                if let Some(finish) = ending.finish.filter(|_| scenario.finish) {
                    match finish.append().await {
                        Ok(()) | Err(Stop::RunLost | Stop::Cancelled) => {}
                        Err(stop) => mock.violated(format!("root {index}: Finish: {stop}")),
                    }
                }
                return;
            }
            Err(Stop::RunLost) => {}
            // Init, before a keyed reply, met a cancel request: none will ever get past it.
            Err(Stop::Cancelled) => {
                let (result, point) = (Val::small(&[]), Point::default());
                let ended = Ended { status: Status::Cancelled, result, point };
                return replied(&mock, index, &ended, Some(session.observed));
            }
            Err(Stop::Ended(ended)) => return replied(&mock, index, &ended, None),
            Err(stop) => return mock.violated(format!("root {index}: {stop}")),
        }
    }
}

fn replied(mock: &Mock, root: usize, ended: &Ended<Val>, own: Option<Vec<Observed>>) {
    let mut observed = match ended.status {
        Status::Cancelled => own,
        Status::Returned | Status::Failed | Status::Parked => Some(decode(&ended.result).1),
    };
    if let Some(observed) = &mut observed {
        observed.sort_by_key(|one| (one.function, one.op)); // a body keeps its order
    }
    let reply = Reply { root, status: ended.status as u8, observed };
    mock.stage.0.borrow_mut().replies.push(reply);
}

/// An attempt of a callee.
async fn callee_session(
    scenario: Rc<Scenario>,
    mock: Mock,
    function: u8,
    envelope: Envelope<Val>,
    slot: Return,
) {
    let give = |returned| {
        slot.replace(Some(returned));
        mock.wake_parent();
    };
    let call = envelope.call;
    let mut attempt = match Attempt::callee(mock.clone(), envelope).await {
        Ok(Callee::Run(attempt)) => attempt,
        Ok(Callee::Ended(outcome)) => return give(Returned::Outcome(outcome, None)),
        Err(stop) => return give(stopped(&mock, call, stop)),
    };
    let seen = number(Some(attempt.input()));
    let observed = Vec::new();
    let mut session = Session { scenario: &scenario, mock: &mock, function, seen, observed };
    let ending = match session.run(&mut attempt).await {
        Ok(()) => attempt.finish(Ok(encode(session.seen, &session.observed))).await,
        Err(Stop::Cancelled) => {
            return match attempt.finish_cancelled().await {
                Ok(ending) => give(Returned::Outcome(ending.outcome, Some(session.observed))),
                Err(stop) => give(stopped(&mock, call, stop)),
            };
        }
        Err(stop) => Err(stop),
    };
    match ending {
        Ok(ending) => {
            give(Returned::Outcome(ending.outcome, None));
            if let Some(finish) = ending.finish.filter(|_| scenario.finish) {
                match finish.append().await {
                    Ok(()) | Err(Stop::RunLost) => {}
                    Err(stop) => mock.violated(format!("callee f{function}: Finish: {stop}")),
                }
            }
        }
        Err(stop) => give(stopped(&mock, call, stop)),
    }
}

fn stopped(mock: &Mock, call: u32, stop: Stopped) -> Returned {
    match stop {
        Stop::Ended(ended) => {
            Returned::Outcome(Outcome { call, ended: *ended, transaction: None }, None)
        }
        Stop::RunLost => Returned::Lost,
        Stop::Cancelled
        | Stop::RootGone
        | Stop::SnapshotTooOld
        | Stop::Fault(_)
        | Stop::Refused(_)
        | Stop::Ops(_) => {
            mock.violated(format!("a callee: {stop}"));
            Returned::Lost
        }
    }
}

impl Session<'_> {
    async fn run(&mut self, attempt: &mut Attempt<Mock>) -> Result<(), Stopped> {
        let ops = self.scenario.functions[usize::from(self.function)].clone();
        for (index, op) in ops.into_iter().enumerate() {
            self.one(attempt, u8::try_from(index).expect("programs are short"), op).await?;
        }
        Ok(())
    }

    async fn one(&mut self, attempt: &mut Attempt<Mock>, at: u8, op: Op) -> Result<(), Stopped> {
        match op {
            Op::R(object) => self.read(attempt, at, object).await.map(drop),
            Op::W(object, add) => {
                let value = add + 10 * (self.seen % 1000);
                self.write(attempt, at, object, Some(value)).await
            }
            Op::D(object) => self.write(attempt, at, object, None).await,
            Op::Call(function) => self.call(attempt, &[function], false).await.map(drop),
            Op::CallRo(function) => self.call(attempt, &[function], true).await.map(drop),
            Op::Par(one, other) => self.call(attempt, &[one, other], false).await.map(drop),
            Op::First(one, other) => self.first_of(attempt, at, one, other).await,
            Op::Detach(function) => {
                let request = Request {
                    function: format!("f{function}"),
                    version: [0; 32],
                    input: Input { value: Val::small(&self.seen.to_le_bytes()), fingerprint: 0 },
                    mode: self.scenario.mode,
                    keyed: false,
                    read_only: false,
                };
                attempt.call_detached(request).await.map(drop)
            }
            Op::Txn(body) => self.transaction(attempt, at, body).await,
            Op::Side => self.side_effect(attempt, at).await,
            Op::Draw => {
                let [first, ..] = attempt.random();
                self.note(at, NO_OBJECT, false, u32::from(first));
                Ok(())
            }
            Op::Fence => attempt.fence().await,
        }
    }

    fn note(&mut self, op: u8, object: u8, write: bool, value: u32) {
        self.observed.push(Observed { function: self.function, op, object, write, value });
    }

    async fn read(
        &mut self,
        attempt: &mut Attempt<Mock>,
        at: u8,
        object: u8,
    ) -> Result<u32, Stopped> {
        let table = &self.scenario.tables[usize::from(object)];
        let value = number(attempt.read(table, b"k").await?.as_ref());
        self.seen = value;
        self.note(at, object, false, value);
        Ok(value)
    }

    async fn write(
        &mut self,
        attempt: &mut Attempt<Mock>,
        at: u8,
        object: u8,
        value: Option<u32>,
    ) -> Result<(), Stopped> {
        let table = &self.scenario.tables[usize::from(object)];
        let large = self.scenario.large;
        let bytes = value.map(|value| Val { bytes: value.to_le_bytes().as_slice().into(), large });
        attempt.write(table, b"k", bytes).await?;
        self.seen = value.unwrap_or(0);
        self.note(at, object, true, self.seen);
        Ok(())
    }

    async fn side_effect(&mut self, attempt: &mut Attempt<Mock>, at: u8) -> Result<(), Stopped> {
        let value = match attempt.begin_side_effect().await? {
            SideEffect::Recorded(value) => value,
            SideEffect::Run => {
                self.mock.pause().await;
                let drawn = crate::Ops::nonce(self.mock).to_le_bytes();
                let value = Val { bytes: drawn[..2].into(), large: self.scenario.large };
                if self.scenario.mode != Mode::Unlogged {
                    self.mock.must_have_init(attempt.identity().root);
                }
                attempt.record_side_effect(value).await?
            }
        };
        let value = u32::from(value.bytes[0]) << 8 | u32::from(value.bytes[1]);
        self.seen = value;
        self.note(at, NO_OBJECT, false, value);
        Ok(())
    }

    /// Begins calls, runs those that must run, waits for all, joins them.
    async fn call(
        &mut self,
        attempt: &mut Attempt<Mock>,
        functions: &[u8],
        read_only: bool,
    ) -> Result<(), Stopped> {
        let mut slots = Vec::new();
        for function in functions {
            slots.push(self.begin(attempt, *function, read_only).await?);
        }
        self.join(attempt, &slots).await
    }

    async fn begin(
        &mut self,
        attempt: &mut Attempt<Mock>,
        function: u8,
        read_only: bool,
    ) -> Result<Return, Stopped> {
        let slot = Return::default();
        let value = Val::small(&self.seen.to_le_bytes());
        let input = Input { value, fingerprint: u128::from(self.seen) };
        match attempt.begin_call(&format!("f{function}"), input, read_only).await? {
            Begin::Recorded(outcome) => {
                slot.replace(Some(Returned::Outcome(outcome, None)));
            }
            Begin::Run(envelope) => {
                let (scenario, to) = (Rc::clone(self.scenario), Rc::clone(&slot));
                self.mock
                    .spawn(move |mock| callee_session(scenario, mock, function, *envelope, to));
            }
        }
        Ok(slot)
    }

    async fn join(&mut self, attempt: &mut Attempt<Mock>, slots: &[Return]) -> Result<(), Stopped> {
        self.wait(attempt, || slots.iter().all(|slot| slot.borrow().is_some())).await?;
        let (mut outcomes, mut seen) = (Vec::new(), 0);
        for slot in slots {
            let Some(Returned::Outcome(outcome, observed)) = slot.take() else {
                return Err(Stop::RunLost);
            };
            let (returned, decoded) = decode(&outcome.ended.result);
            seen += returned;
            self.observed.extend(observed.unwrap_or(decoded));
            outcomes.push(outcome);
        }
        attempt.joined(outcomes).await?;
        self.seen = seen;
        Ok(())
    }

    /// Waits until `done`. Meanwhile Init is sent if a callee asks for it, and its answer heard.
    async fn wait(
        &self,
        attempt: &mut Attempt<Mock>,
        done: impl Fn() -> bool,
    ) -> Result<(), Stopped> {
        loop {
            let heard = {
                let mut answered = pin!(attempt.watch_init());
                poll_fn(|context| match (self.mock.take_wants_init(), done()) {
                    (true, _) => Poll::Ready(Heard::WantsInit),
                    (false, true) => Poll::Ready(Heard::Done),
                    (false, false) => answered.as_mut().poll(context).map(Heard::Init),
                })
                .await
            };
            match heard {
                Heard::Done => return Ok(()),
                Heard::WantsInit => attempt.send_init().await?,
                Heard::Init(answer) => answer?,
            }
        }
    }

    async fn first_of(
        &mut self,
        attempt: &mut Attempt<Mock>,
        at: u8,
        one: u8,
        other: u8,
    ) -> Result<(), Stopped> {
        let slots =
            [self.begin(attempt, one, false).await?, self.begin(attempt, other, false).await?];
        let calls: Vec<u32> = attempt.outstanding().collect();
        self.wait(attempt, || slots.iter().any(|slot| slot.borrow().is_some())).await?;
        let first = usize::from(slots[0].borrow().is_none());
        let won = attempt.select(calls[first]).await?;
        let won = usize::from(won != calls[0]);
        self.note(at, NO_OBJECT, false, u32::from(won == 1));
        self.join(attempt, &slots[won..=won]).await?;
        let seen = self.seen;
        self.join(attempt, &slots[1 - won..=1 - won]).await?;
        self.seen = seen;
        Ok(())
    }

    async fn transaction(
        &mut self,
        attempt: &mut Attempt<Mock>,
        at: u8,
        body: Txn,
    ) -> Result<(), Stopped> {
        let (before, observed) = (self.seen, self.observed.len());
        loop {
            self.seen = before;
            self.observed.truncate(observed);
            let begun = attempt.begin_transaction().await?;
            if begun == BeginTransaction::Run {
                self.body(attempt, at, body).await?;
                match attempt.commit().await? {
                    Commit::Committed => break,
                    Commit::Again => continue,
                    Commit::TooManyConflicts => {}
                }
            }
            self.observed.truncate(observed);
            self.note(at, NO_OBJECT, false, 1);
            break;
        }
        // The whole body is one operation, wherever it ran.
        for one in &mut self.observed[observed..] {
            (one.function, one.op) = (self.function, at);
        }
        Ok(())
    }

    async fn body(
        &mut self,
        attempt: &mut Attempt<Mock>,
        at: u8,
        body: Txn,
    ) -> Result<(), Stopped> {
        let (write, value) = match body {
            Txn::Increment(object) => (object, Some(self.read(attempt, at, object).await? + 1)),
            Txn::Seat(object) => {
                let taken = self.read(attempt, at, object).await?;
                self.seen = 20 + taken;
                (object, (taken == 0).then_some(1))
            }
            Txn::Skew(one, other, take) => {
                let taken =
                    self.read(attempt, at, one).await? + self.read(attempt, at, other).await?;
                self.seen = 20 + taken;
                (take, (taken == 0).then_some(1))
            }
            Txn::Read(one, other) => {
                let first = self.read(attempt, at, one).await?;
                self.seen = 40 + first * 7 + self.read(attempt, at, other).await?;
                (0, None)
            }
            Txn::Copy(from, to) => (to, Some(self.read(attempt, at, from).await? + 5)),
            Txn::Through(object, function) => {
                self.write(attempt, at, object, Some(3)).await?;
                self.call(attempt, &[function], false).await?;
                self.read(attempt, at, object).await?;
                (0, None)
            }
            Txn::Draw(object) => {
                self.read(attempt, at, object).await?;
                (object, Some(1 + u32::from(attempt.random()[0])))
            }
        };
        match value {
            Some(value) => self.write(attempt, at, write, Some(value)).await,
            None => Ok(()),
        }
    }
}
