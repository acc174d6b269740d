//! One connection: what is queued to leave, and what has come.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use halfmoon_transport::{Carrier, DownReason, Memory, NoRdma, Token};

use crate::frame::{HEADER_BYTES, Header, Kind};

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
    /// Where to receive, [`RECEIVE_BYTES`] long; empty while it is with the reactor.
    pub(crate) inbox: Vec<u8>,
    /// How much of `inbox` was taken apart.
    pub(crate) taken: usize,
    /// How much of `inbox` was received.
    pub(crate) filled: usize,
    /// When the lane was made: a peer has only so long to greet.
    pub(crate) since: Instant,
    /// A large body that is on its way straight into a region.
    pub(crate) body: Option<Body>,
    /// Signalled writes of the peer that are in place and were not yet acknowledged.
    pub(crate) owed_acks: u64,
    /// Why the lane is to go down, once what was posted has left.
    pub(crate) closing: Option<DownReason>,
    /// A receive is with the reactor.
    pub(crate) receiving: bool,
    /// The region that the peer's greeting offers; 0 if none.
    pub(crate) offered: u32,
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
    /// A send has failed: nothing more leaves. What the peer said before is still received.
    pub(crate) broken: bool,
    /// The write at the end of the last segment, which takes more if it goes on where that ends.
    open: Option<Open>,
    /// An emptied buffer, to be used again.
    spare: Vec<u8>,
    /// Tokens of signalled writes whose ack is due, in order.
    pub(crate) tokens: VecDeque<Token>,
}

/// A frame that may still grow.
struct Open {
    header: Header,
    /// Where its header is in the buffer.
    at: usize,
}

/// Bytes in a row that leave by one system call.
pub(crate) enum Segment {
    Bytes { buffer: Vec<u8>, from: usize },
    Memory { memory: Arc<dyn Memory>, offset: usize, len: usize },
}

impl Lane {
    /// What it goes over. Where TCP is all that there is, this is why; what stands on it knows better.
    pub(crate) fn carrier(&self) -> Option<Carrier> {
        (self.stage == Stage::Up).then_some(Carrier::Tcp(NoRdma::NotBuilt))
    }

    pub(crate) fn new(socket: Arc<OwnedFd>, stage: Stage) -> Self {
        Self {
            socket,
            stage,
            out: Outbound::default(),
            inbox: vec![0; RECEIVE_BYTES],
            taken: 0,
            filled: 0,
            since: Instant::now(),
            body: None,
            owed_acks: 0,
            closing: None,
            receiving: false,
            offered: 0,
        }
    }

    /// Received bytes that were not taken apart.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.inbox[self.taken..self.filled]
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

    /// Queues a frame, whose body is `parts`. A write that goes on where the one before it ends
    /// becomes one with it, unless the frame would be a large one.
    pub(crate) fn push(&mut self, header: Header, parts: [&[u8]; 2], between: &[&[u8]]) {
        let before = self.open.take();
        let tail = self.tail();
        let len = tail.len();
        let open = match before {
            Some(mut open) if open.takes(header) => {
                open.header.len += header.len;
                tail[open.at..open.at + HEADER_BYTES].copy_from_slice(&open.header.encode());
                open
            }
            Some(_) | None => {
                tail.extend_from_slice(&header.encode());
                Open { header, at: len }
            }
        };
        tail.extend_from_slice(parts[0]);
        for part in between {
            tail.extend_from_slice(part);
        }
        tail.extend_from_slice(parts[1]);
        let grown = tail.len() - len;
        self.queued += grown;
        self.open = Some(open);
    }

    /// Queues a body that leaves from where it lies.
    pub(crate) fn push_memory(&mut self, memory: Arc<dyn Memory>, offset: usize, len: usize) {
        self.open = None;
        self.segments.push_back(Segment::Memory { memory, offset, len });
        self.queued += len;
    }

    /// What is to leave next, if nothing is leaving.
    pub(crate) fn next(&mut self) -> Option<Segment> {
        if self.sending || self.broken {
            return None;
        }
        let segment = self.segments.pop_front()?;
        self.open = None;
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

impl Open {
    fn takes(&self, next: Header) -> bool {
        let (mine, len) = (self.header, self.header.len);
        (mine.kind, next.kind) == (Kind::Write, Kind::Write)
            && mine.region == next.region
            && mine.offset.checked_add(u64::from(len)) == Some(next.offset)
            && (len as usize).saturating_add(next.len as usize) < LARGE_BYTES
    }
}
