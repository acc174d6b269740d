//! The engine's side allocates nothing once it is made, and a value is seen where it landed.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::Ordering;

use halfmoon_channel::{
    Answer, ChannelConfig, Data, Doorbell, EngineSide, Inbox, Incoming, Invoke, Operation, Outcome,
    Received, Request, WorkerSide,
};
use halfmoon_transport::Memory;

/// Counts the allocations of each thread while that is asked for.
struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

fn note() {
    COUNT.with(|count| count.set(count.get().map(|count| count + 1)));
}

// SAFETY: everything is handed on to the system's allocator as it came; counting only touches a
// constant-initialised thread-local without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the promises of `alloc`, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` by `alloc` or `realloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations that `work` makes on this thread.
fn allocations_of(work: impl FnOnce()) -> u64 {
    COUNT.set(Some(0));
    work();
    COUNT.take().unwrap_or_default()
}

const MIB: usize = 1 << 20;

/// The engine's part of one read of 1 MiB: take the request, let the value land, answer.
fn answer(engine: &mut EngineSide, inbox: &mut Inbox, round: u64) -> u32 {
    let Some(Request::Ask { id, operation: Operation::Read { .. } }) =
        engine.poll_request(inbox).unwrap()
    else {
        panic!("a read")
    };
    let landing = engine.alloc(MIB).unwrap();
    let region = engine.region();
    let first = usize::try_from(landing.offset).unwrap() / 8;
    for word in &region.words()[first..first + MIB / 8] {
        word.store(round, Ordering::Relaxed);
    }
    engine.send_reply(id, &Outcome::Value(Data::Shared(landing))).unwrap();
    assert!(engine.prepare_sleep());
    engine.awake();
    landing.offset
}

#[test]
fn a_loop_of_large_reads_copies_and_allocates_nothing_in_the_engine() {
    let config = ChannelConfig::default();
    let mut engine = EngineSide::create(&config, &Doorbell::new().unwrap()).unwrap();
    let [memory, doorbell] = engine.spawn_fds().map(|fd| fd.try_clone_to_owned().unwrap());
    let mut worker = WorkerSide::connect_in_process(&memory, doorbell, "t").unwrap();
    let mut inbox = Inbox::default();
    let input = Data::Inline(b"");
    engine.poll_request(&mut inbox).unwrap().unwrap();
    let invoke = Invoke { function: "f", instance: 1, attempt: 1, deadline_ms: 0, input };
    engine.invoke(&invoke).unwrap();
    assert!(matches!(worker.receive().unwrap(), Incoming::Invoke(_)));
    let mut held = None;
    let mut offsets = Vec::new();
    for round in 0..100 {
        worker.ask(&Operation::Read { table: "t", key: b"k" }).unwrap();
        let mut landed_at = 0;
        let count = allocations_of(|| landed_at = answer(&mut engine, &mut inbox, round));
        assert_eq!(count, 0, "the engine's side allocated in round {round}");
        let Incoming::Reply { answer: Answer::Value(Received::Landed(value)), .. } =
            worker.receive().unwrap()
        else {
            panic!("a value in the arena")
        };
        assert_eq!(value.arena_offset(), landed_at);
        let seen = value.chunks_exact(8).all(|chunk| chunk == round.to_ne_bytes());
        assert!(seen && value.len() == MIB);
        offsets.push(landed_at);
        held = Some(value);
    }
    drop(held);
    assert!(engine.buffers_in_use() <= 2, "each value is given back when the next has come");
    offsets.sort_unstable();
    offsets.dedup();
    assert!(offsets.len() <= 2, "two places take turns");
}

#[test]
fn the_counting_allocator_counts() {
    assert_eq!(allocations_of(|| drop(std::hint::black_box(vec![1]))), 1);
}
