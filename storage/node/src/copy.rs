//! The state, copied by a new member from those who have it.
//!
//! - C1. Every write that a quorum acknowledged before this node was a member is on at least one of
//!   any `needed` members that have the state. So each key is taken from so many of them.
//! - C2. A source is asked in an epoch in which this node is a member, and answers once it has
//!   promised that epoch: by then nobody writes to the members of before.
//! - C3. The pages of the sources are merged by key. All up to one key is merged at any time, so a
//!   source that fails is asked again from there, or another in its place.
//! - C4. What is merged is written as any other write is, and loses to what is newer here.
//!
//! This says what to ask and what was found; who writes, dials and sends is the role.

mod feed;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_meta::cluster;
use halfmoon_transport::LaneId;
use halfmoon_wire::{Epoch, Hello, Message, NodeId, Role, StateReply, broken};

use crate::limits::{COPY_PATIENCE, COPY_RETRY_MAX, COPY_RETRY_MIN};
use crate::state::{Put, Rule};
use feed::Feed;
pub(crate) use feed::PageError;

/// A copy under way.
#[derive(Debug)]
pub(crate) struct Copy {
    me: NodeId,
    /// The epoch that this node was last welcomed to as a member; 0 before.
    epoch: Epoch,
    /// Of so many members each key is taken.
    needed: usize,
    sources: Vec<Source>,
    /// Members that are not asked now, in the order in which they will be.
    others: VecDeque<NodeId>,
    /// All keys up to this one are merged.
    after: Arc<[u8]>,
    /// Lanes that are of no more use.
    closing: Vec<LaneId>,
    token: u64,
}

#[derive(Debug)]
struct Source {
    node: NodeId,
    stage: Stage,
    /// When to go on, or to give up on it.
    due: Instant,
    /// How long to wait after the next failure.
    retry: Duration,
    feed: Feed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It failed, or was not asked yet.
    Rest,
    /// Its address is looked up.
    Find,
    /// A lane to it is coming up.
    Dial(LaneId),
    /// It can be asked.
    Idle(LaneId),
    /// It was asked.
    Ask(LaneId, u64),
}

/// What to do for a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Look up a peer's address.
    Find(NodeId),
    /// Send this.
    Send(LaneId, Vec<u8>),
    /// This lane is of no more use.
    Close(LaneId),
}

impl Copy {
    pub(crate) fn new(me: NodeId) -> Self {
        Self {
            me,
            epoch: Epoch(0),
            needed: 0,
            sources: Vec::new(),
            others: VecDeque::new(),
            after: Arc::from([]),
            closing: Vec::new(),
            token: 0,
        }
    }

    /// This node is in an epoch that has these members.
    pub(crate) fn welcome(&mut self, epoch: Epoch, members: &[NodeId], now: Instant) {
        if epoch <= self.epoch || !members.contains(&self.me) {
            return;
        }
        self.epoch = epoch;
        self.needed = if broken!(CopiedFromOne) { 1 } else { cluster::blocking(members.len()) };
        for source in std::mem::take(&mut self.sources) {
            if members.contains(&source.node) && self.sources.len() < self.needed {
                self.sources.push(source);
            } else {
                self.closing.extend(source.lane());
            }
        }
        let known: Vec<_> = self.sources.iter().map(|source| source.node).collect();
        let unknown = |id: &NodeId| *id != self.me && !known.contains(id);
        self.others = members.iter().copied().filter(unknown).collect();
        while self.sources.len() < self.needed
            && let Some(node) = self.others.pop_front()
        {
            self.sources.push(Source::new(node, self.after.clone(), now));
        }
        for source in &mut self.sources {
            // What it could not answer in another epoch it may in this one.
            source.retry = COPY_RETRY_MIN;
            if matches!(source.stage, Stage::Rest | Stage::Idle(_)) {
                source.due = now;
            }
        }
    }

    /// Whether an address that was looked up is for this.
    pub(crate) fn wants(&self, node: NodeId) -> bool {
        self.sources.iter().any(|source| source.node == node && source.stage == Stage::Find)
    }

    /// A peer was dialled, if it could be.
    pub(crate) fn dialled(&mut self, node: NodeId, lane: Option<LaneId>, now: Instant) {
        let found = self.sources.iter().position(|source| source.node == node);
        match (found, lane) {
            (Some(index), Some(lane)) => self.sources[index].stage = Stage::Dial(lane),
            (Some(index), None) => self.fail(index, now),
            (None, _) => {}
        }
    }

    /// A lane has come up. Returns false when somebody else answers it than who was dialled: then two
    /// sources might be one node.
    pub(crate) fn up(&mut self, lane: LaneId, hello: &Hello, now: Instant) -> bool {
        let found = self.sources.iter().position(|source| source.stage == Stage::Dial(lane));
        let Some(index) = found else { return true };
        let source = &mut self.sources[index];
        if (hello.node, hello.role) != (source.node, Role::Storage) {
            self.fail(index, now);
            return false;
        }
        (source.stage, source.due) = (Stage::Idle(lane), now);
        true
    }

    pub(crate) fn down(&mut self, lane: LaneId, now: Instant) {
        if let Some(index) = self.sources.iter().position(|source| source.lane() == Some(lane)) {
            self.sources[index].stage = Stage::Rest;
            self.fail(index, now);
        }
    }

    /// What is due, to be asked until there is nothing.
    pub(crate) fn step(&mut self, now: Instant) -> Option<Step> {
        let step = (0..self.sources.len()).find_map(|index| self.step_of(index, now));
        step.or_else(|| self.closing.pop().map(Step::Close))
    }

    /// The answer to a question. Returns the bytes that came.
    pub(crate) fn answer(
        &mut self,
        (lane, token): (LaneId, u64),
        reply: &StateReply<'_>,
        now: Instant,
    ) -> Result<usize, PageError> {
        let asked = Stage::Ask(lane, token);
        let found = self.sources.iter().position(|source| source.stage == asked);
        let Some(index) = found else { return Ok(0) };
        let source = &mut self.sources[index];
        source.stage = Stage::Idle(lane);
        let StateReply::Page { items, end } = reply else {
            tracing::debug!(node = %source.node, ?reply, "a peer does not give of its state now");
            source.feed.forget_cut();
            if self.others.is_empty() {
                source.rest(now);
            } else {
                self.fail(index, now);
            }
            return Ok(0);
        };
        match source.feed.take(items, *end) {
            Ok(bytes) => {
                (source.due, source.retry) = (now, COPY_RETRY_MIN);
                Ok(bytes)
            }
            Err(error) => {
                self.fail(index, now);
                Err(error)
            }
        }
    }

    /// The next key that all sources have told of, with the newest of their values.
    pub(crate) fn next(&mut self) -> Option<Put> {
        if !self.has_next() {
            return None;
        }
        let fronts = self.sources.iter().filter_map(|source| source.feed.front());
        let key = fronts.map(|(key, _)| key).min()?.clone();
        let mut newest: Option<Put> = None;
        for source in &mut self.sources {
            if source.feed.front().is_none_or(|(front, _)| *front != key) {
                continue;
            }
            let Some((_, value)) = source.feed.pop() else { continue };
            let put = Put { rule: Rule::of(&key), key: key.clone(), value, number: 0 };
            if newest.as_ref().is_none_or(|newest| put.beats(&newest.value)) {
                newest = Some(put);
            }
        }
        self.after = key;
        newest
    }

    /// Whether there is a next key that all sources have told of.
    pub(crate) fn has_next(&self) -> bool {
        let is_ready = |source: &Source| source.feed.front().is_some() || source.feed.is_over();
        self.is_manned() && self.sources.iter().all(is_ready) && !self.is_over()
    }

    /// Whether all that the sources have is merged.
    pub(crate) fn is_over(&self) -> bool {
        self.is_manned() && self.sources.iter().all(|source| source.feed.is_over())
    }

    /// Its lanes: of no more use once it is over.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = LaneId> + '_ {
        self.sources.iter().filter_map(Source::lane).chain(self.closing.iter().copied())
    }

    /// Whether there are as many sources as are needed.
    fn is_manned(&self) -> bool {
        self.needed > 0 && self.sources.len() == self.needed
    }

    fn step_of(&mut self, index: usize, now: Instant) -> Option<Step> {
        let source = &mut self.sources[index];
        if now < source.due {
            return None;
        }
        match source.stage {
            Stage::Rest => {
                (source.stage, source.due) = (Stage::Find, now + COPY_PATIENCE);
                Some(Step::Find(source.node))
            }
            Stage::Idle(lane) => {
                let request = source.feed.wants()?;
                self.token += 1;
                let (token, epoch) = (self.token, self.epoch);
                let bytes = Message::State { token, epoch, request }.to_bytes();
                (source.stage, source.due) = (Stage::Ask(lane, token), now + COPY_PATIENCE);
                Some(Step::Send(lane, bytes))
            }
            Stage::Find | Stage::Dial(_) | Stage::Ask(..) => {
                tracing::warn!(node = %source.node, "a peer does not answer about its state");
                self.fail(index, now);
                None
            }
        }
    }

    /// A source is given up: another takes its place, or it is asked again after a while.
    fn fail(&mut self, index: usize, now: Instant) {
        let source = &mut self.sources[index];
        self.closing.extend(source.lane());
        source.stage = Stage::Rest;
        source.rest(now);
        source.feed = Feed::after(self.after.clone());
        self.others.push_back(source.node);
        source.node = self.others.pop_front().unwrap_or(source.node);
    }
}

impl Source {
    fn new(node: NodeId, after: Arc<[u8]>, now: Instant) -> Self {
        let (stage, feed) = (Stage::Rest, Feed::after(after));
        Self { node, stage, due: now, retry: COPY_RETRY_MIN, feed }
    }

    /// Not now.
    fn rest(&mut self, now: Instant) {
        self.due = now + self.retry;
        self.retry = (2 * self.retry).min(COPY_RETRY_MAX);
    }

    fn lane(&self) -> Option<LaneId> {
        match self.stage {
            Stage::Dial(lane) | Stage::Idle(lane) | Stage::Ask(lane, _) => Some(lane),
            Stage::Rest | Stage::Find => None,
        }
    }
}

#[cfg(test)]
mod tests;
