//! Lanes over TCP: messages, one-sided writes of all sizes, and peers that break the rules.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_reactor::{Backend, Options, Reactor, SharedReactor};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{
    Access, Carrier, DownReason, Endpoint, EndpointOptions, Event, HeapMemory, LaneId, Memory,
    NoRdma, Occurrence, RegionId, RemoteSpan, Source, Token, Transport, memory,
};

const BACKENDS: [Backend; 2] = [Backend::Uring, Backend::Poll];

struct Node {
    reactor: SharedReactor,
    endpoint: Endpoint<Tcp>,
    log: Vec<Seen>,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Up(LaneId, Vec<u8>),
    Message(LaneId, Vec<u8>),
    Written(Token),
    Down(LaneId, DownReason),
}

impl Node {
    fn new(backend: Backend, hello: &[u8]) -> Self {
        let options = Options { backend: Some(backend), ..Options::default() };
        let reactor = Reactor::shared(options).unwrap();
        let mut options = EndpointOptions::new(hello.to_vec());
        options.ring_bytes = 64 << 10;
        let endpoint = Endpoint::new(Tcp::new(reactor.clone()), options);
        Self { reactor, endpoint, log: Vec::new() }
    }

    fn turn(&mut self) {
        let log = &mut self.log;
        self.endpoint.poll(&mut |event| match event {
            Event::Up { lane, hello, .. } => log.push(Seen::Up(lane, hello.to_vec())),
            Event::Message { lane, bytes } => log.push(Seen::Message(lane, bytes.to_vec())),
            Event::Written { token, .. } => log.push(Seen::Written(token)),
            Event::Down { lane, reason } => log.push(Seen::Down(lane, reason)),
            Event::Room { .. } => {}
        });
        self.reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
    }
}

fn until(nodes: &mut [&mut Node], mut done: impl FnMut(&[&mut Node]) -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done(nodes) {
        assert!(Instant::now() < end, "it never came: {:?}", nodes[0].log);
        for node in nodes.iter_mut() {
            node.turn();
        }
    }
}

fn pair(backend: Backend) -> (Node, LaneId, Node, LaneId) {
    let (mut a, mut b) = (Node::new(backend, b"a"), Node::new(backend, b"b"));
    let address = b.endpoint.listen("127.0.0.1:0").unwrap();
    let to_b = a.endpoint.dial(&address).unwrap();
    until(&mut [&mut a, &mut b], |nodes| nodes.iter().all(|node| !node.log.is_empty()));
    assert_eq!(a.log.remove(0), Seen::Up(to_b, b"b".to_vec()));
    let Seen::Up(to_a, hello) = b.log.remove(0) else { panic!("{:?}", b.log) };
    assert_eq!(hello, b"a");
    let carrier = a.endpoint.transport().carrier(to_b);
    assert_eq!(carrier, Some(Carrier::Tcp(NoRdma::NotBuilt)));
    (a, to_b, b, to_a)
}

#[test]
fn messages_of_all_sizes_arrive_in_order_through_a_ring_that_wraps_many_times() {
    for backend in BACKENDS {
        let (mut a, to_b, mut b, to_a) = pair(backend);
        let message = |n: usize| vec![n as u8; n * 37 % 9000];
        let mut next = 0;
        while b.log.len() < 2000 {
            while next < 2000 && a.endpoint.send(to_b, &[&message(next)]).is_ok() {
                next += 1;
            }
            a.turn();
            b.turn();
        }
        for (n, seen) in b.log.iter().enumerate() {
            assert_eq!(*seen, Seen::Message(to_a, message(n)));
        }
    }
}

#[test]
fn a_large_write_is_in_place_before_the_message_after_it_and_its_completion_is_told() {
    for backend in BACKENDS {
        let (mut a, to_b, mut b, to_a) = pair(backend);
        let landing = Arc::new(HeapMemory::new(2 << 20));
        let region = b.endpoint.expose(landing.clone(), Access::Lane(to_a)).unwrap();
        let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n * 7) as u8).collect();
        let source = Arc::new(HeapMemory::new(1 << 20));
        memory::copy_in(source.words(), 0, &bytes).unwrap();
        let from = Source::Memory { memory: source, offset: 0, len: 1 << 20 };
        let to = RemoteSpan { region, offset: 13 };
        a.endpoint.write(to_b, to, from, Some(Token(5))).unwrap();
        a.endpoint.send(to_b, &[b"it is there"]).unwrap();
        until(&mut [&mut a, &mut b], |nodes| !nodes[1].log.is_empty());
        assert_eq!(b.log, [Seen::Message(to_a, b"it is there".to_vec())]);
        let mut got = Vec::new();
        memory::append_out(landing.words(), 13, 1 << 20, &mut got).unwrap();
        assert!(got == bytes);
        until(&mut [&mut a, &mut b], |nodes| nodes[0].log.contains(&Seen::Written(Token(5))));
    }
}

#[test]
fn a_write_out_of_bounds_kills_its_lane_and_harms_nobody_else() {
    for backend in BACKENDS {
        let (mut a, to_b, mut b, to_a) = pair(backend);
        let memory = Arc::new(HeapMemory::new(64));
        let region = b.endpoint.expose(memory.clone(), Access::Any).unwrap();
        let mut c = Node::new(backend, b"c");
        let address = b.endpoint.listen("127.0.0.1:0").unwrap();
        let from_c = c.endpoint.dial(&address).unwrap();
        until(&mut [&mut c, &mut b], |nodes| nodes.iter().all(|node| !node.log.is_empty()));
        b.log.clear();
        let to = RemoteSpan { region, offset: 60 };
        a.endpoint.write(to_b, to, Source::bytes(&[1; 8]), None).unwrap();
        until(&mut [&mut a, &mut b], |nodes| !nodes[1].log.is_empty());
        assert_eq!(b.log, [Seen::Down(to_a, DownReason::OutOfBounds)]);
        assert!(memory.words().iter().all(|w| w.load(std::sync::atomic::Ordering::Acquire) == 0));
        c.endpoint.send(from_c, &[b"still here"]).unwrap();
        until(&mut [&mut c, &mut b], |nodes| nodes[1].log.len() == 2);
    }
}

#[test]
fn a_write_to_a_withdrawn_region_is_dropped_and_the_lane_lives() {
    let (mut a, to_b, mut b, to_a) = pair(Backend::Uring);
    let region = b.endpoint.expose(Arc::new(HeapMemory::new(1 << 17)), Access::Any).unwrap();
    b.endpoint.withdraw(region);
    for len in [8, 100_000] {
        let to = RemoteSpan { region, offset: 0 };
        a.endpoint.write(to_b, to, Source::bytes(&vec![1; len]), None).unwrap();
    }
    a.endpoint.send(to_b, &[b"alive"]).unwrap();
    until(&mut [&mut a, &mut b], |nodes| !nodes[1].log.is_empty());
    assert_eq!(b.log, [Seen::Message(to_a, b"alive".to_vec())]);
}

#[test]
fn a_peer_that_is_no_node_is_turned_away_and_nobody_else_is_harmed() {
    for noise in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 64]] {
        let (mut a, to_b, mut b, to_a) = pair(Backend::Uring);
        let address = b.endpoint.listen("127.0.0.1:0").unwrap();
        let mut stranger = std::net::TcpStream::connect(address).unwrap();
        stranger.write_all(noise).unwrap();
        stranger.set_nonblocking(true).unwrap();
        let mut gone = false;
        until(&mut [&mut b], |_| {
            let mut bytes = [0; 4096];
            match stranger.read(&mut bytes) {
                Ok(0) => gone = true,
                Ok(_) => {}
                Err(error) => gone |= error.kind() == std::io::ErrorKind::ConnectionReset,
            }
            gone
        });
        a.endpoint.send(to_b, &[b"unharmed"]).unwrap();
        until(&mut [&mut a, &mut b], |nodes| !nodes[1].log.is_empty());
        assert_eq!(b.log, [Seen::Message(to_a, b"unharmed".to_vec())]);
    }
}

#[test]
fn a_peer_that_dies_takes_its_lane_down_and_one_that_is_not_there_is_told() {
    for backend in BACKENDS {
        let (a, _, mut b, to_a) = pair(backend);
        drop(a);
        until(&mut [&mut b], |nodes| !nodes[0].log.is_empty());
        assert_eq!(b.log, [Seen::Down(to_a, DownReason::PeerClosed)]);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        b.log.clear();
        let nowhere = b.endpoint.dial(&free.to_string()).unwrap();
        until(&mut [&mut b], |nodes| !nodes[0].log.is_empty());
        let refused = DownReason::Unreachable(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(b.log, [Seen::Down(nowhere, refused)]);
    }
}

#[test]
fn a_region_that_was_never_exposed_is_forbidden() {
    let (mut a, to_b, mut b, to_a) = pair(Backend::Uring);
    let to = RemoteSpan { region: RegionId(999), offset: 0 };
    a.endpoint.write(to_b, to, Source::bytes(&[1]), None).unwrap();
    until(&mut [&mut a, &mut b], |nodes| !nodes[1].log.is_empty());
    assert_eq!(b.log, [Seen::Down(to_a, DownReason::OutOfBounds)]);
}

#[test]
fn an_offer_is_heard_with_the_greeting_and_a_peer_that_knows_none_takes_no_notice() {
    let reactor = Reactor::shared(Options::default()).unwrap();
    let (mut a, mut b) = (Tcp::new(reactor.clone()), Tcp::new(reactor.clone()));
    let address = b.listen("127.0.0.1:0").unwrap();
    let to_b = a.dial(&address).unwrap();
    a.greet_offering(to_b, b"from a", RegionId(7));
    let (mut heard, mut to_a) = (Vec::new(), None);
    let end = Instant::now() + Duration::from_secs(20);
    while heard.len() < 2 {
        assert!(Instant::now() < end, "it never came");
        let mut seen = Vec::new();
        a.poll(&mut seen);
        b.poll(&mut seen);
        for occurrence in seen {
            match &occurrence {
                Occurrence::Incoming { lane } => {
                    b.greet(*lane, b"from b");
                    to_a = Some(*lane);
                }
                Occurrence::Greeted { greeting, .. } => heard.push(greeting.clone()),
                Occurrence::Completed { .. } | Occurrence::Down { .. } => panic!("{occurrence:?}"),
            }
        }
        a.flush();
        b.flush();
        reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
    }
    heard.sort();
    assert_eq!(heard, [b"from a".to_vec(), b"from b".to_vec()]);
    let to_a = to_a.unwrap();
    assert_eq!((b.offered(to_a), a.offered(to_b)), (Some(RegionId(7)), None));
    let (at_a, at_b) = (a.addresses(to_b).unwrap(), b.addresses(to_a).unwrap());
    assert_eq!(at_a, (at_b.1, at_b.0));
    assert_eq!(at_a.1.to_string(), address);
}
