//! Reads and writes of segment files, submitted and completed: the narrow waist that tests replace.

use std::fs::File;
use std::io;
use std::sync::Arc;

use halfmoon_reactor::{AlignedBuffer, Done, Op, SharedReactor, UserId};

/// A read or write that has ended, with its buffer.
pub struct DiskDone {
    /// As given.
    pub token: u64,
    /// Bytes moved, or the error.
    pub result: io::Result<usize>,
    /// The buffer.
    pub buffer: AlignedBuffer,
}

/// A disk that completes reads and writes later, in any order.
pub trait Disk {
    /// A segment file, as this disk knows it.
    type File: Clone;

    /// Writes the first `len` bytes of `buffer`; done only once they survive a loss of power if
    /// `durable`.
    fn write(
        &mut self,
        file: &Self::File,
        offset: u64,
        buffer: AlignedBuffer,
        len: usize,
        durable: bool,
        token: u64,
    );

    /// Reads `len` bytes into `buffer`.
    fn read(
        &mut self,
        file: &Self::File,
        offset: u64,
        buffer: AlignedBuffer,
        len: usize,
        token: u64,
    );

    /// The next one that has ended.
    fn next_done(&mut self) -> Option<DiskDone>;
}

/// The disk as the thread's reactor reaches it.
pub struct ReactorDisk {
    reactor: SharedReactor,
    user: UserId,
}

impl ReactorDisk {
    /// Over a reactor that may have other users.
    #[must_use]
    pub fn new(reactor: SharedReactor) -> Self {
        let user = reactor.borrow_mut().register();
        Self { reactor, user }
    }
}

impl Disk for ReactorDisk {
    type File = Arc<File>;

    fn write(
        &mut self,
        file: &Arc<File>,
        offset: u64,
        buffer: AlignedBuffer,
        len: usize,
        durable: bool,
        token: u64,
    ) {
        let op = Op::Write { file: file.clone(), buffer, len, offset, durable };
        self.reactor.borrow_mut().start(self.user, token, op);
    }

    fn read(
        &mut self,
        file: &Arc<File>,
        offset: u64,
        buffer: AlignedBuffer,
        len: usize,
        token: u64,
    ) {
        let op = Op::Read { file: file.clone(), buffer, len, offset };
        self.reactor.borrow_mut().start(self.user, token, op);
    }

    fn next_done(&mut self) -> Option<DiskDone> {
        loop {
            let Done { token, op, result } = self.reactor.borrow_mut().take(self.user)?;
            // Nothing else is started for this user.
            if let Op::Write { buffer, .. } | Op::Read { buffer, .. } = op {
                return Some(DiskDone { token, result, buffer });
            }
        }
    }
}
