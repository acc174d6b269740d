//! Values that came from the engine.

use std::fmt;
use std::ops::Deref;

use halfmoon_channel::{AlignedBytes, Received};

use crate::{Error, Result};

/// A value: bytes where the network has put them, not a copy.
///
/// Long values lie in memory shared with the engine, and are given back when this is dropped. They
/// begin at a multiple of 64 bytes, short ones at a multiple of 8.
pub struct Value(Received);

impl Value {
    pub(crate) const fn new(received: Received) -> Self {
        Self(received)
    }

    /// A value of this process's own.
    pub(crate) fn own(bytes: &[u8]) -> Self {
        Self(Received::Owned(AlignedBytes::copy_of(bytes)))
    }

    /// The value seen as a `T`, in place.
    ///
    /// # Errors
    /// [`Error::Form`] if its length is not that of a `T`, or `T` must be aligned to more.
    pub fn view<T: bytemuck::AnyBitPattern>(&self) -> Result<&T> {
        bytemuck::try_from_bytes(self).map_err(no_form::<T>)
    }

    /// The value seen as a sequence of `T`, in place.
    ///
    /// # Errors
    /// [`Error::Form`] if its length is not a multiple of that of a `T`, or `T` must be aligned to
    /// more.
    pub fn views<T: bytemuck::AnyBitPattern>(&self) -> Result<&[T]> {
        bytemuck::try_cast_slice(self).map_err(no_form::<T>)
    }

    /// The value as text.
    ///
    /// # Errors
    /// [`Error::Form`] if it is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(self)
            .map_err(|why| Error::Form { wanted: "text", why: why.to_string() })
    }

    /// Where it lies in the shared memory's arena, in bytes; none if it is this process's own.
    #[must_use]
    pub fn arena_offset(&self) -> Option<u32> {
        match &self.0 {
            Received::Owned(_) => None,
            Received::Landed(landed) => Some(landed.arena_offset()),
        }
    }
}

fn no_form<T>(why: bytemuck::PodCastError) -> Error {
    Error::Form { wanted: std::any::type_name::<T>(), why: why.to_string() }
}

impl Deref for Value {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq<[u8]> for Value {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value").field("len", &self.len()).finish()
    }
}
