//! What kind of run a seed is: how many machines, how bad the network and the disks are, what fails
//! and how often.

use crate::disk::DiskProfile;
use crate::net::NetProfile;
use crate::random::{Concern, Random};
use crate::time::{MICRO, MILLI, SECOND};

/// What a run is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum Scenario {
    /// Appends, conditions, reads, cells: whatever fails.
    Log,
    /// The same, many appends at a time, and little that fails.
    Bulk,
    /// Functions: transactions, calls, logged and log-free writes.
    Functions,
}

/// A fault that is brought about on purpose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// A storage node's process ends.
    KillStorage,
    /// A storage node loses power.
    PowerOffStorage,
    /// All storage nodes lose power at once.
    PowerOffAllStorage,
    /// Every machine loses power at once.
    PowerOffAll,
    /// An engine's process ends.
    KillEngine,
    /// The sequencer's process ends.
    KillSequencer,
    /// Another sequencer takes an epoch while the old one goes on.
    Takeover,
    /// A machine stops for a while, and goes on as if nothing had been.
    Pause,
    /// One direction between two machines is cut for a while.
    CutOneWay,
    /// Both directions are.
    CutBothWays,
    /// One machine is cut off from all others, in one direction or both.
    Isolate,
    /// The machines fall apart into two groups, and a sequencer takes an epoch in one of them.
    Split,
    /// Several sequencers one after another take an epoch, each with another pair of storage nodes.
    Storm,
    /// The lanes between two machines break.
    BreakLanes,
    /// A disk fails some writes for a while.
    DiskFails,
    /// A disk is slow for a while.
    DiskSlow,
    /// Calls of the metadata store fail for a while.
    MetaFails,
    /// A sequencer cannot reach the metadata store for a while.
    MetaAlone,
    /// The wall clock of a sequencer jumps.
    ClockJumps,
}

/// All faults, each with its usual weight.
pub const FAULTS: [(Fault, u64); 19] = [
    (Fault::KillStorage, 10),
    (Fault::PowerOffStorage, 10),
    (Fault::PowerOffAllStorage, 4),
    (Fault::PowerOffAll, 2),
    (Fault::KillEngine, 6),
    (Fault::KillSequencer, 8),
    (Fault::Takeover, 12),
    (Fault::Pause, 10),
    (Fault::CutOneWay, 8),
    (Fault::CutBothWays, 6),
    (Fault::Isolate, 4),
    (Fault::Split, 8),
    (Fault::Storm, 6),
    (Fault::BreakLanes, 10),
    (Fault::DiskFails, 3),
    (Fault::DiskSlow, 3),
    (Fault::MetaFails, 3),
    (Fault::MetaAlone, 3),
    (Fault::ClockJumps, 2),
];

/// Faults that change who is in charge, where nothing else fails.
const REIGNS: [(Fault, u64); 4] =
    [(Fault::Split, 8), (Fault::Storm, 4), (Fault::Takeover, 1), (Fault::KillSequencer, 1)];

/// Most storage nodes that are replaced in one run: all that there were at first.
const REPLACEMENTS_MAX: usize = 3;

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is about.
    pub scenario: Scenario,
    /// Engines.
    pub engines: usize,
    /// Clients of each engine.
    pub clients: usize,
    /// Most appends that a client has under way at once.
    pub burst: u64,
    /// Longest pause of a client, in ns.
    pub think_ns: u64,
    /// How long nothing fails at first, in ns: a cluster takes a while to come up.
    pub settle_ns: u64,
    /// How long things fail then, in ns.
    pub faults_ns: u64,
    /// Mean time between two faults, in ns.
    pub every_ns: u64,
    /// Longest duration of a fault that lasts, in ns.
    pub lasts_ns: u64,
    /// Faults that occur, with their weights.
    pub faults: Vec<(Fault, u64)>,
    /// Storage nodes that are replaced, one after another.
    pub replacements: usize,
    /// How often whoever is in charge looks into the metadata store, in ns.
    pub look_ns: u64,
    /// An engine's lease, in ms.
    pub lease_ms: u32,
    /// How long a sequencer may be silent before the other one takes over, in ms.
    pub suspect_ms: u32,
    /// Most time that a turn of a machine takes, in ns.
    pub turn_ns: u64,
    /// The network.
    pub net: NetProfile,
    /// The disks.
    pub disk: DiskProfile,
}

impl Plan {
    /// The plan of a seed that is about this.
    #[must_use]
    pub fn about(scenario: Scenario, seed: u64) -> Self {
        let mut random = Random::new(seed, Concern::Plan, scenario as u64 + 1);
        let plan = match scenario {
            Scenario::Log => Self::log(&mut random),
            Scenario::Bulk => Self::bulk(&mut random),
            Scenario::Functions => Self::functions(&mut random),
        };
        if scenario == Scenario::Bulk {
            return plan;
        }
        let mut random = Random::new(seed, Concern::Plan, scenario as u64 + 200);
        let plan = if random.chance(150_000) { plan.of_reigns(&mut random) } else { plan };
        let mut random = Random::new(seed, Concern::Plan, scenario as u64 + 100);
        if random.chance(350_000) { plan.with_replacements(&mut random) } else { plan }
    }

    /// The same, where nothing fails but reigns, with time between for the log to grow, and clients
    /// that are seldom all waiting when one begins: what two reigns disagree on is much then.
    fn of_reigns(self, random: &mut Random) -> Self {
        Self {
            engines: self.engines.max(2),
            clients: 2 + random.index(4),
            burst: 4 + random.below(12),
            think_ns: [MILLI, 5 * MILLI][random.index(2)],
            settle_ns: 60 * MILLI,
            every_ns: random.within(20, 60) * MILLI,
            lasts_ns: [5, 20, 60][random.index(3)] * MILLI,
            faults: REIGNS.to_vec(),
            ..self
        }
    }

    /// The same for longer, with storage nodes that are replaced.
    fn with_replacements(self, random: &mut Random) -> Self {
        Self {
            replacements: 1 + random.index(REPLACEMENTS_MAX),
            look_ns: [10, 50, 1000][random.index(3)] * MILLI,
            faults_ns: 2 * self.faults_ns,
            ..self
        }
    }

    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let scenario = match Random::new(seed, Concern::Plan, 0).below(100) {
            0..6 => Scenario::Bulk,
            6..40 => Scenario::Functions,
            _ => Scenario::Log,
        };
        Self::about(scenario, seed)
    }

    fn log(random: &mut Random) -> Self {
        let mut faults: Vec<(Fault, u64)> = FAULTS.to_vec();
        // Some runs know only a few kinds of faults, so that each is alone once in a while.
        if random.chance(400_000) {
            for (_, weight) in &mut faults {
                *weight *= u64::from(random.chance(300_000));
            }
            faults.retain(|(_, weight)| *weight > 0);
        }
        let torn = if random.chance(300_000) { 300_000 } else { 10_000 };
        let late = if random.chance(300_000) { 50_000 } else { 3_000 };
        Self {
            scenario: Scenario::Log,
            engines: 1 + random.index(3),
            clients: 1 + random.index(4),
            burst: 1 + random.below(6),
            think_ns: [100 * MICRO, MILLI, 5 * MILLI][random.index(3)],
            settle_ns: [0, 60 * MILLI][random.index(2)],
            faults_ns: random.within(100, 500) * MILLI,
            every_ns: random.skewed(4, 80) * MILLI,
            lasts_ns: [5, 40, 250][random.index(3)] * MILLI,
            faults,
            replacements: 0,
            look_ns: SECOND,
            lease_ms: [100, 400, 2000][random.index(3)],
            suspect_ms: [50, 100, 300][random.index(3)],
            turn_ns: [2 * MICRO, 20 * MICRO, 200 * MICRO][random.index(3)],
            net: NetProfile { torn, late: (late, 8 * MILLI), ..NetProfile::default() },
            disk: DiskProfile::default(),
        }
    }

    /// As for the log, with fewer faults: a root takes many appends.
    fn functions(random: &mut Random) -> Self {
        let plan = Self::log(random);
        Self {
            scenario: Scenario::Functions,
            engines: 2 + random.index(2),
            clients: 1 + random.index(3),
            every_ns: 2 * plan.every_ns,
            ..plan
        }
    }

    fn bulk(random: &mut Random) -> Self {
        let faults = vec![(Fault::Takeover, 2), (Fault::PowerOffAllStorage, 1)];
        Self {
            scenario: Scenario::Bulk,
            engines: 2,
            clients: 4,
            burst: 64,
            think_ns: 20 * MICRO,
            settle_ns: 60 * MILLI,
            faults_ns: random.within(40, 80) * MILLI,
            every_ns: 40 * MILLI,
            lasts_ns: 5 * MILLI,
            faults,
            replacements: 0,
            look_ns: SECOND,
            lease_ms: 2000,
            suspect_ms: 100,
            turn_ns: 100 * MICRO,
            net: NetProfile { torn: 2000, ..NetProfile::default() },
            disk: DiskProfile::default(),
        }
    }
}
