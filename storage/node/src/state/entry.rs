//! One durable write of state: its bytes in the state log, and its row in the embedded engine.

use std::sync::Arc;

use halfmoon_wire::limits::{
    BLOB_CHUNK_BYTES, KEY_MAX_BYTES, TABLE_NAME_MAX_BYTES, VALUE_MAX_BYTES,
};
use halfmoon_wire::{CellTuple, DecodeError, ObjectKey, Reader, SeqNum, VersionId, Writer};

use super::{Base, Cell};

/// A write of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<'a> {
    /// A cell, if its tuple is larger than the one that is there; `None` is a tombstone.
    Cell {
        /// Of which object.
        object: ObjectKey<'a>,
        /// Its place in the order.
        tuple: CellTuple,
        /// The value.
        value: Option<&'a [u8]>,
    },
    /// An immutable version.
    Version {
        /// Of which object.
        object: ObjectKey<'a>,
        /// Which.
        version: VersionId,
        /// The value.
        value: &'a [u8],
    },
    /// The base of an object, if it reaches further than the one that is there.
    Base {
        /// Of which object.
        object: ObjectKey<'a>,
        /// Folded up to here.
        seq: SeqNum,
        /// The value; `None` is a tombstone.
        value: Option<&'a [u8]>,
    },
    /// A piece of a function binary.
    Blob {
        /// BLAKE3 of the whole.
        hash: [u8; 32],
        /// Bytes of the whole.
        total: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        bytes: &'a [u8],
    },
}

/// A row of the embedded engine.
pub(super) struct Row {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl<'a> Entry<'a> {
    /// Appends the bytes for the state log.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut out = Writer(out);
        match *self {
            Self::Cell { object, tuple, value } => {
                out.u8(0).text(object.table).bytes(object.key).tuple(tuple);
                out.option(value, |out, value| {
                    out.bytes(value);
                });
            }
            Self::Version { object, version, value } => {
                out.u8(1).text(object.table).bytes(object.key).u128(version.0).bytes(value);
            }
            Self::Base { object, seq, value } => {
                out.u8(2).text(object.table).bytes(object.key).seq(seq);
                out.option(value, |out, value| {
                    out.bytes(value);
                });
            }
            Self::Blob { hash, total, offset, bytes } => {
                out.u8(3).raw(&hash).u64(total).u64(offset).bytes(bytes);
            }
        }
    }

    /// Parses one whole entry.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "state entry");
        let kind = reader.u8()?;
        let entry = if kind == 3 {
            let mut hash = [0; 32];
            hash.copy_from_slice(reader.raw(32)?);
            let (total, offset) = (reader.u64()?, reader.u64()?);
            Self::Blob { hash, total, offset, bytes: reader.bytes(BLOB_CHUNK_BYTES)? }
        } else {
            let table = reader.text(TABLE_NAME_MAX_BYTES)?;
            let object = ObjectKey { table, key: reader.bytes(KEY_MAX_BYTES)? };
            match kind {
                0 => Self::Cell {
                    object,
                    tuple: reader.tuple()?,
                    value: reader.option(|reader| reader.bytes(VALUE_MAX_BYTES))?,
                },
                1 => Self::Version {
                    object,
                    version: reader.version()?,
                    value: reader.bytes(VALUE_MAX_BYTES)?,
                },
                2 => Self::Base {
                    object,
                    seq: reader.seq()?,
                    value: reader.option(|reader| reader.bytes(VALUE_MAX_BYTES))?,
                },
                other => return Err(reader.bad(u64::from(other))),
            }
        };
        reader.finish()?;
        Ok(entry)
    }

    /// The row that keeps it.
    pub(super) fn row(&self) -> Row {
        let mut value = Vec::new();
        let mut out = Writer(&mut value);
        let key = match *self {
            Self::Cell { object, tuple, value } => {
                out.tuple(tuple).u8(u8::from(value.is_some())).raw(value.unwrap_or_default());
                row_key::cell(object)
            }
            Self::Version { object, version, value } => {
                out.raw(value);
                row_key::version(object, version)
            }
            Self::Base { object, seq, value } => {
                out.seq(seq).u8(u8::from(value.is_some())).raw(value.unwrap_or_default());
                row_key::base(object)
            }
            Self::Blob { hash, total, offset, bytes } => {
                out.u64(total).raw(bytes);
                row_key::blob(hash, offset)
            }
        };
        Row { key, value }
    }
}

pub(super) fn parse_cell(row: &[u8]) -> Result<Cell, DecodeError> {
    let mut reader = Reader::new(row, "cell");
    let tuple = reader.tuple()?;
    let value = reader.flag()?.then(|| Arc::from(reader.take_rest()));
    Ok((tuple, value))
}

pub(super) fn parse_base(row: &[u8]) -> Result<Base, DecodeError> {
    let mut reader = Reader::new(row, "base");
    let seq = reader.seq()?;
    let value = reader.flag()?.then(|| Arc::from(reader.take_rest()));
    Ok((seq, value))
}

pub(super) fn parse_blob(row: &[u8]) -> Result<(u64, Arc<[u8]>), DecodeError> {
    let mut reader = Reader::new(row, "blob piece");
    Ok((reader.u64()?, Arc::from(reader.take_rest())))
}

/// Keys of rows. Rows of one table lie together, in the order of their keys.
pub(super) mod row_key {
    use super::{ObjectKey, VersionId, Writer};

    fn of_object(kind: u8, object: ObjectKey<'_>, rest: usize) -> Vec<u8> {
        let mut key = Vec::with_capacity(5 + object.table.len() + object.key.len() + rest);
        Writer(&mut key).u8(kind).text(object.table).raw(object.key);
        key
    }

    pub(in super::super) fn cell(object: ObjectKey<'_>) -> Vec<u8> {
        of_object(b'c', object, 0)
    }

    pub(in super::super) fn base(object: ObjectKey<'_>) -> Vec<u8> {
        of_object(b'b', object, 0)
    }

    pub(in super::super) fn version(object: ObjectKey<'_>, version: VersionId) -> Vec<u8> {
        // The id last and of fixed length: no key is another's with a longer object.
        let mut key = of_object(b'v', object, 16);
        key.extend_from_slice(&version.0.to_be_bytes());
        key
    }

    pub(in super::super) fn blob(hash: [u8; 32], offset: u64) -> Vec<u8> {
        let mut key = Vec::with_capacity(41);
        Writer(&mut key).u8(b'h').raw(&hash);
        key.extend_from_slice(&offset.to_be_bytes());
        key
    }
}
