//! The transport between endpoints of one process.
//!
//! A [`LocalNet`] joins any number of endpoints, on one thread or many. What is posted travels as
//! parcels through an inbox; the receiver applies the writes to its regions in its own `poll`. So a
//! region is written by the thread that exposed it, as over TCP, and that thread never sees a
//! write half applied.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::contract::{
    Access, DialError, DownReason, ExposeError, LaneId, ListenError, MAX_GREETING_BYTES,
    MAX_WRITE_BYTES, Occurrence, PostError, RegionId, RemoteSpan, Source, Token, Transport, Wake,
};
use crate::lanes::{LaneMap, MAX_LANES};
use crate::memory::{self, Memory};
use crate::regions::{Regions, Target};

/// Bytes on their way on one lane, in one direction, beyond which it takes no more.
pub const QUEUE_BYTES: usize = 8 << 20;

/// What a write counts beside its bytes, so that the number of writes is bounded as well.
const WRITE_BYTES: usize = 64;

/// The addresses of one process.
#[derive(Clone, Default)]
pub struct LocalNet {
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    listening: BTreeMap<String, Arc<Inbox>>,
    /// How many addresses were made up.
    made_up: u64,
}

/// One endpoint's transport.
pub struct LocalTransport {
    net: LocalNet,
    inbox: Arc<Inbox>,
    addresses: Vec<String>,
    lanes: LaneMap<Lane>,
    regions: Regions,
    occurrences: Vec<Occurrence>,
}

/// What has arrived at an endpoint and was not polled yet; `None` when the endpoint is gone.
struct Inbox {
    parcels: Mutex<Option<VecDeque<Parcel>>>,
    waker: Arc<dyn Wake>,
}

/// What travels. `lane` is always the receiver's.
enum Parcel {
    Dial { from: Arc<Inbox>, theirs: LaneId, load: Load },
    Answer { lane: LaneId, from: Arc<Inbox>, theirs: LaneId },
    Greeting { lane: LaneId, bytes: Vec<u8> },
    Write { lane: LaneId, to: RemoteSpan, bytes: Vec<u8>, signalled: bool },
    Applied { lane: LaneId },
    Gone { lane: LaneId },
}

/// Bytes on their way on a lane, as its owner sees it.
#[derive(Clone, Default)]
struct Load {
    out: Arc<AtomicUsize>,
    back: Arc<AtomicUsize>,
}

struct Lane {
    inbox: Arc<Inbox>,
    /// The peer's name of the lane; `None` until it has answered.
    theirs: Option<LaneId>,
    /// A greeting that was given before that.
    greeting: Option<Vec<u8>>,
    /// Whether the peer has greeted.
    up: bool,
    /// What was posted and not yet handed over.
    posted: Vec<Parcel>,
    /// Tokens of signalled writes that have not completed, in order.
    tokens: VecDeque<Token>,
    load: Load,
}

impl LocalNet {
    /// A net without addresses.
    pub fn new() -> Self {
        Self::default()
    }

    /// A transport for one endpoint. The waker is used when something arrives.
    pub fn transport(&self, waker: Arc<dyn Wake>) -> LocalTransport {
        let inbox = Arc::new(Inbox { parcels: Mutex::new(Some(VecDeque::new())), waker });
        LocalTransport {
            net: self.clone(),
            inbox,
            addresses: Vec::new(),
            lanes: LaneMap::new(),
            regions: Regions::new(),
            occurrences: Vec::new(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn parcels(&self) -> MutexGuard<'_, Option<VecDeque<Parcel>>> {
        self.parcels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands parcels over; `false` if nobody is there to take them.
    fn put(&self, parcels: impl IntoIterator<Item = Parcel>) -> bool {
        match &mut *self.parcels() {
            Some(waiting) => waiting.extend(parcels),
            None => return false,
        }
        self.waker.wake();
        true
    }
}

impl Load {
    /// The same as the other side sees it.
    fn turned(&self) -> Self {
        Self { out: Arc::clone(&self.back), back: Arc::clone(&self.out) }
    }
}

impl Lane {
    fn new(inbox: Arc<Inbox>, theirs: Option<LaneId>, load: Load) -> Self {
        let (greeting, posted, tokens) = (None, Vec::new(), VecDeque::new());
        Self { inbox, theirs, greeting, up: false, posted, tokens, load }
    }

    fn takes_writes(&self) -> Option<LaneId> {
        self.theirs.filter(|_| self.up)
    }
}

impl LocalTransport {
    fn arrived(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Dial { from, theirs, load } => {
                match self.lanes.add(Lane::new(Arc::clone(&from), Some(theirs), load)) {
                    Some(lane) => {
                        let inbox = Arc::clone(&self.inbox);
                        from.put([Parcel::Answer { lane: theirs, from: inbox, theirs: lane }]);
                        self.occurrences.push(Occurrence::Incoming { lane });
                    }
                    None => _ = from.put([Parcel::Gone { lane: theirs }]),
                }
            }
            Parcel::Answer { lane, from, theirs } => match self.lanes.get_mut(lane) {
                Some(found) => {
                    found.theirs = Some(theirs);
                    let greeting = found.greeting.take();
                    let parcel = |bytes| Parcel::Greeting { lane: theirs, bytes };
                    found.posted.extend(greeting.map(parcel));
                }
                // Closed in the meantime.
                None => _ = from.put([Parcel::Gone { lane: theirs }]),
            },
            Parcel::Greeting { lane, bytes } => self.greeted(lane, bytes),
            Parcel::Write { lane, to, bytes, signalled } => {
                self.apply(lane, to, &bytes, signalled);
            }
            Parcel::Applied { lane } => {
                let token = self.lanes.get_mut(lane).and_then(|found| found.tokens.pop_front());
                let completed = |token| Occurrence::Completed { lane, token };
                self.occurrences.extend(token.map(completed));
            }
            Parcel::Gone { lane } => self.down(lane, DownReason::PeerClosed),
        }
    }

    fn greeted(&mut self, lane: LaneId, greeting: Vec<u8>) {
        let Some(found) = self.lanes.get_mut(lane).filter(|found| !found.up) else { return };
        if greeting.len() > MAX_GREETING_BYTES {
            return self.down(lane, DownReason::NotHalfmoon);
        }
        found.up = true;
        self.occurrences.push(Occurrence::Greeted { lane, greeting });
    }

    fn apply(&mut self, lane: LaneId, to: RemoteSpan, bytes: &[u8], signalled: bool) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        found.load.back.fetch_sub(bytes.len() + WRITE_BYTES, Ordering::AcqRel);
        match self.regions.target(lane, to, bytes.len()) {
            Target::Memory(memory) => {
                if memory::copy_in(memory.words(), to.offset, bytes).is_err() {
                    return self.down(lane, DownReason::OutOfBounds);
                }
            }
            Target::Withdrawn => {}
            Target::Forbidden => return self.down(lane, DownReason::OutOfBounds),
        }
        if let Some(theirs) = found.theirs.filter(|_| signalled) {
            found.posted.push(Parcel::Applied { lane: theirs });
        }
    }

    fn down(&mut self, lane: LaneId, reason: DownReason) {
        let Some(gone) = self.lanes.remove(lane) else { return };
        let last = gone.theirs.map(|lane| Parcel::Gone { lane });
        // A peer that is gone as well needs no telling.
        gone.inbox.put(gone.posted.into_iter().chain(last));
        self.regions.withdraw_lane(lane);
        self.occurrences.push(Occurrence::Down { lane, reason });
    }
}

impl Transport for LocalTransport {
    /// Any name does; one that ends with `:0` is replaced by one that nobody has.
    fn listen(&mut self, address: &str) -> Result<String, ListenError> {
        let mut book = self.net.book();
        let mut name = address.to_owned();
        if address.ends_with(":0") {
            book.made_up += 1;
            name = format!("local:{}", book.made_up);
        }
        if book.listening.contains_key(&name) {
            return Err(ListenError::InUse { address: name });
        }
        book.listening.insert(name.clone(), Arc::clone(&self.inbox));
        self.addresses.push(name.clone());
        Ok(name)
    }

    fn dial(&mut self, address: &str) -> Result<LaneId, DialError> {
        let there = self.net.book().listening.get(address).cloned();
        let load = Load::default();
        let inbox = there.clone().unwrap_or_else(|| Arc::clone(&self.inbox));
        let lane = self.lanes.add(Lane::new(inbox, None, load.clone()));
        let lane = lane.ok_or(DialError::TooManyLanes { limit: MAX_LANES })?;
        let from = Arc::clone(&self.inbox);
        let dial = Parcel::Dial { from, theirs: lane, load: load.turned() };
        if !there.is_some_and(|there| there.put([dial])) {
            self.down(lane, DownReason::Unreachable(io::ErrorKind::ConnectionRefused));
        }
        Ok(lane)
    }

    fn greet(&mut self, lane: LaneId, greeting: &[u8]) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        let bytes = greeting.to_vec();
        match found.theirs {
            Some(theirs) => found.posted.push(Parcel::Greeting { lane: theirs, bytes }),
            None => found.greeting = Some(bytes),
        }
    }

    fn close(&mut self, lane: LaneId, reason: DownReason) {
        self.down(lane, reason);
    }

    fn expose(&mut self, memory: Arc<dyn Memory>, access: Access) -> Result<RegionId, ExposeError> {
        if let Access::Lane(lane) = access
            && self.lanes.get(lane).is_none()
        {
            return Err(ExposeError::Dead);
        }
        self.regions.expose(memory, access)
    }

    fn withdraw(&mut self, region: RegionId) {
        self.regions.withdraw(region);
    }

    fn post_write(
        &mut self,
        lane: LaneId,
        to: RemoteSpan,
        source: Source<'_>,
        token: Option<Token>,
    ) -> Result<(), PostError> {
        let found = self.lanes.get_mut(lane).ok_or(PostError::Dead)?;
        let theirs = found.takes_writes().ok_or(PostError::Dead)?;
        if found.load.out.load(Ordering::Acquire) > QUEUE_BYTES {
            return Err(PostError::Full);
        }
        let len = source.len();
        if len > MAX_WRITE_BYTES {
            return Err(PostError::BadSource);
        }
        let mut bytes = Vec::with_capacity(len);
        match source {
            Source::Bytes { head, parts, tail } => {
                bytes.extend_from_slice(head);
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                bytes.extend_from_slice(tail);
            }
            Source::Memory { memory, offset, len } => {
                memory::append_out(memory.words(), offset, len, &mut bytes)
                    .map_err(|_| PostError::BadSource)?;
            }
        }
        found.load.out.fetch_add(len + WRITE_BYTES, Ordering::AcqRel);
        let signalled = token.is_some();
        found.tokens.extend(token);
        found.posted.push(Parcel::Write { lane: theirs, to, bytes, signalled });
        Ok(())
    }

    fn has_room(&self, lane: LaneId) -> bool {
        self.lanes.get(lane).is_some_and(|found| {
            found.takes_writes().is_some() && found.load.out.load(Ordering::Acquire) <= QUEUE_BYTES
        })
    }

    fn flush(&mut self) {
        for slot in 0..self.lanes.slots() {
            let Some(lane) = self.lanes.lane_at(slot) else { continue };
            let Some(found) = self.lanes.get_mut(lane) else { continue };
            // A peer that is gone has said so, or says so when it is polled for the last time.
            if !found.posted.is_empty() && !found.inbox.put(found.posted.drain(..)) {
                self.down(lane, DownReason::PeerClosed);
            }
        }
    }

    fn poll(&mut self, occurrences: &mut Vec<Occurrence>) {
        let parcels = self.inbox.parcels().as_mut().map(mem::take);
        for parcel in parcels.into_iter().flatten() {
            self.arrived(parcel);
        }
        occurrences.append(&mut self.occurrences);
    }
}

impl Drop for LocalTransport {
    /// Peers learn at once.
    fn drop(&mut self) {
        let mut book = self.net.book();
        for address in &self.addresses {
            book.listening.remove(address);
        }
        drop(book);
        let unread = self.inbox.parcels().take();
        for parcel in unread.into_iter().flatten() {
            if let Parcel::Dial { from, theirs, .. } = parcel {
                from.put([Parcel::Gone { lane: theirs }]);
            }
        }
        let lanes: Vec<LaneId> = self.lanes.lanes().collect();
        for lane in lanes {
            self.down(lane, DownReason::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{ADDRESS, Site};

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    fn world() -> impl FnMut() -> Site<LocalTransport> {
        let net = LocalNet::new();
        move || {
            let transport = net.transport(Arc::new(Nobody));
            Site { transport, rest: Box::new(|| {}), address: ADDRESS, carrier: None }
        }
    }

    crate::conformance_tests!(world());

    #[test]
    fn an_address_is_taken_until_its_endpoint_is_dropped() {
        let net = LocalNet::new();
        let mut first = net.transport(Arc::new(Nobody));
        let mut second = net.transport(Arc::new(Nobody));
        assert_eq!(first.listen("here").unwrap(), "here");
        assert!(matches!(second.listen("here"), Err(ListenError::InUse { .. })));
        drop(first);
        assert!(second.listen("here").is_ok());
        assert_ne!(second.listen("x:0").unwrap(), second.listen("x:0").unwrap());
    }
}
