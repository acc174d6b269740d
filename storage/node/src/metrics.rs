//! Counters of a node, written by its hot thread and read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a storage node.
        #[derive(Default, Debug)]
        pub struct Metrics { $($(#[$doc])* pub $name: AtomicU64,)* }

        /// The counters at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64,)* }

        impl Metrics {
            /// The counters now.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// The highest epoch promised.
    promised,
    /// Last durable position of the log.
    durable_seq,
    /// Batches of the log that are durable, as they are numbered.
    log_batches,
    /// The same of the state log.
    state_batches,
    /// Writes to the log.
    log_writes,
    /// Bytes of those, padding included.
    log_write_bytes,
    /// Writes to the state log.
    state_writes,
    /// Bytes of those.
    state_write_bytes,
    /// Reads of the log answered from memory.
    log_reads_memory,
    /// Reads of the log answered from disk.
    log_reads_disk,
    /// Requests to the state store.
    state_requests,
    /// Of those, reads answered from memory.
    state_memory_hits,
    /// Bytes of state that are durable in the state log and not yet in the embedded engine.
    state_overlay_bytes,
    /// Bytes of state that were copied from peers, as a new member.
    copied_bytes,
    /// 1 when all of the state is here, 0 while it is copied.
    state_whole,
    /// How often the logs on the disk were read to see whether they are as they were written.
    scrubs,
    /// Bytes read for that.
    scrubbed_bytes,
    /// 1 when all segment files bypass the page cache.
    direct_io,
    /// 1 when the reactor goes by io_uring, 0 when that is refused.
    io_uring,
    /// 1 when acknowledgements wait for the flush, 0 in memory-quorum.
    flush_before_ack,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    // One writer: no read-modify-write is needed.
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

pub(crate) fn set(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}
