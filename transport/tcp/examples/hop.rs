//! One message over a lane, again and again, for whoever counts instructions: `post` is what the sender
//! does for one, `take` what the receiver does, over TCP or in one process.
//!
//! `valgrind --tool=callgrind target/release/examples/hop tcp` (or `local`).
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]

use std::sync::Arc;
use std::time::Duration;

use halfmoon_reactor::{Options, Reactor};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{Endpoint, EndpointOptions, Event, LaneId, LocalNet, Transport, Wake};

/// Messages that are counted.
const MESSAGES: usize = 1000;

/// Bytes of each: an append with a small payload.
const BYTES: usize = 256;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

#[inline(never)]
fn post<T: Transport>(endpoint: &mut Endpoint<T>, lane: LaneId) {
    endpoint.send(lane, &[&[7; BYTES]]).unwrap();
    endpoint.flush();
}

#[inline(never)]
fn take<T: Transport>(endpoint: &mut Endpoint<T>) -> usize {
    let mut taken = 0;
    endpoint.poll(&mut |event| taken += usize::from(matches!(event, Event::Message { .. })));
    taken
}

fn run<T: Transport>(a: T, b: T, mut rest: impl FnMut()) {
    let mut a = Endpoint::new(a, EndpointOptions::new(b"a".to_vec()));
    let mut b = Endpoint::new(b, EndpointOptions::new(b"b".to_vec()));
    let address = b.listen("127.0.0.1:0").unwrap();
    let lane = a.dial(&address).unwrap();
    while !(a.is_up(lane) && b.lanes().next().is_some()) {
        a.poll(&mut |_| {});
        b.poll(&mut |_| {});
        rest();
    }
    let (mut taken, mut looks) = (0, 0);
    for sent in 1..=MESSAGES {
        post(&mut a, lane);
        while taken < sent {
            a.poll(&mut |_| {});
            rest();
            taken += take(&mut b);
            looks += 1;
        }
    }
    println!("{MESSAGES} messages of {BYTES} bytes, {looks} looks");
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("local") {
        let net = LocalNet::new();
        return run(net.transport(Arc::new(Nobody)), net.transport(Arc::new(Nobody)), || {});
    }
    let reactor = Reactor::shared(Options::default()).unwrap();
    let (a, b) = (Tcp::new(reactor.clone()), Tcp::new(reactor.clone()));
    run(a, b, || {
        reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
    });
}
