//! What the sequencer has done, counted.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one sequencer, to be read from any thread.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($name: AtomicU64,)*
        }

        /// The counters at one moment (each read on its own).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Metrics {
            /// The counters now.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }

            /// Shows what the thread that counts has counted.
            pub(crate) fn publish(&self, counted: &Snapshot) {
                $(self.$name.store(counted.$name, Ordering::Relaxed);)*
            }
        }
    };
}

counters! {
    /// The epoch, once it is open; 0 before.
    epoch,
    /// Last position ordered.
    tail,
    /// Last position known to be committed.
    committed,
    /// The safe point at the end of the stream.
    safe_point,
    /// Appends ordered in this epoch.
    ordered,
    /// Appends that were in the log already.
    duplicates,
    /// Appends refused, for whatever reason.
    refused,
    /// Appends refused for want of room.
    overloaded,
    /// Appends dropped, because they were meant for another epoch's sequencer.
    misdirected,
    /// Engine incarnations evicted.
    evictions,
    /// Stream messages sent.
    stream_messages,
    /// Bytes of records sent in them.
    stream_bytes,
    /// Lanes that are up.
    lanes,
    /// Lanes closed because the peer broke the protocol.
    violations,
    /// Tags in the window.
    tags,
}
