//! A log with sequencers that never die and nodes that lag, in random interleavings: what the
//! engine applies is committed, and every append has one true answer.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use halfmoon_index::*;
use halfmoon_wire::*;
use proptest::prelude::*;

const ENGINE: NodeId = NodeId(9);
const LIFE: Incarnation = Incarnation(1);
const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const STEP: Tag = Tag(77);

/// A record: its bytes and what the checks look at.
#[derive(Clone, PartialEq, Debug)]
struct Rec {
    epoch: u64,
    local: u64,
    step: Option<u64>,
    bytes: Vec<u8>,
}

struct Sequencer {
    epoch: u64,
    opening: usize,
    log: Vec<Rec>,
}

#[derive(Default)]
struct Node {
    promised: u64,
    /// The epoch that the log was compared with.
    epoch: u64,
    log: Vec<Rec>,
}

enum ToEngine {
    Welcome { epoch: u64, opening: u64 },
    Stream { epoch: u64, rec: Rec, seq: u64 },
    Refused { epoch: u64, local: u64, refusal: Refusal },
}

struct World {
    /// One per epoch; the older ones go on as if nothing had happened.
    sequencers: Vec<Sequencer>,
    nodes: [Node; 3],
    view: View,
    submissions: Submissions,
    /// Which sequencer the engine's lane leads to, and the lane.
    lane: usize,
    streamed: usize,
    to_engine: Vec<ToEngine>,
    to_sequencer: Vec<Vec<u8>>,
    watermarks: Vec<(u64, usize, usize)>,
    /// The last watermark that each node has published in each epoch, delivered or not.
    published: BTreeMap<(u64, usize), usize>,
    /// The oracle: what a quorum has durable in an epoch whose opening it holds.
    truth: Vec<Rec>,
    submitted: u64,
    answers: BTreeMap<u64, Outcome>,
}

fn record(seq: usize, epoch: u64, local: u64, step: Option<u64>) -> Rec {
    let kind = if local == 0 { RecordKind::Open } else { RecordKind::Data };
    let origin = match local {
        0 => Origin::default(),
        _ => Origin { engine: ENGINE, incarnation: LIFE, local: LocalId(local) },
    };
    let tags: Vec<_> = step.iter().map(|position| TagPos::new(STEP, *position)).collect();
    let mut bytes = Vec::new();
    NewRecord {
        seq: SeqNum(seq as u64),
        epoch: Epoch(epoch),
        time_ns: 0,
        origin,
        floor: SeqNum::MAX,
        kind,
        tags: &tags,
        payload: &Open { members: MEMBERS.to_vec() }.to_bytes(),
    }
    .encode(&mut bytes);
    Rec { epoch, local, step, bytes }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            sequencers: Vec::new(),
            nodes: Default::default(),
            view: View::new(Limits::default()),
            submissions: Submissions::new(ENGINE, LIFE),
            lane: 0,
            streamed: 0,
            to_engine: Vec::new(),
            to_sequencer: Vec::new(),
            watermarks: Vec::new(),
            published: BTreeMap::new(),
            truth: Vec::new(),
            submitted: 0,
            answers: BTreeMap::new(),
        };
        world.new_epoch(0);
        world.connect();
        world
    }

    fn latest(&self) -> usize {
        self.sequencers.len() - 1
    }

    /// Seals all nodes but one, and opens an epoch with the best log.
    fn new_epoch(&mut self, spared: usize) {
        let epoch = self.sequencers.len() as u64 + 1;
        let sealed: Vec<_> = (0..3).filter(|node| *node != spared).collect();
        for node in &sealed {
            self.nodes[*node].promised = epoch;
        }
        let rank = |node: &usize| {
            let log = &self.nodes[*node].log;
            (log.last().map_or(0, |rec| rec.epoch), log.len())
        };
        let best = sealed.into_iter().max_by_key(rank).unwrap();
        let mut log = self.nodes[best].log.clone();
        let opening = log.len() + 1;
        log.push(record(opening, epoch, 0, None));
        self.sequencers.push(Sequencer { epoch, opening, log });
    }

    /// A fresh lane from the engine to the latest sequencer, if it is not there already or was
    /// lost.
    fn connect(&mut self) {
        self.to_engine.clear();
        self.to_sequencer.clear();
        self.submissions.lane_lost();
        self.lane = self.latest();
        let Sequencer { epoch, opening, .. } = self.sequencers[self.lane];
        self.to_engine.push(ToEngine::Welcome { epoch, opening: opening as u64 });
        self.streamed = usize::MAX;
    }

    fn submit(&mut self, conditional: bool) {
        let length = self.view.tags().len(STEP);
        let conditions = [Condition::Length { tag: STEP, length }];
        let tags = [STEP];
        let count = usize::from(conditional);
        let append = NewAppend {
            floor: SeqNum::MAX,
            conditions: &conditions[..count],
            tags: &tags[..count],
            payload: b"",
        };
        self.submitted += 1;
        let local = self.submissions.submit(self.submitted, &append).unwrap();
        assert_eq!(local.0, self.submitted);
    }

    /// The sequencer on the engine's lane takes an append.
    fn order(&mut self) {
        if self.to_sequencer.is_empty() {
            return;
        }
        let bytes = self.to_sequencer.remove(0);
        let Message::Append { epoch, append } = Message::parse(&bytes).unwrap() else { panic!() };
        let sequencer = &mut self.sequencers[self.lane];
        let (local, mine) = (append.local.0, sequencer.epoch);
        if epoch.0 != mine || sequencer.log.iter().any(|rec| rec.local == local) {
            return;
        }
        let steps = || sequencer.log.iter().enumerate().filter(|(_, rec)| rec.step.is_some());
        let mut step = None;
        if let [Condition::Length { length, .. }] = append.conditions[..] {
            let found = steps().count() as u64;
            if length != found {
                let refusal = match steps().nth(length as usize) {
                    Some((at, _)) => {
                        Refusal::Conflict { condition: 0, winner: SeqNum(at as u64 + 1) }
                    }
                    None => Refusal::Gap { condition: 0, length: found },
                };
                self.to_engine.push(ToEngine::Refused { epoch: mine, local, refusal });
                return;
            }
            step = Some(length);
        }
        let seq = sequencer.log.len() + 1;
        sequencer.log.push(record(seq, mine, local, step));
    }

    /// The sequencer streams one more record to the engine.
    fn stream(&mut self) {
        let sequencer = &self.sequencers[self.lane];
        if let Some(rec) = sequencer.log.get(self.streamed) {
            let (epoch, seq) = (sequencer.epoch, self.streamed as u64 + 1);
            self.to_engine.push(ToEngine::Stream { epoch, rec: rec.clone(), seq });
            self.streamed += 1;
        }
    }

    fn receive(&mut self) {
        if self.to_engine.is_empty() {
            return;
        }
        match self.to_engine.remove(0) {
            ToEngine::Welcome { epoch, opening } => {
                let entered = self.view.enter(Epoch(epoch), SeqNum(opening), &MEMBERS).unwrap();
                if entered == Entered::New {
                    self.submissions.enter(Epoch(epoch));
                }
                self.streamed = self.view.wanted().prev().0 as usize;
            }
            ToEngine::Stream { epoch, rec, seq } => {
                self.view.extend(Epoch(epoch), SeqNum(seq), &rec.bytes).unwrap();
            }
            ToEngine::Refused { epoch, local, refusal } => {
                self.submissions.refused(Epoch(epoch), LocalId(local), refusal, 0);
            }
        }
        self.turn();
    }

    /// A node takes one more record, in the epoch that it is in; at first it compares its log.
    fn flush(&mut self, node: usize, join: bool) {
        let latest = self.sequencers.last().unwrap();
        let state = &mut self.nodes[node];
        if join && state.promised <= latest.epoch && state.epoch != latest.epoch {
            state.promised = latest.epoch;
            let same = state.log.iter().zip(&latest.log).take_while(|(a, b)| a == b).count();
            state.log.truncate(same);
            state.epoch = latest.epoch;
        } else if state.epoch > 0 && state.promised == state.epoch {
            let sequencer = &self.sequencers[state.epoch as usize - 1];
            state.log.extend(sequencer.log.get(state.log.len()).cloned());
        } else {
            return;
        }
        self.watermarks.push((state.epoch, node, state.log.len()));
        self.published.insert((state.epoch, node), state.log.len());
        self.see_truth();
    }

    fn see_truth(&mut self) {
        for sequencer in &self.sequencers {
            let mark = |node| self.published.get(&(sequencer.epoch, node)).copied();
            let mut ends: Vec<_> = (0..3).filter_map(mark).collect();
            ends.sort_unstable_by(|a, b| b.cmp(a));
            let Some(end) = ends.get(1).copied().filter(|end| *end >= sequencer.opening) else {
                continue;
            };
            let log = &sequencer.log[..end];
            let common = log.len().min(self.truth.len());
            assert_eq!(log[..common], self.truth[..common], "the world itself is sound");
            if log.len() > self.truth.len() {
                self.truth = log.to_vec();
            }
        }
    }

    fn watermark(&mut self, index: usize) {
        if self.watermarks.is_empty() {
            return;
        }
        let index = index % self.watermarks.len();
        let (epoch, node, end) = self.watermarks.remove(index);
        self.view.watermark(Epoch(epoch), MEMBERS[node], SeqNum(end as u64));
        self.turn();
    }

    fn turn(&mut self) {
        let truth = &self.truth;
        let submissions = &mut self.submissions;
        self.view
            .apply(usize::MAX, |record| {
                let at = record.seq().0 as usize - 1;
                assert!(at < truth.len(), "{} is applied and not committed", record.seq());
                assert_eq!(record.bytes(), truth[at].bytes, "what was committed is another");
                submissions.applied(record);
            })
            .unwrap();
        if self.view.is_open() {
            self.submissions.opened();
        }
        self.submissions.settle(self.view.applied(), self.view.safe_point());
        while let Some(answer) = self.submissions.poll_answer() {
            self.check(answer);
            assert_eq!(self.answers.insert(answer.token, answer.outcome), None, "answered twice");
        }
        while let Some(bytes) = self.submissions.next_to_send(0) {
            self.to_sequencer.push(bytes.to_vec());
            self.submissions.sent(0);
        }
    }

    fn check(&self, answer: Answer) {
        match answer.outcome {
            Outcome::At(seq) => assert_eq!(self.truth[seq.0 as usize - 1].local, answer.token),
            Outcome::Refused(Refusal::Conflict { winner, .. }) => {
                assert!(winner <= self.view.applied(), "the winner cannot be read yet");
                assert!(self.truth[winner.0 as usize - 1].step.is_some());
            }
            Outcome::Refused(other) => panic!("{other:?}"),
        }
    }

    fn act(&mut self, action: u8, choice: u8) {
        let choice = usize::from(choice);
        match action {
            0 => self.submit(true),
            1 => self.submit(false),
            2 => self.new_epoch(choice % 3),
            3 => self.connect(),
            4 => self.flush(choice % 3, true),
            5..=6 => self.flush(choice % 3, false),
            7 => self.watermark(choice),
            8..=9 => self.order(),
            10..=11 => self.stream(),
            _ => self.receive(),
        }
    }

    /// Everything works again: all must be answered.
    fn settle(&mut self) {
        self.new_epoch(2);
        self.connect();
        for _ in 0..self.submitted * 8 + 600 {
            for node in 0..3 {
                self.flush(node, true);
            }
            self.receive();
            self.stream();
            self.order();
            self.watermark(0);
            self.watermark(0);
            self.watermark(0);
        }
        assert_eq!(self.submissions.unanswered(), 0, "an append was forgotten");
        assert_eq!(self.answers.len() as u64, self.submitted);
        for (local, outcome) in &self.answers {
            let count = self.truth.iter().filter(|rec| rec.local == *local).count();
            let expected = usize::from(matches!(outcome, Outcome::At(_)));
            assert_eq!(count, expected, "append {local} ended as {outcome:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn every_append_has_one_true_answer_over_all_epochs(
        actions in prop::collection::vec((0u8..14, any::<u8>()), 0..220),
    ) {
        let mut world = World::new();
        for (action, choice) in actions {
            world.act(action, choice);
        }
        world.settle();
    }
}
