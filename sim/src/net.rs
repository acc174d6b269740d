//! The simulated network: one-sided writes between sites, later and in a worse order than any real
//! one, and broken on purpose.
//!
//! What it does that the contract allows and others rarely do:
//!
//! - The words of a write appear in random order, some of them later, whatever the receiver does
//!   meanwhile. A write whose sender or lane dies may stop half way.
//! - A source that is memory is read when the write arrives, not when it was posted.
//! - A lane dies with any prefix of what was under way applied, and its two ends learn of it at
//!   different times.
//! - A direction between two hosts can be cut while the other goes on.
//!
//! Everything happens at a time of the virtual clock, chosen by a seeded generator.

mod faults;
mod transport;
mod wire;

use std::cell::RefCell;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::rc::Rc;

use halfmoon_transport::lanes::LaneMap;
use halfmoon_transport::regions::Regions;
use halfmoon_transport::{DownReason, LaneId, Occurrence, Token};

use crate::random::{Concern, Random};
use crate::time::{MICRO, MILLI};

pub use transport::SimTransport;
use wire::{Parcel, Wire};

/// Bytes on their way on one lane, in one direction, beyond which it takes no more.
pub const QUEUE_BYTES: usize = 8 << 20;

/// What a write counts beside its bytes, so that the number of writes is bounded as well.
pub(crate) const WRITE_BYTES: usize = 64;

/// A machine; what is cut off is a machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Host(pub u32);

/// How a network behaves. Chances are in a million.
#[derive(Clone, Debug)]
pub struct NetProfile {
    /// One-way delay of a batch of writes, in ns: least and most.
    pub delay_ns: (u64, u64),
    /// Chance that a batch is late, and how late it is at most, in ns.
    pub late: (u64, u64),
    /// Chance that the words of a write appear in random order and in several steps.
    pub torn: u64,
    /// Longest time between two such steps, in ns.
    pub torn_ns: u64,
    /// Chance that peers learn of the end of a site late, and how late at most, in ns.
    pub silent: (u64, u64),
}

/// What was done to a network, counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NetCounts {
    /// Writes applied.
    pub writes: u64,
    /// Writes whose words appeared in random order.
    pub torn: u64,
    /// Writes that stopped half way.
    pub half: u64,
    /// Batches that were late.
    pub late: u64,
    /// Lanes broken with the outcome unknown.
    pub broken: u64,
    /// Directions between two hosts cut.
    pub cuts: u64,
}

/// A network. Clones are handles to the same one.
#[derive(Clone)]
pub struct Net(Rc<RefCell<Wires>>);

pub(crate) struct Wires {
    now: u64,
    serial: u64,
    due: BinaryHeap<Reverse<Due>>,
    random: Random,
    profile: NetProfile,
    sites: Vec<Site>,
    wires: Vec<Wire>,
    listening: BTreeMap<String, usize>,
    ports: u32,
    cuts: BTreeSet<(Host, Host)>,
    counts: NetCounts,
    /// Sites for which something has happened.
    news: Vec<usize>,
}

struct Due {
    at: u64,
    serial: u64,
    what: What,
}

/// What happens at a time.
enum What {
    /// A connection reaches who listens, or times out.
    Dial { site: usize, lane: LaneId, to: usize, tries: u32 },
    /// A wire has something to hand over.
    Wire(usize),
    /// One end of a broken lane learns of it.
    Break { site: usize, lane: LaneId, reason: DownReason },
}

/// One endpoint.
struct Site {
    host: Host,
    alive: bool,
    lanes: LaneMap<Lane>,
    regions: Regions,
    occurrences: Vec<Occurrence>,
    /// Lanes that have something posted.
    dirty: Vec<LaneId>,
    has_news: bool,
}

/// A lane as one of its ends sees it.
#[derive(Default)]
struct Lane {
    out: Option<usize>,
    inbound: Option<usize>,
    /// A greeting that was given before the peer was reached.
    greeting: Option<Vec<u8>>,
    /// Whether the peer has greeted.
    up: bool,
    posted: Vec<Parcel>,
    tokens: VecDeque<Token>,
    /// Bytes on their way.
    load: usize,
}

impl Default for NetProfile {
    fn default() -> Self {
        Self {
            delay_ns: (5 * MICRO, 40 * MICRO),
            late: (5000, 5 * MILLI),
            torn: 20_000,
            torn_ns: 50 * MICRO,
            silent: (200_000, 300 * MILLI),
        }
    }
}

impl Net {
    /// A network without sites.
    #[must_use]
    pub fn new(seed: u64, profile: NetProfile) -> Self {
        Self(Rc::new(RefCell::new(Wires {
            now: 0,
            serial: 0,
            due: BinaryHeap::new(),
            random: Random::new(seed, Concern::Network, 0),
            profile,
            sites: Vec::new(),
            wires: Vec::new(),
            listening: BTreeMap::new(),
            ports: 0,
            cuts: BTreeSet::new(),
            counts: NetCounts::default(),
            news: Vec::new(),
        })))
    }

    /// A site on a host.
    #[must_use]
    pub fn transport(&self, host: Host) -> SimTransport {
        let mut wires = self.0.borrow_mut();
        let site = Site {
            host,
            alive: true,
            lanes: LaneMap::new(),
            regions: Regions::new(),
            occurrences: Vec::new(),
            dirty: Vec::new(),
            has_news: false,
        };
        wires.sites.push(site);
        SimTransport::new(self.0.clone(), wires.sites.len() - 1)
    }

    /// When something happens next, in ns.
    #[must_use]
    pub fn next_at(&self) -> Option<u64> {
        self.0.borrow().due.peek().map(|Reverse(due)| due.at)
    }

    /// Lets all happen that is due by `now`.
    pub fn advance(&self, now: u64) {
        let mut wires = self.0.borrow_mut();
        while wires.due.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(due)) = wires.due.pop() else { break };
            wires.now = wires.now.max(due.at);
            wires.happen(due.what);
        }
        wires.now = wires.now.max(now);
    }

    /// A site for which something has happened since it was last polled.
    pub fn next_news(&self) -> Option<usize> {
        let mut wires = self.0.borrow_mut();
        let site = wires.news.pop()?;
        wires.sites[site].has_news = false;
        Some(site)
    }

    /// What was done to it.
    #[must_use]
    pub fn counts(&self) -> NetCounts {
        self.0.borrow().counts
    }
}

impl Wires {
    fn schedule(&mut self, at: u64, what: What) {
        self.serial += 1;
        let serial = self.serial;
        self.due.push(Reverse(Due { at, serial, what }));
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Dial { site, lane, to, tries } => self.reach(site, lane, to, tries),
            What::Wire(wire) => {
                self.wires[wire].scheduled = None;
                self.run(wire);
            }
            What::Break { site, lane, reason } => self.down(site, lane, reason),
        }
    }

    fn delay(&mut self) -> u64 {
        let (low, high) = self.profile.delay_ns;
        let (chance, most) = self.profile.late;
        let mut delay = self.random.within(low, high);
        if self.random.chance(chance) {
            self.counts.late += 1;
            delay += self.random.skewed(0, most);
        }
        delay
    }

    fn tell(&mut self, site: usize, occurrence: Occurrence) {
        self.sites[site].occurrences.push(occurrence);
        self.wake(site);
    }

    fn wake(&mut self, site: usize) {
        let found = &mut self.sites[site];
        if found.alive && !found.has_news {
            found.has_news = true;
            self.news.push(site);
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        !self.cuts.is_empty() && self.cuts.contains(&(self.sites[from].host, self.sites[to].host))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

#[cfg(test)]
mod tests {
    use halfmoon_transport::conformance::{ADDRESS, Site};

    use super::*;

    /// A network where much goes wrong that the contract allows.
    fn world(seed: u64) -> impl FnMut() -> Site<SimTransport> {
        let profile = NetProfile {
            late: (100_000, MILLI),
            torn: 300_000,
            silent: (200_000, MILLI),
            ..NetProfile::default()
        };
        let net = Net::new(seed, profile);
        let clock = Rc::new(std::cell::Cell::new(0));
        move || {
            let (net, clock) = (net.clone(), clock.clone());
            let transport = net.transport(Host(0));
            let rest = move || {
                clock.set(clock.get() + 3 * MICRO);
                net.advance(clock.get());
            };
            Site { transport, rest: Box::new(rest), address: ADDRESS, carrier: None }
        }
    }

    halfmoon_transport::conformance_tests!(world(1));

    mod another_seed {
        use super::*;
        halfmoon_transport::conformance_tests!(world(2));
    }
}
