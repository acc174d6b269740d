//! What goes wrong, and when: drawn from a seed, before anything runs.

use std::fmt;
use std::time::Duration;

/// A node of the cluster, by its place in [`NODES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Node(pub(super) usize);

/// A node as `halfmoon run` is told of it.
pub(super) struct Spec {
    pub(super) role: &'static str,
    pub(super) id: u32,
}

/// All nodes. The metadata store is one: it can be cut off, too.
pub(super) const NODES: [Spec; 8] = [
    Spec { role: "storage", id: 1 },
    Spec { role: "storage", id: 2 },
    Spec { role: "storage", id: 3 },
    Spec { role: "sequencer", id: 10 },
    Spec { role: "sequencer", id: 11 },
    Spec { role: "engine", id: 21 },
    Spec { role: "engine", id: 22 },
    Spec { role: "etcd", id: 40 },
];

pub(super) const STORAGE: [Node; 3] = [Node(0), Node(1), Node(2)];
pub(super) const ENGINES: [Node; 2] = [Node(5), Node(6)];
pub(super) const ETCD: Node = Node(7);

impl Node {
    /// The nodes of a cluster, with or without a metadata store of its own.
    pub(super) fn all(etcd: bool) -> impl Iterator<Item = Self> {
        (0..NODES.len()).map(Self).filter(move |node| etcd || *node != ETCD)
    }

    pub(super) fn role(self) -> &'static str {
        NODES[self.0].role
    }

    pub(super) fn id(self) -> u32 {
        NODES[self.0].id
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ETCD => f.write_str("etcd"),
            node => write!(f, "{}-{}", node.role(), node.id()),
        }
    }
}

/// Kinds of faults, as they are counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Kill,
    KillAll,
    Pause,
    Partition,
    OneWay,
    SlowDisk,
    FullDisk,
    ClockStep,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill -9",
            Self::KillAll => "kill -9 of all",
            Self::Pause => "SIGSTOP",
            Self::Partition => "partition",
            Self::OneWay => "one-way partition",
            Self::SlowDisk => "slow disk",
            Self::FullDisk => "full disk",
            Self::ClockStep => "clock step",
        })
    }
}

/// What is done to whom. What ends is ended by whoever carries it out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// Killed, and not started again before the end.
    Kill(Node),
    /// The sequencer in charge at that moment is killed.
    KillInCharge,
    /// All nodes but the metadata store are killed at once.
    KillAll,
    /// Stopped, and goes on at the end as if nothing had happened.
    Pause(Node),
    /// No packet passes between these nodes and the others, in either direction.
    Partition(Vec<Node>),
    /// No packet of the one reaches any of the others.
    OneWay(Node, Vec<Node>),
    /// What the node writes and reads goes at this many bits per second.
    SlowDisk(Node, u64),
    /// There is not a byte left on the node's file system.
    FullDisk(Node),
    /// The node's wall clock shows so many seconds more (or less) than the others', for good.
    ClockStep(Node, i64),
}

/// One fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    /// When it begins, after the start of the load.
    pub(super) at: Duration,
    /// How long it lasts.
    pub(super) lasting: Duration,
    pub(super) what: What,
}

impl What {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Kill(_) | Self::KillInCharge => Kind::Kill,
            Self::KillAll => Kind::KillAll,
            Self::Pause(_) => Kind::Pause,
            Self::Partition(_) => Kind::Partition,
            Self::OneWay(..) => Kind::OneWay,
            Self::SlowDisk(..) => Kind::SlowDisk,
            Self::FullDisk(_) => Kind::FullDisk,
            Self::ClockStep(..) => Kind::ClockStep,
        }
    }

    /// The pairs of nodes between which nothing passes, from the first to the second.
    pub(super) fn cuts(&self, all: &[Node]) -> Vec<(Node, Node)> {
        let others = |some: &[Node]| -> Vec<Node> {
            all.iter().copied().filter(|node| !some.contains(node)).collect()
        };
        match self {
            Self::Partition(some) => {
                let pairs = some.iter().flat_map(|a| others(some).into_iter().map(|b| (*a, b)));
                pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect()
            }
            Self::OneWay(from, to) => to.iter().map(|to| (*from, *to)).collect(),
            Self::Kill(_)
            | Self::KillInCharge
            | Self::KillAll
            | Self::Pause(_)
            | Self::SlowDisk(..)
            | Self::FullDisk(_)
            | Self::ClockStep(..) => Vec::new(),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &[Node]| {
            let names: Vec<String> = nodes.iter().map(Node::to_string).collect();
            names.join(", ")
        };
        match self {
            Self::Kill(node) => write!(f, "kill -9 of {node}"),
            Self::KillInCharge => f.write_str("kill -9 of the sequencer in charge"),
            Self::KillAll => f.write_str("kill -9 of all nodes at once"),
            Self::Pause(node) => write!(f, "SIGSTOP of {node}"),
            Self::Partition(some) => write!(f, "partition of {} from the others", list(some)),
            Self::OneWay(from, to) => write!(f, "nothing passes from {from} to {}", list(to)),
            Self::SlowDisk(node, bits) => write!(f, "disk of {node} at {} kbit/s", bits / 1000),
            Self::FullDisk(node) => write!(f, "disk of {node} is full"),
            Self::ClockStep(node, by) => write!(f, "clock of {node} steps by {by} s"),
        }
    }
}

/// What this machine can do besides signals and partitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Able {
    pub(super) etcd: bool,
    pub(super) full_disk: bool,
    pub(super) slow_disk: bool,
    pub(super) clock_step: bool,
}

/// Mean time from one fault to the next.
const EVERY: Duration = Duration::from_millis(3300);
/// What a fault lasts: long enough to be noticed by whoever waits for a silent node, and too short
/// for the whole run to be a standstill.
const LASTS_MS: std::ops::Range<u64> = 300..4500;
/// Rates of a slow disk: a small durable write then takes some ms, or some hundred.
const SLOW_BITS_PER_S: [u64; 3] = [500_000, 2_000_000, 10_000_000];
/// Farthest that a clock is put ahead or back, in seconds.
const STEP_MAX_S: u64 = 3600;

/// Of so many faults, in shuffled order, so many are of each kind.
const DECK: [(Kind, usize); 8] = [
    (Kind::Kill, 5),
    (Kind::KillAll, 1),
    (Kind::Pause, 4),
    (Kind::Partition, 4),
    (Kind::OneWay, 4),
    (Kind::SlowDisk, 2),
    (Kind::FullDisk, 2),
    (Kind::ClockStep, 2),
];

/// The faults of a run, in the order of their beginning.
pub(super) fn draw(seed: u64, lasting: Duration, able: Able) -> Vec<Fault> {
    let mut random = Random(seed);
    let all: Vec<Node> = Node::all(able.etcd).collect();
    let count = usize::try_from(lasting.as_millis() / EVERY.as_millis()).unwrap_or(usize::MAX);
    let mut deck: Vec<Kind> = Vec::new();
    let mut faults = Vec::new();
    for number in 0..u32::try_from(count).unwrap_or(u32::MAX) {
        if deck.is_empty() {
            deck = shuffled(&mut random, able);
        }
        let Some(kind) = deck.pop() else { break };
        let late = Duration::from_millis(random.below(EVERY.as_millis() as u64));
        let mut lasts = Duration::from_millis(LASTS_MS.start + random.below(LASTS_MS.end));
        if kind == Kind::FullDisk {
            // Until the node needs more room.
            lasts += Duration::from_secs(2);
        }
        let what = aim(&mut random, kind, &all);
        faults.push(Fault { at: EVERY * number + late, lasting: lasts, what });
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

/// Etcd goes away for a while; when it is back, the sequencer in charge dies.
pub(super) fn outage(of: Duration) -> Vec<Fault> {
    let second = Duration::from_secs(1);
    let (before, between) = (5 * second, 3 * second);
    vec![
        Fault { at: before, lasting: of, what: What::Kill(ETCD) },
        Fault { at: before + of + between, lasting: second, what: What::KillInCharge },
    ]
}

fn shuffled(random: &mut Random, able: Able) -> Vec<Kind> {
    let can = |kind: Kind| match kind {
        Kind::SlowDisk => able.slow_disk,
        Kind::FullDisk => able.full_disk,
        Kind::ClockStep => able.clock_step,
        Kind::Kill | Kind::KillAll | Kind::Pause | Kind::Partition | Kind::OneWay => true,
    };
    let possible = DECK.into_iter().filter(|(kind, _)| can(*kind));
    let mut deck: Vec<Kind> =
        possible.flat_map(|(kind, count)| std::iter::repeat_n(kind, count)).collect();
    for last in (1..deck.len()).rev() {
        let other = random.index(last + 1);
        deck.swap(last, other);
    }
    deck
}

fn aim(random: &mut Random, kind: Kind, all: &[Node]) -> What {
    let node = all[random.index(all.len())];
    let others: Vec<Node> = all.iter().copied().filter(|other| *other != node).collect();
    let storage = STORAGE[random.index(STORAGE.len())];
    match kind {
        // The one in charge is worth more than one of eight kills.
        Kind::Kill if random.below(3) == 0 => What::KillInCharge,
        Kind::Kill => What::Kill(node),
        Kind::KillAll => What::KillAll,
        Kind::Pause => What::Pause(node),
        Kind::Partition if random.below(2) == 0 => What::Partition(vec![node]),
        Kind::Partition => {
            let mut some: Vec<Node> =
                all.iter().copied().filter(|_| random.below(2) == 0).collect();
            if some.is_empty() || some.len() == all.len() {
                some = vec![node];
            }
            What::Partition(some)
        }
        Kind::OneWay if random.below(2) == 0 => What::OneWay(node, others),
        Kind::OneWay => What::OneWay(node, vec![others[random.index(others.len())]]),
        Kind::SlowDisk => {
            What::SlowDisk(storage, SLOW_BITS_PER_S[random.index(SLOW_BITS_PER_S.len())])
        }
        Kind::FullDisk => What::FullDisk(storage),
        Kind::ClockStep => {
            // Whose clock is looked at: the sequencers order by theirs, engines by theirs.
            let (ahead, by) = (random.below(2) == 0, 1 + random.below(STEP_MAX_S));
            let by = i64::try_from(by).unwrap_or(1);
            let node = if node == ETCD { ENGINES[0] } else { node };
            What::ClockStep(node, if ahead { by } else { -by })
        }
    }
}

/// A small generator (SplitMix64), so that a plan is a function of its seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Able = Able { etcd: true, full_disk: true, slow_disk: true, clock_step: true };

    #[test]
    fn a_seed_draws_the_same_faults_again_and_another_draws_others() {
        let minute = Duration::from_secs(60);
        assert_eq!(draw(7, minute, ALL), draw(7, minute, ALL));
        assert_ne!(draw(7, minute, ALL), draw(8, minute, ALL));
    }

    #[test]
    fn in_the_usual_time_there_are_faults_of_all_kinds_and_none_that_this_machine_cannot_do() {
        for seed in 0..50 {
            let lasting = Duration::from_secs(80);
            let kinds = |able| -> std::collections::BTreeSet<Kind> {
                draw(seed, lasting, able).iter().map(|fault| fault.what.kind()).collect()
            };
            assert_eq!(kinds(ALL).len(), DECK.len(), "{seed}");
            let none = Able { etcd: false, full_disk: false, slow_disk: false, clock_step: false };
            assert_eq!(kinds(none).len(), DECK.len() - 3, "{seed}");
            let targets_etcd = |fault: &Fault| fault.what.to_string().contains("etcd");
            assert!(!draw(seed, lasting, none).iter().any(targets_etcd), "{seed}");
        }
    }

    #[test]
    fn a_partition_cuts_both_ways_and_a_one_way_partition_one() {
        let all: Vec<Node> = (0..4).map(Node).collect();
        let cuts = What::Partition(vec![Node(0), Node(1)]).cuts(&all);
        assert_eq!(cuts.len(), 8);
        assert!(cuts.contains(&(Node(0), Node(2))) && cuts.contains(&(Node(2), Node(0))));
        assert!(!cuts.contains(&(Node(0), Node(1))));
        assert_eq!(What::OneWay(Node(3), vec![Node(1)]).cuts(&all), [(Node(3), Node(1))]);
    }
}
