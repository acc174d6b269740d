//! The system calls of the channel, behind a safe surface: the mapping of the sealed memory, file
//! descriptors inherited by number, and what happens between fork and exec.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::FdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::layout::WORD;

/// Shared memory of a fixed size, mapped until it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    first: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: a mapping is an address and a length that never change; what lies there is only reached
// as atomics (`words`, `flag`), or through `bytes` and `bytes_mut`, whose callers argue themselves.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`: shared access is by atomics.
unsafe impl Sync for Mapping {}

/// What keeps either side from pulling the memory away under the other.
fn seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
}

impl Mapping {
    /// Fresh zeroed memory of `bytes`, sealed against a change of size.
    pub(crate) fn create(bytes: usize) -> io::Result<(OwnedFd, Self)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("halfmoon-channel", flags)?;
        rustix::fs::ftruncate(&fd, bytes as u64)?;
        rustix::fs::fcntl_add_seals(&fd, seals())?;
        let mapping = Self::map(fd.as_fd(), bytes)?;
        Ok((fd, mapping))
    }

    /// Maps the memory behind `fd`, which must be sealed as [`Mapping::create`] does it.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        if !rustix::fs::fcntl_get_seals(fd)?.contains(seals()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory is not sealed"));
        }
        let size = rustix::fs::fstat(fd)?.st_size;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidData)?;
        Self::map(fd, size)
    }

    fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint lets the kernel choose the address, so no mapping of this process is
        // replaced.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, fd, 0)?
        };
        let first = NonNull::new(base.cast::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { first, words: bytes / WORD })
    }

    /// The whole memory.
    pub(crate) const fn words(&self) -> &[AtomicU64] {
        // SAFETY: `first` points to `words` mapped words (`map`), page-aligned, and they stay
        // mapped and of that size as long as `self`: unmapped only in `drop`, sealed against
        // shrinking. Atomics may be changed by others, here by another process.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.words) }
    }

    /// The low half of a word, for a futex. Nobody uses that word as a whole.
    pub(crate) fn flag(&self, word: usize) -> &AtomicU32 {
        let word: *const AtomicU64 = &raw const self.words()[word];
        // SAFETY: the word lies in the mapping (indexed just now) and is aligned for more than a
        // half of it; `u32` atomics are used on it everywhere and `u64` ones nowhere (`layout`
        // gives these words to `bell` alone), so accesses never mix in size.
        unsafe { &*word.cast::<AtomicU32>() }
    }

    /// Bytes of the memory, as a plain slice.
    ///
    /// # Safety
    /// Nobody, in this process or another, writes to the range while the slice lives.
    ///
    /// # Panics
    /// If the range does not lie in the memory.
    pub(crate) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        self.check(offset, len);
        // SAFETY: the range lies in the mapping (checked), which lives as long as `self`; that
        // nobody writes is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr().cast::<u8>().add(offset), len) }
    }

    /// Bytes of the memory, to write to.
    ///
    /// # Safety
    /// Nobody else, in this process or another, reads or writes the range while the slice lives.
    ///
    /// # Panics
    /// If the range does not lie in the memory.
    #[expect(clippy::mut_from_ref, reason = "exclusive use of the range is the caller's promise")]
    pub(crate) unsafe fn bytes_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        self.check(offset, len);
        // SAFETY: the range lies in the mapping (checked), which lives as long as `self`; that
        // nobody else uses it is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr().cast::<u8>().add(offset), len) }
    }

    fn check(&self, offset: usize, len: usize) {
        let end = offset.checked_add(len).expect("a range ends within the address space");
        assert!(end <= self.words * WORD, "a range lies in the mapping");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let base = self.first.as_ptr().cast::<c_void>();
        // SAFETY: `map` mapped exactly this range, and no reference into it outlives `self`: all
        // are borrowed from it. A failure leaves it mapped, which harms nobody.
        _ = unsafe { rustix::mm::munmap(base, self.words * WORD) };
    }
}

/// Makes the child of `command` inherit `fds` under their numbers, and die with the thread that
/// spawns it.
pub(crate) fn inherit(command: &mut Command, fds: Vec<Arc<OwnedFd>>) {
    let prepare = move || {
        for fd in &fds {
            rustix::io::fcntl_setfd(fd.as_fd(), FdFlags::empty())?;
        }
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made: fcntl and prctl, with
    // no allocation. The descriptors are kept open by the `Arc`s that the closure owns.
    unsafe { command.pre_exec(prepare) };
}

/// Takes over a descriptor that this process inherited by number, and keeps it from its own
/// children.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // Standard input, output and error belong to others.
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number only lives for this call; if it is not an open descriptor, fcntl says so
    // and nothing is done with it.
    let there = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: the number is open (just asked), and it was passed to this process for this channel
    // alone (the environment names it, and the caller takes it once), so nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, there | FdFlags::CLOEXEC)?;
    Ok(fd)
}
