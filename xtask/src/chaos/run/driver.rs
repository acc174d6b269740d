//! Carries faults out, and takes them back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Clock, LOOK_EVERY, epoch, last_words, statuses};
use crate::chaos::cluster::Cluster;
use crate::chaos::load::Gateways;
use crate::chaos::net::Net;
use crate::chaos::plan::{ETCD, Fault, NODES, Node, What};

/// A fault under way.
struct Active {
    what: What,
    began: Duration,
    ends: Duration,
    /// Whom it keeps down.
    down: Vec<Node>,
    /// Which process it has stopped.
    stopped: Option<u32>,
}

/// Who does it.
pub(super) struct Driver<'a> {
    cluster: &'a mut Cluster,
    net: Net,
    gateways: &'a Gateways,
    clock: &'a Clock,
    nodes: &'a [Node],
    active: Vec<Active>,
    /// When each fault began and ended.
    pub(super) done: Vec<(What, Duration, Duration)>,
    /// The epoch in which the last sequencer in charge was killed.
    pub(super) epoch_of_kill: Option<u64>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        cluster: &'a mut Cluster,
        net: Net,
        gateways: &'a Gateways,
        clock: &'a Clock,
        nodes: &'a [Node],
    ) -> Self {
        let (active, done, epoch_of_kill) = (Vec::new(), Vec::new(), None);
        Self { cluster, net, gateways, clock, nodes, active, done, epoch_of_kill }
    }

    /// Carries out all faults at their times, and takes all of them back in the end.
    pub(super) fn carry_out(
        &mut self,
        faults: &[Fault],
        lasting: Duration,
        from: Instant,
    ) -> anyhow::Result<()> {
        let mut coming = faults.iter().peekable();
        loop {
            let now = from.elapsed();
            while let Some(fault) = coming.next_if(|fault| fault.at <= now) {
                self.begin(fault, now)?;
            }
            let is_over = now >= lasting;
            while let Some(at) = self.active.iter().position(|one| is_over || one.ends <= now) {
                let active = self.active.swap_remove(at);
                self.end(active, now)?;
            }
            if is_over && coming.peek().is_none() {
                return Ok(());
            }
            if let Some((node, status)) = self.cluster.look()? {
                self.clock.say(&last_words(self.cluster, node, status));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn begin(&mut self, fault: &Fault, now: Duration) -> anyhow::Result<()> {
        let (mut down, mut stopped) = (Vec::new(), None);
        let mut said = fault.what.to_string();
        match &fault.what {
            What::Kill(node) => down.push(*node),
            What::KillInCharge => {
                let node = self.in_charge();
                said = format!("{said}, {node}");
                down.push(node);
            }
            What::KillAll => down.extend(self.nodes.iter().filter(|node| **node != ETCD)),
            What::Pause(node) => stopped = self.cluster.pause(*node)?,
            What::Partition(_) | What::OneWay(..) => {}
            What::SlowDisk(node, bits_per_s) => self.cluster.set_rate(*node, Some(*bits_per_s))?,
            What::FullDisk(node) => self.cluster.fill(*node)?,
            What::ClockStep(node, by_s) => self.cluster.set_clock(*node, *by_s)?,
        }
        for node in &down {
            self.cluster.kill(*node)?;
        }
        self.clock.say(&format!("{said}, for {:.1} s", fault.lasting.as_secs_f64()));
        let (what, ends) = (fault.what.clone(), now + fault.lasting);
        self.active.push(Active { what, began: now, ends, down, stopped });
        self.cut()
    }

    fn end(&mut self, active: Active, now: Duration) -> anyhow::Result<()> {
        match &active.what {
            What::Pause(node) => self.cluster.resume(*node, active.stopped)?,
            What::SlowDisk(node, _) => self.cluster.set_rate(*node, None)?,
            What::FullDisk(node) => self.cluster.make_room(*node)?,
            What::Kill(_)
            | What::KillInCharge
            | What::KillAll
            | What::Partition(_)
            | What::OneWay(..)
            | What::ClockStep(..) => {}
        }
        for node in active.down {
            self.cluster.release(node)?;
        }
        self.done.push((active.what, active.began, now));
        self.cut()
    }

    /// Cuts what all partitions of this moment cut.
    fn cut(&mut self) -> anyhow::Result<()> {
        let cuts = self.active.iter().flat_map(|active| active.what.cuts(self.nodes));
        self.net.cut(cuts.collect::<BTreeSet<_>>())
    }

    /// The sequencer in charge, as the engine knows it that has seen the latest epoch.
    fn in_charge(&mut self) -> Node {
        let statuses = statuses(self.gateways);
        self.epoch_of_kill = epoch(&statuses);
        let latest = statuses.iter().flatten().max_by_key(|status| status["epoch"].as_u64());
        let sequencers = latest.and_then(|status| status["sequencers"].as_array());
        let active = sequencers.into_iter().flatten().find(|one| one["role"] == "active");
        let id = active.and_then(|one| one["node"].as_u64());
        let is_it = |node: &Node| node.role() == "sequencer" && Some(u64::from(node.id())) == id;
        let first = (0..NODES.len()).map(Node).find(|node| node.role() == "sequencer");
        self.nodes.iter().copied().find(is_it).or(first).unwrap_or(ETCD)
    }
}
