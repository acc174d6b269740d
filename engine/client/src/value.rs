//! Values on their way to and from the state store.

use std::any::Any;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use halfmoon_transport::memory::append_out;
use halfmoon_transport::{Memory, RegionId};
use halfmoon_wire::{CellTuple, Landing, SeqNum};

/// A value to be put.
#[derive(Clone)]
pub enum ValueIn {
    /// Bytes in this process's memory.
    Bytes(Rc<[u8]>),
    /// A range of memory that is read while it is sent, without a copy when it is long. It must
    /// not change until `hold` is dropped.
    Memory {
        /// The memory.
        memory: Arc<dyn Memory>,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Dropped once nothing reads the range any more; the client keeps clones meanwhile.
        hold: Rc<dyn Any>,
    },
}

/// Memory lent for a large value to land in. Nodes write there at any time until `hold` is
/// dropped, also after the future that it was given to.
#[derive(Clone)]
pub struct Lend {
    /// The region under which [`crate::Driver::expose`] made the memory known to peers.
    pub region: RegionId,
    /// The same memory.
    pub memory: Arc<dyn Memory>,
    /// First byte.
    pub offset: u64,
    /// Room in bytes.
    pub capacity: u32,
    /// Dropped once no node can write there any more; the client keeps clones meanwhile.
    pub hold: Rc<dyn Any>,
}

/// A value that was got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A short one.
    Bytes(Vec<u8>),
    /// So many bytes of the memory that was lent.
    Landed {
        /// Bytes.
        len: u32,
    },
}

/// A cell of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    /// Its place in the order.
    pub tuple: CellTuple,
    /// The value; `None` when it was deleted.
    pub value: Option<Value>,
}

/// What an object was before the window of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// Position of the record that it stands for.
    pub seq: SeqNum,
    /// The value; `None` when it was deleted.
    pub value: Option<Value>,
}

impl ValueIn {
    /// Bytes of the value. One longer than 4 GiB is over every limit, and stays so.
    #[must_use]
    pub fn len(&self) -> u32 {
        match self {
            Self::Bytes(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Self::Memory { len, .. } => *len,
        }
    }

    /// Whether the value has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy; `None` when the range does not lie within the memory.
    pub(crate) fn copy(&self) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Some(bytes.to_vec()),
            Self::Memory { memory, offset, len, .. } => {
                let mut copy = Vec::new();
                append_out(memory.words(), *offset, *len as usize, &mut copy).ok()?;
                Some(copy)
            }
        }
    }
}

impl Lend {
    pub(crate) fn landing(&self) -> Landing {
        Landing { region: self.region.0, offset: self.offset, capacity: self.capacity }
    }

    /// What has landed, to be put elsewhere.
    pub(crate) fn landed(&self, len: u32) -> ValueIn {
        let (memory, hold) = (self.memory.clone(), self.hold.clone());
        ValueIn::Memory { memory, offset: self.offset, len, hold }
    }
}

impl fmt::Debug for ValueIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ValueIn({} bytes)", self.len())
    }
}

impl fmt::Debug for Lend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lend").field(&self.landing()).finish()
    }
}
