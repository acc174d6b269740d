//! What a log amounts to, apart from its records: one fold over its batches, used alike while they
//! are written and while they are read back.

use halfmoon_wire::limits::HISTORY_MAX;
use halfmoon_wire::{Epoch, EpochStart, Reader, RecordRef, Records, SeqNum, Writer};

use crate::batch::{BatchInfo, BatchKind};

/// What a log amounts to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Checkpoint {
    /// Last position.
    pub end: SeqNum,
    /// The highest epoch promised.
    pub promised: Epoch,
    /// All up to here is no longer needed.
    pub trimmed: SeqNum,
    /// Starts of the epochs that occur in the log, ascending.
    pub history: Vec<EpochStart>,
}

/// Why a batch or a record cannot follow.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// Positions are dense.
    #[error("position {found} where {expected} was expected")]
    Position {
        /// What should have come.
        expected: SeqNum,
        /// What came.
        found: SeqNum,
    },
    /// Epochs do not decrease along a log.
    #[error("a record of epoch {found} after one of epoch {last}")]
    Epoch {
        /// Epoch of the record before.
        last: Epoch,
        /// Epoch of the record.
        found: Epoch,
    },
    /// A log names at most `HISTORY_MAX` epochs.
    #[error("the log names more than {HISTORY_MAX} epochs")]
    History,
    /// The bytes are not whole records.
    #[error("not a whole record: {0}")]
    Record(halfmoon_wire::DecodeError),
    /// A cut beyond the end.
    #[error("a cut to {to}, beyond the end {end}")]
    Cut {
        /// Where to.
        to: SeqNum,
        /// The end.
        end: SeqNum,
    },
}

/// Records that were checked against a log's end: what they change.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Checked {
    /// Last position; of nothing it is the end itself.
    pub last: SeqNum,
    /// Epochs that begin in them.
    pub starts: Vec<EpochStart>,
}

impl Checkpoint {
    /// Epoch of the last record; 0 of an empty log.
    #[must_use]
    pub fn last_epoch(&self) -> Epoch {
        self.history.last().map_or(Epoch::default(), |start| start.epoch)
    }

    /// Checks that `bytes` are whole records that continue the log.
    pub fn check(&self, bytes: &[u8]) -> Result<Checked, FollowError> {
        let mut checked = Checked { last: self.end, starts: Vec::new() };
        let mut epoch = self.last_epoch();
        for record in Records::new(bytes) {
            let record = record.map_err(FollowError::Record)?;
            epoch = checked.take(&record, epoch)?;
        }
        if self.history.len() + checked.starts.len() > HISTORY_MAX {
            return Err(FollowError::History);
        }
        Ok(checked)
    }

    /// Takes in records that were checked.
    pub(crate) fn extend(&mut self, checked: &Checked) {
        self.end = checked.last;
        self.history.extend_from_slice(&checked.starts);
    }

    /// Takes in a batch that is not [`BatchKind::Records`].
    pub(crate) fn apply(&mut self, info: &BatchInfo) -> Result<(), FollowError> {
        match info.kind {
            BatchKind::Cut => self.cut(info.last)?,
            BatchKind::Promise => self.promised = self.promised.max(info.epoch),
            BatchKind::Trim => self.trimmed = self.trimmed.max(info.last),
            BatchKind::Start | BatchKind::Open | BatchKind::Records | BatchKind::Mark => {}
        }
        Ok(())
    }

    fn cut(&mut self, to: SeqNum) -> Result<(), FollowError> {
        if to > self.end {
            return Err(FollowError::Cut { to, end: self.end });
        }
        self.end = to;
        self.history.retain(|start| start.first <= to);
        Ok(())
    }

    /// Bytes of the encoding.
    pub(crate) fn encoded_len(&self) -> usize {
        4 + 3 * 8 + 16 * self.history.len()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut out = Writer(out);
        out.seq(self.end).epoch(self.promised).seq(self.trimmed);
        out.u32(u32::try_from(self.history.len()).expect("at most HISTORY_MAX"));
        for start in &self.history {
            out.epoch(start.epoch).seq(start.first);
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes, "checkpoint");
        let (end, promised, trimmed) =
            (reader.seq().ok()?, reader.epoch().ok()?, reader.seq().ok()?);
        let count = reader.count(HISTORY_MAX).ok()?;
        let mut history = Vec::with_capacity(count);
        for _ in 0..count {
            history.push(EpochStart { epoch: reader.epoch().ok()?, first: reader.seq().ok()? });
        }
        reader.finish().ok()?;
        Some(Self { end, promised, trimmed, history })
    }
}

impl Checked {
    fn take(&mut self, record: &RecordRef<'_>, last: Epoch) -> Result<Epoch, FollowError> {
        let expected = self.last.next();
        if record.seq() != expected {
            return Err(FollowError::Position { expected, found: record.seq() });
        }
        if record.epoch() < last {
            return Err(FollowError::Epoch { last, found: record.epoch() });
        }
        if record.epoch() > last {
            self.starts.push(EpochStart { epoch: record.epoch(), first: expected });
        }
        self.last = expected;
        Ok(record.epoch())
    }
}
