//! A request to append, as it travels from an engine to the sequencer.

use crate::limits::{CONDITIONS_MAX, RECORD_MAX_BYTES, TAGS_MAX};
use crate::{DecodeError, LocalId, Reader, RecordKind, SeqNum, Tag, Writer};

/// What must hold for an append to be ordered. Conditions of one append hold all or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// The tag's length is `length`, where length = last position in the window + 1.
    Length {
        /// The sub-stream.
        tag: Tag,
        /// Its expected length.
        length: u64,
    },
    /// No record of the tag lies after `after`.
    NothingAfter {
        /// The sub-stream.
        tag: Tag,
        /// The position up to which the appender has seen it.
        after: SeqNum,
    },
}

/// Why an append was not ordered. `condition` is the index in the append's list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// A condition failed. The record that stands in its way is `winner`: for
    /// [`Condition::Length`] the one at that position, for [`Condition::NothingAfter`] the last one
    /// of the tag. It is 0 when there is none: the tag is shorter than expected and the append does
    /// not itself join it (an Init that is not there yet). The sequencer answers at once; whoever
    /// asked is told only once the winner is committed, by the side that holds the index.
    Conflict {
        /// Which condition.
        condition: u16,
        /// What stands there, to be read once it is committed.
        winner: SeqNum,
    },
    /// The expected length lies beyond that of a tag that the append joins: a mistake of the
    /// appender, nobody's death.
    Gap {
        /// Which condition.
        condition: u16,
        /// The tag's length.
        length: u64,
    },
    /// The root's initial cursor, or the position of a condition, is below the safe point.
    RootGone {
        /// The safe point.
        safe_point: SeqNum,
    },
    /// The engine's incarnation was evicted: nothing of it is ordered any more.
    Evicted,
    /// The request breaks a limit or does not parse.
    Invalid,
    /// The sequencer has no room now; to be sent again.
    Overloaded,
}

/// A request to append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append<'a> {
    /// The engine's number for this append.
    pub local: LocalId,
    /// Kind of the record. Engines may only append [`RecordKind::Data`].
    pub kind: RecordKind,
    /// Initial cursor of the root that this belongs to (the rule Floor); `SeqNum::MAX` for records
    /// that belong to no root.
    pub floor: SeqNum,
    /// What must hold. The first condition is judged first.
    pub conditions: Vec<Condition>,
    /// The sub-streams that the record joins.
    pub tags: Vec<Tag>,
    /// Opaque to the log.
    pub payload: &'a [u8],
}

/// An append in borrowed parts: what an engine has in its hands before it is framed.
#[derive(Clone, Copy, Debug)]
pub struct AppendParts<'a> {
    /// As in [`Append`].
    pub local: LocalId,
    /// As in [`Append`].
    pub kind: RecordKind,
    /// As in [`Append`].
    pub floor: SeqNum,
    /// As in [`Append`].
    pub conditions: &'a [Condition],
    /// As in [`Append`].
    pub tags: &'a [Tag],
    /// As in [`Append`].
    pub payload: &'a [u8],
}

/// A checked append in borrowed bytes: what the sequencer judges, without a list built for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppendView<'a> {
    /// As in [`Append`].
    pub local: LocalId,
    /// As in [`Append`].
    pub kind: RecordKind,
    /// As in [`Append`].
    pub floor: SeqNum,
    conditions: &'a [u8],
    tags: &'a [u8],
    /// As in [`Append`].
    pub payload: &'a [u8],
}

const CONDITION_BYTES: usize = 17;
const TAG_BYTES: usize = 8;

impl Condition {
    /// The sub-stream that it looks at.
    #[must_use]
    pub const fn tag(&self) -> Tag {
        match self {
            Self::Length { tag, .. } | Self::NothingAfter { tag, .. } => *tag,
        }
    }
}

impl<'a> Append<'a> {
    /// The same in borrowed parts.
    #[must_use]
    pub fn parts(&self) -> AppendParts<'_> {
        AppendParts {
            local: self.local,
            kind: self.kind,
            floor: self.floor,
            conditions: &self.conditions,
            tags: &self.tags,
            payload: self.payload,
        }
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Writer<'_>) {
        self.parts().encode(out);
    }

    /// Takes an append from the front of `reader`.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let view = AppendView::decode(reader)?;
        Ok(Self {
            local: view.local,
            kind: view.kind,
            floor: view.floor,
            conditions: view.conditions().collect(),
            tags: view.tags().collect(),
            payload: view.payload,
        })
    }
}

impl<'a> AppendView<'a> {
    /// Takes an append from the front of `reader`; everything in it is checked.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let local = LocalId(reader.u64()?);
        let kind = RecordKind::try_from(reader.u16()?)?;
        let floor = reader.seq()?;
        let conditions = list(reader, CONDITIONS_MAX, CONDITION_BYTES)?;
        if let Some(bad) = conditions.iter().step_by(CONDITION_BYTES).find(|kind| **kind > 1) {
            return Err(reader.bad(u64::from(*bad)));
        }
        let tags = list(reader, TAGS_MAX, TAG_BYTES)?;
        let payload = reader.bytes(RECORD_MAX_BYTES)?;
        let view = Self { local, kind, floor, conditions, tags, payload };
        let len = crate::encoded_len(view.tags().len(), payload.len());
        if len > RECORD_MAX_BYTES {
            return Err(DecodeError::Limit {
                what: "record",
                value: len as u64,
                limit: RECORD_MAX_BYTES as u64,
            });
        }
        Ok(view)
    }

    /// What must hold, in the order in which it is judged.
    pub fn conditions(&self) -> impl ExactSizeIterator<Item = Condition> + use<'a> {
        self.conditions.chunks_exact(CONDITION_BYTES).map(|entry| {
            let (tag, value) = (Tag(word(entry, 1)), word(entry, 1 + TAG_BYTES));
            match entry.first() {
                Some(0) => Condition::Length { tag, length: value },
                _ => Condition::NothingAfter { tag, after: SeqNum(value) },
            }
        })
    }

    /// The sub-streams that the record joins.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = Tag> + use<'a> {
        self.tags.chunks_exact(TAG_BYTES).map(|entry| Tag(word(entry, 0)))
    }
}

impl AppendParts<'_> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Writer<'_>) {
        out.u64(self.local.0).u16(self.kind as u16).seq(self.floor);
        out.u16(u16::try_from(self.conditions.len()).unwrap_or(u16::MAX));
        for condition in self.conditions {
            match *condition {
                Condition::Length { tag, length } => out.u8(0).tag(tag).u64(length),
                Condition::NothingAfter { tag, after } => out.u8(1).tag(tag).seq(after),
            };
        }
        out.u16(u16::try_from(self.tags.len()).unwrap_or(u16::MAX));
        for tag in self.tags {
            out.tag(*tag);
        }
        out.bytes(self.payload);
    }
}

impl Refusal {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Writer<'_>) {
        match *self {
            Self::Conflict { condition, winner } => out.u8(0).u16(condition).seq(winner),
            Self::Gap { condition, length } => out.u8(1).u16(condition).u64(length),
            Self::RootGone { safe_point } => out.u8(2).seq(safe_point),
            Self::Evicted => out.u8(3),
            Self::Invalid => out.u8(4),
            Self::Overloaded => out.u8(5),
        };
    }

    /// Takes a refusal from the front of `reader`.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            0 => Self::Conflict { condition: reader.u16()?, winner: reader.seq()? },
            1 => Self::Gap { condition: reader.u16()?, length: reader.u64()? },
            2 => Self::RootGone { safe_point: reader.seq()? },
            3 => Self::Evicted,
            4 => Self::Invalid,
            5 => Self::Overloaded,
            other => return Err(reader.bad(u64::from(other))),
        })
    }
}

/// Takes a count (u16, at most `limit`) and the bytes of that many entries.
fn list<'a>(
    reader: &mut Reader<'a>,
    limit: usize,
    entry_bytes: usize,
) -> Result<&'a [u8], DecodeError> {
    let count = usize::from(reader.u16()?);
    if count > limit {
        return Err(DecodeError::Limit { what: "list", value: count as u64, limit: limit as u64 });
    }
    reader.raw(count * entry_bytes)
}

/// The little-endian word at `at`; 0 beyond the end, which a checked list does not have.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
}
