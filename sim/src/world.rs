//! A cluster from one seed: machines, network, disks and clocks, driven event by event on one thread.

mod faults;
mod members;
mod phases;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use halfmoon_meta::cluster::{self, Durability};
use halfmoon_wire::NodeId;

use crate::check::{Judge, Violation};
use crate::disk::{DiskCounts, Drive};
use crate::host::engine::{EngineHost, Work};
use crate::host::sequencer::SequencerHost;
use crate::host::storage::StorageHost;
use crate::host::{CLUSTER, Env, Machine, Turned};
use crate::net::{Host, Net, NetCounts};
use crate::plan::{Fault, Plan, Scenario};
use crate::random::{Concern, Random};
use crate::shared::Shared;
use crate::time::{Clock, MILLI, SECOND};
use crate::work::functions::FunctionWork;
use crate::work::log::LogWork;
use members::Members;

/// Storage nodes.
const STORAGE: usize = 3;

/// Machines that may be sequencers.
const SEQUENCERS: usize = 2;

/// Events without any time passing after which a run is taken to have hung.
const EVENTS_AT_ONCE_MAX: u32 = 200_000;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was found to be wrong, if anything.
    pub violation: Option<Violation>,
    /// What was done.
    pub counts: Counts,
    /// Follows from everything that happened, in order: equal for equal runs.
    pub trace: u64,
    /// Virtual time, in ns.
    pub ended_ns: u64,
}

/// What was done in a run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Faults brought about, by kind.
    pub faults: std::collections::BTreeMap<Fault, u64>,
    /// The network.
    pub net: NetCounts,
    /// The disks.
    pub disk: DiskCounts,
    /// Calls of the metadata store that failed.
    pub meta_failed: u64,
    /// The log.
    pub log: crate::check::log::LogCounts,
    /// Records of the log at the end.
    pub records: u64,
    /// Operations on cells and versions.
    pub store: u64,
    /// Function instances that ended.
    pub instances: u64,
    /// Epochs that were opened or tried to be.
    pub reigns: u64,
    /// Storage nodes that were replaced.
    pub replaced: u64,
    /// Events.
    pub events: u64,
}

impl Counts {
    /// Adds what was done in another run.
    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.net.writes += other.net.writes;
        self.net.torn += other.net.torn;
        self.net.half += other.net.half;
        self.net.late += other.net.late;
        self.net.broken += other.net.broken;
        self.net.cuts += other.net.cuts;
        self.disk.add(other.disk);
        self.meta_failed += other.meta_failed;
        self.log.appends += other.log.appends;
        self.log.appended += other.log.appended;
        self.log.refused += other.log.refused;
        self.log.reads += other.log.reads;
        self.log.evictions += other.log.evictions;
        self.records += other.records;
        self.store += other.store;
        self.instances += other.instances;
        self.reigns += other.reigns;
        self.replaced += other.replaced;
        self.events += other.events;
    }
}

pub(crate) struct World {
    env: Env,
    plan: Plan,
    due: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    /// Those that are there from the start come first, and then those that wait to replace one.
    storage: Vec<StorageHost>,
    members: Members,
    sequencers: Vec<SequencerHost>,
    engines: Vec<EngineHost>,
    paces: Vec<Pace>,
    work: Rc<dyn Work>,
    /// Chooses faults.
    chaos: Random,
    /// Chooses how long things take.
    pacing: Random,
    counts: Counts,
    trace: u64,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    /// A machine has something to do.
    Turn(usize),
    /// A machine's process starts.
    Start(usize),
    /// Something fails.
    Fault,
    /// A fault that lasts ends.
    Mend(Mend),
    /// A storage node is replaced, if one can be now.
    Replace,
}

/// What ends with a fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Mend {
    Heal(Host, Host),
    /// The two groups find together again; with this, after every sequencer has died.
    Unite(bool),
    /// The sequencer on this machine, which was left behind, starts anew and takes over; one storage
    /// node hears nothing of it.
    Return(usize),
    /// So many more sequencers take an epoch.
    Gust(u32),
    /// This storage node falls silent too.
    Hush(usize),
    Disk(usize),
    Meta,
}

/// When a machine's next turn is.
#[derive(Clone, Copy, Default, Debug)]
struct Pace {
    next: Option<u64>,
    busy_until: u64,
    paused_until: u64,
    is_starting: bool,
}

/// How far a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Things fail until then.
    Faults(u64),
    /// Nothing fails any more; everything has to end by then.
    Calm(u64),
    /// Everything has lost its power; by then everybody has to see the log up to here.
    Dark {
        until: u64,
        upto: u64,
        look_at: u64,
    },
    Over,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let shared = Rc::new(Shared::default());
        let judge = Judge::default();
        let net = Net::new(seed, plan.net.clone());
        let env = Env::new(seed, shared.clone(), net, judge.clone());
        let work: Rc<dyn Work> = match plan.scenario {
            Scenario::Log | Scenario::Bulk => LogWork::new(seed, shared, judge, plan.clone()),
            Scenario::Functions => FunctionWork::new(seed, shared, judge, plan.clone()),
        };
        let mut clocks = Random::new(seed, Concern::Clock, u64::MAX);
        let mut clock = move || Clock {
            ahead_ns: clocks.below(10 * SECOND),
            drift_ppm: i64::try_from(clocks.below(400)).unwrap_or(0) - 200,
        };
        let founders: Vec<_> = (1..).take(STORAGE).map(NodeId).collect();
        let founded = cluster::create(&env.meta, CLUSTER, Durability::Flush, &founders);
        assert!(founded.is_ok(), "an empty store takes a cluster");
        let host = |machine: usize| Host(u32::try_from(machine + 1).unwrap_or(0));
        let (mut storage, mut sequencers, mut engines) = (Vec::new(), Vec::new(), Vec::new());
        let members = Members::new(&plan);
        for (machine, node) in members.machines(&plan).zip(1..).map(|(at, id)| (at, NodeId(id))) {
            let drive = Drive::new(env.shared.clone(), machine, seed, plan.disk.clone());
            let host = host(machine);
            storage.push(StorageHost::new(env.clone(), machine, node, host, clock(), drive));
        }
        for (machine, node) in (STORAGE..STORAGE + SEQUENCERS).zip(11..) {
            let (node, host) = (NodeId(node), host(machine));
            sequencers.push(SequencerHost::new(
                env.clone(),
                machine,
                node,
                host,
                clock(),
                (plan.lease_ms, plan.suspect_ms),
                plan.look_ns,
            ));
        }
        for (number, node) in (0..plan.engines).zip(21..) {
            let machine = STORAGE + SEQUENCERS + number;
            let (node, host) = (NodeId(node), host(machine));
            let place = (machine, number);
            engines.push(EngineHost::new(env.clone(), place, node, host, clock(), work.clone()));
        }
        let machines = STORAGE + SEQUENCERS + plan.engines + members.spares();
        let phase = Phase::Faults(plan.settle_ns + plan.faults_ns);
        Self {
            env,
            plan,
            due: BinaryHeap::new(),
            serial: 0,
            storage,
            members,
            sequencers,
            engines,
            paces: vec![Pace::default(); machines],
            work,
            chaos: Random::new(seed, Concern::Crash, 0),
            pacing: Random::new(seed, Concern::Clock, u64::MAX - 1),
            counts: Counts::default(),
            trace: seed,
            phase,
        }
    }

    /// Runs until the end, or a violation.
    pub(crate) fn run(mut self) -> Outcome {
        for machine in 0..self.paces.len() {
            self.start_at(machine, 0);
        }
        let first = self.plan.settle_ns + self.chaos.below(2 * self.plan.every_ns);
        self.schedule(first, Event::Fault);
        self.begin_replacing();
        let (mut at_once, mut before) = (0, 0);
        while self.phase != Phase::Over && !self.env.judge.is_guilty() {
            let next = self.due.peek().map(|Reverse((at, ..))| *at);
            let arrival = self.env.net.next_at();
            let Some(now) = next.into_iter().chain(arrival).min() else { break };
            at_once = if now > before { 0 } else { at_once + 1 };
            if at_once > EVENTS_AT_ONCE_MAX {
                self.env.judge.object(now, "time passes", "something goes on for ever at once");
            }
            before = before.max(now);
            self.counts.events += 1;
            self.env.shared.set_now(before);
            if arrival.is_some_and(|at| at <= now) {
                self.env.net.advance(now);
            } else if let Some(Reverse((_, _, event))) = self.due.pop() {
                self.happen(event);
            }
            self.wake_up();
            self.advance_phase();
        }
        self.finish()
    }

    fn finish(mut self) -> Outcome {
        self.counts.net = self.env.net.counts();
        for drive in self.storage.iter().map(StorageHost::drive) {
            self.counts.disk.add(drive.counts());
        }
        self.counts.meta_failed = self.env.meta.failed();
        let history = self.work.history();
        self.counts.log = history.borrow().counts();
        self.counts.records = history.borrow().end().0;
        self.counts.store = self.work.operations();
        self.counts.instances = self.work.instances();
        self.counts.reigns = self.sequencers.iter().map(SequencerHost::reigns).sum();
        let (violation, ended_ns) = (self.env.judge.verdict(), self.env.now());
        let counts = std::mem::take(&mut self.counts);
        Outcome { violation, counts, trace: self.trace, ended_ns }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn(machine) => self.turn(machine),
            Event::Start(machine) => self.start(machine),
            Event::Fault => {
                if matches!(self.phase, Phase::Faults(_)) {
                    self.fault();
                    let next = self.env.now() + self.chaos.below(2 * self.plan.every_ns) + 1;
                    self.schedule(next, Event::Fault);
                }
            }
            Event::Mend(mend) => self.mend(mend),
            Event::Replace => self.replace(),
        }
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.due.push(Reverse((at, self.serial, event)));
    }

    fn machine(&mut self, machine: usize) -> &mut dyn Machine {
        if let Some(which) = self.storage_at(machine) {
            &mut self.storage[which]
        } else if machine < STORAGE + SEQUENCERS {
            &mut self.sequencers[machine - STORAGE]
        } else {
            &mut self.engines[machine - STORAGE - SEQUENCERS]
        }
    }

    /// A machine is to have a turn by `at`, if it can.
    fn wake(&mut self, machine: usize, at: u64) {
        let pace = &mut self.paces[machine];
        let at = at.max(pace.busy_until).max(pace.paused_until);
        if pace.next.is_none_or(|next| next > at) {
            pace.next = Some(at);
            self.schedule(at, Event::Turn(machine));
        }
    }

    /// Everybody for whom something has happened.
    fn wake_up(&mut self) {
        let now = self.env.now();
        while let Some((at, machine)) = self.env.shared.next_wake() {
            self.wake(machine, at);
        }
        while let Some(site) = self.env.net.next_news() {
            if let Some(machine) = self.env.owner(site) {
                self.wake(machine, now);
            }
        }
    }

    fn turn(&mut self, machine: usize) {
        let now = self.env.now();
        let pace = &mut self.paces[machine];
        if pace.next != Some(now) {
            return;
        }
        pace.next = None;
        let ready = pace.busy_until.max(pace.paused_until);
        if ready > now {
            return self.wake(machine, ready);
        }
        if !self.machine(machine).is_up() {
            return;
        }
        self.note(machine as u64);
        match self.machine(machine).turn() {
            Turned::Until(_) if self.dies_saying_so(machine) => self.died(machine),
            Turned::Until(at) => {
                let took = 1 + self.pacing.below(self.plan.turn_ns);
                self.paces[machine].busy_until = now + took;
                self.wake(machine, at);
            }
            Turned::Died => self.died(machine),
        }
    }

    /// A process has ended: it is started again after a while.
    fn died(&mut self, machine: usize) {
        let after = match self.phase {
            Phase::Faults(_) => self.chaos.skewed(MILLI, 2 * self.plan.lasts_ns),
            Phase::Calm(_) | Phase::Dark { .. } | Phase::Over => MILLI,
        };
        self.start_at(machine, self.env.now() + after);
    }

    fn start_at(&mut self, machine: usize, at: u64) {
        if !self.paces[machine].is_starting {
            self.paces[machine].is_starting = true;
            self.schedule(at, Event::Start(machine));
        }
    }

    fn start(&mut self, machine: usize) {
        let now = self.env.now();
        self.paces[machine].is_starting = false;
        if self.machine(machine).is_up() || !self.may_start(machine) {
            return;
        }
        self.note(1000 + machine as u64);
        tracing::info!(machine, "starts");
        if self.machine(machine).start() {
            self.wake(machine, now);
        } else {
            self.start_at(machine, now + 5 * MILLI);
        }
    }

    /// Something happened now: it becomes part of the trace.
    fn note(&mut self, what: u64) {
        for part in [what, self.env.now(), self.work.history().borrow().end().0] {
            self.trace = (self.trace.rotate_left(5) ^ part).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}
