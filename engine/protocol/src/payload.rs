//! What the payload of a record says, for those who scan the log (the intent stream).

use halfmoon_wire::{DecodeError, InstanceId};

/// What a record of the intent stream means for roots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Intent {
    /// These roots are in the log from here on (a step that starts a detached root may also carry
    /// its own root's Init, so there can be two).
    Begins(Vec<InstanceId>),
    /// This root has ended.
    Ends(InstanceId),
}

/// Parses a record of the intent stream: what a take-over scans for an Init without a Finish.
pub fn intent(payload: &[u8]) -> Result<Intent, DecodeError> {
    let _ = payload;
    todo!()
}
