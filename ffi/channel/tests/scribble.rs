//! A worker that writes whatever it likes to wherever it can, at any time: the engine's side
//! answers with an error or goes on, and never panics, hangs or leaves its memory.
#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use halfmoon_channel::{
    ChannelConfig, ChannelError, Data, Doorbell, EngineSide, Finish, Inbox, Invoke, Operation,
    Outcome, Request, WorkerSide,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Where the header's control words lie, in bytes, and where the rings begin: see the layout's
/// drawing in the package.
const CONTROL: u64 = 512;
const RINGS: u64 = 4096;

struct Bench {
    engine: EngineSide,
    memory: OwnedFd,
    inbox: Inbox,
    copied: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let mut config = ChannelConfig::default();
        config.arena_bytes = 256 * 1024;
        let engine = EngineSide::create(&config, &Doorbell::new().unwrap()).unwrap();
        let [memory, _] = engine.spawn_fds().map(|fd| fd.try_clone_to_owned().unwrap());
        Self { engine, memory, inbox: Inbox::default(), copied: Vec::new() }
    }

    fn worker(&self) -> WorkerSide {
        let doorbell = self.engine.doorbell().as_fd().try_clone_to_owned().unwrap();
        WorkerSide::connect_in_process(&self.memory, doorbell, "t").unwrap()
    }

    /// Writes as a worker could: through the file, which is the same memory.
    fn scribble(&self, offset: u64, bytes: &[u8]) {
        rustix::io::pwrite(&self.memory, bytes, offset).unwrap();
    }

    /// One turn of the engine: take what there is, answer it. False once the channel is broken.
    fn turn(&mut self) -> bool {
        let input = Data::Inline(b"in");
        let invoke = Invoke { function: "f", instance: 1, attempt: 1, deadline_ms: 0, input };
        // Busy, or the ring is broken: both are answers.
        drop(self.engine.invoke(&invoke));
        for _ in 0..64 {
            let id = match self.engine.poll_request(&mut self.inbox) {
                Err(_) => return false,
                Ok(None) => break,
                Ok(Some(request)) => {
                    let data = data_of(&request);
                    self.copied.clear();
                    if let Some(data) = data {
                        self.engine.copy_out(data, &mut self.copied).unwrap();
                    }
                    if let Request::Ask { id, .. } = request { Some(id) } else { None }
                }
            };
            if let Some(id) = id
                && self.engine.send_value(id, &[9; 3000]).is_err()
                && self.engine.send_reply(id, &Outcome::Absent).is_err()
            {
                return false;
            }
        }
        if self.engine.prepare_sleep() {
            self.engine.awake();
        }
        true
    }
}

fn data_of<'a>(request: &Request<'a>) -> Option<Data<'a>> {
    match *request {
        Request::Finish(Finish::Returned(data) | Finish::Failed(data)) => Some(data),
        Request::Ask { operation, .. } => match operation {
            Operation::Write { value, .. } => value,
            Operation::Call { input, .. } | Operation::CallBegin { input, .. } => Some(input),
            Operation::SideEffectDone { result } => Some(result),
            _ => None,
        },
        _ => None,
    }
}

/// Bytes that are likely to be taken for something: small numbers, lengths with their check,
/// extremes.
fn words() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0_u64..5000,
        (0_u32..5000).prop_map(|len| u64::from(len) | u64::from(!len) << 32),
        Just(u64::MAX),
        Just(1 << 32),
    ]
}

/// Places in the header's control lines, at the start of the rings, and anywhere.
fn places() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0_u64..6).prop_map(|line| CONTROL + 64 * line),
        2 => (0_u64..64).prop_map(|word| RINGS + 8 * word),
        4 => (0_u64..64).prop_map(|word| RINGS + 256 * 1024 + 8 * word),
        1 => (0_u64..(RINGS + 512 * 1024 + 256 * 1024) / 8).prop_map(|word| 8 * word),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_scribbled_the_engine_answers(
        rounds in vec(vec((places(), vec(words(), 1..6)), 1..8), 1..8),
    ) {
        let mut bench = Bench::new();
        let mut worker = bench.worker();
        assert!(bench.turn());
        for round in rounds {
            // It may fail: the worker's own ring may be broken.
            drop(worker.ask(&Operation::Read { table: "t", key: b"k" }));
            for (offset, words) in round {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                bench.scribble(offset, &bytes);
            }
            if !bench.turn() {
                break;
            }
        }
    }

    #[test]
    fn whatever_message_is_sent_the_engine_answers(
        messages in vec((vec(any::<u8>(), 0..60), 0_u8..7), 1..20),
    ) {
        let mut bench = Bench::new();
        let (mut head, ring) = (0_u64, RINGS + 256 * 1024);
        for (mut bytes, kind) in messages {
            bytes.insert(0, kind);
            let len = u32::try_from(bytes.len()).unwrap();
            let check = u64::from(len) | u64::from(!len) << 32;
            let words = bytes.len().div_ceil(8) as u64;
            bytes.splice(0..0, check.to_le_bytes());
            bench.scribble(ring + head * 8, &bytes);
            head += 1 + words;
            bench.scribble(CONTROL + 2 * 64, &head.to_le_bytes());
            if !bench.turn() {
                break;
            }
        }
    }
}

#[test]
fn a_worker_that_scribbles_while_the_engine_reads_harms_only_itself() {
    for seed in 0..30_u64 {
        let mut bench = Bench::new();
        let mut worker = bench.worker();
        let stop = Arc::new(AtomicBool::new(false));
        let memory = bench.memory.try_clone().unwrap();
        let stopped = Arc::clone(&stop);
        let scribbler = std::thread::spawn(move || {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            while !stopped.load(Ordering::Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let place = CONTROL + (state % 6) * 64;
                let value = if state & 64 == 0 { state } else { state % 4096 };
                rustix::io::pwrite(&memory, &value.to_le_bytes(), place).unwrap();
            }
        });
        for _ in 0..200 {
            drop(worker.log(halfmoon_channel::Level::Info, "a line"));
            if !bench.turn() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
    }
}

/// A worker that writes its messages itself.
struct Forger {
    bench: Bench,
    head: u64,
}

/// Where the ring from worker to engine begins, and where its producer's position lies.
const TO_ENGINE: u64 = RINGS + 256 * 1024;
const TO_ENGINE_HEAD: u64 = CONTROL + 2 * 64;

impl Forger {
    fn new() -> Self {
        let mut forger = Self { bench: Bench::new(), head: 0 };
        let layout = halfmoon_channel::LAYOUT_VERSION;
        assert!(forger.send(&Request::Hello { layout, sdk: "forged" }).is_ok());
        forger
    }

    /// Writes an entry of `bytes` that says it had `len`, and a position that says it had `words`.
    fn push(&mut self, bytes: &[u8], len: u32, words: u64) {
        let mut entry = (u64::from(len) | u64::from(!len) << 32).to_le_bytes().to_vec();
        entry.extend_from_slice(bytes);
        self.bench.scribble(TO_ENGINE + self.head * 8, &entry);
        self.head += words;
        self.bench.scribble(TO_ENGINE_HEAD, &self.head.to_le_bytes());
    }

    fn poll(&mut self) -> Result<(), ChannelError> {
        self.bench.engine.poll_request(&mut self.bench.inbox).map(drop)
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), ChannelError> {
        self.forge(request);
        self.poll()
    }

    fn forge(&mut self, request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.push(&bytes, len, 1 + bytes.len().div_ceil(8) as u64);
    }

    fn invoke(&mut self, input: Data<'_>) {
        let invoke = Invoke { function: "f", instance: 1, attempt: 1, deadline_ms: 0, input };
        self.bench.engine.invoke(&invoke).unwrap();
    }
}

#[test]
fn an_entry_that_is_longer_than_any_may_be_is_refused() {
    let mut forger = Forger::new();
    forger.push(&[4; 5000], 5000, 1 + 625);
    assert!(matches!(forger.poll(), Err(ChannelError::Ring(_))));
}

#[test]
fn an_entry_that_ends_beyond_what_was_written_is_refused() {
    let mut forger = Forger::new();
    forger.push(&[4; 100], 100, 2);
    assert!(matches!(forger.poll(), Err(ChannelError::Ring(_))));
}

#[test]
fn a_position_beyond_the_ring_or_before_what_was_read_is_refused() {
    for position in [0, 256 * 1024 / 8 + 100, u64::MAX] {
        let mut forger = Forger::new();
        forger.bench.scribble(TO_ENGINE_HEAD, &u64::to_le_bytes(position));
        assert!(matches!(forger.poll(), Err(ChannelError::Ring(_))), "{position}");
    }
}

#[test]
fn a_buffer_is_not_released_before_it_was_sent() {
    let mut forger = Forger::new();
    let landing = forger.bench.engine.alloc(5000).unwrap();
    let refused = forger.send(&Request::Release(landing));
    assert!(matches!(refused, Err(ChannelError::Buffer(_))));
}

#[test]
fn a_buffer_is_released_once() {
    let mut forger = Forger::new();
    let first = forger.bench.engine.alloc(5000).unwrap();
    forger.invoke(Data::Shared(first));
    forger.send(&Request::Release(first)).unwrap();
    assert_eq!(forger.bench.engine.buffers_in_use(), 0);
    forger.send(&Request::Ask { id: 1, operation: Operation::Now }).unwrap();
    let second = forger.bench.engine.alloc(5000).unwrap();
    assert_eq!(second.offset, first.offset, "the place is used again");
    forger.bench.engine.send_reply(1, &Outcome::Value(Data::Shared(second))).unwrap();
    let refused = forger.send(&Request::Release(first));
    assert!(matches!(refused, Err(ChannelError::Buffer(_))), "that buffer is another by now");
    assert_eq!(forger.bench.engine.buffers_in_use(), 1);
}

#[test]
fn ids_ascend_by_one() {
    for id in [0, 2, u64::MAX] {
        let mut forger = Forger::new();
        forger.invoke(Data::Inline(b""));
        let refused = forger.send(&Request::Ask { id, operation: Operation::Now });
        assert!(matches!(refused, Err(ChannelError::Rules(_))), "{id}");
    }
}

#[test]
fn a_worker_says_hello_first_and_once() {
    let mut forger = Forger { bench: Bench::new(), head: 0 };
    forger.invoke(Data::Inline(b""));
    let refused = forger.send(&Request::Ask { id: 1, operation: Operation::Now });
    assert!(matches!(refused, Err(ChannelError::Rules(_))));
    let mut forger = Forger::new();
    let refused = forger.send(&Request::Hello { layout: 1, sdk: "again" });
    assert!(matches!(refused, Err(ChannelError::Rules(_))));
    let mut forger = Forger { bench: Bench::new(), head: 0 };
    let refused = forger.send(&Request::Hello { layout: 77, sdk: "from the future" });
    assert!(matches!(refused, Err(ChannelError::Version { theirs: 77 })));
}
