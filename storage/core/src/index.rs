//! Where records lie on disk: one entry per run of batches, not per record.

use std::collections::VecDeque;

use halfmoon_wire::{Records, SeqNum};

use crate::batch::{Batch, BatchKind, LogId, SegmentId};
use crate::limits::{BLOCK_BYTES, RUN_MAX_BYTES};

/// Batches that lie back to back and hold records back to back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First position.
    pub first: SeqNum,
    /// Last position that counts; what the batches hold beyond it was cut.
    pub last: SeqNum,
    /// The segment.
    pub segment: SegmentId,
    /// Where the first batch begins.
    pub offset: u64,
    /// Bytes of all batches.
    pub bytes: u64,
}

/// The sparse index of a log.
#[derive(Clone, Default, Debug)]
pub struct Index {
    runs: VecDeque<Run>,
    /// The last run may not grow: a cut went through it or after it.
    closed: bool,
}

impl Index {
    /// The run that holds a position.
    #[must_use]
    pub fn find(&self, seq: SeqNum) -> Option<Run> {
        let index = self.runs.partition_point(|run| run.last < seq);
        self.runs.get(index).copied().filter(|run| run.first <= seq)
    }

    /// All runs, in order.
    pub(crate) fn runs(&self) -> impl ExactSizeIterator<Item = Run> + '_ {
        self.runs.iter().copied()
    }

    /// First position that is here.
    #[must_use]
    pub fn first(&self) -> Option<SeqNum> {
        self.runs.front().map(|run| run.first)
    }

    pub(crate) fn add(&mut self, run: Run) {
        if !self.closed
            && let Some(last) = self.runs.back_mut()
            && last.segment == run.segment
            && last.offset + last.bytes == run.offset
            && last.last.next() == run.first
            && last.bytes + run.bytes <= RUN_MAX_BYTES
        {
            last.last = run.last;
            last.bytes += run.bytes;
            return;
        }
        self.closed = false;
        self.runs.push_back(run);
    }

    pub(crate) fn cut(&mut self, to: SeqNum) {
        while self.runs.back().is_some_and(|run| run.first > to) {
            self.runs.pop_back();
        }
        if let Some(run) = self.runs.back_mut() {
            run.last = run.last.min(to);
        }
        self.closed = true;
    }

    /// Forgets what lies in segments before this one.
    pub(crate) fn forget_before(&mut self, segment: SegmentId) {
        while self.runs.front().is_some_and(|run| run.segment < segment) {
            self.runs.pop_front();
        }
    }
}

/// Appends to `out` the records from `from` on, as long as there is room for whole ones within
/// `max_bytes` (the first always fits), from the bytes of a run as they were read. Returns the last
/// position appended, or `None` if the bytes are not what the index says: a damaged disk.
#[must_use]
pub fn extract(
    log: LogId,
    run: &Run,
    mut bytes: &[u8],
    from: SeqNum,
    max_bytes: usize,
    out: &mut Vec<u8>,
) -> Option<SeqNum> {
    let (mut next, mut taken) = (run.first, None);
    while next <= run.last {
        let batch = Batch::parse(log, run.segment, bytes)?;
        if batch.info.kind != BatchKind::Records || batch.info.first != next {
            return None;
        }
        for record in Records::new(batch.body) {
            let record = record.ok()?;
            if record.seq() > run.last {
                break;
            }
            if record.seq() >= from {
                if taken.is_some() && out.len() + record.bytes().len() > max_bytes {
                    return taken;
                }
                out.extend_from_slice(record.bytes());
                taken = Some(record.seq());
            }
        }
        next = batch.info.last.next();
        bytes = bytes.get(batch.disk_bytes()..).unwrap_or_default();
    }
    debug_assert!(run.offset.is_multiple_of(BLOCK_BYTES as u64), "batches are aligned");
    taken
}
