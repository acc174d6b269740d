//! An engine's side and a worker's side talk to each other: as threads and as processes.
#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use halfmoon_channel::limits::{INLINE_MAX_BYTES, OUTSTANDING_MAX, RING_BYTES, VALUE_MAX_BYTES};
use halfmoon_channel::{
    Answer, ChannelConfig, ChannelError, Data, Doorbell, EngineSide, Finish, Inbox, Incoming,
    Invoke, Level, Operation, Outcome, Received, Request, SendError, WorkerSide, connect_from_env,
};
use halfmoon_transport::Memory;
use rustix::event::{PollFd, PollFlags};

fn engine() -> EngineSide {
    EngineSide::create(&ChannelConfig::default(), &Doorbell::new().unwrap()).unwrap()
}

fn worker_of(engine: &EngineSide) -> WorkerSide {
    let [memory, doorbell] = engine.spawn_fds().map(|fd| fd.try_clone_to_owned().unwrap());
    WorkerSide::connect_in_process(&memory, doorbell, "test 1").unwrap()
}

/// Both sides on one thread, greeted.
fn pair() -> (EngineSide, WorkerSide, Inbox) {
    let mut engine = engine();
    let worker = worker_of(&engine);
    let mut inbox = Inbox::default();
    let hello = engine.poll_request(&mut inbox).unwrap().unwrap();
    assert!(matches!(hello, Request::Hello { sdk: "test 1", .. }));
    (engine, worker, inbox)
}

fn invoke(engine: &mut EngineSide, input: &[u8]) -> Result<(), SendError> {
    let input = engine.place(input)?;
    engine.invoke(&Invoke { function: "f", instance: 7, attempt: 2, deadline_ms: 0, input })
}

fn busy() -> (EngineSide, WorkerSide, Inbox) {
    let (mut engine, mut worker, inbox) = pair();
    invoke(&mut engine, b"input").unwrap();
    let Incoming::Invoke(invocation) = worker.receive().unwrap() else { panic!("an invocation") };
    assert_eq!((invocation.function.as_str(), &*invocation.input), ("f", &b"input"[..]));
    assert_eq!((invocation.instance, invocation.attempt), (7, 2));
    (engine, worker, inbox)
}

fn ask(worker: &mut WorkerSide, key: &[u8]) -> u64 {
    worker.ask(&Operation::Read { table: "t", key }).unwrap()
}

fn value(worker: &mut WorkerSide) -> Received {
    let Incoming::Reply { answer: Answer::Value(value), .. } = worker.receive().unwrap() else {
        panic!("a value")
    };
    value
}

fn wait(engine: &EngineSide) {
    if engine.prepare_sleep() {
        let fd = engine.doorbell().as_fd();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        engine.doorbell().drain();
    }
    engine.awake();
}

#[test]
fn an_operation_is_answered_under_its_id() {
    let (mut engine, mut worker, mut inbox) = busy();
    let id = ask(&mut worker, b"key");
    let request = engine.poll_request(&mut inbox).unwrap().unwrap();
    let operation = Operation::Read { table: "t", key: b"key" };
    assert_eq!(request, Request::Ask { id, operation });
    assert_eq!(engine.unanswered(), 1);
    engine.send_value(id, b"value").unwrap();
    assert_eq!(&*value(&mut worker), b"value");
    worker.finish(&Finish::Returned(Data::Inline(b"result"))).unwrap();
    let finish = engine.poll_request(&mut inbox).unwrap().unwrap();
    assert_eq!(finish, Request::Finish(Finish::Returned(Data::Inline(b"result"))));
    assert!(!engine.is_busy());
}

#[test]
fn a_value_is_seen_where_it_landed() {
    let (mut engine, mut worker, mut inbox) = busy();
    let id = ask(&mut worker, b"key");
    engine.poll_request(&mut inbox).unwrap().unwrap();
    let landing = engine.alloc(VALUE_MAX_BYTES).unwrap();
    let landing = engine.trim(landing, 1 << 20).unwrap();
    let region = engine.region();
    // As the network does it: words into the region, at the landing's offset.
    let first = usize::try_from(landing.offset).unwrap() / 8;
    for (word, value) in region.words()[first..first + (1 << 17)].iter().zip(0_u64..) {
        word.store(value, std::sync::atomic::Ordering::Relaxed);
    }
    engine.send_reply(id, &Outcome::Value(Data::Shared(landing))).unwrap();
    let Received::Landed(landed) = value(&mut worker) else { panic!("not inline") };
    assert_eq!(landed.arena_offset(), landing.offset);
    assert_eq!(landed.len(), 1 << 20);
    assert!(landed.chunks(8).zip(0_u64..).all(|(chunk, n)| chunk == n.to_ne_bytes()));
    assert_eq!(engine.buffers_in_use(), 1);
    drop(landed);
    worker.log(Level::Info, "released").unwrap();
    engine.poll_request(&mut inbox).unwrap().unwrap();
    assert_eq!(engine.buffers_in_use(), 0);
}

#[test]
fn a_draft_reaches_the_engine_without_a_copy_in_the_ring() {
    let (mut engine, mut worker, mut inbox) = busy();
    let mut draft = worker.draft(VALUE_MAX_BYTES).unwrap();
    draft.fill(0xa5);
    let value = Some(Data::Shared(draft.buffer()));
    worker.ask(&Operation::Write { table: "t", key: b"k", value }).unwrap();
    let request = engine.poll_request(&mut inbox).unwrap().unwrap();
    let Request::Ask { operation: Operation::Write { value: Some(data), .. }, .. } = request else {
        panic!("a write")
    };
    let mut copy = Vec::new();
    engine.copy_out(data, &mut copy).unwrap();
    assert_eq!(copy.len(), VALUE_MAX_BYTES);
    assert!(copy.iter().all(|byte| *byte == 0xa5));
}

#[test]
fn a_drafts_place_is_used_again_once_it_is_dropped() {
    let (_engine, worker, _inbox) = busy();
    for _ in 0..10 {
        let draft = worker.draft(VALUE_MAX_BYTES).unwrap();
        worker.draft(1).unwrap_err();
        drop(draft);
    }
}

#[test]
fn every_outstanding_reply_fits_into_the_ring() {
    let (mut engine, mut worker, mut inbox) = busy();
    for _ in 0..OUTSTANDING_MAX {
        ask(&mut worker, b"key");
        engine.poll_request(&mut inbox).unwrap().unwrap();
    }
    let long = [1; INLINE_MAX_BYTES];
    for id in 1..=OUTSTANDING_MAX as u64 {
        engine.send_reply(id, &Outcome::Value(Data::Inline(&long))).unwrap();
    }
    engine.send_reply(1, &Outcome::Done).unwrap_err();
    for _ in 0..OUTSTANDING_MAX {
        assert_eq!(value(&mut worker).len(), INLINE_MAX_BYTES);
    }
}

#[test]
fn a_worker_that_asks_too_much_breaks_the_rules() {
    let (mut engine, mut worker, mut inbox) = busy();
    for _ in 0..OUTSTANDING_MAX {
        ask(&mut worker, b"key");
        engine.poll_request(&mut inbox).unwrap().unwrap();
    }
    ask(&mut worker, b"key");
    let error = engine.poll_request(&mut inbox).unwrap_err();
    assert_eq!(error, ChannelError::Rules("too many requests are unanswered"));
}

#[test]
fn nothing_is_asked_outside_an_invocation() {
    let (mut engine, mut worker, mut inbox) = pair();
    ask(&mut worker, b"key");
    let error = engine.poll_request(&mut inbox).unwrap_err();
    assert!(matches!(error, ChannelError::Rules(_)));
}

#[test]
fn a_function_may_not_finish_while_it_is_owed_an_answer() {
    let (mut engine, mut worker, mut inbox) = busy();
    ask(&mut worker, b"key");
    worker.finish(&Finish::Unwound).unwrap();
    engine.poll_request(&mut inbox).unwrap().unwrap();
    let error = engine.poll_request(&mut inbox).unwrap_err();
    assert!(matches!(error, ChannelError::Rules(_)));
}

#[test]
fn one_invocation_runs_at_a_time() {
    let (mut engine, _worker, _inbox) = busy();
    assert_eq!(invoke(&mut engine, b"again").unwrap_err(), SendError::Busy);
}

#[test]
fn a_worker_may_not_name_the_engines_half() {
    let (mut engine, mut worker, mut inbox) = busy();
    let buffer = engine.alloc(100).unwrap();
    worker.ask(&Operation::SideEffectDone { result: Data::Shared(buffer) }).unwrap();
    let error = engine.poll_request(&mut inbox).unwrap_err();
    assert!(matches!(error, ChannelError::Buffer(_)));
}

#[test]
fn a_worker_that_does_not_read_is_deaf_not_waited_for() {
    let (mut engine, _worker, _inbox) = pair();
    let count = RING_BYTES / 8;
    let refused = (0..=count).find_map(|_| engine.send_shutdown().err());
    assert_eq!(refused, Some(SendError::Channel(ChannelError::Deaf)));
}

#[test]
fn a_doorbell_rings_only_for_a_sleeping_engine() {
    let (mut engine, mut worker, mut inbox) = pair();
    let rung = |engine: &EngineSide| {
        let mut count = [0; 8];
        rustix::io::read(engine.doorbell(), &mut count).is_ok()
    };
    worker.log(Level::Info, "awake").unwrap();
    assert!(!rung(&engine));
    assert!(!engine.prepare_sleep(), "there is a message");
    engine.poll_request(&mut inbox).unwrap().unwrap();
    assert!(engine.prepare_sleep());
    worker.log(Level::Info, "asleep").unwrap();
    worker.log(Level::Info, "again").unwrap();
    assert!(rung(&engine));
    assert!(!rung(&engine));
}

#[test]
fn threads_exchange_values_of_all_sizes() {
    let mut engine = engine();
    let fds = engine.spawn_fds().map(|fd| fd.try_clone_to_owned().unwrap());
    let thread = std::thread::spawn(move || {
        let [memory, doorbell] = fds;
        serve(&mut WorkerSide::connect_in_process(&memory, doorbell, "t").unwrap());
    });
    drive(&mut engine, 3_000);
    thread.join().unwrap();
}

#[test]
fn processes_exchange_values_of_all_sizes() {
    let mut engine = engine();
    let mut command = this_test_as_worker();
    engine.inherit(&mut command);
    let mut child = command.spawn().unwrap();
    drive(&mut engine, 3_000);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_worker_dies_with_its_engine() {
    let mut command = this_test_as_worker();
    command.env("TEST_ENGINE", "1").stdout(Stdio::piped());
    // This process starts one that plays the engine, which starts a worker and is then killed.
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    while !line.contains("WORKER") {
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The worker holds the other end of the pipe until it dies.
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
}

/// Runs this binary again, with nothing but the function below.
fn this_test_as_worker() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "as_another_process", "--ignored", "--nocapture"]);
    command
}

#[test]
#[ignore = "run by other tests, as a worker or as an engine"]
fn as_another_process() {
    if std::env::var_os("TEST_ENGINE").is_some() {
        let mut engine = engine();
        let mut command = this_test_as_worker();
        command.env_remove("TEST_ENGINE");
        engine.inherit(&mut command);
        let mut child = command.spawn().unwrap();
        // Greeted or not, the worker is there and waits for an invocation for ever.
        let mut inbox = Inbox::default();
        while engine.poll_request(&mut inbox).unwrap().is_none() {
            wait(&engine);
        }
        println!("WORKER");
        std::io::stdout().flush().unwrap();
        // For ever: this process is killed before its worker ends.
        child.wait().unwrap();
    }
    serve(&mut connect_from_env("t").unwrap().expect("started as a worker"));
}

/// Value number `n`: its length and content follow from the number.
fn value_of(n: u64) -> Vec<u8> {
    let lengths = [0, 1, 7, 8, 100, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 5_000, 70_000];
    let len = lengths[usize::try_from(n).unwrap() % lengths.len()];
    let byte = u8::try_from(n % 251).unwrap();
    vec![byte; len]
}

/// Reads objects 0.. until one is absent, and checks them.
fn serve(worker: &mut WorkerSide) {
    loop {
        match worker.receive().unwrap() {
            Incoming::Shutdown => return,
            Incoming::Reply { .. } => panic!("an answer to nothing"),
            Incoming::Invoke(_) => {}
        }
        for n in 0_u64.. {
            let id = ask(worker, &n.to_le_bytes());
            let Incoming::Reply { id: of, answer } = worker.receive().unwrap() else {
                panic!("a reply")
            };
            assert_eq!(of, id);
            match answer {
                Answer::Value(value) => assert_eq!(&*value, &*value_of(n)),
                Answer::Absent => break,
                other => panic!("{other:?}"),
            }
        }
        let value = value_of(8);
        let draft = worker.place(&value).unwrap().expect("long");
        worker.finish(&Finish::Returned(Data::Shared(draft.buffer()))).unwrap();
    }
}

fn drive(engine: &mut EngineSide, count: u64) {
    let mut inbox = Inbox::default();
    invoke(engine, b"").unwrap();
    loop {
        match engine.poll_request(&mut inbox).unwrap() {
            None => wait(engine),
            Some(Request::Hello { .. }) => {}
            Some(Request::Ask { id, operation: Operation::Read { key, .. } }) => {
                let n = u64::from_le_bytes(key.try_into().unwrap());
                if n == count {
                    engine.send_reply(id, &Outcome::Absent).unwrap();
                } else {
                    engine.send_value(id, &value_of(n)).unwrap();
                }
            }
            Some(Request::Finish(Finish::Returned(data))) => {
                let mut result = Vec::new();
                engine.copy_out(data, &mut result).unwrap();
                assert_eq!(result, value_of(8));
                break;
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    engine.send_shutdown().unwrap();
}

#[test]
fn memory_that_is_not_a_sealed_channel_is_refused() {
    let doorbell = || Doorbell::new().unwrap().as_fd().try_clone_to_owned().unwrap();
    let plain: OwnedFd =
        rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    WorkerSide::connect_in_process(&plain, doorbell(), "t").unwrap_err();
    let engine = engine();
    let [memory, _] = engine.spawn_fds().map(|fd| fd.try_clone_to_owned().unwrap());
    rustix::fs::ftruncate(&memory, 100).unwrap_err();
}
