//! What each side of a new lane says of itself.

use crate::{DecodeError, Incarnation, NodeId, Reader, WIRE_VERSION, Writer};

/// What a node does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Role {
    /// Orders appends.
    Sequencer = 1,
    /// Persists the log and holds state.
    Storage = 2,
    /// Runs functions.
    Engine = 3,
    /// A tool that reads: benchmarks, verification.
    Observer = 4,
}

/// What each side of a new lane says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The cluster that the node belongs to; lanes between clusters are refused.
    pub cluster: u128,
    /// What the node does.
    pub role: Role,
    /// Who it is.
    pub node: NodeId,
    /// Which life of it; for a sequencer its epoch, and 0 while it stands by.
    pub incarnation: Incarnation,
}

const HELLO_MAGIC: u32 = 0x4846_4d4e;

impl Hello {
    /// The hello's bytes. The wire version comes first, and stays first for ever.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        Writer(&mut bytes)
            .u32(HELLO_MAGIC)
            .u32(WIRE_VERSION)
            .u128(self.cluster)
            .u8(self.role as u8)
            .node(self.node)
            .u64(self.incarnation.0);
        bytes
    }

    /// Parses a hello. A wrong version is a [`DecodeError::Version`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "hello");
        let magic = reader.u32()?;
        if magic != HELLO_MAGIC {
            return Err(DecodeError::Value { what: "hello magic", value: u64::from(magic) });
        }
        let version = reader.u32()?;
        if version != WIRE_VERSION {
            return Err(DecodeError::Version { ours: WIRE_VERSION, theirs: version });
        }
        let cluster = reader.u128()?;
        let role = Role::try_from(reader.u8()?)?;
        let hello =
            Self { cluster, role, node: reader.node()?, incarnation: Incarnation(reader.u64()?) };
        reader.finish()?;
        Ok(hello)
    }
}

impl TryFrom<u8> for Role {
    type Error = DecodeError;

    fn try_from(value: u8) -> Result<Self, DecodeError> {
        Ok(match value {
            1 => Self::Sequencer,
            2 => Self::Storage,
            3 => Self::Engine,
            4 => Self::Observer,
            other => return Err(DecodeError::Value { what: "role", value: u64::from(other) }),
        })
    }
}
