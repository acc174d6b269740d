//! Lanes by themselves: one-way delay, small messages per second, bandwidth, over each transport and
//! each way to wait, beside what plain sockets do in the same run.
//!
//! The two ends are two processes, as nodes are; over `local` they are two threads of one, as nothing
//! else is. A peer lives for one measurement, so that one that spins takes no processor from the next.

mod end;
pub mod perftest;
pub mod raw;

use std::time::Instant;

use anyhow::{Context as _, ensure};
use halfmoon_rdma::Choice;
use halfmoon_reactor::{Options, Polling, Reactor};
use halfmoon_transport::{Carrier, LocalNet, Transport};
use hdrhistogram::Histogram;
use serde::Serialize;

use end::{End, SMALL_BYTES};

/// Longest delay that is told apart, in ns.
const DELAY_MAX_NS: u64 = 10_000_000_000;

/// Messages of a round whose rate is measured.
const RATE_MESSAGES: usize = 50_000;

/// Writes of a round whose bandwidth is measured.
const LARGE_WRITES: usize = 64;

/// What lanes go over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// The memory of one process.
    Local,
    /// TCP.
    Tcp,
    /// RDMA.
    Rdma,
}

impl Over {
    /// As flags and reports name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }

    const fn choice(self) -> Choice {
        match self {
            Self::Local | Self::Tcp => Choice::Tcp,
            Self::Rdma => Choice::Rdma,
        }
    }
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sizes of messages whose delay is measured, in bytes; at most [`MESSAGE_MAX_BYTES`].
    pub sizes: Vec<usize>,
    /// Messages there and back per size and round.
    pub pings: usize,
}

pub use end::MESSAGE_MAX_BYTES;

/// Delays of messages of one size, over all rounds.
pub struct Delays {
    /// Bytes of a message.
    pub bytes: usize,
    /// Half of each time there and back, in ns.
    pub all_ns: Histogram<u64>,
    /// The median of each round, in ns.
    pub medians_ns: Vec<u64>,
}

/// What one transport did with one way to wait, over all rounds.
#[derive(Default)]
pub struct Measured {
    /// By size, as planned.
    pub delays: Vec<Delays>,
    /// Small messages per second, of each round.
    pub rates_per_s: Vec<f64>,
    /// Bytes per second of large writes, of each round.
    pub bandwidths_per_s: Vec<f64>,
}

impl Delays {
    fn new(bytes: usize) -> Self {
        let all_ns =
            Histogram::new_with_bounds(1, DELAY_MAX_NS, 3).expect("constant, valid bounds");
        Self { bytes, all_ns, medians_ns: Vec::new() }
    }

    /// Adds a round.
    fn add(&mut self, mut round_ns: Vec<u64>) {
        round_ns.iter().for_each(|ns| self.all_ns.saturating_record(*ns));
        round_ns.sort_unstable();
        self.medians_ns.extend(round_ns.get(round_ns.len() / 2));
    }

    /// The median of the rounds' medians, in ns: what is compared.
    #[must_use]
    pub fn median_ns(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a time, for a ratio")]
        median(&self.medians_ns.iter().map(|ns| *ns as f64).collect::<Vec<_>>())
    }
}

impl Measured {
    fn delays(&mut self, bytes: usize) -> &mut Delays {
        let at = self.delays.iter().position(|found| found.bytes == bytes).unwrap_or_else(|| {
            self.delays.push(Delays::new(bytes));
            self.delays.len() - 1
        });
        &mut self.delays[at]
    }

    /// Adds a round of plain sockets.
    ///
    /// # Errors
    /// When the peer cannot be reached or goes away.
    pub fn add_raw(&mut self, address: &str, spins: bool, plan: &Plan) -> anyhow::Result<()> {
        for bytes in &plan.sizes {
            self.delays(*bytes).add(raw::delays(address, spins, *bytes, plan.pings)?);
        }
        Ok(())
    }

    /// Adds a round over TCP or RDMA, with a peer that [`serve`]s there.
    ///
    /// # Errors
    /// When the peer cannot be reached, or not in this way, or goes away.
    pub fn add(
        &mut self,
        (over, polling): (Over, Polling),
        address: &str,
        plan: &Plan,
    ) -> anyhow::Result<()> {
        let reactor = Reactor::shared(options(polling))?;
        let transport = halfmoon_rdma::wire(reactor.clone(), over.choice());
        let mut end = End::dialler(reactor, transport, address)?;
        let carrier = end.carrier();
        let is_rdma = carrier == Some(Carrier::Rdma);
        ensure!(is_rdma == (over == Over::Rdma), "the lane goes over {carrier:?}");
        self.round(&mut end, plan)
    }

    /// Adds a round over the memory of this process. `before` runs first on the thread of the other end.
    ///
    /// # Errors
    /// When a thread fails.
    pub fn add_local(
        &mut self,
        polling: Polling,
        plan: &Plan,
        before: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<()> {
        let net = LocalNet::new();
        let (tell, told) = std::sync::mpsc::channel();
        let theirs = net.clone();
        let peer = std::thread::spawn(move || {
            before();
            let reactor = Reactor::shared(options(polling))?;
            let waker = std::sync::Arc::new(reactor.borrow().waker());
            let end = End::listener(reactor, theirs.transport(waker), "local:0")?;
            tell.send(end.address().to_owned()).context("nobody waits for the address")?;
            end.serve()
        });
        let address = told.recv().context("the peer did not start")?;
        let reactor = Reactor::shared(options(polling))?;
        let waker = std::sync::Arc::new(reactor.borrow().waker());
        let mut end = End::dialler(reactor, net.transport(waker), &address)?;
        self.round(&mut end, plan)?;
        end.close()?;
        peer.join().map_err(|_| anyhow::anyhow!("the peer panicked"))?
    }

    fn round<T: Transport>(&mut self, end: &mut End<T>, plan: &Plan) -> anyhow::Result<()> {
        for bytes in &plan.sizes {
            let round_ns = end.delays(*bytes, plan.pings)?;
            self.delays(*bytes).add(round_ns);
        }
        let begin = Instant::now();
        end.stream(RATE_MESSAGES)?;
        self.rates_per_s.push(per_second(RATE_MESSAGES, begin));
        let begin = Instant::now();
        let bytes = end.write_large(LARGE_WRITES)?;
        self.bandwidths_per_s.push(per_second(bytes, begin));
        Ok(())
    }
}

/// Bytes of each message whose rate is measured.
pub const RATE_BYTES: usize = SMALL_BYTES;

/// Serves one measurement over TCP or RDMA at `host`, and ends with it. `tell` hears the address.
///
/// # Errors
/// When it cannot listen, or the other end breaks off.
pub fn serve(
    (over, polling): (Over, Polling),
    host: std::net::IpAddr,
    tell: impl FnOnce(&str),
) -> anyhow::Result<()> {
    let reactor = Reactor::shared(options(polling))?;
    let transport = halfmoon_rdma::wire(reactor.clone(), over.choice());
    let address = std::net::SocketAddr::new(host, 0).to_string();
    let end = End::listener(reactor, transport, &address)?;
    tell(end.address());
    end.serve()
}

fn options(polling: Polling) -> Options {
    Options { spin: polling.spin(), ..Options::default() }
}

#[expect(clippy::cast_precision_loss, reason = "a count, for a rate")]
fn per_second(count: usize, begin: Instant) -> f64 {
    count as f64 / begin.elapsed().as_secs_f64()
}

/// The value in the middle; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: [usize; 2] = [64, MESSAGE_MAX_BYTES];

    fn plan() -> Plan {
        Plan { sizes: PLAN.to_vec(), pings: 5 }
    }

    fn is_whole(measured: &Measured, rounds: usize) {
        assert_eq!(measured.delays.iter().map(|of| of.bytes).collect::<Vec<_>>(), PLAN);
        for of in &measured.delays {
            assert_eq!((of.all_ns.len(), of.medians_ns.len()), (5 * rounds as u64, rounds));
        }
        assert_eq!((measured.rates_per_s.len(), measured.bandwidths_per_s.len()), (rounds, rounds));
    }

    #[test]
    fn every_size_is_measured_in_every_round_over_memory_and_over_tcp() {
        let (mut local, mut tcp) = (Measured::default(), Measured::default());
        for _ in 0..2 {
            local.add_local(Polling::Sleeping, &plan(), || {}).unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            let how = (Over::Tcp, Polling::Sleeping);
            let tell = move |address: &str| tell.send(address.to_owned()).unwrap();
            let peer = std::thread::spawn(move || serve(how, [127, 0, 0, 1].into(), tell));
            tcp.add(how, &told.recv().unwrap(), &plan()).unwrap();
            peer.join().unwrap().unwrap();
        }
        is_whole(&local, 2);
        is_whole(&tcp, 2);
    }

    #[test]
    fn plain_sockets_are_measured_both_ways() {
        for spins in [false, true] {
            let (tell, told) = std::sync::mpsc::channel();
            let tell = move |address: &str| tell.send(address.to_owned()).unwrap();
            let peer = std::thread::spawn(move || raw::serve(spins, plan().sizes.len(), tell));
            let mut floor = Measured::default();
            floor.add_raw(&told.recv().unwrap(), spins, &plan()).unwrap();
            peer.join().unwrap().unwrap();
            assert_eq!(floor.delays.len(), 2);
            assert!(floor.delays.iter().all(|of| of.all_ns.len() == 5 && of.median_ns() > 0.0));
        }
    }

    #[test]
    fn the_median_is_the_value_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[]), 0.0);
    }
}
