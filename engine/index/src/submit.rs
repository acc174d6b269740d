//! Every append until it is answered.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use halfmoon_wire::{
    APPEND_EPOCH_AT, AppendParts, Condition, Epoch, Evict, Incarnation, LocalId, NodeId,
    RecordKind, RecordRef, Refusal, SeqNum, Tag, broken, encode_append, encoded_len, limits,
};
use thiserror::Error;

/// Most appends without an answer.
pub const IN_FLIGHT_MAX: usize = 64 * 1024;

/// Most bytes of appends without an answer.
pub const IN_FLIGHT_BYTES_MAX: usize = 128 << 20;

/// First pause after the sequencer had no room, in ns; it doubles.
const PAUSE_FIRST_NS: u64 = 1_000_000;

/// Longest pause, in ns.
const PAUSE_MAX_NS: u64 = 64_000_000;

/// Buffers of answered appends that are kept to be used again.
const SPARE_MAX: usize = 1024;

/// Largest buffer that is kept, in bytes.
const SPARE_BYTES_MAX: usize = 8 * 1024;

/// What an engine wants to append.
#[derive(Clone, Copy, Debug)]
pub struct NewAppend<'a> {
    /// Initial cursor of the root that it belongs to; `SeqNum::MAX` when it belongs to none.
    pub floor: SeqNum,
    /// What must hold; the first is judged first.
    pub conditions: &'a [Condition],
    /// The sub-streams that the record joins.
    pub tags: &'a [Tag],
    /// Opaque to the log.
    pub payload: &'a [u8],
}

/// How an append ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The record is committed and applied, at this position.
    At(SeqNum),
    /// It is not in the log, and this is why. The winner of a conflict is applied, so it can be
    /// read. Never [`Refusal::Overloaded`].
    Refused(Refusal),
}

/// The end of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// As given to [`Submissions::submit`].
    pub token: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// Why an append was not taken. It has no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SubmitError {
    /// As many appends as may be wait for an answer.
    #[error("{IN_FLIGHT_MAX} appends or {IN_FLIGHT_BYTES_MAX} bytes of them wait for an answer")]
    Full,
    /// The record breaks a limit of the wire.
    #[error("{what} of the append: {value}, over the limit of {limit}")]
    TooLarge {
        /// Which limit.
        what: &'static str,
        /// The append's.
        value: usize,
        /// The limit.
        limit: usize,
    },
    /// This incarnation was evicted: nothing of it is ordered any more.
    #[error("this engine was evicted from the log")]
    Evicted,
}

/// The appends of one engine incarnation that have no answer yet.
///
/// - An append is answered by its own record, recognised by its origin when it is applied, or by a
///   verdict of the current epoch. A verdict that speaks of something in the log (a winner, a safe
///   point, an eviction) is delivered once that is applied, so never if it is lost.
/// - Entering an epoch voids the verdicts of the one before. Once the opening record is applied,
///   exactly the appends still without an answer are sent again, in the order of their local ids:
///   the log lacks them, or they would have been answered.
#[derive(Debug)]
pub struct Submissions {
    engine: NodeId,
    incarnation: Incarnation,
    epoch: Epoch,
    /// Whether the opening record of the epoch is applied.
    open: bool,
    /// The appends from local id `base` on; `None` where the answer was given.
    pending: VecDeque<Option<Pending>>,
    base: u64,
    /// Every append below this one was sent in this epoch on this lane, is paused, or is judged.
    cursor: u64,
    /// Appends to be sent again later: (time, local id). May hold some that are not paused.
    paused: BinaryHeap<Reverse<(u64, u64)>>,
    /// Conflicts that wait for their winner: (winner, local id). Cleared with the epoch.
    losers: BinaryHeap<Reverse<(SeqNum, u64)>>,
    /// Verdicts other than conflicts that wait for what they speak of: rare.
    waiting: Vec<u64>,
    answers: VecDeque<Answer>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
    unanswered: usize,
    evicted: bool,
}

#[derive(Debug)]
struct Pending {
    token: u64,
    /// The whole message, whose epoch is written in when it is sent.
    message: Vec<u8>,
    state: State,
    pause_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Sent,
    Paused(u64),
    Judged(Refusal),
}

impl Submissions {
    /// No appends yet, of this life of this engine.
    #[must_use]
    pub fn new(engine: NodeId, incarnation: Incarnation) -> Self {
        Self {
            engine,
            incarnation,
            epoch: Epoch(0),
            open: false,
            pending: VecDeque::new(),
            base: 1,
            cursor: 1,
            paused: BinaryHeap::new(),
            losers: BinaryHeap::new(),
            waiting: Vec::new(),
            answers: VecDeque::new(),
            spare: Vec::new(),
            bytes: 0,
            unanswered: 0,
            evicted: false,
        }
    }

    /// Takes an append; its answer will bear `token`.
    pub fn submit(&mut self, token: u64, append: &NewAppend<'_>) -> Result<LocalId, SubmitError> {
        if self.evicted {
            return Err(SubmitError::Evicted);
        }
        check(append)?;
        // Answers leave gaps, and the oldest append without one keeps those after it in place: the
        // limit is on the span.
        if self.pending.len() >= IN_FLIGHT_MAX || self.bytes >= IN_FLIGHT_BYTES_MAX {
            return Err(SubmitError::Full);
        }
        let local = LocalId(self.base + self.pending.len() as u64);
        let mut message = self.spare.pop().unwrap_or_default();
        let NewAppend { floor, conditions, tags, payload } = *append;
        let kind = RecordKind::Data;
        let parts = AppendParts { local, kind, floor, conditions, tags, payload };
        encode_append(&mut message, self.epoch, &parts);
        self.bytes += message.len();
        self.unanswered += 1;
        let state = State::Waiting;
        self.pending.push_back(Some(Pending { token, message, state, pause_ns: PAUSE_FIRST_NS }));
        Ok(local)
    }

    /// How many appends have no answer.
    #[must_use]
    pub const fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Every append up to this one is answered, and never sent again.
    #[must_use]
    pub const fn answered(&self) -> LocalId {
        LocalId(self.base - 1)
    }

    /// Whether this incarnation is out of the log.
    #[must_use]
    pub const fn is_evicted(&self) -> bool {
        self.evicted
    }

    /// A new epoch has begun: its verdicts alone count, and nothing is sent until
    /// [`opened`](Self::opened).
    pub fn enter(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.open = false;
        self.cursor = self.base;
        if broken!(ResubmitsAboveHighest) {
            let highest = self.pending.iter().rposition(Option::is_none);
            self.cursor += highest.map_or(0, |index| index as u64 + 1);
        }
        self.paused.clear();
        if !broken!(VerdictOutlivesEpoch) {
            self.losers.clear();
            self.waiting.clear();
        }
        for pending in self.pending.iter_mut().flatten() {
            let is_judged = matches!(pending.state, State::Judged(_));
            if !is_judged || !broken!(VerdictOutlivesEpoch) {
                pending.state = State::Waiting;
            }
        }
    }

    /// The opening record of the epoch is applied.
    pub fn opened(&mut self) {
        self.open = true;
    }

    /// The lane to the sequencer was replaced within the epoch: what was sent may be lost, and is
    /// sent again. The sequencer recognises what it has.
    pub fn lane_lost(&mut self) {
        self.cursor = self.base;
        for pending in self.pending.iter_mut().flatten() {
            if pending.state == State::Sent {
                pending.state = State::Waiting;
            }
        }
    }

    /// The next message to send, if there is one; [`sent`](Self::sent) tells that it was.
    pub fn next_to_send(&mut self, now_ns: u64) -> Option<&[u8]> {
        if !self.open {
            return None;
        }
        let local = self.next_local(now_ns)?;
        let epoch = self.epoch.0.to_le_bytes();
        let pending = self.pending_mut(local)?;
        pending.message.get_mut(APPEND_EPOCH_AT..APPEND_EPOCH_AT + 8)?.copy_from_slice(&epoch);
        Some(&pending.message)
    }

    /// The message of the last [`next_to_send`](Self::next_to_send) was sent.
    pub fn sent(&mut self, now_ns: u64) {
        if let Some(local) = self.next_local(now_ns) {
            if local == self.cursor {
                self.cursor += 1;
            } else {
                self.paused.pop();
            }
            if let Some(pending) = self.pending_mut(local) {
                pending.state = State::Sent;
            }
        }
    }

    /// When an append that was paused is to be sent, in ns.
    #[must_use]
    pub fn next_retry_ns(&self) -> Option<u64> {
        self.paused.peek().map(|Reverse((at, _))| *at)
    }

    /// A record was applied: it may be one of these appends, or take this engine out.
    pub fn applied(&mut self, record: &RecordRef<'_>) {
        let origin = record.origin();
        if record.kind() == RecordKind::Evict {
            // One that does not parse names nobody.
            if let Ok(evict) = Evict::parse(record.payload())
                && evict.engine == self.engine
                && evict.incarnation >= self.incarnation
            {
                self.evict();
            }
        } else if origin.engine == self.engine && origin.incarnation == self.incarnation {
            self.answer(origin.local.0, Outcome::At(record.seq()));
        }
    }

    /// The sequencer of `epoch` has refused an append.
    pub fn refused(&mut self, epoch: Epoch, local: LocalId, refusal: Refusal, now_ns: u64) {
        if epoch != self.epoch || !self.open {
            return;
        }
        let Some(pending) = self.pending_mut(local.0) else { return };
        // One verdict per sending: a second one is of a sending that was repeated, and as good.
        if pending.state != State::Sent {
            return;
        }
        match refusal {
            Refusal::Overloaded => {
                let at = now_ns.saturating_add(pending.pause_ns);
                pending.pause_ns = (pending.pause_ns * 2).min(PAUSE_MAX_NS);
                pending.state = State::Paused(at);
                self.paused.push(Reverse((at, local.0)));
            }
            Refusal::Conflict { winner, .. }
                if winner > SeqNum::ZERO && !broken!(LoserBeforeWinner) =>
            {
                pending.state = State::Judged(refusal);
                self.losers.push(Reverse((winner, local.0)));
            }
            Refusal::RootGone { .. } | Refusal::Evicted => {
                pending.state = State::Judged(refusal);
                self.waiting.push(local.0);
            }
            Refusal::Conflict { .. } | Refusal::Gap { .. } | Refusal::Invalid => {
                self.answer(local.0, Outcome::Refused(refusal));
            }
        }
    }

    /// Delivers the verdicts that speak of what is applied by now.
    pub fn settle(&mut self, applied: SeqNum, safe_point: SeqNum) {
        while let Some(Reverse((winner, local))) = self.losers.peek().copied()
            && winner <= applied
        {
            self.losers.pop();
            if let Some(State::Judged(refusal)) = self.pending_mut(local).map(|found| found.state) {
                self.answer(local, Outcome::Refused(refusal));
            }
        }
        // An eviction ends every append at once, when its record is applied: see `evict`.
        for index in (0..self.waiting.len()).rev() {
            let local = self.waiting[index];
            let state = self.pending_mut(local).map(|found| found.state);
            if let Some(State::Judged(refusal @ Refusal::RootGone { safe_point: judged })) = state {
                if judged > safe_point {
                    continue;
                }
                self.answer(local, Outcome::Refused(refusal));
            } else if state.is_some() {
                continue;
            }
            self.waiting.swap_remove(index);
        }
    }

    /// The next answer to deliver.
    pub fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    /// Nothing of this incarnation comes after the record that was applied. What the log lacks by
    /// now it lacks for ever.
    fn evict(&mut self) {
        self.evicted = true;
        for local in self.base..self.base + self.pending.len() as u64 {
            self.answer(local, Outcome::Refused(Refusal::Evicted));
        }
    }

    fn answer(&mut self, local: u64, outcome: Outcome) {
        let Some(index) = self.index(local) else { return };
        let Some(mut pending) = self.pending.get_mut(index).and_then(Option::take) else { return };
        self.answers.push_back(Answer { token: pending.token, outcome });
        self.bytes -= pending.message.len();
        self.unanswered -= 1;
        if self.spare.len() < SPARE_MAX && pending.message.capacity() <= SPARE_BYTES_MAX {
            pending.message.clear();
            self.spare.push(pending.message);
        }
        while matches!(self.pending.front(), Some(None)) {
            self.pending.pop_front();
            self.base += 1;
        }
        self.cursor = self.cursor.max(self.base);
    }

    /// What is sent next: appends in the order of their ids, then what has paused for long enough.
    fn next_local(&mut self, now_ns: u64) -> Option<u64> {
        let end = self.base + self.pending.len() as u64;
        while self.cursor < end {
            if self.state(self.cursor) == Some(State::Waiting) {
                return Some(self.cursor);
            }
            self.cursor += 1;
        }
        while let Some(Reverse((at, local))) = self.paused.peek().copied() {
            if self.state(local) != Some(State::Paused(at)) {
                self.paused.pop();
            } else if at <= now_ns {
                return Some(local);
            } else {
                return None;
            }
        }
        None
    }

    fn index(&self, local: u64) -> Option<usize> {
        usize::try_from(local.checked_sub(self.base)?).ok()
    }

    fn state(&self, local: u64) -> Option<State> {
        Some(self.pending.get(self.index(local)?)?.as_ref()?.state)
    }

    fn pending_mut(&mut self, local: u64) -> Option<&mut Pending> {
        let index = self.index(local)?;
        self.pending.get_mut(index)?.as_mut()
    }
}

/// Refuses what the sequencer could not parse: it would have nobody to say that to.
fn check(append: &NewAppend<'_>) -> Result<(), SubmitError> {
    let limit = |what, value, limit| {
        if value > limit { Err(SubmitError::TooLarge { what, value, limit }) } else { Ok(()) }
    };
    limit("tags", append.tags.len(), limits::TAGS_MAX)?;
    limit("conditions", append.conditions.len(), limits::CONDITIONS_MAX)?;
    let bytes = encoded_len(append.tags.len(), append.payload.len());
    limit("record bytes", bytes, limits::RECORD_MAX_BYTES)
}

#[cfg(test)]
mod tests;
