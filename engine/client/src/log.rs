//! The handle to the log.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use halfmoon_index::{NewAppend, Outcome, SubmitError};
use halfmoon_wire::{
    Epoch, Message, NodeId, RecordRef, Refusal, SeqNum, Tag, limits::RECORD_MAX_BYTES,
};
use thiserror::Error;

use crate::calls::{Hold, Peer, Reply};
use crate::core::{Backoff, Core, Ended, SequencerLane, bump};

/// What to append: see [`NewAppend`].
pub type AppendRequest<'a> = NewAppend<'a>;

/// About so many bytes are asked for when one record is wanted; the first always comes whole.
const READ_ONE_BYTES: u32 = 4 * 1024;

/// Longest wait for a node's answer to a read before another one is asked, in ns.
const READ_PATIENCE_NS: u64 = 250_000_000;

/// The log as tasks of one thread use it. Clones are handles to the same client.
#[derive(Clone)]
pub struct Log(pub(crate) Rc<Core>);

/// How an append ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Appended {
    /// The record is committed at this position, and applied here.
    At(SeqNum),
    /// A condition failed. The record in its way is applied here; 0 when there is none.
    Conflict {
        /// Which condition.
        condition: u16,
        /// What stands there.
        winner: SeqNum,
    },
    /// An expected length lies beyond the tag's: a mistake of the appender.
    Gap {
        /// Which condition.
        condition: u16,
        /// The tag's length.
        length: u64,
    },
    /// The root's initial cursor is below the safe point.
    RootGone {
        /// The safe point.
        safe_point: SeqNum,
    },
    /// This engine incarnation is out of the log; the record is not in it.
    Evicted,
    /// The sequencer could not make sense of the append; the record is not in the log.
    Invalid,
}

/// Why the log did not do what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LogError {
    /// Too many appends or questions wait for an answer. Nothing was done.
    #[error("too many appends or reads are under way")]
    Busy,
    /// The append breaks a limit. Nothing was done.
    #[error("{what} of the append: {value}, over the limit of {limit}")]
    TooLarge {
        /// Which limit.
        what: &'static str,
        /// The append's.
        value: usize,
        /// The limit.
        limit: usize,
    },
    /// The client has ended while the append was under way: it may be in the log, or get there.
    #[error("the engine stopped before it knew whether the record is in the log")]
    Unknown,
    /// The client has ended. Nothing was done.
    #[error("the engine has stopped")]
    Closed,
    /// The log breaks its own rules, so this engine cannot go on. Nothing was done.
    #[error("the log is not the one that this engine has seen before")]
    Broken,
    /// No storage node gave the record in time.
    #[error("no storage node answered in time")]
    Unavailable,
}

/// The answer of an append. It is sent whether this is polled or not; dropping it forgoes the
/// answer.
#[must_use = "the answer says whether the record is in the log"]
pub struct Appending {
    core: Rc<Core>,
    state: State,
}

enum State {
    Waiting(u64),
    Ready(Result<Appended, LogError>),
    Over,
}

/// A whole record, copied.
#[derive(Clone)]
pub struct Record(Vec<u8>);

impl Log {
    /// Appends. The request is framed at once and sent in this turn; over any number of sequencers
    /// the answer is the truth, or [`LogError::Unknown`] when the client ends before it is known.
    pub fn append(&self, request: &AppendRequest<'_>) -> Appending {
        let state = match self.submit(request) {
            Ok(token) => State::Waiting(token),
            Err(result) => State::Ready(result),
        };
        Appending { core: self.0.clone(), state }
    }

    /// Appends without waiting for the answer.
    ///
    /// # Errors
    /// When the append was not taken.
    pub fn post(&self, request: &AppendRequest<'_>) -> Result<(), LogError> {
        match self.submit(request) {
            Ok(token) => {
                self.0.appends.borrow_mut().detach(token);
                Ok(())
            }
            Err(Ok(_)) => Ok(()),
            Err(Err(error)) => Err(error),
        }
    }

    /// The last position applied here. All reads see the log up to it.
    #[must_use]
    pub fn applied(&self) -> SeqNum {
        self.0.applied()
    }

    /// The last position known here to be committed.
    #[must_use]
    pub fn committed(&self) -> SeqNum {
        self.0.view.borrow().committed()
    }

    /// The current epoch; 0 before the first sequencer was heard of.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.epoch()
    }

    /// The sequencers that have published themselves.
    #[must_use]
    pub fn sequencers(&self) -> Vec<SequencerLane> {
        self.0.sequencers.borrow().clone()
    }

    /// Whether the opening record of the current epoch is applied: appends are being sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.view.borrow().is_open()
    }

    /// The safe point P, as of the last position applied.
    #[must_use]
    pub fn safe_point(&self) -> SeqNum {
        self.0.view.borrow().safe_point()
    }

    /// Whether this engine incarnation was taken out of the log.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        self.0.submissions.borrow().is_evicted()
    }

    /// Whether the log is not the one that was seen before: this client uses it no more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.ended.get() == Some(Ended::Broken)
    }

    /// How many appends have no answer.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.0.submissions.borrow().unanswered()
    }

    /// Says what the engine's reports to the sequencer name as its safe point: the least initial
    /// cursor of its unfinished roots, or `None` when it has none. A report also names the applied
    /// position, which says that roots inherited by records up to there are counted: so a fold
    /// that sees an inheritance calls this before it returns.
    pub fn set_safe_point(&self, least: Option<SeqNum>) {
        self.0.least.set(least);
    }

    /// Shows every record to `fold`, in order, from the next one applied on, and before any task
    /// learns of it. `fold` may read and append, and must not add folds.
    pub fn on_apply(&self, fold: impl FnMut(RecordRef<'_>) + 'static) {
        self.0.folds.borrow_mut().push(Box::new(fold));
    }

    /// Waits until `seq` is applied.
    ///
    /// # Errors
    /// When the client ends before.
    pub async fn wait_applied(&self, seq: SeqNum) -> Result<(), LogError> {
        self.0.reached(seq).await.map_err(LogError::from)
    }

    /// The last position ordered, as of some moment after the call. It may not be committed yet.
    ///
    /// # Errors
    /// When the client ends before a sequencer has answered.
    pub async fn tail(&self) -> Result<SeqNum, LogError> {
        let (_asks, mut backoff) = (self.0.asks_tail(), Backoff::new());
        loop {
            if let Some(ended) = self.0.ended.get() {
                return Err(ended.into());
            }
            let version = self.0.links.borrow().version();
            let ask = self.0.ask(Peer::Sequencer, Hold::default(), None, |token, out| {
                Message::AskTail { token }.encode(out);
            });
            match ask {
                Some(ask) => {
                    if let Ok(Reply::Tail(seq)) = ask.await {
                        return Ok(seq);
                    }
                }
                None => self.0.changed_or(version, &mut backoff).await,
            }
        }
    }

    /// Waits until all is applied that was ordered before the call and is not lost with its
    /// sequencer: a tail that was asked for holds for its epoch only, so in a new one it is asked
    /// for again.
    ///
    /// # Errors
    /// When the client ends before.
    pub async fn catch_up(&self) -> Result<(), LogError> {
        loop {
            let epoch = self.epoch();
            let tail = self.tail().await?;
            if self.epoch() == epoch && self.0.reached_in(epoch, tail).await? {
                return Ok(());
            }
        }
    }

    /// Shows an applied record to `see`, if it is still in memory.
    pub fn with_cached<R>(&self, seq: SeqNum, see: impl FnOnce(RecordRef<'_>) -> R) -> Option<R> {
        self.0.view.borrow().record(seq).map(see)
    }

    /// A record, from memory or from a storage node. Waits until it is applied.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] at `deadline_ns`.
    pub async fn record(&self, seq: SeqNum, deadline_ns: u64) -> Result<Record, LogError> {
        if let Some(record) = self.cached(seq) {
            return Ok(record);
        }
        let fetch = async {
            self.wait_applied(seq).await?;
            match self.cached(seq) {
                Some(record) => Ok(record),
                None => self.fetch(seq).await,
            }
        };
        let executor = &self.0.executor;
        executor.timeout_at(deadline_ns, fetch).await.unwrap_or(Err(LogError::Unavailable))
    }

    /// Places of records in tags in the window, and the most that the sequencer allows.
    #[must_use]
    pub fn places(&self) -> (u64, u64) {
        (self.0.view.borrow().tags().places(), self.0.places_max.get())
    }

    /// The tag's length as applied: last position in the window + 1.
    #[must_use]
    pub fn tag_len(&self, tag: Tag) -> u64 {
        self.0.view.borrow().tags().len(tag)
    }

    /// The record at `position` of the tag, if it is applied.
    #[must_use]
    pub fn at(&self, tag: Tag, position: u64) -> Option<SeqNum> {
        self.0.view.borrow().tags().at(tag, position)
    }

    /// All applied records of the tag, ascending. The first stands at position
    /// [`tag_len`](Self::tag_len) less their number.
    #[must_use]
    pub fn steps(&self, tag: Tag) -> Vec<SeqNum> {
        self.0.view.borrow().tags().seqs(tag).to_vec()
    }

    /// The last record of the tag at or before `max`. Waits until `max` is applied.
    ///
    /// # Errors
    /// When the client ends before.
    pub async fn read_prev(&self, tag: Tag, max: SeqNum) -> Result<Option<SeqNum>, LogError> {
        loop {
            let read = self.0.view.borrow().tags().read_prev(tag, max);
            if let Ok(found) = read {
                return Ok(found);
            }
            self.wait_applied(max).await?;
        }
    }

    /// The first record of the tag at or after `min`, among those applied. Waits until `min` is.
    ///
    /// # Errors
    /// When the client ends before.
    pub async fn read_next(&self, tag: Tag, min: SeqNum) -> Result<Option<SeqNum>, LogError> {
        loop {
            let read = self.0.view.borrow().tags().read_next(tag, min);
            if let Ok(found) = read {
                return Ok(found);
            }
            self.wait_applied(min).await?;
        }
    }

    fn submit(&self, request: &AppendRequest<'_>) -> Result<u64, Result<Appended, LogError>> {
        if let Some(ended) = self.0.ended.get() {
            return Err(Err(ended.into()));
        }
        let mut appends = self.0.appends.borrow_mut();
        let token = appends.open();
        match self.0.submissions.borrow_mut().submit(token, request) {
            Ok(_) => {
                bump(&self.0.counts.appends);
                Ok(token)
            }
            Err(error) => {
                appends.cancel(token);
                Err(match error {
                    SubmitError::Full => Err(LogError::Busy),
                    SubmitError::TooLarge { what, value, limit } => {
                        Err(LogError::TooLarge { what, value, limit })
                    }
                    SubmitError::Evicted => Ok(Appended::Evicted),
                })
            }
        }
    }

    fn cached(&self, seq: SeqNum) -> Option<Record> {
        self.with_cached(seq, |record| Record(record.bytes().to_vec()))
    }

    async fn fetch(&self, seq: SeqNum) -> Result<Record, LogError> {
        bump(&self.0.counts.remote_records);
        let mut backoff = Backoff::new();
        loop {
            let mut nodes = self.0.storage_nodes();
            let first = self.0.pick(nodes.len());
            nodes.rotate_left(first);
            for node in nodes {
                if let Some(record) = self.0.read_one(node, seq).await {
                    return Ok(record);
                }
            }
            if let Some(ended) = self.0.ended.get() {
                return Err(ended.into());
            }
            self.0.executor.sleep(backoff.next_ns(&self.0)).await;
        }
    }
}

impl Core {
    pub(crate) fn storage_nodes(&self) -> Vec<NodeId> {
        self.links.borrow().replicas.iter().map(|replica| replica.node).collect()
    }

    /// An index below `len`, to spread reads.
    pub(crate) fn pick(&self, len: usize) -> usize {
        usize::try_from(self.random_below(len as u64)).unwrap_or(0)
    }

    /// Records from `from` on as a node has them that is in the current epoch.
    pub(crate) async fn read_log(
        self: &Rc<Self>,
        node: NodeId,
        from: SeqNum,
        max_bytes: u32,
    ) -> Option<(Epoch, SeqNum, Vec<u8>)> {
        let epoch = self.epoch();
        let ask = self.ask(Peer::Storage(node), Hold::default(), None, |token, out| {
            Message::ReadLog { token, epoch, raw: false, from, max_bytes }.encode(out);
        })?;
        let until_ns = self.executor.now_ns().saturating_add(READ_PATIENCE_NS);
        match self.executor.timeout_at(until_ns, ask).await {
            // A node that is in another epoch has another log.
            Ok(Ok(Reply::Log { epoch: theirs, first, records })) if theirs == epoch => {
                (first == from && !records.is_empty()).then_some((epoch, first, records))
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// An applied record: committed, so the same in every node that is in an epoch since.
    async fn read_one(self: &Rc<Self>, node: NodeId, seq: SeqNum) -> Option<Record> {
        let (_, _, mut bytes) = self.read_log(node, seq, READ_ONE_BYTES).await?;
        let len = match RecordRef::parse(&bytes) {
            Ok(record) if record.seq() == seq => record.bytes().len(),
            Ok(_) | Err(_) => return None,
        };
        debug_assert!(len <= RECORD_MAX_BYTES, "checked by the parser");
        bytes.truncate(len);
        Some(Record(bytes))
    }
}

impl Record {
    /// The record.
    ///
    /// # Panics
    /// Never: the bytes were parsed before.
    #[must_use]
    pub fn view(&self) -> RecordRef<'_> {
        RecordRef::parse(&self.0).expect("the bytes were parsed when the record was made")
    }
}

impl Future for Appending {
    type Output = Result<Appended, LogError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let result = match &this.state {
            State::Waiting(token) => match this.core.appends.borrow_mut().poll(*token, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => Err(LogError::Unknown),
                Poll::Ready(Some(outcome)) => appended(outcome),
            },
            State::Ready(result) => *result,
            State::Over => return Poll::Ready(Err(LogError::Unknown)),
        };
        this.state = State::Over;
        Poll::Ready(result)
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        if let State::Waiting(token) = self.state {
            self.core.appends.borrow_mut().detach(token);
        }
    }
}

fn appended(outcome: Outcome) -> Result<Appended, LogError> {
    Ok(match outcome {
        Outcome::At(seq) => Appended::At(seq),
        Outcome::Refused(refusal) => match refusal {
            Refusal::Conflict { condition, winner } => Appended::Conflict { condition, winner },
            Refusal::Gap { condition, length } => Appended::Gap { condition, length },
            Refusal::RootGone { safe_point } => Appended::RootGone { safe_point },
            Refusal::Evicted => Appended::Evicted,
            Refusal::Invalid => Appended::Invalid,
            // The index sends such an append again.
            Refusal::Overloaded => return Err(LogError::Busy),
        },
    })
}

impl From<Ended> for LogError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Closed => Self::Closed,
            Ended::Broken => Self::Broken,
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log(epoch {}, applied {})", self.epoch(), self.applied())
    }
}

impl fmt::Debug for Appending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = matches!(self.state, State::Waiting(_));
        f.debug_struct("Appending").field("waiting", &waiting).finish_non_exhaustive()
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(&self.view().seq()).finish()
    }
}
