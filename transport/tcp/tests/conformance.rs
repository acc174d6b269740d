//! TCP keeps the contract, with io_uring and without.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use halfmoon_reactor::{Backend, Options, Reactor};
use halfmoon_tcp::Tcp;
use halfmoon_transport::conformance::{ADDRESS, Site};
use halfmoon_transport::{Carrier, NoRdma};

fn world(backend: Backend) -> impl FnMut() -> Site<Tcp> {
    move || {
        let options = Options { backend: Some(backend), ..Options::default() };
        let reactor = Reactor::shared(options).unwrap();
        let transport = Tcp::new(reactor.clone());
        let rest = move || reactor.borrow_mut().wait(Duration::from_millis(1)).unwrap();
        let carrier = Some(Carrier::Tcp(NoRdma::NotBuilt));
        Site { transport, rest: Box::new(rest), address: ADDRESS, carrier }
    }
}

mod uring {
    use super::*;
    halfmoon_transport::conformance_tests!(world(Backend::Uring));
}

mod poll {
    use super::*;
    halfmoon_transport::conformance_tests!(world(Backend::Poll));
}
