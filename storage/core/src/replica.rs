//! Which epoch may do what to a node's log: the rules Seal and Watermark, over a [`Log`].
//!
//! - S1. Once an epoch is promised, nothing of an older one is accepted or published. What was
//!   accepted before lies before the promise in the log, and the answer to the seal waits for both.
//! - W1. A watermark of epoch e is published only after the log was compared with e's start, cut
//!   where it differs, and the cut is durable.
//!
//! The shell hands in messages and completed writes, and carries out [`Effect`]s in order.

use std::collections::VecDeque;

use halfmoon_wire::{Epoch, EpochStart, Records, SeqNum, agreement, broken};

use crate::checkpoint::FollowError;
use crate::effect::{Effect, ReadPlan, StreamError, StreamOutcome, WelcomeInfo};
use crate::limits::QUEUE_MAX_BYTES;
use crate::log::{Log, Ticket, Write};
use crate::{Checkpoint, SegmentId};

/// When a record counts as held by this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaConfig {
    /// Once it is flushed. Survives loss of power everywhere.
    Flush,
    /// Once it is in memory; flushed behind. Loses what a quorum of nodes loses together.
    MemoryQuorum,
}

/// A node's log and whose orders it takes.
#[derive(Clone, Debug)]
pub struct Replica {
    config: ReplicaConfig,
    log: Log,
    /// The newest promise made in this life.
    promise: Ticket,
    reign: Option<Reign>,
    seals: Vec<Seal>,
    effects: VecDeque<Effect>,
}

#[derive(Clone, Debug)]
struct Reign {
    epoch: Epoch,
    history: Vec<EpochStart>,
    window_start: SeqNum,
    /// The log is the epoch's once this is durable.
    compared: Ticket,
    published: Option<SeqNum>,
    source: Source,
}

/// Where the next records come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// The stream, which was asked for and has not come yet.
    Awaited,
    /// The stream.
    Stream,
    /// A peer.
    Peer,
    /// Nowhere: no room. Asked for again when there is.
    Paused,
}

#[derive(Clone, Copy, Debug)]
struct Seal {
    asker: u64,
    ticket: Ticket,
}

impl Replica {
    /// Over a log.
    #[must_use]
    pub const fn new(config: ReplicaConfig, log: Log) -> Self {
        Self {
            config,
            log,
            promise: Ticket(0),
            reign: None,
            seals: Vec::new(),
            effects: VecDeque::new(),
        }
    }

    /// The log.
    #[must_use]
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// The log, for trimming, marking and dropping segments.
    pub const fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    /// The next thing to do, to be asked until there is nothing.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The epoch whose sequencer is followed.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.reign.as_ref().map(|reign| reign.epoch)
    }

    /// A seal. The answer comes as an effect.
    pub fn seal(&mut self, asker: u64, epoch: Epoch) {
        let promised = self.log.accepted().promised;
        if epoch < promised {
            let end = self.log.durable().end;
            let history = history_until(self.log.accepted(), end);
            self.effects.push_back(Effect::Sealed { asker, promised, history, end });
            return;
        }
        if epoch > promised {
            self.promise_to(epoch);
        }
        self.seals.retain(|seal| seal.asker != asker);
        self.seals.push(Seal { asker, ticket: self.log.last_ticket() });
        self.answer_seals();
    }

    /// Whoever asked is gone.
    pub fn forget(&mut self, asker: u64) {
        self.seals.retain(|seal| seal.asker != asker);
    }

    /// A sequencer opened its epoch, or goes on with it over a new lane.
    pub fn welcome(&mut self, info: WelcomeInfo<'_>) -> Result<(), StreamError> {
        let WelcomeInfo { epoch, history, window_start, tail } = info;
        if history.last().is_none_or(|start| start.epoch != epoch) {
            return Err(StreamError::Welcome { epoch });
        }
        let accepted = self.log.accepted();
        if epoch < accepted.promised {
            return Ok(());
        }
        let agreed = if broken!(OwnLengthAfterSeal) {
            accepted.end.min(tail)
        } else {
            agreement((&accepted.history, accepted.end), (history, tail))
        };
        if agreed < accepted.trimmed {
            return Err(StreamError::Trimmed { epoch, agreed });
        }
        if epoch > accepted.promised {
            self.promise_to(epoch);
        }
        let known = self.reign.take().filter(|reign| reign.epoch == epoch);
        let mut compared = known.map_or(self.promise, |reign| reign.compared);
        if agreed < self.log.accepted().end {
            compared = self.log.cut(epoch, agreed);
        }
        self.reign = Some(Reign {
            epoch,
            history: history.to_vec(),
            window_start,
            compared,
            published: None,
            source: Source::Paused,
        });
        self.ask();
        self.publish();
        Ok(())
    }

    /// Records of an epoch's stream.
    pub fn stream(
        &mut self,
        epoch: Epoch,
        first: SeqNum,
        records: &[u8],
    ) -> Result<StreamOutcome, StreamError> {
        let next = self.log.accepted().end.next();
        if broken!(FlushAfterSeal) && self.log.accepted().promised > epoch {
            return Ok(StreamOutcome::Ignored);
        }
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.epoch == epoch) else {
            return Ok(StreamOutcome::Ignored);
        };
        match (reign.source, first <= next) {
            (Source::Peer | Source::Paused, _) | (Source::Awaited, false) => {
                Ok(StreamOutcome::Ignored)
            }
            (Source::Stream, false) => {
                self.ask();
                Ok(StreamOutcome::Ignored)
            }
            (Source::Stream | Source::Awaited, true) => {
                reign.source = Source::Stream;
                self.take(records)
            }
        }
    }

    /// Records that a peer sent in answer to a [`Effect::Fetch`]. Without progress the shell asks
    /// another peer, by [`Self::ask`].
    pub fn fetched(
        &mut self,
        epoch: Epoch,
        first: SeqNum,
        records: &[u8],
    ) -> Result<StreamOutcome, StreamError> {
        let next = self.log.accepted().end.next();
        let waiting = self
            .reign
            .as_ref()
            .is_some_and(|reign| reign.epoch == epoch && reign.source == Source::Peer);
        if !waiting || first > next {
            return Ok(StreamOutcome::Ignored);
        }
        let outcome = self.take(records)?;
        let progress = self.log.accepted().end >= next;
        if outcome == StreamOutcome::Taken && progress {
            self.ask();
        }
        Ok(if progress { outcome } else { StreamOutcome::Ignored })
    }

    /// Asks whoever has it for what comes next.
    pub fn ask(&mut self) {
        let full = self.log.is_full();
        let from = self.log.accepted().end.next();
        let Some(reign) = self.reign.as_mut() else { return };
        let epoch = reign.epoch;
        if full {
            reign.source = Source::Paused;
        } else if from < reign.window_start {
            reign.source = Source::Peer;
            self.effects.push_back(Effect::Fetch { epoch, from });
        } else {
            reign.source = Source::Awaited;
            self.effects.push_back(Effect::Follow { epoch, from });
        }
    }

    /// Lays out the next write; see [`Log::next_write`].
    pub fn next_write(&mut self, ready: SegmentId, out: &mut [u8]) -> Option<Write> {
        let write = self.log.next_write(ready, out)?;
        let paused = self.reign.as_ref().is_some_and(|reign| reign.source == Source::Paused);
        if paused && self.log.queued_bytes() < QUEUE_MAX_BYTES / 2 {
            self.ask();
        }
        Some(write)
    }

    /// A write is durable.
    pub fn completed(&mut self, number: u64) {
        if self.log.completed(number) {
            self.answer_seals();
            self.publish();
        }
    }

    /// The highest epoch promised, and whether that promise survives a crash.
    #[must_use]
    pub const fn promised(&self) -> (Epoch, bool) {
        (self.log.accepted().promised, self.log.durable().ticket.0 >= self.promise.0)
    }

    /// The watermark to publish, and its epoch, if there is one.
    #[must_use]
    pub fn watermark(&self) -> Option<(Epoch, SeqNum)> {
        let durable = self.log.durable();
        let reign = self.reign.as_ref().filter(|reign| durable.ticket >= reign.compared)?;
        let end = match self.config {
            ReplicaConfig::Flush if !broken!(WatermarkBeforeFlush) => durable.end,
            ReplicaConfig::Flush | ReplicaConfig::MemoryQuorum => self.log.accepted().end,
        };
        Some((reign.epoch, end))
    }

    /// How to answer a read: up to which durable position, and from where. Records that are in
    /// memory are appended to `out`.
    pub fn read(
        &self,
        (epoch, raw): (Epoch, bool),
        from: SeqNum,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> (SeqNum, ReadPlan) {
        let Some(end) = self.readable(epoch, raw) else {
            return (SeqNum::ZERO, ReadPlan::Refused);
        };
        if from > end || self.log.read_tail(from, end, max_bytes, out).is_some() {
            return (end, ReadPlan::Ready);
        }
        (end, self.log.find(from).map_or(ReadPlan::Ready, ReadPlan::Disk))
    }

    /// The last position that may be read by someone who names this epoch.
    #[must_use]
    pub fn readable(&self, epoch: Epoch, raw: bool) -> Option<SeqNum> {
        let durable = self.log.durable();
        let ready = if raw {
            let compared = self.reign.as_ref().is_some_and(|reign| reign.epoch == epoch);
            self.log.accepted().promised == epoch && !compared && durable.ticket >= self.promise
        } else {
            self.watermark().is_some_and(|(of, _)| of == epoch)
        };
        ready.then_some(durable.end)
    }

    fn promise_to(&mut self, epoch: Epoch) {
        if !broken!(FlushAfterSeal) && !broken!(OldEpochAccepted) {
            self.reign = None;
        }
        self.promise = self.log.promise(epoch);
    }

    fn take(&mut self, records: &[u8]) -> Result<StreamOutcome, StreamError> {
        let Some(reign) = &mut self.reign else { return Ok(StreamOutcome::Ignored) };
        if self.log.is_full() {
            reign.source = Source::Paused;
            return Ok(StreamOutcome::Full);
        }
        let accepted = self.log.accepted();
        let records = beyond(records, accepted.end)?;
        let checked = accepted.check(records)?;
        let known = |start: &&EpochStart| start.first > accepted.end && start.first <= checked.last;
        if !reign.history.iter().filter(known).eq(&checked.starts) {
            return Err(StreamError::History { epoch: reign.epoch, last: checked.last });
        }
        if records.is_empty() {
            return Ok(StreamOutcome::Taken);
        }
        let epoch = reign.epoch;
        if records.len() <= self.log.body_max() {
            self.log.append(epoch, checked, records);
        } else {
            self.append_in_pieces(epoch, records)?;
        }
        self.publish_accepted();
        Ok(StreamOutcome::Taken)
    }

    fn append_in_pieces(&mut self, epoch: Epoch, records: &[u8]) -> Result<(), StreamError> {
        let limit = self.log.body_max();
        let (mut start, mut end) = (0, 0);
        let mut pieces = Vec::new();
        for record in Records::new(records) {
            let len = record.map_err(FollowError::Record)?.bytes().len();
            if len > limit {
                return Err(StreamError::Long { len });
            }
            if end + len - start > limit {
                pieces.push(&records[start..end]);
                start = end;
            }
            end += len;
        }
        pieces.push(&records[start..end]);
        for piece in pieces {
            let checked = self.log.accepted().check(piece)?;
            self.log.append(epoch, checked, piece);
        }
        Ok(())
    }

    fn answer_seals(&mut self) {
        let durable = self.log.durable();
        let accepted = self.log.accepted();
        let effects = &mut self.effects;
        self.seals.retain(|seal| {
            let wait = seal.ticket > durable.ticket && !broken!(FlushAfterSeal);
            if !wait {
                effects.push_back(Effect::Sealed {
                    asker: seal.asker,
                    promised: accepted.promised,
                    history: history_until(accepted, durable.end),
                    end: durable.end,
                });
            }
            wait
        });
    }

    fn publish_accepted(&mut self) {
        if self.config == ReplicaConfig::MemoryQuorum {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let Some((epoch, seq)) = self.watermark() else { return };
        let Some(reign) = &mut self.reign else { return };
        if reign.published < Some(seq) {
            reign.published = Some(seq);
            self.effects.push_back(Effect::Watermark { epoch, seq });
        }
    }
}

fn history_until(log: &Checkpoint, end: SeqNum) -> Vec<EpochStart> {
    log.history.iter().filter(|start| start.first <= end).copied().collect()
}

/// The records after `end`.
fn beyond(records: &[u8], end: SeqNum) -> Result<&[u8], StreamError> {
    let mut skip = 0;
    for record in Records::new(records) {
        let record = record.map_err(FollowError::Record)?;
        if record.seq() > end {
            break;
        }
        skip += record.bytes().len();
    }
    Ok(&records[skip..])
}
