//! Seal, Watermark, and what a node does when it is behind.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use halfmoon_log::limits::WRITE_MAX_BYTES;
use halfmoon_log::*;
use halfmoon_wire::*;
use proptest::prelude::*;

const CONFIG: LogConfig = LogConfig {
    id: LogId(7),
    segment_bytes: 1 << 20,
    contents: Contents::Records,
    tail_bytes: 1 << 20,
};

fn record(seq: u64, epoch: u64, salt: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    NewRecord {
        seq: SeqNum(seq),
        epoch: Epoch(epoch),
        time_ns: salt,
        origin: Origin::default(),
        floor: SeqNum(0),
        kind: RecordKind::Data,
        tags: &[],
        payload: b"payload",
    }
    .encode(&mut bytes);
    bytes
}

fn records(seqs: std::ops::RangeInclusive<u64>, epoch: u64) -> Vec<u8> {
    seqs.flat_map(|seq| record(seq, epoch, epoch)).collect()
}

fn history(starts: &[(u64, u64)]) -> Vec<EpochStart> {
    starts
        .iter()
        .map(|(epoch, first)| EpochStart { epoch: Epoch(*epoch), first: SeqNum(*first) })
        .collect()
}

const fn at(segment: SegmentId, offset: u64) -> u64 {
    (segment.0 - 1) * CONFIG.segment_bytes + offset
}

struct Node {
    replica: Replica,
    flying: Vec<u64>,
    buffer: Vec<u8>,
    disk: Vec<u8>,
}

impl Node {
    fn new(config: ReplicaConfig) -> Self {
        let log = Log::resume(CONFIG, Recovered::empty());
        let mut node = Self {
            replica: Replica::new(config, log),
            flying: Vec::new(),
            buffer: vec![0; WRITE_MAX_BYTES],
            disk: Vec::new(),
        };
        node.settle();
        node
    }

    fn write(&mut self) {
        while let Some(write) = self.replica.next_write(SegmentId(u64::MAX), &mut self.buffer) {
            self.flying.push(write.number);
            let start = usize::try_from(at(write.segment, write.offset)).unwrap();
            self.disk.resize(self.disk.len().max(start + write.len), 0);
            self.disk[start..start + write.len].copy_from_slice(&self.buffer[..write.len]);
        }
    }

    /// All records that someone who names this epoch may read.
    fn read(&self, epoch: u64, raw: bool) -> Vec<u8> {
        let (mut out, mut from) = (Vec::new(), SeqNum(1));
        loop {
            let mut piece = Vec::new();
            let (end, plan) = self.replica.read((Epoch(epoch), raw), from, 1 << 20, &mut piece);
            assert_ne!(plan, ReadPlan::Refused);
            if let ReadPlan::Disk(run) = plan {
                let start = usize::try_from(at(run.segment, run.offset)).unwrap();
                let bytes = &self.disk[start..start + usize::try_from(run.bytes).unwrap()];
                extract(CONFIG.id, &run, bytes, from, 1 << 20, &mut piece).unwrap();
            }
            out.extend_from_slice(&piece);
            from = Records::new(&out).last().map_or(from, |last| last.unwrap().seq().next());
            if from > end {
                return out;
            }
        }
    }

    fn settle(&mut self) {
        loop {
            self.write();
            if self.flying.is_empty() {
                return;
            }
            for number in std::mem::take(&mut self.flying) {
                self.replica.completed(number);
            }
        }
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.replica.poll_effect()).collect()
    }

    fn welcome(&mut self, starts: &[(u64, u64)], window_start: u64, tail: u64) {
        let history = history(starts);
        self.replica
            .welcome(WelcomeInfo {
                epoch: history.last().unwrap().epoch,
                history: &history,
                window_start: SeqNum(window_start),
                tail: SeqNum(tail),
            })
            .unwrap();
    }

    fn stream(&mut self, epoch: u64, first: u64, bytes: &[u8]) -> StreamOutcome {
        self.replica.stream(Epoch(epoch), SeqNum(first), bytes).unwrap()
    }

    fn joined(epoch: u64) -> Self {
        let mut node = Self::new(ReplicaConfig::Flush);
        node.welcome(&[(epoch, 1)], 1, 0);
        node.settle();
        node.effects();
        node
    }
}

fn watermark(epoch: u64, seq: u64) -> Effect {
    Effect::Watermark { epoch: Epoch(epoch), seq: SeqNum(seq) }
}

#[test]
fn a_watermark_follows_the_flush_and_not_the_arrival() {
    let mut node = Node::joined(1);
    assert_eq!(node.stream(1, 1, &records(1..=3, 1)), StreamOutcome::Taken);
    node.write();
    assert_eq!(node.effects(), []);
    node.settle();
    assert_eq!(node.effects(), [watermark(1, 3)]);
}

#[test]
fn flushes_that_complete_out_of_order_publish_only_the_prefix() {
    let mut node = Node::joined(1);
    for seq in 1..=3 {
        node.stream(1, seq, &records(seq..=seq, 1));
        node.write();
    }
    let [first, second, third] = node.flying[..] else { panic!("three writes under way") };
    node.replica.completed(third);
    node.replica.completed(second);
    assert_eq!(node.effects(), []);
    node.replica.completed(first);
    assert_eq!(node.effects(), [watermark(1, 3)]);
}

#[test]
fn a_seal_is_answered_only_when_it_is_durable_and_silences_the_old_epoch() {
    let mut node = Node::joined(1);
    node.stream(1, 1, &records(1..=2, 1));
    node.write();
    node.replica.seal(9, Epoch(2));
    assert_eq!(node.effects(), []);
    // The old epoch's flush completes after the seal: it counts in the answer, and is not published.
    let first = node.flying.remove(0);
    node.replica.completed(first);
    assert_eq!(node.effects(), []);
    assert_eq!(node.stream(1, 3, &records(3..=3, 1)), StreamOutcome::Ignored);
    node.settle();
    let sealed = Effect::Sealed {
        asker: 9,
        promised: Epoch(2),
        history: history(&[(1, 1)]),
        end: SeqNum(2),
    };
    assert_eq!(node.effects(), [sealed]);
}

#[test]
fn an_old_epoch_is_neither_sealed_nor_welcomed() {
    let mut node = Node::joined(1);
    node.replica.seal(9, Epoch(5));
    node.settle();
    node.effects();
    node.replica.seal(8, Epoch(4));
    let [Effect::Sealed { asker: 8, promised: Epoch(5), .. }] = node.effects()[..] else {
        panic!("refused by naming the higher promise");
    };
    node.welcome(&[(4, 1)], 1, 7);
    assert_eq!(node.effects(), []);
    assert_eq!(node.replica.epoch(), None);
}

#[test]
fn a_divergent_suffix_is_cut_before_anything_is_published() {
    let mut node = Node::joined(1);
    node.stream(1, 1, &records(1..=5, 1));
    node.settle();
    node.effects();
    // Epoch 3 chose a log that has only three of epoch 1's records.
    node.welcome(&[(1, 1), (3, 4)], 1, 6);
    let follow = Effect::Follow { epoch: Epoch(3), from: SeqNum(4) };
    assert_eq!(node.effects(), [follow]);
    node.settle();
    assert_eq!(node.effects(), [watermark(3, 3)]);
    node.stream(3, 4, &records(4..=6, 3));
    node.settle();
    assert_eq!(node.effects(), [watermark(3, 6)]);
    assert_eq!(node.replica.log().accepted().history, history(&[(1, 1), (3, 4)]));
    assert_eq!(node.replica.log().accepted().promised, Epoch(3));
}

#[test]
fn records_that_contradict_the_announced_history_are_refused() {
    let mut node = Node::joined(2);
    let error = node.replica.stream(Epoch(2), SeqNum(1), &records(1..=2, 1)).unwrap_err();
    assert!(matches!(error, StreamError::History { .. }), "{error}");
    let mut torn = records(1..=2, 2);
    torn.truncate(torn.len() - 8);
    let error = node.replica.stream(Epoch(2), SeqNum(1), &torn).unwrap_err();
    assert!(matches!(error, StreamError::Follow(FollowError::Record(_))), "{error}");
    let holed: Vec<u8> = [record(1, 2, 0), record(3, 2, 0)].concat();
    let error = node.replica.stream(Epoch(2), SeqNum(1), &holed).unwrap_err();
    assert!(matches!(error, StreamError::Follow(FollowError::Position { .. })), "{error}");
    assert_eq!(node.replica.log().accepted().end, SeqNum(0));
}

#[test]
fn what_comes_twice_is_taken_once_and_a_gap_is_asked_for_once() {
    let mut node = Node::joined(1);
    node.stream(1, 1, &records(1..=3, 1));
    node.stream(1, 2, &records(2..=5, 1));
    assert_eq!(node.replica.log().accepted().end, SeqNum(5));
    assert_eq!(node.stream(1, 7, &records(7..=7, 1)), StreamOutcome::Ignored);
    assert_eq!(node.stream(1, 8, &records(8..=8, 1)), StreamOutcome::Ignored);
    assert_eq!(node.effects(), [Effect::Follow { epoch: Epoch(1), from: SeqNum(6) }]);
    assert_eq!(node.stream(1, 6, &records(6..=8, 1)), StreamOutcome::Taken);
}

#[test]
fn what_lies_below_the_window_comes_from_a_peer() {
    let mut node = Node::new(ReplicaConfig::Flush);
    node.welcome(&[(1, 1)], 6, 9);
    let fetch = |from| Effect::Fetch { epoch: Epoch(1), from: SeqNum(from) };
    assert_eq!(node.effects(), [fetch(1)]);
    let take = |node: &mut Node, first, bytes: &[u8]| {
        node.replica.fetched(Epoch(1), SeqNum(first), bytes).unwrap()
    };
    assert_eq!(take(&mut node, 1, &[]), StreamOutcome::Ignored);
    assert_eq!(take(&mut node, 1, &records(1..=3, 1)), StreamOutcome::Taken);
    assert_eq!(node.effects(), [fetch(4)]);
    assert_eq!(take(&mut node, 4, &records(4..=6, 1)), StreamOutcome::Taken);
    assert_eq!(node.effects(), [Effect::Follow { epoch: Epoch(1), from: SeqNum(7) }]);
}

#[test]
fn a_node_without_room_takes_no_more_and_follows_anew() {
    let mut node = Node::joined(1);
    let mut next = 1;
    loop {
        let bytes = records(next..=next + 999, 1);
        if node.stream(1, next, &bytes) == StreamOutcome::Full {
            break;
        }
        next += 1000;
    }
    assert_eq!(node.effects(), []);
    node.settle();
    let effects = node.effects();
    let follow = Effect::Follow { epoch: Epoch(1), from: SeqNum(next) };
    assert_eq!(effects.iter().filter(|effect| **effect == follow).count(), 1);
    let bytes = records(next..=next, 1);
    assert_eq!(node.stream(1, next, &bytes), StreamOutcome::Taken);
}

#[test]
fn reads_are_answered_only_in_the_epoch_they_name() {
    let mut node = Node::joined(1);
    node.stream(1, 1, &records(1..=4, 1));
    node.settle();
    let mut out = Vec::new();
    let read = |node: &Node, epoch, raw, out: &mut Vec<u8>| {
        node.replica.read((Epoch(epoch), raw), SeqNum(2), 1 << 20, out)
    };
    assert_eq!(read(&node, 1, false, &mut out), (SeqNum(4), ReadPlan::Ready));
    assert_eq!(Records::new(&out).count(), 3);
    assert_eq!(read(&node, 1, true, &mut out).1, ReadPlan::Refused);
    node.replica.seal(1, Epoch(2));
    assert_eq!(read(&node, 2, true, &mut out).1, ReadPlan::Refused);
    node.settle();
    assert_eq!(read(&node, 1, false, &mut out).1, ReadPlan::Refused);
    assert_eq!(read(&node, 2, false, &mut out).1, ReadPlan::Refused);
    assert_eq!(read(&node, 2, true, &mut out), (SeqNum(4), ReadPlan::Ready));
}

#[test]
fn in_memory_quorum_a_watermark_does_not_wait_for_the_disk() {
    let mut node = Node::new(ReplicaConfig::MemoryQuorum);
    node.welcome(&[(1, 1)], 1, 0);
    node.settle();
    node.effects();
    node.stream(1, 1, &records(1..=3, 1));
    assert_eq!(node.effects(), [watermark(1, 3)]);
}

#[derive(Clone, Debug)]
enum Step {
    Order(u64),
    Stream { node: usize },
    Write { node: usize },
    Complete { node: usize, which: usize },
    Elect { quorum: usize },
    Welcome { node: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0usize..3;
    prop_oneof![
        4 => (1u64..4).prop_map(Step::Order),
        8 => node.clone().prop_map(|node| Step::Stream { node }),
        8 => node.clone().prop_map(|node| Step::Write { node }),
        8 => (node.clone(), 0usize..4).prop_map(|(node, which)| Step::Complete { node, which }),
        1 => node.clone().prop_map(|quorum| Step::Elect { quorum }),
        3 => node.prop_map(|node| Step::Welcome { node }),
    ]
}

/// A sequencer that obeys the rules, three nodes, and an observer that counts watermarks.
struct Cluster {
    nodes: Vec<Node>,
    epoch: u64,
    /// The log of each epoch's sequencer: epochs of the records.
    log: Vec<u64>,
    marks: Vec<(u64, u64)>,
    committed: Vec<u64>,
}

impl Cluster {
    fn starts(&self) -> Vec<(u64, u64)> {
        let mut starts: Vec<(u64, u64)> = Vec::new();
        for (index, epoch) in self.log.iter().enumerate() {
            if starts.last().is_none_or(|(last, _)| last < epoch) {
                starts.push((*epoch, index as u64 + 1));
            }
        }
        starts
    }

    fn elect(&mut self, left_out: usize) {
        self.epoch += 1;
        let epoch = self.epoch;
        let mut best: Option<(Epoch, SeqNum, usize)> = None;
        for index in (0..3).filter(|index| *index != left_out) {
            let node = &mut self.nodes[index];
            node.replica.seal(0, Epoch(epoch));
            node.settle();
            let sealed = node.effects().into_iter().find_map(|effect| match effect {
                Effect::Sealed { promised, history, end, .. } => Some((promised, history, end)),
                Effect::Watermark { .. } | Effect::Follow { .. } | Effect::Fetch { .. } => None,
            });
            let (promised, history, end) = sealed.expect("a settled seal is answered");
            assert_eq!(promised, Epoch(epoch));
            let last = history.last().map_or(Epoch(0), |start| start.epoch);
            best = best.max(Some((last, end, index)));
        }
        let (_, end, index) = best.unwrap();
        let bytes = self.nodes[index].read(epoch, true);
        assert_eq!(Records::new(&bytes).count() as u64, end.0);
        self.log = Records::new(&bytes).map(|record| record.unwrap().epoch().0).collect();
        self.log.push(epoch);
    }

    fn observe(&mut self, node: usize) {
        for effect in self.nodes[node].effects() {
            if let Effect::Watermark { epoch, seq } = effect {
                self.marks[node] = (epoch.0, seq.0);
            }
        }
        let opening = self.starts().last().map_or(u64::MAX, |(_, first)| *first);
        let mut current: Vec<u64> = self
            .marks
            .iter()
            .filter(|(epoch, seq)| *epoch == self.epoch && *seq >= opening)
            .map(|(_, seq)| *seq)
            .collect();
        current.sort_unstable();
        if current.len() < 2 {
            return;
        }
        let upto = usize::try_from(current[current.len() - 2]).unwrap();
        let committed = &self.log[..upto];
        let common = committed.len().min(self.committed.len());
        assert_eq!(committed[..common], self.committed[..common], "a committed record changed");
        if committed.len() > self.committed.len() {
            self.committed = committed.to_vec();
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Order(count) => {
                if self.epoch > 0 {
                    self.log.extend((0..count).map(|_| self.epoch));
                }
            }
            Step::Elect { quorum } => {
                self.elect(quorum);
                assert!(
                    self.log.starts_with(&self.committed),
                    "the new epoch lacks what was committed"
                );
            }
            Step::Welcome { node } => {
                if self.epoch > 0 {
                    let (starts, tail) = (self.starts(), self.log.len() as u64);
                    self.nodes[node].welcome(&starts, 1, tail);
                    self.observe(node);
                }
            }
            Step::Stream { node } => {
                let from = self.nodes[node].replica.log().accepted().end.0;
                let bytes: Vec<u8> = (from..self.log.len() as u64)
                    .flat_map(|index| {
                        let epoch = self.log[usize::try_from(index).unwrap()];
                        record(index + 1, epoch, epoch)
                    })
                    .collect();
                self.nodes[node].stream(self.epoch, from + 1, &bytes);
            }
            Step::Write { node } => self.nodes[node].write(),
            Step::Complete { node, which } => {
                let flying = &mut self.nodes[node].flying;
                if !flying.is_empty() {
                    let number = flying.remove(which % flying.len());
                    self.nodes[node].replica.completed(number);
                    self.observe(node);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_two_nodes_hold_survives_every_change_of_epoch(
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let nodes = (0..3).map(|_| Node::new(ReplicaConfig::Flush)).collect();
        let mut cluster =
            Cluster { nodes, epoch: 0, log: Vec::new(), marks: vec![(0, 0); 3], committed: vec![] };
        for step in &steps {
            cluster.apply(step);
        }
    }
}
