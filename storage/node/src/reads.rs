//! Answers to `ReadLog`: from memory at once, from disk a few at a time.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use halfmoon_log::limits::BLOCK_BYTES;
use halfmoon_log::{ReadPlan, Replica, Run, extract};
use halfmoon_reactor::AlignedBuffer;
use halfmoon_transport::LaneId;
use halfmoon_wire::limits::MESSAGE_MAX_BYTES;
use halfmoon_wire::{Epoch, Message, SeqNum};

use crate::NodeError;
use crate::disk::Disk;
use crate::journal::{Journal, TOKEN_SHIFT};
use crate::lanes::Lanes;
use crate::limits::{MESSAGE_HEAD_BYTES, READS_MAX, READS_WAITING_MAX};
use crate::metrics::{Metrics, add};

/// A question of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) lane: LaneId,
    pub(crate) token: u64,
    pub(crate) epoch: Epoch,
    pub(crate) raw: bool,
    pub(crate) from: SeqNum,
    pub(crate) max_bytes: u32,
}

/// Questions that wait for the disk.
#[derive(Default)]
pub(crate) struct Reads {
    waiting: VecDeque<Question>,
    active: BTreeMap<u64, (Question, Run)>,
    last: u64,
    spare: Vec<AlignedBuffer>,
}

/// Marks completions of these reads.
pub(crate) const READ: u64 = 2;

impl Reads {
    /// Answers from memory, or lets the question wait. Returns false when too many wait.
    pub(crate) fn ask(
        &mut self,
        question: Question,
        replica: &Replica,
        lanes: &mut Lanes,
        metrics: &Metrics,
    ) -> bool {
        let mut records = Vec::new();
        let (end, plan) = replica.read(
            (question.epoch, question.raw),
            question.from,
            question.limit(),
            &mut records,
        );
        match plan {
            ReadPlan::Refused => question.refuse(replica, lanes),
            ReadPlan::Ready => {
                add(&metrics.log_reads_memory, 1);
                question.answer(end, &records, lanes);
            }
            ReadPlan::Disk(_) if self.waiting.len() >= READS_WAITING_MAX => return false,
            ReadPlan::Disk(_) => self.waiting.push_back(question),
        }
        true
    }

    /// Starts reads, as many as may be under way.
    pub(crate) fn pump<D: Disk>(
        &mut self,
        replica: &Replica,
        journal: &Journal<D::File>,
        disk: &mut D,
        lanes: &mut Lanes,
    ) {
        while self.active.len() < READS_MAX
            && let Some(question) = self.waiting.pop_front()
        {
            let run = replica
                .readable(question.epoch, question.raw)
                .and_then(|_| replica.log().find(question.from));
            let Some((run, file)) = run.and_then(|run| Some((run, journal.file(&run)?))) else {
                question.refuse(replica, lanes);
                continue;
            };
            let len = usize::try_from(run.bytes).unwrap_or(usize::MAX);
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.grow(len.max(BLOCK_BYTES));
            self.last += 1;
            disk.read(&file, run.offset, buffer, len, READ << TOKEN_SHIFT | self.last);
            self.active.insert(self.last, (question, run));
        }
    }

    /// A read has ended. What does not read back stops the node: it was flushed.
    pub(crate) fn completed(
        &mut self,
        id: u64,
        result: &io::Result<usize>,
        buffer: AlignedBuffer,
        replica: &Replica,
        lanes: &mut Lanes,
        metrics: &Metrics,
    ) -> Result<(), NodeError> {
        let Some((question, run)) = self.active.remove(&id) else { return Ok(()) };
        let damaged =
            |what: String| NodeError::Damaged { segment: run.segment, offset: run.offset, what };
        let read = match result {
            Ok(read) => *read,
            Err(error) => return Err(damaged(error.to_string())),
        };
        add(&metrics.log_reads_disk, 1);
        // The log may have been cut, or have passed to another epoch, since the read began.
        let end = replica.readable(question.epoch, question.raw);
        let now = replica.log().find(question.from);
        let (Some(end), Some(now)) = (end, now) else {
            question.refuse(replica, lanes);
            self.spare.push(buffer);
            return Ok(());
        };
        if (now.segment, now.offset) != (run.segment, run.offset) {
            question.refuse(replica, lanes);
            self.spare.push(buffer);
            return Ok(());
        }
        let run = Run { last: run.last.min(now.last).min(end), ..run };
        let bytes = buffer.bytes().get(..read).unwrap_or_default();
        let mut records = Vec::new();
        let id = replica.log().config().id;
        extract(id, &run, bytes, question.from, question.limit(), &mut records)
            .ok_or_else(|| damaged("its batches are not what was written".to_owned()))?;
        question.answer(end, &records, lanes);
        self.spare.push(buffer);
        Ok(())
    }
}

impl Question {
    fn limit(&self) -> usize {
        let asked = usize::try_from(self.max_bytes).unwrap_or(usize::MAX);
        asked.min(MESSAGE_MAX_BYTES - MESSAGE_HEAD_BYTES)
    }

    fn answer(&self, end: SeqNum, records: &[u8], lanes: &mut Lanes) {
        let Self { token, epoch, from, .. } = *self;
        lanes.send(self.lane, &Message::LogChunk { token, epoch, first: from, end, records });
    }

    /// The log is not of the epoch asked for: the answer names the one that it is of, or none.
    fn refuse(&self, replica: &Replica, lanes: &mut Lanes) {
        let of = replica.epoch().filter(|of| *of != self.epoch).unwrap_or_default();
        let (token, first) = (self.token, self.from);
        let end = SeqNum::ZERO;
        lanes.send(self.lane, &Message::LogChunk { token, epoch: of, first, end, records: &[] });
    }
}
