//! One message over an RDMA lane, again and again, for whoever counts instructions or system calls. Both
//! ends are in this process and look without sleeping, as busy nodes do: `post` is what the sender does
//! for one message, `take` what the receiver does, `done` what the sender does once the adapter has done
//! its work, `vain` the same number of looks that find nothing, `rest` one wait of the reactor.
//!
//! `target/release/examples/hop`, where there is an adapter. With `wait` it does not begin before it is
//! told to, by a line on its input: for tools that would have made it too slow to set up its lane.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]

use std::time::Duration;

use halfmoon_rdma::{Choice, Rdma};
use halfmoon_reactor::{Options, Polling, Reactor, SharedReactor};
use halfmoon_transport::{Carrier, Endpoint, EndpointOptions, Event, LaneId, Transport as _};

/// Messages that are counted.
const MESSAGES: usize = 1000;

/// Messages before them, until all that grows has grown.
const BEFORE: usize = 200;

/// Bytes of each: an append with a small payload.
const BYTES: usize = 256;

/// After so long the adapter has done what it was given, even one that is emulated.
const ADAPTER_TIME: Duration = Duration::from_millis(2);

type End = Endpoint<Rdma>;

#[inline(never)]
fn post(end: &mut End, lane: LaneId) {
    end.send(lane, &[&[7; BYTES]]).unwrap();
    end.flush();
}

#[inline(never)]
fn take(end: &mut End) -> usize {
    look(end)
}

#[inline(never)]
fn done(end: &mut End) -> usize {
    look(end)
}

#[inline(never)]
fn vain(end: &mut End) -> usize {
    (0..MESSAGES).map(|_| look(end)).sum()
}

/// Messages that have come.
fn look(end: &mut End) -> usize {
    let mut came = 0;
    end.poll(&mut |event| match event {
        Event::Message { .. } => came += 1,
        Event::Down { reason, .. } => panic!("the lane is down: {reason}"),
        Event::Up { .. } | Event::Written { .. } | Event::Room { .. } => {}
    });
    came
}

#[inline(never)]
fn rest(reactor: &SharedReactor) {
    reactor.borrow_mut().wait(Duration::ZERO).unwrap();
}

fn end(name: &[u8]) -> (SharedReactor, End) {
    let options = Options { spin: Polling::Busy.spin(), ..Options::default() };
    let reactor = Reactor::shared(options).unwrap();
    let rdma = Rdma::new(reactor.clone(), Choice::Rdma);
    (reactor, Endpoint::new(rdma, EndpointOptions::new(name.to_vec())))
}

/// Sends so many, one after the other; how often the receiver looked.
fn exchange(
    ((reactor_a, a), (reactor_b, b)): &mut ((&SharedReactor, &mut End), (&SharedReactor, &mut End)),
    lane: LaneId,
    messages: usize,
) -> usize {
    let (mut taken, mut looks) = (0, 0);
    for sent in 1..=messages {
        post(a, lane);
        while taken < sent {
            std::thread::sleep(ADAPTER_TIME);
            rest(reactor_b);
            taken += take(b);
            looks += 1;
        }
        // What the receiver told the sender in turn, and that the adapter has done its work.
        std::thread::sleep(ADAPTER_TIME);
        rest(reactor_a);
        done(a);
    }
    looks
}

fn main() {
    let host = halfmoon_rdma::address().unwrap();
    let ((reactor_a, mut a), (reactor_b, mut b)) = (end(b"a"), end(b"b"));
    let address = b.listen(&std::net::SocketAddr::new(host, 0).to_string()).unwrap();
    let lane = a.dial(&address).unwrap();
    while !(a.is_up(lane) && b.lanes().next().is_some()) {
        for (reactor, end) in [(&reactor_a, &mut a), (&reactor_b, &mut b)] {
            look(end);
            reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
        }
    }
    assert_eq!(a.transport().carrier(lane), Some(Carrier::Rdma));
    let mut ends = ((&reactor_a, &mut a), (&reactor_b, &mut b));
    exchange(&mut ends, lane, BEFORE);
    println!("begin");
    if std::env::args().nth(1).as_deref() == Some("wait") {
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
    let looks = exchange(&mut ends, lane, MESSAGES);
    println!("{MESSAGES} messages of {BYTES} bytes, {looks} looks");
    assert_eq!(vain(&mut b), 0);
    println!("end");
}
