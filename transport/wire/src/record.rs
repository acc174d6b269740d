//! Log records: one format in the stream, on disk and in answers to readers.
//!
//! ```text
//!  0        4        8        16       24       32            40       48       56       60
//!  | len u32| crc u32| seq    | epoch  | time   | incarnation | local  | floor  | engine | payload len
//!  64       66         68       72
//!  | kind   | tag count| pad    | (tag, position) × count | payload | zeros up to 8 |
//! ```
//! `crc` is CRC32C over the whole record with the field itself left out.

use bytemuck::{Pod, Zeroable};

use crate::limits::{RECORD_MAX_BYTES, TAGS_MAX};
use crate::{
    DecodeError, Epoch, Incarnation, LocalId, NodeId, Origin, Reader, SeqNum, Tag, Writer,
};

/// Bytes before the tags.
pub const RECORD_HEADER_BYTES: usize = size_of::<Header>();

/// What a record is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum RecordKind {
    /// Appended by an engine; the payload belongs to the protocols.
    Data = 0,
    /// The first record of an epoch; the payload is an [`Open`].
    Open = 1,
    /// An engine incarnation is out; the payload is an [`Evict`].
    Evict = 2,
    /// The safe point has grown; the payload is a [`SafePoint`].
    SafePoint = 3,
}

/// A sub-stream that a record belongs to, and the record's place in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct TagPos {
    tag: u64,
    position: u64,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Header {
    len: u32,
    crc: u32,
    seq: u64,
    epoch: u64,
    time_ns: u64,
    incarnation: u64,
    local: u64,
    floor: u64,
    engine: u32,
    payload_len: u32,
    kind: u16,
    tag_count: u16,
    pad: u32,
}

/// What goes into a record, before it has bytes.
#[derive(Clone, Copy, Debug)]
pub struct NewRecord<'a> {
    /// Its position.
    pub seq: SeqNum,
    /// The epoch that ordered it; kept for ever, also when a later epoch copies it.
    pub epoch: Epoch,
    /// The sequencer's clock when it was ordered, in ns since 1970; never decreases along the log.
    pub time_ns: u64,
    /// Who appended it.
    pub origin: Origin,
    /// Initial cursor of its root.
    pub floor: SeqNum,
    /// What it is for.
    pub kind: RecordKind,
    /// Its sub-streams and its place in each.
    pub tags: &'a [TagPos],
    /// Opaque to the log.
    pub payload: &'a [u8],
}

/// A whole, checked record in borrowed bytes.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    header: Header,
    kind: RecordKind,
    bytes: &'a [u8],
}

/// Walks over records that lie back to back.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

/// Payload of the first record of an epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// The storage nodes that hold the log from here on.
    pub members: Vec<NodeId>,
}

/// Payload of the record that takes an engine incarnation out. Nothing of it is ordered after this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evict {
    /// The engine.
    pub engine: NodeId,
    /// Its life that is over, and every earlier one.
    pub incarnation: Incarnation,
    /// Who owns its unfinished roots from here on.
    pub heir: NodeId,
    /// The heir's life.
    pub heir_incarnation: Incarnation,
}

/// Payload of the record that moves the safe point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SafePoint {
    /// No unfinished root started before this.
    pub safe_point: SeqNum,
}

/// Bytes of a record with so many tags and so long a payload.
#[must_use]
pub const fn encoded_len(tags: usize, payload: usize) -> usize {
    (RECORD_HEADER_BYTES + tags * size_of::<TagPos>() + payload).next_multiple_of(8)
}

fn checksum(bytes: &[u8]) -> u32 {
    let (head, tail) = (bytes.get(..4).unwrap_or(&[]), bytes.get(8..).unwrap_or(&[]));
    crc32c::crc32c_append(crc32c::crc32c(head), tail)
}

impl TagPos {
    /// The record is number `position` of `tag`.
    #[must_use]
    pub const fn new(tag: Tag, position: u64) -> Self {
        Self { tag: tag.0, position }
    }

    /// The sub-stream.
    #[must_use]
    pub const fn tag(&self) -> Tag {
        Tag(self.tag)
    }

    /// The place in it, from 0.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }
}

impl NewRecord<'_> {
    /// Appends the record's bytes.
    ///
    /// The caller keeps to [`RECORD_MAX_BYTES`] and [`TAGS_MAX`]; `Append::decode` has checked both.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let len = encoded_len(self.tags.len(), self.payload.len());
        let header = Header {
            len: u32::try_from(len).expect("a record is at most RECORD_MAX_BYTES"),
            crc: 0,
            seq: self.seq.0,
            epoch: self.epoch.0,
            time_ns: self.time_ns,
            incarnation: self.origin.incarnation.0,
            local: self.origin.local.0,
            floor: self.floor.0,
            engine: self.origin.engine.0,
            payload_len: u32::try_from(self.payload.len()).expect("shorter than the record"),
            kind: self.kind as u16,
            tag_count: u16::try_from(self.tags.len()).expect("at most TAGS_MAX"),
            pad: 0,
        };
        out.extend_from_slice(bytemuck::bytes_of(&header));
        out.extend_from_slice(bytemuck::cast_slice(self.tags));
        out.extend_from_slice(self.payload);
        out.resize(start + len, 0);
        let crc = checksum(&out[start..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

impl<'a> RecordRef<'a> {
    /// Takes a record from the front of `bytes`, its checksum compared.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "record";
        let head = bytes.get(..RECORD_HEADER_BYTES).ok_or(DecodeError::Truncated {
            what: WHAT,
            need: RECORD_HEADER_BYTES - bytes.len().min(RECORD_HEADER_BYTES),
        })?;
        let header: Header = bytemuck::pod_read_unaligned(head);
        let len = header.len as usize;
        if len > RECORD_MAX_BYTES || usize::from(header.tag_count) > TAGS_MAX {
            let value = u64::from(header.len);
            return Err(DecodeError::Limit { what: WHAT, value, limit: RECORD_MAX_BYTES as u64 });
        }
        if len != encoded_len(usize::from(header.tag_count), header.payload_len as usize) {
            return Err(DecodeError::Value { what: WHAT, value: u64::from(header.len) });
        }
        let bytes = bytes
            .get(..len)
            .ok_or(DecodeError::Truncated { what: WHAT, need: len - bytes.len().min(len) })?;
        if checksum(bytes) != header.crc {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let kind = RecordKind::try_from(header.kind)?;
        Ok(Self { header, kind, bytes })
    }

    /// The record's own bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its position.
    #[must_use]
    pub const fn seq(&self) -> SeqNum {
        SeqNum(self.header.seq)
    }

    /// The epoch that ordered it.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        Epoch(self.header.epoch)
    }

    /// When it was ordered, in ns since 1970.
    #[must_use]
    pub const fn time_ns(&self) -> u64 {
        self.header.time_ns
    }

    /// Who appended it.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        Origin {
            engine: NodeId(self.header.engine),
            incarnation: Incarnation(self.header.incarnation),
            local: LocalId(self.header.local),
        }
    }

    /// Initial cursor of its root.
    #[must_use]
    pub const fn floor(&self) -> SeqNum {
        SeqNum(self.header.floor)
    }

    /// What it is for.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        self.kind
    }

    /// Its sub-streams.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = TagPos> + use<'a> {
        let end = RECORD_HEADER_BYTES + usize::from(self.header.tag_count) * size_of::<TagPos>();
        self.bytes[RECORD_HEADER_BYTES..end]
            .chunks_exact(size_of::<TagPos>())
            .map(bytemuck::pod_read_unaligned)
    }

    /// What the appender put in.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        let start = RECORD_HEADER_BYTES + usize::from(self.header.tag_count) * size_of::<TagPos>();
        &self.bytes[start..start + self.header.payload_len as usize]
    }
}

impl<'a> Records<'a> {
    /// Walks over `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordRef<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = RecordRef::parse(self.rest);
        self.rest = match &record {
            Ok(record) => &self.rest[record.bytes.len()..],
            Err(_) => &[],
        };
        Some(record)
    }
}

impl TryFrom<u16> for RecordKind {
    type Error = DecodeError;

    fn try_from(value: u16) -> Result<Self, DecodeError> {
        Ok(match value {
            0 => Self::Data,
            1 => Self::Open,
            2 => Self::Evict,
            3 => Self::SafePoint,
            other => {
                return Err(DecodeError::Value { what: "record kind", value: u64::from(other) });
            }
        })
    }
}

impl Open {
    /// The payload's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        out.u16(u16::try_from(self.members.len()).unwrap_or(u16::MAX));
        for member in &self.members {
            out.node(*member);
        }
        bytes
    }

    /// Parses a payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "opening record");
        let count = reader.u16()?;
        let members = (0..count).map(|_| reader.node()).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { members })
    }
}

impl Evict {
    /// The payload's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        Writer(&mut bytes)
            .node(self.engine)
            .u64(self.incarnation.0)
            .node(self.heir)
            .u64(self.heir_incarnation.0);
        bytes
    }

    /// Parses a payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "evict record");
        let evict = Self {
            engine: reader.node()?,
            incarnation: Incarnation(reader.u64()?),
            heir: reader.node()?,
            heir_incarnation: Incarnation(reader.u64()?),
        };
        reader.finish()?;
        Ok(evict)
    }
}

impl SafePoint {
    /// The payload's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.safe_point.0.to_le_bytes().to_vec()
    }

    /// Parses a payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "safe point record");
        let safe_point = reader.seq()?;
        reader.finish()?;
        Ok(Self { safe_point })
    }
}
