//! What engines ask of the state store on the storage nodes, and its answers; and how a new member
//! copies it.

use crate::limits::{
    BLOB_CHUNK_BYTES, KEY_MAX_BYTES, MESSAGE_MAX_BYTES, SCAN_ITEMS_MAX, SCAN_PAGE_BYTES,
    STORED_KEY_MAX_BYTES, STORED_VALUE_MAX_BYTES, TABLE_NAME_MAX_BYTES,
};
use crate::{CellTuple, DecodeError, Reader, SeqNum, VersionId, Writer};

/// An object: a key of a table. The table's name includes its namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey<'a> {
    /// Full name of the table.
    pub table: &'a str,
    /// Key within it.
    pub key: &'a [u8],
}

/// Where the bytes of a put are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueSource<'a> {
    /// In the message.
    Inline(&'a [u8]),
    /// In the lane's staging region, written there one-sided before the message.
    Staged {
        /// First byte in the region.
        offset: u64,
        /// Bytes.
        len: u32,
    },
}

/// Memory of the asker's that a large value is written into, one-sided, before the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Landing {
    /// The region that the asker exposed.
    pub region: u32,
    /// First byte in it.
    pub offset: u64,
    /// Room.
    pub capacity: u32,
}

/// A request to the state store. Every write is idempotent and commutes with itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateRequest<'a> {
    /// The cell of an object.
    GetCell {
        /// Which.
        object: ObjectKey<'a>,
        /// Where a large value goes.
        landing: Option<Landing>,
    },
    /// The tuple of a cell, without its value: the second voice of a cell read. The answer is
    /// [`StateReply::Tuple`].
    GetTuple {
        /// Which.
        object: ObjectKey<'a>,
    },
    /// Put a cell if the tuple is larger than the one that is there; `None` is a tombstone.
    PutCell {
        /// Which.
        object: ObjectKey<'a>,
        /// Its place in the order.
        tuple: CellTuple,
        /// The value.
        value: Option<ValueSource<'a>>,
    },
    /// An immutable version.
    GetVersion {
        /// Of which object.
        object: ObjectKey<'a>,
        /// Which version.
        version: VersionId,
        /// Where a large value goes.
        landing: Option<Landing>,
    },
    /// Put an immutable version.
    PutVersion {
        /// Of which object.
        object: ObjectKey<'a>,
        /// Which version.
        version: VersionId,
        /// The value.
        value: ValueSource<'a>,
    },
    /// The base of an object: what it was before the window's first write record.
    GetBase {
        /// Of which object.
        object: ObjectKey<'a>,
        /// The reader's index floor: the answer must have folded that far.
        floor: SeqNum,
        /// Where a large value goes.
        landing: Option<Landing>,
    },
    /// A piece of a function binary.
    PutBlob {
        /// BLAKE3 of the whole.
        hash: [u8; 32],
        /// Bytes of the whole.
        total: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        bytes: &'a [u8],
    },
    /// Ask for a piece of a function binary.
    GetBlob {
        /// BLAKE3 of the whole.
        hash: [u8; 32],
        /// Where the piece begins.
        offset: u64,
    },
    /// All that is stored, a page at a time, by key: for a member that copies the state. Only a node
    /// that has all of it answers, and only once it has promised the asker's epoch durably. The answer
    /// is [`StateReply::Page`].
    Scan {
        /// The page begins after this key, as it is stored; empty: at the beginning.
        after: &'a [u8],
        /// So many bytes of the first value were on the page before, on this lane.
        offset: u32,
    },
}

/// A cell as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredCell<'a> {
    /// Its place in the order.
    pub tuple: CellTuple,
    /// The value; `None` is a tombstone.
    pub value: Option<ValueSource<'a>>,
}

/// A key with its value, both as they are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Bytes of the value.
    pub total: u32,
    /// The value, or a piece of it.
    pub bytes: &'a [u8],
}

/// An answer of the state store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateReply<'a> {
    /// The write is durable here: applied, or refused because something newer is there.
    Done,
    /// The cell; `None` when there has never been one here. A value is `Staged` with offset 0 when
    /// it was written to the landing.
    Cell(Option<StoredCell<'a>>),
    /// The tuple of the cell, also of a tombstone; `None` when there has never been one here.
    Tuple(Option<CellTuple>),
    /// The version or base, with the position it stands for (0 for versions); `None` when it is
    /// not here. A value is `Staged` with offset 0 when it was written to the landing.
    Value(Option<(SeqNum, Option<ValueSource<'a>>)>),
    /// The value is longer than the landing; ask again with this much room.
    NeedRoom {
        /// Bytes of the value.
        len: u32,
    },
    /// A piece of a blob: bytes of the whole, and the piece (empty at the end).
    Blob {
        /// Bytes of the whole.
        total: u64,
        /// The piece.
        bytes: &'a [u8],
    },
    /// The blob is not here, or not whole.
    NoBlob,
    /// A page of what is stored.
    Page {
        /// Keys and values, keys ascending. Of the last the value may be cut; the page after this one
        /// goes on with it.
        items: Vec<Stored<'a>>,
        /// Nothing comes after.
        end: bool,
    },
    /// The node cannot serve this now; the text says why. Whether a write took effect is unknown.
    Failed(&'a str),
}

impl<'a> ObjectKey<'a> {
    fn encode(&self, out: &mut Writer<'_>) {
        out.text(self.table).bytes(self.key);
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self { table: reader.text(TABLE_NAME_MAX_BYTES)?, key: reader.bytes(KEY_MAX_BYTES)? })
    }
}

impl<'a> ValueSource<'a> {
    /// Bytes of the value.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::Staged { len, .. } => *len as usize,
        }
    }

    /// Whether the value has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn encode(&self, out: &mut Writer<'_>) {
        match *self {
            Self::Inline(bytes) => out.u8(0).bytes(bytes),
            Self::Staged { offset, len } => out.u8(1).u64(offset).u32(len),
        };
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            0 => Self::Inline(reader.bytes(MESSAGE_MAX_BYTES)?),
            1 => Self::Staged { offset: reader.u64()?, len: reader.u32()? },
            other => return Err(reader.bad(u64::from(other))),
        })
    }
}

impl Stored<'_> {
    /// Whether all of the value is here.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.bytes.len() == self.total as usize
    }
}

impl Landing {
    fn encode(self, out: &mut Writer<'_>) {
        out.u32(self.region).u64(self.offset).u32(self.capacity);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { region: reader.u32()?, offset: reader.u64()?, capacity: reader.u32()? })
    }
}

fn put_landing(out: &mut Writer<'_>, landing: Option<Landing>) {
    out.option(landing, |out, landing| landing.encode(out));
}

fn take_page<'a>(reader: &mut Reader<'a>) -> Result<Vec<Stored<'a>>, DecodeError> {
    let count = reader.count(SCAN_ITEMS_MAX)?;
    let mut items: Vec<Stored<'a>> = Vec::with_capacity(count);
    for _ in 0..count {
        let (key, total) = (reader.bytes(STORED_KEY_MAX_BYTES)?, reader.u32()?);
        let bytes = reader.bytes(SCAN_PAGE_BYTES.min(total as usize))?;
        let ascends = items.last().is_none_or(|last| last.key < key && last.is_whole());
        if !ascends || total as usize > STORED_VALUE_MAX_BYTES {
            return Err(reader.bad(u64::from(total)));
        }
        items.push(Stored { key, total, bytes });
    }
    Ok(items)
}

fn hash(reader: &mut Reader<'_>) -> Result<[u8; 32], DecodeError> {
    let mut hash = [0; 32];
    hash.copy_from_slice(reader.raw(32)?);
    Ok(hash)
}

impl<'a> StateRequest<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Writer<'_>) {
        match *self {
            Self::GetCell { object, landing } => {
                out.u8(0);
                object.encode(out);
                put_landing(out, landing);
            }
            Self::PutCell { object, tuple, value } => {
                out.u8(1);
                object.encode(out);
                out.tuple(tuple).option(value, |out, value| value.encode(out));
            }
            Self::GetVersion { object, version, landing } => {
                out.u8(2);
                object.encode(out);
                out.u128(version.0);
                put_landing(out, landing);
            }
            Self::PutVersion { object, version, value } => {
                out.u8(3);
                object.encode(out);
                out.u128(version.0);
                value.encode(out);
            }
            Self::GetBase { object, floor, landing } => {
                out.u8(4);
                object.encode(out);
                out.seq(floor);
                put_landing(out, landing);
            }
            Self::GetTuple { object } => {
                out.u8(7);
                object.encode(out);
            }
            Self::PutBlob { hash, total, offset, bytes } => {
                out.u8(5).raw(&hash).u64(total).u64(offset).bytes(bytes);
            }
            Self::GetBlob { hash, offset } => {
                out.u8(6).raw(&hash).u64(offset);
            }
            Self::Scan { after, offset } => {
                out.u8(8).bytes(after).u32(offset);
            }
        }
    }

    /// Takes a request from the front of `reader`.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let kind = reader.u8()?;
        if kind == 5 {
            let (hash, total, offset) = (hash(reader)?, reader.u64()?, reader.u64()?);
            return Ok(Self::PutBlob {
                hash,
                total,
                offset,
                bytes: reader.bytes(BLOB_CHUNK_BYTES)?,
            });
        }
        if kind == 6 {
            return Ok(Self::GetBlob { hash: hash(reader)?, offset: reader.u64()? });
        }
        if kind == 8 {
            return Ok(Self::Scan {
                after: reader.bytes(STORED_KEY_MAX_BYTES)?,
                offset: reader.u32()?,
            });
        }
        let object = ObjectKey::decode(reader)?;
        Ok(match kind {
            0 => Self::GetCell { object, landing: reader.option(Landing::decode)? },
            1 => Self::PutCell {
                object,
                tuple: reader.tuple()?,
                value: reader.option(ValueSource::decode)?,
            },
            2 => Self::GetVersion {
                object,
                version: reader.version()?,
                landing: reader.option(Landing::decode)?,
            },
            3 => Self::PutVersion {
                object,
                version: reader.version()?,
                value: ValueSource::decode(reader)?,
            },
            4 => Self::GetBase {
                object,
                floor: reader.seq()?,
                landing: reader.option(Landing::decode)?,
            },
            7 => Self::GetTuple { object },
            other => return Err(reader.bad(u64::from(other))),
        })
    }
}

impl<'a> StateReply<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Self::Done => {
                out.u8(0);
            }
            Self::Cell(cell) => {
                out.u8(1).option(*cell, |out, cell| {
                    out.tuple(cell.tuple).option(cell.value, |out, value| value.encode(out));
                });
            }
            Self::Value(found) => {
                out.u8(2).option(*found, |out, (seq, value)| {
                    out.seq(seq).option(value, |out, value| value.encode(out));
                });
            }
            Self::NeedRoom { len } => {
                out.u8(3).u32(*len);
            }
            Self::Blob { total, bytes } => {
                out.u8(4).u64(*total).bytes(bytes);
            }
            Self::NoBlob => {
                out.u8(5);
            }
            Self::Failed(why) => {
                out.u8(6).text(why);
            }
            Self::Tuple(tuple) => {
                out.u8(7).option(*tuple, |out, tuple| {
                    out.tuple(tuple);
                });
            }
            Self::Page { items, end } => {
                out.u8(8).u8(u8::from(*end)).u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
                for Stored { key, total, bytes } in items {
                    out.bytes(key).u32(*total).bytes(bytes);
                }
            }
        }
    }

    /// Takes an answer from the front of `reader`.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            0 => Self::Done,
            1 => Self::Cell(reader.option(|reader| {
                let tuple = reader.tuple()?;
                Ok(StoredCell { tuple, value: reader.option(ValueSource::decode)? })
            })?),
            2 => Self::Value(
                reader.option(|reader| Ok((reader.seq()?, reader.option(ValueSource::decode)?)))?,
            ),
            3 => Self::NeedRoom { len: reader.u32()? },
            4 => Self::Blob { total: reader.u64()?, bytes: reader.bytes(BLOB_CHUNK_BYTES)? },
            5 => Self::NoBlob,
            6 => Self::Failed(reader.text(MESSAGE_MAX_BYTES)?),
            7 => Self::Tuple(reader.option(Reader::tuple)?),
            8 => Self::Page { end: reader.flag()?, items: take_page(reader)? },
            other => return Err(reader.bad(u64::from(other))),
        })
    }
}
