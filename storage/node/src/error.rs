//! Why a storage node does not start, or stops.

use std::io;
use std::path::{Path, PathBuf};

use halfmoon_log::{CorruptError, SegmentId};
use halfmoon_meta::ClusterError;
use halfmoon_reactor::ReactorError;
use halfmoon_transport::ListenError;
use halfmoon_wire::NodeId;

/// Why a storage node does not start, or stopped by itself. What it had acknowledged is on its disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(
        "cannot {action} {}: {source}; the storage node needs a data directory that it may write to",
        path.display()
    )]
    Directory {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for what the node has to write.
    #[error(
        "the disk is full: {} cannot be written. Nothing acknowledged is lost; make room and start \
         the node again",
        path.display()
    )]
    Full {
        /// The file, or the directory in which one is.
        path: PathBuf,
    },
    /// Another process runs on this directory.
    #[error("{} is in use by another storage node; give each node its own data directory",
        path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to another node or cluster.
    #[error("{} belongs to {found}, and this is {expected}; start the node with its own directory",
        path.display())]
    Identity {
        /// The identity file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asks.
        expected: String,
    },
    /// The directory is empty, and the node has served from another one.
    #[error(
        "{} is empty, but storage node {node} has held data before, which the cluster counts on. \
         If that disk is lost, the node cannot come back: start one under a new number, on an empty \
         directory, and run `halfmoon node replace {node} NEW` with that number",
        path.display()
    )]
    DiskLost {
        /// The directory.
        path: PathBuf,
        /// The node.
        node: NodeId,
    },
    /// The node has stored something before, and is no member any more.
    #[error(
        "storage node {node} is no member of the cluster any more: it was replaced, and what it holds \
         is of no use. To add a node, start it under a new number with an empty data directory"
    )]
    NoMember {
        /// The node.
        node: NodeId,
    },
    /// The identity file does not parse.
    #[error(
        "{} is damaged ({what}); restore it. If it cannot be, start a node under a new number, on an \
         empty directory, and run `halfmoon node replace OLD NEW` with the two numbers",
        path.display()
    )]
    IdentityDamaged {
        /// The identity file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The log on disk is not what was flushed.
    #[error("{}: {source}", path.display())]
    Corrupt {
        /// The log's directory.
        path: PathBuf,
        /// What is wrong.
        source: CorruptError,
    },
    /// A flush failed. What it held is unknown, so the node acknowledges nothing more; it reads its
    /// log back when it is started again. A failed flush is never retried.
    #[error(
        "writing segment {} at byte {offset} failed: {source}. The node stops: what this flush held \
         was not acknowledged. Check the disk, then start the node again", segment.0
    )]
    Flush {
        /// The segment.
        segment: SegmentId,
        /// Where in it.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A record that was flushed does not read back.
    #[error(
        "segment {} does not read back at byte {offset}: {what}. The node stops; start it again to \
         have its whole log checked", segment.0
    )]
    Damaged {
        /// The segment.
        segment: SegmentId,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A setting is out of its limits.
    #[error("{name} is {value}, and has to be {allowed}")]
    Setting {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// The embedded engine of the state store failed.
    #[error("the state store in {} failed: {source}. The node stops; nothing acknowledged is lost",
        path.display())]
    Store {
        /// Its directory.
        path: PathBuf,
        /// What it said.
        source: fjall::Error,
    },
    /// The embedded engine lacks what the state log has given up because the engine had it.
    #[error(
        "the state store holds the state log only up to entry {found}, and the log begins after \
         {expected}: state that was acknowledged is missing. Start a node under a new number, on an \
         empty directory, and run `halfmoon node replace OLD NEW` with the two numbers: it copies log \
         and state from the others"
    )]
    StoreBehind {
        /// What it has.
        found: u64,
        /// What it should have at least.
        expected: u64,
    },
    /// The state log holds an entry that this version does not understand.
    #[error("entry {number} of the state log does not parse; run the release that wrote it")]
    StateLog {
        /// The entry.
        number: u64,
    },
    /// A thread could not be started, or died.
    #[error("the helper thread {name} is gone: {source}")]
    Thread {
        /// Which.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The metadata store failed.
    #[error(transparent)]
    Meta(#[from] ClusterError),
    /// The reactor failed.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
}

impl NodeError {
    /// The embedded engine in `path` failed; a full disk is told apart.
    pub(crate) fn store(path: &Path) -> impl FnOnce(fjall::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let full = matches!(
                &source,
                fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error))
                    if is_full(error)
            );
            if full { Self::Full { path } } else { Self::Store { path, source } }
        }
    }

    /// Makes an I/O error into one that names what was tried; a full disk is told apart.
    pub(crate) fn directory(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            if is_full(&source) {
                Self::Full { path }
            } else {
                Self::Directory { action, path, source }
            }
        }
    }
}

/// Whether there is no room.
fn is_full(error: &io::Error) -> bool {
    [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind())
}
