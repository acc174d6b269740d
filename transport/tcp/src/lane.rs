//! One connection: what is queued to leave, and what has come.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use halfmoon_transport::{DownReason, Memory, Token};

use crate::frame::{HEADER_BYTES, Header};

/// Bytes that one receive takes at most.
pub(crate) const RECEIVE_BYTES: usize = 256 * 1024;
/// Bytes queued on a lane beyond which it takes no more.
pub(crate) const QUEUE_BYTES: usize = 8 << 20;
/// Bodies at least this long are received straight into the region, and sent from where they lie.
pub(crate) const LARGE_BYTES: usize = 16 * 1024;

/// How far a lane has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Dialled, not connected.
    Connecting,
    /// Connected; the peer has not greeted.
    Greeting,
    /// Carries writes.
    Up,
}

/// A connection.
pub(crate) struct Lane {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) stage: Stage,
    pub(crate) out: Outbound,
    /// Received and not yet taken apart.
    pub(crate) inbox: Vec<u8>,
    /// How much of `inbox` was taken apart.
    pub(crate) taken: usize,
    /// A large body that is on its way straight into a region.
    pub(crate) body: Option<Body>,
    /// Signalled writes of the peer that are in place and were not yet acknowledged.
    pub(crate) owed_acks: u64,
    /// Why the lane is to go down, once what was posted has left.
    pub(crate) closing: Option<DownReason>,
    /// A receive is with the reactor.
    pub(crate) receiving: bool,
}

/// A large body on its way.
pub(crate) struct Body {
    pub(crate) header: Header,
    /// `None`: the region was withdrawn; the bytes are received and dropped.
    pub(crate) memory: Option<Arc<dyn Memory>>,
    pub(crate) done: usize,
}

/// What is to leave on a lane.
#[derive(Default)]
pub(crate) struct Outbound {
    segments: VecDeque<Segment>,
    /// All bytes in `segments` and with the reactor.
    pub(crate) queued: usize,
    /// A send is with the reactor.
    pub(crate) sending: bool,
    /// An emptied buffer, to be used again.
    spare: Vec<u8>,
    /// Tokens of signalled writes whose ack is due, in order.
    pub(crate) tokens: VecDeque<Token>,
}

/// Bytes in a row that leave by one system call.
pub(crate) enum Segment {
    Bytes { buffer: Vec<u8>, from: usize },
    Memory { memory: Arc<dyn Memory>, offset: usize, len: usize },
}

impl Lane {
    pub(crate) fn new(socket: Arc<OwnedFd>, stage: Stage) -> Self {
        Self {
            socket,
            stage,
            out: Outbound::default(),
            inbox: Vec::new(),
            taken: 0,
            body: None,
            owed_acks: 0,
            closing: None,
            receiving: false,
        }
    }

    /// Received bytes that were not taken apart.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.inbox[self.taken..]
    }
}

impl Outbound {
    /// The buffer that small things are appended to.
    fn tail(&mut self) -> &mut Vec<u8> {
        if !matches!(self.segments.back(), Some(Segment::Bytes { .. })) {
            let buffer = std::mem::take(&mut self.spare);
            self.segments.push_back(Segment::Bytes { buffer, from: 0 });
        }
        match self.segments.back_mut() {
            Some(Segment::Bytes { buffer, .. }) => buffer,
            Some(Segment::Memory { .. }) | None => &mut self.spare,
        }
    }

    /// Queues a frame's header and the parts of its body.
    pub(crate) fn push(&mut self, header: Header, parts: &[&[u8]]) {
        let body: usize = parts.iter().map(|part| part.len()).sum();
        let tail = self.tail();
        tail.extend_from_slice(&header.encode());
        for part in parts {
            tail.extend_from_slice(part);
        }
        self.queued += HEADER_BYTES + body;
    }

    /// Queues more of a body whose header was pushed.
    pub(crate) fn push_raw(&mut self, bytes: &[u8]) {
        self.tail().extend_from_slice(bytes);
        self.queued += bytes.len();
    }

    /// Queues a body that leaves from where it lies.
    pub(crate) fn push_memory(&mut self, memory: Arc<dyn Memory>, offset: usize, len: usize) {
        self.segments.push_back(Segment::Memory { memory, offset, len });
        self.queued += len;
    }

    /// What is to leave next, if nothing is leaving.
    pub(crate) fn next(&mut self) -> Option<Segment> {
        if self.sending {
            return None;
        }
        let segment = self.segments.pop_front()?;
        self.sending = true;
        Some(segment)
    }

    /// `sent` bytes of a segment have left; the rest goes before everything else.
    pub(crate) fn left(&mut self, segment: Segment, sent: usize) {
        self.sending = false;
        self.queued = self.queued.saturating_sub(sent);
        match segment {
            Segment::Bytes { mut buffer, from } => {
                if from + sent < buffer.len() {
                    let from = from + sent;
                    self.segments.push_front(Segment::Bytes { buffer, from });
                } else if buffer.capacity() > self.spare.capacity() {
                    buffer.clear();
                    self.spare = buffer;
                }
            }
            Segment::Memory { memory, offset, len } => {
                if sent < len {
                    let (offset, len) = (offset + sent, len - sent);
                    self.segments.push_front(Segment::Memory { memory, offset, len });
                }
            }
        }
    }
}

/// Whether trying again is right: the operation itself had no effect.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

pub(crate) fn lost(error: &io::Error) -> DownReason {
    if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) {
        DownReason::PeerClosed
    } else {
        DownReason::Lost(error.kind())
    }
}

pub(crate) fn not_a_frame(stage: Stage) -> DownReason {
    match stage {
        Stage::Connecting | Stage::Greeting => DownReason::NotHalfmoon,
        Stage::Up => DownReason::Corrupt,
    }
}
