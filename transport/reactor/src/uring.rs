//! The io_uring backend. All `unsafe` of the package.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::op::{Done, FLUSHES, Op};

/// Entries of the submission queue; when it is full, it is handed to the kernel at once.
const ENTRIES: u32 = 1024;

/// How long a reactor that is dropped waits for what the kernel still works on.
const DRAIN: Duration = Duration::from_secs(5);

/// How long it waits for the kernel to cancel what can be cancelled.
const CANCEL: Timespec = Timespec::new().sec(1);

/// A ring, and the operations that the kernel is working on.
///
/// The memory that an entry points to belongs to the operation in its slot of `running`: from
/// before the entry is pushed until its completion is taken in `finish`.
pub(crate) struct Uring {
    ring: IoUring,
    running: Vec<Option<Running>>,
    free: Vec<usize>,
    /// Completions that were taken from the kernel and not yet looked at.
    ended: Vec<cqueue::Entry>,
}

struct Running {
    user: u32,
    token: u64,
    op: Op,
}

impl Uring {
    /// A ring with the best set of features that the kernel has.
    pub(crate) fn new() -> io::Result<Self> {
        let best = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(ENTRIES * 4)
            .build(ENTRIES);
        let ring = match best {
            Ok(ring) => ring,
            Err(_) => IoUring::builder()
                .setup_coop_taskrun()
                .setup_taskrun_flag()
                .build(ENTRIES)
                .or_else(|_| IoUring::new(ENTRIES))?,
        };
        Ok(Self { ring, running: Vec::new(), free: Vec::new(), ended: Vec::new() })
    }

    /// How many operations the kernel is working on.
    pub(crate) fn in_flight(&self) -> usize {
        self.running.len() - self.free.len()
    }

    /// Queues an operation, whose memory and lengths were checked.
    pub(crate) fn start(&mut self, user: u32, token: u64, op: Op) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.running.push(None);
            self.running.len() - 1
        });
        let running = self.running[index].insert(Running { user, token, op });
        let entry = entry(&mut running.op).user_data(index as u64);
        loop {
            // SAFETY: the entry's buffers belong to the operation that was just put into `running`.
            // It stays there, unmoved on the heap behind its `Vec` or `Arc`, until its completion
            // is taken in `finish`; `drop` waits for the completion, or leaks the operation. The
            // files and sockets are kept open by the operation as well.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full. The kernel takes all of it, unless it has completions that do not
            // fit or lacks memory; taking the completions helps against both.
            if self.ring.submit().is_err() {
                self.ended.extend(self.ring.completion());
            }
        }
    }

    /// Hands over what is queued, and waits for a completion: not at all, or at most so long.
    /// Takes no system call if there is nothing to hand over and nothing to wait for.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let idle = self.ended.is_empty() && self.ring.completion().is_empty();
        let args = SubmitArgs::new();
        let done = match wait {
            Some(wait) if idle => {
                let timeout = Timespec::from(wait);
                self.ring.submitter().submit_with_args(1, &args.timespec(&timeout))
            }
            Some(_) | None => {
                let queue = self.ring.submission();
                // With deferred work, completions appear only when the kernel is asked for them.
                let due = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
                drop(queue);
                if due { self.ring.submitter().submit_with_args(0, &args) } else { Ok(0) }
            }
        };
        match done {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // No completion in time; interrupted; or completions must be reaped first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes completions.
    pub(crate) fn reap(&mut self, mut take: impl FnMut(u32, Done)) {
        let mut ended = mem::take(&mut self.ended);
        ended.extend(self.ring.completion());
        for entry in ended.drain(..) {
            if let Some((user, done)) = self.finish(&entry) {
                take(user, done);
            }
        }
        self.ended = ended;
    }

    fn finish(&mut self, entry: &cqueue::Entry) -> Option<(u32, Done)> {
        let index = usize::try_from(entry.user_data()).ok()?;
        let Running { user, token, op } = self.running.get_mut(index).and_then(Option::take)?;
        self.free.push(index);
        let result = match usize::try_from(entry.result()) {
            Ok(count) => Ok(count),
            Err(_) => Err(io::Error::from_raw_os_error(entry.result().wrapping_neg())),
        };
        Some((user, Done { token, op, result }))
    }
}

impl Drop for Uring {
    /// Cancels what can be cancelled and waits for the rest, like writes to a disk. The kernel may
    /// still write to the buffers of what does not end in time: those are given up.
    fn drop(&mut self) {
        let start = Instant::now();
        // Each of these may fail because nothing is left to do; what counts is what completes.
        drop(self.ring.submit());
        drop(self.ring.submitter().register_sync_cancel(Some(CANCEL), CancelBuilder::any()));
        while self.in_flight() > 0 && start.elapsed() < DRAIN {
            if self.enter(Some(Duration::from_millis(10))).is_err() {
                break;
            }
            self.reap(|_, done| drop(done));
        }
        for running in self.running.drain(..).flatten() {
            mem::forget(running);
        }
    }
}

fn entry(op: &mut Op) -> squeue::Entry {
    // The kernel moves at most this much in one operation anyway; callers go on with the rest.
    let short = |len: usize| u32::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
    match op {
        Op::Readable(fd) => opcode::PollAdd::new(raw(fd), libc::POLLIN as u32).build(),
        Op::Writable(fd) => opcode::PollAdd::new(raw(fd), libc::POLLOUT as u32).build(),
        Op::Recv { socket, buffer, from } => {
            let bytes = &mut buffer[*from..];
            opcode::Recv::new(raw(socket), bytes.as_mut_ptr(), short(bytes.len())).build()
        }
        Op::RecvMemory { socket, memory, offset, len } => {
            let at = first_byte(memory.words(), *offset);
            opcode::Recv::new(raw(socket), at, short(*len)).build()
        }
        Op::Send { socket, buffer, from } => {
            let bytes = &buffer[*from..];
            opcode::Send::new(raw(socket), bytes.as_ptr(), short(bytes.len()))
                .flags(libc::MSG_NOSIGNAL)
                .build()
        }
        Op::SendMemory { socket, memory, offset, len } => {
            let at = first_byte(memory.words(), *offset);
            opcode::Send::new(raw(socket), at.cast_const(), short(*len))
                .flags(libc::MSG_NOSIGNAL)
                .build()
        }
        Op::Write { file, buffer, len, offset, durable } => {
            let bytes = &buffer.bytes()[..*len];
            opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), short(bytes.len()))
                .offset(*offset)
                .rw_flags(if *durable && FLUSHES { libc::RWF_DSYNC } else { 0 })
                .build()
        }
        Op::Read { file, buffer, len, offset } => {
            let bytes = &mut buffer.bytes_mut()[..*len];
            opcode::Read::new(Fd(file.as_raw_fd()), bytes.as_mut_ptr(), short(bytes.len()))
                .offset(*offset)
                .build()
        }
    }
}

fn raw(fd: &impl AsRawFd) -> Fd {
    let fd: RawFd = fd.as_raw_fd();
    Fd(fd)
}

/// Address of a byte in memory that others write to. `Op::is_sound` has checked that the range
/// lies within. Atomics may be changed behind a shared reference, by the kernel too.
fn first_byte(words: &[AtomicU64], offset: usize) -> *mut u8 {
    words.as_ptr().cast_mut().cast::<u8>().wrapping_add(offset)
}
