//! The beginning of a lane, when both sides offer RDMA: what they say over TCP until it is decided.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use halfmoon_tcp::Tcp;
use halfmoon_transport::mailbox::{Found, MIN_RING_BYTES, RingReader, RingWriter};
use halfmoon_transport::memory::WORD;
use halfmoon_transport::{
    Access, HeapMemory, LaneId, Memory, RegionId, RemoteSpan, Source, Transport as _,
};

use crate::deal::Deal;

/// Distinguishes the rings of meetings from no others: each is in memory of its own.
const EPOCH: u32 = 1;

/// Where the ring begins: the first word is its extent.
const HEAD_BYTES: usize = WORD;

/// A lane that is not decided. What is said goes through a ring at each side, written over TCP.
pub(crate) struct Meeting {
    memory: Arc<HeapMemory>,
    pub(crate) region: RegionId,
    reader: RingReader,
    writer: RingWriter,
    /// The peer's region, once it has greeted.
    theirs: Option<RegionId>,
    /// The peer's greeting, which is told when it is decided.
    pub(crate) greeting: Vec<u8>,
    /// When the side that decides does so in any case, and the other gives up.
    pub(crate) until: Option<Instant>,
    /// The peer's first note has come.
    pub(crate) heard: bool,
    /// The peer has told that ours has come.
    pub(crate) arrived: bool,
}

impl Meeting {
    /// Offers a lane's peer a region to write to; `None` if it cannot be exposed.
    pub(crate) fn new(tcp: &mut Tcp, lane: LaneId) -> Option<Self> {
        let memory = Arc::new(HeapMemory::new(HEAD_BYTES + MIN_RING_BYTES));
        let region = tcp.expose(memory.clone(), Access::Lane(lane)).ok()?;
        let reader = RingReader::new(MIN_RING_BYTES, EPOCH);
        let writer = RingWriter::new(MIN_RING_BYTES, EPOCH);
        let (greeting, theirs, until) = (Vec::new(), None, None);
        let (heard, arrived) = (false, false);
        Some(Self { memory, region, reader, writer, theirs, greeting, until, heard, arrived })
    }

    /// The peer has greeted, and offers a region too.
    pub(crate) fn begin(&mut self, theirs: RegionId, greeting: Vec<u8>, until: Instant) {
        self.theirs = Some(theirs);
        self.greeting = greeting;
        self.until = Some(until);
    }

    /// Whether the peer has greeted.
    pub(crate) fn has_begun(&self) -> bool {
        self.theirs.is_some()
    }

    /// Says something to the peer. Each side says no more than a handful of things, for which the ring
    /// has room; what does not fit because the peer is broken is lost like what it does not read.
    pub(crate) fn say(&mut self, tcp: &mut Tcp, lane: LaneId, deal: Deal) {
        let Some(region) = self.theirs else { return };
        let bytes = deal.encode();
        let Ok(placement) = self.writer.place(&[&bytes]) else { return };
        let tail = &[0; 8][..placement.fill];
        let entry = Source::Bytes { head: &placement.header, parts: &[&bytes], tail };
        let to = |offset| RemoteSpan { region, offset };
        let offset = HEAD_BYTES as u64 + placement.offset;
        if tcp.post_write(lane, to(offset), entry, None).is_ok() {
            self.writer.commit(&placement);
        }
        let Some(extent) = self.writer.extent_due() else { return };
        if tcp.post_write(lane, to(0), Source::bytes(&extent.to_le_bytes()), None).is_ok() {
            self.writer.told(extent);
        }
    }

    /// What the peer has said; `None` if there is nothing, an error if it is corrupt.
    pub(crate) fn hear(&mut self) -> Option<Result<Deal, Corrupt>> {
        let (head, words) = self.memory.words().split_at(HEAD_BYTES / WORD);
        if self.reader.extent(u64::from_le(head[0].load(Ordering::Acquire))).is_err() {
            return Some(Err(Corrupt));
        }
        match self.reader.next(words) {
            Found::Message(bytes) => Some(Deal::parse(bytes).ok_or(Corrupt)),
            Found::Nothing => None,
            Found::Corrupt => Some(Err(Corrupt)),
        }
    }
}

/// The peer said what means nothing.
#[derive(Debug)]
pub(crate) struct Corrupt;
