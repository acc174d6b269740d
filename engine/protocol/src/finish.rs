//! The end of an instance.

use crate::call::Outcome;
use crate::{Done, Ops};

/// An instance has ended: reply with the outcome, then append its Finish in the background.
pub struct Ending<O: Ops> {
    /// What the caller, or the client, is told.
    pub outcome: Outcome<O::Value>,
    /// What is left to do. A root with one is *unfinished* until [`Finish::append`] has returned.
    pub finish: Option<Finish<O>>,
}

/// A Finish that is still to be appended.
pub struct Finish<O: Ops> {
    ops: O,
}

impl<O: Ops> Finish<O> {
    /// Appends it; that a peer's is there already is success.
    pub async fn append(self) -> Done<(), O> {
        let _ = self.ops;
        todo!()
    }
}
