//! Identifiers and positions. Each is its own type, so that none is mistaken for another.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map($name)
            }
        }
    };
}

number! {
    /// Position in a log: dense, the first record is 1, and 0 means "nothing yet".
    SeqNum(u64)
}
number! {
    /// One sequencer's reign. Grows by compare-and-set in the metadata store; 0 is before the first.
    Epoch(u64)
}
number! {
    /// Name of a sub-stream of a log: a 64-bit hash of a typed name (see [`crate::tag`]).
    Tag(u64)
}
number! {
    /// A node of the cluster, unique over all roles.
    NodeId(u32)
}
number! {
    /// One life of an engine process. A restarted engine has a higher one.
    Incarnation(u64)
}
number! {
    /// Number that an engine incarnation gives to each of its appends, ascending from 1.
    LocalId(u64)
}

id128! {
    /// One logical execution of a function, however often attempted.
    InstanceId
}
id128! {
    /// A root together with the cursor it started from.
    RunId
}
id128! {
    /// One immutable value of an object.
    VersionId
}

impl SeqNum {
    /// Before the first record.
    pub const ZERO: Self = Self(0);
    /// No bound.
    pub const MAX: Self = Self(u64::MAX);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The position before this one; of 0 it is 0.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Who appended a record, and which of its appends it is: what makes a resubmission recognisable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Origin {
    /// The engine; 0 for records that the sequencer itself makes.
    pub engine: NodeId,
    /// The engine's life.
    pub incarnation: Incarnation,
    /// The engine's number for this append.
    pub local: LocalId,
}

/// Order of log-free writes to one cell: a function of the log, so that every attempt writes under
/// the same one, and cells only grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct CellTuple {
    /// Cursor of the writer.
    pub cursor: SeqNum,
    /// Log-free writes since the cursor moved.
    pub counter: u32,
    /// The writer; tells parallel callees apart.
    pub instance: InstanceId,
}
