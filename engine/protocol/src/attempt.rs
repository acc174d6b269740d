//! One physical execution of an instance: what a session driver holds.
//!
//! ```text
//! root:    root::start ─▶ Attempt ─ operations ─▶ finish ─▶ reply ─▶ Finish::append
//! callee:  begin_call ─▶ Envelope ─▶ Attempt::callee ─ operations ─▶ finish ─▶ Outcome ─▶ joined
//! ```
//! Operations run one after another (`&mut self`); callees are attempts of their own and may be
//! outstanding meanwhile, any number of them. Dropping an attempt is a crash.

use std::collections::BTreeSet;

use halfmoon_wire::limits::{KEY_MAX_BYTES, TABLE_NAME_MAX_BYTES, VALUE_MAX_BYTES};
use halfmoon_wire::{CellTuple, InstanceId, SeqNum, tag};

use crate::call::{Begin, Ended, Envelope, Input, Outcome, Point, Status};
use crate::finish::Ending;
use crate::init::InitState;
use crate::ops::Value;
use crate::payload::{Body, Init};
use crate::root::{Identity, Request};
use crate::step_log::StepLog;
use crate::transaction::{Commit, Frame, Open, Run};
use crate::{
    Done, Mode, Object, Ops, Protocol, Refused, Stop, TableSpec, boki, call, finish, halfmoon_read,
    halfmoon_write, ids, order, root, transaction, unlogged,
};

/// What a callee's start led to.
pub enum Callee<O: Ops> {
    /// Run the function.
    Run(Box<Attempt<O>>),
    /// It has ended before: hand this to [`Attempt::joined`].
    Ended(Outcome<O::Value>),
}

/// What to do about a side effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SideEffect<V> {
    /// An earlier attempt has recorded this result: do not run the closure.
    Recorded(V),
    /// Run the closure, then [`Attempt::record_side_effect`]. It may run more than once: it is
    /// at-least-once until its result is recorded.
    Run,
}

/// How a transaction begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeginTransaction {
    /// Run the body.
    Run,
    /// It met conflicts too often in an earlier attempt: do not run the body.
    TooManyConflicts,
}

/// One attempt of one instance.
pub struct Attempt<O: Ops> {
    pub(crate) ops: O,
    pub(crate) identity: Identity,
    pub(crate) input: Input<O::Value>,
    /// The reply of this root needs Init.
    pub(crate) keyed: bool,
    /// The caller's number for this call; 0 for roots.
    pub(crate) call: u32,
    pub(crate) point: Point,
    /// The object of the last log-free write, if the counter counts this instance's writes to it.
    pub(crate) last_written: Option<Object>,
    pub(crate) log: StepLog,
    pub(crate) init: InitState<O::Posted>,
    /// It has steps or has written.
    pub(crate) has_effects: bool,
    /// Calls started.
    pub(crate) calls: u32,
    /// Calls begun and not joined.
    pub(crate) outstanding: BTreeSet<u32>,
    /// Random draws made.
    pub(crate) draws: u64,
    /// Transactions begun.
    pub(crate) transactions: u32,
    pub(crate) transaction: Option<Open<O::Value>>,
    /// The next run of a body that is to be run again.
    pub(crate) rerun: Option<Run>,
}

impl<O: Ops> Attempt<O> {
    pub(crate) fn new(ops: O, identity: Identity, input: Input<O::Value>, point: Point) -> Self {
        Self {
            ops,
            identity,
            input,
            keyed: false,
            call: 0,
            point,
            last_written: None,
            log: StepLog::default(),
            init: InitState::Unknown,
            has_effects: false,
            calls: 0,
            outstanding: BTreeSet::new(),
            draws: 0,
            transactions: 0,
            transaction: None,
            rerun: None,
        }
    }

    /// Starts an attempt of a callee: loads its steps from the local index.
    pub async fn callee(ops: O, envelope: Envelope<O::Value>) -> Done<Callee<O>, O> {
        let instance = envelope.instance;
        // Inside a transaction's body a callee logs nothing, so it has nothing to replay.
        let logged = envelope.transaction.is_none() && envelope.mode != Mode::Unlogged;
        let steps = match logged {
            true => ops.stream(tag::step(instance)).await.map_err(Stop::Ops)?,
            false => Vec::new(),
        };
        if let Some(ended) = root::ended::<O>(&ops, instance, &steps).await? {
            let outcome = Outcome { call: envelope.call, ended, transaction: None };
            return Ok(Callee::Ended(outcome));
        }
        let identity = Identity {
            instance,
            root: envelope.root,
            run: envelope.run,
            floor: envelope.floor,
            function: envelope.function,
            version: [0; 32],
            mode: envelope.mode,
            read_only: envelope.read_only,
        };
        let input = Input { value: envelope.input, fingerprint: 0 };
        let mut attempt = Self::new(ops, identity, input, envelope.point);
        attempt.call = envelope.call;
        attempt.log.learn(steps);
        if let Some(seq) = envelope.init {
            attempt.init = InitState::Known(seq);
        }
        attempt.transaction = envelope.transaction.map(|frame| Open { frame, own: None });
        if attempt.identity.mode == Mode::Boki && attempt.transaction.is_none() {
            let step = attempt.step(async |_, _| Ok(Body::Begin)).await?;
            if !matches!(step.body, Body::Begin) {
                return attempt.differs(&step.body, "the start of a callee");
            }
        }
        Ok(Callee::Run(Box::new(attempt)))
    }

    /// Who is running. For a root whose run is in the log, function and version are the log's.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The input to run with: for a root whose run is in the log, the log's.
    #[must_use]
    pub const fn input(&self) -> &O::Value {
        &self.input.value
    }

    /// The fingerprint of that input.
    #[must_use]
    pub const fn fingerprint(&self) -> u128 {
        self.input.fingerprint
    }

    /// The world that it was given.
    #[must_use]
    pub const fn ops(&self) -> &O {
        &self.ops
    }

    /// How far it has seen the log. The cursor of a root's end is what a client passes as the
    /// lower bound of its next request, to see its own writes through another engine.
    #[must_use]
    pub const fn point(&self) -> Point {
        self.point
    }

    /// Calls begun and not joined, in the order of their beginning.
    pub fn outstanding(&self) -> impl Iterator<Item = u32> {
        self.outstanding.iter().copied()
    }

    /// True while nothing of this attempt can be in the log: it may be dropped without a trace.
    #[must_use]
    pub const fn is_traceless(&self) -> bool {
        matches!(self.init, InitState::Unknown) && !self.has_effects
    }

    /// Reads an object. Inside a transaction, as of the body's place in the log, own writes first.
    pub async fn read(&mut self, table: &TableSpec, key: &[u8]) -> Done<Option<O::Value>, O> {
        let object = self.object(table, key)?;
        if self.transaction.is_some() {
            return transaction::read(self, &object).await;
        }
        match table.effective() {
            Protocol::Auto | Protocol::HalfmoonRead => {
                order::before_read(self, table.order).await?;
                halfmoon_read::read(self, &object, self.point.cursor).await
            }
            Protocol::HalfmoonWrite => halfmoon_write::read(self, &object).await,
            Protocol::Boki => boki::read(self, &object).await,
            Protocol::Unlogged => unlogged::read(self, &object).await,
        }
    }

    /// Writes an object; `None` deletes it. Inside a transaction the write is buffered.
    pub async fn write(
        &mut self,
        table: &TableSpec,
        key: &[u8],
        value: Option<O::Value>,
    ) -> Done<(), O> {
        let object = self.object(table, key)?;
        self.may_have_effects()?;
        if value.as_ref().is_some_and(|value| value.len_bytes() > VALUE_MAX_BYTES) {
            return Err(Refused::ValueTooLong.into());
        }
        if self.transaction.is_some() {
            return transaction::write(self, object, value);
        }
        let value = value.as_ref();
        match table.effective() {
            Protocol::Auto | Protocol::HalfmoonRead => {
                halfmoon_read::write(self, &object, value).await
            }
            Protocol::HalfmoonWrite => {
                halfmoon_write::write(self, &object, value, table.order).await
            }
            Protocol::Boki => boki::write(self, &object, value).await,
            Protocol::Unlogged => unlogged::write(self, &object, value).await,
        }
    }

    /// Begins a transaction, or runs its body again after [`Commit::Again`]. `update(key, f)` is a
    /// transaction with one object: begin, read, f, write, commit.
    pub async fn begin_transaction(&mut self) -> Done<BeginTransaction, O> {
        transaction::begin(self).await
    }

    /// Ends the body and commits.
    pub async fn commit(&mut self) -> Done<Commit, O> {
        transaction::commit(self).await
    }

    /// Ends the body and forgets its writes. What it read is a snapshot; nothing is recorded
    /// unless an attempt of the body has met a conflict.
    pub async fn abandon(&mut self) -> Done<Commit, O> {
        if let Some(open) = &mut self.transaction
            && open.own.is_some()
        {
            open.frame.writes.clear();
        }
        transaction::commit(self).await
    }

    /// Begins a call. `read_only` as the callee is declared. Unless it is, a root's Init is sent
    /// in the background.
    pub async fn begin_call(
        &mut self,
        function: &str,
        input: Input<O::Value>,
        read_only: bool,
    ) -> Done<Begin<O::Value>, O> {
        call::begin(self, function, input, read_only).await
    }

    /// Joins callees that have ended, in whatever order they came; returns how they ended, in the
    /// order of their calls. A callee that was cancelled cancels the caller ([`Stop::Cancelled`]).
    pub async fn joined(
        &mut self,
        outcomes: Vec<Outcome<O::Value>>,
    ) -> Done<Vec<Ended<O::Value>>, O> {
        call::joined(self, outcomes).await
    }

    /// First-of: which call won is recorded as a step. Returns the winner of all attempts, which
    /// may be another than `call`; that one is to be waited for and joined.
    pub async fn select(&mut self, call: u32) -> Done<u32, O> {
        self.may_log()?;
        if !self.outstanding.contains(&call) {
            return Err(Refused::NoSuchCall.into());
        }
        if self.identity.mode == Mode::Unlogged {
            return Ok(call);
        }
        let step = self.step(async |_, _| Ok(Body::Select { call })).await?;
        let Body::Select { call } = step.body else {
            return self.differs(&step.body, "a first-of");
        };
        Ok(call)
    }

    /// Starts a function that nobody waits for, as a root of its own: a step of this instance that
    /// carries its Init. The driver (of this attempt, or the intent scan) then starts it with
    /// [`root::start`] and no request. Under [`Mode::Unlogged`] nothing is recorded, and the
    /// driver starts it with this same request.
    pub async fn call_detached(&mut self, request: Request<O::Value>) -> Done<InstanceId, O> {
        self.may_log()?;
        self.may_have_effects()?;
        let callee = ids::callee(self.identity.run, self.identity.instance, self.calls);
        self.calls += 1;
        if self.identity.mode == Mode::Unlogged {
            return Ok(callee);
        }
        let run = ids::detached_run(callee);
        let input = self.keep_input(callee, run, &request.input).await?;
        let init = Init {
            root: callee,
            cursor: None,
            function: request.function,
            version: request.version,
            input,
            fingerprint: request.input.fingerprint,
            mode: request.mode,
            read_only: request.read_only,
        };
        let step = self.step(async |_, _| Ok(Body::Detached(init.clone()))).await?;
        if !matches!(&step.body, Body::Detached(init) if init.root == callee) {
            return self.differs(&step.body, "an asynchronous call");
        }
        Ok(callee)
    }

    /// Looks a side effect up; makes Init durable before saying [`SideEffect::Run`].
    pub async fn begin_side_effect(&mut self) -> Done<SideEffect<O::Value>, O> {
        self.may_log()?;
        self.may_have_effects()?;
        if self.identity.mode == Mode::Unlogged {
            return Ok(SideEffect::Run);
        }
        if self.peek()?.is_none() && !broken!(SideEffectBeforeInit) {
            self.init_known().await?;
        }
        let Some(step) = self.replay().await? else { return Ok(SideEffect::Run) };
        let Body::SideEffect { result } = &step.body else {
            return self.differs(&step.body, "a side effect");
        };
        let object = ids::own_object(self.identity.instance);
        self.load(&object, result).await.map(SideEffect::Recorded)
    }

    /// Records the result of a side effect; returns the recorded one, which may be a peer's.
    pub async fn record_side_effect(&mut self, result: O::Value) -> Done<O::Value, O> {
        self.may_log()?;
        if self.identity.mode == Mode::Unlogged {
            return Ok(result);
        }
        let (run, instance) = (self.identity.run, self.identity.instance);
        let object = ids::own_object(instance);
        let own = &result;
        let step = self.step(async |attempt, position| {
            let version = ids::nonce_version(run, instance, position, attempt.ops.nonce());
            Ok(Body::SideEffect { result: attempt.keep(&object, version, own).await? })
        });
        let step = step.await?;
        let Body::SideEffect { result: recorded } = &step.body else {
            return self.differs(&step.body, "a side effect");
        };
        if !step.adopted || broken!(SideEffectNotAdopted) {
            return Ok(result);
        }
        self.load(&object, recorded).await
    }

    /// An empty step: what was written before it is seen by others before what comes after.
    pub async fn fence(&mut self) -> Done<(), O> {
        self.may_log()?;
        match self.identity.mode {
            Mode::Unlogged => Ok(()),
            Mode::Halfmoon | Mode::Boki => order::fence(self).await,
        }
    }

    /// Time stamp of the record at the cursor, in ns since 1970: the same in every attempt.
    pub async fn now(&mut self) -> Done<u64, O> {
        let body = self.transaction.as_ref().map(|open| open.frame.cursor);
        self.ops.timestamp(body.unwrap_or(self.point.cursor)).await.map_err(Stop::Ops)
    }

    /// 32 bytes drawn from (instance, draw index): the same in every attempt, never repeated.
    pub fn random(&mut self) -> [u8; 32] {
        let index = self.draws;
        self.draws += 1;
        ids::draw(self.identity.instance, index)
    }

    /// Sends the root's Init in the background, if it was not sent: a callee needs it (the
    /// [`Ops::need_init`] of an attempt further down). Callees ignore it.
    pub async fn send_init(&mut self) -> Done<(), O> {
        self.post_init().await
    }

    /// Waits for the answer to an Init that was sent in the background; for ever, if none is on its
    /// way. A driver waits for this beside a worker or a callee: a callee that needs an Init which
    /// was refused would wait in vain. May be dropped and called again.
    pub async fn watch_init(&mut self) -> Done<(), O> {
        self.init_answered().await
    }

    /// Waits until the Init of this run is durable: before an asynchronous request is acknowledged.
    pub async fn ensure_init(&mut self) -> Done<(), O> {
        self.init_known().await.map(drop)
    }

    /// The function has returned (`Ok`) or failed (`Err`). All calls must have been joined, and no
    /// transaction be open; else the attempt is lost with [`Stop::Refused`].
    pub async fn finish(self, result: Result<O::Value, O::Value>) -> Done<Ending<O>, O> {
        match result {
            Ok(value) => finish::finish(self, Status::Returned, value).await,
            Err(value) => finish::finish(self, Status::Failed, value).await,
        }
    }

    /// After [`Stop::Cancelled`].
    pub async fn finish_cancelled(self) -> Done<Ending<O>, O> {
        let nothing = self.ops.inline(&[]);
        finish::finish(self, Status::Cancelled, nothing).await
    }

    pub(crate) fn is_root(&self) -> bool {
        self.identity.instance == self.identity.root
    }

    pub(crate) const fn known_init(&self) -> Option<SeqNum> {
        match self.init {
            InitState::Known(seq) => Some(seq),
            InitState::Unknown | InitState::Posted(_) => None,
        }
    }

    /// Place of a log-free write: a function of the log (W1).
    pub(crate) const fn tuple(&self) -> CellTuple {
        let Point { cursor, counter } = self.point;
        CellTuple { cursor, counter, instance: self.identity.instance }
    }

    pub(crate) fn frame_for_callee(&self) -> Option<Frame<O::Value>> {
        let mut frame = self.transaction.as_ref().map(|open| open.frame.clone())?;
        if broken!(BufferStaysAbove) {
            frame.writes.clear();
        }
        Some(frame)
    }

    pub(crate) fn take_frame(&mut self, frame: Frame<O::Value>) {
        if let Some(open) = &mut self.transaction {
            open.frame = frame;
        }
    }

    /// The object, if this attempt may use its table now.
    fn object(&self, table: &TableSpec, key: &[u8]) -> Done<Object, O> {
        if table.name.len() > TABLE_NAME_MAX_BYTES || key.len() > KEY_MAX_BYTES {
            return Err(Refused::NameTooLong.into());
        }
        let unlogged = table.effective() == Protocol::Unlogged;
        if self.identity.mode == Mode::Unlogged && !unlogged {
            return Err(Refused::LoggedTable.into());
        }
        if self.transaction.is_some() && !table.transactional {
            return Err(Refused::NotTransactional.into());
        }
        Ok(Object { table: table.name.clone(), key: key.to_vec() })
    }

    fn may_have_effects(&self) -> Result<(), Refused> {
        if self.identity.read_only { Err(Refused::ReadOnly) } else { Ok(()) }
    }

    fn may_log(&self) -> Result<(), Refused> {
        if self.transaction.is_some() { Err(Refused::InTransaction) } else { Ok(()) }
    }
}
