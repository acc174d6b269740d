//! A storage node's directory, looked at without the node: for those who check a cluster.
//!
//! The log may be looked at while its node runs; it is then what it was at some moment. The state
//! store may not: its engine has one user.

use std::path::{Path, PathBuf};

use halfmoon_log::limits::TAIL_MAX_BYTES;
use halfmoon_log::{Contents, LogConfig, LogId, Recovered, extract};
use halfmoon_wire::{CellTuple, Epoch, NodeId, ObjectKey, RecordRef, Records, SeqNum, VersionId};

use crate::NodeError;
use crate::ground::PutReader;
use crate::home::{Home, Identity, SegmentDir};
use crate::state::{Item, contents};

/// How often a running node's log is read again when it seems damaged: what was read in the middle
/// of a write is not, the next time.
const TRIES_MAX: u32 = 5;

/// What was found in a node's directory. While it is held, no node can start on it.
#[derive(Debug)]
pub struct Inspection {
    root: PathBuf,
    identity: Identity,
    log: Recovered,
    segments: usize,
    /// The lock; `None` while a node holds it.
    home: Option<Home>,
}

/// Something in the state store.
#[derive(Clone, Copy, Debug)]
pub enum StateItem<'a> {
    /// The current value of an object that is written log-free; `None`: deleted.
    Cell {
        /// The object.
        object: ObjectKey<'a>,
        /// Its place in the order of writes.
        tuple: CellTuple,
        /// The value.
        value: Option<&'a [u8]>,
    },
    /// An immutable value.
    Version {
        /// Of which object.
        object: ObjectKey<'a>,
        /// Its name.
        version: VersionId,
        /// The value.
        value: &'a [u8],
    },
    /// What an object was before the log's window.
    Base {
        /// The object.
        object: ObjectKey<'a>,
        /// The place in the log that it stands for.
        seq: SeqNum,
        /// The value, as it is stored.
        value: &'a [u8],
    },
    /// A function's binary. One that is not whole was never acknowledged, or comes from elsewhere.
    Binary {
        /// Its BLAKE3, by which it is known.
        hash: [u8; 32],
        /// All of its bytes are here, and are those that the hash names.
        whole: bool,
        /// All of its bytes are here, and are others.
        damaged: bool,
    },
    /// What no version of this code has written.
    Unknown {
        /// Its key.
        key: &'a [u8],
    },
}

impl Inspection {
    /// Reads the log in a node's directory; nothing is changed.
    ///
    /// # Errors
    /// When that is no node's directory, or its log is damaged.
    pub fn open(root: &Path) -> Result<Self, NodeError> {
        let path = root.join("identity");
        let identity = Identity::read(&path)?.ok_or_else(|| {
            NodeError::directory("read", &path)(std::io::ErrorKind::NotFound.into())
        })?;
        let home = match Home::open(root) {
            Ok(home) => Some(home),
            Err(NodeError::Locked { .. }) => None,
            Err(error) => return Err(error),
        };
        let dir = SegmentDir::look(root.join("log"));
        let mut tries = if home.is_some() { 1 } else { TRIES_MAX };
        let (log, segments) = loop {
            tries -= 1;
            match dir.scan(config(identity.log, Contents::Records), true, |_| {}) {
                Ok((log, segments)) => break (log, segments.len()),
                Err(error) if tries == 0 => return Err(error),
                Err(_) => {}
            }
        };
        Ok(Self { root: root.to_owned(), identity, log, segments, home })
    }

    /// Whose directory it is.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.identity.node
    }

    /// Of which cluster.
    #[must_use]
    pub const fn cluster(&self) -> u128 {
        self.identity.cluster
    }

    /// Whether the node runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.home.is_none()
    }

    /// Whether it has all of the state: it was there from the start, or has copied it.
    #[must_use]
    pub const fn has_state(&self) -> bool {
        self.identity.whole
    }

    /// The highest epoch that it has promised to obey.
    #[must_use]
    pub const fn promised(&self) -> Epoch {
        self.log.checkpoint().promised
    }

    /// Epoch of its last record; 0 of an empty log.
    #[must_use]
    pub fn last_epoch(&self) -> Epoch {
        self.log.checkpoint().last_epoch()
    }

    /// Its last position.
    #[must_use]
    pub const fn end(&self) -> SeqNum {
        self.log.checkpoint().end
    }

    /// Files of its log.
    #[must_use]
    pub const fn segments(&self) -> usize {
        self.segments
    }

    /// Shows every record of its log, in order; each checksum is compared.
    ///
    /// # Errors
    /// When a file cannot be read, or does not hold what it held a moment ago.
    pub fn records(&self, mut visit: impl FnMut(RecordRef<'_>)) -> Result<(), NodeError> {
        let dir = SegmentDir::look(self.root.join("log"));
        let mut found = Vec::new();
        for run in self.log.runs() {
            let bytes = dir.read_run(&run)?;
            let damaged = || NodeError::Damaged {
                segment: run.segment,
                offset: run.offset,
                what: "it was read whole a moment ago".to_owned(),
            };
            found.clear();
            let last = extract(self.identity.log, &run, &bytes, run.first, usize::MAX, &mut found);
            if last != Some(run.last) {
                return Err(damaged());
            }
            for record in Records::new(&found) {
                visit(record.map_err(|_| damaged())?);
            }
        }
        Ok(())
    }

    /// Shows all that its state store holds. Opens the embedded engine as the node does when it
    /// starts.
    ///
    /// # Errors
    /// [`NodeError::Locked`] while the node runs; damage.
    pub fn state(&self, mut visit: impl FnMut(StateItem<'_>)) -> Result<(), NodeError> {
        if self.is_running() {
            return Err(NodeError::Locked { path: self.root.clone() });
        }
        let mut puts = PutReader::default();
        let dir = SegmentDir::look(self.root.join("state"));
        dir.scan(config(self.identity.state, Contents::Opaque), true, |batch| puts.take(batch))?;
        let puts = puts.finish()?;
        let mut binary = Binary::default();
        contents(&self.root.join("store"), &puts, |key, stored| {
            match Item::parse(key, stored) {
                Some(Item::Cell { object, tuple, value }) => {
                    visit(StateItem::Cell { object, tuple, value });
                }
                Some(Item::Version { object, version, value }) => {
                    visit(StateItem::Version { object, version, value });
                }
                Some(Item::Base { object, seq, value }) => {
                    visit(StateItem::Base { object, seq, value });
                }
                Some(Item::Piece { hash, offset, total, bytes }) => {
                    if let Some(before) = binary.piece(hash, offset, total, bytes) {
                        visit(before);
                    }
                }
                // The engine's own notes.
                None if key.first() == Some(&b'!') => {}
                None => visit(StateItem::Unknown { key }),
            }
        })?;
        if let Some(last) = binary.end() {
            visit(last);
        }
        Ok(())
    }
}

fn config(id: LogId, contents: Contents) -> LogConfig {
    LogConfig { id, segment_bytes: 0, contents, tail_bytes: TAIL_MAX_BYTES }
}

/// Pieces of a binary, in order.
#[derive(Default)]
struct Binary {
    hash: Option<[u8; 32]>,
    hasher: blake3::Hasher,
    next: u64,
    total: u64,
    gap: bool,
}

impl Binary {
    /// Takes the next piece; what was before it, if this one is of another binary.
    fn piece(
        &mut self,
        hash: [u8; 32],
        offset: u64,
        total: u64,
        bytes: &[u8],
    ) -> Option<StateItem<'static>> {
        let mut before = None;
        if self.hash != Some(hash) {
            before = self.end();
            *self = Self { hash: Some(hash), total, ..Self::default() };
        }
        self.gap |= offset != self.next || total != self.total;
        self.hasher.update(bytes);
        self.next += bytes.len() as u64;
        before
    }

    fn end(&mut self) -> Option<StateItem<'static>> {
        let hash = self.hash.take()?;
        let complete = !self.gap && self.next == self.total;
        let whole = complete && self.hasher.finalize().as_bytes() == &hash;
        Some(StateItem::Binary { hash, whole, damaged: complete && !whole })
    }
}
