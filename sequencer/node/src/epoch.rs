//! An open epoch: the machines of the core, side by side.

use halfmoon_order::{Commit, Leases, Order, Recovered, Tails, UnknownEngine, Verdict, Window};
use halfmoon_transport::LaneId;
use halfmoon_wire::{AppendView, EpochStart, Incarnation, Message, NodeId, Refusal, SeqNum};

use crate::host::{Now, Options};
use crate::metrics::Snapshot;

#[derive(Debug)]
pub(crate) struct OpenEpoch {
    pub(crate) order: Order,
    pub(crate) window: Window,
    pub(crate) leases: Leases,
    pub(crate) tails: Tails<(LaneId, u64)>,
    pub(crate) commit: Commit,
    history: Vec<EpochStart>,
    members: Vec<NodeId>,
    lease_ms: u32,
    places_max: u64,
}

impl OpenEpoch {
    pub(crate) fn new(
        recovered: Recovered,
        members: Vec<NodeId>,
        options: &Options,
        now: Now,
    ) -> Self {
        let Recovered { mut order, window, history, opening, .. } = recovered;
        let Options { lease_ms, places_max, .. } = *options;
        order.limit_places(places_max);
        let mut leases = Leases::new(u64::from(lease_ms) * 1_000_000, now.mono_ns);
        for (engine, incarnation) in order.lives() {
            leases.expect(engine, incarnation, opening);
        }
        let commit = Commit::new(opening, &members);
        let tails = Tails::new(&members);
        Self { order, window, leases, tails, commit, history, members, lease_ms, places_max }
    }

    /// An engine is here. It gets a lease, unless the log has taken its incarnation out: whoever has
    /// a lease may inherit.
    pub(crate) fn hello(&mut self, now: Now, engine: NodeId, incarnation: Incarnation) {
        let known = if self.order.is_evicted(engine, incarnation) {
            Err(UnknownEngine)
        } else {
            self.leases.hello(now.mono_ns, engine, incarnation)
        };
        known.unwrap_or_else(|over| tracing::info!(engine = engine.0, "{over}"));
    }

    pub(crate) fn welcome(&self) -> Message<'static> {
        Message::Welcome {
            epoch: self.order.epoch(),
            history: self.history.clone(),
            window_start: self.window.start(),
            tail: self.order.tail(),
            members: self.members.clone(),
            lease_ms: self.lease_ms,
            places_max: self.places_max,
        }
    }

    /// Judges an append; returns why it is refused, if it is.
    pub(crate) fn append(
        &mut self,
        now: Now,
        engine: NodeId,
        incarnation: Incarnation,
        append: &AppendView<'_>,
        counted: &mut Snapshot,
    ) -> Option<Refusal> {
        match self.order.append(now.wall_ns, engine, incarnation, append, &mut self.window) {
            Verdict::Ordered(_) => counted.ordered += 1,
            Verdict::Duplicate => counted.duplicates += 1,
            Verdict::Refused(refusal) => {
                counted.refused += 1;
                counted.overloaded += u64::from(refusal == Refusal::Overloaded);
                return Some(refusal);
            }
        }
        None
    }

    /// A storage node's watermark of this epoch; returns whether it commits the opening record.
    pub(crate) fn durable(&mut self, node: NodeId, seq: SeqNum) -> bool {
        let was_open = self.commit.committed() > SeqNum::ZERO;
        let Some(committed) = self.commit.durable(node, seq, self.order.tail()) else {
            return false;
        };
        self.order.committed(committed);
        self.window.release(committed.next());
        !was_open
    }

    /// What time brings: evictions and safe points.
    pub(crate) fn turn(&mut self, now: Now, counted: &mut Snapshot) {
        self.leases.turn(now.mono_ns);
        while let Some(evict) = self.leases.due(now.mono_ns) {
            tracing::info!(
                engine = evict.engine.0,
                incarnation = evict.incarnation.0,
                heir = evict.heir.0,
                "engine evicted"
            );
            let seq = self.order.evict(now.wall_ns, &evict, &mut self.window);
            self.leases.evicted(&evict, seq);
            counted.evictions += 1;
        }
        let committed = self.commit.committed();
        let (current, last_data) = (self.order.safe_point(), self.order.last_data());
        let safe_point = self.leases.next_safe_point(now.mono_ns, current, committed, last_data);
        if let Some(safe_point) = safe_point {
            self.order.advance(now.wall_ns, safe_point, &mut self.window);
        }
    }
}
