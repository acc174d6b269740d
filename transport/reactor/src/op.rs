//! Operations and their results.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use halfmoon_transport::Memory;

use crate::AlignedBuffer;

/// Whether durable writes are made so; they are not where the test of power loss asks for the fault.
pub(crate) const FLUSHES: bool = !cfg!(feature = "planted-no-flush");

/// An operation with all it needs. It comes back in [`Done`].
pub enum Op {
    /// Completes when the descriptor can be read (or has failed).
    Readable(Arc<OwnedFd>),
    /// Completes when the descriptor can be written (or has failed).
    Writable(Arc<OwnedFd>),
    /// Receives what there is, at least a byte, into the buffer's bytes from `from` on. Result 0:
    /// the peer is gone.
    Recv {
        /// The socket.
        socket: Arc<OwnedFd>,
        /// Where to; its length is the limit.
        buffer: Vec<u8>,
        /// First byte to fill.
        from: usize,
    },
    /// Receives into memory, at most `len` bytes; may be fewer.
    RecvMemory {
        /// The socket.
        socket: Arc<OwnedFd>,
        /// Where to.
        memory: Arc<dyn Memory>,
        /// First byte.
        offset: usize,
        /// Bytes wanted.
        len: usize,
    },
    /// Sends the buffer's bytes from `from` on; may be fewer.
    Send {
        /// The socket.
        socket: Arc<OwnedFd>,
        /// What to send.
        buffer: Vec<u8>,
        /// First byte to send.
        from: usize,
    },
    /// Sends from memory; may be fewer than `len` bytes.
    SendMemory {
        /// The socket.
        socket: Arc<OwnedFd>,
        /// What to send.
        memory: Arc<dyn Memory>,
        /// First byte.
        offset: usize,
        /// Bytes.
        len: usize,
    },
    /// Writes the first `len` bytes of the buffer at `offset`.
    Write {
        /// The file.
        file: Arc<File>,
        /// What to write.
        buffer: AlignedBuffer,
        /// Bytes of it.
        len: usize,
        /// Where in the file.
        offset: u64,
        /// Done only once the bytes survive a loss of power.
        durable: bool,
    },
    /// Reads `len` bytes at `offset`; fewer at the end of the file.
    Read {
        /// The file.
        file: Arc<File>,
        /// Where to.
        buffer: AlignedBuffer,
        /// Bytes wanted.
        len: usize,
        /// Where in the file.
        offset: u64,
    },
}

/// An operation that has ended.
pub struct Done {
    /// As given when it was started.
    pub token: u64,
    /// The operation, with its buffer.
    pub op: Op,
    /// Bytes moved, or the error.
    pub result: io::Result<usize>,
}

impl Op {
    /// Whether memory and lengths fit together; an operation for which they do not is refused.
    pub(crate) fn is_sound(&self) -> bool {
        match self {
            Self::Readable(_) | Self::Writable(_) => true,
            Self::Recv { buffer, from, .. } => *from < buffer.len(),
            Self::Send { buffer, from, .. } => *from <= buffer.len(),
            Self::RecvMemory { memory, offset, len, .. }
            | Self::SendMemory { memory, offset, len, .. } => {
                offset.checked_add(*len).is_some_and(|end| end <= memory.len_bytes())
            }
            Self::Write { buffer, len, .. } | Self::Read { buffer, len, .. } => {
                *len <= buffer.len()
            }
        }
    }
}
