//! A log that is taken in record by record: by a standby from the stream of the sequencer that it
//! watches, and by a recovery from the storage node whose log was chosen.
//!
//! What a standby has learned may go beyond what the cluster keeps: the end of a stream whose
//! sequencer died may be on no storage node. So the tables are made of committed records only, and
//! what follows those is kept as bytes. A recovery first asks up to where the learned log *is* the
//! log that it took ([`Learner::agree`]); beyond that everything learned is dropped, and if the
//! tables go further than that, they are too.

use halfmoon_wire::{DecodeError, Epoch, EpochStart, RecordRef, Records, SeqNum, agreement};

use crate::order::{Order, ReplayError};
use crate::window::Window;

/// Bytes of a window that are looked at in one go.
const SPAN_BYTES: usize = 256 * 1024;

/// Why records were not taken in. Those before the bad one were.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LearnError {
    /// Bytes are no record.
    #[error(transparent)]
    Corrupt(#[from] DecodeError),
    /// They do not follow each other.
    #[error(transparent)]
    NotALog(#[from] ReplayError),
    /// A record is of another epoch than the history says.
    #[error("record {seq} is of an epoch that the history does not tell")]
    HistoryDiffers {
        /// The record.
        seq: SeqNum,
    },
    /// Too much of it is not committed.
    #[error("the window is full of records that are not committed")]
    Full,
}

/// A prefix of a log: its newest records, and the tables of a prefix of that.
#[derive(Debug)]
pub struct Learner {
    window_bytes: usize,
    /// Starts of the epochs of the log that is taken in, also of those it has not come to yet.
    history: Vec<EpochStart>,
    /// The tables.
    order: Order,
    /// Records, the ones beyond the tables and at least some before.
    window: Window,
    /// The log is committed up to here, as far as was told.
    committed: SeqNum,
}

impl Learner {
    /// Nothing is learned yet.
    #[must_use]
    pub fn new(window_bytes: usize) -> Self {
        Self {
            window_bytes,
            history: Vec::new(),
            // Any epoch may still come: the machine gets its own when it begins to order.
            order: Order::new(Epoch(u64::MAX)),
            window: Window::new(window_bytes, SeqNum(1)),
            committed: SeqNum::ZERO,
        }
    }

    /// The last position taken in; 0 when there is none.
    #[must_use]
    pub const fn end(&self) -> SeqNum {
        self.window.next().prev()
    }

    /// The last position that the tables know of.
    #[must_use]
    pub const fn known(&self) -> SeqNum {
        self.order.tail()
    }

    /// From now on the log that is taken in is this one, which ends at `end` or later. What was
    /// taken in and is not in it is forgotten, which may be everything.
    pub fn agree(&mut self, history: &[EpochStart], end: SeqNum) {
        let agreed = agreement((&self.history, self.end()), (history, end));
        let is_bare = self.known() == SeqNum::ZERO && agreed < self.window.start();
        if self.known() > agreed || is_bare {
            *self = Self::new(self.window_bytes);
        } else {
            self.window.truncate_after(agreed);
        }
        self.history = history.to_vec();
        self.committed = self.committed.min(agreed);
    }

    /// Takes in records, of which those that are here already are passed over. The first one of all
    /// may have any position, as the log before it may have been trimmed.
    pub fn extend(&mut self, records: &[u8]) -> Result<(), LearnError> {
        for record in Records::new(records) {
            let record = record?;
            if record.seq() <= self.end() {
                continue;
            }
            self.check(&record)?;
            if !self.window.has_room(record.bytes().len()) {
                return Err(LearnError::Full);
            }
            self.push(&record);
        }
        self.settle()
    }

    /// Takes in one record of a log that is not going to change any more, with its tables.
    pub fn absorb(&mut self, record: &RecordRef<'_>) -> Result<(), LearnError> {
        self.check(record)?;
        self.order.replay(record)?;
        // The node whose log this is has it all: the window may drop the oldest.
        self.window.release(record.seq());
        self.push(record);
        Ok(())
    }

    /// The log is committed up to here.
    pub fn committed(&mut self, up_to: SeqNum) -> Result<(), LearnError> {
        self.committed = self.committed.max(up_to);
        self.settle()
    }

    /// Makes the tables of all that was taken in.
    pub(crate) fn know_all(&mut self) -> Result<(), LearnError> {
        self.replay_until(self.end())
    }

    /// The machine that orders for `epoch` after what was taken in, the newest records, and the
    /// history. The tables know all that was taken in.
    pub(crate) fn begin(mut self, epoch: Epoch) -> (Order, Window, Vec<EpochStart>) {
        self.order.begin(epoch);
        (self.order, self.window, self.history)
    }

    fn settle(&mut self) -> Result<(), LearnError> {
        let until = self.committed.min(self.end());
        if until > self.known() {
            self.replay_until(until)?;
            self.order.committed(until);
        }
        Ok(())
    }

    fn replay_until(&mut self, until: SeqNum) -> Result<(), LearnError> {
        let Self { order, window, .. } = self;
        let first = if order.tail() == SeqNum::ZERO { window.start() } else { order.tail().next() };
        let mut at = first;
        'all: while at <= until {
            let Some(span) = window.span(at, SPAN_BYTES) else { break };
            at = span.next;
            for record in Records::new(span.records) {
                let record = record?;
                if record.seq() > until {
                    break 'all;
                }
                order.replay(&record)?;
            }
        }
        window.release(order.tail().next());
        Ok(())
    }

    fn check(&self, record: &RecordRef<'_>) -> Result<(), LearnError> {
        let seq = record.seq();
        let expected = self.window.next();
        let is_first = self.end() == SeqNum::ZERO;
        if seq == SeqNum::ZERO || seq != expected && !is_first {
            return Err(ReplayError::NotContiguous { expected, found: seq }.into());
        }
        if self.epoch_at(seq) != Some(record.epoch()) {
            return Err(LearnError::HistoryDiffers { seq });
        }
        Ok(())
    }

    fn push(&mut self, record: &RecordRef<'_>) {
        if self.end() == SeqNum::ZERO {
            self.window = Window::new(self.window_bytes, record.seq());
        }
        self.window.push_encoded(record.bytes());
    }

    fn epoch_at(&self, seq: SeqNum) -> Option<Epoch> {
        let index = self.history.partition_point(|start| start.first <= seq);
        self.history.get(index.checked_sub(1)?).map(|start| start.epoch)
    }
}
