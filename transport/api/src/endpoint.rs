//! What roles use: lanes that carry messages and one-sided writes.
//!
//! Each side of a lane exposes one inbound region to the other: a head, whose first word is the
//! credit for the ring that this side *sends* into and whose second is the extent of the ring that
//! it receives from, and then that ring. The sides learn each other's region from a greeting, which
//! also carries the role's own hello.

pub(crate) mod greeting;

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use thiserror::Error;

use crate::contract::{
    Access, DialError, DownReason, ExposeError, LaneId, ListenError, MAX_WRITE_BYTES, Occurrence,
    PostError, RegionId, RemoteSpan, Source, Token, Transport,
};
use crate::lanes::LaneMap;
use crate::mailbox::{self, DEFAULT_RING_BYTES, Found, PlaceError, RingReader, RingWriter};
use crate::memory::{HeapMemory, Memory, WORD};

pub use greeting::{LANE_VERSION, MAX_HELLO_BYTES};

/// Messages taken from one lane in one turn, so that no peer keeps the others waiting.
pub const TURN_MESSAGES: usize = 1024;

/// Bytes before the ring in an inbound region. Its words are those below.
pub(crate) const HEAD_BYTES: usize = 64;

/// The word of the head that is the credit, and the one that is the extent.
const CREDIT: usize = 0;
pub(crate) const EXTENT: usize = 1;

/// How an endpoint is set up.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// What peers hear when a lane comes up, dialled or accepted: the role's own business. At most
    /// [`MAX_HELLO_BYTES`].
    pub hello: Vec<u8>,
    /// Size of the ring that each lane receives into, in bytes: see [`mailbox::is_ring_size`]. The
    /// longest message is a quarter of the *peer's* ring.
    pub ring_bytes: usize,
}

impl EndpointOptions {
    /// Options with this hello.
    pub fn new(hello: Vec<u8>) -> Self {
        Self { hello, ring_bytes: DEFAULT_RING_BYTES }
    }
}

/// What an endpoint reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The lane carries messages and writes from now on.
    Up {
        /// The lane.
        lane: LaneId,
        /// What the peer said: its hello. Not to be trusted.
        hello: &'a [u8],
        /// Whether this side dialled.
        dialled: bool,
    },
    /// A message. All that the peer wrote on this lane before it is in place.
    Message {
        /// The lane.
        lane: LaneId,
        /// Exactly what was sent.
        bytes: &'a [u8],
    },
    /// A write with a token, and all before it on this lane, are in the peer's memory.
    Written {
        /// The lane.
        lane: LaneId,
        /// As given to [`Endpoint::write`].
        token: Token,
    },
    /// What was refused as full fits now.
    Room {
        /// The lane.
        lane: LaneId,
    },
    /// The lane is dead. Which of the last messages and writes arrived is unknown. Comes exactly
    /// once for every lane that was dialled or was up, or whose peer speaks another version.
    Down {
        /// The lane.
        lane: LaneId,
        /// Why.
        reason: DownReason,
    },
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// How many events there were.
    pub events: usize,
    /// Whether there is more to do now: poll again before sleeping.
    pub more: bool,
}

/// Why a message was not sent. It has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// No room now; [`Event::Room`] will tell when there is.
    #[error("the lane is full")]
    Full,
    /// The lane is down, or not up yet.
    #[error("the lane is not up")]
    Dead,
    /// No lane of this peer carries so long a message, or the source is out of bounds.
    #[error("{len} bytes are too long for this lane, which takes {limit}")]
    TooLong {
        /// Bytes asked for.
        len: usize,
        /// Most bytes that this peer takes.
        limit: usize,
    },
}

/// Lanes of one node, over a transport. Belongs to one thread.
pub struct Endpoint<T> {
    transport: T,
    lanes: LaneMap<Lane>,
    /// Lanes that the transport has given up, and whose slot it gave to others before it told.
    displaced: Vec<(LaneId, Lane)>,
    /// Lanes that messages were sent on since the last flush.
    sent_on: Vec<LaneId>,
    options: EndpointOptions,
    /// Distinguishes the rings that this endpoint has had.
    last_epoch: u32,
    /// Reused between turns.
    occurrences: Vec<Occurrence>,
}

struct Lane {
    dialled: bool,
    inbound: Arc<HeapMemory>,
    reader: RingReader,
    /// `None` until the peer has greeted.
    peer: Option<Peer>,
    /// Closed by this side: nothing of it is read any more.
    closing: bool,
    /// The longest message that was refused, if any was since the last time there was room.
    starved: Option<usize>,
}

/// What is known of the other side.
struct Peer {
    inbound: RegionId,
    ring_bytes: usize,
    writer: RingWriter,
}

impl<T: Transport> Endpoint<T> {
    /// An endpoint without lanes.
    ///
    /// # Panics
    /// If the options are out of their limits.
    pub fn new(transport: T, options: EndpointOptions) -> Self {
        assert!(mailbox::is_ring_size(options.ring_bytes));
        assert!(options.hello.len() <= MAX_HELLO_BYTES);
        let lanes = LaneMap::new();
        let (displaced, sent_on, occurrences) = (Vec::new(), Vec::new(), Vec::new());
        Self { transport, lanes, displaced, sent_on, options, last_epoch: 0, occurrences }
    }

    /// The transport below.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport below. Lanes are the endpoint's business.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Accepts lanes at `address`; returns the address with the port that was given.
    pub fn listen(&mut self, address: &str) -> Result<String, ListenError> {
        self.transport.listen(address)
    }

    /// Changes the hello of lanes that come up from now on.
    ///
    /// # Panics
    /// If it is longer than [`MAX_HELLO_BYTES`].
    pub fn set_hello(&mut self, hello: Vec<u8>) {
        assert!(hello.len() <= MAX_HELLO_BYTES);
        self.options.hello = hello;
    }

    /// Starts a lane. [`Event::Up`] or [`Event::Down`] follows.
    pub fn dial(&mut self, address: &str) -> Result<LaneId, DialError> {
        let lane = self.transport.dial(address)?;
        self.open(lane, true);
        Ok(lane)
    }

    /// Takes a lane down. What was sent before is still handed over, if the peer takes it. Nothing
    /// of the lane is reported after this but [`Event::Down`].
    pub fn close(&mut self, lane: LaneId) {
        self.close_with(lane, DownReason::Closed);
    }

    /// Whether messages can be sent on a lane: it is up, and was not closed.
    pub fn is_up(&self, lane: LaneId) -> bool {
        self.lanes.get(lane).is_some_and(|found| found.peer.is_some() && !found.closing)
    }

    /// The lanes that are up.
    pub fn lanes(&self) -> impl Iterator<Item = LaneId> + '_ {
        self.lanes.lanes().filter(|lane| self.is_up(*lane))
    }

    /// The longest message that a lane carries, in bytes; 0 if it is not up.
    pub fn max_message_bytes(&self, lane: LaneId) -> usize {
        let peer = self.lanes.get(lane).and_then(|found| found.peer.as_ref());
        peer.map_or(0, |peer| mailbox::max_message_bytes(peer.ring_bytes))
    }

    /// Lets peers write to `memory`.
    pub fn expose(
        &mut self,
        memory: Arc<dyn Memory>,
        access: Access,
    ) -> Result<RegionId, ExposeError> {
        self.transport.expose(memory, access)
    }

    /// Ends that: later writes of peers to the region are dropped.
    pub fn withdraw(&mut self, region: RegionId) {
        self.transport.withdraw(region);
    }

    /// Sends a message made of `parts`, copied during the call. It leaves with the next
    /// [`flush`](Self::flush) or [`poll`](Self::poll).
    pub fn send(&mut self, lane: LaneId, parts: &[&[u8]]) -> Result<(), SendError> {
        let found = self.lanes.get_mut(lane).filter(|found| !found.closing);
        let found = found.ok_or(SendError::Dead)?;
        let peer = found.peer.as_mut().ok_or(SendError::Dead)?;
        let placement = match peer.writer.place(parts) {
            Ok(placement) if self.transport.has_room(lane) => placement,
            Err(PlaceError::TooLong { len, limit }) => {
                return Err(SendError::TooLong { len, limit });
            }
            Ok(_) | Err(PlaceError::Full) => {
                starve(&mut found.starved, parts.iter().map(|part| part.len()).sum());
                return Err(SendError::Full);
            }
        };
        let to = |offset| RemoteSpan { region: peer.inbound, offset: HEAD_BYTES as u64 + offset };
        if let Some((offset, header)) = &placement.pad {
            self.transport
                .post_write(lane, to(*offset), Source::bytes(header), None)
                .map_err(|error| refused(&mut found.starved, error, 0))?;
        }
        let tail = &[0; 8][..placement.fill];
        let entry = Source::Bytes { head: &placement.header, parts, tail };
        // A pad that was posted without its message is posted again, the same, with the next one.
        self.transport
            .post_write(lane, to(placement.offset), entry, None)
            .map_err(|error| refused(&mut found.starved, error, 0))?;
        if peer.writer.extent_due().is_none() {
            self.sent_on.push(lane);
        }
        peer.writer.commit(&placement);
        Ok(())
    }

    /// Writes to a region that the peer has named. It is in place before any message that is sent
    /// on this lane after it. With a token, [`Event::Written`] tells when it is in place.
    pub fn write(
        &mut self,
        lane: LaneId,
        to: RemoteSpan,
        source: Source<'_>,
        token: Option<Token>,
    ) -> Result<(), SendError> {
        let found = self.lanes.get_mut(lane).filter(|found| !found.closing);
        let found = found.ok_or(SendError::Dead)?;
        if found.peer.is_none() {
            return Err(SendError::Dead);
        }
        let len = source.len();
        self.transport
            .post_write(lane, to, source, token)
            .map_err(|error| refused(&mut found.starved, error, len))
    }

    /// Hands what was sent to the system: one call per peer, not one per message.
    pub fn flush(&mut self) {
        let mut sent_on = mem::take(&mut self.sent_on);
        // A lane without room is asked again.
        sent_on.retain(|lane| !self.tell_extent(*lane));
        self.sent_on = sent_on;
        self.transport.flush();
    }

    /// Does what can be done now, reports it, and flushes. Never waits.
    ///
    /// Answers are sent after it: `handle` notes what they are.
    pub fn poll(&mut self, handle: &mut impl FnMut(Event<'_>)) -> Turn {
        let mut turn = Turn::default();
        let mut occurrences = mem::take(&mut self.occurrences);
        self.transport.poll(&mut occurrences);
        let mut count = |event: Event<'_>| {
            turn.events += 1;
            handle(event);
        };
        for occurrence in occurrences.drain(..) {
            self.occurred(occurrence, &mut count);
        }
        self.occurrences = occurrences;
        let mut more = false;
        for slot in 0..self.lanes.slots() {
            if let Some(lane) = self.lanes.lane_at(slot) {
                more |= self.drain(lane, TURN_MESSAGES, &mut count);
                self.tend(lane, &mut count);
            }
        }
        turn.more = more;
        self.flush();
        turn
    }

    fn occurred(&mut self, occurrence: Occurrence, handle: &mut impl FnMut(Event<'_>)) {
        match occurrence {
            Occurrence::Incoming { lane } => self.open(lane, false),
            Occurrence::Greeted { lane, greeting } => self.greeted(lane, &greeting, handle),
            Occurrence::Completed { lane, token } => {
                if self.is_up(lane) {
                    handle(Event::Written { lane, token });
                }
            }
            Occurrence::Down { lane, reason } => {
                let mut known = self.lanes.remove(lane).or_else(|| self.displaced(lane));
                if let Some(found) = &mut known {
                    // What arrived before the end still counts.
                    found.read(lane, usize::MAX, handle);
                }
                // A stranger that dials and goes is no news; a node of another release is.
                let news = matches!(reason, DownReason::WrongVersion { .. });
                if known.is_some_and(|found| news || found.dialled || found.peer.is_some()) {
                    handle(Event::Down { lane, reason });
                }
            }
        }
    }

    /// Makes the lane's inbound region and tells the peer of it.
    fn open(&mut self, lane: LaneId, dialled: bool) {
        let ring_bytes = self.options.ring_bytes;
        let inbound = Arc::new(HeapMemory::new(HEAD_BYTES + ring_bytes));
        self.last_epoch = self.last_epoch.wrapping_add(1);
        let epoch = self.last_epoch;
        let reader = RingReader::new(ring_bytes, epoch);
        let exposed = self.transport.expose(inbound.clone(), Access::Lane(lane));
        let (peer, closing, starved) = (None, false, None);
        let opened = Lane { dialled, inbound, reader, peer, closing, starved };
        self.displaced.extend(self.lanes.insert(lane, opened));
        match exposed {
            Ok(region) => {
                let greeting = greeting::encode(region, epoch, ring_bytes, &self.options.hello);
                self.transport.greet(lane, &greeting);
            }
            Err(_) => self.close_with(lane, DownReason::Closed),
        }
    }

    fn greeted(&mut self, lane: LaneId, bytes: &[u8], handle: &mut impl FnMut(Event<'_>)) {
        let Some(found) = self.lanes.get_mut(lane).filter(|found| !found.closing) else { return };
        let greeting = match greeting::parse(bytes) {
            Ok(greeting) => greeting,
            Err(reason) => return self.close_with(lane, reason),
        };
        let ring_bytes = greeting.ring_bytes;
        let writer = RingWriter::new(ring_bytes, greeting.epoch);
        found.peer = Some(Peer { inbound: greeting.region, ring_bytes, writer });
        handle(Event::Up { lane, hello: greeting.hello, dialled: found.dialled });
    }

    fn close_with(&mut self, lane: LaneId, reason: DownReason) {
        // What was sent may count only once the peer knows of it.
        self.tell_extent(lane);
        if let Some(found) = self.lanes.get_mut(lane).filter(|found| !found.closing) {
            found.closing = true;
            self.transport.close(lane, reason);
        }
    }

    /// Has the peer look at what was sent on a lane. `false`: the lane has no room for that now.
    fn tell_extent(&mut self, lane: LaneId) -> bool {
        let found = self.lanes.get_mut(lane).filter(|found| !found.closing);
        let Some(peer) = found.and_then(|found| found.peer.as_mut()) else { return true };
        let Some(extent) = peer.writer.extent_due() else { return true };
        let to = RemoteSpan { region: peer.inbound, offset: (EXTENT * WORD) as u64 };
        let word = extent.to_le_bytes();
        let posted = self.transport.post_write(lane, to, Source::bytes(&word), None);
        if posted.is_ok() {
            peer.writer.told(extent);
        }
        posted != Err(PostError::Full)
    }

    /// Reports up to `limit` messages of a lane; returns whether there may be more.
    fn drain(&mut self, lane: LaneId, limit: usize, handle: &mut impl FnMut(Event<'_>)) -> bool {
        let Some(found) = self.lanes.get_mut(lane) else { return false };
        match found.read(lane, limit, handle) {
            Read::All => false,
            Read::More => true,
            Read::Corrupt => {
                self.close_with(lane, DownReason::Corrupt);
                false
            }
        }
    }

    /// A lane that went down, and whose slot is another's by now.
    fn displaced(&mut self, lane: LaneId) -> Option<Lane> {
        let index = self.displaced.iter().position(|(of, _)| *of == lane)?;
        Some(self.displaced.swap_remove(index).1)
    }

    /// Gives credit, takes credit, and tells of room.
    fn tend(&mut self, lane: LaneId, handle: &mut impl FnMut(Event<'_>)) {
        let Some(found) = self.lanes.get_mut(lane).filter(|found| !found.closing) else { return };
        let Some(peer) = found.peer.as_mut() else { return };
        if let Some(credit) = found.reader.credit_due() {
            let to = RemoteSpan { region: peer.inbound, offset: (CREDIT * WORD) as u64 };
            let word = credit.to_le_bytes();
            // A lane without room is asked again in the next turn.
            if self.transport.post_write(lane, to, Source::bytes(&word), None).is_ok() {
                found.reader.credited(credit);
            }
        }
        let credit = u64::from_le(found.inbound.words()[CREDIT].load(Ordering::Acquire));
        if peer.writer.credit(credit).is_err() {
            return self.close_with(lane, DownReason::Corrupt);
        }
        let fits = found.starved.is_some_and(|len| peer.writer.fits(len));
        if fits && self.transport.has_room(lane) {
            found.starved = None;
            handle(Event::Room { lane });
        }
    }
}

/// What a look at a ring left.
enum Read {
    All,
    More,
    Corrupt,
}

impl Lane {
    /// Reports up to `limit` messages.
    fn read(&mut self, lane: LaneId, limit: usize, handle: &mut impl FnMut(Event<'_>)) -> Read {
        if self.closing || self.peer.is_none() {
            return Read::All;
        }
        let (head, words) = self.inbound.words().split_at(HEAD_BYTES / WORD);
        let extent = u64::from_le(head[EXTENT].load(Ordering::Acquire));
        if self.reader.extent(extent).is_err() {
            return Read::Corrupt;
        }
        for _ in 0..limit {
            match self.reader.next(words) {
                Found::Message(bytes) => handle(Event::Message { lane, bytes }),
                Found::Nothing => return Read::All,
                Found::Corrupt => return Read::Corrupt,
            }
        }
        Read::More
    }
}

/// Notes that `len` bytes were refused.
fn starve(starved: &mut Option<usize>, len: usize) {
    *starved = Some(starved.unwrap_or(0).max(len));
}

fn refused(starved: &mut Option<usize>, error: PostError, len: usize) -> SendError {
    match error {
        PostError::Full => {
            starve(starved, 0);
            SendError::Full
        }
        PostError::Dead => SendError::Dead,
        PostError::BadSource => SendError::TooLong { len, limit: MAX_WRITE_BYTES },
    }
}

impl<T> fmt::Debug for Endpoint<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("lanes", &self.lanes.lanes().count()).finish()
    }
}
