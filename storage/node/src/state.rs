//! The native state store of one node.
//!
//! A write goes to the node's state log (same segments, same ring, same turn as the log itself) and
//! to a table in memory, the *overlay*. It is answered when the log has flushed it, and handed to the
//! embedded engine behind that. Reads ask the overlay, then a cache, then the engine on its thread.
//! Only what is durable is ever shown to a reader: a read that finds a newer value waits for its
//! flush.

mod answer;
mod cache;
pub(crate) mod entry;
mod reading;
mod request;
mod scan;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use halfmoon_log::{Checked, Log};
use halfmoon_reactor::AlignedBuffer;
use halfmoon_transport::LaneId;
use halfmoon_wire::{Epoch, Message, SeqNum, StateReply, StateRequest, broken};
use rustc_hash::FxHashMap;

use crate::NodeError;
use crate::disk::Disk;
use crate::ground::{Keeper, Opened, Segment, Which};
use crate::journal::Journal;
use crate::lanes::Lanes;
use crate::limits::{
    APPLY_MAX, CACHE_MAX_BYTES, COPY_OVERLAY_MAX_BYTES, FRAGMENT_MAX_BYTES, OVERLAY_MAX_BYTES,
    PARKED_MAX_BYTES,
};
use crate::metrics::{Metrics, add, set};
use crate::state::answer::{Ask, Shape, What};
use crate::state::cache::Cache;
use crate::state::entry::{base_key, cell_key, newer, split, version_key};
use crate::state::request::{RequestError, parse_put};
use crate::state::scan::Scans;

pub(crate) use entry::{Assembler, Item};
pub use entry::{Put, Rule};
pub use scan::{Page, Pair};
pub use store::{Engine, EngineEvent};
pub(crate) use store::{Store, contents};

/// The state store of one node.
pub(crate) struct State<F> {
    log: Log,
    journal: Journal<F>,
    engine: Box<dyn Engine>,
    /// What the engine does not have yet, by key.
    overlay: FxHashMap<Arc<[u8]>, Overlaid>,
    overlay_bytes: usize,
    cache: Cache,
    /// Writes on their way: logged, then durable, then handed over.
    unapplied: VecDeque<Put>,
    /// Writes that the engine is taking.
    applying: Vec<Put>,
    /// Entries up to this one are in the engine.
    applied: u64,
    /// Batches that the engine has taken.
    applies: u64,
    /// Bytes given to the engine since it was last asked to sync.
    unsynced: u64,
    syncing: bool,
    /// Answered once the log is durable up to the entry.
    waiting: BTreeMap<u64, Vec<Ask>>,
    /// Reads that the engine's thread works on.
    reading: BTreeMap<u64, Reading>,
    /// Reads of blobs, until the engine has all that was written before them.
    blobs: VecDeque<(u64, Ask)>,
    /// Writes without room, as they came.
    parked: VecDeque<(LaneId, Vec<u8>)>,
    parked_bytes: usize,
    /// What is asked in an older epoch is refused.
    promised: Epoch,
    /// All that any quorum acknowledged before this node was a member is here. Until it is, nobody
    /// is told what is here, as it may be old.
    whole: bool,
    scans: Scans,
    last_read: u64,
    metrics: Arc<Metrics>,
}

struct Overlaid {
    value: Arc<[u8]>,
    /// The write's last entry.
    number: u64,
    /// Known to be newer than what the engine has.
    settled: bool,
    /// Batches that the engine had taken when this place was empty last: it has all writes to the
    /// key that came before, and this place covers all that came since.
    since: u64,
}

/// A read that the engine's thread works on.
struct Reading {
    ask: Ask,
    /// Batches that the engine had taken when it began.
    applies: u64,
    /// The overlay had something that may be newer.
    shadowed: bool,
}

/// Segments that hold this share of a segment of unsynced writes have the engine sync.
const SYNC_SHARE: u64 = 2;

impl<F: Clone> State<F> {
    /// Over a log that was read back, the writes that were in it, and the engine under them.
    pub(crate) fn open(
        Opened { log, segments }: Opened<F>,
        mut puts: Vec<Put>,
        engine: Box<dyn Engine>,
        (durable, whole): (bool, bool),
        metrics: Arc<Metrics>,
    ) -> Result<Self, NodeError> {
        let applied = log.accepted().trimmed.0;
        let found = engine.synced();
        if found < applied {
            return Err(NodeError::StoreBehind { found, expected: applied });
        }
        puts.retain(|put| put.number > applied);
        let mut state = Self {
            log,
            journal: Journal::new(Which::State, segments, durable),
            engine,
            overlay: FxHashMap::default(),
            overlay_bytes: 0,
            cache: Cache::new(CACHE_MAX_BYTES),
            unapplied: VecDeque::new(),
            applying: Vec::new(),
            applied,
            applies: 0,
            unsynced: 0,
            syncing: false,
            waiting: BTreeMap::new(),
            reading: BTreeMap::new(),
            blobs: VecDeque::new(),
            parked: VecDeque::new(),
            parked_bytes: 0,
            promised: Epoch(0),
            whole,
            scans: Scans::default(),
            last_read: 0,
            metrics,
        };
        for put in puts {
            state.overlay(put);
        }
        state.hand_over();
        Ok(state)
    }

    /// Whether everything accepted is on disk.
    pub(crate) fn is_idle(&self) -> bool {
        self.log.is_idle() && self.parked.is_empty()
    }

    /// All of the state is here from now on.
    pub(crate) fn set_whole(&mut self) {
        self.whole = true;
    }

    pub(crate) const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether what is copied may be written now: foreground writes come first.
    pub(crate) const fn has_room_to_copy(&self) -> bool {
        self.overlay_bytes < COPY_OVERLAY_MAX_BYTES
    }

    /// Writes what a peer has, under the same rules as any other write. Returns the entry whose flush
    /// makes it durable.
    pub(crate) fn copy_in(&mut self, put: Put) -> u64 {
        self.put(put)
    }

    /// The last entry that is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.log.durable().end.0
    }

    /// Whether the log says on disk that a life of the node has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.log.durable().ticket.0 > 0
    }

    pub(crate) fn prepared(&mut self, segment: Segment<F>) {
        self.journal.prepared(segment);
    }

    pub(crate) fn mark(&mut self) {
        if self.log.needs_mark() {
            self.log.mark();
        }
    }

    pub(crate) fn lane_down(&mut self, lane: LaneId) {
        self.parked.retain(|(of, _)| *of != lane);
        self.parked_bytes = self.parked.iter().map(|(_, bytes)| bytes.len()).sum();
        self.blobs.retain(|(_, ask)| ask.lane != lane);
        self.scans.lane_down(lane);
    }

    /// Starts writes; has segments made ready and taken back.
    pub(crate) fn pump(
        &mut self,
        disk: &mut impl Disk<File = F>,
        keeper: &mut dyn Keeper<F>,
    ) -> Result<(), NodeError> {
        let (log, metrics) = (&mut self.log, &self.metrics);
        self.journal.pump(disk, |ready, out| {
            let write = log.next_write(ready, out)?;
            add(&metrics.state_writes, 1);
            add(&metrics.state_write_bytes, write.len as u64);
            Some(write)
        });
        if let Some(due) = self.log.segment_due() {
            self.journal.prepare(due, keeper)?;
        }
        while let Some(gone) = self.log.drop_segment() {
            self.journal.dropped(gone, keeper)?;
        }
        set(&self.metrics.state_batches, self.log.durable().number);
        set(&self.metrics.state_overlay_bytes, self.overlay_bytes as u64);
        Ok(())
    }

    /// A write of the state log has ended.
    pub(crate) fn completed(
        &mut self,
        number: u64,
        result: io::Result<usize>,
        buffer: AlignedBuffer,
        lanes: &mut Lanes,
    ) -> Result<(), NodeError> {
        let number = self.journal.completed(number, result, buffer)?;
        if self.log.completed(number) {
            let later = self.waiting.split_off(&(self.log.durable().end.0 + 1));
            for ask in std::mem::replace(&mut self.waiting, later).into_values().flatten() {
                self.resume(ask, lanes);
            }
            self.hand_over();
        }
        Ok(())
    }

    /// Takes what the engine's threads have done.
    pub(crate) fn collect(&mut self, lanes: &mut Lanes) -> Result<(), NodeError> {
        while let Some(event) = self.engine.next() {
            match event {
                EngineEvent::Applied => self.applied(lanes),
                EngineEvent::Persisted(upto) => {
                    self.syncing = false;
                    self.log.trim(SeqNum(upto));
                }
                EngineEvent::Value(id, found) => {
                    if let Some(reading) = self.reading.remove(&id) {
                        self.found(reading, found, lanes);
                    }
                }
                EngineEvent::Blob(id, piece) => {
                    if let Some(Reading { ask, .. }) = self.reading.remove(&id) {
                        let reply = match &piece {
                            Some((total, bytes)) => StateReply::Blob { total: *total, bytes },
                            None => StateReply::NoBlob,
                        };
                        ask.answer(reply, lanes);
                    }
                }
                EngineEvent::Page(id, page) => {
                    if let Some(Reading { ask, .. }) = self.reading.remove(&id) {
                        self.page(&ask, &page, lanes);
                    }
                }
                EngineEvent::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A request of a peer that is in `epoch`.
    pub(crate) fn request(
        &mut self,
        lane: LaneId,
        (token, epoch): (u64, Epoch),
        request: &StateRequest<'_>,
        lanes: &mut Lanes,
    ) -> Result<(), RequestError> {
        add(&self.metrics.state_requests, 1);
        if epoch < self.promised {
            let over = StateReply::Failed("the epoch is over");
            lanes.send(lane, &Message::StateAnswer { token, reply: over });
            return Ok(());
        }
        if !self.whole && !is_put(request) && !broken!(ReadsBeforeWhole) {
            let copying = StateReply::Failed("this node still copies the state");
            lanes.send(lane, &Message::StateAnswer { token, reply: copying });
            return Ok(());
        }
        let ask = |what| Ask { lane, token, what };
        let value = |shape, key, landing| ask(What::Value(shape, key, landing));
        match *request {
            StateRequest::GetCell { object, landing } => {
                self.read(value(Shape::Cell, cell_key(object), landing), lanes);
            }
            StateRequest::GetTuple { object } => {
                self.read(value(Shape::Tuple, cell_key(object), None), lanes);
            }
            StateRequest::GetVersion { object, version, landing } => {
                self.read(value(Shape::Version, version_key(object, version), landing), lanes);
            }
            StateRequest::GetBase { object, landing, floor: _ } => {
                // Bases are folded by garbage collection only; without it the first is the last.
                self.read(value(Shape::Base, base_key(object), landing), lanes);
            }
            StateRequest::GetBlob { hash, offset } => {
                self.blobs.push_back((self.log.accepted().end.0, ask(What::Blob(hash, offset))));
                self.read_blobs(lanes);
            }
            StateRequest::Scan { after, offset } => {
                self.scan(ask(What::Scan(after.into())), epoch, offset, lanes);
            }
            StateRequest::PutCell { .. }
            | StateRequest::PutVersion { .. }
            | StateRequest::PutBlob { .. } => {
                return self.write(lane, (token, epoch), request, lanes);
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        lane: LaneId,
        (token, epoch): (u64, Epoch),
        request: &StateRequest<'_>,
        lanes: &mut Lanes,
    ) -> Result<(), RequestError> {
        if self.overlay_bytes >= OVERLAY_MAX_BYTES {
            let bytes = Message::State { token, epoch, request: *request }.to_bytes();
            if self.parked_bytes + bytes.len() > PARKED_MAX_BYTES {
                let busy = StateReply::Failed("busy: too many writes wait for the disk");
                lanes.send(lane, &Message::StateAnswer { token, reply: busy });
                return Ok(());
            }
            self.parked_bytes += bytes.len();
            self.parked.push_back((lane, bytes));
            return Ok(());
        }
        let put = parse_put(lane, request, lanes)?;
        let number = self.put(put);
        self.wait(number, Ask { lane, token, what: What::Done }, lanes);
        Ok(())
    }

    /// Logs a write, unless it is known to change nothing. Returns the entry whose flush makes it, or
    /// what is newer, durable.
    fn put(&mut self, mut put: Put) -> u64 {
        if put.rule == Rule::Newer {
            let at = self.overlay.get(&put.key).filter(|at| newer(&at.value, &put.value));
            if let Some(at) = at {
                return at.number;
            }
            if self.cache.get(&put.key).is_some_and(|found| newer(found, &put.value)) {
                return 0;
            }
        }
        let limit = self.log.body_max().min(FRAGMENT_MAX_BYTES);
        let log = &mut self.log;
        split(&put, limit, |entry| {
            let last = log.accepted().end.next();
            log.append(Epoch(0), Checked { last, starts: Vec::new() }, entry);
        });
        put.number = self.log.accepted().end.0;
        let number = put.number;
        self.overlay(put);
        number
    }

    fn overlay(&mut self, put: Put) {
        self.overlay_bytes += put.len();
        let (value, number) = (put.value.clone(), put.number);
        let before = self.overlay.get(&put.key);
        let beaten =
            put.rule == Rule::Newer && before.is_some_and(|found| newer(&found.value, &value));
        if !beaten {
            let settled = put.rule == Rule::Always
                || before.is_some_and(|found| found.settled)
                || self.cache.get(&put.key).is_some();
            let since = before.map_or(self.applies, |found| found.since);
            self.overlay.insert(put.key.clone(), Overlaid { value, number, settled, since });
        }
        self.unapplied.push_back(put);
    }

    /// Gives the engine what is durable, one batch at a time.
    fn hand_over(&mut self) {
        if !self.applying.is_empty() {
            return;
        }
        let durable = self.log.durable().end.0;
        while self.applying.len() < APPLY_MAX
            && self.unapplied.front().is_some_and(|put| put.number <= durable)
        {
            self.applying.extend(self.unapplied.pop_front());
        }
        if !self.applying.is_empty() {
            self.engine.apply(self.applying.clone());
        }
    }

    fn applied(&mut self, lanes: &mut Lanes) {
        self.applies += 1;
        for put in std::mem::take(&mut self.applying) {
            self.overlay_bytes -= put.len();
            self.unsynced += put.len() as u64;
            self.applied = put.number;
            if self.overlay.get(&put.key).is_some_and(|at| at.number == put.number)
                && let Some(gone) = self.overlay.remove(&put.key)
                && gone.settled
            {
                self.cache.insert(put.key, gone.value);
            }
        }
        if !self.syncing && self.unsynced >= self.log.config().segment_bytes / SYNC_SHARE {
            (self.syncing, self.unsynced) = (true, 0);
            self.engine.persist(self.applied);
        }
        self.hand_over();
        self.read_blobs(lanes);
        self.read_pages(lanes);
        while self.overlay_bytes < OVERLAY_MAX_BYTES
            && let Some((lane, bytes)) = self.parked.pop_front()
        {
            self.parked_bytes -= bytes.len();
            // The epoch may have ended while it waited.
            if let Ok(Message::State { token, epoch, request }) = Message::parse(&bytes)
                && let Err(why) = self.request(lane, (token, epoch), &request, lanes)
            {
                lanes.doom(lane, &why);
            }
        }
    }

    fn wait(&mut self, number: u64, ask: Ask, lanes: &mut Lanes) {
        if number <= self.log.durable().end.0 {
            self.resume(ask, lanes);
        } else {
            self.waiting.entry(number).or_default().push(ask);
        }
    }

    fn resume(&mut self, ask: Ask, lanes: &mut Lanes) {
        match ask.what {
            What::Done => ask.answer(StateReply::Done, lanes),
            What::Value(..) | What::Blob(..) | What::Scan(..) => self.read(ask, lanes),
        }
    }
}

const fn is_put(request: &StateRequest<'_>) -> bool {
    matches!(
        request,
        StateRequest::PutCell { .. }
            | StateRequest::PutVersion { .. }
            | StateRequest::PutBlob { .. }
    )
}

#[cfg(test)]
mod tests;
