//! The backend for where io_uring is refused: `poll`, then plain system calls.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use halfmoon_transport::memory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};

use crate::op::{Done, FLUSHES, Op};

/// Bytes moved between a socket and memory in one go.
const COPY_BYTES: usize = 256 * 1024;

/// Operations that wait for a descriptor, and ones that have ended.
#[derive(Default)]
pub(crate) struct Poll {
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    ended: Vec<(u32, Done)>,
}

struct Waiting {
    user: u32,
    token: u64,
    op: Op,
}

impl Poll {
    /// How many operations have not been taken.
    pub(crate) fn in_flight(&self) -> usize {
        self.waiting.len() + self.ended.len()
    }

    /// Starts an operation. Those on files are carried out at once: `poll` cannot wait for a disk.
    pub(crate) fn start(&mut self, user: u32, token: u64, mut op: Op) {
        match &mut op {
            Op::Write { .. } | Op::Read { .. } => {
                let result = on_file(&mut op);
                self.ended.push((user, Done { token, op, result }));
            }
            Op::Readable(_)
            | Op::Writable(_)
            | Op::Recv { .. }
            | Op::RecvMemory { .. }
            | Op::Send { .. }
            | Op::SendMemory { .. } => {
                self.next += 1;
                self.waiting.insert(self.next, Waiting { user, token, op });
            }
        }
    }

    /// Carries out what can be; waits for the first: not at all, or at most so long.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let wait = if self.ended.is_empty() { wait.unwrap_or_default() } else { Duration::ZERO };
        let timeout = Timespec::try_from(wait).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ready: Vec<u64> = {
            let mut keys = Vec::with_capacity(self.waiting.len());
            let mut fds = Vec::with_capacity(self.waiting.len());
            for (key, waiting) in &self.waiting {
                let Some((fd, events)) = waits_for(&waiting.op) else { continue };
                keys.push(*key);
                fds.push(PollFd::new(fd, events));
            }
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            keys.into_iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|(key, _)| key).collect()
        };
        for key in ready {
            let Some(mut waiting) = self.waiting.remove(&key) else { continue };
            match on_socket(&mut waiting.op) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting.insert(key, waiting);
                }
                result => {
                    let Waiting { user, token, op } = waiting;
                    self.ended.push((user, Done { token, op, result }));
                }
            }
        }
        Ok(())
    }

    /// Takes completions.
    pub(crate) fn reap(&mut self, mut take: impl FnMut(u32, Done)) {
        for (user, done) in self.ended.drain(..) {
            take(user, done);
        }
    }
}

fn waits_for(op: &Op) -> Option<(&Arc<OwnedFd>, PollFlags)> {
    match op {
        Op::Readable(fd) | Op::Recv { socket: fd, .. } | Op::RecvMemory { socket: fd, .. } => {
            Some((fd, PollFlags::IN))
        }
        Op::Writable(fd) | Op::Send { socket: fd, .. } | Op::SendMemory { socket: fd, .. } => {
            Some((fd, PollFlags::OUT))
        }
        Op::Write { .. } | Op::Read { .. } => None,
    }
}

fn on_socket(op: &mut Op) -> io::Result<usize> {
    match op {
        Op::Recv { socket, buffer, from } => {
            let into = &mut buffer[*from..];
            let (count, _) = rustix::net::recv(&*socket, into, RecvFlags::DONTWAIT)?;
            Ok(count)
        }
        Op::RecvMemory { socket, memory, offset, len } => {
            let mut bytes = vec![0; (*len).min(COPY_BYTES)];
            let (count, _) = rustix::net::recv(&*socket, &mut bytes[..], RecvFlags::DONTWAIT)?;
            memory::copy_in(memory.words(), *offset as u64, &bytes[..count])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            Ok(count)
        }
        Op::Send { socket, buffer, from } => {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(rustix::net::send(&*socket, &buffer[*from..], flags)?)
        }
        Op::SendMemory { socket, memory, offset, len } => {
            let mut bytes = Vec::new();
            memory::append_out(memory.words(), *offset as u64, (*len).min(COPY_BYTES), &mut bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(rustix::net::send(&*socket, &bytes, flags)?)
        }
        Op::Readable(_) | Op::Writable(_) | Op::Write { .. } | Op::Read { .. } => Ok(0),
    }
}

fn on_file(op: &mut Op) -> io::Result<usize> {
    match op {
        Op::Write { file, buffer, len, offset, durable } => {
            file.write_all_at(&buffer.bytes()[..*len], *offset)?;
            if *durable && FLUSHES {
                file.sync_data()?;
            }
            Ok(*len)
        }
        Op::Read { file, buffer, len, offset } => {
            let mut read = 0;
            while read < *len {
                let at = *offset + read as u64;
                match file.read_at(&mut buffer.bytes_mut()[read..*len], at)? {
                    0 => break,
                    count => read += count,
                }
            }
            Ok(read)
        }
        Op::Readable(_)
        | Op::Writable(_)
        | Op::Recv { .. }
        | Op::RecvMemory { .. }
        | Op::Send { .. }
        | Op::SendMemory { .. } => Ok(0),
    }
}
