//! A storage node and those who talk to it, in one thread, over TCP and a disk that fails on demand.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests; each file uses a part"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use halfmoon_meta::{Durability, FileStore, NodeEntry, cluster, nodes};
use halfmoon_reactor::{AlignedBuffer, Options, Reactor, SharedReactor};
use halfmoon_storage::{Disk, DiskDone, NodeError, Role, RoleConfig};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{
    Access, Endpoint, EndpointOptions, Event, HeapMemory, LaneId, Memory, RegionId,
};
use halfmoon_wire::*;

pub const CLUSTER: u128 = 0xc1;
pub const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
pub const SEGMENT_BYTES: u64 = 512 << 10;

/// What the disk does wrong.
#[derive(Default)]
pub struct Faults {
    /// Fail the next write so, having written the first half of it.
    pub fail: Option<io::ErrorKind>,
    /// Write the next one short, and say so.
    pub short: bool,
    /// Keep completions back.
    pub hold: bool,
    pub writes: usize,
    pub durable_writes: usize,
}

/// A disk that carries out what it is asked at once.
#[derive(Clone, Default)]
pub struct TestDisk {
    pub faults: Rc<RefCell<Faults>>,
    done: Rc<RefCell<VecDeque<DiskDone>>>,
}

impl Disk for TestDisk {
    type File = Arc<File>;

    fn write(
        &mut self,
        file: &Arc<File>,
        offset: u64,
        buffer: AlignedBuffer,
        len: usize,
        durable: bool,
        token: u64,
    ) {
        let mut faults = self.faults.borrow_mut();
        faults.writes += 1;
        faults.durable_writes += usize::from(durable);
        let half = len / 2 / 4096 * 4096;
        let result = if let Some(kind) = faults.fail.take() {
            file.write_all_at(&buffer.bytes()[..half], offset).unwrap();
            Err(kind.into())
        } else if std::mem::take(&mut faults.short) {
            file.write_all_at(&buffer.bytes()[..half], offset).unwrap();
            Ok(half)
        } else {
            file.write_all_at(&buffer.bytes()[..len], offset).map(|()| len)
        };
        self.done.borrow_mut().push_back(DiskDone { token, result, buffer });
    }

    fn read(
        &mut self,
        file: &Arc<File>,
        offset: u64,
        mut buffer: AlignedBuffer,
        len: usize,
        token: u64,
    ) {
        let result = file.read_at(&mut buffer.bytes_mut()[..len], offset);
        self.done.borrow_mut().push_back(DiskDone { token, result, buffer });
    }

    fn next_done(&mut self) -> Option<DiskDone> {
        if self.faults.borrow().hold {
            return None;
        }
        self.done.borrow_mut().pop_front()
    }
}

pub struct Node {
    pub role: Role<Tcp, TestDisk>,
    pub reactor: SharedReactor,
    pub address: String,
    pub disk: TestDisk,
    pub error: Option<NodeError>,
}

pub fn config(dir: &Path, node: u32) -> RoleConfig {
    RoleConfig {
        segment_bytes: SEGMENT_BYTES,
        state_segment_bytes: SEGMENT_BYTES,
        staging_bytes: 4 << 20,
        ..RoleConfig::new(dir.join(format!("node-{node}")), NodeId(node), CLUSTER)
    }
}

fn endpoint(role: halfmoon_wire::Role, node: u32) -> (Endpoint<Tcp>, SharedReactor) {
    let reactor = Reactor::shared(Options::default()).unwrap();
    let hello = Hello { cluster: CLUSTER, role, node: NodeId(node), incarnation: Incarnation(1) };
    let options = EndpointOptions::new(hello.to_bytes());
    (Endpoint::new(Tcp::new(reactor.clone()), options), reactor)
}

impl Node {
    pub fn try_open(config: RoleConfig, dir: &Path) -> Result<Self, NodeError> {
        let node = config.node;
        let (endpoint, reactor) = endpoint(Role_::Storage, node.0);
        let meta = Arc::new(FileStore::open(dir.join("meta")).unwrap());
        let info = cluster::create(&*meta, CLUSTER, Durability::Flush, &MEMBERS).unwrap();
        let wake = Arc::new(reactor.borrow().waker());
        let disk = TestDisk::default();
        let mut role = Role::open(config, endpoint, disk.clone(), meta.clone(), wake)?;
        role.set_has_state(info.has_state(node));
        let address = role.endpoint_mut().listen("127.0.0.1:0").unwrap();
        let incarnation = nodes::next_incarnation(&*meta, node).unwrap();
        let at = address.parse().unwrap();
        let entry = NodeEntry::new(Role_::Storage, node, incarnation, at);
        nodes::publish(&*meta, &entry).unwrap();
        Ok(Self { role, reactor, address, disk, error: None })
    }

    pub fn open(dir: &Path, node: u32) -> Self {
        Self::try_open(config(dir, node), dir).unwrap()
    }

    pub fn turn(&mut self) {
        if self.error.is_some() {
            return;
        }
        match self.role.turn(Instant::now()) {
            Ok(_) => self.reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap(),
            Err(error) => self.error = Some(error),
        }
    }
}

pub use halfmoon_wire::Role as Role_;

/// A sequencer or an engine, as far as a storage node sees one.
pub struct Peer {
    pub endpoint: Endpoint<Tcp>,
    reactor: SharedReactor,
    pub lane: LaneId,
    pub up: bool,
    pub down: bool,
    pub inbox: VecDeque<Vec<u8>>,
    token: u64,
    /// The epoch in which it asks the state store: one that does not end, unless a test says so.
    pub epoch: u64,
}

impl Peer {
    pub fn dial(role: Role_, id: u32, node: &mut Node) -> Self {
        let (mut endpoint, reactor) = endpoint(role, id);
        let lane = endpoint.dial(&node.address).unwrap();
        let (up, down, inbox) = (false, false, VecDeque::new());
        let mut peer = Self { endpoint, reactor, lane, up, down, inbox, token: 0, epoch: u64::MAX };
        run(&mut [node], &mut [&mut peer], |_, peers| peers[0].up);
        peer
    }

    pub fn turn(&mut self) {
        let Self { endpoint, up, down, inbox, .. } = self;
        endpoint.poll(&mut |event| match event {
            Event::Up { .. } => *up = true,
            Event::Message { bytes, .. } => inbox.push_back(bytes.to_vec()),
            Event::Down { .. } => *down = true,
            Event::Written { .. } | Event::Room { .. } => {}
        });
        self.reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
    }

    pub fn send(&mut self, message: &Message<'_>) {
        self.endpoint.send(self.lane, &[&message.to_bytes()]).unwrap();
    }

    /// The first message that `take` accepts; others before it are dropped.
    pub fn expect<R>(
        &mut self,
        nodes: &mut [&mut Node],
        mut take: impl FnMut(&Message<'_>) -> Option<R>,
    ) -> R {
        let mut found = None;
        run(nodes, &mut [self], |_, peers| {
            while let Some(bytes) = peers[0].inbox.pop_front() {
                found = take(&Message::parse(&bytes).unwrap());
                if found.is_some() {
                    return true;
                }
            }
            false
        });
        found.unwrap()
    }

    pub fn expose_word(&mut self) -> (Arc<HeapMemory>, u32) {
        self.expose(8)
    }

    pub fn expose(&mut self, bytes: usize) -> (Arc<HeapMemory>, u32) {
        let memory = Arc::new(HeapMemory::new(bytes));
        let RegionId(region) =
            self.endpoint.expose(memory.clone(), Access::Lane(self.lane)).unwrap();
        (memory, region)
    }

    pub fn ask(&mut self, request: StateRequest<'_>) -> u64 {
        self.token += 1;
        self.send(&Message::State { token: self.token, epoch: Epoch(self.epoch), request });
        self.token
    }

    /// Asks the state store, and gives the encoded answer (its reply borrows).
    pub fn state<R>(
        &mut self,
        node: &mut Node,
        request: StateRequest<'_>,
        mut take: impl FnMut(&StateReply<'_>) -> R,
    ) -> R {
        let token = self.ask(request);
        self.expect(&mut [node], |message| match message {
            Message::StateAnswer { token: of, reply } if *of == token => Some(take(reply)),
            _ => None,
        })
    }
}

/// Turns everyone until it is so.
pub fn run(
    nodes: &mut [&mut Node],
    peers: &mut [&mut Peer],
    mut done: impl FnMut(&[&mut Node], &mut [&mut Peer]) -> bool,
) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        for node in nodes.iter_mut() {
            node.turn();
        }
        for peer in peers.iter_mut() {
            peer.turn();
        }
        if done(nodes, peers) {
            return;
        }
        assert!(Instant::now() < end, "it never came");
    }
}

pub fn record(seq: u64, epoch: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    NewRecord {
        seq: SeqNum(seq),
        epoch: Epoch(epoch),
        time_ns: seq,
        origin: Origin::default(),
        floor: SeqNum(0),
        kind: RecordKind::Data,
        tags: &[TagPos::new(Tag(seq), 0)],
        payload,
    }
    .encode(&mut bytes);
    bytes
}

pub fn records(seqs: std::ops::RangeInclusive<u64>, epoch: u64) -> Vec<u8> {
    seqs.flat_map(|seq| record(seq, epoch, &[7; 100])).collect()
}

/// A sequencer of an epoch whose log this node is to follow.
pub struct Sequencer {
    pub peer: Peer,
    pub epoch: u64,
    pub history: Vec<EpochStart>,
    pub end: u64,
    pub members: Vec<NodeId>,
}

impl Sequencer {
    /// Seals the node and welcomes it to an epoch that begins after what it has.
    pub fn open(epoch: u64, node: &mut Node) -> Self {
        Self::open_with(epoch, &MEMBERS, node)
    }

    /// The same, to an epoch with these members.
    pub fn open_with(epoch: u64, members: &[NodeId], node: &mut Node) -> Self {
        let mut peer = Peer::dial(Role_::Sequencer, 100, node);
        peer.send(&Message::Seal { epoch: Epoch(epoch) });
        let (history, end) = peer.expect(&mut [node], |message| match message {
            Message::Sealed { promised, history, end } => {
                assert_eq!(*promised, Epoch(epoch));
                Some((history.clone(), end.0))
            }
            _ => None,
        });
        let mut sequencer = Self { peer, epoch, history, end, members: members.to_vec() };
        sequencer.history.push(EpochStart { epoch: Epoch(epoch), first: SeqNum(end + 1) });
        sequencer.welcome(1);
        let from = sequencer.follow(node);
        assert_eq!(from, end + 1);
        sequencer
    }

    pub fn welcome(&mut self, window_start: u64) {
        self.peer.send(&Message::Welcome {
            epoch: Epoch(self.epoch),
            history: self.history.clone(),
            window_start: SeqNum(window_start),
            tail: SeqNum(self.end),
            members: self.members.clone(),
            lease_ms: 1000,
            places_max: 1 << 20,
        });
    }

    pub fn follow(&mut self, node: &mut Node) -> u64 {
        self.peer.expect(&mut [node], |message| match message {
            Message::Follow { from } => Some(from.0),
            _ => None,
        })
    }

    /// Streams `count` records without waiting.
    pub fn stream(&mut self, count: u64) {
        let first = self.end + 1;
        self.end += count;
        let bytes = records(first..=self.end, self.epoch);
        let (epoch, first) = (Epoch(self.epoch), SeqNum(first));
        self.peer.send(&Message::Stream { epoch, first, records: &bytes });
    }

    /// Waits until the node says that all of it is durable.
    pub fn settle(&mut self, node: &mut Node) {
        let (epoch, end) = (Epoch(self.epoch), SeqNum(self.end));
        self.peer.expect(&mut [node], |message| match message {
            Message::Durable { epoch: of, seq } if (*of, *seq) == (epoch, end) => Some(()),
            _ => None,
        });
    }

    /// Reads the whole log back through the node.
    pub fn read_all(&mut self, node: &mut Node) -> Vec<u64> {
        let (mut seqs, mut from) = (Vec::new(), 1);
        while from <= self.end {
            self.peer.send(&Message::ReadLog {
                token: from,
                epoch: Epoch(self.epoch),
                raw: false,
                from: SeqNum(from),
                max_bytes: 20_000,
            });
            let found: Vec<u64> = self.peer.expect(&mut [node], |message| match message {
                Message::LogChunk { token, records, .. } if *token == from => {
                    Some(Records::new(records).map(|record| record.unwrap().seq().0).collect())
                }
                _ => None,
            });
            assert_eq!(found.first(), Some(&from));
            from = found.last().unwrap() + 1;
            seqs.extend(found);
        }
        seqs
    }
}

pub fn load(memory: &HeapMemory) -> u64 {
    u64::from_le(memory.words()[0].load(Ordering::Acquire))
}
