//! The role over TCP on loopback, with storage nodes and engines that the test plays, all on one
//! thread. Time is what the test says it is.
#![allow(missing_docs, clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]
#![allow(unreachable_pub, reason = "tests")]

mod failover;
mod members;
mod peers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use halfmoon_reactor::{Options as ReactorOptions, Reactor, SharedReactor};
use halfmoon_sequencer::{Now, Reign, Request, Role, RoleError};
use halfmoon_tcp::Tcp;
use halfmoon_wire::{
    Condition, Epoch, Evict, Hello, Incarnation, LocalId, Message, NodeId, RecordKind, Refusal,
    Role as WireRole, SeqNum, Tag,
};
use peers::*;

struct World {
    reactor: SharedReactor,
    storage: Vec<Storage>,
    role: Role<Tcp>,
    address: String,
    clients: BTreeMap<u32, Client>,
    now: Now,
    requests: Vec<Request>,
    ended: Option<RoleError>,
}

impl World {
    fn new() -> Self {
        Self::with_window(1 << 28)
    }

    fn with_window(window_bytes: usize) -> Self {
        let reactor = Reactor::shared(ReactorOptions::default()).unwrap();
        let storage = TRIO.map(|node| Storage::new(&reactor, node)).into();
        let (role, address) = reign(&reactor, 1, window_bytes);
        let (clients, now) = (BTreeMap::new(), Now { mono_ns: 1, wall_ns: 1 });
        let (requests, ended) = (vec![], None);
        Self { reactor, storage, role, address, clients, now, requests, ended }
    }

    /// Another sequencer, with the storage nodes as they are.
    fn succeed(&mut self, epoch: u64) {
        (self.role, self.address) = reign(&self.reactor, epoch, 1 << 28);
        self.clients.clear();
    }

    fn join(&mut self, node: NodeId, incarnation: u64) {
        let hello = hello(WireRole::Engine, node, incarnation);
        self.clients.insert(node.0, Client::new(&self.reactor, &self.address, &hello));
        self.until(|world| world.client(node).welcomes() > 0);
    }

    fn client(&mut self, node: NodeId) -> &mut Client {
        self.clients.get_mut(&node.0).unwrap()
    }

    fn turn(&mut self) {
        self.storage.iter_mut().for_each(Storage::turn);
        self.clients.values_mut().for_each(Client::turn);
        match self.role.turn(self.now) {
            Ok(_) => {}
            Err(error) => self.ended = Some(error),
        }
        while let Some(request) = self.role.next_request() {
            self.requests.push(request);
            if let Request::Locate(node) = request {
                let address = self.storage[node.0 as usize - 1].address.clone();
                self.role.located(self.now, node, Some(&address));
            }
        }
        self.reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < end, "it never came: {:?}", self.role.status());
            self.turn();
        }
    }

    fn open(&mut self) {
        self.until(|world| world.role.status().committed > SeqNum::ZERO);
    }

    /// Time passes in steps, while this engine goes on reporting.
    fn pass(&mut self, ms: u64, reporting: NodeId) {
        for _ in 0..ms / 100 {
            self.now.mono_ns += 100_000_000;
            let at = self.role.status().committed;
            let answered = LocalId(0);
            self.client(reporting).send(&Message::Report { applied: at, safe_point: at, answered });
            (0..3).for_each(|_| self.turn());
        }
    }
}

fn reign(reactor: &SharedReactor, epoch: u64, window_bytes: usize) -> (Role<Tcp>, String) {
    let (mut role, address) = idle(reactor, FIRST, window_bytes);
    role.reign(Reign { epoch: Epoch(epoch), member_sets: vec![TRIO.to_vec()] });
    (role, address)
}

fn length(length: u64) -> Condition {
    Condition::Length { tag: Tag(1), length }
}

#[test]
fn what_is_appended_is_streamed_to_all_in_one_order_and_committed() {
    let mut world = World::new();
    world.open();
    assert!(world.requests.contains(&Request::Publish));
    world.until(|world| world.requests.contains(&Request::MarkCommitted(Epoch(1))));
    world.join(ENGINE, 1);
    world.join(OTHER, 1);
    world.client(ENGINE).send(&Message::Follow { from: SeqNum(1) });
    for local in 1..=50 {
        world.client(ENGINE).append(1, local, &[], &vec![7; 999]);
        world.client(OTHER).append(1, local, &[], b"x");
    }
    world.until(|world| world.role.status().committed == SeqNum(101));
    world.until(|world| world.client(ENGINE).stream().len() == 101);
    let heard: Vec<_> =
        world.client(ENGINE).stream().iter().map(|record| record.bytes().to_vec()).collect();
    world.until(|world| world.storage.iter().all(|storage| storage.log.len() == 101));
    assert!(world.storage.iter().all(|storage| storage.log == heard));
    let counted = world.role.metrics().snapshot();
    assert_eq!((counted.ordered, counted.refused, counted.committed), (100, 0, 101));
}

#[test]
fn a_loser_is_told_the_winner_and_a_duplicate_is_told_nothing() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 1);
    world.client(ENGINE).append(1, 1, &[length(0)], b"first");
    world.client(ENGINE).append(1, 1, &[length(0)], b"first");
    world.client(ENGINE).append(1, 2, &[length(0)], b"second");
    world.until(|world| !world.client(ENGINE).refusals().is_empty());
    let conflict = Refusal::Conflict { condition: 0, winner: SeqNum(2) };
    assert_eq!(world.client(ENGINE).refusals(), [(2, conflict)]);
    assert_eq!(world.role.metrics().snapshot().duplicates, 1);
}

#[test]
fn a_new_epoch_goes_on_from_the_log_and_knows_what_is_in_it() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 1);
    for local in 1..=9 {
        world.client(ENGINE).append(1, local, &[length(local - 1)], b"kept");
    }
    world.until(|world| world.storage.iter().all(|storage| storage.log.len() == 10));
    // One node is away, and has a log that nobody else has.
    world.storage[2].works = false;
    world.storage[2].log.truncate(4);
    world.succeed(2);
    world.open();
    world.join(ENGINE, 1);
    world.client(ENGINE).send(&Message::Follow { from: SeqNum(1) });
    world.client(ENGINE).append(1, 11, &[], b"meant for epoch 1");
    world.client(ENGINE).append(2, 9, &[length(8)], b"kept");
    world.client(ENGINE).append(2, 10, &[length(9)], b"new");
    world.until(|world| world.client(ENGINE).stream().len() == 12);
    let found: Vec<_> = world
        .client(ENGINE)
        .stream()
        .iter()
        .map(|record| (record.epoch().0, record.kind(), record.origin().local.0))
        .collect();
    assert_eq!(found[9], (1, RecordKind::Data, 9));
    assert_eq!(found[10].1, RecordKind::Open);
    assert_eq!(found[11], (2, RecordKind::Data, 10));
    let counted = world.role.metrics().snapshot();
    assert_eq!((counted.duplicates, counted.misdirected), (1, 1));
    // The node that was away catches up from the window.
    world.storage[2].works = true;
    world.storage[2].endpoint.lanes().collect::<Vec<_>>().into_iter().for_each(|lane| {
        world.storage[2].endpoint.close(lane);
    });
    world.until(|world| {
        world.now.mono_ns += 1_000_000;
        world.storage[2].log.len() == 12
    });
    assert_eq!(world.storage[2].log, world.storage[0].log);
}

#[test]
fn a_sequencer_whose_epoch_is_over_stops() {
    let mut world = World::new();
    world.storage[1].promised = 7;
    world.until(|world| world.ended.is_some());
    let deposed = RoleError::Deposed { own: Epoch(1), promised: Epoch(7) };
    assert_eq!(world.ended, Some(deposed));
}

#[test]
fn the_tail_is_told_only_when_two_storage_nodes_confirm_the_epoch() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 1);
    world.storage.iter_mut().skip(1).for_each(|storage| storage.confirms = false);
    world.client(ENGINE).append(1, 1, &[], b"x");
    world.client(ENGINE).send(&Message::AskTail { token: 4 });
    world.until(|world| world.storage.iter().all(|storage| storage.log.len() == 2));
    (0..20).for_each(|_| world.turn());
    assert_eq!(world.client(ENGINE).tails(), []);
    world.storage[1].confirms = true;
    world.client(ENGINE).send(&Message::AskTail { token: 5 });
    world.until(|world| world.client(ENGINE).tails().len() == 2);
    assert_eq!(world.client(ENGINE).tails(), [(4, SeqNum(2)), (5, SeqNum(2))]);
}

#[test]
fn a_storage_node_that_comes_back_is_asked_again_to_confirm() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 1);
    world.until(|world| world.role.status().storage.iter().all(|(_, sealed)| *sealed));
    world.storage.iter_mut().skip(1).for_each(|storage| storage.confirms = false);
    world.client(ENGINE).send(&Message::AskTail { token: 4 });
    (0..20).for_each(|_| world.turn());
    assert_eq!(world.client(ENGINE).tails(), []);
    world.storage[1].confirms = true;
    let lanes: Vec<_> = world.storage[1].endpoint.lanes().collect();
    lanes.into_iter().for_each(|lane| world.storage[1].endpoint.close(lane));
    world.until(|world| {
        world.now.mono_ns += 1_000_000;
        !world.client(ENGINE).tails().is_empty()
    });
    assert_eq!(world.client(ENGINE).tails(), [(4, SeqNum(1))]);
}

#[test]
fn a_silent_engine_is_evicted_and_nothing_of_it_is_ordered_after_that() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 3);
    world.join(OTHER, 8);
    world.client(OTHER).send(&Message::Follow { from: SeqNum(1) });
    world.pass(u64::from(LEASE_MS) + 300, OTHER);
    let find = |world: &mut World| {
        let stream = world.client(OTHER).stream();
        let evict = stream.iter().find(|record| record.kind() == RecordKind::Evict);
        evict.map(|record| Evict::parse(record.payload()).unwrap())
    };
    world.until(|world| find(world).is_some());
    let expected = Evict {
        engine: ENGINE,
        incarnation: Incarnation(3),
        heir: OTHER,
        heir_incarnation: Incarnation(8),
    };
    assert_eq!(find(&mut world), Some(expected));
    world.client(ENGINE).append(1, 1, &[], b"late");
    world.until(|world| world.client(ENGINE).refusals() == [(1, Refusal::Evicted)]);
    // It comes again and hears that it is out, but gets no lease: it might inherit.
    world.join(ENGINE, 3);
    let engines = world.role.status().engines;
    assert_eq!(engines.iter().map(|(node, ..)| *node).collect::<Vec<_>>(), [OTHER]);
}

#[test]
fn an_earlier_life_of_a_node_does_not_take_the_place_of_a_later_one() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 2);
    let hello = hello(WireRole::Engine, ENGINE, 1);
    let mut earlier = Client::new(&world.reactor, &world.address, &hello);
    world.until(|_| {
        earlier.turn();
        earlier.is_down
    });
    world.client(ENGINE).append(1, 1, &[], b"x");
    world.until(|world| world.role.status().committed == SeqNum(2));
    assert!(!world.client(ENGINE).is_down);
}

#[test]
fn two_storage_nodes_of_three_are_enough() {
    let mut world = World::new();
    world.storage[0].works = false;
    world.open();
    world.join(ENGINE, 1);
    world.client(ENGINE).append(1, 1, &[], b"x");
    world.until(|world| world.role.status().committed == SeqNum(2));
}

#[test]
fn one_storage_node_of_three_is_not() {
    let mut world = World::new();
    world.storage.iter_mut().skip(1).for_each(|storage| storage.works = false);
    (0..100).for_each(|_| world.turn());
    assert!(!world.role.status().is_open);
    assert!(!world.requests.contains(&Request::Publish));
}

#[test]
fn a_window_full_of_what_is_not_committed_refuses_and_recovers() {
    let mut world = World::with_window(0);
    world.open();
    world.join(ENGINE, 1);
    world.storage.iter_mut().skip(1).for_each(|storage| storage.works = false);
    let payload = vec![7; 200 * 1024];
    let mut local = 0;
    while world.client(ENGINE).refusals().is_empty() {
        local += 1;
        world.client(ENGINE).append(1, local, &[], &payload);
        (0..4).for_each(|_| world.turn());
        assert!(local < 200, "the window is bounded");
    }
    assert_eq!(world.client(ENGINE).refusals()[0].1, Refusal::Overloaded);
    for index in 1..3 {
        world.storage[index].works = true;
        let lanes: Vec<_> = world.storage[index].endpoint.lanes().collect();
        lanes.into_iter().for_each(|lane| world.storage[index].endpoint.close(lane));
    }
    world.until(|world| {
        world.now.mono_ns += 1_000_000;
        let status = world.role.status();
        status.committed == status.tail
    });
    let before = world.role.status().tail;
    world.client(ENGINE).append(1, 1000, &[], &payload);
    world.until(|world| world.role.status().committed > before);
    // Who asks for what the window has dropped is sent to storage.
    world.client(ENGINE).append(1, 1001, &[], &payload);
    world.until(|world| world.role.status().committed > before.next());
    let welcomes = world.client(ENGINE).welcomes();
    world.client(ENGINE).send(&Message::Follow { from: SeqNum(1) });
    world.until(|world| {
        world.client(ENGINE).welcomes() > welcomes || !world.client(ENGINE).stream().is_empty()
    });
    let last = world.client(ENGINE).messages().filter_map(|message| match message {
        Message::Welcome { window_start, .. } => Some(window_start),
        _ => None,
    });
    assert!(last.last().unwrap() > SeqNum(1));
}

#[test]
fn peers_that_break_the_rules_are_cut_off_and_harm_nobody() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 1);
    let stranger = Hello { cluster: CLUSTER + 1, ..hello(WireRole::Engine, OTHER, 1) };
    let storage = hello(WireRole::Storage, NodeId(1), 1);
    for intruder in [stranger, storage] {
        let client = Client::new(&world.reactor, &world.address, &intruder);
        world.clients.insert(99, client);
        world.until(|world| world.client(NodeId(99)).is_down);
    }
    let breaches = [
        Message::Seal { epoch: Epoch(9) }.to_bytes(),
        Message::Follow { from: SeqNum(77) }.to_bytes(),
        vec![255, 1, 2],
        vec![0, 1, 2],
    ];
    for bytes in breaches {
        world.join(OTHER, 1);
        let client = world.client(OTHER);
        client.endpoint.send(client.lane, &[&bytes]).unwrap();
        world.until(|world| world.client(OTHER).is_down);
    }
    world.client(ENGINE).append(1, 1, &[], b"x");
    world.until(|world| world.role.status().committed == SeqNum(2));
    assert!(!world.client(ENGINE).is_down);
}

#[test]
fn what_comes_on_a_lane_that_was_replaced_is_not_heard() {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 1);
    let mut old = world.clients.remove(&ENGINE.0).unwrap();
    world.join(ENGINE, 1);
    old.append(1, 1, &[], b"stale");
    world.until(|_| {
        old.turn();
        old.is_down
    });
    world.client(ENGINE).append(1, 2, &[], b"x");
    world.until(|world| world.role.status().committed == SeqNum(2));
    assert_eq!(world.role.metrics().snapshot().ordered, 1);
}
