//! Reading a log back: where it ends, and whether what is there is what was written.
//!
//! A torn tail and a damaged middle look alike at the first bad batch: it is not valid, and valid
//! ones may follow it (several writes are under way at once, and complete in any order). What tells
//! them apart is what later batches *say*: each carries the number up to which batches were durable
//! when it was laid out. A later batch that says "the bad one was durable" proves damage.

use std::collections::VecDeque;

use halfmoon_wire::SeqNum;

use crate::batch::{Batch, BatchKind, SegmentId};
use crate::checkpoint::Checkpoint;
use crate::index::{Index, Run};
use crate::limits::BLOCK_BYTES;
use crate::log::{Contents, Cursor, LogConfig, SegmentInfo};

/// What a log was found to be: given to [`crate::Log::resume`].
#[derive(Clone, Debug)]
pub struct Recovered {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) cursor: Cursor,
    pub(crate) index: Index,
    pub(crate) segments: VecDeque<SegmentInfo>,
}

/// The log's files do not hold what was flushed to them. Nothing is repaired here: the node must not
/// start, because what it lacks may have been acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "segment {} is damaged at byte {offset}: {what}. This node's log lost what it had flushed; it \
     does not start, because peers may count on it. Check the disk; then start a node under a new \
     number, on an empty directory, and run `halfmoon node replace OLD NEW` with the two numbers: it \
     copies log and state from the others",
    segment.0
)]
pub struct CorruptError {
    /// The segment.
    pub segment: SegmentId,
    /// Where in it.
    pub offset: u64,
    /// What was found.
    pub what: String,
}

/// A scan over a log's segments, oldest first.
#[derive(Clone, Debug)]
pub struct Scan {
    config: LogConfig,
    checkpoint: Checkpoint,
    cursor: Cursor,
    index: Index,
    segments: VecDeque<SegmentInfo>,
    /// Position before the oldest segment's first.
    base: SeqNum,
    /// The chain is broken: only evidence of damage is looked for.
    ended: bool,
}

impl Recovered {
    /// A log without a past.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            checkpoint: Checkpoint::default(),
            cursor: Cursor { segment: SegmentId(1), offset: 0, number: 0, crc: 0, life: 0 },
            index: Index::default(),
            segments: VecDeque::new(),
        }
    }

    /// What the log amounts to.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Where its records lie, in order; what was cut is not among them.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = Run> + '_ {
        self.index.runs()
    }

    /// The segment that is written next; files of later ones hold nothing.
    #[must_use]
    pub const fn segment(&self) -> SegmentId {
        self.cursor.segment
    }

    /// Where in it.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.cursor.offset
    }

    /// Whether nothing was ever written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cursor.number == 0
    }
}

impl Scan {
    /// A scan that has seen nothing.
    #[must_use]
    pub fn new(config: LogConfig) -> Self {
        let Recovered { checkpoint, cursor, index, segments } = Recovered::empty();
        Self { config, checkpoint, cursor, index, segments, base: SeqNum::ZERO, ended: false }
    }

    /// Takes in a segment, whole as it was read. Segments come in ascending order. `visit` sees
    /// every batch that belongs to the log, in order.
    pub fn segment(
        &mut self,
        id: SegmentId,
        bytes: &[u8],
        mut visit: impl FnMut(&Batch<'_>),
    ) -> Result<(), CorruptError> {
        if !self.ended {
            self.walk(id, bytes, &mut visit)?;
        }
        let seen = if self.cursor.segment == id { self.cursor.offset } else { 0 };
        let rest = usize::try_from(seen).ok().and_then(|seen| bytes.get(seen..));
        self.look_for_evidence(id, rest.unwrap_or_default())
    }

    /// Number of the last batch that belongs to the log, of those seen so far.
    #[must_use]
    pub const fn reached(&self) -> u64 {
        self.cursor.number
    }

    /// The result.
    pub fn finish(self) -> Result<Recovered, CorruptError> {
        let oldest = self.segments.front().map_or(self.cursor.segment, |oldest| oldest.id);
        if self.base > self.checkpoint.trimmed {
            return Err(CorruptError {
                segment: oldest,
                offset: 0,
                what: format!(
                    "the segments before it are missing, with positions up to {}; only those up \
                     to {} were given up",
                    self.base, self.checkpoint.trimmed
                ),
            });
        }
        let Self { checkpoint, cursor, index, segments, .. } = self;
        Ok(Recovered { checkpoint, cursor, index, segments })
    }

    fn walk(
        &mut self,
        id: SegmentId,
        bytes: &[u8],
        visit: &mut impl FnMut(&Batch<'_>),
    ) -> Result<(), CorruptError> {
        let Some(start) = self.start_of(id, bytes)? else {
            self.ended = true;
            return Ok(());
        };
        self.cursor.segment = id;
        self.cursor.offset = 0;
        let number = start.place.number;
        self.segments.push_back(SegmentInfo { id, number, highest: SeqNum::ZERO });
        self.pass(&start);
        let mut at = start.disk_bytes();
        while let Some(batch) = bytes.get(at..).and_then(|rest| self.next_of(id, rest)) {
            self.take(&batch, at as u64)?;
            visit(&batch);
            self.pass(&batch);
            at += batch.disk_bytes();
        }
        Ok(())
    }

    /// The start of a segment, if it continues the chain (or begins it).
    fn start_of<'a>(
        &mut self,
        id: SegmentId,
        bytes: &'a [u8],
    ) -> Result<Option<Batch<'a>>, CorruptError> {
        let corrupt = |what: &str| CorruptError { segment: id, offset: 0, what: what.to_owned() };
        let start = Batch::parse(self.config.id, id, bytes)
            .filter(|batch| batch.info.kind == BatchKind::Start);
        if !self.segments.is_empty() {
            let Some(start) = start.filter(|start| self.chains(start)) else { return Ok(None) };
            return match Checkpoint::parse(start.body) {
                Some(found) if found == self.checkpoint => Ok(Some(start)),
                Some(_) | None => Err(corrupt("its checkpoint contradicts the log before it")),
            };
        }
        let Some(start) = start else {
            // Only the very first segment may be without a start: its first write was torn.
            return if id == SegmentId(1) {
                Ok(None)
            } else {
                Err(corrupt("the oldest segment has no valid start"))
            };
        };
        if id == SegmentId(1) && !self.chains(&start) {
            return Err(corrupt("the first segment's start does not begin the chain"));
        }
        self.checkpoint = Checkpoint::parse(start.body)
            .ok_or_else(|| corrupt("its checkpoint does not parse"))?;
        self.base = self.checkpoint.end;
        Ok(Some(start))
    }

    fn next_of<'a>(&self, id: SegmentId, bytes: &'a [u8]) -> Option<Batch<'a>> {
        Batch::parse(self.config.id, id, bytes)
            .filter(|batch| self.chains(batch) && batch.info.kind != BatchKind::Start)
    }

    const fn chains(&self, batch: &Batch<'_>) -> bool {
        batch.place.number == self.cursor.number + 1
            && batch.place.previous == self.cursor.crc
            && batch.place.life >= self.cursor.life
    }

    const fn pass(&mut self, batch: &Batch<'_>) {
        self.cursor.number = batch.place.number;
        self.cursor.crc = batch.crc;
        self.cursor.life = batch.place.life;
        self.cursor.offset += batch.disk_bytes() as u64;
    }

    fn take(&mut self, batch: &Batch<'_>, offset: u64) -> Result<(), CorruptError> {
        let segment = self.cursor.segment;
        let corrupt = |what: String| CorruptError { segment, offset, what };
        if batch.info.kind != BatchKind::Records {
            self.checkpoint.apply(&batch.info).map_err(|error| corrupt(error.to_string()))?;
            if batch.info.kind == BatchKind::Cut {
                self.index.cut(batch.info.last);
            }
            return Ok(());
        }
        let (first, last) = (batch.info.first, batch.info.last);
        if first != self.checkpoint.end.next() || last < first {
            let end = self.checkpoint.end;
            return Err(corrupt(format!("a batch of {first}..={last} after position {end}")));
        }
        match self.config.contents {
            Contents::Opaque => self.checkpoint.end = last,
            Contents::Records => {
                let checked = self
                    .checkpoint
                    .check(batch.body)
                    .map_err(|error| corrupt(error.to_string()))?;
                if checked.last != last {
                    return Err(corrupt(format!("a batch without its last record, {last}")));
                }
                self.checkpoint.extend(&checked);
                let bytes = batch.disk_bytes() as u64;
                self.index.add(Run { first, last, segment, offset, bytes });
            }
        }
        if let Some(current) = self.segments.back_mut() {
            current.highest = current.highest.max(last);
        }
        Ok(())
    }

    /// Looks through what the chain does not reach for a batch that proves that it should.
    fn look_for_evidence(&self, id: SegmentId, bytes: &[u8]) -> Result<(), CorruptError> {
        let missing = self.cursor.number + 1;
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(batch) = Batch::parse(self.config.id, id, rest) else {
                at += BLOCK_BYTES;
                continue;
            };
            if batch.place.durable >= missing {
                return Err(CorruptError {
                    segment: self.cursor.segment,
                    offset: self.cursor.offset,
                    what: format!(
                        "batch {missing} does not read back, but batch {} in segment {} says \
                         that it was flushed",
                        batch.place.number, id.0
                    ),
                });
            }
            at += batch.disk_bytes();
        }
        Ok(())
    }
}
