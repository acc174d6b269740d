//! Little-endian encoding of cold messages. Hot structures (records) are plain old data instead.

use crate::{CellTuple, Epoch, Incarnation, InstanceId, LocalId, NodeId, Origin, SeqNum, Tag};
use crate::{RunId, VersionId};

/// Why bytes were refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the structure does.
    #[error("truncated: {need} more bytes of {what} expected")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes that are missing.
        need: usize,
    },
    /// The structure ends before the bytes do.
    #[error("{extra} bytes too many after {what}")]
    Trailing {
        /// What was read.
        what: &'static str,
        /// Bytes left over.
        extra: usize,
    },
    /// The checksum does not match: damaged, or not written completely.
    #[error("checksum mismatch in {what}")]
    Checksum {
        /// What was read.
        what: &'static str,
    },
    /// A field has a value that it may not have.
    #[error("{what} is {value}, which is not allowed")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The peer speaks another version of what nodes say to each other.
    #[error(
        "the peer speaks wire version {theirs}, this node speaks {ours}: \
         run the same release of Halfmoon on both"
    )]
    Version {
        /// This side's version.
        ours: u32,
        /// The peer's version.
        theirs: u32,
    },
    /// A length or count exceeds its named limit.
    #[error("{what} is {value}, over its limit of {limit}")]
    Limit {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    Text {
        /// The field.
        what: &'static str,
    },
}

/// Appends values to a buffer.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

/// Takes values from the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

macro_rules! integers {
    ($($write:ident $read:ident $type:ty;)*) => {
        impl Writer<'_> {
            $(
                /// Appends the value, little-endian.
                pub fn $write(&mut self, value: $type) -> &mut Self {
                    self.0.extend_from_slice(&value.to_le_bytes());
                    self
                }
            )*
        }
        impl<'a> Reader<'a> {
            $(
                /// Takes a little-endian value.
                pub fn $read(&mut self) -> Result<$type, DecodeError> {
                    Ok(<$type>::from_le_bytes(self.array()?))
                }
            )*
        }
    };
}

integers! {
    u8 u8 u8;
    u16 u16 u16;
    u32 u32 u32;
    u64 u64 u64;
    u128 u128 u128;
}

impl Writer<'_> {
    /// Appends raw bytes, without a length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a length (u32) and the bytes.
    ///
    /// Lengths over `u32::MAX` cannot occur: every caller's limit is far below.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).expect("limits keep lengths below 4 GiB");
        self.u32(len).raw(bytes)
    }

    /// Appends a length and UTF-8 text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Appends a flag and, if it is there, the value.
    pub fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) -> &mut Self {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                put(self, value);
                self
            }
        }
    }

    /// Appends a position.
    pub fn seq(&mut self, seq: SeqNum) -> &mut Self {
        self.u64(seq.0)
    }

    /// Appends an epoch.
    pub fn epoch(&mut self, epoch: Epoch) -> &mut Self {
        self.u64(epoch.0)
    }

    /// Appends a tag.
    pub fn tag(&mut self, tag: Tag) -> &mut Self {
        self.u64(tag.0)
    }

    /// Appends a node id.
    pub fn node(&mut self, node: NodeId) -> &mut Self {
        self.u32(node.0)
    }

    /// Appends an origin.
    pub fn origin(&mut self, origin: Origin) -> &mut Self {
        self.node(origin.engine).u64(origin.incarnation.0).u64(origin.local.0)
    }

    /// Appends a cell's tuple.
    pub fn tuple(&mut self, tuple: CellTuple) -> &mut Self {
        self.seq(tuple.cursor).u32(tuple.counter).u128(tuple.instance.0)
    }
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`; `what` names the structure in errors.
    #[must_use]
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// What is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Succeeds only when nothing is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { what: self.what, extra }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated { what: self.what, need: N - self.rest.len().min(N) })?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes `len` raw bytes.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| {
            DecodeError::Truncated { what: self.what, need: len - self.rest.len() }
        })?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes all that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Takes a length (u32, at most `limit`) and that many bytes.
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.count(limit)?;
        self.raw(len)
    }

    /// Takes a length and UTF-8 text.
    pub fn text(&mut self, limit: usize) -> Result<&'a str, DecodeError> {
        let what = self.what;
        std::str::from_utf8(self.bytes(limit)?).map_err(|_| DecodeError::Text { what })
    }

    /// Takes a count (u32, at most `limit`).
    pub fn count(&mut self, limit: usize) -> Result<usize, DecodeError> {
        let value = self.u32()?;
        match usize::try_from(value) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(DecodeError::Limit {
                what: self.what,
                value: u64::from(value),
                limit: limit as u64,
            }),
        }
    }

    /// Takes a flag that must be 0 or 1.
    pub fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Value { what: self.what, value: u64::from(other) }),
        }
    }

    /// Takes a flag and, if it is 1, a value.
    pub fn option<T>(
        &mut self,
        take: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.flag()? { take(self).map(Some) } else { Ok(None) }
    }

    /// An error that names this structure and the value.
    #[must_use]
    pub const fn bad(&self, value: u64) -> DecodeError {
        DecodeError::Value { what: self.what, value }
    }

    /// Takes a position.
    pub fn seq(&mut self) -> Result<SeqNum, DecodeError> {
        self.u64().map(SeqNum)
    }

    /// Takes an epoch.
    pub fn epoch(&mut self) -> Result<Epoch, DecodeError> {
        self.u64().map(Epoch)
    }

    /// Takes a tag.
    pub fn tag(&mut self) -> Result<Tag, DecodeError> {
        self.u64().map(Tag)
    }

    /// Takes a node id.
    pub fn node(&mut self) -> Result<NodeId, DecodeError> {
        self.u32().map(NodeId)
    }

    /// Takes an instance id.
    pub fn instance(&mut self) -> Result<InstanceId, DecodeError> {
        self.u128().map(InstanceId)
    }

    /// Takes a run id.
    pub fn run(&mut self) -> Result<RunId, DecodeError> {
        self.u128().map(RunId)
    }

    /// Takes a version id.
    pub fn version(&mut self) -> Result<VersionId, DecodeError> {
        self.u128().map(VersionId)
    }

    /// Takes an origin.
    pub fn origin(&mut self) -> Result<Origin, DecodeError> {
        Ok(Origin {
            engine: self.node()?,
            incarnation: Incarnation(self.u64()?),
            local: LocalId(self.u64()?),
        })
    }

    /// Takes a cell's tuple.
    pub fn tuple(&mut self) -> Result<CellTuple, DecodeError> {
        Ok(CellTuple { cursor: self.seq()?, counter: self.u32()?, instance: self.instance()? })
    }
}
