use halfmoon_wire::{
    Append, Incarnation, LocalId, RecordKind, RecordRef, Refusal, Tag, agreement, append_view,
};
use proptest::prelude::*;

use crate::commit::Commit;
use crate::order::Verdict;

use super::*;

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const WINDOW: usize = 1 << 30;

/// A storage node as far as recovery is concerned: what it has promised, and its log.
#[derive(Clone, Debug, Default)]
struct Node {
    promised: u64,
    log: Vec<Vec<u8>>,
}

impl Node {
    fn sealed(&self) -> SealedLog {
        let mut history: Vec<EpochStart> = Vec::new();
        for bytes in &self.log {
            let record = RecordRef::parse(bytes).unwrap();
            if history.last().is_none_or(|last| last.epoch < record.epoch()) {
                history.push(EpochStart { epoch: record.epoch(), first: record.seq() });
            }
        }
        SealedLog { history, end: SeqNum(self.log.len() as u64) }
    }
}

/// One sequencer and what it knows. It lives on when another takes over.
struct Reign {
    recovered: Recovered,
    commit: Commit,
}

impl Reign {
    fn epoch(&self) -> u64 {
        self.recovered.order.epoch().0
    }

    fn log(&self) -> Vec<Vec<u8>> {
        let (mut log, mut at) = (Vec::new(), SeqNum(1));
        while let Some(span) = self.recovered.window.span(at, 1 << 20) {
            log.extend(Records::new(span.records).map(|record| record.unwrap().bytes().to_vec()));
            at = span.next;
        }
        log
    }

    fn append(&mut self, local: u64, position: u64) -> Verdict {
        let append = Append {
            local: LocalId(local),
            kind: RecordKind::Data,
            floor: SeqNum::MAX,
            conditions: vec![halfmoon_wire::Condition::Length { tag: Tag(1), length: position }],
            tags: vec![Tag(1)],
            payload: b"",
        };
        let order = &mut self.recovered.order;
        let bytes = Message::Append { epoch: order.epoch(), append }.to_bytes();
        let view = append_view(&bytes).unwrap().unwrap().1;
        order.append(0, NodeId(9), Incarnation(1), &view, &mut self.recovered.window)
    }
}

struct Cluster {
    nodes: [Node; 3],
    reigns: Vec<Reign>,
    /// What some reign has known to be committed.
    committed: Vec<Vec<u8>>,
    highest: u64,
    /// What a standby has learned, and of which reign.
    learned: Learner,
    watched: Option<usize>,
}

impl Cluster {
    fn new() -> Self {
        let (nodes, learned) = (Default::default(), Learner::new(0));
        Self { nodes, reigns: vec![], committed: vec![], highest: 0, learned, watched: None }
    }

    /// The standby hears up to `count` records of the reign's stream, and what is committed in it.
    fn learn(&mut self, reign: usize, count: usize) {
        let Some(watched) = self.reigns.get(reign) else { return };
        let (tail, log) = (watched.recovered.order.tail(), watched.log());
        if self.watched != Some(reign) {
            self.learned.agree(&watched.recovered.history, tail);
            self.watched = Some(reign);
        }
        let known = usize::try_from(self.learned.end().0).unwrap();
        let more: Vec<u8> = log.into_iter().skip(known).take(count).flatten().collect();
        self.learned.extend(&more).unwrap();
        self.learned.committed(watched.commit.committed()).unwrap();
    }

    /// A new epoch by a standby. It is the one that anybody else would have begun.
    fn succeed(&mut self, answering: &[usize]) {
        let learned = std::mem::replace(&mut self.learned, Learner::new(0));
        self.watched = None;
        let before = self.nodes.clone();
        self.recover(answering, Some(learned));
        let by_learning = self.reigns.pop().unwrap();
        (self.nodes, self.highest) = (before, self.highest - 1);
        self.take_over(answering);
        let by_reading = self.reigns.last().unwrap();
        let tables = |reign: &Reign| format!("{:?}", reign.recovered.order);
        assert_eq!(tables(&by_learning), tables(by_reading));
        assert_eq!(by_learning.recovered.history, by_reading.recovered.history);
        assert_eq!(by_learning.log(), by_reading.log());
    }

    /// A new epoch by the nodes in `answering`, of which the log is read in pieces.
    fn take_over(&mut self, answering: &[usize]) {
        self.recover(answering, None);
    }

    fn recover(&mut self, answering: &[usize], learned: Option<Learner>) {
        self.highest += 1;
        let mut recovery = Recovery::new(Epoch(self.highest), vec![NODES.to_vec()], WINDOW);
        learned.into_iter().for_each(|learned| recovery.learned(learned));
        for index in answering {
            let node = &mut self.nodes[*index];
            node.promised = self.highest;
            recovery.sealed(NODES[*index], Epoch(self.highest), node.sealed()).unwrap();
        }
        while let Some((node, Message::ReadLog { token, from, .. })) = recovery.next_read() {
            let index = NODES.iter().position(|id| *id == node).unwrap();
            let skip = usize::try_from(from.0 - 1).unwrap();
            let records: Vec<u8> =
                self.nodes[index].log.iter().skip(skip).take(2).flatten().copied().collect();
            recovery.chunk(node, token, &records).unwrap();
        }
        let recovered = recovery.open(0).unwrap();
        let commit = Commit::new(recovered.opening, &NODES);
        self.reigns.push(Reign { recovered, commit });
    }

    /// The node takes up to `count` records of the reign's stream, and says so.
    fn follow(&mut self, reign: usize, node: usize, count: usize) {
        let Some(reign) = self.reigns.get_mut(reign) else { return };
        let (id, node) = (NODES[node], &mut self.nodes[node]);
        if node.promised > reign.epoch() {
            return;
        }
        node.promised = reign.epoch();
        let (theirs, ours) = (node.sealed(), reign.log());
        let agreed = agreement(
            (&theirs.history, theirs.end),
            (&reign.recovered.history, reign.recovered.order.tail()),
        );
        let agreed = usize::try_from(agreed.0).unwrap();
        node.log.truncate(agreed);
        assert!(ours.starts_with(&node.log), "what agrees by epochs agrees record for record");
        node.log.extend(ours.iter().skip(agreed).take(count).cloned());
        let durable = SeqNum(node.log.len() as u64);
        if let Some(up_to) = reign.commit.durable(id, durable, reign.recovered.order.tail()) {
            let up_to = usize::try_from(up_to.0).unwrap();
            let known = self.committed.len().min(up_to);
            assert_eq!(ours[..known], self.committed[..known], "what is committed stays");
            if up_to > known {
                self.committed = ours[..up_to].to_vec();
            }
        }
    }

    fn check(&self) {
        let mut locals: Vec<_> = self
            .committed
            .iter()
            .map(|bytes| RecordRef::parse(bytes).unwrap())
            .filter(|record| record.kind() == RecordKind::Data)
            .map(|record| record.origin().local)
            .collect();
        locals.sort_unstable();
        let count = locals.len();
        locals.dedup();
        assert_eq!(locals.len(), count, "a record is committed twice");
    }
}

#[derive(Clone, Debug)]
enum Op {
    TakeOver(Vec<usize>),
    Succeed(Vec<usize>),
    /// Reign from the newest back, records.
    Learn(usize, usize),
    /// Reign from the newest back, local id, position in the one tag.
    Append(usize, u64, u64),
    /// Reign from the newest back, node, records.
    Follow(usize, usize, usize),
}

fn ops() -> impl Strategy<Value = Op> {
    let quorum = Just(vec![0usize, 1, 2])
        .prop_shuffle()
        .prop_flat_map(|nodes| (2usize..=3).prop_map(move |count| nodes[..count].to_vec()));
    let reign = || prop_oneof![4 => Just(0usize), 1 => 1usize..3];
    prop_oneof![
        1 => quorum.clone().prop_map(Op::TakeOver),
        1 => quorum.prop_map(Op::Succeed),
        4 => (reign(), 0usize..4).prop_map(|(reign, n)| Op::Learn(reign, n)),
        5 => (reign(), 1u64..8, 0u64..4).prop_map(|(reign, id, at)| Op::Append(reign, id, at)),
        8 => (reign(), 0usize..3, 0usize..4).prop_map(|(reign, node, n)| Op::Follow(reign, node, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn what_is_committed_is_in_every_later_epoch_and_once(
        ops in prop::collection::vec(ops(), 0..60)
    ) {
        let mut cluster = Cluster::new();
        for op in ops {
            let back = |reign: usize| cluster.reigns.len().wrapping_sub(reign + 1);
            match op {
                Op::TakeOver(answering) => cluster.take_over(&answering),
                Op::Succeed(answering) => cluster.succeed(&answering),
                Op::Learn(reign, count) => cluster.learn(back(reign), count),
                Op::Append(reign, local, position) => {
                    let index = back(reign);
                    if let Some(reign) = cluster.reigns.get_mut(index) {
                        reign.append(local, position);
                    }
                }
                Op::Follow(reign, node, count) => cluster.follow(back(reign), node, count),
            }
            cluster.check();
        }
    }
}

#[test]
fn the_highest_epoch_outranks_the_longest_log() {
    let mut cluster = Cluster::new();
    cluster.take_over(&[0, 1]);
    for local in 1..=5 {
        cluster.reigns[0].append(local, local - 1);
    }
    // Epoch 1 has a long log on node 2, where nobody looks; epoch 2 commits on the others.
    cluster.nodes[2].promised = 1;
    cluster.follow(0, 2, 9);
    cluster.take_over(&[0, 1]);
    cluster.follow(1, 0, 9);
    cluster.follow(1, 1, 9);
    assert_eq!(cluster.committed.len(), 1);
    cluster.take_over(&[2, 0]);
    let recovered = &cluster.reigns[2].recovered;
    assert_eq!(recovered.source, NODES[0]);
    assert_eq!(recovered.history.iter().map(|start| start.epoch.0).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn tables_come_from_the_log_that_was_taken_and_not_from_what_was_learned_beyond_it() {
    let mut cluster = Cluster::new();
    cluster.take_over(&[0, 1]);
    assert_eq!(cluster.reigns[0].append(1, 0), Verdict::Ordered(SeqNum(2)));
    let lost = Refusal::Conflict { condition: 0, winner: SeqNum(2) };
    assert_eq!(cluster.reigns[0].append(2, 0), Verdict::Refused(lost));
    cluster.take_over(&[0, 1]);
    assert_eq!(cluster.reigns[1].append(2, 0), Verdict::Ordered(SeqNum(2)), "judged afresh");
}

#[test]
fn what_a_standby_learned_is_not_read_again_and_what_it_learned_beyond_the_log_is_forgotten() {
    let mut cluster = Cluster::new();
    cluster.take_over(&[0, 1]);
    for local in 1..=6 {
        cluster.reigns[0].append(local, local - 1);
    }
    for node in 0..2 {
        cluster.follow(0, node, 3);
    }
    cluster.learn(0, 9);
    assert_eq!((cluster.learned.known(), cluster.learned.end()), (SeqNum(3), SeqNum(7)));
    // One node has one more, which nobody knew to be committed.
    cluster.follow(0, 1, 1);
    let learned = std::mem::replace(&mut cluster.learned, Learner::new(0));
    let mut recovery = Recovery::new(Epoch(2), vec![NODES.to_vec()], WINDOW);
    recovery.learned(learned);
    for (id, node) in NODES.iter().zip(&cluster.nodes).take(2) {
        recovery.sealed(*id, Epoch(2), node.sealed()).unwrap();
    }
    assert_eq!(recovery.next_read(), None, "all of it was learned");
    let mut recovered = recovery.open(0).unwrap();
    assert_eq!((recovered.source, recovered.opening), (NODES[1], SeqNum(5)));
    assert_eq!(recovered.window.next(), SeqNum(6));
    let tag = recovered.order.table_sizes();
    assert_eq!(tag, (1, 3), "the records beyond the log have no place in any tag");
    recovered.order.committed(SeqNum(5));
}

fn sealed(history: &[(u64, u64)], end: u64) -> SealedLog {
    let start =
        |(epoch, first): &(u64, u64)| EpochStart { epoch: Epoch(*epoch), first: SeqNum(*first) };
    SealedLog { history: history.iter().map(start).collect(), end: SeqNum(end) }
}

#[test]
fn a_higher_promise_deposes() {
    let mut recovery = Recovery::new(Epoch(4), vec![NODES.to_vec()], WINDOW);
    let error = recovery.sealed(NODES[0], Epoch(5), sealed(&[], 0)).unwrap_err();
    assert_eq!(error, RecoveryError::Deposed { promised: Epoch(5) });
}

#[test]
fn every_member_set_must_have_a_quorum() {
    let new = vec![NodeId(3), NodeId(4), NodeId(5)];
    let mut recovery = Recovery::new(Epoch(4), vec![NODES.to_vec(), new.clone()], WINDOW);
    assert_eq!(recovery.nodes(), [1, 2, 3, 4, 5].map(NodeId));
    for node in [3, 4, 5] {
        recovery.sealed(NodeId(node), Epoch(4), sealed(&[], 0)).unwrap();
    }
    assert!(recovery.open(0).is_none(), "the old members may hold more");
    recovery.sealed(NodeId(1), Epoch(4), sealed(&[], 0)).unwrap();
    let recovered = recovery.open(0).unwrap();
    let span = recovered.window.span(SeqNum(1), 1).unwrap();
    let record = RecordRef::parse(span.records).unwrap();
    assert_eq!((record.kind(), record.epoch()), (RecordKind::Open, Epoch(4)));
    assert_eq!(Open::parse(record.payload()).unwrap().members, new);
}

#[test]
fn an_impossible_answer_is_refused() {
    let mut recovery = Recovery::new(Epoch(4), vec![NODES.to_vec()], WINDOW);
    for (promised, log) in [
        (3, sealed(&[], 0)),
        (4, sealed(&[], 7)),
        (4, sealed(&[(4, 1)], 7)),
        (4, sealed(&[(2, 8)], 7)),
    ] {
        let error = recovery.sealed(NODES[0], Epoch(promised), log).unwrap_err();
        assert_eq!(error, RecoveryError::ImpossibleLog { node: NODES[0] });
    }
    assert_eq!(recovery.sealed_nodes().count(), 0);
}

#[test]
fn a_log_that_cannot_be_read_is_left_for_that_of_another_quorum() {
    let mut cluster = Cluster::new();
    cluster.take_over(&[0, 1]);
    cluster.reigns[0].append(1, 0);
    for node in 0..3 {
        cluster.follow(0, node, 9);
    }
    let log = cluster.nodes[0].log.concat();
    let mut recovery = Recovery::new(Epoch(2), vec![NODES.to_vec()], WINDOW);
    for (id, node) in NODES.iter().zip(&cluster.nodes).take(2) {
        recovery.sealed(*id, Epoch(2), node.sealed()).unwrap();
    }
    let (source, token) = asked(&mut recovery);
    let mut damaged = log.clone();
    damaged[100] ^= 1;
    let error = recovery.chunk(source, token, &damaged).unwrap_err();
    assert!(matches!(error, RecoveryError::Corrupt { .. }), "{error}");
    recovery.lost(source).unwrap();
    assert_eq!(recovery.next_read(), None, "one node is no quorum");
    recovery.sealed(NODES[2], Epoch(2), cluster.nodes[2].sealed()).unwrap();
    let (other, token) = asked(&mut recovery);
    assert_ne!(other, source);
    recovery.chunk(source, token, &log).unwrap();
    recovery.chunk(other, token - 1, &log).unwrap();
    assert!(recovery.open(0).is_none(), "answers to other requests are dropped");
    recovery.chunk(other, token, &log).unwrap();
    assert_eq!(recovery.open(0).unwrap().opening, SeqNum(3));
}

fn asked(recovery: &mut Recovery) -> (NodeId, u64) {
    let request = recovery.next_read();
    assert_eq!(recovery.next_read(), None, "one request at a time");
    match request {
        Some((node, Message::ReadLog { token, .. })) => (node, token),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_gives_no_records_or_others_than_it_told_is_refused() {
    let mut cluster = Cluster::new();
    cluster.take_over(&[0, 1]);
    cluster.follow(0, 0, 9);
    let log = cluster.nodes[0].log.concat();
    for (records, history) in [(&b""[..], (1, 1)), (&log[..], (2, 1))] {
        let mut recovery = Recovery::new(Epoch(3), vec![vec![NODES[0]]], WINDOW);
        recovery.sealed(NODES[0], Epoch(3), sealed(&[history], 1)).unwrap();
        let (node, token) = asked(&mut recovery);
        let error = recovery.chunk(node, token, records).unwrap_err();
        let is_expected =
            matches!(error, RecoveryError::Missing { .. } | RecoveryError::HistoryDiffers { .. });
        assert!(is_expected, "{error}");
    }
}
