//! The machines of a simulated cluster: roles as they are, on simulated ground.

pub(crate) mod engine;
pub(crate) mod sequencer;
pub(crate) mod storage;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use crate::check::Judge;
use crate::meta::SimMeta;
use crate::net::{Host, Net, SimTransport};
use crate::shared::Shared;

/// The cluster's id.
pub(crate) const CLUSTER: u128 = 0x5eed;

/// What every machine stands on. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct Env {
    pub(crate) seed: u64,
    pub(crate) shared: Rc<Shared>,
    pub(crate) net: Net,
    pub(crate) meta: SimMeta,
    pub(crate) judge: Judge,
    /// What an `Instant` of virtual time zero is; only differences to it mean anything.
    pub(crate) base: Instant,
    /// Which machine a site of the network belongs to.
    sites: Rc<RefCell<Vec<usize>>>,
}

/// What a turn of a machine leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turned {
    /// It has something to do at this time even if nothing arrives.
    Until(u64),
    /// Its process has ended.
    Died,
}

/// A machine of the cluster, up or down.
pub(crate) trait Machine {
    /// Its place in the network.
    fn host(&self) -> Host;

    /// Whether its process runs.
    fn is_up(&self) -> bool;

    /// Starts its process; `false` when that has to be tried again.
    fn start(&mut self) -> bool;

    /// Does what can be done now.
    fn turn(&mut self) -> Turned;

    /// Ends its process; with `power`, its machine.
    fn crash(&mut self, power: bool);
}

impl Env {
    pub(crate) fn new(seed: u64, shared: Rc<Shared>, net: Net, judge: Judge) -> Self {
        let meta = SimMeta::new(seed);
        let sites = Rc::default();
        Self { seed, shared, net, meta, judge, base: base(), sites }
    }

    pub(crate) fn now(&self) -> u64 {
        self.shared.now()
    }

    /// A transport of a machine.
    pub(crate) fn transport(&self, machine: usize, host: Host) -> SimTransport {
        let transport = self.net.transport(host);
        let mut sites = self.sites.borrow_mut();
        let len = sites.len().max(transport.site() + 1);
        sites.resize(len, usize::MAX);
        sites[transport.site()] = machine;
        transport
    }

    /// Whose site it is.
    pub(crate) fn owner(&self, site: usize) -> Option<usize> {
        self.sites.borrow().get(site).copied().filter(|machine| *machine != usize::MAX)
    }
}

/// Where a host listens; the network gives the port.
pub(crate) fn listen_at(host: Host) -> String {
    format!("10.0.0.{}:0", host.0)
}

fn base() -> Instant {
    Instant::now()
}
