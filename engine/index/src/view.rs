//! The stream, held back until it is committed, then applied.

use halfmoon_wire::{
    DecodeError, Epoch, NodeId, RecordKind, RecordRef, Records, SafePoint, SeqNum, broken,
};
use thiserror::Error;

use crate::store::Store;
use crate::{Commit, TagError, TagIndex};

/// How much memory a [`View`] may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of records that are kept for readers, the ones held back included. Older ones are
    /// read from storage.
    pub cache_bytes: usize,
    /// Bytes of records that wait to be committed. Above this the stream is refused: the log has
    /// lost its quorum, or watermarks do not arrive.
    pub held_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, held_bytes: 128 << 20 }
    }
}

/// The log as this engine sees it.
///
/// - What comes of the current epoch, from its sequencer or from a storage node that is in it, is
///   checked and held back until that epoch's watermarks commit it.
/// - On entering an epoch everything held back is dropped, and asked for again from the position
///   after the last one applied: the recovered log may differ there.
#[derive(Debug)]
pub struct View {
    limits: Limits,
    epoch: Epoch,
    opening: SeqNum,
    commit: Commit,
    store: Store,
    tags: TagIndex,
    /// The last position held back, or applied if nothing is.
    end: SeqNum,
    /// Epoch of the record at `end`.
    end_epoch: Epoch,
    /// Epoch of the last record applied.
    applied_epoch: Epoch,
    held_bytes: usize,
    safe_point: SeqNum,
}

/// What entering an epoch did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entered {
    /// The epoch is new. What was held back is gone.
    New,
    /// The view is in this epoch already, and keeps what it holds back.
    Again,
}

/// How far a view has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// How many records were applied.
    pub applied: usize,
    /// Whether there are more that could be.
    pub more: bool,
}

/// Why an epoch was not entered.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum EnterError {
    /// The view is in a later epoch: the sequencer is deposed and does not know it yet.
    #[error("epoch {found} is over, epoch {current} has begun")]
    Old {
        /// The view's epoch.
        current: Epoch,
        /// The one that was to be entered.
        found: Epoch,
    },
    /// The epoch begins within what was applied before it: committed records are missing from it,
    /// or it begins twice.
    #[error(
        "epoch {epoch} begins at {opening}, but {applied} records are committed and applied: the \
         log is not the one this engine has seen"
    )]
    Diverged {
        /// The epoch.
        epoch: Epoch,
        /// Its first position.
        opening: SeqNum,
        /// The last position applied.
        applied: SeqNum,
    },
}

/// Why records of the stream were refused. What came before the bad one is kept.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum StreamError {
    /// The stream is of another epoch.
    #[error("records of epoch {found} in epoch {current}")]
    OtherEpoch {
        /// The view's epoch.
        current: Epoch,
        /// The stream's.
        found: Epoch,
    },
    /// Records are missing, or a record does not bear the position that it stands at.
    #[error("position {expected} comes next, not {found}")]
    Gap {
        /// What comes next.
        expected: SeqNum,
        /// What came.
        found: SeqNum,
    },
    /// A record bears an epoch that cannot stand at its position.
    #[error("the record at {seq} is of epoch {found}")]
    WrongEpoch {
        /// Its position.
        seq: SeqNum,
        /// The epoch that it bears.
        found: Epoch,
    },
    /// The first record of the epoch is no opening record.
    #[error("the record at {seq} does not open the epoch that begins there")]
    NotOpening {
        /// Its position.
        seq: SeqNum,
    },
    /// Too much waits to be committed.
    #[error("{bytes} bytes of records wait to be committed, over the limit of {limit}")]
    HeldFull {
        /// Bytes that wait.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A record does not parse.
    #[error(transparent)]
    Corrupt(#[from] DecodeError),
}

/// A committed record breaks the log's rules. The engine cannot go on with this log.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ApplyError {
    /// A sub-stream is not continued.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// The payload of a record of the sequencer does not parse.
    #[error("record {seq}: {source}")]
    Payload {
        /// The record.
        seq: SeqNum,
        /// Why.
        source: DecodeError,
    },
}

impl View {
    /// A view of a log of which nothing is known.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            epoch: Epoch(0),
            opening: SeqNum::ZERO,
            commit: Commit::default(),
            store: Store::new(),
            tags: TagIndex::default(),
            end: SeqNum::ZERO,
            end_epoch: Epoch(0),
            applied_epoch: Epoch(0),
            held_bytes: 0,
            safe_point: SeqNum::ZERO,
        }
    }

    /// Moves to an epoch whose opening record is at `opening`.
    pub fn enter(
        &mut self,
        epoch: Epoch,
        opening: SeqNum,
        members: &[NodeId],
    ) -> Result<Entered, EnterError> {
        let applied = self.applied();
        if epoch < self.epoch {
            return Err(EnterError::Old { current: self.epoch, found: epoch });
        }
        if epoch == self.epoch {
            return if opening == self.opening {
                Ok(Entered::Again)
            } else {
                Err(EnterError::Diverged { epoch, opening, applied })
            };
        }
        if opening <= applied {
            return Err(EnterError::Diverged { epoch, opening, applied });
        }
        self.epoch = epoch;
        self.opening = opening;
        self.commit.enter(epoch, opening, members);
        if !broken!(HeldBackKept) {
            self.store.truncate_after(applied);
            self.end = applied;
            self.end_epoch = self.applied_epoch;
            self.held_bytes = 0;
        }
        Ok(Entered::New)
    }

    /// The current epoch; 0 before the first.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Position of the current epoch's opening record.
    #[must_use]
    pub const fn opening(&self) -> SeqNum {
        self.opening
    }

    /// Whether the opening record of the current epoch is applied.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.epoch > Epoch(0) && self.applied() >= self.opening
    }

    /// The first position that is not here yet.
    #[must_use]
    pub const fn wanted(&self) -> SeqNum {
        self.end.next()
    }

    /// The last position applied.
    #[must_use]
    pub const fn applied(&self) -> SeqNum {
        self.tags.applied()
    }

    /// The last position known to be committed, applied or not.
    #[must_use]
    pub fn committed(&self) -> SeqNum {
        self.commit.committed().max(self.applied())
    }

    /// The safe point P, as of the last position applied.
    #[must_use]
    pub const fn safe_point(&self) -> SeqNum {
        self.safe_point
    }

    /// Bytes of records that wait to be committed.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The index of the applied prefix.
    #[must_use]
    pub const fn tags(&self) -> &TagIndex {
        &self.tags
    }

    /// An applied record, if it is still in memory.
    #[must_use]
    pub fn record(&self, seq: SeqNum) -> Option<RecordRef<'_>> {
        if seq <= self.applied() { self.store.record(seq) } else { None }
    }

    /// Takes records of the log of `epoch`, of which the first is at `first`. Those that are here
    /// already are passed over.
    pub fn extend(
        &mut self,
        epoch: Epoch,
        first: SeqNum,
        records: &[u8],
    ) -> Result<(), StreamError> {
        if epoch != self.epoch {
            return Err(StreamError::OtherEpoch { current: self.epoch, found: epoch });
        }
        let mut expected = first;
        for record in Records::new(records) {
            let record = record?;
            if record.seq() != expected {
                return Err(StreamError::Gap { expected, found: record.seq() });
            }
            expected = expected.next();
            if record.seq() > self.end {
                self.hold(&record)?;
            }
        }
        Ok(())
    }

    /// Takes a node's watermark.
    pub fn watermark(&mut self, epoch: Epoch, node: NodeId, seq: SeqNum) {
        self.commit.watermark(epoch, node, seq);
    }

    /// Applies up to `limit` records that are committed and here, and shows each to `seen`.
    pub fn apply(
        &mut self,
        limit: usize,
        mut seen: impl FnMut(&RecordRef<'_>),
    ) -> Result<Progress, ApplyError> {
        let until = self.commit.committed().min(self.end);
        let mut applied = 0;
        while self.tags.applied() < until && applied < limit {
            let seq = self.tags.applied().next();
            let Some(record) = self.store.record(seq) else { break };
            if record.kind() == RecordKind::SafePoint {
                let parsed = SafePoint::parse(record.payload())
                    .map_err(|source| ApplyError::Payload { seq, source })?;
                self.safe_point = self.safe_point.max(parsed.safe_point);
            }
            self.tags.apply(seq, record.tags())?;
            self.applied_epoch = record.epoch();
            self.held_bytes = self.held_bytes.saturating_sub(record.bytes().len());
            seen(&record);
            applied += 1;
        }
        Ok(Progress { applied, more: self.tags.applied() < until })
    }

    /// Drops records from memory beyond the limit, oldest first; never those held back.
    pub fn trim_cache(&mut self) {
        self.store.drop_oldest(self.limits.cache_bytes, self.applied());
    }

    fn hold(&mut self, record: &RecordRef<'_>) -> Result<(), StreamError> {
        let (seq, epoch) = (record.seq(), record.epoch());
        // With nothing applied, the window may begin anywhere up to the opening record.
        let begins = self.end == SeqNum::ZERO && seq <= self.opening;
        if seq != self.end.next() && !begins {
            return Err(StreamError::Gap { expected: self.end.next(), found: seq });
        }
        let fits = if seq < self.opening { epoch < self.epoch } else { epoch == self.epoch };
        if !fits || epoch < self.end_epoch {
            return Err(StreamError::WrongEpoch { seq, found: epoch });
        }
        if (seq == self.opening) != (record.kind() == RecordKind::Open && epoch == self.epoch) {
            return Err(StreamError::NotOpening { seq });
        }
        let bytes = self.held_bytes + record.bytes().len();
        if bytes > self.limits.held_bytes {
            return Err(StreamError::HeldFull { bytes, limit: self.limits.held_bytes });
        }
        self.store.push(record);
        self.held_bytes = bytes;
        self.end = seq;
        self.end_epoch = epoch;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
