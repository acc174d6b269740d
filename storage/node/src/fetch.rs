//! Records below the sequencer's window, asked of peers one after another.

use std::time::Instant;

use halfmoon_transport::LaneId;
use halfmoon_wire::{Epoch, NodeId, SeqNum};

use crate::limits::{FETCH_PATIENCE, FETCH_RETRY};

/// What is being fetched.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) epoch: Epoch,
    pub(crate) from: SeqNum,
    peers: Vec<NodeId>,
    /// The peer that is asked, as an index into `peers`.
    turn: usize,
    stage: Stage,
    /// When to give up on that peer.
    deadline: Instant,
    /// Names the question; an answer to an older one is nothing.
    pub(crate) token: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Nothing was asked yet, until the deadline.
    Rest,
    /// Its address is looked up.
    Find,
    /// A lane to it is coming up.
    Dial(LaneId),
    /// It was asked.
    Ask(LaneId),
}

/// What to do for a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Nothing now.
    Wait,
    /// Look up the peer's address.
    Find(NodeId),
    /// Ask on this lane.
    Ask(LaneId),
}

impl Fetch {
    pub(crate) fn new(epoch: Epoch, from: SeqNum, peers: Vec<NodeId>, now: Instant) -> Self {
        Self { epoch, from, peers, turn: 0, stage: Stage::Rest, deadline: now, token: 0 }
    }

    /// Goes on from a later position, with the same peer.
    pub(crate) fn go_on(&mut self, epoch: Epoch, from: SeqNum, now: Instant) -> Step {
        (self.epoch, self.from) = (epoch, from);
        match self.stage {
            Stage::Ask(lane) => self.ask(lane, now),
            Stage::Rest | Stage::Find | Stage::Dial(_) => Step::Wait,
        }
    }

    /// What is due.
    pub(crate) fn tick(&mut self, now: Instant) -> Step {
        if now < self.deadline || self.peers.is_empty() {
            return Step::Wait;
        }
        if self.stage != Stage::Rest {
            self.fail(now);
            return Step::Wait;
        }
        self.stage = Stage::Find;
        self.deadline = now + FETCH_PATIENCE;
        Step::Find(self.peers[self.turn % self.peers.len()])
    }

    /// The address of a peer was looked up; whether it is to be dialled.
    pub(crate) fn wants(&self, peer: NodeId) -> bool {
        self.stage == Stage::Find && self.peers.get(self.turn % self.peers.len()) == Some(&peer)
    }

    pub(crate) fn dialled(&mut self, lane: LaneId) {
        self.stage = Stage::Dial(lane);
    }

    pub(crate) fn up(&mut self, lane: LaneId, now: Instant) -> Step {
        if self.stage == Stage::Dial(lane) { self.ask(lane, now) } else { Step::Wait }
    }

    pub(crate) fn down(&mut self, lane: LaneId, now: Instant) {
        if matches!(self.stage, Stage::Dial(of) | Stage::Ask(of) if of == lane) {
            self.fail(now);
        }
    }

    /// The peer did not have it: the next one, after a while.
    pub(crate) fn fail(&mut self, now: Instant) {
        self.turn += 1;
        self.token += 1;
        self.stage = Stage::Rest;
        self.deadline = now + FETCH_RETRY;
    }

    fn ask(&mut self, lane: LaneId, now: Instant) -> Step {
        self.stage = Stage::Ask(lane);
        self.deadline = now + FETCH_PATIENCE;
        self.token += 1;
        Step::Ask(lane)
    }
}
