//! Work for a queue pair, and how it ends.

use rdma_sys::{ibv_wc, ibv_wc_status};

use crate::note::NOTE_BYTES;
use crate::verbs::Registration;

/// Something to do for a queue pair.
pub(crate) struct Work<'a> {
    /// Comes back in [`Finished`].
    pub(crate) id: u64,
    /// Whether its end is told.
    pub(crate) signalled: bool,
    pub(crate) what: What<'a>,
}

pub(crate) enum What<'a> {
    /// Write these bytes of registered memory to an address of the peer.
    Write {
        from: &'a Registration,
        offset: usize,
        len: usize,
        address: u64,
        rkey: u32,
    },
    Note(&'a [u8; NOTE_BYTES]),
}

/// Work that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Finished {
    pub(crate) id: u64,
    /// Bytes that came, if it was a receive.
    pub(crate) len: u32,
    /// `None`: it was done.
    pub(crate) failure: Option<Failure>,
}

/// Why work was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The peer's adapter refused access to its memory.
    Refused,
    /// The peer does not answer.
    Silent,
    /// Work before it has failed.
    Flushed,
    /// The adapter does not say what it has done.
    Mute,
    /// Anything else, as verbs number it.
    Other(u32),
}

impl Finished {
    /// What is told of a queue that cannot be asked.
    pub(crate) const UNKNOWN: Self = Self { id: 0, len: 0, failure: Some(Failure::Mute) };

    /// What an entry of a completion queue says.
    pub(crate) fn of(entry: &ibv_wc) -> Self {
        let failure = match entry.status {
            ibv_wc_status::IBV_WC_SUCCESS => None,
            ibv_wc_status::IBV_WC_REM_ACCESS_ERR => Some(Failure::Refused),
            ibv_wc_status::IBV_WC_RETRY_EXC_ERR => Some(Failure::Silent),
            ibv_wc_status::IBV_WC_WR_FLUSH_ERR => Some(Failure::Flushed),
            other => Some(Failure::Other(other)),
        };
        Self { id: entry.wr_id, len: entry.byte_len, failure }
    }
}
