//! A sequencer and storage nodes that do what a test tells them, over real lanes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use halfmoon_client::*;
use halfmoon_reactor::{Options as ReactorOptions, Reactor, SharedReactor};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{
    Access, Endpoint, EndpointOptions, Event, HeapMemory, LaneId, Memory, RegionId, RemoteSpan,
    Source, memory,
};
use halfmoon_wire::*;

pub const CLUSTER: u128 = 77;
pub const ENGINE: NodeId = NodeId(9);
const FIRST: NodeId = NodeId(100);
pub const SECOND: NodeId = NodeId(101);
pub const LIFE: Incarnation = Incarnation(1);
pub const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// A storage node that takes the place of one of them.
pub const NEW: NodeId = NodeId(4);
/// Values longer than this land or are refused.
const INLINE_BYTES: usize = 4096;
/// Virtual time per round, in ns.
const ROUND_NS: u64 = 1_000_000;
/// A test that needs more rounds hangs.
const ROUNDS_MAX: usize = 60_000;

type SharedDirectory = Rc<RefCell<FixedDirectory>>;

/// The directory that a test changes while the client runs.
pub struct TestDirectory {
    shared: SharedDirectory,
    asked: Rc<Cell<usize>>,
    /// It gives no answers.
    is_mute: Rc<Cell<bool>>,
}

impl Directory for TestDirectory {
    fn ask(&mut self) {
        self.asked.set(self.asked.get() + 1);
        self.shared.borrow_mut().ask();
    }

    fn poll(&mut self) -> Option<Places> {
        if self.is_mute.get() { None } else { self.shared.borrow_mut().poll() }
    }
}

pub struct Rec {
    pub bytes: Vec<u8>,
    pub origin: Origin,
    pub tags: Vec<Tag>,
}

/// The log that everybody shares; who has it, and who may stream it, is up to the test.
#[derive(Default)]
pub struct SharedLog {
    pub epoch: u64,
    pub history: Vec<EpochStart>,
    pub recs: Vec<Rec>,
    pub window_start: u64,
    /// Appends with a floor below it are refused.
    pub safe_point: u64,
    /// The members, when they are not the first ones any more.
    pub members: Option<[NodeId; 3]>,
    /// Most places in the window, when that is not beyond any number.
    pub places_max: Option<u64>,
}

impl SharedLog {
    pub fn put(&mut self, kind: RecordKind, origin: Origin, tags: &[Tag], payload: &[u8]) {
        self.put_with(kind, origin, SeqNum::MAX, tags, payload);
    }

    fn put_with(
        &mut self,
        kind: RecordKind,
        origin: Origin,
        floor: SeqNum,
        tags: &[Tag],
        payload: &[u8],
    ) {
        let position = |tag: &Tag| self.recs.iter().filter(|rec| rec.tags.contains(tag)).count();
        let positions: Vec<_> =
            tags.iter().map(|tag| TagPos::new(*tag, position(tag) as u64)).collect();
        let mut bytes = Vec::new();
        NewRecord {
            seq: SeqNum(self.recs.len() as u64 + 1),
            epoch: Epoch(self.epoch),
            time_ns: 0,
            origin,
            floor,
            kind,
            tags: &positions,
            payload,
        }
        .encode(&mut bytes);
        self.recs.push(Rec { bytes, origin, tags: tags.to_vec() });
    }

    /// The safe point moves, and a record says so.
    pub fn move_safe_point(&mut self, to: u64) {
        self.safe_point = to;
        let payload = SafePoint { safe_point: SeqNum(to) }.to_bytes();
        self.put(RecordKind::SafePoint, Origin::default(), &[], &payload);
    }

    /// An incarnation of an engine is out, and all before it; `heir` has its roots.
    pub fn evict(&mut self, out: (NodeId, Incarnation), heir: (NodeId, Incarnation)) {
        let ((engine, incarnation), (heir, heir_incarnation)) = (out, heir);
        let payload = Evict { engine, incarnation, heir, heir_incarnation }.to_bytes();
        self.put(RecordKind::Evict, Origin::default(), &[], &payload);
    }

    /// Why a condition does not hold, if it does not.
    fn judge(&self, index: usize, condition: Condition) -> Option<Refusal> {
        let index = u16::try_from(index).unwrap();
        let seqs = |tag: Tag| -> Vec<SeqNum> {
            let found = self.recs.iter().zip(1u64..).filter(|(rec, _)| rec.tags.contains(&tag));
            found.map(|(_, seq)| SeqNum(seq)).collect()
        };
        match condition {
            Condition::Length { tag, length } => {
                let seqs = seqs(tag);
                let now = seqs.len() as u64;
                let winner = seqs.get(usize::try_from(length).unwrap()).copied();
                match winner {
                    Some(winner) => Some(Refusal::Conflict { condition: index, winner }),
                    None if now == length => None,
                    None if now == 0 => {
                        Some(Refusal::Conflict { condition: index, winner: SeqNum(0) })
                    }
                    None => Some(Refusal::Gap { condition: index, length: now }),
                }
            }
            Condition::NothingAfter { tag, after } => {
                let last = seqs(tag).last().copied().filter(|last| *last > after);
                last.map(|winner| Refusal::Conflict { condition: index, winner })
            }
        }
    }

    pub fn open(&mut self) {
        self.epoch += 1;
        let first = SeqNum(self.recs.len() as u64 + 1);
        self.history.push(EpochStart { epoch: Epoch(self.epoch), first });
        let payload = Open { members: MEMBERS.to_vec() }.to_bytes();
        self.put(RecordKind::Open, Origin::default(), &[], &payload);
    }

    fn chunk(&self, from: u64, max_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let from = usize::try_from(from.saturating_sub(1)).unwrap();
        for rec in self.recs.iter().skip(from) {
            if !bytes.is_empty() && bytes.len() + rec.bytes.len() > max_bytes {
                break;
            }
            bytes.extend_from_slice(&rec.bytes);
        }
        bytes
    }
}

pub type LogOfAll = Rc<RefCell<SharedLog>>;

pub struct Sequencer {
    endpoint: Endpoint<Tcp>,
    pub address: String,
    log: LogOfAll,
    epoch: u64,
    /// Followers and the next position of each.
    followers: Vec<(LaneId, u64)>,
    pub lanes: Vec<LaneId>,
    /// Who is on a lane.
    engines: BTreeMap<LaneId, (NodeId, Incarnation)>,
    pub reports: Vec<(u64, u64, u64)>,
    /// Questions for the tail are kept in `tails` and not answered.
    pub holds_tails: bool,
    pub tails: Vec<(LaneId, u64)>,
    /// Append messages are dropped.
    pub deaf: bool,
    /// It has not opened its epoch: it hears nothing and welcomes nobody.
    pub recovering: bool,
    /// The next append is refused as such.
    pub overloaded: usize,
    pub appends_seen: usize,
}

impl Sequencer {
    fn new(reactor: &SharedReactor, node: NodeId, log: &LogOfAll) -> Self {
        let epoch = log.borrow().epoch;
        let role = Role::Sequencer;
        let incarnation = Incarnation(epoch);
        let hello = Hello { cluster: CLUSTER, role, node, incarnation }.to_bytes();
        let mut endpoint = Endpoint::new(Tcp::new(reactor.clone()), EndpointOptions::new(hello));
        let address = endpoint.listen("127.0.0.1:0").unwrap();
        Self {
            endpoint,
            address,
            log: log.clone(),
            epoch,
            followers: Vec::new(),
            lanes: Vec::new(),
            engines: BTreeMap::new(),
            reports: Vec::new(),
            holds_tails: false,
            tails: Vec::new(),
            deaf: false,
            recovering: false,
            overloaded: 0,
            appends_seen: 0,
        }
    }

    /// The epoch is open.
    pub fn recover(&mut self) {
        self.recovering = false;
        self.epoch = self.log.borrow().epoch;
        for lane in std::mem::take(&mut self.lanes) {
            self.welcome(lane);
        }
    }

    /// Answers the questions for the tail that were kept.
    pub fn answer_tails(&mut self) {
        self.holds_tails = false;
        for (lane, token) in std::mem::take(&mut self.tails) {
            self.answer_tail(lane, token);
        }
    }

    fn answer_tail(&mut self, lane: LaneId, token: u64) {
        let seq = SeqNum(self.log.borrow().recs.len() as u64);
        self.endpoint.send(lane, &[&Message::Tail { token, seq }.to_bytes()]).unwrap();
    }

    /// Takes all lanes down, and goes on.
    pub fn drop_lanes(&mut self) {
        for lane in self.lanes.drain(..) {
            self.endpoint.close(lane);
        }
        self.followers.clear();
    }

    fn turn(&mut self) {
        let mut events: Vec<(LaneId, Option<Vec<u8>>, bool)> = Vec::new();
        let engines = &mut self.engines;
        self.endpoint.poll(&mut |event| match event {
            Event::Up { lane, hello, .. } => {
                let hello = Hello::parse(hello).unwrap();
                engines.insert(lane, (hello.node, hello.incarnation));
                events.push((lane, None, true));
            }
            Event::Message { lane, bytes } => events.push((lane, Some(bytes.to_vec()), true)),
            Event::Down { lane, .. } => events.push((lane, None, false)),
            Event::Written { .. } | Event::Room { .. } => {}
        });
        for (lane, bytes, up) in events {
            match bytes {
                None if up => self.welcome(lane),
                None => {
                    self.followers.retain(|(follower, _)| *follower != lane);
                    self.lanes.retain(|known| *known != lane);
                }
                Some(bytes) => self.message(lane, Message::parse(&bytes).unwrap()),
            }
        }
        let log = self.log.borrow();
        let end = log.recs.len() as u64;
        for (lane, next) in &mut self.followers {
            if *next <= end && log.epoch == self.epoch {
                let records = log.chunk(*next, usize::MAX);
                let (epoch, first) = (Epoch(self.epoch), SeqNum(*next));
                let bytes = Message::Stream { epoch, first, records: &records }.to_bytes();
                if self.endpoint.send(*lane, &[&bytes]).is_ok() {
                    *next = end + 1;
                }
            }
        }
        self.endpoint.flush();
    }

    fn welcome(&mut self, lane: LaneId) {
        self.lanes.push(lane);
        if self.recovering {
            return;
        }
        let log = self.log.borrow();
        let message = Message::Welcome {
            epoch: Epoch(self.epoch),
            history: log
                .history
                .iter()
                .filter(|start| start.epoch.0 <= self.epoch)
                .copied()
                .collect(),
            window_start: SeqNum(log.window_start),
            tail: SeqNum(log.recs.len() as u64),
            members: log.members.unwrap_or(MEMBERS).to_vec(),
            lease_ms: 300,
            places_max: log.places_max.unwrap_or(u64::MAX),
        };
        self.endpoint.send(lane, &[&message.to_bytes()]).unwrap();
    }

    fn message(&mut self, lane: LaneId, message: Message<'_>) {
        if self.recovering {
            return;
        }
        match message {
            Message::Follow { from } => self.followers.push((lane, from.0)),
            Message::Report { applied, safe_point, answered } => {
                self.reports.push((applied.0, safe_point.0, answered.0));
            }
            Message::AskTail { token } if self.holds_tails => self.tails.push((lane, token)),
            Message::AskTail { token } => self.answer_tail(lane, token),
            Message::Append { epoch, append } => self.order(lane, epoch, &append),
            other => panic!("{other:?}"),
        }
    }

    fn order(&mut self, lane: LaneId, epoch: Epoch, append: &Append<'_>) {
        self.appends_seen += 1;
        if self.deaf || epoch.0 != self.epoch {
            return;
        }
        let mut log = self.log.borrow_mut();
        let local = append.local;
        let mut refuse = |refusal| {
            let message = Message::Refused { epoch, local, refusal };
            self.endpoint.send(lane, &[&message.to_bytes()]).unwrap();
        };
        if self.overloaded > 0 {
            self.overloaded -= 1;
            return refuse(Refusal::Overloaded);
        }
        let (engine, incarnation) = self.engines[&lane];
        let origin = Origin { engine, incarnation, local };
        if log.recs.iter().any(|rec| rec.origin == origin) {
            return;
        }
        if append.floor.0 < log.safe_point {
            return refuse(Refusal::RootGone { safe_point: SeqNum(log.safe_point) });
        }
        for (index, condition) in append.conditions.iter().enumerate() {
            if let Some(refusal) = log.judge(index, *condition) {
                return refuse(refusal);
            }
        }
        log.put_with(RecordKind::Data, origin, append.floor, &append.tags, append.payload);
    }
}

type Object = (String, Vec<u8>);

#[derive(Default)]
pub struct Store {
    pub cells: BTreeMap<Object, (CellTuple, Option<Vec<u8>>)>,
    pub versions: BTreeMap<(Object, VersionId), Vec<u8>>,
    pub blobs: BTreeMap<[u8; 32], Vec<u8>>,
}

pub struct Storage {
    endpoint: Endpoint<Tcp>,
    pub address: String,
    log: LogOfAll,
    lanes: Vec<LaneId>,
    words: Vec<(LaneId, u64, RegionId)>,
    written: BTreeMap<(LaneId, u32), u64>,
    staging: BTreeMap<LaneId, Arc<HeapMemory>>,
    /// How many records are flushed; `None`: all there are.
    pub flushed: Option<u64>,
    pub store: Store,
    /// Questions get no answer.
    pub mute: bool,
    /// Rounds that an answer of the state store takes.
    pub slow: usize,
    round: usize,
    late: VecDeque<(usize, LaneId, Vec<u8>)>,
    /// Where the pieces of blobs that were asked for begin.
    pub pieces: Vec<u64>,
    /// Questions of the state store fail.
    pub failing: bool,
    /// State requests of older epochs are refused.
    pub promised: u64,
    pub requests: usize,
    pub log_reads: usize,
    pub puts: usize,
}

pub fn object(object: ObjectKey<'_>) -> Object {
    (object.table.to_owned(), object.key.to_vec())
}

impl Storage {
    fn new(reactor: &SharedReactor, node: NodeId, log: &LogOfAll) -> Self {
        let role = Role::Storage;
        let hello = Hello { cluster: CLUSTER, role, node, incarnation: Incarnation(1) }.to_bytes();
        let mut endpoint = Endpoint::new(Tcp::new(reactor.clone()), EndpointOptions::new(hello));
        let address = endpoint.listen("127.0.0.1:0").unwrap();
        Self {
            endpoint,
            address,
            log: log.clone(),
            lanes: Vec::new(),
            words: Vec::new(),
            written: BTreeMap::new(),
            staging: BTreeMap::new(),
            flushed: None,
            store: Store::default(),
            mute: false,
            slow: 0,
            round: 0,
            late: VecDeque::new(),
            pieces: Vec::new(),
            failing: false,
            promised: 0,
            requests: 0,
            log_reads: 0,
            puts: 0,
        }
    }

    pub fn lanes(&self) -> &[LaneId] {
        &self.lanes
    }

    fn turn(&mut self) {
        let mut events: Vec<(LaneId, Option<Vec<u8>>, bool)> = Vec::new();
        self.endpoint.poll(&mut |event| match event {
            Event::Up { lane, .. } => events.push((lane, None, true)),
            Event::Message { lane, bytes } => events.push((lane, Some(bytes.to_vec()), true)),
            Event::Down { lane, .. } => events.push((lane, None, false)),
            Event::Written { .. } | Event::Room { .. } => {}
        });
        for (lane, bytes, up) in events {
            match bytes {
                None if up => self.stage(lane),
                None => {
                    self.lanes.retain(|known| *known != lane);
                    self.words.retain(|(known, ..)| *known != lane);
                }
                Some(bytes) => self.message(lane, Message::parse(&bytes).unwrap()),
            }
        }
        self.round += 1;
        while self.late.front().is_some_and(|(due, ..)| *due <= self.round) {
            let Some((_, lane, bytes)) = self.late.pop_front() else { break };
            // Whoever asked may have gone.
            self.endpoint.send(lane, &[&bytes]).ok();
        }
        let log = self.log.borrow();
        let end = self.flushed.unwrap_or(log.recs.len() as u64).min(log.recs.len() as u64);
        for (lane, epoch, region) in &self.words {
            let written = self.written.entry((*lane, region.0)).or_default();
            if *epoch == log.epoch && *written < end {
                *written = end;
                let to = RemoteSpan { region: *region, offset: 0 };
                let word = end.to_le_bytes();
                self.endpoint.write(*lane, to, Source::bytes(&word), None).unwrap();
            }
        }
        self.endpoint.flush();
    }

    fn stage(&mut self, lane: LaneId) {
        self.lanes.push(lane);
        let staging = Arc::new(HeapMemory::new(1 << 20));
        let region = self.endpoint.expose(staging.clone(), Access::Lane(lane)).unwrap();
        self.staging.insert(lane, staging);
        let message = Message::Staging { region: region.0, len: 1 << 20 };
        self.endpoint.send(lane, &[&message.to_bytes()]).unwrap();
    }

    fn message(&mut self, lane: LaneId, message: Message<'_>) {
        match message {
            Message::WatermarkHere { epoch, region } => {
                self.words.push((lane, epoch.0, RegionId(region)));
            }
            Message::ReadLog { token, epoch, from, max_bytes, .. } => {
                self.log_reads += 1;
                if self.mute {
                    return;
                }
                let log = self.log.borrow();
                let records = log.chunk(from.0, max_bytes as usize);
                let (first, end) = (from, SeqNum(log.recs.len() as u64));
                let chunk = Message::LogChunk { token, epoch, first, end, records: &records };
                self.endpoint.send(lane, &[&chunk.to_bytes()]).unwrap();
            }
            Message::State { token, epoch, request } => {
                self.requests += 1;
                if self.mute {
                    return;
                }
                if epoch.0 < self.promised {
                    return self.answer(lane, token, StateReply::Failed("the epoch is over"));
                }
                if self.failing {
                    return self.answer(lane, token, StateReply::Failed("by order of the test"));
                }
                self.state(lane, token, request);
            }
            other => panic!("{other:?}"),
        }
    }

    fn bytes(&self, lane: LaneId, source: ValueSource<'_>) -> Vec<u8> {
        match source {
            ValueSource::Inline(bytes) => bytes.to_vec(),
            ValueSource::Staged { offset, len } => {
                let mut bytes = Vec::new();
                let words = self.staging[&lane].words();
                memory::append_out(words, offset, len as usize, &mut bytes).unwrap();
                bytes
            }
        }
    }

    fn state(&mut self, lane: LaneId, token: u64, request: StateRequest<'_>) {
        match request {
            StateRequest::PutCell { object: key, tuple, value } => {
                self.puts += 1;
                let value = value.map(|value| self.bytes(lane, value));
                let cell = self.store.cells.entry(object(key)).or_insert((tuple, None));
                if tuple >= cell.0 {
                    *cell = (tuple, value);
                }
                self.answer(lane, token, StateReply::Done);
            }
            StateRequest::PutVersion { object: key, version, value } => {
                self.puts += 1;
                let value = self.bytes(lane, value);
                self.store.versions.insert((object(key), version), value);
                self.answer(lane, token, StateReply::Done);
            }
            StateRequest::GetTuple { object: key } => {
                let tuple = self.store.cells.get(&object(key)).map(|cell| cell.0);
                self.answer(lane, token, StateReply::Tuple(tuple));
            }
            StateRequest::GetCell { object: key, landing } => {
                let cell = self.store.cells.get(&object(key)).cloned();
                let Some((tuple, value)) = cell else {
                    return self.answer(lane, token, StateReply::Cell(None));
                };
                self.value(lane, token, landing, value.as_deref(), |value| {
                    StateReply::Cell(Some(StoredCell { tuple, value }))
                });
            }
            StateRequest::GetVersion { object: key, version, landing } => {
                let found = self.store.versions.get(&(object(key), version)).cloned();
                let Some(value) = found else {
                    return self.answer(lane, token, StateReply::Value(None));
                };
                self.value(lane, token, landing, Some(&value), |value| {
                    StateReply::Value(Some((SeqNum(0), value)))
                });
            }
            StateRequest::GetBase { .. } => self.answer(lane, token, StateReply::Value(None)),
            StateRequest::PutBlob { hash, offset, bytes, .. } => {
                let blob = self.store.blobs.entry(hash).or_default();
                blob.truncate(usize::try_from(offset).unwrap());
                blob.extend_from_slice(bytes);
                self.answer(lane, token, StateReply::Done);
            }
            StateRequest::GetBlob { hash, offset } => {
                self.pieces.push(offset);
                let Some(blob) = self.store.blobs.get(&hash).cloned() else {
                    return self.answer(lane, token, StateReply::NoBlob);
                };
                let from = usize::try_from(offset).unwrap();
                let to = blob.len().min(from + limits::BLOB_CHUNK_BYTES);
                let (total, bytes) = (blob.len() as u64, &blob[from..to]);
                self.answer(lane, token, StateReply::Blob { total, bytes });
            }
            StateRequest::Scan { .. } => unreachable!("engines do not copy the state"),
        }
    }

    fn value<'a>(
        &mut self,
        lane: LaneId,
        token: u64,
        landing: Option<Landing>,
        value: Option<&'a [u8]>,
        reply: impl FnOnce(Option<ValueSource<'a>>) -> StateReply<'a>,
    ) {
        let len = u32::try_from(value.map_or(0, <[u8]>::len)).unwrap();
        let reply = match (value, landing) {
            (Some(bytes), Some(landing)) if bytes.len() > INLINE_BYTES => {
                if landing.capacity < len {
                    StateReply::NeedRoom { len }
                } else {
                    let region = RegionId(landing.region);
                    let to = RemoteSpan { region, offset: landing.offset };
                    self.endpoint.write(lane, to, Source::bytes(bytes), None).unwrap();
                    reply(Some(ValueSource::Staged { offset: 0, len }))
                }
            }
            (Some(bytes), None) if bytes.len() > INLINE_BYTES => StateReply::NeedRoom { len },
            _ => reply(value.map(ValueSource::Inline)),
        };
        self.answer(lane, token, reply);
    }

    fn answer(&mut self, lane: LaneId, token: u64, reply: StateReply<'_>) {
        let bytes = Message::StateAnswer { token, reply }.to_bytes();
        if self.slow > 0 {
            self.late.push_back((self.round + self.slow, lane, bytes));
        } else {
            self.endpoint.send(lane, &[&bytes]).unwrap();
        }
    }
}

fn drive(
    reactor: &SharedReactor,
    directory: TestDirectory,
    (node, life): (NodeId, Incarnation),
    limits: Limits,
    now_ns: u64,
) -> Driver<Tcp, TestDirectory> {
    let mut options = Options::new(CLUSTER, Role::Engine, node, life);
    options.limits = limits;
    Driver::new(Tcp::new(reactor.clone()), directory, &options, now_ns)
}

/// Gives back what it is greeted with, in another version.
fn greet_strangely(stream: io::Result<TcpStream>) -> io::Result<()> {
    let mut stream = stream?;
    let mut greeting = vec![0; 24];
    stream.read_exact(&mut greeting)?;
    let len = greeting[16];
    greeting.resize(24 + usize::from(len), 0);
    stream.read_exact(&mut greeting[24..])?;
    greeting[28] ^= 0xff;
    stream.write_all(&greeting)?;
    // Until the other side has had enough.
    stream.read_to_end(&mut greeting).map(drop)
}

pub struct World {
    reactor: SharedReactor,
    pub log: LogOfAll,
    pub sequencer: Option<Sequencer>,
    /// One that stands by, until it recovers.
    pub standby: Option<Sequencer>,
    pub storage: Vec<Option<Storage>>,
    pub driver: Driver<Tcp, TestDirectory>,
    directory: SharedDirectory,
    /// How often it was asked.
    pub asked: Rc<Cell<usize>>,
    pub is_mute: Rc<Cell<bool>>,
    pub now_ns: u64,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| {}, Limits::default())
    }

    pub fn with(prepare: impl FnOnce(&mut SharedLog), limits: Limits) -> Self {
        let reactor = Reactor::shared(ReactorOptions::default()).unwrap();
        let log = LogOfAll::default();
        prepare(&mut log.borrow_mut());
        log.borrow_mut().open();
        let storage: Vec<_> =
            MEMBERS.iter().map(|node| Some(Storage::new(&reactor, *node, &log))).collect();
        let directory = SharedDirectory::default();
        let asked = Rc::<Cell<usize>>::default();
        let is_mute = Rc::<Cell<bool>>::default();
        let shared = TestDirectory {
            shared: directory.clone(),
            asked: asked.clone(),
            is_mute: is_mute.clone(),
        };
        let driver = drive(&reactor, shared, (ENGINE, LIFE), limits, 0);
        let sequencer = Some(Sequencer::new(&reactor, FIRST, &log));
        let (standby, now_ns) = (None, 0);
        let mut world = Self {
            reactor,
            log,
            sequencer,
            standby,
            storage,
            driver,
            directory,
            asked,
            is_mute,
            now_ns,
        };
        world.publish();
        world
    }

    fn publish(&mut self) {
        let mut directory = self.directory.borrow_mut();
        let mut sequencers = std::mem::take(&mut directory.places.sequencers);
        for (node, found) in [(FIRST, &self.sequencer), (SECOND, &self.standby)] {
            if let Some(found) = found {
                sequencers.retain(|(known, _)| *known != node);
                sequencers.push((node, found.address.clone()));
            }
        }
        let address = |found: &Option<Storage>| found.as_ref().map(|found| found.address.clone());
        let storage = [MEMBERS[0], MEMBERS[1], MEMBERS[2], NEW]
            .iter()
            .zip(&self.storage)
            .map(|(node, found)| (*node, address(found)))
            .collect();
        directory.places = Places { sequencers, storage };
    }

    /// The engine is gone, without a word; another one, or another life of it, takes its place.
    pub fn replace_engine(&mut self, engine: (NodeId, Incarnation)) {
        let limits = Limits::default();
        let directory = TestDirectory {
            shared: self.directory.clone(),
            asked: self.asked.clone(),
            is_mute: self.is_mute.clone(),
        };
        self.driver = drive(&self.reactor, directory, engine, limits, self.now_ns);
    }

    /// The sequencer's process is gone, and all its lanes.
    pub fn kill_sequencer(&mut self) {
        self.sequencer = None;
    }

    /// Another sequencer opens an epoch, at another address.
    pub fn start_sequencer(&mut self) {
        self.log.borrow_mut().open();
        self.sequencer = Some(Sequencer::new(&self.reactor, FIRST, &self.log));
        self.publish();
    }

    /// Another sequencer stands by.
    pub fn start_standby(&mut self) {
        let mut standby = Sequencer::new(&self.reactor, SECOND, &self.log);
        standby.recovering = true;
        self.standby = Some(standby);
        self.publish();
    }

    /// It opens an epoch.
    pub fn promote_standby(&mut self) {
        self.log.borrow_mut().open();
        self.standby.as_mut().unwrap().recover();
    }

    pub fn kill_storage(&mut self, index: usize) {
        self.storage[index] = None;
    }

    pub fn start_storage(&mut self, index: usize) {
        self.storage[index] = Some(Storage::new(&self.reactor, MEMBERS[index], &self.log));
        self.publish();
    }

    /// Another node takes the place of the third, with the next epoch.
    pub fn replace_third(&mut self) {
        self.kill_sequencer();
        self.storage.push(Some(Storage::new(&self.reactor, NEW, &self.log)));
        let [first, second, _] = MEMBERS;
        self.log.borrow_mut().members = Some([first, second, NEW]);
        self.start_sequencer();
        let epochs = self.driver.metrics().epochs;
        self.until("the new members", |world| world.driver.metrics().epochs > epochs);
    }

    /// Somebody answers at a storage node's address whose greeting is of another version. Tells of
    /// each greeting that was given.
    pub fn start_stranger(&mut self, index: usize) -> Receiver<()> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if greet_strangely(stream).is_ok() && tell.send(()).is_err() {
                    return;
                }
            }
        });
        self.publish();
        self.directory.borrow_mut().places.storage[index].1 = Some(address);
        told
    }

    pub fn node(&mut self, index: usize) -> &mut Storage {
        self.storage[index].as_mut().unwrap()
    }

    pub fn sequencer(&mut self) -> &mut Sequencer {
        self.sequencer.as_mut().unwrap()
    }

    pub fn round(&mut self) {
        self.now_ns += ROUND_NS;
        let pace = self.driver.turn(self.now_ns);
        for sequencer in self.sequencer.iter_mut().chain(&mut self.standby) {
            sequencer.turn();
        }
        for storage in self.storage.iter_mut().flatten() {
            storage.turn();
        }
        let wait = if pace.busy { Duration::ZERO } else { Duration::from_micros(100) };
        self.reactor.borrow_mut().wait(wait).unwrap();
    }

    pub fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round();
        }
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..ROUNDS_MAX {
            if done(self) {
                return;
            }
            self.round();
        }
        panic!("it never came: {what}");
    }

    /// Runs a task to its end.
    pub fn run<T: 'static>(&mut self, task: impl Future<Output = T> + 'static) -> T {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let result = slot.clone();
        let task = async move { *result.borrow_mut() = Some(task.await) };
        self.driver.executor().spawn(task).unwrap();
        self.until("the end of a task", |_| slot.borrow().is_some());
        slot.borrow_mut().take().unwrap()
    }

    /// Starts a task and collects its result.
    pub fn start<T: 'static>(
        &mut self,
        task: impl Future<Output = T> + 'static,
    ) -> Rc<RefCell<Option<T>>> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let result = slot.clone();
        let task = async move { *result.borrow_mut() = Some(task.await) };
        self.driver.executor().spawn(task).unwrap();
        slot
    }

    pub fn ready(&mut self) {
        self.until("an open epoch", |world| world.driver.log().is_open());
        self.until("all lanes", |world| {
            world.storage.iter().flatten().all(|s| !s.lanes.is_empty())
        });
        self.rounds(5);
    }

    pub fn deadline(&self, ms: u64) -> u64 {
        self.now_ns + ms * 1_000_000
    }

    /// Local ids in the log, without the sequencer's own records.
    pub fn locals(&self) -> Vec<u64> {
        self.log
            .borrow()
            .recs
            .iter()
            .map(|rec| rec.origin.local.0)
            .filter(|local| *local > 0)
            .collect()
    }

    pub fn distinct(&self) -> usize {
        self.locals().into_iter().collect::<BTreeSet<_>>().len()
    }
}
