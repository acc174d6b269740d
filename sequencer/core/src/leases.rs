//! Which engines live, who inherits from a dead one, and the safe point.
//!
//! The order of a take-over is the whole point (each step out of order loses a root): the lease is
//! over → the Evict record is in the stream → the heir has applied it and reports a safe point that
//! includes what it inherited → only then the dead engine's report is dropped.
//!
//! Times are ns of a clock that only grows.

use std::collections::BTreeMap;

use halfmoon_wire::{Evict, Incarnation, NodeId, SeqNum};

/// Growth of the safe point, in positions, that is put into the stream at once.
pub const SAFE_POINT_STRIDE: u64 = 4096;

/// Smaller growth waits until so many ns have passed since the last time.
pub const SAFE_POINT_PERIOD_NS: u64 = 500_000_000;

/// The engine's incarnation holds no lease: it was evicted, or a later one has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this incarnation of the engine is over")]
pub struct UnknownEngine;

/// The leases of all engines.
#[derive(Clone, Debug)]
pub struct Leases {
    lease_ns: u64,
    engines: BTreeMap<NodeId, Lease>,
    /// Incarnations that a later one of the same engine has taken the place of, not yet evicted.
    replaced: Vec<(NodeId, Incarnation, Report)>,
    /// Reports of the evicted, kept until their heir has included what they had.
    kept: Vec<Kept>,
    last_turn_ns: u64,
    last_safe_point_ns: u64,
}

/// The least cursor that an engine still needs; unknown until it has said so, and then the safe
/// point does not grow.
type Report = Option<SeqNum>;

#[derive(Clone, Copy, Debug)]
struct Lease {
    incarnation: Incarnation,
    ends_ns: u64,
    /// Whether it has been heard of in this epoch.
    is_here: bool,
    report: Report,
    /// Reports of an engine that has not applied up to here are not counted.
    counts_from: SeqNum,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    report: Report,
    heir: NodeId,
    heir_incarnation: Incarnation,
    /// Position of the Evict record.
    evicted_at: SeqNum,
}

impl Leases {
    /// No engine is known. A lease lasts `lease_ns` from the last word of its engine on.
    #[must_use]
    pub const fn new(lease_ns: u64, now_ns: u64) -> Self {
        Self {
            lease_ns,
            engines: BTreeMap::new(),
            replaced: Vec::new(),
            kept: Vec::new(),
            last_turn_ns: now_ns,
            last_safe_point_ns: now_ns,
        }
    }

    /// At the start of an epoch: this incarnation is in the log and not evicted, so it may own roots.
    /// It has one lease's time to come. What it reported to an earlier sequencer is not known, so
    /// nothing counts before it has applied the epoch's `opening` record.
    pub fn expect(&mut self, engine: NodeId, incarnation: Incarnation, opening: SeqNum) {
        let ends_ns = self.last_turn_ns.saturating_add(self.lease_ns);
        let lease =
            Lease { incarnation, ends_ns, is_here: false, report: None, counts_from: opening };
        self.put(engine, lease);
    }

    /// A lane of the engine came up.
    pub fn hello(
        &mut self,
        now_ns: u64,
        engine: NodeId,
        incarnation: Incarnation,
    ) -> Result<(), UnknownEngine> {
        let ends_ns = now_ns.saturating_add(self.lease_ns);
        match self.engines.get_mut(&engine) {
            Some(lease) if lease.incarnation > incarnation => return Err(UnknownEngine),
            Some(lease) if lease.incarnation == incarnation => {
                lease.ends_ns = ends_ns;
                lease.is_here = true;
            }
            Some(_) | None => {
                let counts_from = SeqNum::ZERO;
                let lease =
                    Lease { incarnation, ends_ns, is_here: true, report: None, counts_from };
                self.put(engine, lease);
            }
        }
        Ok(())
    }

    /// The engine has reported: its lease is renewed. A lease that had ended goes on if no Evict
    /// record says otherwise.
    pub fn report(
        &mut self,
        now_ns: u64,
        engine: NodeId,
        incarnation: Incarnation,
        applied: SeqNum,
        safe_point: SeqNum,
    ) -> Result<(), UnknownEngine> {
        let lease = self.engines.get_mut(&engine);
        let lease = lease.filter(|lease| lease.incarnation == incarnation).ok_or(UnknownEngine)?;
        lease.ends_ns = now_ns.saturating_add(self.lease_ns);
        lease.is_here = true;
        if applied >= lease.counts_from {
            lease.report = Some(safe_point.min(applied));
        }
        self.kept.retain(|kept| {
            let is_heir = (kept.heir, kept.heir_incarnation) == (engine, incarnation);
            !is_heir || applied < kept.evicted_at
        });
        Ok(())
    }

    /// To be called in every turn, after the messages were handled. When the turns themselves have
    /// stopped for a while, engines could not be heard: that time is not held against them.
    pub fn turn(&mut self, now_ns: u64) {
        let gap = now_ns.saturating_sub(self.last_turn_ns);
        if gap > self.lease_ns / 4 {
            for lease in self.engines.values_mut() {
                lease.ends_ns = lease.ends_ns.saturating_add(gap);
            }
        }
        self.last_turn_ns = self.last_turn_ns.max(now_ns);
    }

    /// The next eviction that is due: put it into the stream, then call [`Self::evicted`]. An engine
    /// without a living heir waits for one.
    #[must_use]
    pub fn due(&self, now_ns: u64) -> Option<Evict> {
        let lives = |lease: &Lease| lease.is_here && lease.ends_ns > now_ns;
        for (engine, incarnation, _) in &self.replaced {
            let successor = self.engines.get(engine).filter(|lease| lives(lease));
            if let Some(heir) = successor {
                return Some(Evict {
                    engine: *engine,
                    incarnation: *incarnation,
                    heir: *engine,
                    heir_incarnation: heir.incarnation,
                });
            }
        }
        let (engine, dead) = self.engines.iter().find(|(_, lease)| lease.ends_ns <= now_ns)?;
        let (heir, lease) = self.engines.iter().find(|(_, lease)| lives(lease))?;
        Some(Evict {
            engine: *engine,
            incarnation: dead.incarnation,
            heir: *heir,
            heir_incarnation: lease.incarnation,
        })
    }

    /// The Evict record is in the stream, at `seq`.
    pub fn evicted(&mut self, evict: &Evict, seq: SeqNum) {
        let is_over = |engine: NodeId, incarnation: Incarnation| {
            engine == evict.engine && incarnation <= evict.incarnation
        };
        let (heir, heir_incarnation) = (evict.heir, evict.heir_incarnation);
        let inherits = |report| Kept { report, heir, heir_incarnation, evicted_at: seq };
        // Who was heir to the dead one passes it on.
        for kept in self.kept.iter_mut().filter(|kept| is_over(kept.heir, kept.heir_incarnation)) {
            *kept = inherits(kept.report);
        }
        for (engine, incarnation, report) in &self.replaced {
            if is_over(*engine, *incarnation) {
                self.kept.push(inherits(*report));
            }
        }
        self.replaced.retain(|(engine, incarnation, _)| !is_over(*engine, *incarnation));
        let lease = self.engines.get(&evict.engine);
        if let Some(lease) = lease.filter(|lease| is_over(evict.engine, lease.incarnation)) {
            self.kept.push(inherits(lease.report));
            self.engines.remove(&evict.engine);
        }
    }

    /// The least cursor that anybody needs, as far as known; `None` while somebody has not said, or
    /// when there is nobody.
    #[must_use]
    pub fn least_cursor(&self) -> Option<SeqNum> {
        let living = self.engines.values().map(|lease| lease.report);
        let replaced = self.replaced.iter().map(|(_, _, report)| *report);
        let kept = self.kept.iter().map(|kept| kept.report);
        let mut least = None;
        for report in living.chain(replaced).chain(kept) {
            let cursor = report?;
            least = Some(least.map_or(cursor, |least: SeqNum| least.min(cursor)));
        }
        least
    }

    /// A safe point to be put into the stream now: well above the one there, `current`, or the first
    /// in a while. Growth that passes no record of an engine is not worth a record: `last_data` is the
    /// position of the last of those.
    pub fn next_safe_point(
        &mut self,
        now_ns: u64,
        current: SeqNum,
        committed: SeqNum,
        last_data: SeqNum,
    ) -> Option<SeqNum> {
        let least = self.least_cursor()?.min(committed);
        let is_far = least.0 >= current.0.saturating_add(SAFE_POINT_STRIDE);
        let is_late = now_ns.saturating_sub(self.last_safe_point_ns) >= SAFE_POINT_PERIOD_NS;
        if least.min(last_data) <= current || !(is_far || is_late) {
            return None;
        }
        self.last_safe_point_ns = now_ns;
        Some(least)
    }

    /// When [`Self::due`] may next have something to say, in ns; `None` when nobody holds a lease.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.engines.values().map(|lease| lease.ends_ns).min()
    }

    /// Engines that hold a lease or are waited for: id, incarnation, whether it is here.
    pub fn engines(&self) -> impl Iterator<Item = (NodeId, Incarnation, bool)> + '_ {
        self.engines.iter().map(|(engine, lease)| (*engine, lease.incarnation, lease.is_here))
    }

    fn put(&mut self, engine: NodeId, lease: Lease) {
        if let Some(old) = self.engines.insert(engine, lease) {
            self.replaced.push((engine, old.incarnation, old.report));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: u64 = 1000;
    const A: NodeId = NodeId(11);
    const B: NodeId = NodeId(12);
    const C: NodeId = NodeId(13);

    fn life(number: u64) -> Incarnation {
        Incarnation(number)
    }

    fn evict(engine: NodeId, incarnation: u64, heir: NodeId, heir_incarnation: u64) -> Evict {
        let (incarnation, heir_incarnation) = (life(incarnation), life(heir_incarnation));
        Evict { engine, incarnation, heir, heir_incarnation }
    }

    /// A, B and C, incarnation 1, all having applied 100 and in need of 50, 60 and 70.
    fn three() -> Leases {
        let mut leases = Leases::new(LEASE, 0);
        for (engine, cursor) in [(A, 50), (B, 60), (C, 70)] {
            leases.hello(0, engine, life(1)).unwrap();
            leases.report(0, engine, life(1), SeqNum(100), SeqNum(cursor)).unwrap();
        }
        leases
    }

    fn turns(leases: &mut Leases, from: u64, to: u64) {
        (from..=to).step_by(100).for_each(|now| leases.turn(now));
    }

    #[test]
    fn a_dead_engines_report_is_kept_until_its_heir_has_applied_the_eviction() {
        let mut leases = three();
        turns(&mut leases, 0, 900);
        for engine in [B, C] {
            leases.report(900, engine, life(1), SeqNum(200), SeqNum(200)).unwrap();
        }
        assert_eq!(leases.due(999), None);
        assert_eq!(leases.due(1000), Some(evict(A, 1, B, 1)));
        leases.evicted(&evict(A, 1, B, 1), SeqNum(201));
        assert_eq!(leases.due(1000), None);
        assert_eq!(leases.report(1000, A, life(1), SeqNum(9), SeqNum(9)), Err(UnknownEngine));
        assert_eq!(leases.least_cursor(), Some(SeqNum(50)), "kept");
        leases.report(1001, C, life(1), SeqNum(300), SeqNum(300)).unwrap();
        leases.report(1001, B, life(1), SeqNum(200), SeqNum(200)).unwrap();
        assert_eq!(leases.least_cursor(), Some(SeqNum(50)), "the heir has not applied it");
        leases.report(1002, B, life(1), SeqNum(201), SeqNum(50)).unwrap();
        assert_eq!(leases.least_cursor(), Some(SeqNum(50)), "inherited");
        leases.report(1003, B, life(1), SeqNum(202), SeqNum(202)).unwrap();
        assert_eq!(leases.least_cursor(), Some(SeqNum(202)));
    }

    #[test]
    fn an_heir_that_dies_passes_on_what_it_had_not_taken_over() {
        let mut leases = three();
        turns(&mut leases, 0, 900);
        leases.report(500, B, life(1), SeqNum(200), SeqNum(200)).unwrap();
        leases.report(900, C, life(1), SeqNum(200), SeqNum(200)).unwrap();
        leases.evicted(&leases.due(1000).unwrap(), SeqNum(201));
        turns(&mut leases, 1000, 1500);
        let second = leases.due(1500).unwrap();
        assert_eq!(second, evict(B, 1, C, 1));
        leases.evicted(&second, SeqNum(205));
        leases.report(1500, C, life(1), SeqNum(204), SeqNum(204)).unwrap();
        assert_eq!(leases.least_cursor(), Some(SeqNum(50)));
        leases.report(1500, C, life(1), SeqNum(205), SeqNum(205)).unwrap();
        assert_eq!(leases.least_cursor(), Some(SeqNum(205)));
    }

    #[test]
    fn a_new_incarnation_evicts_the_old_one_at_once_and_inherits_from_it() {
        let mut leases = three();
        leases.hello(10, B, life(2)).unwrap();
        assert_eq!(leases.hello(10, B, life(1)), Err(UnknownEngine));
        assert_eq!(leases.due(10), Some(evict(B, 1, B, 2)));
        leases.evicted(&evict(B, 1, B, 2), SeqNum(101));
        assert_eq!(leases.due(10), None);
        assert_eq!(leases.least_cursor(), None, "the new one has not reported");
        leases.report(11, B, life(2), SeqNum(100), SeqNum(100)).unwrap();
        for engine in [A, C] {
            leases.report(11, engine, life(1), SeqNum(100), SeqNum(100)).unwrap();
        }
        assert_eq!(leases.least_cursor(), Some(SeqNum(60)));
        leases.report(12, B, life(2), SeqNum(101), SeqNum(90)).unwrap();
        assert_eq!(leases.least_cursor(), Some(SeqNum(90)));
    }

    #[test]
    fn without_a_living_heir_nobody_is_evicted_and_the_silent_may_come_back() {
        let mut leases = Leases::new(LEASE, 0);
        leases.hello(0, A, life(1)).unwrap();
        leases.report(0, A, life(1), SeqNum(10), SeqNum(10)).unwrap();
        turns(&mut leases, 0, 5000);
        assert_eq!(leases.due(5000), None);
        leases.report(5000, A, life(1), SeqNum(20), SeqNum(20)).unwrap();
        leases.hello(5000, B, life(1)).unwrap();
        assert_eq!(leases.due(5001), None, "the lease goes on");
        leases.report(5900, B, life(1), SeqNum(20), SeqNum(20)).unwrap();
        assert_eq!(leases.due(6000), Some(evict(A, 1, B, 1)));
    }

    #[test]
    fn a_pause_of_the_sequencer_is_not_held_against_the_engines() {
        let mut leases = three();
        turns(&mut leases, 0, 500);
        leases.report(60_000, B, life(1), SeqNum(100), SeqNum(60)).unwrap();
        leases.turn(60_000);
        assert_eq!(leases.due(60_000), None);
        turns(&mut leases, 60_000, 60_500);
        leases.report(60_500, B, life(1), SeqNum(100), SeqNum(60)).unwrap();
        assert_eq!(leases.due(60_500), Some(evict(A, 1, B, 1)));
    }

    #[test]
    fn a_new_epoch_waits_for_the_engines_in_the_log_and_for_what_they_need() {
        let mut leases = Leases::new(LEASE, 0);
        leases.expect(A, life(3), SeqNum(500));
        leases.expect(B, life(1), SeqNum(500));
        leases.expect(B, life(2), SeqNum(500));
        leases.hello(1, B, life(2)).unwrap();
        assert_eq!(leases.due(1), Some(evict(B, 1, B, 2)));
        leases.evicted(&evict(B, 1, B, 2), SeqNum(501));
        leases.report(2, B, life(2), SeqNum(499), SeqNum(499)).unwrap();
        turns(&mut leases, 0, 900);
        assert_eq!(leases.least_cursor(), None);
        leases.report(900, B, life(2), SeqNum(501), SeqNum(450)).unwrap();
        assert_eq!(leases.least_cursor(), None, "A has not come");
        leases.evicted(&leases.due(1000).unwrap(), SeqNum(502));
        leases.report(1000, B, life(2), SeqNum(501), SeqNum(501)).unwrap();
        assert_eq!(leases.least_cursor(), None, "B has not taken over from A");
        leases.report(1000, B, life(2), SeqNum(502), SeqNum(430)).unwrap();
        assert_eq!(leases.least_cursor(), Some(SeqNum(430)));
    }

    #[test]
    fn an_engine_that_has_not_come_in_this_epoch_inherits_nothing() {
        let mut leases = Leases::new(LEASE, 500);
        leases.expect(A, life(1), SeqNum(7));
        leases.hello(0, C, life(1)).unwrap();
        assert_eq!(leases.due(1000), None, "A has time until 1500, but nobody has seen it");
        leases.hello(1000, A, life(1)).unwrap();
        assert_eq!(leases.due(1000), Some(evict(C, 1, A, 1)));
    }

    #[test]
    fn safe_points_come_at_a_bounded_rate_and_not_for_their_own_sake() {
        let mut leases = Leases::new(LEASE, 0);
        leases.hello(0, A, life(1)).unwrap();
        let report = |leases: &mut Leases, at| {
            leases.report(0, A, life(1), SeqNum(at), SeqNum(at)).unwrap();
        };
        let (late, all) = (SAFE_POINT_PERIOD_NS, SeqNum(10_000));
        assert_eq!(leases.next_safe_point(late, SeqNum(0), all, all), None, "not reported");
        report(&mut leases, 10);
        assert_eq!(leases.next_safe_point(1, SeqNum(0), all, all), None, "too soon");
        assert_eq!(leases.next_safe_point(late, SeqNum(0), SeqNum(0), all), None, "uncommitted");
        assert_eq!(leases.next_safe_point(late, SeqNum(0), all, all), Some(SeqNum(10)));
        report(&mut leases, 5000);
        assert_eq!(leases.next_safe_point(late, SeqNum(10), all, all), Some(SeqNum(5000)));
        report(&mut leases, 5001);
        let data = SeqNum(4999);
        assert_eq!(leases.next_safe_point(9 * late, SeqNum(5000), all, data), None, "idle");
    }
}
