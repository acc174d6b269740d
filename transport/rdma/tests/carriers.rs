//! Each end of a lane says what it goes over, and why not over RDMA.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use halfmoon_rdma::{Choice, Wire, wire};
use halfmoon_reactor::{Options, Reactor, SharedReactor};
use halfmoon_transport::{Carrier, LaneId, NoRdma, Occurrence, Transport as _};

fn node(choice: Choice) -> (Wire, SharedReactor) {
    let reactor = Reactor::shared(Options::default()).unwrap();
    (wire(reactor.clone(), choice), reactor)
}

#[test]
fn a_node_that_was_told_to_use_tcp_says_so_and_its_peer_knows_no_more_than_its_own_lack() {
    let (mut a, at_a) = node(Choice::Tcp);
    let (mut b, at_b) = node(Choice::Auto);
    let address = b.listen("127.0.0.1:0").unwrap();
    let to_b = a.dial(&address).unwrap();
    a.greet(to_b, b"a");
    assert_eq!(a.carrier(to_b), None);
    let (mut to_a, mut up) = (None::<LaneId>, 0);
    let end = Instant::now() + Duration::from_secs(60);
    while up < 2 {
        assert!(Instant::now() < end, "the lane never came up");
        for (transport, reactor) in [(&mut a, &at_a), (&mut b, &at_b)] {
            let mut seen = Vec::new();
            transport.poll(&mut seen);
            for occurrence in seen {
                match occurrence {
                    Occurrence::Incoming { lane } => {
                        to_a = Some(lane);
                        transport.greet(lane, b"b");
                    }
                    Occurrence::Greeted { .. } => up += 1,
                    Occurrence::Completed { .. } | Occurrence::Down { .. } => {
                        panic!("{occurrence:?}")
                    }
                }
            }
            transport.flush();
            reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
        }
    }
    let built = cfg!(feature = "verbs");
    let why = if built { NoRdma::NotWanted } else { NoRdma::NotBuilt };
    assert_eq!(a.carrier(to_b), Some(Carrier::Tcp(why)));
    let theirs = b.carrier(to_a.unwrap()).and_then(Carrier::instead).unwrap();
    let own_lack = [NoRdma::NoLibrary, NoRdma::NoDevice, NoRdma::SoftwareOnly];
    let allowed = if built {
        own_lack.contains(&theirs) || theirs == NoRdma::NotOffered
    } else {
        theirs == why
    };
    assert!(allowed, "{theirs}");
}
