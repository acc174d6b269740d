//! The writing side of a log: what was accepted, what is laid out on disk, what is durable.
//!
//! Three ends, each at or behind the one before it. *Accepted*: entries in a queue, in order. *Laid
//! out*: batches with a place on disk, given to the shell to write. *Durable*: the contiguous prefix
//! of writes that the shell has reported complete, in whatever order it reports them.

use std::collections::VecDeque;

use halfmoon_wire::{Epoch, SeqNum, broken};

use crate::batch::{
    BATCH_HEADER_BYTES, BatchInfo, BatchKind, LogId, Place, SegmentId, batch_bytes, encode,
};
use crate::checkpoint::{Checked, Checkpoint};
use crate::index::{Index, Run};
use crate::limits::{
    BATCH_BODY_MAX_BYTES, BLOCK_BYTES, IN_FLIGHT_MAX, QUEUE_MAX_BYTES, WRITE_MAX_BYTES,
};
use crate::recover::Recovered;
use crate::tail::Tail;

/// What the batches of a log hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Log records: checked, indexed, their epochs noted.
    Records,
    /// Entries that only the owner understands, numbered from 1.
    Opaque,
}

/// What a log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// Its name, in every batch.
    pub id: LogId,
    /// Bytes of a segment, a multiple of the block.
    pub segment_bytes: u64,
    /// What its batches hold.
    pub contents: Contents,
    /// Newest records kept in memory, in bytes.
    pub tail_bytes: usize,
}

/// Names an accepted entry; ascending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Ticket(pub u64);

/// The durable prefix of a log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Durable {
    /// Batches up to this number.
    pub number: u64,
    /// Entries up to this one.
    pub ticket: Ticket,
    /// The log's end as of then.
    pub end: SeqNum,
    /// What was trimmed as of then.
    pub trimmed: SeqNum,
}

/// A write for the shell: `len` bytes at `offset` of `segment`. `number` names it when it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// The segment.
    pub segment: SegmentId,
    /// Where, a multiple of the block.
    pub offset: u64,
    /// How much, a multiple of the block.
    pub len: usize,
    /// Number of its last batch.
    pub number: u64,
}

/// A log that is being written.
#[derive(Clone, Debug)]
pub struct Log {
    config: LogConfig,
    accepted: Checkpoint,
    laid: Checkpoint,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    ticket: Ticket,
    cursor: Cursor,
    flight: VecDeque<Flight>,
    durable: Durable,
    index: Index,
    tail: Tail,
    segments: VecDeque<SegmentInfo>,
    laid_last: BatchKind,
}

/// Where the next batch goes. A segment is started when `offset` is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u64,
    pub(crate) number: u64,
    pub(crate) crc: u32,
    pub(crate) life: u64,
}

/// A segment in use: its first batch, and the highest position that was ever in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentInfo {
    pub(crate) id: SegmentId,
    pub(crate) number: u64,
    pub(crate) highest: SeqNum,
}

#[derive(Clone, Debug)]
struct Queued {
    info: BatchInfo,
    checked: Checked,
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    until: Durable,
    done: bool,
}

impl Log {
    /// Goes on where recovery ended. The first thing written is that a new life began; nothing else
    /// is laid out before that is durable.
    #[must_use]
    pub fn resume(config: LogConfig, recovered: Recovered) -> Self {
        let Recovered { checkpoint, cursor, index, segments } = recovered;
        let mut log = Self {
            config,
            accepted: checkpoint.clone(),
            durable: Durable {
                number: cursor.number,
                ticket: Ticket(0),
                end: checkpoint.end,
                trimmed: checkpoint.trimmed,
            },
            laid: checkpoint,
            queue: VecDeque::new(),
            queued_bytes: 0,
            ticket: Ticket(0),
            cursor: Cursor { life: cursor.life + 1, ..cursor },
            flight: VecDeque::with_capacity(IN_FLIGHT_MAX),
            index,
            tail: Tail::new(config.tail_bytes),
            segments,
            laid_last: BatchKind::Open,
        };
        log.push(BatchKind::Open, Epoch(0), SeqNum::ZERO);
        log
    }

    /// What it is.
    #[must_use]
    pub const fn config(&self) -> &LogConfig {
        &self.config
    }

    /// The log as accepted.
    #[must_use]
    pub const fn accepted(&self) -> &Checkpoint {
        &self.accepted
    }

    /// The durable prefix.
    #[must_use]
    pub const fn durable(&self) -> Durable {
        self.durable
    }

    /// The entry accepted last.
    #[must_use]
    pub const fn last_ticket(&self) -> Ticket {
        self.ticket
    }

    /// Bytes accepted and not yet laid out.
    #[must_use]
    pub const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether there is no room for more.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.queued_bytes >= QUEUE_MAX_BYTES
    }

    /// Whether everything accepted is durable.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.flight.is_empty()
    }

    /// Whether the batch written last says only that the rest is durable.
    #[must_use]
    pub fn needs_mark(&self) -> bool {
        self.is_idle() && !matches!(self.laid_last, BatchKind::Open | BatchKind::Mark)
    }

    /// The segment that the next write goes to if the one in use is full: to be made ready early.
    #[must_use]
    pub const fn segment_wanted(&self) -> SegmentId {
        if self.cursor.offset == 0 {
            self.cursor.segment
        } else {
            SegmentId(self.cursor.segment.0 + 1)
        }
    }

    /// The segment to be made ready by now: the one in use is half full, or too full for what is
    /// queued.
    #[must_use]
    pub fn segment_due(&self) -> Option<SegmentId> {
        let left = self.config.segment_bytes.saturating_sub(self.cursor.offset);
        let need = self.queue.front().map_or(0, |front| batch_bytes(front.body.len()));
        let due = self.cursor.offset == 0 || left < self.cursor.offset || left < need as u64;
        due.then(|| self.segment_wanted())
    }

    /// Accepts bytes that follow the end and were checked (or are opaque and end at `checked.last`).
    /// They are split by the caller so that `bytes` fits a batch.
    ///
    /// # Panics
    /// If `bytes` is longer than a batch's body.
    pub fn append(&mut self, epoch: Epoch, checked: Checked, bytes: &[u8]) -> Ticket {
        assert!(bytes.len() <= self.body_max(), "the caller splits what is longer than a batch");
        let first = self.accepted.end.next();
        self.accepted.extend(&checked);
        self.queued_bytes += bytes.len();
        let body_max = self.body_max();
        if let Some(last) = self.queue.back_mut()
            && last.info.kind == BatchKind::Records
            && last.info.epoch == epoch
            && last.body.len() + bytes.len() <= body_max
        {
            last.info.last = checked.last;
            last.checked.last = checked.last;
            last.checked.starts.extend(checked.starts);
            last.body.extend_from_slice(bytes);
            return self.ticket;
        }
        let info = BatchInfo { kind: BatchKind::Records, epoch, first, last: checked.last };
        let mut body = self.tail.buffer();
        body.extend_from_slice(bytes);
        self.enqueue(Queued { info, checked, body })
    }

    /// Longest body of one batch in this log.
    #[must_use]
    pub fn body_max(&self) -> usize {
        let start = batch_bytes(self.accepted.encoded_len().max(self.laid.encoded_len()));
        let segment = usize::try_from(self.config.segment_bytes).unwrap_or(usize::MAX);
        // Epochs may yet begin before the body is laid out; a block holds 256 of them.
        segment.saturating_sub(start + BLOCK_BYTES + BATCH_HEADER_BYTES).min(BATCH_BODY_MAX_BYTES)
    }

    /// Accepts that the log ends at `to`, which is not beyond its end.
    pub fn cut(&mut self, epoch: Epoch, to: SeqNum) -> Ticket {
        self.push(BatchKind::Cut, epoch, to)
    }

    /// Accepts a promise to serve nothing older than `epoch`.
    pub fn promise(&mut self, epoch: Epoch) -> Ticket {
        if broken!(SealNotPersisted) {
            self.accepted.promised = self.accepted.promised.max(epoch);
            return self.ticket;
        }
        self.push(BatchKind::Promise, epoch, SeqNum::ZERO)
    }

    /// Accepts that nothing up to `to` is needed any more.
    pub fn trim(&mut self, to: SeqNum) -> Ticket {
        self.push(BatchKind::Trim, Epoch(0), to)
    }

    /// Accepts a mark: once nothing is under way, it says so on disk, so that damage to what lies
    /// before it is never taken for a torn write.
    pub fn mark(&mut self) -> Ticket {
        self.push(BatchKind::Mark, Epoch(0), SeqNum::ZERO)
    }

    /// Lays out the next write in `out` ([`crate::limits::WRITE_MAX_BYTES`]), if something is
    /// queued, less than [`IN_FLIGHT_MAX`] writes are under way, and its segment is at most `ready`.
    pub fn next_write(&mut self, ready: SegmentId, out: &mut [u8]) -> Option<Write> {
        let opening = self.durable.ticket < Ticket(1) && !self.flight.is_empty();
        if self.flight.len() >= IN_FLIGHT_MAX || opening {
            return None;
        }
        let need = batch_bytes(self.queue.front()?.body.len());
        assert!(out.len() >= WRITE_MAX_BYTES, "a start and the longest batch fit");
        let mut at = 0;
        if self.cursor.offset == 0 || self.cursor.offset + need as u64 > self.config.segment_bytes {
            let segment = self.segment_wanted();
            if segment > ready {
                return None;
            }
            self.cursor.segment = segment;
            self.cursor.offset = 0;
            at = self.start_segment(out);
        }
        let (segment, offset) = (self.cursor.segment, self.cursor.offset - at as u64);
        while let Some(front) = self.queue.front() {
            let need = batch_bytes(front.body.len());
            let fits = at + need <= out.len()
                && self.cursor.offset + need as u64 <= self.config.segment_bytes;
            if !fits {
                break;
            }
            at += self.lay_front(&mut out[at..]);
            if self.laid_ticket() == Ticket(1) {
                break;
            }
        }
        self.flight.push_back(Flight { until: self.laid_until(), done: false });
        Some(Write { segment, offset, len: at, number: self.cursor.number })
    }

    /// The write whose last batch is `number` is durable. Returns whether the durable prefix grew.
    pub fn completed(&mut self, number: u64) -> bool {
        if let Some(flight) = self.flight.iter_mut().find(|flight| flight.until.number == number) {
            flight.done = true;
        }
        let before = self.durable.number;
        while let Some(flight) = self.flight.front().filter(|flight| flight.done) {
            self.durable = flight.until;
            self.flight.pop_front();
        }
        self.durable.number > before
    }

    /// Copies records from memory: whole ones from `from` to `upto`, within `max_bytes` (the first
    /// always fits). `None` when `from` has to be read from disk.
    pub fn read_tail(
        &self,
        from: SeqNum,
        upto: SeqNum,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Option<SeqNum> {
        self.tail.read(from, upto, max_bytes, out)
    }

    /// Where on disk a position lies, if it is laid out.
    #[must_use]
    pub fn find(&self, seq: SeqNum) -> Option<Run> {
        self.index.find(seq)
    }

    /// Takes the oldest segment out of use if nothing in it is needed, durably so.
    pub fn drop_segment(&mut self) -> Option<SegmentId> {
        let oldest = *self.segments.front()?;
        // Promises and epochs of a segment live on in the start of the next, once that is durable.
        let next = *self.segments.get(1)?;
        if oldest.highest > self.durable.trimmed || next.number > self.durable.number {
            return None;
        }
        self.segments.pop_front();
        self.index.forget_before(SegmentId(oldest.id.0 + 1));
        Some(oldest.id)
    }

    fn push(&mut self, kind: BatchKind, epoch: Epoch, last: SeqNum) -> Ticket {
        let info = BatchInfo { kind, epoch, first: SeqNum::ZERO, last };
        self.accepted.apply(&info).expect("a cut is within the log");
        self.enqueue(Queued { info, checked: Checked::default(), body: Vec::new() })
    }

    fn enqueue(&mut self, entry: Queued) -> Ticket {
        self.queue.push_back(entry);
        self.ticket.0 += 1;
        self.ticket
    }

    /// The entry laid out last: entries are queued and laid out in order, one ticket each.
    fn laid_ticket(&self) -> Ticket {
        Ticket(self.ticket.0 - self.queue.len() as u64)
    }

    fn laid_until(&self) -> Durable {
        Durable {
            number: self.cursor.number,
            ticket: self.laid_ticket(),
            end: self.laid.end,
            trimmed: self.laid.trimmed,
        }
    }

    fn start_segment(&mut self, out: &mut [u8]) -> usize {
        let mut body = Vec::new();
        self.laid.encode(&mut body);
        let info = BatchInfo {
            kind: BatchKind::Start,
            epoch: self.laid.promised,
            first: SeqNum::ZERO,
            last: self.laid.end,
        };
        let (id, number) = (self.cursor.segment, self.cursor.number + 1);
        self.segments.push_back(SegmentInfo { id, number, highest: SeqNum::ZERO });
        self.lay(&info, &body, out)
    }

    fn lay_front(&mut self, out: &mut [u8]) -> usize {
        let Some(Queued { info, checked, body }) = self.queue.pop_front() else { return 0 };
        let (segment, offset) = (self.cursor.segment, self.cursor.offset);
        self.laid_last = info.kind;
        let len = self.lay(&info, &body, out);
        if info.kind != BatchKind::Records {
            self.laid.apply(&info).expect("accepted before");
            if info.kind == BatchKind::Cut {
                self.index.cut(info.last);
                self.tail.cut(info.last);
            }
            return len;
        }
        self.queued_bytes -= body.len();
        self.laid.extend(&checked);
        if let Some(current) = self.segments.back_mut() {
            current.highest = current.highest.max(info.last);
        }
        if self.config.contents == Contents::Records {
            let (first, last) = (info.first, info.last);
            self.index.add(Run { first, last, segment, offset, bytes: len as u64 });
        }
        self.tail.add(info.first, info.last, body);
        len
    }

    fn lay(&mut self, info: &BatchInfo, body: &[u8], out: &mut [u8]) -> usize {
        self.cursor.number += 1;
        let place = Place {
            log: self.config.id,
            segment: self.cursor.segment,
            number: self.cursor.number,
            life: self.cursor.life,
            durable: self.durable.number,
            previous: self.cursor.crc,
        };
        self.cursor.crc = encode(&place, info, body, out);
        let len = batch_bytes(body.len());
        self.cursor.offset += len as u64;
        len
    }
}
