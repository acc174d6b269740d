//! The io_uring backend. All `unsafe` of the package.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use crate::op::{Done, Op};

/// Entries of the submission queue; when it is full, it is handed to the kernel at once.
const ENTRIES: u32 = 1024;

/// A ring, and the operations that the kernel is working on.
pub(crate) struct Uring {
    /// Never `None` but while it is dropped.
    ring: Option<IoUring>,
    running: Vec<Option<Running>>,
    free: Vec<usize>,
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
            .setup_cqsize(ENTRIES * 4)
            .build(ENTRIES);
        let ring = match best {
            Ok(ring) => ring,
            Err(_) => IoUring::builder()
                .setup_coop_taskrun()
                .build(ENTRIES)
                .or_else(|_| IoUring::new(ENTRIES))?,
        };
        Ok(Self { ring: Some(ring), running: Vec::new(), free: Vec::new() })
    }

    /// Queues an operation, whose memory and lengths were checked.
    pub(crate) fn start(&mut self, user: u32, token: u64, op: Op) -> io::Result<()> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.running.push(None);
            self.running.len() - 1
        });
        let running = self.running[index].insert(Running { user, token, op });
        let entry = entry(&mut running.op).user_data(index as u64);
        let Some(ring) = &mut self.ring else { return Err(io::ErrorKind::BrokenPipe.into()) };
        // SAFETY: the entry's buffers belong to the operation that was just put into `running`.
        // It stays there, unmoved on the heap behind its `Vec` or `Arc`, until its completion is
        // taken in `reap`; `drop` leaks what has not completed. The files and sockets are kept open
        // by the operation as well.
        if unsafe { ring.submission().push(&entry) }.is_err() {
            ring.submit()?;
            // SAFETY: as above.
            unsafe { ring.submission().push(&entry) }
                .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        }
        Ok(())
    }

    /// Hands over what is queued, and waits for a completion: not at all, or at most so long.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let done = match wait {
            None if ring.submission().is_empty() && ring.completion().is_empty() => {
                // Deferred task work runs only when the kernel is asked for events.
                ring.submitter().submit_with_args(0, &SubmitArgs::new())
            }
            None => ring.submit(),
            Some(wait) => {
                let timeout = Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos());
                let args = SubmitArgs::new().timespec(&timeout);
                ring.submitter().submit_with_args(1, &args)
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
        let Some(ring) = &mut self.ring else { return };
        for entry in ring.completion() {
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(Running { user, token, op }) =
                self.running.get_mut(index).and_then(Option::take)
            else {
                continue;
            };
            self.free.push(index);
            let result = match usize::try_from(entry.result()) {
                Ok(count) => Ok(count),
                Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
            };
            take(user, Done { token, op, result });
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        drop(self.ring.take());
        // The kernel may still write to the buffers of what has not completed: they are given up.
        for running in self.running.drain(..).flatten() {
            std::mem::forget(running);
        }
    }
}

fn entry(op: &mut Op) -> squeue::Entry {
    // The kernel moves at most this much in one operation anyway; callers go on with the rest.
    let short = |len: usize| u32::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
    match op {
        Op::Readable(fd) => opcode::PollAdd::new(raw(fd), libc::POLLIN as u32).build(),
        Op::Writable(fd) => opcode::PollAdd::new(raw(fd), libc::POLLOUT as u32).build(),
        Op::Recv { socket, buffer } => {
            opcode::Recv::new(raw(socket), buffer.as_mut_ptr(), short(buffer.len())).build()
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
                .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
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
