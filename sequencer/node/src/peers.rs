//! The lanes that are up, and what is still to be sent on them.

use std::collections::VecDeque;

use halfmoon_transport::lanes::LaneMap;
use halfmoon_transport::{Endpoint, LaneId, SendError, Transport};
use halfmoon_wire::limits::MESSAGE_MAX_BYTES;
use halfmoon_wire::{Epoch, Hello, Incarnation, Message, NodeId, Role, SeqNum};

use halfmoon_order::Window;

use crate::metrics::Snapshot;

/// Most bytes of messages (the stream apart, which waits in the window) that wait for room on one
/// lane. A peer that does not take them in is cut off.
pub(crate) const OUTBOX_MAX_BYTES: usize = 8 << 20;

/// Bytes of a stream message before its records.
const STREAM_HEADER_BYTES: usize = 17;

/// Most bytes of records in one message.
const STREAM_MAX_BYTES: usize = MESSAGE_MAX_BYTES - STREAM_HEADER_BYTES;

/// A node at the other end of a lane.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) role: Role,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    /// The next record it is to be streamed; `None` while it has not asked.
    pub(crate) next: Option<SeqNum>,
    pub(crate) outbox: Outbox,
    /// Reused for the fixed part of stream messages.
    header: Vec<u8>,
}

/// Messages that wait, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    ends: VecDeque<usize>,
    sent: usize,
}

/// What came of giving a peer what is there for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    /// It has all, or as much as it takes now.
    Done,
    /// It is further back than the window.
    Behind,
    /// Its lane is of no more use.
    Broken,
}

#[derive(Debug)]
pub(crate) struct Peers {
    map: LaneMap<Peer>,
    lanes: Vec<LaneId>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        Self { map: LaneMap::new(), lanes: Vec::new() }
    }

    pub(crate) fn add(&mut self, lane: LaneId, hello: &Hello) {
        let Hello { role, node, incarnation, .. } = *hello;
        let (outbox, header) = (Outbox::default(), Vec::with_capacity(STREAM_HEADER_BYTES));
        let peer = Peer { role, node, incarnation, next: None, outbox, header };
        self.map.insert(lane, peer);
        self.lanes.push(lane);
    }

    pub(crate) fn remove(&mut self, lane: LaneId) -> Option<Peer> {
        self.lanes.retain(|other| *other != lane);
        self.map.remove(lane)
    }

    pub(crate) fn find(&self, lane: LaneId) -> Option<&Peer> {
        self.map.get(lane)
    }

    pub(crate) fn find_mut(&mut self, lane: LaneId) -> Option<&mut Peer> {
        self.map.get_mut(lane)
    }

    pub(crate) fn lanes(&self) -> &[LaneId] {
        &self.lanes
    }

    /// Whether a later life of the same node is here.
    pub(crate) fn has_later_life(&self, hello: &Hello) -> bool {
        let is_later = |peer: &Peer| {
            (peer.role, peer.node) == (hello.role, hello.node)
                && peer.incarnation > hello.incarnation
        };
        self.lanes.iter().filter_map(|lane| self.find(*lane)).any(is_later)
    }

    /// Another lane of the same node.
    pub(crate) fn earlier_lane(&self, lane: LaneId, hello: &Hello) -> Option<LaneId> {
        self.lanes.iter().copied().find(|other| {
            let is_same = |peer: &Peer| (peer.role, peer.node) == (hello.role, hello.node);
            *other != lane && self.find(*other).is_some_and(is_same)
        })
    }

    /// Queues a message, if the lane is up.
    pub(crate) fn tell(&mut self, lane: LaneId, message: &Message<'_>) {
        if let Some(peer) = self.find_mut(lane) {
            peer.outbox.push(message);
        }
    }
}

impl Outbox {
    pub(crate) fn push(&mut self, message: &Message<'_>) {
        message.encode(&mut self.bytes);
        self.ends.push_back(self.bytes.len());
    }

    /// Sends what there is room for.
    fn send<T: Transport>(&mut self, lane: LaneId, endpoint: &mut Endpoint<T>) -> Delivery {
        while let Some(end) = self.ends.front().copied() {
            match endpoint.send(lane, &[&self.bytes[self.sent..end]]) {
                Ok(()) => {
                    self.ends.pop_front();
                    self.sent = end;
                }
                Err(SendError::Full) if self.bytes.len() <= OUTBOX_MAX_BYTES => break,
                Err(SendError::Full | SendError::Dead | SendError::TooLong { .. }) => {
                    return Delivery::Broken;
                }
            }
        }
        if self.ends.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        }
        Delivery::Done
    }

    fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

impl Peer {
    /// Sends what waits, then the stream of `epoch` from the peer's position on, until the lane is
    /// full.
    pub(crate) fn deliver<T: Transport>(
        &mut self,
        lane: LaneId,
        epoch: Epoch,
        window: Option<&Window>,
        endpoint: &mut Endpoint<T>,
        counted: &mut Snapshot,
    ) -> Delivery {
        if !self.outbox.is_empty() && self.outbox.send(lane, endpoint) == Delivery::Broken {
            return Delivery::Broken;
        }
        let (Some(window), Some(next)) = (window, self.next.as_mut()) else {
            return Delivery::Done;
        };
        if !self.outbox.is_empty() || *next >= window.next() {
            return Delivery::Done;
        }
        if *next < window.start() {
            return Delivery::Behind;
        }
        let limit = endpoint.max_message_bytes(lane).saturating_sub(STREAM_HEADER_BYTES);
        let limit = limit.min(STREAM_MAX_BYTES);
        while let Some(span) = window.span(*next, limit) {
            self.header.clear();
            Message::Stream { epoch, first: span.first, records: &[] }.encode(&mut self.header);
            match endpoint.send(lane, &[&self.header, span.records]) {
                Ok(()) => {
                    *next = span.next;
                    counted.stream_messages += 1;
                    counted.stream_bytes += span.records.len() as u64;
                }
                Err(SendError::Full) => break,
                Err(SendError::Dead | SendError::TooLong { .. }) => return Delivery::Broken,
            }
        }
        Delivery::Done
    }
}
