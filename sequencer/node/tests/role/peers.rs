//! What surrounds the role: storage nodes, and nodes that dial it.

use halfmoon_reactor::SharedReactor;
use halfmoon_sequencer::{Options, PLACES_MAX_DEFAULT, Role};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{Endpoint, EndpointOptions, Event, LaneId};
use halfmoon_wire::{
    Append, Condition, Epoch, EpochStart, Hello, Incarnation, LocalId, Message, NodeId, RecordKind,
    RecordRef, Records, Refusal, Role as WireRole, SeqNum, Tag, agreement,
};

pub const CLUSTER: u128 = 5;
pub const TRIO: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
pub const ENGINE: NodeId = NodeId(20);
pub const OTHER: NodeId = NodeId(21);
pub const FIRST: NodeId = NodeId(10);
pub const LEASE_MS: u32 = 1000;
pub const SUSPECT_MS: u32 = 250;

pub fn hello(role: WireRole, node: NodeId, incarnation: u64) -> Hello {
    Hello { cluster: CLUSTER, role, node, incarnation: Incarnation(incarnation) }
}

pub fn endpoint(reactor: &SharedReactor, hello: &Hello) -> Endpoint<Tcp> {
    Endpoint::new(Tcp::new(reactor.clone()), EndpointOptions::new(hello.to_bytes()))
}

/// A storage node whose disk is a list.
pub struct Storage {
    pub endpoint: Endpoint<Tcp>,
    pub address: String,
    pub promised: u64,
    pub log: Vec<Vec<u8>>,
    /// Whether it takes part; a node that does not is silent, but its lanes are up.
    pub works: bool,
    /// Whether it gives records of its log to a recovery.
    pub gives: bool,
    pub confirms: bool,
    /// Whether it takes what is streamed.
    pub takes: bool,
    /// Whether it answers those that follow without any records.
    pub is_empty_handed: bool,
    /// How often its log was read for a recovery, and by somebody who follows.
    pub raw_reads: usize,
    pub reads: usize,
    /// Messages of epochs that were over.
    pub dropped: usize,
}

impl Storage {
    pub fn new(reactor: &SharedReactor, node: NodeId) -> Self {
        let mut endpoint = endpoint(reactor, &hello(WireRole::Storage, node, 1));
        let address = endpoint.listen("127.0.0.1:0").unwrap();
        Self {
            endpoint,
            address,
            promised: 0,
            log: vec![],
            works: true,
            gives: true,
            confirms: true,
            takes: true,
            is_empty_handed: false,
            raw_reads: 0,
            reads: 0,
            dropped: 0,
        }
    }

    pub fn history(&self) -> Vec<EpochStart> {
        let mut history: Vec<EpochStart> = Vec::new();
        for record in self.log.iter().map(|bytes| RecordRef::parse(bytes).unwrap()) {
            if history.last().is_none_or(|last| last.epoch < record.epoch()) {
                history.push(EpochStart { epoch: record.epoch(), first: record.seq() });
            }
        }
        history
    }

    pub fn end(&self) -> SeqNum {
        SeqNum(self.log.len() as u64)
    }

    pub fn turn(&mut self) {
        let mut messages = Vec::new();
        self.endpoint.poll(&mut |event| {
            if let Event::Message { lane, bytes } = event {
                messages.push((lane, bytes.to_vec()));
            }
        });
        if !self.works {
            messages.clear();
        }
        for (lane, bytes) in &messages {
            if let Some(answer) = self.answer(&Message::parse(bytes).unwrap()) {
                self.endpoint.send(*lane, &[&answer]).unwrap();
            }
        }
        self.endpoint.flush();
    }

    pub fn answer(&mut self, message: &Message<'_>) -> Option<Vec<u8>> {
        let answer = match message {
            Message::Seal { epoch } => {
                self.promised = self.promised.max(epoch.0);
                let promised = Epoch(self.promised);
                Message::Sealed { promised, history: self.history(), end: self.end() }.to_bytes()
            }
            Message::ReadLog { raw: true, .. } if !self.gives => {
                self.raw_reads += 1;
                return None;
            }
            Message::ReadLog { token, epoch, from, raw, .. } => {
                *(if *raw { &mut self.raw_reads } else { &mut self.reads }) += 1;
                let skip = usize::try_from(from.0 - 1).unwrap();
                let records =
                    self.log.iter().skip(skip).take(if self.is_empty_handed { 0 } else { 3 });
                let records = records.flatten().copied();
                let records: Vec<u8> = records.collect();
                let (token, epoch, first, end) = (*token, *epoch, *from, self.end());
                Message::LogChunk { token, epoch, first, end, records: &records }.to_bytes()
            }
            // Of an epoch that is over.
            Message::Welcome { epoch, .. } | Message::Stream { epoch, .. }
                if epoch.0 < self.promised =>
            {
                self.dropped += 1;
                return None;
            }
            Message::Welcome { epoch, history, tail, window_start, .. } => {
                assert_eq!(epoch.0, self.promised);
                let agreed = agreement((&self.history(), self.end()), (history, *tail));
                self.log.truncate(usize::try_from(agreed.0).unwrap());
                assert!(agreed.next() >= *window_start);
                Message::Follow { from: agreed.next() }.to_bytes()
            }
            Message::Stream { .. } if !self.takes => return None,
            Message::Stream { epoch, first, records } => {
                assert_eq!((epoch.0, *first), (self.promised, self.end().next()));
                let records = Records::new(records).map(|record| record.unwrap().bytes().to_vec());
                self.log.extend(records);
                Message::Durable { epoch: *epoch, seq: self.end() }.to_bytes()
            }
            Message::Confirm { epoch, token } if self.confirms && epoch.0 == self.promised => {
                Message::Confirmed { epoch: *epoch, token: *token }.to_bytes()
            }
            Message::Confirm { .. } => return None,
            other => panic!("{other:?}"),
        };
        Some(answer)
    }
}

/// A node that dials the sequencer and keeps what it hears.
pub struct Client {
    pub endpoint: Endpoint<Tcp>,
    pub lane: LaneId,
    pub heard: Vec<Vec<u8>>,
    pub is_up: bool,
    pub is_down: bool,
}

impl Client {
    pub fn new(reactor: &SharedReactor, address: &str, hello: &Hello) -> Self {
        let mut endpoint = endpoint(reactor, hello);
        let lane = endpoint.dial(address).unwrap();
        Self { endpoint, lane, heard: vec![], is_up: false, is_down: false }
    }

    pub fn turn(&mut self) {
        let (heard, is_up, is_down) = (&mut self.heard, &mut self.is_up, &mut self.is_down);
        self.endpoint.poll(&mut |event| match event {
            Event::Message { bytes, .. } => heard.push(bytes.to_vec()),
            Event::Up { .. } => *is_up = true,
            Event::Down { .. } => *is_down = true,
            Event::Written { .. } | Event::Room { .. } => {}
        });
    }

    pub fn send(&mut self, message: &Message<'_>) {
        self.endpoint.send(self.lane, &[&message.to_bytes()]).unwrap();
        self.endpoint.flush();
    }

    pub fn append(&mut self, epoch: u64, local: u64, conditions: &[Condition], payload: &[u8]) {
        let append = Append {
            local: LocalId(local),
            kind: RecordKind::Data,
            floor: SeqNum::MAX,
            conditions: conditions.to_vec(),
            tags: vec![Tag(1)],
            payload,
        };
        self.send(&Message::Append { epoch: Epoch(epoch), append });
    }

    pub fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        self.heard.iter().map(|bytes| Message::parse(bytes).unwrap())
    }

    /// The records heard, in the order of the stream.
    pub fn stream(&self) -> Vec<RecordRef<'_>> {
        let mut records = Vec::new();
        for bytes in &self.heard {
            if let Message::Stream { records: bytes, .. } = Message::parse(bytes).unwrap() {
                records.extend(Records::new(bytes).map(Result::unwrap));
            }
        }
        records
    }

    pub fn welcomes(&self) -> usize {
        self.messages().filter(|message| matches!(message, Message::Welcome { .. })).count()
    }

    pub fn refusals(&self) -> Vec<(u64, Refusal)> {
        self.messages()
            .filter_map(|message| match message {
                Message::Refused { local, refusal, .. } => Some((local.0, refusal)),
                _ => None,
            })
            .collect()
    }

    pub fn tails(&self) -> Vec<(u64, SeqNum)> {
        self.messages()
            .filter_map(|message| match message {
                Message::Tail { token, seq } => Some((token, seq)),
                _ => None,
            })
            .collect()
    }
}

pub fn idle(reactor: &SharedReactor, node: NodeId, window_bytes: usize) -> (Role<Tcp>, String) {
    let options = Options {
        cluster: CLUSTER,
        node,
        is_patient: true,
        lease_ms: LEASE_MS,
        window_bytes,
        places_max: PLACES_MAX_DEFAULT,
        suspect_ms: SUSPECT_MS,
    };
    let mut role = Role::new(Tcp::new(reactor.clone()), options);
    let address = role.listen("127.0.0.1:0").unwrap();
    (role, address)
}
