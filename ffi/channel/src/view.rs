//! State buffers as plain slices, on the worker's side.
//!
//! The worker trusts its engine to keep the rules of [`crate::message`]: a buffer of the engine's
//! does not change until it is released, and one of the worker's is only read until it is
//! answered. The engine trusts nothing, and has no such slices.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use crate::arena::{Buffer, Extents};
use crate::layout::{Layout, WORD};
use crate::sys::Mapping;

/// What the buffers of one worker share.
#[derive(Debug)]
pub(crate) struct Views {
    mapping: Arc<Mapping>,
    layout: Layout,
    drafts: RefCell<Extents>,
    releases: RefCell<Vec<Buffer>>,
}

impl Views {
    pub(crate) fn new(mapping: Arc<Mapping>, layout: Layout) -> Rc<Self> {
        let drafts = RefCell::new(Extents::worker_half(layout));
        Rc::new(Self { mapping, layout, drafts, releases: RefCell::default() })
    }

    /// A value that the engine has sent; none if it does not lie in the engine's half.
    pub(crate) fn landed(self: &Rc<Self>, buffer: Buffer) -> Option<Landed> {
        let fits = buffer.lies_in(0, self.layout.engine_bytes());
        fits.then(|| Landed { views: Rc::clone(self), buffer })
    }

    /// A fresh buffer of the worker's.
    pub(crate) fn draft(self: &Rc<Self>, len: usize) -> Result<Draft, crate::AllocError> {
        let buffer = self.drafts.borrow_mut().alloc(len)?;
        Ok(Draft { views: Rc::clone(self), buffer })
    }

    /// The next buffer to release, if any.
    pub(crate) fn released(&self) -> Option<Buffer> {
        self.releases.borrow_mut().pop()
    }

    fn byte_offset(&self, buffer: Buffer) -> usize {
        self.layout.arena_first() * WORD + buffer.start()
    }
}

/// A value that lies in the arena, where the network has put it. Dropping it releases it.
pub struct Landed {
    views: Rc<Views>,
    buffer: Buffer,
}

impl Landed {
    /// Where in the arena it lies, in bytes.
    #[must_use]
    pub fn arena_offset(&self) -> u32 {
        self.buffer.offset
    }
}

impl Deref for Landed {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let at = self.views.byte_offset(self.buffer);
        // SAFETY: the engine has sent this buffer, so nothing is written to it until it is
        // released (`message`, State buffers), which `drop` does; the slice is borrowed from
        // `self`. This process never writes to the engine's half: only `Draft` writes, and lies
        // in the other half.
        unsafe { self.views.mapping.bytes(at, self.buffer.len_bytes()) }
    }
}

impl Drop for Landed {
    fn drop(&mut self) {
        self.views.releases.borrow_mut().push(self.buffer);
    }
}

impl fmt::Debug for Landed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Landed").field(&self.buffer).finish()
    }
}

/// A value that is being built in the arena, from where it goes to storage without another copy
/// in the function.
///
/// Its content is arbitrary at first. While it is handed to the engine, keep it and leave it alone.
pub struct Draft {
    views: Rc<Views>,
    buffer: Buffer,
}

impl Draft {
    /// Its name in messages.
    #[must_use]
    pub const fn buffer(&self) -> Buffer {
        self.buffer
    }
}

impl Deref for Draft {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let at = self.views.byte_offset(self.buffer);
        // SAFETY: the buffer is this draft's alone (the allocator gave it once, `drop` gives it
        // back), its only writer is `deref_mut`, which borrows `self` exclusively, and the engine
        // only reads the worker's half.
        unsafe { self.views.mapping.bytes(at, self.buffer.len_bytes()) }
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut [u8] {
        let at = self.views.byte_offset(self.buffer);
        // SAFETY: as in `deref`, and `self` is borrowed exclusively. The engine may read while
        // this is written only if the worker breaks the rule of the type's documentation; it reads
        // by atomics, in another process, and expects anything.
        unsafe { self.views.mapping.bytes_mut(at, self.buffer.len_bytes()) }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It was allocated here and is freed once, so it is found.
        _ = self.views.drafts.borrow_mut().free(self.buffer);
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Draft").field(&self.buffer).finish()
    }
}
