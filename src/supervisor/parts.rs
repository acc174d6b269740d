//! The supervised cluster, as benchmarks see it: parts that can be killed, stopped, cut off and replaced.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use halfmoon_bench::cluster::{Carried, Cluster, Joining, Part};
use halfmoon_bench::partition::{Cut, Way};
use halfmoon_meta::{NodeEntry, cluster, disks, nodes};
use halfmoon_wire::{NodeId, Role};
use rustix::process::{Pid, Signal};

use super::{Kind, Node, Shared};
use crate::layout;

impl Shared {
    /// Does something to the node of a part.
    fn with_node<R>(
        &self,
        part: Part,
        act: impl FnOnce(&mut Node) -> anyhow::Result<R>,
    ) -> anyhow::Result<R> {
        let id = self.id_of(part)?;
        let mut nodes = self.lock();
        act(nodes.by_id.get_mut(&id).context("no such node")?)
    }

    /// The node of a part.
    fn id_of(&self, part: Part) -> anyhow::Result<NodeId> {
        match part {
            Part::Engine(index) => Ok(layout::engine(u32::try_from(index)?)),
            Part::Storage(index) => cluster::read(&*self.founded.meta)?
                .members
                .nodes()
                .get(index)
                .copied()
                .context("no such storage node"),
            Part::Sequencer => self.in_charge().context("no sequencer is in charge"),
        }
    }
}

impl Cluster for Shared {
    fn engines(&self) -> usize {
        self.lock().by_id.values().filter(|node| node.kind == Kind::Engine).count()
    }

    fn gateway(&self, engine: usize) -> Option<SocketAddr> {
        let id = layout::engine(u32::try_from(engine).ok()?);
        nodes::find(&*self.founded.meta, Role::Engine, id).ok()??.gateway
    }

    fn kill_for(&self, part: Part, down: Duration) -> anyhow::Result<()> {
        self.with_node(part, |node| {
            node.held_until = Instant::now() + down;
            Ok(node.running()?.kill()?)
        })
    }

    fn pause(&self, part: Part) -> anyhow::Result<u32> {
        self.with_node(part, |node| {
            let pid = node.running()?.id();
            anyhow::ensure!(signal(pid, Signal::STOP), "process {pid} is gone");
            Ok(pid)
        })
    }

    fn resume(&self, pid: u32) -> anyhow::Result<()> {
        anyhow::ensure!(signal(pid, Signal::CONT), "process {pid} is gone");
        Ok(())
    }

    fn cut(&self, part: Part, way: Way) -> anyhow::Result<bool> {
        let Some(relays) = &self.relays else { return Ok(false) };
        relays.set(Some(Cut { node: self.id_of(part)?, way }));
        Ok(true)
    }

    fn mend(&self) {
        self.relays.iter().for_each(|relays| relays.set(None));
    }

    fn lose_storage(&self, index: usize) -> anyhow::Result<u32> {
        let members = cluster::read(&*self.founded.meta)?.members.nodes();
        let node = *members.get(index).context("no such storage node")?;
        let directory = self.layout.node(Kind::Storage.name(), node);
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
        // It may have ended by itself, for want of its directory.
        if let Err(error) =
            self.with_node(Part::Storage(index), |node| Ok(node.running()?.kill()?))
        {
            tracing::debug!(%error, %node, "not killed");
        }
        Ok(node.0)
    }

    fn replace_storage(&self, old: u32) -> anyhow::Result<u32> {
        let meta = &*self.founded.meta;
        let (info, used) = (cluster::read(meta)?, disks::list(meta)?);
        let is_spare = |entry: &NodeEntry| {
            let node = entry.node();
            entry.role() == Role::Storage && !info.has_part(node) && !used.contains(&node)
        };
        let new = nodes::list(meta)?.into_iter().find(is_spare).context("no spare runs")?.node();
        cluster::replace_member(meta, NodeId(old), new)?;
        Ok(new.0)
    }

    fn joining(&self, node: u32) -> anyhow::Result<Joining> {
        Ok(Joining::of(&cluster::read(&*self.founded.meta)?, NodeId(node)))
    }

    fn carried(&self) -> Option<Carried> {
        let nodes = self.lock();
        let mut all = nodes.carried_before;
        nodes.by_id.values().filter_map(|node| self.carried_by(node)).for_each(|one| all.add(one));
        Some(all)
    }

    fn kill_process(&self, pid: u32) -> bool {
        signal(pid, Signal::KILL)
    }
}

/// Whether there was a process to be signalled.
fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}
