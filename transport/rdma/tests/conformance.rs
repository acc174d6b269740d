//! RDMA keeps the contract.
#![cfg(feature = "verbs")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use halfmoon_rdma::{Choice, Rdma};
use halfmoon_reactor::{Options, Reactor};
use halfmoon_transport::Carrier;
use halfmoon_transport::conformance::Site;

/// The address of an adapter, which `cargo xtask rdma` makes and names.
const DEVICE: &str = "HALFMOON_TEST_RDMA";

/// Leaves one string behind for each call.
fn address() -> &'static str {
    let host = std::env::var(DEVICE).expect("`cargo xtask rdma` runs these tests");
    format!("{host}:0").leak()
}

fn world() -> impl FnMut() -> Site<Rdma> {
    move || {
        let reactor = Reactor::shared(Options::default()).unwrap();
        let transport = Rdma::new(reactor.clone(), Choice::Rdma);
        let rest = move || reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
        let carrier = Some(Carrier::Rdma);
        Site { transport, rest: Box::new(rest), address: address(), carrier }
    }
}

halfmoon_transport::conformance_tests!(world());
