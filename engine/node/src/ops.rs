//! What the protocols ask for, carried out on the log and the state store.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use halfmoon_client::{
    AppendRequest, Appended, Appending, Lend, LogError, StateError, Value as Got, ValueIn,
};
use halfmoon_protocol::Ops;
use halfmoon_protocol::ops::{Append, AppendOutcome, Base, Cell as ProtocolCell, Found, Object};
use halfmoon_protocol::payload::{self, Kind};
use halfmoon_wire::{CellTuple, InstanceId, RunId, SeqNum, Tag, VersionId};

use crate::hot::Hot;
use crate::metrics::{Metrics, count};
use crate::pool::WorkerId;
use crate::tree::{Tree, UnderWay};
use crate::value::{Landing, Value};

/// How long one operation of the store, or a look-up of a record, may take.
const OPERATION_WITHIN_NS: u64 = 10_000_000_000;
/// Objects of one root's tree whose puts are not acknowledged; beyond that they are made again before
/// another is. A tree has as many under way as it has callees, so only failed attempts come here.
const PUTS_OWED_MAX: usize = 1024;
/// Whether storage nodes fold write records into bases and trim the log. Until they do, asking for
/// a base is a round trip that always answers: none.
const FOLDS: bool = false;

/// The world of one attempt.
#[derive(Clone)]
pub(crate) struct EngineOps {
    hot: Rc<Hot>,
    tree: Rc<Tree>,
    /// Where its values land, once it has a worker.
    worker: Rc<Cell<Option<WorkerId>>>,
}

/// The engine failed to carry something out; whether it took effect is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum OpsError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("this engine was taken out of the log")]
    Evicted,
    #[error("the sequencer refused the record as malformed")]
    Invalid,
    #[error("no state buffer is free for a value")]
    ArenaFull,
}

type Answer = Pin<Box<dyn Future<Output = Result<AppendOutcome, OpsError>>>>;
/// An append without an answer: where it is until it has one.
type Pending = Rc<RefCell<Option<(Appending, UnderWay)>>>;

/// An append in the background. One that is dropped is left to the tree: it may still get into the
/// log.
pub(crate) struct Posted {
    answer: Answer,
    pending: Pending,
    tree: Rc<Tree>,
}

impl Future for Posted {
    type Output = Result<AppendOutcome, OpsError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.as_mut().poll(context)
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if let Some((append, under_way)) = self.pending.borrow_mut().take() {
            self.tree.leave(append, under_way);
        }
    }
}

/// Waits for the answer, and takes the append out of `pending`.
async fn answered(pending: &Pending) -> Result<Appended, LogError> {
    std::future::poll_fn(|context| {
        let mut pending = pending.borrow_mut();
        let Some((append, _)) = pending.as_mut() else {
            return Poll::Ready(Err(LogError::Unknown));
        };
        let answer = Pin::new(append).poll(context);
        if answer.is_ready() {
            pending.take();
        }
        answer
    })
    .await
}

impl OpsError {
    /// Log or store cannot serve now: nobody's mistake, and no reason to give up.
    pub(crate) const fn is_outage(self) -> bool {
        match self {
            Self::Log(error) => !matches!(error, LogError::TooLarge { .. }),
            Self::State(error) => {
                matches!(error, StateError::Unknown | StateError::Unavailable | StateError::Closed)
            }
            Self::Evicted => true,
            Self::Invalid | Self::ArenaFull => false,
        }
    }
}

impl EngineOps {
    pub(crate) fn new(hot: Rc<Hot>, tree: Rc<Tree>) -> Self {
        Self { hot, tree, worker: Rc::default() }
    }

    /// Values land in this worker's arena from here on.
    pub(crate) fn lands_at(&self, worker: WorkerId) {
        self.worker.set(Some(worker));
    }

    /// Ends when a quorum has every put of the tree, also those that no attempt waits for any more:
    /// these are made again, which changes nothing where they have landed.
    pub(crate) async fn complete_puts(&self) -> Result<(), OpsError> {
        while let Some((object, (tuple, value))) = self.tree.owed() {
            self.put(&object, tuple, value).await?;
        }
        Ok(())
    }

    async fn put(
        &self,
        object: &Object,
        tuple: CellTuple,
        value: Option<Rc<[u8]>>,
    ) -> Result<(), OpsError> {
        let _waits = self.waits();
        let (Object { table, key }, value) = (object, value.map(ValueIn::Bytes));
        let put = self.hot.state.put_cell(table, key, tuple, value, self.deadline_ns()).await;
        match put {
            // It was refused at once: nothing was sent.
            Ok(()) | Err(StateError::TooLarge { .. }) => self.tree.has_put(object, tuple),
            Err(_) => {}
        }
        Ok(put?)
    }

    /// To be held while log or store is asked.
    fn waits(&self) -> UnderWay {
        self.tree.begins(self.hot.executor.now_ns())
    }

    fn deadline_ns(&self) -> u64 {
        self.hot.executor.now_ns() + OPERATION_WITHIN_NS
    }

    async fn found(&self, seq: SeqNum, tag: Tag) -> Result<Found, OpsError> {
        let see = |record: halfmoon_wire::RecordRef<'_>| {
            let position = record.tags().find(|pos| pos.tag() == tag).map(|pos| pos.position());
            // A reader compares full names; one that bears no such tag has none that fits.
            let payload = if position.is_some() { record.payload() } else { &[] };
            Found { seq, position: position.unwrap_or(0), payload: Arc::from(payload) }
        };
        if let Some(found) = self.hot.log.with_cached(seq, see) {
            return Ok(found);
        }
        let _waits = self.waits();
        let record = self.hot.log.record(seq, self.deadline_ns()).await?;
        Ok(see(record.view()))
    }

    async fn outcome(
        &self,
        appended: Result<Appended, LogError>,
        conditions: &[halfmoon_wire::Condition],
        kind: Option<Kind>,
    ) -> Result<AppendOutcome, OpsError> {
        let tag = |condition: u16| conditions.get(usize::from(condition)).map(|c| c.tag());
        Ok(match appended? {
            Appended::At(seq) => {
                self.counted(kind);
                AppendOutcome::Appended(seq)
            }
            Appended::Conflict { condition, winner } => {
                count(&self.hot.metrics.appends_conflict_total);
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

    fn counted(&self, kind: Option<Kind>) {
        let (mut appends, metrics) = (self.tree.appends.get(), &self.hot.metrics);
        let (own, total) = match kind {
            Some(Kind::Init) => (&mut appends.init, &metrics.appends_init_total),
            Some(Kind::Step) => (&mut appends.steps, &metrics.appends_step_total),
            Some(Kind::Fence) => (&mut appends.fences, &metrics.appends_fence_total),
            Some(Kind::Finish) => (&mut appends.finish, &metrics.appends_finish_total),
            Some(Kind::Cancel) | None => return,
        };
        *own += 1;
        total.fetch_add(1, Ordering::Relaxed);
        self.tree.appends.set(appends);
    }

    /// Memory for a value of `len` bytes: in the worker's arena, or the engine's own before there
    /// is a worker.
    async fn room(&self, len: usize) -> Result<Room, OpsError> {
        if let Some(worker) = self.worker.get() {
            return match self.hot.workers.lend(worker, len) {
                None => Err(StateError::Unavailable.into()),
                Some(Err(_)) => Err(OpsError::ArenaFull),
                Some(Ok((buffer, region, memory))) => {
                    let landing = Landing::new(
                        Rc::clone(&self.hot.workers),
                        worker,
                        buffer,
                        Arc::clone(&memory),
                    );
                    let (landing, offset) = (Rc::new(landing), u64::from(buffer.offset));
                    let (capacity, hold) = (buffer.len, Rc::clone(&landing));
                    Ok(Room::Arena(Lend { region, memory, offset, capacity, hold }, landing))
                }
            };
        }
        Ok(Room::Own(self.hot.scratch.borrow(&self.hot.executor, len).await))
    }

    /// Reads with more room until the value fits.
    async fn landed<T, F>(
        &self,
        read: impl Fn(Option<Lend>) -> F,
    ) -> Result<(T, Option<Room>), OpsError>
    where
        F: Future<Output = Result<T, StateError>>,
    {
        let mut room: Option<Room> = None;
        loop {
            let lend = room.as_ref().map(Room::lend);
            match read(lend).await {
                Ok(value) => return Ok((value, room)),
                Err(StateError::NeedRoom { len }) => {
                    drop(room.take());
                    room = Some(self.room(len as usize).await?);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

enum Room {
    Arena(Lend, Rc<Landing>),
    Own(crate::scratch::Borrowed),
}

impl Room {
    fn lend(&self) -> Lend {
        match self {
            Self::Arena(lend, _) => lend.clone(),
            Self::Own(borrowed) => borrowed.lend(),
        }
    }
}

fn value_of(metrics: &Metrics, got: Got, room: Option<Room>) -> Value {
    match (got, room) {
        (Got::Bytes(bytes), _) => bytes.into(),
        (Got::Landed { len }, Some(Room::Arena(lend, landing))) => {
            drop(lend);
            count(&metrics.values_landed_total);
            Value::Landed(landing, len)
        }
        (Got::Landed { len }, Some(Room::Own(borrowed))) => {
            metrics.value_bytes_copied_total.fetch_add(u64::from(len), Ordering::Relaxed);
            borrowed.copy(len).into()
        }
        (Got::Landed { .. }, None) => Vec::new().into(),
    }
}

fn value_in(value: &Value) -> ValueIn {
    ValueIn::Bytes(value.bytes())
}

impl Ops for EngineOps {
    type Value = Value;
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
        let kind = payload::kind(&append.payload);
        let (ops, conditions) = (self.clone(), append.conditions.clone());
        let pending = Rc::new(RefCell::new(Some((self.hot.log.append(&request), self.waits()))));
        let waited = Rc::clone(&pending);
        let answer = async move {
            let appended = answered(&waited).await;
            ops.outcome(appended, &conditions, kind).await
        };
        Posted { answer: Box::pin(answer), pending, tree: Rc::clone(&self.tree) }
    }

    async fn stream(&self, tag: Tag) -> Result<Vec<Found>, OpsError> {
        let mut stream = Vec::new();
        for seq in self.hot.log.steps(tag) {
            stream.push(self.found(seq, tag).await?);
        }
        Ok(stream)
    }

    async fn first(&self, tag: Tag) -> Result<Found, OpsError> {
        loop {
            if let Some(seq) = self.hot.log.steps(tag).first() {
                return self.found(*seq, tag).await;
            }
            self.hot.log.wait_applied(self.hot.log.applied().next()).await?;
        }
    }

    async fn last(&self, tag: Tag, max: SeqNum) -> Result<Option<Found>, OpsError> {
        let found = {
            let _waits = self.waits();
            self.hot.log.read_prev(tag, max).await?
        };
        match found {
            Some(seq) => Ok(Some(self.found(seq, tag).await?)),
            None => Ok(None),
        }
    }

    fn applied(&self) -> SeqNum {
        self.hot.log.applied()
    }

    async fn timestamp(&self, seq: SeqNum) -> Result<u64, OpsError> {
        if seq == SeqNum::ZERO {
            return Ok(0);
        }
        let _waits = self.waits();
        let record = self.hot.log.record(seq, self.deadline_ns()).await?;
        Ok(record.view().time_ns())
    }

    fn need_init(&self, _root: InstanceId, _run: RunId) {
        self.tree.need_init.notify();
    }

    async fn get_cell(&self, object: &Object) -> Result<Option<ProtocolCell<Value>>, OpsError> {
        let _waits = self.waits();
        let Object { table, key } = object;
        let deadline_ns = self.deadline_ns();
        let (cell, room) =
            self.landed(|lend| self.hot.state.get_cell(table, key, lend, deadline_ns)).await?;
        Ok(cell.map(|cell| ProtocolCell {
            tuple: cell.tuple,
            value: cell.value.map(|value| value_of(&self.hot.metrics, value, room)),
        }))
    }

    async fn put_cell(
        &self,
        object: &Object,
        tuple: CellTuple,
        value: Option<&Value>,
    ) -> Result<(), OpsError> {
        self.tree.acts();
        if self.tree.owed_len() >= PUTS_OWED_MAX {
            self.complete_puts().await?;
        }
        let value = value.map(Value::bytes);
        self.tree.owes(object, tuple, value.clone());
        self.put(object, tuple, value).await
    }

    async fn get_version(
        &self,
        object: &Object,
        version: VersionId,
    ) -> Result<Option<Value>, OpsError> {
        let _waits = self.waits();
        let Object { table, key } = object;
        let deadline_ns = self.deadline_ns();
        let (value, room) = self
            .landed(|lend| self.hot.state.get_version(table, key, version, lend, deadline_ns))
            .await?;
        Ok(value.map(|value| value_of(&self.hot.metrics, value, room)))
    }

    async fn put_version(
        &self,
        object: &Object,
        version: VersionId,
        value: &Value,
    ) -> Result<(), OpsError> {
        let _waits = self.waits();
        let Object { table, key } = object;
        let value = value_in(value);
        Ok(self.hot.state.put_version(table, key, version, value, self.deadline_ns()).await?)
    }

    async fn base(&self, object: &Object) -> Result<Option<Base<Value>>, OpsError> {
        // Nothing is folded into bases yet, so every write record is in the window.
        if !FOLDS {
            return Ok(None);
        }
        let Object { table, key } = object;
        let (deadline_ns, floor) = (self.deadline_ns(), SeqNum::ZERO);
        let (base, room) =
            self.landed(|lend| self.hot.state.base(table, key, floor, lend, deadline_ns)).await?;
        Ok(base.map(|base| Base {
            seq: base.seq,
            value: base.value.map(|value| value_of(&self.hot.metrics, value, room)),
        }))
    }

    fn inline(&self, bytes: &[u8]) -> Value {
        Value::Bytes(Rc::from(bytes))
    }

    fn nonce(&self) -> u128 {
        self.hot.draw.draw()
    }

    fn clock_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}
