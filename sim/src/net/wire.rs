//! One direction of a lane: what is on its way, and how it arrives.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use halfmoon_transport::contract::MAX_GREETING_BYTES;
use halfmoon_transport::memory::{self, WORD};
use halfmoon_transport::regions::Target;
use halfmoon_transport::{DownReason, LaneId, Memory, Occurrence, RemoteSpan};

use super::{Lane, WRITE_BYTES, What, Wires};
use crate::time::MILLI;

/// Pause before a connection that does not get through is tried again, and how often it is.
const DIAL_AGAIN_NS: u64 = 20 * MILLI;
const DIAL_TRIES: u32 = 5;

/// Most steps in which the words of a torn write appear.
const STEPS_MAX: u64 = 4;

/// What a write carries.
pub(crate) enum Load {
    Bytes(Vec<u8>),
    /// Read when it arrives.
    Memory {
        memory: Arc<dyn Memory>,
        offset: u64,
        len: usize,
    },
}

/// What travels.
pub(crate) enum Parcel {
    Greeting(Vec<u8>),
    Write {
        to: RemoteSpan,
        load: Load,
        signalled: bool,
    },
    /// The sender died meanwhile: some of the words appear, and nothing after them.
    Half {
        to: RemoteSpan,
        load: Load,
    },
    Applied,
    Gone,
}

/// Parcels that arrive together.
struct Batch {
    at: u64,
    parcels: VecDeque<Parcel>,
}

/// A write some of whose words have appeared.
struct Torn {
    to: RemoteSpan,
    bytes: Vec<u8>,
    /// The words that are missing, as indices into the write, in the order in which they appear.
    missing: Vec<u32>,
    resume_at: u64,
    signalled: bool,
}

/// One direction of a lane.
pub(crate) struct Wire {
    pub(super) from: usize,
    from_lane: LaneId,
    pub(super) to: usize,
    to_lane: LaneId,
    batches: VecDeque<Batch>,
    torn: Option<Torn>,
    last_at: u64,
    /// When the next event for it is due.
    pub(super) scheduled: Option<u64>,
    /// The receiver's end is down: nothing arrives any more.
    pub(super) dead: bool,
    /// Nothing is taken any more: the lane is broken, or its sender gone.
    pub(super) closed: bool,
}

impl Load {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Memory { len, .. } => *len,
        }
    }

    fn take(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Memory { memory, offset, len } => {
                let mut bytes = Vec::with_capacity(len);
                let read = memory::append_out(memory.words(), offset, len, &mut bytes);
                assert!(read.is_ok(), "the range was checked when it was posted");
                bytes
            }
        }
    }
}

impl Wire {
    fn new((from, from_lane): (usize, LaneId), (to, to_lane): (usize, LaneId)) -> Self {
        Self {
            from,
            from_lane,
            to,
            to_lane,
            batches: VecDeque::new(),
            torn: None,
            last_at: 0,
            scheduled: None,
            dead: false,
            closed: false,
        }
    }

    pub(super) fn receiver(&self) -> (usize, LaneId) {
        (self.to, self.to_lane)
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.dead && (self.torn.is_some() || !self.batches.is_empty())
    }
}

impl Wires {
    /// A connection reaches the address where `to` listens, if it gets through.
    pub(super) fn reach(&mut self, site: usize, lane: LaneId, to: usize, tries: u32) {
        if !self.sites[site].alive || self.sites[site].lanes.get(lane).is_none() {
            return;
        }
        if !self.sites[to].alive {
            let kind = io::ErrorKind::ConnectionRefused;
            return self.down(site, lane, DownReason::Unreachable(kind));
        }
        if self.is_cut(site, to) || self.is_cut(to, site) {
            if tries >= DIAL_TRIES {
                let kind = io::ErrorKind::TimedOut;
                return self.down(site, lane, DownReason::Unreachable(kind));
            }
            let at = self.now + DIAL_AGAIN_NS;
            return self.schedule(at, What::Dial { site, lane, to, tries: tries + 1 });
        }
        let Some(theirs) = self.sites[to].lanes.add(Lane::default()) else {
            let kind = io::ErrorKind::ConnectionRefused;
            return self.down(site, lane, DownReason::Unreachable(kind));
        };
        let (out, back) = (self.wires.len(), self.wires.len() + 1);
        self.wires.push(Wire::new((site, lane), (to, theirs)));
        self.wires.push(Wire::new((to, theirs), (site, lane)));
        if let Some(found) = self.sites[to].lanes.get_mut(theirs) {
            (found.out, found.inbound) = (Some(back), Some(out));
        }
        let mut greeting = None;
        if let Some(found) = self.sites[site].lanes.get_mut(lane) {
            (found.out, found.inbound) = (Some(out), Some(back));
            greeting = found.greeting.take();
        }
        if let Some(bytes) = greeting {
            self.send(out, [Parcel::Greeting(bytes)]);
        }
        self.tell(to, Occurrence::Incoming { lane: theirs });
    }

    /// Puts parcels on a wire, behind what is on it.
    pub(super) fn send(&mut self, wire: usize, parcels: impl IntoIterator<Item = Parcel>) {
        let delay = self.delay();
        let at = (self.now + delay).max(self.wires[wire].last_at);
        let found = &mut self.wires[wire];
        if found.closed || found.dead {
            return;
        }
        found.last_at = at;
        found.batches.push_back(Batch { at, parcels: parcels.into_iter().collect() });
        self.expect(wire, at);
    }

    /// Makes sure that the wire is looked at by `at`.
    fn expect(&mut self, wire: usize, at: u64) {
        let found = &mut self.wires[wire];
        if found.scheduled.is_none_or(|before| before > at) {
            found.scheduled = Some(at);
            self.schedule(at, What::Wire(wire));
        }
    }

    /// Hands over what has arrived.
    pub(super) fn run(&mut self, wire: usize) {
        loop {
            let now = self.now;
            let found = &mut self.wires[wire];
            if found.dead {
                found.batches.clear();
                found.torn = None;
                return;
            }
            if let Some(torn) = found.torn.take() {
                if torn.resume_at > now {
                    let at = torn.resume_at;
                    found.torn = Some(torn);
                    return self.expect(wire, at);
                }
                self.step(wire, torn);
                continue;
            }
            let Some(front) = found.batches.front_mut() else { return };
            let (at, from, to) = (front.at, found.from, found.to);
            if at > now {
                return self.expect(wire, at);
            }
            if self.is_cut(from, to) {
                return;
            }
            let parcel = self.wires[wire].batches.front_mut().and_then(|b| b.parcels.pop_front());
            match parcel {
                Some(parcel) => self.arrived(wire, parcel),
                None => drop(self.wires[wire].batches.pop_front()),
            }
        }
    }

    fn arrived(&mut self, wire: usize, parcel: Parcel) {
        let Wire { to, to_lane, .. } = self.wires[wire];
        match parcel {
            Parcel::Greeting(greeting) => {
                let Some(found) = self.sites[to].lanes.get_mut(to_lane) else { return };
                if found.up {
                    return;
                }
                if greeting.len() > MAX_GREETING_BYTES {
                    return self.down(to, to_lane, DownReason::NotHalfmoon);
                }
                found.up = true;
                self.tell(to, Occurrence::Greeted { lane: to_lane, greeting });
            }
            Parcel::Write { to: span, load, signalled } => {
                self.write(wire, span, load, signalled);
            }
            Parcel::Half { to: span, load } => {
                self.counts.half += 1;
                if let Target::Memory(memory) =
                    self.sites[to].regions.target(to_lane, span, load.len())
                {
                    let memory = Arc::clone(memory);
                    let bytes = load.take();
                    let words = self.shuffled(span, bytes.len());
                    let count = self.random.index(words.len() + 1);
                    put_words(&*memory, span, &bytes, &words[..count]);
                    self.wake(to);
                }
            }
            Parcel::Applied => {
                let found = self.sites[to].lanes.get_mut(to_lane);
                if let Some(token) = found.and_then(|found| found.tokens.pop_front()) {
                    self.tell(to, Occurrence::Completed { lane: to_lane, token });
                }
            }
            Parcel::Gone => self.down(to, to_lane, DownReason::PeerClosed),
        }
    }

    fn write(&mut self, wire: usize, span: RemoteSpan, load: Load, signalled: bool) {
        let Wire { from, from_lane, to, to_lane, .. } = self.wires[wire];
        self.counts.writes += 1;
        let len = load.len();
        if let Some(sender) = self.sites[from].lanes.get_mut(from_lane) {
            sender.load = sender.load.saturating_sub(len + WRITE_BYTES);
        }
        match self.sites[to].regions.target(to_lane, span, len) {
            Target::Memory(memory) => {
                let memory = Arc::clone(memory);
                let bytes = load.take();
                if len > WORD && self.random.chance(self.profile.torn) {
                    self.counts.torn += 1;
                    let missing = self.shuffled(span, len);
                    let resume_at = self.now;
                    return self
                        .step(wire, Torn { to: span, bytes, missing, resume_at, signalled });
                }
                let written = memory::copy_in(memory.words(), span.offset, &bytes);
                assert!(written.is_ok(), "the target was judged to lie within the memory");
            }
            Target::Withdrawn => {}
            Target::Forbidden => return self.down(to, to_lane, DownReason::OutOfBounds),
        }
        self.wake(to);
        self.completed(wire, signalled);
    }

    fn completed(&mut self, wire: usize, signalled: bool) {
        if signalled {
            let Wire { to, to_lane, .. } = self.wires[wire];
            let back = self.sites[to].lanes.get(to_lane).and_then(|found| found.out);
            if let Some(back) = back {
                self.send(back, [Parcel::Applied]);
            }
        }
    }

    /// More words of a torn write appear.
    fn step(&mut self, wire: usize, mut torn: Torn) {
        let Wire { to, to_lane, .. } = self.wires[wire];
        let target = self.sites[to].regions.target(to_lane, torn.to, torn.bytes.len());
        let memory = match target {
            Target::Memory(memory) => Arc::clone(memory),
            // Withdrawn meanwhile: the rest is dropped.
            Target::Withdrawn | Target::Forbidden => {
                self.wake(to);
                return self.completed(wire, torn.signalled);
            }
        };
        let share = torn.missing.len() as u64 / self.random.within(1, STEPS_MAX);
        let count = usize::try_from(share).unwrap_or(0).clamp(1, torn.missing.len().max(1));
        let count = count.min(torn.missing.len());
        let rest = torn.missing.split_off(count);
        put_words(&*memory, torn.to, &torn.bytes, &torn.missing);
        self.wake(to);
        if rest.is_empty() {
            return self.completed(wire, torn.signalled);
        }
        torn.missing = rest;
        torn.resume_at = self.now + self.random.within(1, self.profile.torn_ns);
        let at = torn.resume_at;
        self.wires[wire].torn = Some(torn);
        self.expect(wire, at);
    }

    /// The words that a write touches, in random order.
    fn shuffled(&mut self, span: RemoteSpan, len: usize) -> Vec<u32> {
        let skip = usize::try_from(span.offset).unwrap_or(0) % WORD;
        let count = u32::try_from((skip + len).div_ceil(WORD)).unwrap_or(u32::MAX);
        let mut words: Vec<u32> = (0..count).collect();
        for index in (1..words.len()).rev() {
            words.swap(index, self.random.index(index + 1));
        }
        words
    }

    /// One end of a lane goes down; the other learns of it behind what is on its way.
    pub(super) fn down(&mut self, site: usize, lane: LaneId, reason: DownReason) {
        let Some(gone) = self.sites[site].lanes.remove(lane) else { return };
        self.sites[site].regions.withdraw_lane(lane);
        if let Some(inbound) = gone.inbound {
            self.wires[inbound].dead = true;
        }
        if let Some(out) = gone.out {
            self.send(out, gone.posted.into_iter().chain([Parcel::Gone]));
            self.wires[out].closed = true;
        }
        self.tell(site, Occurrence::Down { lane, reason });
    }

    /// The sender of a wire is no more. Any prefix of what is on its way arrives, the last write
    /// perhaps in part; with `notice`, the receiver learns of it after so long.
    pub(super) fn sever(&mut self, wire: usize, posted: Vec<Parcel>, notice: Option<u64>) {
        if self.wires[wire].closed || self.wires[wire].dead {
            return;
        }
        if !posted.is_empty() {
            self.send(wire, posted);
        }
        let total: usize = self.wires[wire].batches.iter().map(|batch| batch.parcels.len()).sum();
        let mut keep =
            if self.random.chance(400_000) { total } else { self.random.index(total + 1) };
        let half = self.random.chance(500_000);
        if half && self.wires[wire].torn.take().is_some() {
            // The write that was appearing stops here, so nothing after it may appear.
            self.counts.half += 1;
            keep = 0;
        }
        let found = &mut self.wires[wire];
        let (mut cut_off, kept) = (None, keep);
        for batch in &mut found.batches {
            if batch.parcels.len() > keep {
                let mut lost = batch.parcels.split_off(keep);
                cut_off = cut_off.or(lost.pop_front().map(|parcel| (batch.at, parcel)));
            }
            keep -= batch.parcels.len();
        }
        let half = half && kept > 0;
        if let (true, Some((at, Parcel::Write { to, load, .. }))) = (half, cut_off) {
            let parcels = VecDeque::from([Parcel::Half { to, load }]);
            found.batches.push_back(Batch { at, parcels });
        }
        found.batches.retain(|batch| !batch.parcels.is_empty());
        found.closed = true;
        if let Some(notice) = notice {
            found.last_at = found.last_at.max(self.now + notice);
            let (at, parcels) = (found.last_at, VecDeque::from([Parcel::Gone]));
            found.batches.push_back(Batch { at, parcels });
            self.expect(wire, at);
        }
        if let Some(front) = self.wires[wire].batches.front() {
            let at = front.at;
            self.expect(wire, at);
        }
    }
}

/// Stores some of a write's words.
fn put_words(memory: &dyn Memory, to: RemoteSpan, bytes: &[u8], words: &[u32]) {
    let skip = usize::try_from(to.offset).unwrap_or(0) % WORD;
    for word in words {
        let start = (*word as usize * WORD).saturating_sub(skip);
        let end = ((*word as usize + 1) * WORD - skip).min(bytes.len());
        let whole = end - start == WORD && (skip == 0 || start > 0);
        let offset = to.offset + start as u64;
        if whole && offset.is_multiple_of(WORD as u64) {
            let index = usize::try_from(offset).unwrap_or(0) / WORD;
            if let (Some(at), Some(chunk)) =
                (memory.words().get(index), bytes[start..].first_chunk::<WORD>())
            {
                at.store(u64::from_ne_bytes(*chunk), Ordering::Release);
                continue;
            }
        }
        let written = memory::copy_in(memory.words(), offset, &bytes[start..end]);
        assert!(written.is_ok(), "the target was judged to lie within the memory");
    }
}
