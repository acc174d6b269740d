//! Sequencers that stand by, fall silent, die, come back, and take over from each other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use halfmoon_reactor::{Options as ReactorOptions, Reactor, SharedReactor};
use halfmoon_sequencer::{Now, Reign, Request, Role, Scene};
use halfmoon_tcp::Tcp;
use halfmoon_wire::{Condition, Epoch, Message, NodeId, Role as WireRole, SeqNum, Tag};

use crate::peers::*;

const SECOND: NodeId = NodeId(11);
const THIRD: NodeId = NodeId(12);

/// A sequencer's process.
struct Seat {
    role: Role<Tcp>,
    address: String,
    /// Whether it is stopped: alive, and doing nothing.
    is_stopped: bool,
}

/// Several of them, over one metadata store that the test plays.
struct Realm {
    reactor: SharedReactor,
    storage: Vec<Storage>,
    seats: BTreeMap<NodeId, Seat>,
    clients: Vec<Client>,
    /// The last epoch, who took it, and where everybody listens.
    epoch: u64,
    holder: Option<NodeId>,
    addresses: BTreeMap<NodeId, String>,
    /// Who is told no address of a storage node.
    cut_off: Option<NodeId>,
    /// Whether it takes its time to say who is in charge; who has asked meanwhile.
    is_slow: bool,
    asked: Vec<NodeId>,
    /// Epochs that were asked for.
    takes: Vec<(NodeId, u64)>,
    now: Now,
}

impl Realm {
    /// The first reigns.
    fn new() -> Self {
        Self::with_window(1 << 28)
    }

    fn with_window(window_bytes: usize) -> Self {
        let reactor = Reactor::shared(ReactorOptions::default()).unwrap();
        let storage = TRIO.map(|node| Storage::new(&reactor, node)).into();
        let (role, address) = idle(&reactor, FIRST, window_bytes);
        let mut realm = Self {
            reactor,
            storage,
            seats: BTreeMap::new(),
            clients: vec![],
            epoch: 1,
            holder: Some(FIRST),
            addresses: BTreeMap::from([(FIRST, address.clone())]),
            cut_off: None,
            is_slow: false,
            asked: vec![],
            takes: vec![],
            now: Now { mono_ns: 1, wall_ns: 1 },
        };
        realm.seats.insert(FIRST, Seat { role, address, is_stopped: false });
        realm.role(FIRST).reign(Reign { epoch: Epoch(1), member_sets: vec![TRIO.to_vec()] });
        realm.until(|realm| realm.role(FIRST).status().committed > SeqNum::ZERO);
        realm
    }

    fn start(&mut self, node: NodeId) {
        let (role, address) = idle(&self.reactor, node, 1 << 28);
        self.addresses.insert(node, address.clone());
        self.seats.insert(node, Seat { role, address, is_stopped: false });
    }

    /// One more that stands by, once it has learned all there is.
    fn stand_by(&mut self, node: NodeId) {
        self.start(node);
        self.until_learned(node);
    }

    fn until_learned(&mut self, node: NodeId) {
        self.until(|realm| {
            let holder = realm.holder.unwrap();
            let status = realm.role(holder).status();
            let standby = realm.role(node).status().standby;
            realm.now.mono_ns += 1_000_000;
            standby.is_some_and(|standby| {
                standby.watched == Some(holder)
                    && (standby.learned, standby.known) == (status.tail, status.committed)
            })
        });
    }

    fn kill(&mut self, node: NodeId) {
        self.seats.remove(&node);
    }

    fn stop(&mut self, node: NodeId, is_stopped: bool) {
        self.seats.get_mut(&node).unwrap().is_stopped = is_stopped;
    }

    fn role(&mut self, node: NodeId) -> &mut Role<Tcp> {
        &mut self.seats.get_mut(&node).unwrap().role
    }

    fn join(&mut self, sequencer: NodeId) -> usize {
        let address = self.seats[&sequencer].address.clone();
        let engine = hello(WireRole::Engine, ENGINE, 1);
        self.clients.push(Client::new(&self.reactor, &address, &engine));
        let index = self.clients.len() - 1;
        self.until(|realm| realm.clients[index].welcomes() > 0);
        index
    }

    fn scene(&self) -> Scene {
        let holder = self.holder.map(|node| (node, self.addresses.get(&node).cloned()));
        Scene { epoch: Epoch(self.epoch), holder, members: TRIO.to_vec() }
    }

    fn answer(&mut self, node: NodeId, request: Request) {
        let (now, scene) = (self.now, self.scene());
        match request {
            Request::Locate(storage) => {
                let index = TRIO.iter().position(|id| *id == storage).unwrap();
                let address = self.storage[index].address.clone();
                let told = Some(&*address).filter(|_| self.cut_off != Some(node));
                self.role(node).located(now, storage, told);
            }
            Request::Look if self.is_slow => self.asked.push(node),
            Request::Look => self.role(node).looked(now, scene),
            Request::Take { after } => {
                self.takes.push((node, after.0));
                if after.0 == self.epoch {
                    (self.epoch, self.holder) = (after.0 + 1, Some(node));
                    let reign =
                        Reign { epoch: Epoch(self.epoch), member_sets: vec![TRIO.to_vec()] };
                    self.role(node).reign(reign);
                } else {
                    self.role(node).looked(now, scene);
                }
            }
            Request::Publish | Request::MarkCommitted(_) => {}
        }
    }

    fn turn(&mut self) {
        self.storage.iter_mut().for_each(Storage::turn);
        self.clients.iter_mut().for_each(Client::turn);
        let nodes: Vec<NodeId> = self.seats.keys().copied().collect();
        let mut requests = Vec::new();
        for node in nodes {
            let now = self.now;
            let seat = self.seats.get_mut(&node).unwrap();
            if seat.is_stopped {
                continue;
            }
            if seat.role.turn(now).is_err() {
                seat.role.stand_by();
            }
            while let Some(request) = seat.role.next_request() {
                requests.push((node, request));
            }
        }
        for (node, request) in requests {
            self.answer(node, request);
        }
        self.reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            let all: Vec<_> = self.seats.values().map(|seat| seat.role.status()).collect();
            assert!(Instant::now() < end, "it never came: {all:?}");
            self.turn();
        }
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    /// Time passes, at the pace at which a loop turns.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now.mono_ns += 10_000_000;
            self.turns(3);
        }
    }

    fn open(&mut self, node: NodeId) {
        self.until(|realm| {
            let status = realm.role(node).status();
            status.is_open && status.committed > SeqNum::ZERO
        });
    }
}

fn nth(length: u64) -> [Condition; 1] {
    [Condition::Length { tag: Tag(1), length }]
}

#[test]
fn a_standby_takes_over_without_waiting_and_without_reading_what_it_has_learned() {
    let mut realm = Realm::new();
    let engine = realm.join(FIRST);
    for local in 1..=50 {
        realm.clients[engine].append(1, local, &nth(local - 1), &[7; 300]);
    }
    realm.until(|realm| realm.role(FIRST).status().committed == SeqNum(51));
    realm.stand_by(SECOND);
    let before = realm.now;
    realm.kill(FIRST);
    realm.open(SECOND);
    assert_eq!(realm.now, before, "no time has passed");
    assert_eq!(realm.takes, [(SECOND, 1)]);
    assert_eq!(realm.storage.iter().map(|node| node.raw_reads).sum::<usize>(), 0);
    // It knows what is in the log, and goes on from there.
    let engine = realm.join(SECOND);
    realm.clients[engine].send(&Message::Follow { from: SeqNum(1) });
    realm.clients[engine].append(2, 50, &nth(49), &[7; 300]);
    realm.clients[engine].append(2, 51, &nth(50), &[7; 300]);
    realm.until(|realm| realm.clients[engine].stream().len() == 53);
    let locals: Vec<u64> =
        realm.clients[engine].stream().iter().map(|record| record.origin().local.0).collect();
    assert_eq!(locals[..51], (0..=50).collect::<Vec<_>>());
    assert_eq!(locals[51..], [0, 51], "the opening record, and what was new");
    assert_eq!(realm.role(SECOND).metrics().snapshot().duplicates, 1);
}

#[test]
fn who_is_silent_is_left_after_the_time_of_suspicion_and_not_before() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    realm.pass(3 * u64::from(SUSPECT_MS));
    assert_eq!(realm.takes, [], "an idle sequencer shows life");
    realm.stop(FIRST, true);
    realm.pass(u64::from(SUSPECT_MS) - 30);
    assert_eq!(realm.takes, []);
    realm.pass(60);
    assert_eq!(realm.takes, [(SECOND, 1)]);
    realm.open(SECOND);
}

#[test]
fn a_pause_of_the_one_that_watches_is_not_held_against_the_one_that_is_watched() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    realm.stop(SECOND, true);
    realm.pass(500);
    realm.now.mono_ns += 60_000_000_000;
    realm.stop(SECOND, false);
    realm.stop(FIRST, true);
    realm.turns(20);
    realm.stop(FIRST, false);
    realm.pass(500);
    assert_eq!(realm.takes, []);
}

#[test]
fn of_two_that_stand_by_one_takes_over_and_the_other_watches_it() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    realm.stand_by(THIRD);
    realm.kill(FIRST);
    realm.until(|realm| realm.takes.len() == 2);
    let winner = realm.holder.unwrap();
    let loser = if winner == SECOND { THIRD } else { SECOND };
    realm.open(winner);
    realm.until_learned(loser);
    realm.pass(3 * u64::from(SUSPECT_MS));
    assert_eq!((realm.epoch, realm.takes.len()), (2, 2), "they agree");
    realm.kill(winner);
    realm.open(loser);
    assert_eq!((realm.epoch, realm.holder), (3, Some(loser)));
}

#[test]
fn who_takes_an_epoch_and_dies_before_it_shows_life_is_succeeded_too() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    realm.stand_by(THIRD);
    realm.kill(FIRST);
    realm.until(|realm| realm.epoch == 2);
    let (winner, loser) =
        if realm.holder == Some(SECOND) { (SECOND, THIRD) } else { (THIRD, SECOND) };
    realm.kill(winner);
    realm.until(|realm| {
        realm.now.mono_ns += 10_000_000;
        realm.epoch == 3
    });
    assert_eq!(realm.holder, Some(loser));
    realm.open(loser);
}

#[test]
fn who_was_faster_gets_the_whole_time_of_suspicion_to_show_life() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    realm.stand_by(THIRD);
    // Whoever takes over cannot be found as yet.
    realm.addresses.clear();
    realm.kill(FIRST);
    realm.until(|realm| realm.takes.len() == 2);
    realm.turns(50);
    assert_eq!((realm.epoch, realm.takes.len()), (2, 2), "no time has passed");
    realm.pass(u64::from(SUSPECT_MS) - 30);
    assert_eq!(realm.epoch, 2);
    realm.pass(100);
    assert_eq!(realm.epoch, 3, "it has shown none");
}

#[test]
fn one_that_is_started_again_stands_by() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    realm.kill(FIRST);
    realm.open(SECOND);
    realm.stand_by(FIRST);
    realm.pass(3 * u64::from(SUSPECT_MS));
    assert_eq!((realm.epoch, realm.holder), (2, Some(SECOND)));
    realm.kill(SECOND);
    realm.open(FIRST);
    assert_eq!((realm.epoch, realm.holder), (3, Some(FIRST)));
}

#[test]
fn a_sequencer_that_goes_on_after_another_took_over_harms_nothing() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    let engine = realm.join(FIRST);
    realm.clients[engine].send(&Message::Follow { from: SeqNum(1) });
    realm.clients[engine].append(1, 1, &nth(0), b"before");
    realm.until(|realm| realm.role(FIRST).status().committed == SeqNum(2));
    realm.until_learned(SECOND);
    // It is stopped with an append on its way to it.
    realm.stop(FIRST, true);
    realm.clients[engine].append(1, 2, &nth(1), b"to the old one");
    realm.clients[engine].send(&Message::AskTail { token: 7 });
    realm.pass(2 * u64::from(SUSPECT_MS));
    realm.open(SECOND);
    let other = realm.join(SECOND);
    realm.clients[other].append(2, 2, &nth(1), b"to the new one");
    realm.until(|realm| realm.role(SECOND).status().committed == SeqNum(4));
    // It goes on, and orders what it was sent.
    realm.stop(FIRST, false);
    realm.until(|realm| realm.role(FIRST).status().tail == SeqNum(3));
    realm.clients[engine].append(1, 3, &nth(2), b"more");
    realm.until(|realm| realm.role(FIRST).status().tail == SeqNum(4));
    realm.until(|realm| realm.storage.iter().all(|node| node.dropped >= 2));
    assert_eq!(realm.role(FIRST).status().committed, SeqNum(2), "nothing of it is committed");
    assert_eq!(realm.clients[engine].tails(), [], "it answers for nobody");
    for node in &realm.storage {
        assert_eq!(node.log.len(), 4);
        assert!(node.log.iter().all(|bytes| !String::from_utf8_lossy(bytes).contains("old one")));
    }
    // It learns that its epoch is over, and stands by: its engines find out.
    assert!(realm.role(FIRST).superseded(Epoch(2)));
    realm.until(|realm| realm.clients[engine].is_down);
    realm.until_learned(FIRST);
    assert_eq!(realm.role(FIRST).status().standby.unwrap().learned, SeqNum(4));
}

#[test]
fn one_that_is_told_of_a_higher_promise_stands_by() {
    let mut realm = Realm::new();
    realm.start(SECOND);
    (realm.epoch, realm.holder) = (2, Some(SECOND));
    realm.role(SECOND).reign(Reign { epoch: Epoch(2), member_sets: vec![TRIO.to_vec()] });
    realm.open(SECOND);
    // The storage nodes' lanes come back, and with them the promise that they gave.
    for storage in &mut realm.storage {
        let lanes: Vec<_> = storage.endpoint.lanes().collect();
        lanes.into_iter().for_each(|lane| storage.endpoint.close(lane));
    }
    realm.until_learned(FIRST);
    realm.open(SECOND);
}

#[test]
fn what_was_learned_and_is_in_no_log_is_forgotten() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    let engine = realm.join(FIRST);
    realm.clients[engine].append(1, 1, &nth(0), b"kept");
    realm.until(|realm| realm.role(FIRST).status().committed == SeqNum(2));
    realm.until_learned(SECOND);
    realm.storage.iter_mut().for_each(|node| node.works = false);
    realm.clients[engine].append(1, 2, &nth(1), b"lost");
    realm.clients[engine].append(1, 3, &nth(2), b"lost");
    let learned = |realm: &mut Realm| realm.role(SECOND).status().standby.unwrap().learned;
    realm.until(|realm| learned(realm) == SeqNum(4));
    assert_eq!(realm.role(SECOND).status().standby.unwrap().known, SeqNum(2));
    realm.kill(FIRST);
    realm.turns(5);
    realm.storage.iter_mut().for_each(|node| {
        node.works = true;
        let lanes: Vec<_> = node.endpoint.lanes().collect();
        lanes.into_iter().for_each(|lane| node.endpoint.close(lane));
    });
    realm.until(|realm| {
        realm.now.mono_ns += 1_000_000;
        realm.role(SECOND).status().committed == SeqNum(3)
    });
    // Its place is free: another append takes it.
    let engine = realm.join(SECOND);
    realm.clients[engine].append(2, 9, &nth(1), b"instead");
    realm.until(|realm| realm.role(SECOND).status().committed == SeqNum(4));
    assert_eq!(realm.clients[engine].refusals(), []);
}

#[test]
fn the_beginning_of_a_long_log_is_learned_from_storage() {
    let mut realm = Realm::with_window(0);
    let engine = realm.join(FIRST);
    for local in 1..=60 {
        realm.clients[engine].append(1, local, &nth(local - 1), &vec![7; 200 * 1024]);
        realm.until(|realm| realm.role(FIRST).status().committed == SeqNum(local + 1));
    }
    // The second of these does not answer, and the others give three records at a time.
    realm.storage[1].works = false;
    realm.stand_by(SECOND);
    assert!(realm.storage.iter().map(|node| node.reads).sum::<usize>() > 5);
    realm.storage[1].works = true;
    realm.kill(FIRST);
    realm.open(SECOND);
    assert_eq!(realm.role(SECOND).status().tail, SeqNum(62));
    assert_eq!(realm.storage.iter().map(|node| node.raw_reads).sum::<usize>(), 0);
}

#[test]
fn one_that_reaches_no_quorum_of_storage_takes_nothing_over() {
    let mut realm = Realm::new();
    realm.cut_off = Some(SECOND);
    realm.stand_by(SECOND);
    realm.kill(FIRST);
    realm.pass(4 * u64::from(SUSPECT_MS));
    assert_eq!(realm.takes, [], "it would be of no use");
    realm.cut_off = None;
    realm.until(|realm| {
        realm.now.mono_ns += 10_000_000;
        realm.epoch == 2
    });
    realm.open(SECOND);
}

#[test]
fn one_that_loses_storage_before_it_is_open_is_succeeded() {
    let mut realm = Realm::new();
    realm.stand_by(SECOND);
    realm.stand_by(THIRD);
    // The storage nodes hang when it comes to it.
    realm.storage.iter_mut().for_each(|node| node.works = false);
    realm.kill(FIRST);
    realm.until(|realm| realm.epoch == 2);
    realm.until(|realm| {
        realm.now.mono_ns += 10_000_000;
        realm.epoch > 2
    });
    realm.storage.iter_mut().for_each(|node| node.works = true);
    realm.until(|realm| {
        realm.now.mono_ns += 10_000_000;
        let holder = realm.holder.unwrap();
        realm.role(holder).status().is_open
    });
}

#[test]
fn a_metadata_store_that_takes_its_time_makes_nobody_silent() {
    let mut realm = Realm::new();
    realm.is_slow = true;
    realm.start(SECOND);
    realm.pass(3 * u64::from(SUSPECT_MS));
    assert_eq!(realm.asked, [SECOND], "one question at a time");
    realm.is_slow = false;
    realm.answer(SECOND, Request::Look);
    realm.until_learned(SECOND);
    realm.pass(3 * u64::from(SUSPECT_MS));
    assert_eq!(realm.takes, []);
}

#[test]
fn a_storage_node_that_hangs_while_its_log_is_read_is_left_for_another() {
    let mut realm = Realm::new();
    let engine = realm.join(FIRST);
    realm.clients[engine].append(1, 1, &nth(0), b"kept");
    realm.until(|realm| realm.role(FIRST).status().committed == SeqNum(2));
    realm.kill(FIRST);
    // Nobody has learned the log, so it is read from one of the storage nodes; that one hangs.
    realm.storage.iter_mut().for_each(|node| node.gives = false);
    realm.start(SECOND);
    realm.until(|realm| {
        realm.now.mono_ns += 10_000_000;
        realm.storage.iter().any(|node| node.raw_reads > 0)
    });
    realm.storage.iter_mut().for_each(|node| node.gives = true);
    realm.until(|realm| {
        realm.now.mono_ns += 10_000_000;
        realm.role(SECOND).status().is_open
    });
    assert_eq!(realm.role(SECOND).status().tail, SeqNum(3));
}

#[test]
fn the_one_in_charge_is_spared_the_beginning_unless_nobody_else_gives_it() {
    let mut realm = Realm::new();
    let engine = realm.join(FIRST);
    for local in 1..=4200 {
        realm.clients[engine].append(1, local, &nth(local - 1), b"");
        if local % 100 == 0 {
            realm.until(|realm| realm.role(FIRST).status().committed == SeqNum(local + 1));
        }
    }
    let sent = |realm: &mut Realm| realm.role(FIRST).metrics().snapshot().stream_bytes;
    let before = sent(&mut realm);
    realm.stand_by(SECOND);
    let from_storage = sent(&mut realm) - before;
    let reads = |realm: &Realm| realm.storage.iter().map(|node| node.reads).sum::<usize>();
    assert!(reads(&realm) >= 34, "the first hundred, three at a time: {}", reads(&realm));
    for node in &mut realm.storage {
        node.is_empty_handed = true;
    }
    let before = sent(&mut realm);
    realm.stand_by(THIRD);
    assert!(sent(&mut realm) - before > from_storage);
}
