//! Small programs: what is explored.

use halfmoon_wire::InstanceId;

use super::stage::When;
use crate::{Mode, TableSpec};

/// One operation. Objects, tables and functions go by number. What is written depends on what was
/// read last, so that a wrong read shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// Read an object.
    R(u8),
    /// Write an object.
    W(u8, u32),
    /// Delete an object.
    D(u8),
    /// Call a function.
    Call(u8),
    /// Call a function that is declared `read_only`.
    CallRo(u8),
    /// Call two functions at once.
    Par(u8, u8),
    /// Call two functions at once and note which was first.
    First(u8, u8),
    /// Start a function that nobody waits for.
    Detach(u8),
    /// A transaction.
    Txn(Txn),
    /// A side effect, whose result is never the same twice.
    Side,
    /// A random draw.
    Draw,
    /// A fence.
    Fence,
}

/// Body of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Txn {
    /// Add one.
    Increment(u8),
    /// Take the seat if it is free.
    Seat(u8),
    /// If both are free, take the third, which is one of them.
    Skew(u8, u8, u8),
    /// Read two objects.
    Read(u8, u8),
    /// Copy the first to the second.
    Copy(u8, u8),
    /// Write the object, then call the function, which takes part, then read the object.
    Through(u8, u8),
    /// Read the object, then write a random number to it.
    Draw(u8),
}

/// A value that some operation read or wrote.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Observed {
    pub(crate) function: u8,
    pub(crate) op: u8,
    /// [`NO_OBJECT`] for what is not an object's value but must be equal in all attempts.
    pub(crate) object: u8,
    pub(crate) write: bool,
    pub(crate) value: u32,
}

/// See [`Observed`].
pub(crate) const NO_OBJECT: u8 = 255;

/// A root and its attempts.
#[derive(Clone, Debug)]
pub(crate) struct RootSpec {
    /// The function it runs.
    pub(crate) function: u8,
    /// The reply carries an idempotency key.
    pub(crate) keyed: bool,
    /// When each of its attempts may start.
    pub(crate) attempts: Vec<When>,
    /// Lengthens the input until it is a version in the store.
    pub(crate) large_input: bool,
    /// What each attempt's client sends; attempts beyond the list send 0.
    pub(crate) inputs: Vec<u32>,
}

/// What is explored.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) tables: Vec<TableSpec>,
    pub(crate) functions: Vec<Vec<Op>>,
    pub(crate) roots: Vec<RootSpec>,
    pub(crate) mode: Mode,
    /// Values are too long for records.
    pub(crate) large: bool,
    /// Those who ended append their Finish, sooner or later or never.
    pub(crate) finish: bool,
    /// Judge by the weaker promise of `order = relaxed`.
    pub(crate) relaxed: bool,
    /// Somebody asks for this root to be cancelled, at any time.
    pub(crate) cancel: Option<usize>,
}

/// The id of root number `root`.
pub(crate) fn root_id(root: usize) -> InstanceId {
    // The first in the middle, so that its callees come before and after; the others at the end.
    InstanceId(if root == 0 { 1 << 127 } else { u128::MAX - root as u128 })
}
