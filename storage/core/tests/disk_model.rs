//! Any history of a log, cut by crashes at any moment on a disk that keeps any blocks of what was
//! under way, reads back as what was acknowledged, or a little more of what was accepted.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use halfmoon_log::limits::{BLOCK_BYTES, WRITE_MAX_BYTES};
use halfmoon_log::*;
use halfmoon_wire::*;
use proptest::prelude::*;

const CONFIG: LogConfig = LogConfig {
    id: LogId(0xfeed),
    segment_bytes: 64 << 10,
    contents: Contents::Records,
    tail_bytes: 8 << 10,
};

#[derive(Clone, Debug)]
enum Op {
    Append { count: usize, payload: usize },
    Promise,
    Cut { back: u64 },
    Trim { back: u64 },
    Mark,
    Write,
    Complete { which: usize },
    Crash { survivors: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1usize..6, 0usize..6000).prop_map(|(count, payload)| Op::Append { count, payload }),
        1 => Just(Op::Promise),
        1 => (0u64..8).prop_map(|back| Op::Cut { back }),
        1 => (0u64..20).prop_map(|back| Op::Trim { back }),
        1 => Just(Op::Mark),
        8 => Just(Op::Write),
        8 => (0usize..4).prop_map(|which| Op::Complete { which }),
        1 => any::<u64>().prop_map(|survivors| Op::Crash { survivors }),
    ]
}

/// What the log should amount to.
#[derive(Clone, PartialEq, Debug, Default)]
struct Naive {
    records: BTreeMap<u64, Vec<u8>>,
    promised: u64,
    trimmed: u64,
}

struct Flying {
    write: Write,
    bytes: Vec<u8>,
}

struct World {
    log: Log,
    files: BTreeMap<u64, Vec<u8>>,
    pool: Vec<Vec<u8>>,
    flying: Vec<Flying>,
    /// The state after each ticket; the first is what was recovered, and ticket 1 the new life.
    states: Vec<(u64, Naive)>,
    epoch: u64,
    salt: u64,
    buffer: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self {
            log: Log::resume(CONFIG, Recovered::empty()),
            files: BTreeMap::new(),
            pool: Vec::new(),
            flying: Vec::new(),
            states: vec![(0, Naive::default()), (1, Naive::default())],
            epoch: 1,
            salt: 0,
            buffer: vec![0; WRITE_MAX_BYTES],
        }
    }

    fn now(&self) -> Naive {
        self.states.last().unwrap().1.clone()
    }

    fn note(&mut self, ticket: Ticket, state: Naive) {
        self.states.push((ticket.0, state));
    }

    fn record(&mut self, seq: u64, payload: usize) -> Vec<u8> {
        self.salt += 1;
        let mut bytes = Vec::new();
        NewRecord {
            seq: SeqNum(seq),
            epoch: Epoch(self.epoch),
            time_ns: self.salt,
            origin: Origin::default(),
            floor: SeqNum(0),
            kind: RecordKind::Data,
            tags: &[],
            payload: &vec![u8::try_from(self.salt % 251).unwrap(); payload],
        }
        .encode(&mut bytes);
        bytes
    }

    fn append(&mut self, count: usize, payload: usize) {
        let mut state = self.now();
        let mut bytes = Vec::new();
        for _ in 0..count {
            let seq = state.records.keys().last().copied().unwrap_or(0) + 1;
            let record = self.record(seq, payload);
            bytes.extend_from_slice(&record);
            state.records.insert(seq, record);
        }
        let checked = self.log.accepted().check(&bytes).unwrap();
        let ticket = self.log.append(Epoch(self.epoch), checked, &bytes);
        self.note(ticket, state);
    }

    fn write(&mut self) {
        let wanted = self.log.segment_wanted();
        let pool = &mut self.pool;
        let bytes = usize::try_from(CONFIG.segment_bytes).unwrap();
        self.files.entry(wanted.0).or_insert_with(|| pool.pop().unwrap_or_else(|| vec![0; bytes]));
        if let Some(write) = self.log.next_write(wanted, &mut self.buffer) {
            assert!(write.len.is_multiple_of(BLOCK_BYTES) && write.len > 0);
            self.flying.push(Flying { write, bytes: self.buffer[..write.len].to_vec() });
        }
    }

    fn place(&mut self, flying: &Flying, survives: impl Fn(usize) -> bool) {
        let file = self.files.get_mut(&flying.write.segment.0).unwrap();
        let start = usize::try_from(flying.write.offset).unwrap();
        for (index, block) in flying.bytes.chunks(BLOCK_BYTES).enumerate() {
            if survives(index) {
                let at = start + index * BLOCK_BYTES;
                file[at..at + block.len()].copy_from_slice(block);
            }
        }
    }

    fn complete(&mut self, which: usize) {
        if self.flying.is_empty() {
            return;
        }
        let flying = self.flying.remove(which % self.flying.len());
        self.place(&flying, |_| true);
        self.log.completed(flying.write.number);
        while let Some(id) = self.log.drop_segment() {
            self.pool.push(self.files.remove(&id.0).unwrap());
        }
    }

    fn drain(&mut self) {
        while !self.log.is_idle() {
            self.write();
            self.complete(0);
        }
    }

    fn scan(&self) -> Result<Recovered, CorruptError> {
        let mut scan = Scan::new(CONFIG);
        for (id, bytes) in &self.files {
            scan.segment(SegmentId(*id), bytes, |_| {})?;
        }
        scan.finish()
    }

    fn crash(&mut self, survivors: u64) {
        let mut dice = survivors | 1;
        for flying in std::mem::take(&mut self.flying) {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(survivors);
            let all = (dice >> 33).is_multiple_of(3);
            self.place(&flying, |block| all || (dice >> (20 + block % 40)) & 1 == 1);
        }
        let acknowledged = self.log.durable().ticket.0;
        let recovered = self.scan().expect("a crash is not damage");
        let first_unused = recovered.segment().0 + 1;
        let unused: Vec<u64> = self.files.range(first_unused..).map(|(id, _)| *id).collect();
        for id in unused {
            self.pool.push(self.files.remove(&id).unwrap());
        }
        self.log = Log::resume(CONFIG, recovered);
        let found = self.read_back();
        let trimmed = found.trimmed;
        let matches = |(ticket, state): &&(u64, Naive)| {
            *ticket >= acknowledged && same(state, &found, trimmed)
        };
        let state = self.states.iter().find(matches).map(|(_, state)| state.clone());
        let Some(state) = state else {
            panic!("recovered {:?}, acknowledged ticket {acknowledged}", self.log.accepted());
        };
        self.states = vec![(0, state.clone()), (1, state)];
    }

    fn read_back(&self) -> Naive {
        let checkpoint = self.log.accepted();
        let mut naive = Naive {
            promised: checkpoint.promised.0,
            trimmed: checkpoint.trimmed.0,
            ..Naive::default()
        };
        let mut seq = checkpoint.trimmed.next().min(checkpoint.end.next());
        while seq <= checkpoint.end {
            let run = self.log.find(seq).expect("every position is indexed");
            let file = &self.files[&run.segment.0];
            let start = usize::try_from(run.offset).unwrap();
            let bytes = &file[start..start + usize::try_from(run.bytes).unwrap()];
            let mut out = Vec::new();
            let last = extract(CONFIG.id, &run, bytes, seq, 9000, &mut out).unwrap();
            for record in Records::new(&out) {
                let record = record.unwrap();
                assert_eq!(record.seq(), seq);
                naive.records.insert(seq.0, record.bytes().to_vec());
                seq = seq.next();
            }
            assert_eq!(last.next(), seq);
        }
        naive
    }

    fn apply(&mut self, op: &Op) {
        let mut state = self.now();
        match *op {
            Op::Append { count, payload } => self.append(count, payload),
            Op::Promise => {
                self.epoch += 1;
                state.promised = self.epoch;
                let ticket = self.log.promise(Epoch(self.epoch));
                self.note(ticket, state);
            }
            Op::Cut { back } => {
                let end = self.log.accepted().end.0;
                let to = end.saturating_sub(back).max(state.trimmed).min(end);
                state.records.retain(|seq, _| *seq <= to);
                let ticket = self.log.cut(Epoch(self.epoch), SeqNum(to));
                self.note(ticket, state);
            }
            Op::Trim { back } => {
                // Only what is durable is ever given up, and no cut goes below that.
                let end = self.log.durable().end.0.min(self.log.accepted().end.0);
                let to = end.saturating_sub(back).max(state.trimmed);
                state.trimmed = to;
                let ticket = self.log.trim(SeqNum(to));
                self.note(ticket, state);
            }
            Op::Mark => {
                if self.log.needs_mark() {
                    let ticket = self.log.mark();
                    self.note(ticket, state);
                }
            }
            Op::Write => self.write(),
            Op::Complete { which } => self.complete(which),
            Op::Crash { survivors } => self.crash(survivors),
        }
    }
}

fn same(expected: &Naive, found: &Naive, trimmed: u64) -> bool {
    expected.promised == found.promised
        && expected.trimmed == found.trimmed
        && expected.records.range(trimmed + 1..).eq(found.records.range(trimmed + 1..))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_moment_loses_nothing_acknowledged(
        ops in prop::collection::vec(op(), 1..120),
        survivors in any::<u64>(),
    ) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
        }
        world.crash(survivors);
        world.drain();
        world.crash(0);
    }

    #[test]
    fn damage_to_what_a_mark_covers_is_never_taken_for_a_torn_tail(
        ops in prop::collection::vec(op(), 10..80),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
        }
        world.append(1, 10);
        world.drain();
        world.log.mark();
        world.drain();
        let before = world.scan().unwrap().checkpoint().clone();
        let mark = world.log.durable().number;
        let total: usize = world.files.values().map(Vec::len).sum();
        let mut at = place.index(total);
        for (id, file) in &mut world.files {
            if at >= file.len() {
                at -= file.len();
                continue;
            }
            // The mark itself is covered by nothing, and nothing is lost with it.
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            let is_mark = Batch::parse(CONFIG.id, SegmentId(*id), &file[block..])
                .is_some_and(|batch| batch.place.number == mark);
            prop_assume!(!is_mark);
            file[at] ^= 1 << bit;
            break;
        }
        if let Ok(recovered) = world.scan() {
            prop_assert_eq!(recovered.checkpoint(), &before);
        }
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let mut world = World::new();
    for _ in 0..40 {
        world.append(3, 4000);
        world.drain();
    }
    assert!(world.files.len() > 3);
    for gone in [1, 2] {
        let bytes = world.files.remove(&gone).unwrap();
        let error = world.scan().unwrap_err();
        assert!(error.to_string().contains("does not start"), "{error}");
        world.files.insert(gone, bytes);
    }
    world.scan().unwrap();
}

#[test]
fn a_suffix_of_an_earlier_life_does_not_continue_a_log_that_reads_the_same() {
    // Two lives write the same records at the same places. The first life's second and third batch
    // reached the disk, its first did not.
    let mut world = World::new();
    world.drain();
    let write_three = |world: &mut World| {
        for _ in 0..3 {
            world.salt = world.log.accepted().end.0;
            world.append(1, 100);
            world.write();
        }
    };
    write_three(&mut world);
    world.complete(2);
    world.complete(1);
    world.flying.clear();
    world.crash(0);
    assert_eq!(world.log.accepted().end, SeqNum(0));
    world.drain();
    world.salt = 0;
    world.append(1, 100);
    world.drain();
    world.crash(0);
    assert_eq!(world.log.accepted().end, SeqNum(1));
}

#[test]
fn reads_from_memory_stop_at_a_gap_that_a_cut_left() {
    let mut world = World::new();
    world.drain();
    world.append(4, 50);
    world.drain();
    world.log.cut(Epoch(1), SeqNum(2));
    let mut state = world.now();
    state.records.retain(|seq, _| *seq <= 2);
    world.note(world.log.last_ticket(), state);
    world.append(1, 50);
    world.drain();
    let mut out = Vec::new();
    assert!(world.log.read_tail(SeqNum(1), SeqNum(3), 1 << 20, &mut out).is_none());
    assert_eq!(world.log.read_tail(SeqNum(3), SeqNum(3), 1 << 20, &mut out), Some(SeqNum(3)));
}
