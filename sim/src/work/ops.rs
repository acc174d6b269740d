//! What the protocols ask for, carried out on a simulated engine's log and state store.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use halfmoon_client::{AppendRequest, Appended, LogError, StateError, Value as Got, ValueIn};
use halfmoon_protocol::Ops;
use halfmoon_protocol::ops::{
    self, Append, AppendOutcome, Base, Cell as ProtocolCell, Found, Object,
};
use halfmoon_wire::{CellTuple, InstanceId, RecordRef, RunId, SeqNum, Tag, VersionId};

use crate::host::engine::LifeOf;
use crate::time::SECOND;

/// How long one operation may take, in ns.
const WITHIN_NS: u64 = 10 * SECOND;

/// Bytes on their way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bytes(pub(super) Rc<[u8]>);

/// The engine failed to carry something out; whether it took effect is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OpsError {
    Log(LogError),
    State(StateError),
    Evicted,
    Invalid,
}

/// That a callee found no Init, on its way to the session of its root.
#[derive(Clone, Default)]
pub(super) struct NeedInit(Rc<(Cell<bool>, RefCell<Option<Waker>>)>);

/// The world of one attempt.
#[derive(Clone)]
pub(super) struct SimOps {
    pub(super) life: LifeOf,
    pub(super) need_init: NeedInit,
    nonces: Rc<Cell<u128>>,
}

type Posted = Pin<Box<dyn Future<Output = Result<AppendOutcome, OpsError>>>>;

impl ops::Value for Bytes {
    fn len_bytes(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, record: &mut Vec<u8>) {
        record.extend_from_slice(&self.0);
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<LogError> for OpsError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<StateError> for OpsError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

impl NeedInit {
    fn notify(&self) {
        self.0.0.set(true);
        if let Some(waker) = self.0.1.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether it was told since the last time; else the task is woken when it is.
    pub(super) fn poll(&self, context: &Context<'_>) -> bool {
        *self.0.1.borrow_mut() = Some(context.waker().clone());
        self.0.0.replace(false)
    }
}

impl SimOps {
    pub(super) fn new(life: LifeOf, nonces: Rc<Cell<u128>>) -> Self {
        Self { life, need_init: NeedInit::default(), nonces }
    }

    fn deadline_ns(&self) -> u64 {
        self.life.executor.now_ns() + WITHIN_NS
    }

    async fn found(&self, seq: SeqNum, tag: Tag) -> Result<Found, OpsError> {
        let see = |record: RecordRef<'_>| {
            let position = record.tags().find(|pos| pos.tag() == tag).map(|pos| pos.position());
            Found { seq, position: position.unwrap_or(0), payload: Arc::from(record.payload()) }
        };
        if let Some(found) = self.life.log.with_cached(seq, see) {
            return Ok(found);
        }
        let record = self.life.log.record(seq, self.deadline_ns()).await?;
        Ok(see(record.view()))
    }

    async fn outcome(
        &self,
        appended: Result<Appended, LogError>,
        conditions: &[halfmoon_wire::Condition],
    ) -> Result<AppendOutcome, OpsError> {
        let tag = |condition: u16| conditions.get(usize::from(condition)).map(|c| c.tag());
        Ok(match appended? {
            Appended::At(seq) => AppendOutcome::Appended(seq),
            Appended::Conflict { condition, winner } => {
                let winner = match tag(condition) {
                    Some(tag) if winner != SeqNum::ZERO => Some(self.found(winner, tag).await?),
                    Some(_) | None => None,
                };
                AppendOutcome::Conflict { condition: usize::from(condition), winner }
            }
            Appended::Gap { condition, .. } => {
                AppendOutcome::Gap { condition: usize::from(condition) }
            }
            Appended::RootGone { .. } => AppendOutcome::RootGone,
            Appended::Evicted => return Err(OpsError::Evicted),
            Appended::Invalid => return Err(OpsError::Invalid),
        })
    }
}

fn value(got: Got) -> Bytes {
    match got {
        Got::Bytes(bytes) => Bytes(bytes.into()),
        Got::Landed { .. } => Bytes(Rc::from([])),
    }
}

impl Ops for SimOps {
    type Value = Bytes;
    type Error = OpsError;
    type Posted = Posted;

    async fn append(&self, append: Append) -> Result<AppendOutcome, OpsError> {
        self.post(append).await
    }

    fn post(&self, append: Append) -> Posted {
        let request = AppendRequest {
            floor: append.floor,
            conditions: &append.conditions,
            tags: &append.tags,
            payload: &append.payload,
        };
        let answer = self.life.log.append(&request);
        let (ops, conditions) = (self.clone(), append.conditions);
        Box::pin(async move { ops.outcome(answer.await, &conditions).await })
    }

    async fn stream(&self, tag: Tag) -> Result<Vec<Found>, OpsError> {
        let mut stream = Vec::new();
        for seq in self.life.log.steps(tag) {
            stream.push(self.found(seq, tag).await?);
        }
        Ok(stream)
    }

    async fn first(&self, tag: Tag) -> Result<Found, OpsError> {
        loop {
            if let Some(seq) = self.life.log.steps(tag).first() {
                return self.found(*seq, tag).await;
            }
            self.life.log.wait_applied(self.life.log.applied().next()).await?;
        }
    }

    async fn last(&self, tag: Tag, max: SeqNum) -> Result<Option<Found>, OpsError> {
        match self.life.log.read_prev(tag, max).await? {
            Some(seq) => Ok(Some(self.found(seq, tag).await?)),
            None => Ok(None),
        }
    }

    fn applied(&self) -> SeqNum {
        self.life.log.applied()
    }

    async fn timestamp(&self, seq: SeqNum) -> Result<u64, OpsError> {
        if seq == SeqNum::ZERO {
            return Ok(0);
        }
        Ok(self.life.log.record(seq, self.deadline_ns()).await?.view().time_ns())
    }

    fn need_init(&self, _root: InstanceId, _run: RunId) {
        self.need_init.notify();
    }

    async fn get_cell(&self, object: &Object) -> Result<Option<ProtocolCell<Bytes>>, OpsError> {
        let Object { table, key } = object;
        let cell = self.life.state.get_cell(table, key, None, self.deadline_ns()).await?;
        Ok(cell.map(|cell| ProtocolCell { tuple: cell.tuple, value: cell.value.map(value) }))
    }

    async fn put_cell(
        &self,
        object: &Object,
        tuple: CellTuple,
        value: Option<&Bytes>,
    ) -> Result<(), OpsError> {
        let Object { table, key } = object;
        let value = value.map(|value| ValueIn::Bytes(value.0.clone()));
        Ok(self.life.state.put_cell(table, key, tuple, value, self.deadline_ns()).await?)
    }

    async fn get_version(
        &self,
        object: &Object,
        version: VersionId,
    ) -> Result<Option<Bytes>, OpsError> {
        let Object { table, key } = object;
        let state = &self.life.state;
        let found = state.get_version(table, key, version, None, self.deadline_ns()).await?;
        Ok(found.map(value))
    }

    async fn put_version(
        &self,
        object: &Object,
        version: VersionId,
        value: &Bytes,
    ) -> Result<(), OpsError> {
        let Object { table, key } = object;
        let value = ValueIn::Bytes(value.0.clone());
        Ok(self.life.state.put_version(table, key, version, value, self.deadline_ns()).await?)
    }

    async fn base(&self, _object: &Object) -> Result<Option<Base<Bytes>>, OpsError> {
        // Nothing is folded into bases, so every write record is in the window.
        Ok(None)
    }

    fn inline(&self, bytes: &[u8]) -> Bytes {
        bytes.into()
    }

    fn nonce(&self) -> u128 {
        self.nonces.set(self.nonces.get() + 1);
        self.nonces.get()
    }

    fn clock_ns(&self) -> u64 {
        self.life.executor.now_ns()
    }
}
