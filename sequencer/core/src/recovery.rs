//! The start of an epoch: whose log is *the* log, and the tables that it implies.
//!
//! - Storage nodes are sealed; each answers with the end of its log. A quorum of every member set
//!   that may hold committed records has to answer.
//! - The log whose **last record has the highest epoch** is taken, then the longest: a longer log of
//!   an older epoch holds records that were never committed in the place of ones that were.
//! - Its records make the tables, and nothing else: not what anybody learned beyond it. What a
//!   standby has learned of it, up to where the two agree, need not be read again.
//! - They keep their epochs. The opening record comes after them, and what was in the log before it
//!   is committed together with it.

use std::collections::BTreeMap;

use halfmoon_wire::limits::{HISTORY_MAX, MESSAGE_MAX_BYTES};
use halfmoon_wire::{Epoch, EpochStart, Message, NodeId, Open, Records, SeqNum, broken};

use crate::learner::{LearnError, Learner};
use crate::order::{Order, ReplayError};
use crate::window::Window;

/// Bytes asked for at once when the log is read. A message has some bytes beside the records.
pub const READ_BYTES: usize = MESSAGE_MAX_BYTES - 1024;

/// Where a sealed node's log ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedLog {
    /// Starts of all epochs in it.
    pub history: Vec<EpochStart>,
    /// Its last position; 0 when it is empty.
    pub end: SeqNum,
}

/// Why an answer of a storage node cannot be used. Of [`Self::Deposed`] and [`Self::HistoryFull`]
/// apart, the node's lane is to be closed: when it comes back it is sealed again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Another sequencer has taken over. This one must stop: nothing it does can count.
    #[error("storage has promised to epoch {promised}: another sequencer has taken over")]
    Deposed {
        /// The higher epoch.
        promised: Epoch,
    },
    /// The log has seen as many epochs as may be within its window.
    #[error("the log has {HISTORY_MAX} epochs, the most that it may have before it is trimmed")]
    HistoryFull,
    /// The answer contradicts itself.
    #[error("storage node {node} answered the seal with an impossible log")]
    ImpossibleLog {
        /// The node.
        node: NodeId,
    },
    /// The node did not give what it said it has.
    #[error("storage node {node} has no record {from} to give, although its log ends at {end}")]
    Missing {
        /// The node.
        node: NodeId,
        /// What was asked for.
        from: SeqNum,
        /// The end that it told.
        end: SeqNum,
    },
    /// The node's records are damaged.
    #[error("the log of storage node {node} cannot be read: {source}")]
    Corrupt {
        /// The node.
        node: NodeId,
        /// What is wrong.
        source: halfmoon_wire::DecodeError,
    },
    /// The node's records do not follow each other.
    #[error("the log of storage node {node} is not a log: {source}")]
    NotALog {
        /// The node.
        node: NodeId,
        /// What is wrong.
        source: ReplayError,
    },
    /// Never while the log is read: a window takes records that are held elsewhere.
    #[error("the log of storage node {node} does not fit the window")]
    WindowFull {
        /// The node.
        node: NodeId,
    },
    /// A record is of another epoch than the history says.
    #[error("record {seq} on storage node {node} is of an epoch that its history does not tell")]
    HistoryDiffers {
        /// The node.
        node: NodeId,
        /// The record.
        seq: SeqNum,
    },
}

/// The machine of the start of an epoch.
#[derive(Debug)]
pub struct Recovery {
    epoch: Epoch,
    window_bytes: usize,
    /// What is known of some log already.
    learned: Option<Learner>,
    /// The member sets of which each must have a quorum.
    sets: Vec<Vec<NodeId>>,
    sealed: BTreeMap<NodeId, SealedLog>,
    reading: Option<Reading>,
    last_token: u64,
}

#[derive(Debug)]
struct Reading {
    node: NodeId,
    log: SealedLog,
    learner: Learner,
    /// The token of the request that is under way.
    asked: Option<u64>,
}

/// An epoch that is open: appends may be ordered at once.
#[derive(Debug)]
pub struct Recovered {
    /// The ordering machine, its tables made from the log.
    pub order: Order,
    /// The newest records of the log, and the opening record.
    pub window: Window,
    /// Starts of all epochs in the log, this one's being the last.
    pub history: Vec<EpochStart>,
    /// Position of the opening record.
    pub opening: SeqNum,
    /// The node whose log was taken.
    pub source: NodeId,
}

impl Recovery {
    /// Begins `epoch`. `sets` are the member sets since the last one marked committed, the newest
    /// being the last.
    #[must_use]
    pub fn new(epoch: Epoch, sets: Vec<Vec<NodeId>>, window_bytes: usize) -> Self {
        let (sealed, reading, learned) = (BTreeMap::new(), None, None);
        Self { epoch, window_bytes, learned, sets, sealed, reading, last_token: 0 }
    }

    /// Of what was learned before, what is in the log that is taken need not be read.
    pub fn learned(&mut self, learned: Learner) {
        self.learned = Some(learned);
    }

    /// The storage nodes to be sealed: every one of every set.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.sets.iter().flatten().copied().collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// A node has answered `Seal`.
    pub fn sealed(
        &mut self,
        node: NodeId,
        promised: Epoch,
        log: SealedLog,
    ) -> Result<(), RecoveryError> {
        if promised > self.epoch {
            return Err(RecoveryError::Deposed { promised });
        }
        let last = log.history.last();
        let is_possible = match last {
            None => log.end == SeqNum::ZERO,
            Some(last) => last.epoch < self.epoch && last.first <= log.end,
        };
        if promised < self.epoch || !is_possible {
            return Err(RecoveryError::ImpossibleLog { node });
        }
        // The log that is being read is not judged anew: its quorum has answered.
        self.sealed.insert(node, log);
        self.choose()
    }

    /// The node's lane is down: what it said is void, as it may come back with another log.
    pub fn lost(&mut self, node: NodeId) -> Result<(), RecoveryError> {
        self.sealed.remove(&node);
        if let Some(reading) = self.reading.take_if(|reading| reading.node == node) {
            // What was read of it stays, as far as the next log agrees with it.
            self.learned = Some(reading.learner);
        }
        self.choose()
    }

    /// The next request for records, and to whom, if one is due.
    pub fn next_read(&mut self) -> Option<(NodeId, Message<'static>)> {
        let reading = self.reading.as_mut()?;
        if reading.asked.is_some() || reading.is_complete() {
            return None;
        }
        self.last_token += 1;
        reading.asked = Some(self.last_token);
        let (token, epoch, raw) = (self.last_token, self.epoch, true);
        let from = reading.learner.end().next();
        let max_bytes = u32::try_from(READ_BYTES).unwrap_or(u32::MAX);
        Some((reading.node, Message::ReadLog { token, epoch, raw, from, max_bytes }))
    }

    /// Records of the log, in answer to [`Self::next_read`]. An answer to another request is dropped.
    pub fn chunk(&mut self, node: NodeId, token: u64, records: &[u8]) -> Result<(), RecoveryError> {
        match self.reading.as_mut() {
            Some(reading) if reading.node == node && reading.asked == Some(token) => {
                reading.asked = None;
                reading.take(records)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// How far the log is read: last position read, last position there is. `None` before a quorum
    /// is sealed.
    #[must_use]
    pub fn progress(&self) -> Option<(SeqNum, SeqNum)> {
        self.reading.as_ref().map(|reading| (reading.learner.end(), reading.log.end))
    }

    /// The nodes that are sealed.
    pub fn sealed_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.sealed.keys().copied()
    }

    /// Writes the opening record, once the whole log is read; `None` before that.
    pub fn open(&mut self, now_ns: u64) -> Option<Recovered> {
        let members = self.sets.last()?.clone();
        let reading = self.reading.take_if(|reading| reading.is_complete())?;
        let (source, learner) = (reading.node, reading.learner);
        let (mut order, mut window, mut history) = learner.begin(self.epoch);
        let opening = order.open(now_ns, &Open { members }, &mut window);
        history.push(EpochStart { epoch: self.epoch, first: opening });
        Some(Recovered { order, window, history, opening, source })
    }

    fn choose(&mut self) -> Result<(), RecoveryError> {
        let has_quorum = |set: &Vec<NodeId>| {
            let answered = set.iter().filter(|node| self.sealed.contains_key(node)).count();
            answered > set.len() / 2 || (answered > 0 && broken!(RecoveryWithoutQuorum))
        };
        let last = self.sets.len().saturating_sub(1);
        let asked = &self.sets[if broken!(MembersSwappedAtOnce) { last } else { 0 }..];
        if self.reading.is_some() || asked.is_empty() || !asked.iter().all(has_quorum) {
            return Ok(());
        }
        let rank = |log: &SealedLog| {
            let last = log.history.last().filter(|_| !broken!(LongestLog));
            (last.map(|start| start.epoch), log.end)
        };
        let Some((node, log)) = self.sealed.iter().max_by_key(|(_, log)| rank(log)) else {
            return Ok(());
        };
        if log.history.len() >= HISTORY_MAX {
            return Err(RecoveryError::HistoryFull);
        }
        let (node, log) = (*node, log.clone());
        let known = self.learned.take();
        let mut learner = known.unwrap_or_else(|| Learner::new(self.window_bytes));
        learner.agree(&log.history, log.end);
        // What does not make tables is read again.
        if learner.know_all().is_err() {
            learner = Learner::new(self.window_bytes);
            learner.agree(&log.history, log.end);
        }
        self.reading = Some(Reading { node, log, learner, asked: None });
        Ok(())
    }
}

impl Reading {
    fn is_complete(&self) -> bool {
        self.learner.end() >= self.log.end
    }

    fn take(&mut self, records: &[u8]) -> Result<(), RecoveryError> {
        let (node, from, end) = (self.node, self.learner.end().next(), self.log.end);
        if records.is_empty() {
            return Err(RecoveryError::Missing { node, from, end });
        }
        for record in Records::new(records) {
            let record = record.map_err(|source| RecoveryError::Corrupt { node, source })?;
            // What lies behind the end was not there when the promise was given.
            if record.seq() > self.log.end {
                break;
            }
            if record.seq() <= self.learner.end() {
                continue;
            }
            self.learner.absorb(&record).map_err(|error| RecoveryError::of(node, error))?;
        }
        Ok(())
    }
}

impl RecoveryError {
    fn of(node: NodeId, error: LearnError) -> Self {
        match error {
            LearnError::Corrupt(source) => Self::Corrupt { node, source },
            LearnError::NotALog(source) => Self::NotALog { node, source },
            LearnError::HistoryDiffers { seq } => Self::HistoryDiffers { node, seq },
            LearnError::Full => Self::WindowFull { node },
        }
    }
}

#[cfg(test)]
mod tests;
