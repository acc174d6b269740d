//! Keys, stored values, and the entries of the state log.
//!
//! ```text
//! entry:  len u32 | flags u8 (1 = first, 2 = last of its write) | piece of a write
//! write:  rule u8 | key_len u32 | key | stored value
//! key:    kind u8 | table_len u16 (big-endian) | table | key [ | version u128 ]
//!         kind u8 | hash | offset u64 (big-endian)                       for blobs
//! stored: cell:    cursor u64, counter u32, instance u128 | has_value u8 | value
//!         version: value        base: seq u64 | value        blob: total u64 | piece
//! ```

use std::sync::Arc;

use halfmoon_wire::{CellTuple, ObjectKey, Reader, SeqNum, VersionId, Writer};

/// What a key names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Cell = b'c',
    Version = b'v',
    Base = b'b',
    Blob = b'f',
}

/// When a write takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Rule {
    /// If its tuple is larger than the one there.
    Newer = 0,
    /// Always: the same key always has the same value.
    Always = 1,
}

impl Rule {
    /// Under which whatever has this key is written.
    pub(crate) fn of(key: &[u8]) -> Self {
        if key.first() == Some(&(Kind::Cell as u8)) { Self::Newer } else { Self::Always }
    }
}

/// A write, with the number of its last entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Put {
    /// When it takes effect.
    pub rule: Rule,
    /// What it is written to.
    pub key: Arc<[u8]>,
    /// What is written, as it is stored.
    pub value: Arc<[u8]>,
    /// Its last entry in the state log.
    pub number: u64,
}

/// Bytes before the value of a stored cell.
pub(crate) const CELL_HEAD_BYTES: usize = 8 + 4 + 16 + 1;
/// Bytes before the value of a stored base or blob piece.
pub(crate) const SEQ_BYTES: usize = 8;

const FIRST: u8 = 1;
const LAST: u8 = 2;

fn object_key(kind: Kind, object: ObjectKey<'_>) -> Vec<u8> {
    let mut key = Vec::with_capacity(3 + object.table.len() + object.key.len() + 16);
    key.push(kind as u8);
    let len = u16::try_from(object.table.len()).expect("a table's name is at most 256 bytes");
    key.extend_from_slice(&len.to_be_bytes());
    key.extend_from_slice(object.table.as_bytes());
    key.extend_from_slice(object.key);
    key
}

pub(crate) fn cell_key(object: ObjectKey<'_>) -> Arc<[u8]> {
    object_key(Kind::Cell, object).into()
}

pub(crate) fn base_key(object: ObjectKey<'_>) -> Arc<[u8]> {
    object_key(Kind::Base, object).into()
}

pub(crate) fn version_key(object: ObjectKey<'_>, version: VersionId) -> Arc<[u8]> {
    let mut key = object_key(Kind::Version, object);
    key.extend_from_slice(&version.0.to_be_bytes());
    key.into()
}

pub(crate) fn blob_prefix(hash: &[u8; 32]) -> Vec<u8> {
    [&[Kind::Blob as u8][..], hash].concat()
}

pub(crate) fn blob_key(hash: &[u8; 32], offset: u64) -> Arc<[u8]> {
    [&blob_prefix(hash)[..], &offset.to_be_bytes()].concat().into()
}

/// Where the piece begins that a blob's key names.
pub(crate) fn blob_offset(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|offset| u64::from_be_bytes(*offset))
}

/// The head of a stored cell; the value, if there is one, follows.
pub(crate) fn cell_head(tuple: CellTuple, has_value: bool) -> Vec<u8> {
    let mut head = Vec::with_capacity(CELL_HEAD_BYTES);
    Writer(&mut head).tuple(tuple).u8(u8::from(has_value));
    head
}

/// Tuple of a stored cell, and whether it has a value.
pub(crate) fn parse_cell(stored: &[u8]) -> Option<(CellTuple, bool)> {
    let mut reader = Reader::new(stored, "stored cell");
    Some((reader.tuple().ok()?, reader.flag().ok()?))
}

/// Whether cell `a` is at least as new as cell `b`.
pub(crate) fn newer(a: &[u8], b: &[u8]) -> bool {
    let tuple = |stored| parse_cell(stored).map(|(tuple, _)| tuple);
    tuple(a) >= tuple(b)
}

/// The number before a stored base's or blob piece's bytes.
pub(crate) fn parse_u64(stored: &[u8]) -> Option<u64> {
    stored.first_chunk().map(|seq| u64::from_le_bytes(*seq))
}

/// The position before a stored base's value.
pub(crate) fn parse_seq(stored: &[u8]) -> Option<SeqNum> {
    parse_u64(stored).map(SeqNum)
}

/// A stored key with its value, taken apart.
pub(crate) enum Item<'a> {
    Cell { object: ObjectKey<'a>, tuple: CellTuple, value: Option<&'a [u8]> },
    Version { object: ObjectKey<'a>, version: VersionId, value: &'a [u8] },
    Base { object: ObjectKey<'a>, seq: SeqNum, value: &'a [u8] },
    Piece { hash: [u8; 32], offset: u64, total: u64, bytes: &'a [u8] },
}

impl<'a> Item<'a> {
    /// `None` when that is none of them.
    pub(crate) fn parse(key: &'a [u8], stored: &'a [u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        if *kind == Kind::Blob as u8 {
            let (hash, offset) = rest.split_first_chunk()?;
            let offset = u64::from_be_bytes(offset.try_into().ok()?);
            let (total, bytes) = stored.split_first_chunk()?;
            return Some(Self::Piece {
                hash: *hash,
                offset,
                total: u64::from_le_bytes(*total),
                bytes,
            });
        }
        let (len, rest) = rest.split_first_chunk()?;
        let (table, key) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        let table = std::str::from_utf8(table).ok()?;
        if *kind == Kind::Cell as u8 {
            let (tuple, has_value) = parse_cell(stored)?;
            let value = if has_value { Some(stored.get(CELL_HEAD_BYTES..)?) } else { None };
            return Some(Self::Cell { object: ObjectKey { table, key }, tuple, value });
        }
        if *kind == Kind::Version as u8 {
            let (key, version) = key.split_last_chunk()?;
            let version = VersionId(u128::from_be_bytes(*version));
            return Some(Self::Version {
                object: ObjectKey { table, key },
                version,
                value: stored,
            });
        }
        let (seq, value) = stored.split_first_chunk()?;
        let seq = SeqNum(u64::from_le_bytes(*seq));
        let is_base = *kind == Kind::Base as u8;
        is_base.then_some(Self::Base { object: ObjectKey { table, key }, seq, value })
    }
}

/// Splits a write into entries of at most `limit` bytes.
pub(crate) fn split(put: &Put, limit: usize, mut take: impl FnMut(&[u8])) {
    let mut write = Vec::with_capacity(5 + put.key.len() + put.value.len());
    Writer(&mut write).u8(put.rule as u8).bytes(&put.key).raw(&put.value);
    let piece = limit.saturating_sub(5).max(1);
    let count = write.len().div_ceil(piece);
    let mut entry = Vec::with_capacity(piece.min(write.len()) + 5);
    for (index, bytes) in write.chunks(piece).enumerate() {
        let first = if index == 0 { FIRST } else { 0 };
        let last = if index + 1 == count { LAST } else { 0 };
        entry.clear();
        let mut out = Writer(&mut entry);
        out.u32(u32::try_from(bytes.len()).expect("at most the limit")).u8(first | last).raw(bytes);
        take(&entry);
    }
}

/// Puts writes together again from entries, in order.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    partial: Vec<u8>,
    /// Whether the write's first entry was seen. A crash may have left only the first few.
    open: bool,
}

impl Assembler {
    /// Takes the entries of one batch; `None` when they do not parse.
    pub(crate) fn take(&mut self, first: u64, body: &[u8], puts: &mut Vec<Put>) -> Option<()> {
        let mut reader = Reader::new(body, "state log entry");
        let mut number = first;
        while !reader.rest().is_empty() {
            let len = usize::try_from(reader.u32().ok()?).ok()?;
            let flags = reader.u8().ok()?;
            let bytes = reader.raw(len).ok()?;
            if flags & FIRST != 0 {
                self.partial.clear();
                self.open = true;
            }
            if self.open {
                self.partial.extend_from_slice(bytes);
                if flags & LAST != 0 {
                    puts.push(Put::parse(&self.partial, number)?);
                    self.open = false;
                }
            }
            number += 1;
        }
        Some(())
    }
}

impl Put {
    /// Whether it takes effect where `current` is.
    #[must_use]
    pub fn beats(&self, current: &[u8]) -> bool {
        self.rule == Rule::Always || !newer(current, &self.value)
    }

    /// Bytes that it occupies in memory.
    pub(crate) fn len(&self) -> usize {
        self.key.len() + self.value.len() + size_of::<Self>()
    }

    fn parse(write: &[u8], number: u64) -> Option<Self> {
        let mut reader = Reader::new(write, "state write");
        let rule = match reader.u8().ok()? {
            0 => Rule::Newer,
            1 => Rule::Always,
            _ => return None,
        };
        let key: Arc<[u8]> = reader.bytes(write.len()).ok()?.into();
        Some(Self { rule, key, value: reader.take_rest().into(), number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_survives_being_split_and_a_torn_one_is_nothing() {
        let put = |byte: u8, len: usize, number| Put {
            rule: Rule::Always,
            key: Arc::new([byte; 9]),
            value: vec![byte; len].into(),
            number,
        };
        let mut entries = Vec::new();
        let torn = put(1, 1000, 0);
        split(&torn, 100, |entry| entries.push(entry.to_vec()));
        entries.truncate(4);
        split(&put(2, 10, 0), 100, |entry| entries.push(entry.to_vec()));
        split(&put(3, 500, 0), 100, |entry| entries.push(entry.to_vec()));
        let (mut assembler, mut puts) = (Assembler::default(), Vec::new());
        let (head, tail) = entries.split_at(7);
        assembler.take(1, &head.concat(), &mut puts).unwrap();
        assembler.take(8, &tail.concat(), &mut puts).unwrap();
        assert_eq!(puts, [put(2, 10, 5), put(3, 500, entries.len() as u64)]);
    }
}
