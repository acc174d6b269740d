//! Peers that use their adapter as no transport would. They need one: `cargo xtask rdma` runs them.

use std::time::Instant;

use halfmoon_reactor::{Options, Reactor};
use halfmoon_transport::{HeapMemory, memory};

use super::*;
use crate::work::Failure;

struct Node {
    transport: Rdma,
    reactor: SharedReactor,
    seen: Vec<Occurrence>,
}

impl Node {
    fn new() -> Self {
        let reactor = Reactor::shared(Options::default()).unwrap();
        let transport = Rdma::new(reactor.clone(), Choice::Rdma);
        Self { transport, reactor, seen: Vec::new() }
    }

    fn turn(&mut self) {
        self.transport.poll(&mut self.seen);
        self.transport.flush();
        self.reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
    }

    fn down(&self, lane: LaneId) -> Option<&DownReason> {
        self.seen.iter().find_map(|seen| {
            let Occurrence::Down { lane: of, reason } = seen else { return None };
            (*of == lane).then_some(reason)
        })
    }

    /// Hands a write to the adapter beside all that a transport keeps count of.
    fn scribble(&mut self, lane: LaneId, to: (u64, u32), bytes: &[u8]) {
        let wired = self.transport.lanes.get_mut(&lane).unwrap().link.as_mut().unwrap();
        wired.link.scribble(to, bytes);
    }

    /// Notes that a lane has taken, and of which its peer was not told.
    fn untold(&mut self, lane: LaneId) -> u32 {
        let wired = self.transport.lanes.get_mut(&lane).and_then(|found| found.link.as_mut());
        wired.map_or(0, |wired| wired.link.untold())
    }

    /// How the last scribble ended.
    fn outcome(&mut self, lane: LaneId) -> Option<Failure> {
        let wired = self.transport.lanes.get_mut(&lane)?.link.as_mut()?;
        let mut outcome = None;
        wired.link.completions().take(|finished| {
            if finished.id == crate::link::SCRIBBLE {
                outcome = finished.failure;
            }
        });
        outcome
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "it never came: {what}");
    }
}

fn listening() -> (Node, String) {
    let host = std::env::var("HALFMOON_TEST_RDMA").expect("`cargo xtask rdma` runs these tests");
    listening_at(&host)
}

fn listening_at(host: &str) -> (Node, String) {
    let mut node = Node::new();
    let address = node.transport.listen(&format!("{host}:0")).unwrap();
    (node, address)
}

/// A peer of `node`, and the two ends of the lane between them.
fn peer(node: &mut Node, address: &str) -> (Node, LaneId, LaneId) {
    let mut peer = Node::new();
    let to_node = peer.transport.dial(address).unwrap();
    peer.transport.greet(to_node, b"peer");
    let mut to_peer = None;
    until("both greetings", || {
        peer.turn();
        node.turn();
        if let Some(Occurrence::Incoming { lane }) = node.seen.first().cloned() {
            node.seen.clear();
            node.transport.greet(lane, b"node");
            to_peer = Some(lane);
        }
        !peer.seen.is_empty() && !node.seen.is_empty()
    });
    peer.seen.clear();
    node.seen.clear();
    let to_peer = to_peer.unwrap();
    assert!(peer.transport.is_rdma(to_node) && node.transport.is_rdma(to_peer));
    assert_eq!(peer.transport.carrier(to_node), Some(Carrier::Rdma));
    (peer, to_node, to_peer)
}

/// Memory of `node` that the peer on a lane may write to, and what the peer knows of it.
fn exposed(
    node: &mut Node,
    lane: LaneId,
    peer: &mut Node,
    to_node: LaneId,
) -> (Arc<HeapMemory>, RegionId, (u64, u32)) {
    let memory = Arc::new(HeapMemory::new(4096));
    let region = node.transport.expose(memory.clone(), Access::Lane(lane)).unwrap();
    let mut found = None;
    until("the name of the region", || {
        node.turn();
        peer.turn();
        let wired = peer.transport.lanes.get_mut(&to_node).unwrap().link.as_mut().unwrap();
        found = wired.link.remote(region);
        found.is_some()
    });
    (memory, region, found.unwrap())
}

fn bytes_of(memory: &HeapMemory) -> Vec<u8> {
    let mut bytes = Vec::new();
    memory::append_out(memory.words(), 0, memory.len_bytes(), &mut bytes).unwrap();
    bytes
}

/// That a lane still carries writes.
fn works(a: &mut Node, to_b: LaneId, b: &mut Node, to_a: LaneId) {
    let (memory, region, _) = exposed(b, to_a, a, to_b);
    let to = RemoteSpan { region, offset: 8 };
    a.transport.post_write(to_b, to, Source::bytes(&[7; 8]), Some(Token(1))).unwrap();
    until("a completion", || {
        a.turn();
        b.turn();
        a.seen.contains(&Occurrence::Completed { lane: to_b, token: Token(1) })
    });
    assert_eq!(bytes_of(&memory)[8..16], [7; 8]);
}

#[test]
fn a_peer_that_does_not_leave_a_withdrawn_region_is_refused_by_the_adapter() {
    let (mut node, address) = listening();
    let (mut friend, friend_to_node, to_friend) = peer(&mut node, &address);
    let (mut zombie, to_node, to_zombie) = peer(&mut node, &address);
    let (memory, region, key) = exposed(&mut node, to_zombie, &mut zombie, to_node);
    zombie.scribble(to_node, key, &[1; 64]);
    until("the first write of the zombie", || {
        node.turn();
        bytes_of(&memory)[..64] == [1; 64]
    });
    // From here on the zombie hears nothing: it does not poll.
    node.transport.withdraw(region);
    until("the end of the time to leave", || {
        node.turn();
        !node.transport.exposures.is_leaving(region)
    });
    zombie.scribble(to_node, key, &[2; 64]);
    let mut outcome = None;
    until("the refusal", || {
        node.turn();
        outcome = outcome.or(zombie.outcome(to_node));
        outcome.is_some()
    });
    assert_eq!(outcome, Some(Failure::Refused));
    assert_eq!(bytes_of(&memory)[..64], [1; 64]);
    until("the end of its lane", || {
        node.turn();
        node.down(to_zombie).is_some()
    });
    works(&mut friend, friend_to_node, &mut node, to_friend);
}

#[test]
fn a_withdrawn_region_is_out_of_reach_although_a_write_from_it_still_waits() {
    let (mut node, address) = listening();
    let (mut friend, friend_to_node, to_friend) = peer(&mut node, &address);
    let (mut zombie, to_node, to_zombie) = peer(&mut node, &address);
    let memory = Arc::new(HeapMemory::new(64 << 10));
    let region = node.transport.expose(memory.clone(), Access::Lane(to_zombie)).unwrap();
    let mut key = None;
    until("the name of the region", || {
        node.turn();
        zombie.turn();
        let wired = zombie.transport.lanes.get_mut(&to_node).unwrap().link.as_mut().unwrap();
        key = wired.link.remote(region);
        key.is_some()
    });
    memory::copy_in(memory.words(), 0, &[7; 64 << 10]).unwrap();
    // The friend has to be asked where this is, and does not answer before it polls.
    let landing = Arc::new(HeapMemory::new(64 << 10));
    let to = friend.transport.expose(landing.clone(), Access::Any).unwrap();
    let to = RemoteSpan { region: to, offset: 0 };
    let source = Source::Memory { memory: memory.clone(), offset: 0, len: 64 << 10 };
    node.transport.post_write(to_friend, to, source, Some(Token(5))).unwrap();
    node.turn();
    node.transport.withdraw(region);
    until("the end of the time to leave", || {
        node.turn();
        !node.transport.exposures.is_leaving(region)
    });
    assert_eq!(Arc::strong_count(&memory), 1, "nothing holds the memory");
    zombie.scribble(to_node, key.unwrap(), &[2; 64]);
    let mut outcome = None;
    until("the refusal", || {
        node.turn();
        outcome = outcome.or(zombie.outcome(to_node));
        outcome.is_some()
    });
    assert_eq!(outcome, Some(Failure::Refused));
    until("the write that waited", || {
        node.turn();
        friend.turn();
        node.seen.contains(&Occurrence::Completed { lane: to_friend, token: Token(5) })
    });
    assert_eq!(bytes_of(&landing), [7; 64 << 10]);
    works(&mut friend, friend_to_node, &mut node, to_friend);
}

#[test]
fn an_adapter_that_does_not_say_what_it_has_done_loses_its_lane() {
    let (mut node, address) = listening();
    let (mut peer, to_node, to_peer) = peer(&mut node, &address);
    node.transport.devices[0].mute();
    until("the end of the lane", || {
        node.turn();
        peer.turn();
        node.down(to_peer).is_some()
    });
    assert_eq!(node.down(to_peer), Some(&DownReason::Lost(std::io::ErrorKind::Other)));
    until("the end of its other side", || {
        peer.turn();
        node.turn();
        peer.down(to_node).is_some()
    });
}

#[test]
fn a_peer_that_sends_more_notes_than_there_is_room_for_loses_its_lane() {
    let (mut node, address) = listening();
    let (mut peer, to_node, to_peer) = peer(&mut node, &address);
    let before = node.untold(to_peer);
    // No more at once than the adapter has room for; the node only takes them, and gives no room back.
    for count in [100, 60] {
        let wired = peer.transport.lanes.get_mut(&to_node).unwrap().link.as_mut().unwrap();
        (0..count).for_each(|_| wired.link.note_without_count());
        until("the notes, or the end of the lane", || {
            node.transport.poll(&mut node.seen);
            node.down(to_peer).is_some() || node.untold(to_peer) == before + count
        });
    }
    assert_eq!(node.down(to_peer), Some(&DownReason::Corrupt));
}

#[test]
fn a_peer_whose_lane_was_closed_writes_nothing_any_more() {
    let (mut node, address) = listening();
    let (mut friend, friend_to_node, to_friend) = peer(&mut node, &address);
    let (mut zombie, to_node, to_zombie) = peer(&mut node, &address);
    let (memory, _, key) = exposed(&mut node, to_zombie, &mut zombie, to_node);
    node.transport.close(to_zombie, DownReason::Closed);
    until("the end of the lane", || {
        node.turn();
        node.down(to_zombie).is_some()
    });
    zombie.scribble(to_node, key, &[2; 64]);
    // What the same adapter does later is done.
    works(&mut friend, friend_to_node, &mut node, to_friend);
    assert!(bytes_of(&memory).iter().all(|byte| *byte == 0));
}

/// A device of its own for a test that removes it, and the address of it.
struct OwnDevice;

impl OwnDevice {
    const ADDRESS: &str = "10.9.1.1";

    fn new() -> Self {
        for made in [
            "ip link add own0 type veth peer name own1",
            "ip addr add 10.9.1.1/24 dev own0",
            "ip link set own0 up",
            "ip link set own1 up",
            "rdma link add rxe_own type rxe netdev own0",
        ] {
            assert!(command(made).status().unwrap().success(), "{made}");
        }
        Self
    }

    fn removal() -> std::process::Command {
        command("rdma link delete rxe_own")
    }
}

impl Drop for OwnDevice {
    fn drop(&mut self) {
        // A device goes with its interface, if it is still there.
        command("ip link delete own0").status().unwrap();
    }
}

fn command(line: &str) -> std::process::Command {
    let mut words = line.split(' ');
    let mut command = std::process::Command::new(words.next().unwrap());
    command.args(words);
    command
}

#[test]
fn a_device_that_is_removed_is_let_go_its_lanes_go_down_and_the_next_are_ones_over_tcp() {
    let own = OwnDevice::new();
    let (mut node, address) = listening_at(OwnDevice::ADDRESS);
    let (mut peer, to_node, to_peer) = peer(&mut node, &address);
    works(&mut peer, to_node, &mut node, to_peer);
    // No lane owns this memory, and none takes its registration along.
    let shared = node.transport.expose(Arc::new(HeapMemory::new(4096)), Access::Any).unwrap();
    let to = RemoteSpan { region: shared, offset: 0 };
    peer.transport.post_write(to_node, to, Source::bytes(&[7; 8]), Some(Token(2))).unwrap();
    until("a write to the memory for all", || {
        peer.turn();
        node.turn();
        peer.seen.contains(&Occurrence::Completed { lane: to_node, token: Token(2) })
    });
    peer.seen.clear();
    let mut removal = OwnDevice::removal().spawn().unwrap();
    let mut removed = None;
    until("the end of the removal, which waits for all who use the device", || {
        peer.turn();
        node.turn();
        removed = removal.try_wait().unwrap();
        removed.is_some()
    });
    assert!(removed.unwrap().success());
    // Whoever is first to end its side, the other has it from the device or from the connection.
    let reason = DownReason::Lost(std::io::ErrorKind::NetworkDown);
    let reasons = [peer.down(to_node).cloned(), node.down(to_peer).cloned()];
    assert!(reasons.contains(&Some(reason)), "{reasons:?}");
    assert!(reasons.iter().all(Option::is_some), "{reasons:?}");
    let before = node.transport.traffic();
    assert_eq!((before.tcp.bytes, before.rdma.lanes), (0, 0));
    peer.seen.clear();
    node.seen.clear();
    let to_node = peer.transport.dial(&address).unwrap();
    peer.transport.greet(to_node, b"peer");
    let mut to_peer = None;
    until("both greetings", || {
        peer.turn();
        node.turn();
        if let Some(Occurrence::Incoming { lane }) = node.seen.first().cloned() {
            node.seen.clear();
            node.transport.greet(lane, b"node");
            to_peer = Some(lane);
        }
        !peer.seen.is_empty() && to_peer.is_some() && !node.seen.is_empty()
    });
    assert!(!peer.transport.is_rdma(to_node) && !node.transport.is_rdma(to_peer.unwrap()));
    assert_eq!(node.transport.traffic().tcp.lanes, 1);
    drop(own);
}

#[test]
fn a_device_that_tells_of_no_more_events_is_let_go_at_once() {
    let (mut node, address) = listening();
    let (mut peer, to_node, to_peer) = peer(&mut node, &address);
    node.transport.devices[0].deafen();
    // Nothing else than an event may make it look.
    node.transport.look_at = Instant::now() + Duration::from_secs(3600);
    let wired = peer.transport.lanes.get_mut(&to_node).unwrap().link.as_mut().unwrap();
    wired.link.note_without_count();
    until("the end of the lane", || {
        node.turn();
        peer.turn();
        node.down(to_peer).is_some()
    });
    let reason = DownReason::Lost(std::io::ErrorKind::NetworkDown);
    assert_eq!(node.down(to_peer), Some(&reason));
    assert!(node.transport.devices.is_empty());
}

#[test]
fn a_lane_whose_writes_do_not_end_is_given_up_although_its_tcp_connection_lives() {
    let (mut node, address) = listening();
    let (mut peer, to_node, to_peer) = peer(&mut node, &address);
    let (_, region, _) = exposed(&mut node, to_peer, &mut peer, to_node);
    // The other end is gone from its adapter, and its node does not know.
    node.transport.watched.borrow_mut().remove(to_peer);
    node.transport.lanes.get_mut(&to_peer).unwrap().link = None;
    let to = RemoteSpan { region, offset: 0 };
    peer.transport.post_write(to_node, to, Source::bytes(&[1; 8]), Some(Token(1))).unwrap();
    until("the end of the lane", || {
        peer.turn();
        peer.down(to_node).is_some()
    });
    let reason = DownReason::Lost(std::io::ErrorKind::TimedOut);
    assert_eq!(peer.seen, [Occurrence::Down { lane: to_node, reason }]);
}

#[test]
fn a_write_past_the_end_of_a_region_or_with_another_key_is_refused_by_the_adapter() {
    for (past, key_off) in [(4092, 0), (0, 1)] {
        let (mut node, address) = listening();
        let (mut friend, friend_to_node, to_friend) = peer(&mut node, &address);
        let (mut zombie, to_node, to_zombie) = peer(&mut node, &address);
        let (memory, _, (at, key)) = exposed(&mut node, to_zombie, &mut zombie, to_node);
        zombie.scribble(to_node, (at + past, key ^ key_off), &[3; 8]);
        let mut outcome = None;
        until("the refusal", || {
            node.turn();
            outcome = outcome.or(zombie.outcome(to_node));
            outcome.is_some() && node.down(to_zombie).is_some()
        });
        assert_eq!(outcome, Some(Failure::Refused));
        let reason = DownReason::Lost(std::io::ErrorKind::ConnectionAborted);
        assert_eq!(node.down(to_zombie), Some(&reason));
        assert!(bytes_of(&memory).iter().all(|byte| *byte == 0));
        works(&mut friend, friend_to_node, &mut node, to_friend);
    }
}

#[test]
fn garbage_where_notes_come_kills_the_lane_and_no_other() {
    let (mut node, address) = listening();
    let (mut friend, friend_to_node, to_friend) = peer(&mut node, &address);
    let (mut stranger, to_node, to_stranger) = peer(&mut node, &address);
    let wired = stranger.transport.lanes.get_mut(&to_node).unwrap().link.as_mut().unwrap();
    wired.link.note_of_garbage();
    until("the end of its lane", || {
        node.turn();
        node.down(to_stranger).is_some()
    });
    assert_eq!(node.down(to_stranger), Some(&DownReason::Corrupt));
    works(&mut friend, friend_to_node, &mut node, to_friend);
}

#[test]
fn a_peer_that_is_gone_in_the_middle_of_a_long_write_harms_nobody() {
    let (mut node, address) = listening();
    let (mut friend, friend_to_node, to_friend) = peer(&mut node, &address);
    let (mut gone, to_node, to_gone) = peer(&mut node, &address);
    let memory = Arc::new(HeapMemory::new(8 << 20));
    let region = node.transport.expose(memory.clone(), Access::Lane(to_gone)).unwrap();
    let to = RemoteSpan { region, offset: 0 };
    gone.transport.post_write(to_node, to, Source::bytes(&vec![9; 8 << 20]), None).unwrap();
    until("the beginning of the write", || {
        node.turn();
        gone.turn();
        memory.words()[0].load(std::sync::atomic::Ordering::Acquire) != 0
    });
    drop(gone);
    until("the end of its lane", || {
        node.turn();
        node.down(to_gone).is_some()
    });
    let last = memory.words().last().unwrap();
    assert_eq!(last.load(std::sync::atomic::Ordering::Acquire), 0, "it was over already");
    works(&mut friend, friend_to_node, &mut node, to_friend);
}

#[test]
fn a_lane_carries_many_more_batches_both_ways_than_there_is_room_for_at_once() {
    let (mut node, address) = listening();
    let (mut peer, to_node, to_peer) = peer(&mut node, &address);
    let (at_node, region_of_node, _) = exposed(&mut node, to_peer, &mut peer, to_node);
    let (_, region_of_peer, _) = exposed(&mut peer, to_node, &mut node, to_peer);
    let batches = 5 * u64::from(verbs::NOTES_DEPTH);
    let (mut posted, mut completed) = (0, [0, 0]);
    until("all completions", || {
        for (end, lane, region) in
            [(&mut peer, to_node, region_of_node), (&mut node, to_peer, region_of_peer)]
        {
            if posted < batches {
                let to = RemoteSpan { region, offset: 0 };
                let word = (posted + 1).to_le_bytes();
                let post =
                    end.transport.post_write(lane, to, Source::bytes(&word), Some(Token(posted)));
                assert_eq!(post, Ok(()));
            }
            end.transport.flush();
            end.transport.poll(&mut end.seen);
        }
        posted += u64::from(posted < batches);
        for (end, count) in [&mut peer, &mut node].into_iter().zip(&mut completed) {
            for seen in end.seen.drain(..) {
                assert!(matches!(seen, Occurrence::Completed { token, .. } if token.0 == *count));
                *count += 1;
            }
        }
        completed == [batches; 2]
    });
    assert_eq!(bytes_of(&at_node)[..8], batches.to_le_bytes());
}
