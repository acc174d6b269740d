//! The start of an epoch: whose log is *the* log, and the tables that it implies.
//!
//! - Storage nodes are sealed; each answers with the end of its log. A quorum of every member set
//!   that may hold committed records has to answer.
//! - The log whose **last record has the highest epoch** is taken, then the longest: a longer log of
//!   an older epoch holds records that were never committed in the place of ones that were.
//! - Its records are read, and nothing else makes the tables: not what anybody learned beyond it.
//! - They keep their epochs. The opening record comes after them, and what was in the log before it
//!   is committed together with it.

use std::collections::BTreeMap;

use halfmoon_wire::limits::{HISTORY_MAX, MESSAGE_MAX_BYTES};
use halfmoon_wire::{Epoch, EpochStart, Message, NodeId, Open, Records, SeqNum};

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
    order: Order,
    window: Window,
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
        let (sealed, reading) = (BTreeMap::new(), None);
        Self { epoch, window_bytes, sets, sealed, reading, last_token: 0 }
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
        if self.reading.as_ref().is_some_and(|reading| reading.node == node) {
            self.reading = None;
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
        let from = reading.order.tail().next();
        let max_bytes = u32::try_from(READ_BYTES).unwrap_or(u32::MAX);
        Some((reading.node, Message::ReadLog { token, epoch, raw, from, max_bytes }))
    }

    /// Records of the log, in answer to [`Self::next_read`]. An answer to another request is dropped.
    pub fn chunk(&mut self, node: NodeId, token: u64, records: &[u8]) -> Result<(), RecoveryError> {
        match self.reading.as_mut() {
            Some(reading) if reading.node == node && reading.asked == Some(token) => {
                reading.asked = None;
                reading.take(records, self.window_bytes)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// How far the log is read: last position read, last position there is. `None` before a quorum
    /// is sealed.
    #[must_use]
    pub fn progress(&self) -> Option<(SeqNum, SeqNum)> {
        self.reading.as_ref().map(|reading| (reading.order.tail(), reading.log.end))
    }

    /// The nodes that are sealed.
    pub fn sealed_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.sealed.keys().copied()
    }

    /// Writes the opening record, once the whole log is read; `None` before that.
    pub fn open(&mut self, now_ns: u64) -> Option<Recovered> {
        let members = self.sets.last()?.clone();
        let reading = self.reading.take_if(|reading| reading.is_complete())?;
        let Reading { node: source, log, mut order, mut window, .. } = reading;
        let opening = order.open(now_ns, &Open { members }, &mut window);
        let mut history = log.history;
        history.push(EpochStart { epoch: self.epoch, first: opening });
        Some(Recovered { order, window, history, opening, source })
    }

    fn choose(&mut self) -> Result<(), RecoveryError> {
        let has_quorum = |set: &Vec<NodeId>| {
            let answered = set.iter().filter(|node| self.sealed.contains_key(node)).count();
            answered > set.len() / 2
        };
        if self.reading.is_some() || self.sets.is_empty() || !self.sets.iter().all(has_quorum) {
            return Ok(());
        }
        let rank = |log: &SealedLog| (log.history.last().map(|start| start.epoch), log.end);
        let Some((node, log)) = self.sealed.iter().max_by_key(|(_, log)| rank(log)) else {
            return Ok(());
        };
        if log.history.len() >= HISTORY_MAX {
            return Err(RecoveryError::HistoryFull);
        }
        self.reading = Some(Reading {
            node: *node,
            log: log.clone(),
            order: Order::new(self.epoch),
            window: Window::new(self.window_bytes, SeqNum(1)),
            asked: None,
        });
        Ok(())
    }
}

impl Reading {
    fn is_complete(&self) -> bool {
        self.order.tail() >= self.log.end
    }

    fn take(&mut self, records: &[u8], window_bytes: usize) -> Result<(), RecoveryError> {
        let (node, from, end) = (self.node, self.order.tail().next(), self.log.end);
        if records.is_empty() {
            return Err(RecoveryError::Missing { node, from, end });
        }
        for record in Records::new(records) {
            let record = record.map_err(|source| RecoveryError::Corrupt { node, source })?;
            let seq = record.seq();
            // What lies behind the end was not there when the promise was given.
            if seq > self.log.end {
                break;
            }
            if self.epoch_at(seq) != Some(record.epoch()) {
                return Err(RecoveryError::HistoryDiffers { node, seq });
            }
            let is_first = self.order.tail() == SeqNum::ZERO;
            self.order.replay(&record).map_err(|source| RecoveryError::NotALog { node, source })?;
            if is_first {
                self.window = Window::new(window_bytes, seq);
            }
            // The node whose log this is has it all: the window may drop the oldest.
            self.window.release(seq);
            self.window.push_encoded(record.bytes());
        }
        Ok(())
    }

    fn epoch_at(&self, seq: SeqNum) -> Option<Epoch> {
        let index = self.log.history.partition_point(|start| start.first <= seq);
        self.log.history.get(index.checked_sub(1)?).map(|start| start.epoch)
    }
}

#[cfg(test)]
mod tests;
