//! The native state store: cells, versions, bases and function binaries.
//!
//! What is written lies, durable, in the node's *state log* before [`StateStore::apply`] hears of it.
//! From there it is kept twice: in an [`overlay`] in memory, where reads find it at once, and on its
//! way to an embedded engine (fjall) on a helper thread. A write leaves the overlay once the engine
//! has it; a segment of the state log is recycled once the engine has *flushed* it
//! ([`StateStore::persisted`]). So a state write costs one flush, that of the state log, and the
//! engine's own journal is not synced for it.
//!
//! - S1. A cell only grows: a put with a tuple that is not larger changes nothing, and is success.
//! - S2. A version never changes: a second put of one changes nothing.
//! - S3. Applying an entry twice is applying it once. Replay of the state log at start, from any
//!   position at or below what was persisted, gives the same state.

pub mod entry;
mod keeper;
mod overlay;

use std::path::Path;
use std::sync::Arc;

use halfmoon_wire::limits::BLOB_CHUNK_BYTES;
use halfmoon_wire::{CellTuple, ObjectKey, SeqNum, VersionId};

pub use entry::Entry;
use entry::{Row, row_key};
use keeper::Keeper;
pub use keeper::StateOpenError;
use overlay::Overlay;

/// Writes that the embedded engine has not taken yet, in bytes; beyond, new ones are to be held
/// back.
pub const OVERLAY_MAX_BYTES: usize = 128 << 20;

/// Why a read gave no answer. What is stored is not touched.
#[derive(Debug, thiserror::Error)]
pub enum StateReadError {
    /// The embedded engine failed.
    #[error("the embedded engine failed to read: {0}")]
    Engine(#[from] fjall::Error),
    /// What it gave back is not what was put in.
    #[error("a stored value is damaged: {0}; replace this node, its peers have the value")]
    Damaged(#[from] halfmoon_wire::DecodeError),
}

/// A cell: its tuple and its value; `None` is a tombstone.
pub type Cell = (CellTuple, Option<Arc<[u8]>>);
/// A base: the position up to which it was folded, and its value; `None` is a tombstone.
pub type Base = (SeqNum, Option<Arc<[u8]>>);

/// A piece of a function binary, with the bytes of the whole.
pub type BlobPiece = (u64, Arc<[u8]>);

/// The state of one node.
pub struct StateStore {
    overlay: Overlay,
    keeper: Keeper,
    /// Bytes of the function binaries whose hash was compared since the start.
    verified: rustc_hash::FxHashMap<[u8; 32], u64>,
}

impl StateStore {
    /// Opens the store in `dir`, and says up to which position of the state log it has everything;
    /// what comes after is to be applied again. `wake` is called when a write has moved on.
    pub fn open(
        dir: &Path,
        wake: impl Fn() + Send + 'static,
    ) -> Result<(Self, u64), StateOpenError> {
        let keeper = Keeper::open(dir, wake)?;
        let persisted = keeper.persisted();
        let verified = rustc_hash::FxHashMap::default();
        Ok((Self { overlay: Overlay::default(), keeper, verified }, persisted))
    }

    /// Makes a write visible that is durable in the state log at `position` (ascending).
    pub fn apply(&mut self, position: u64, entry: &Entry<'_>) -> Result<(), StateReadError> {
        let row = match entry {
            Entry::Cell { object, tuple, .. } => {
                let newer = self.cell(*object)?.is_none_or(|(current, _)| current < *tuple);
                newer.then(|| entry.row())
            }
            Entry::Base { object, seq, .. } => {
                let newer = self.base(*object)?.is_none_or(|(current, _)| current < *seq);
                newer.then(|| entry.row())
            }
            Entry::Version { .. } | Entry::Blob { .. } => {
                let row = entry.row();
                self.find(&row.key)?.is_none().then_some(row)
            }
        };
        if let Some(Row { key, value }) = row {
            let (key, value): (Arc<[u8]>, Arc<[u8]>) = (key.into(), value.into());
            self.overlay.put(position, Arc::clone(&key), Arc::clone(&value));
            self.keeper.add(key, value);
        }
        self.keeper.reach(position);
        Ok(())
    }

    /// Hands what was applied to the embedded engine, and drops from memory what it has. Once a
    /// turn. An error is final: the engine cannot write any more.
    pub fn turn(&mut self) -> Result<(), StateOpenError> {
        self.keeper.hand_over()?;
        self.overlay.forget(self.keeper.written());
        Ok(())
    }

    /// State-log position up to which everything survives a loss of power without the state log.
    #[must_use]
    pub fn persisted(&self) -> u64 {
        self.keeper.persisted()
    }

    /// Bytes that the embedded engine has yet to take; compare with [`OVERLAY_MAX_BYTES`].
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.overlay.bytes()
    }

    /// The cell of an object; `None` when there has never been one here.
    pub fn cell(&self, object: ObjectKey<'_>) -> Result<Option<Cell>, StateReadError> {
        match self.find(&row_key::cell(object))? {
            Some(value) => Ok(Some(entry::parse_cell(&value)?)),
            None => Ok(None),
        }
    }

    /// A version of an object.
    pub fn version(
        &self,
        object: ObjectKey<'_>,
        version: VersionId,
    ) -> Result<Option<Arc<[u8]>>, StateReadError> {
        self.find(&row_key::version(object, version))
    }

    /// The base of an object.
    pub fn base(&self, object: ObjectKey<'_>) -> Result<Option<Base>, StateReadError> {
        match self.find(&row_key::base(object))? {
            Some(value) => Ok(Some(entry::parse_base(&value)?)),
            None => Ok(None),
        }
    }

    /// A piece of a function binary, with the length of the whole. `None` unless all pieces are
    /// here and their hash is right.
    pub fn blob(
        &mut self,
        hash: [u8; 32],
        offset: u64,
    ) -> Result<Option<BlobPiece>, StateReadError> {
        let total = match self.verified.get(&hash) {
            Some(total) => *total,
            None => match self.verify(hash)? {
                Some(total) => *self.verified.entry(hash).or_insert(total),
                None => return Ok(None),
            },
        };
        if offset >= total {
            return Ok(Some((total, Arc::from([]))));
        }
        let piece = self.find(&row_key::blob(hash, offset))?;
        match piece {
            Some(value) => Ok(Some((total, entry::parse_blob(&value)?.1))),
            None => Ok(None),
        }
    }

    /// Bytes of the whole, if all pieces are here and right.
    fn verify(&self, hash: [u8; 32]) -> Result<Option<u64>, StateReadError> {
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        loop {
            let Some(value) = self.find(&row_key::blob(hash, offset))? else { return Ok(None) };
            let (total, piece) = entry::parse_blob(&value)?;
            hasher.update(&piece);
            offset += piece.len() as u64;
            if offset >= total {
                return Ok((hasher.finalize().as_bytes() == &hash).then_some(total));
            }
            if piece.len() != BLOB_CHUNK_BYTES {
                return Ok(None);
            }
        }
    }

    fn find(&self, key: &[u8]) -> Result<Option<Arc<[u8]>>, StateReadError> {
        match self.overlay.get(key) {
            Some(value) => Ok(Some(value)),
            None => Ok(self.keeper.get(key)?),
        }
    }
}

#[cfg(test)]
mod tests;
