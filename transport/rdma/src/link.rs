//! One RDMA connection: writes and notes that are to leave, and what comes back.
//!
//! Nothing is handed to the adapter when it is posted. `flush` makes a chain of all that may leave, and
//! a note ends it; only the note's end is told, and the end of one work is the end of all before it.

mod inbound;
mod outbound;

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use halfmoon_transport::{DownReason, HeapMemory, Memory, RemoteSpan, Token, memory};
use rustc_hash::FxHashMap;

use crate::deal::End;
use crate::note::{NOTE_BYTES, Say};
use crate::place::Place;
use crate::staging::Staging;
use crate::verbs::{CompletionQueue, Device, NOTES_DEPTH, QueuePair, Reach, Registration};

use crate::work::Failure;

pub(crate) use inbound::News;
use outbound::Chain;

/// Bytes queued on a lane beyond which it takes no more, as over TCP.
pub(crate) const QUEUE_BYTES: usize = 8 << 20;

/// What a write or a note counts beside its bytes, so that their number is bounded as well.
const ITEM_BYTES: usize = 64;

/// Registered room for bytes on their way.
const STAGING_BYTES: usize = 1 << 20;

/// Memory that is registered anyway is sent from where it lies, if it is at least so much.
pub(crate) const DIRECT_BYTES: usize = 16 << 10;

/// Most bytes of one work. A long write is several, which the adapter places one after the other.
const PIECE_BYTES: usize = 256 << 10;

/// After so many bytes the adapter tells what it has done, so that one that is busy with a long chain
/// is not taken for one that has stalled: at 1 MB/s it is still in time.
const TOLD_BYTES: usize = 4 << 20;

/// Most answers that wait for the peer to give room for notes. One that asks has room for them.
const ANSWERS_MAX: usize = 1024;

/// How long the adapter may take for what it was given. It gives up by itself long before, but some
/// that are made of software do not.
const STALL_TIME: Duration = Duration::from_secs(5);

/// What each side writes into the other's first word, to see that writes arrive.
const FIRST_WORD: u64 = u64::from_le_bytes(*b"halfmoon");

/// The name that the peer's first word has until the lane is up: no region has it.
const FIRST_REGION: u32 = 0;

/// The memory of a link: room for notes that come, and for bytes that leave.
const NOTE_STRIDE: usize = 64;
const STAGING_AT: usize = NOTES_DEPTH as usize * NOTE_STRIDE;

/// Marks the ids of receives.
const RECEIVE: u64 = 1 << 63;

/// A connection.
pub(crate) struct Link {
    /// Before the registration below, whose memory its notes come into.
    pair: QueuePair,
    completions: Rc<CompletionQueue>,
    place: Place,
    first_packet: u32,
    connected: bool,
    desk: Registration,
    /// The word that the peer writes to first; revoked once the lane is up.
    first: Option<Registration>,
    /// What the peer has told of its regions.
    remotes: FxHashMap<u32, Remote>,
    queue: VecDeque<Item>,
    queued: usize,
    /// Notes that do not wait for writes.
    urgent: VecDeque<Say>,
    /// Notes in `queue` that answer the peer.
    answers: usize,
    staging: Staging,
    /// Items in `queue` whose bytes have no room in `staging` yet: those that come after them get
    /// theirs after them.
    unstaged: usize,
    flights: VecDeque<Flight>,
    /// Reused between flushes, so that none allocates.
    chain: Chain,
    /// When the adapter was last seen to do something for this link, or was given something to do.
    last_progress: Instant,
    /// Works that the adapter has and has not finished.
    works: usize,
    next_id: u64,
    /// Of writes whose place in the peer's memory is to be told, in order.
    tokens: VecDeque<Token>,
    counts: Counts,
    /// The region that the peer was asked about: nothing leaves until it answers.
    asked: Option<u32>,
    /// The last region of which the peer said that it is withdrawn: writes to it are dropped.
    dropped: Option<u32>,
}

/// What is counted in both directions.
#[derive(Default)]
struct Counts {
    notes_sent: u32,
    /// Of those, how many the peer has taken.
    notes_returned: u32,
    notes_taken: u32,
    /// What the peer was told of that.
    told_taken: u32,
    /// Signalled writes that were handed to the adapter, or dropped.
    signalled: u64,
    /// Of those, how many the peer knows to be in place.
    placed: u64,
    /// Signalled writes of the peer that are in place.
    their_signalled: u64,
    /// What the peer was told of that.
    told_placed: u64,
}

#[derive(Clone, Copy)]
struct Remote {
    address: u64,
    len: u64,
    rkey: u32,
}

enum Item {
    Note(Say),
    Write(Queued),
}

struct Queued {
    to: RemoteSpan,
    len: usize,
    /// How much of it has left.
    done: usize,
    load: Load,
    token: Option<Token>,
}

enum Load {
    /// In `staging`, at this offset; before it, what had been taken up to `since`.
    Staged {
        at: usize,
        since: u64,
    },
    Bytes(Vec<u8>),
    Memory {
        memory: Arc<dyn Memory>,
        offset: usize,
    },
    Registered {
        from: Rc<Registration>,
        offset: usize,
    },
}

/// Works of one chain.
struct Flight {
    /// The id of the last.
    id: u64,
    works: usize,
    /// Up to where `staging` is free when it has ended.
    staged: u64,
    /// Kept registered until then.
    _sources: Vec<Rc<Registration>>,
}

impl Link {
    /// An end that is not connected. `key` comes with the events of its completion queue.
    pub(crate) fn new(
        device: &Rc<Device>,
        place: Place,
        key: u64,
        first_packet: u32,
    ) -> io::Result<Self> {
        let memory = Arc::new(HeapMemory::new(STAGING_AT + STAGING_BYTES));
        let desk = Registration::new(device, memory, Reach::Local)?;
        let word = Arc::new(HeapMemory::new(size_of::<u64>()));
        let first = Some(Registration::new(device, word, Reach::Peer)?);
        let completions = CompletionQueue::new(device, key)?;
        let pair = QueuePair::new(&completions, place.port)?;
        for slot in 0..NOTES_DEPTH as usize {
            pair.receive(RECEIVE | slot as u64, &desk, slot * NOTE_STRIDE)?;
        }
        Ok(Self {
            pair,
            completions,
            place,
            first_packet,
            connected: false,
            desk,
            first,
            remotes: FxHashMap::default(),
            queue: VecDeque::new(),
            queued: 0,
            urgent: VecDeque::new(),
            answers: 0,
            staging: Staging::new(STAGING_BYTES as u64),
            unstaged: 0,
            flights: VecDeque::new(),
            chain: Chain::default(),
            last_progress: Instant::now(),
            works: 0,
            next_id: 0,
            tokens: VecDeque::new(),
            counts: Counts::default(),
            asked: None,
            dropped: None,
        })
    }

    /// What the peer has to know of it.
    pub(crate) fn end(&self) -> End {
        End {
            gid: self.place.gid,
            queue_pair: self.pair.number(),
            first_packet: self.first_packet,
            mtu: self.place.mtu,
            address: self.first.as_ref().map_or(0, Registration::address),
            rkey: self.first.as_ref().map_or(0, Registration::rkey),
        }
    }

    /// Where it tells what has been done.
    pub(crate) fn completions(&self) -> &Rc<CompletionQueue> {
        &self.completions
    }

    /// Connects it; writes to the peer's first word go to [`FIRST_REGION`] until `begun`.
    pub(crate) fn connect(&mut self, end: &End) -> io::Result<()> {
        self.pair.connect(&self.place, self.first_packet, end)?;
        let word = Remote { address: end.address, len: 8, rkey: end.rkey };
        self.remotes.insert(FIRST_REGION, word);
        self.connected = true;
        Ok(())
    }

    /// Whether it is connected.
    pub(crate) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Queues the first write and the first note; regions were named before them.
    pub(crate) fn greet(&mut self) {
        let to = RemoteSpan { region: halfmoon_transport::RegionId(FIRST_REGION), offset: 0 };
        let word = FIRST_WORD.to_le_bytes();
        let load = Load::Bytes(word.to_vec());
        self.unstaged += 1;
        self.push(Item::Write(Queued { to, len: word.len(), done: 0, load, token: None }));
        self.push_note(Say::Hello);
    }

    /// Whether the peer's first write is in place, which its first note says.
    pub(crate) fn is_greeted(&self) -> bool {
        self.first.as_ref().is_some_and(|first| {
            let word = first.memory().words()[0].load(Ordering::Acquire);
            u64::from_le(word) == FIRST_WORD
        })
    }

    /// The lane is up: the peer's first word is out of reach from now on.
    pub(crate) fn begun(&mut self) {
        self.remotes.remove(&FIRST_REGION);
        self.first = None;
    }

    /// Whether all that was posted is in the peer's memory.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.flights.is_empty()
    }

    /// Whether the adapter has not done in time what it was given. The peer's adapter answers by itself,
    /// whatever its node does.
    pub(crate) fn is_stalled(&self, now: Instant) -> bool {
        !self.flights.is_empty() && now > self.last_progress + STALL_TIME
    }

    /// Whether another write is taken.
    pub(crate) fn has_room(&self) -> bool {
        self.queued <= QUEUE_BYTES
    }

    fn note_slot(&self, slot: usize) -> Option<[u8; NOTE_BYTES]> {
        let mut bytes = [0; NOTE_BYTES];
        let at = (slot * NOTE_STRIDE) as u64;
        memory::copy_out(self.desk.memory().words(), at, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// What the end of a lane is called that failed so.
fn reason(failure: Failure) -> DownReason {
    DownReason::Lost(match failure {
        Failure::Refused => io::ErrorKind::PermissionDenied,
        Failure::Silent => io::ErrorKind::TimedOut,
        Failure::Flushed => io::ErrorKind::ConnectionAborted,
        Failure::Mute | Failure::Other(_) => io::ErrorKind::Other,
    })
}

/// The id of what tests hand to the adapter beside all that is kept count of.
#[cfg(test)]
pub(crate) const SCRIBBLE: u64 = 1 << 62;

#[cfg(test)]
impl Link {
    /// What the peer has told of a region: address and key.
    pub(crate) fn remote(&self, region: halfmoon_transport::RegionId) -> Option<(u64, u32)> {
        self.remotes.get(&region.0).map(|remote| (remote.address, remote.rkey))
    }

    /// Writes wherever a key may lead.
    pub(crate) fn scribble(&mut self, (address, rkey): (u64, u32), bytes: &[u8]) {
        memory::copy_in(self.desk.memory().words(), STAGING_AT as u64, bytes).unwrap();
        let (from, len) = (&self.desk, bytes.len());
        let what = crate::work::What::Write { from, offset: STAGING_AT, len, address, rkey };
        let work = crate::work::Work { id: SCRIBBLE, signalled: true, what };
        self.pair.post([work].into_iter()).unwrap();
    }

    /// Sends a note beside all that is kept count of.
    pub(crate) fn note_without_count(&mut self) {
        let Counts { notes_taken, signalled, their_signalled, .. } = self.counts;
        let (taken, placed) = (notes_taken, their_signalled);
        let note = crate::note::Note { say: Say::Writes, taken, signalled, placed };
        let bytes = note.encode();
        let what = crate::work::What::Note(&bytes);
        let work = crate::work::Work { id: SCRIBBLE, signalled: false, what };
        self.pair.post([work].into_iter()).unwrap();
    }

    /// Sends a note that is none.
    pub(crate) fn note_of_garbage(&mut self) {
        let what = crate::work::What::Note(&[0xa5; NOTE_BYTES]);
        let work = crate::work::Work { id: SCRIBBLE, signalled: true, what };
        self.pair.post([work].into_iter()).unwrap();
    }
}
