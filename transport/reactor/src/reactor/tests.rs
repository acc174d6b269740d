use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use halfmoon_transport::{HeapMemory, Memory, memory};

use super::*;
use crate::{AlignedBuffer, BLOCK_BYTES};

const BACKENDS: [Backend; 2] = [Backend::Uring, Backend::Poll];

/// Longer than any of these tests takes, unless something is lost.
const LONG: Duration = Duration::from_secs(60);

fn reactor(backend: Backend) -> (Reactor, UserId) {
    let options = Options { backend: Some(backend), ..Options::default() };
    let mut reactor = Reactor::new(options).unwrap();
    let user = reactor.register();
    (reactor, user)
}

fn next(reactor: &mut Reactor, user: UserId) -> Done {
    loop {
        if let Some(done) = reactor.take(user) {
            return done;
        }
        reactor.wait(LONG).unwrap();
    }
}

fn sockets() -> (Arc<OwnedFd>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    (Arc::new(near.into()), far)
}

#[test]
fn what_is_written_is_read_and_a_read_past_the_end_is_short() {
    let dir = tempfile::tempdir().unwrap();
    for backend in BACKENDS {
        let (mut reactor, user) = reactor(backend);
        let path = dir.path().join(format!("{backend:?}"));
        let file = Arc::new(open_direct(&path, true).unwrap().0);
        let mut buffer = AlignedBuffer::zeroed(2 * BLOCK_BYTES);
        buffer.bytes_mut().fill(7);
        for offset in [0, BLOCK_BYTES as u64] {
            let (len, durable) = (BLOCK_BYTES, true);
            let file = Arc::clone(&file);
            reactor.start(user, offset, Op::Write { file, buffer, len, offset, durable });
            let done = next(&mut reactor, user);
            assert_eq!((done.token, done.result.unwrap()), (offset, BLOCK_BYTES));
            let Op::Write { buffer: back, .. } = done.op else { panic!("another operation") };
            buffer = back;
        }
        buffer.bytes_mut().fill(0);
        let (len, offset) = (2 * BLOCK_BYTES, BLOCK_BYTES as u64);
        reactor.start(user, 9, Op::Read { file, buffer, len, offset });
        let done = next(&mut reactor, user);
        assert_eq!(done.result.unwrap(), BLOCK_BYTES);
        let Op::Read { buffer, .. } = done.op else { panic!("another operation") };
        assert!(buffer.bytes()[..BLOCK_BYTES].iter().all(|byte| *byte == 7));
        assert!(buffer.bytes()[BLOCK_BYTES..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn an_error_of_the_disk_is_a_result_and_the_buffer_comes_back() {
    for backend in BACKENDS {
        let (mut reactor, user) = reactor(backend);
        let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
        let (file, len, offset, durable) = (full, BLOCK_BYTES, 0, false);
        reactor.start(user, 1, Op::Write { file, buffer, len, offset, durable });
        let done = next(&mut reactor, user);
        assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(matches!(done.op, Op::Write { buffer, .. } if buffer.len() == BLOCK_BYTES));
    }
}

#[test]
fn a_range_outside_its_buffer_never_reaches_the_kernel() {
    for backend in BACKENDS {
        let (mut reactor, user) = reactor(backend);
        let (socket, _far) = sockets();
        let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(64));
        let buffer = vec![0; 8];
        for op in [
            Op::RecvMemory { socket: Arc::clone(&socket), memory, offset: 60, len: 8 },
            Op::Send { socket, buffer, from: 9 },
        ] {
            reactor.start(user, 1, op);
            let done = next(&mut reactor, user);
            assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}

#[test]
fn bytes_are_received_straight_into_memory() {
    for backend in BACKENDS {
        let (mut reactor, user) = reactor(backend);
        let (socket, mut far) = sockets();
        let landing = Arc::new(HeapMemory::new(64));
        let memory: Arc<dyn Memory> = landing.clone();
        reactor.start(user, 1, Op::RecvMemory { socket, memory, offset: 3, len: 5 });
        reactor.turn().unwrap();
        far.write_all(b"halfmoon").unwrap();
        assert_eq!(next(&mut reactor, user).result.unwrap(), 5);
        let mut got = [0; 10];
        memory::copy_out(landing.words(), 0, &mut got).unwrap();
        assert_eq!(&got, b"\0\0\0halfm\0\0");
    }
}

#[test]
fn a_wake_up_from_another_thread_is_never_lost() {
    for backend in BACKENDS {
        let (mut reactor, _) = reactor(backend);
        let waker = reactor.waker();
        let (flag, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (told, ended) = (Arc::clone(&flag), Arc::clone(&done));
        let other = thread::spawn(move || {
            for _ in 0..2000 {
                while told.load(Ordering::SeqCst) && !ended.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                told.store(true, Ordering::SeqCst);
                waker.wake();
            }
        });
        let start = Instant::now();
        for _ in 0..2000 {
            while !flag.swap(false, Ordering::SeqCst) {
                reactor.wait(LONG).unwrap();
            }
        }
        done.store(true, Ordering::SeqCst);
        other.join().unwrap();
        assert!(start.elapsed() < LONG, "a wake-up was lost, and only the timeout ended the wait");
    }
}

#[test]
fn a_wake_up_between_waits_ends_the_next_one_whatever_else_it_notices() {
    for backend in BACKENDS {
        let (mut reactor, _) = reactor(backend);
        let start = Instant::now();
        for _ in 0..100 {
            reactor.turn().unwrap();
            reactor.waker().wake();
            reactor.wait(LONG).unwrap();
        }
        assert!(start.elapsed() < LONG, "a wake-up was lost");
    }
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    // `poll` takes no more descriptors than a process may have open.
    for (backend, count) in [(Backend::Uring, 3000), (Backend::Poll, 500)] {
        let (mut reactor, user) = reactor(backend);
        let (socket, _far) = sockets();
        for token in 0..count {
            reactor.start(user, token, Op::Writable(Arc::clone(&socket)));
        }
        let mut seen = vec![false; usize::try_from(count).unwrap()];
        for _ in 0..count {
            let done = next(&mut reactor, user);
            assert!(done.result.is_ok());
            assert!(!std::mem::replace(&mut seen[usize::try_from(done.token).unwrap()], true));
        }
    }
}

#[test]
fn what_is_started_beyond_the_limit_is_done_with_an_error() {
    for backend in BACKENDS {
        let (mut reactor, user) = reactor(backend);
        let (socket, _far) = sockets();
        // One place is the waker's.
        for token in 1..MAX_IN_FLIGHT as u64 {
            reactor.start(user, token, Op::Readable(Arc::clone(&socket)));
        }
        reactor.start(user, 0, Op::Readable(socket));
        let done = next(&mut reactor, user);
        assert_eq!((done.token, done.result.unwrap_err().kind()), (0, io::ErrorKind::ResourceBusy));
    }
}

#[test]
fn dropping_a_reactor_ends_what_is_in_flight_and_frees_its_memory() {
    for backend in BACKENDS {
        let (mut reactor, user) = reactor(backend);
        let (socket, _far) = sockets();
        let landing: Arc<dyn Memory> = Arc::new(HeapMemory::new(64));
        let memory = Arc::clone(&landing);
        let op = Op::RecvMemory { socket: Arc::clone(&socket), memory, offset: 0, len: 8 };
        reactor.start(user, 1, op);
        reactor.turn().unwrap();
        assert_eq!(Arc::strong_count(&landing), 2);
        drop(reactor);
        assert_eq!((Arc::strong_count(&landing), Arc::strong_count(&socket)), (1, 1));
    }
}

/// Something that has happened after it was looked at so often, or once it is armed.
struct Watched {
    looks: u32,
    ready_at_look: u32,
    ready_when_armed: bool,
    armed: u32,
}

impl Watch for Watched {
    fn ready(&mut self) -> bool {
        self.looks += 1;
        self.looks >= self.ready_at_look
    }

    fn arm(&mut self) -> bool {
        self.armed += 1;
        self.ready_when_armed
    }
}

#[test]
fn what_is_watched_is_looked_at_before_a_sleep_and_while_spinning_and_ends_both() {
    let mut seen = Vec::new();
    for (spin, ready_at_look, ready_when_armed) in
        [(Duration::ZERO, 1, false), (Duration::ZERO, u32::MAX, true), (LONG, 100, false)]
    {
        let mut reactor = Reactor::new(Options { backend: None, spin }).unwrap();
        let watched = Watched { looks: 0, ready_at_look, ready_when_armed, armed: 0 };
        let watched = Rc::new(RefCell::new(watched));
        reactor.watch(watched.clone());
        // It would sleep, or spin, for longer than the test may take.
        reactor.wait(2 * LONG).unwrap();
        seen.push((watched.borrow().looks, watched.borrow().armed));
    }
    assert_eq!(seen, [(1, 0), (1, 1), (100, 0)]);
}

#[test]
fn a_wait_that_may_be_spun_through_never_sleeps() {
    for (spin, sleeps) in [(LONG, 0), (Duration::from_millis(1), 0), (Duration::from_nanos(1), 1)] {
        let mut reactor = Reactor::new(Options { backend: None, spin }).unwrap();
        let watched =
            Watched { looks: 0, ready_at_look: u32::MAX, ready_when_armed: false, armed: 0 };
        let watched = Rc::new(RefCell::new(watched));
        reactor.watch(watched.clone());
        reactor.wait(Duration::from_millis(1)).unwrap();
        // It is armed before each sleep.
        assert_eq!(watched.borrow().armed, sleeps, "{spin:?}");
    }
}
