//! Messages over one-sided writes: a ring of bytes for each direction of a lane.
//!
//! The receiver owns the memory, the sender places entries in it, and nothing but writes passes
//! between them. An entry begins at a multiple of eight bytes:
//!
//! ```text
//! word 0   position: where in the endless stream of bytes the entry begins, from 1 lap on
//! word 1   length of the payload (low half) and kind (high half)
//! word 2   CRC32C of position, length, kind, epoch and payload (low half) and epoch (high half)
//! then     payload, and zeros up to a multiple of eight
//! ```
//!
//! Beside the ring the receiver owns a word, the *extent*: the position up to which the sender has
//! placed entries, written after them by a write of its own. Writes of a lane are applied in order
//! (T1), so what the extent covers is whole, and nobody looks at anything else.
//!
//! - **M1.** An entry is delivered only if the extent covers it, its position is the one expected,
//!   and the CRC over a *copy* of it holds. So an entry that is visible in part is not looked at, and
//!   one of an earlier lap never passes; nothing is zeroed between laps.
//! - **M2.** The sender never overwrites what the receiver has not consumed: it knows how far the
//!   receiver has come from a word that the receiver writes back, the credit.
//! - **M3.** An entry does not wrap. What is left at the end of a lap is covered by a pad entry,
//!   or skipped by both sides where not even a header fits.
//! - **M4.** An entry that the extent covers and that fails its check is corrupt, and the lane with
//!   it. So is an extent that falls, or that runs ahead of the credit.

use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::memory::{self, WORD};

/// Bytes of an entry's header.
pub const HEADER_BYTES: usize = 3 * WORD;

/// Smallest ring, in bytes.
pub const MIN_RING_BYTES: usize = 4 << 10;

/// Ring size unless said otherwise, in bytes.
pub const DEFAULT_RING_BYTES: usize = 4 << 20;

/// Largest ring, in bytes.
pub const MAX_RING_BYTES: usize = 1 << 30;

/// The longest message of a ring is its size divided by this.
pub const MESSAGE_SHARE: usize = 4;

/// Credit is given back each time the ring size divided by this was consumed.
pub const CREDIT_SHARE: usize = 8;

const MESSAGE: u32 = 1;
const PAD: u32 = 2;

/// The longest message that a ring of this size carries, in bytes.
///
/// With a pad and the credit that is held back it is under half a ring, so a sender that waits for
/// room always gets it once the receiver has read everything.
pub fn max_message_bytes(ring_bytes: usize) -> usize {
    ring_bytes / MESSAGE_SHARE - HEADER_BYTES
}

/// Whether a ring may have this size.
pub fn is_ring_size(bytes: usize) -> bool {
    bytes.is_multiple_of(WORD) && (MIN_RING_BYTES..=MAX_RING_BYTES).contains(&bytes)
}

/// Bytes of an entry with a payload of `len`.
fn entry_bytes(len: usize) -> usize {
    HEADER_BYTES + len.next_multiple_of(WORD)
}

/// The header of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    position: u64,
    len: u32,
    kind: u32,
    epoch: u32,
}

impl Header {
    /// CRC of the fields, to be continued over the payload.
    fn crc(self) -> u32 {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.position.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.kind.to_le_bytes());
        bytes[16..].copy_from_slice(&self.epoch.to_le_bytes());
        crc32c::crc32c(&bytes)
    }

    fn encode(self, crc: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.position.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.kind.to_le_bytes());
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes[20..].copy_from_slice(&self.epoch.to_le_bytes());
        bytes
    }
}

/// Why an entry cannot be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// The receiver has not consumed enough yet.
    #[error("the peer's ring is full")]
    Full,
    /// No message may be that long.
    #[error("a message of {len} bytes is longer than {limit}")]
    TooLong {
        /// Bytes of the message.
        len: usize,
        /// Most bytes of a message.
        limit: usize,
    },
}

/// A credit that the receiver cannot have meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the peer gave back {credit} in a ring that it has consumed up to {consumed} of {sent}")]
pub struct BadCredit {
    credit: u64,
    consumed: u64,
    sent: u64,
}

/// An extent that the sender cannot have meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the peer placed entries up to {extent} in a ring that was read up to {read} of {known}")]
pub struct BadExtent {
    extent: u64,
    read: u64,
    known: u64,
}

/// Where the next entry goes, and what precedes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// A pad entry that is to be written first: its offset in the ring and its bytes.
    pub pad: Option<(u64, [u8; HEADER_BYTES])>,
    /// Offset of the entry in the ring, in bytes.
    pub offset: u64,
    /// Its header.
    pub header: [u8; HEADER_BYTES],
    /// How many zero bytes follow the payload.
    pub fill: usize,
    next: u64,
}

impl Placement {
    /// How many bytes of writes this placement makes, pad included.
    pub fn bytes(&self, payload: usize) -> usize {
        let pad = if self.pad.is_some() { HEADER_BYTES } else { 0 };
        pad + entry_bytes(payload)
    }
}

/// The sender's side of a ring: pure bookkeeping.
#[derive(Debug)]
pub struct RingWriter {
    size: u64,
    epoch: u32,
    position: u64,
    consumed: u64,
    /// The extent that the receiver was told.
    told: u64,
    max_message: usize,
}

impl RingWriter {
    /// The writer to an empty ring. `size` must be a ring size, see [`is_ring_size`].
    pub fn new(size: usize, epoch: u32) -> Self {
        assert!(is_ring_size(size));
        let max_message = max_message_bytes(size);
        let size = size as u64;
        Self { size, epoch, position: size, consumed: size, told: size, max_message }
    }

    /// Learns how far the receiver has come, as read from the credit word.
    pub fn credit(&mut self, credit: u64) -> Result<(), BadCredit> {
        // The word is zero until the first credit arrives.
        if credit == 0 && self.consumed == self.size {
            return Ok(());
        }
        if credit < self.consumed || credit > self.position {
            let (consumed, sent) = (self.consumed, self.position);
            return Err(BadCredit { credit, consumed, sent });
        }
        self.consumed = credit;
        Ok(())
    }

    /// Whether a message of `len` bytes could be placed now.
    pub fn fits(&self, len: usize) -> bool {
        let (_, start) = self.start(len);
        start + entry_bytes(len) as u64 <= self.consumed + self.size
    }

    /// Finds the place of the next message and makes its header. Nothing changes before
    /// [`commit`](Self::commit).
    pub fn place(&self, parts: &[&[u8]]) -> Result<Placement, PlaceError> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let limit = self.max_message;
        let too_long = PlaceError::TooLong { len, limit };
        if len > limit {
            return Err(too_long);
        }
        if !self.fits(len) {
            return Err(PlaceError::Full);
        }
        let (left, start) = self.start(len);
        let pad = (start != self.position && left >= HEADER_BYTES as u64).then(|| {
            let (position, epoch) = (self.position, self.epoch);
            // Less than MAX_RING_BYTES, which a u32 holds.
            let len = u32::try_from(left - HEADER_BYTES as u64).unwrap_or(u32::MAX);
            let header = Header { position, len, kind: PAD, epoch };
            (self.position % self.size, header.encode(header.crc()))
        });
        let payload = u32::try_from(len).map_err(|_| too_long)?;
        let header = Header { position: start, len: payload, kind: MESSAGE, epoch: self.epoch };
        let crc = parts.iter().fold(header.crc(), |crc, part| crc32c::crc32c_append(crc, part));
        Ok(Placement {
            pad,
            offset: start % self.size,
            header: header.encode(crc),
            fill: len.next_multiple_of(WORD) - len,
            next: start + entry_bytes(len) as u64,
        })
    }

    /// Takes the place: the entry has been posted.
    pub fn commit(&mut self, placement: &Placement) {
        self.position = placement.next;
    }

    /// What is to be written to the receiver's extent, after the entries: until it is, nobody looks
    /// at them.
    pub fn extent_due(&self) -> Option<u64> {
        (self.position != self.told).then_some(self.position)
    }

    /// Notes that the extent of [`extent_due`](Self::extent_due) was posted.
    pub fn told(&mut self, extent: u64) {
        self.told = extent;
    }

    /// What is left of this lap, and where a message of `len` bytes would begin.
    fn start(&self, len: usize) -> (u64, u64) {
        let left = self.size - self.position % self.size;
        let wraps = left < entry_bytes(len) as u64;
        (left, if wraps { self.position + left } else { self.position })
    }
}

/// What the reader finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A message.
    Message(&'a [u8]),
    /// Nothing more.
    Nothing,
    /// An entry that can never become whole (M4).
    Corrupt,
}

/// The receiver's side of a ring.
#[derive(Debug)]
pub struct RingReader {
    size: u64,
    epoch: u32,
    position: u64,
    /// Up to where entries are in place.
    extent: u64,
    credited: u64,
    max_message: usize,
    /// The copy that is checked and handed out.
    copy: Vec<u8>,
}

impl RingReader {
    /// The reader of fresh, zeroed memory. `size` must be a ring size, see [`is_ring_size`].
    pub fn new(size: usize, epoch: u32) -> Self {
        assert!(is_ring_size(size));
        let max_message = max_message_bytes(size);
        let size = size as u64;
        let (position, extent, credited) = (size, size, size);
        Self { size, epoch, position, extent, credited, max_message, copy: Vec::new() }
    }

    /// Learns how far the sender has come, as read from the extent.
    pub fn extent(&mut self, extent: u64) -> Result<(), BadExtent> {
        // The word is zero until the first extent arrives.
        if extent == 0 && self.extent == self.size {
            return Ok(());
        }
        if extent < self.extent || extent > self.position + self.size {
            let (read, known) = (self.position, self.extent);
            return Err(BadExtent { extent, read, known });
        }
        self.extent = extent;
        Ok(())
    }

    /// Takes the next message that the extent covers.
    ///
    /// `words` are those of the ring, `size` bytes of them.
    pub fn next(&mut self, words: &[AtomicU64]) -> Found<'_> {
        // Twice at most: a pad is followed by the start of a lap, where no pad may be.
        for _ in 0..2 {
            if self.expected() >= self.extent {
                return Found::Nothing;
            }
            match self.look(words) {
                Look::Corrupt => return Found::Corrupt,
                Look::Pad { next } => self.position = next,
                Look::Message { next } => {
                    self.position = next;
                    return Found::Message(&self.copy);
                }
            }
        }
        Found::Corrupt
    }

    /// Where the next entry begins. What is skipped before it counts as read only together with
    /// it: until then the sender has not gone past it, and credit for it would be refused.
    fn expected(&self) -> u64 {
        let left = self.size - self.position % self.size;
        if left < HEADER_BYTES as u64 { self.position + left } else { self.position }
    }

    /// What is to be written to the sender's credit word, if it is time.
    pub fn credit_due(&self) -> Option<u64> {
        let owed = self.position - self.credited;
        (owed >= self.size / CREDIT_SHARE as u64).then_some(self.position)
    }

    /// Notes that the credit of [`credit_due`](Self::credit_due) was posted.
    pub fn credited(&mut self, credit: u64) {
        self.credited = credit;
    }

    fn look(&mut self, words: &[AtomicU64]) -> Look {
        let expected = self.expected();
        let at = expected % self.size;
        let index = usize::try_from(at).unwrap_or(usize::MAX) / WORD;
        let Some([position, shape, check]) = words.get(index..index + 3) else {
            return Look::Corrupt;
        };
        let position = u64::from_le(position.load(Ordering::Acquire));
        let (len, kind) = halves(shape);
        let (crc, epoch) = halves(check);
        let header = Header { position, len, kind, epoch };
        let left = self.size - at;
        let next = expected + entry_bytes(len as usize) as u64;
        if position != expected || epoch != self.epoch || next > self.extent.min(expected + left) {
            return Look::Corrupt;
        }
        match kind {
            PAD if header.crc() == crc && next - expected == left => Look::Pad { next },
            MESSAGE if len as usize <= self.max_message => {
                self.copy.resize(len as usize, 0);
                let from = at + HEADER_BYTES as u64;
                let whole = memory::copy_out(words, from, &mut self.copy).is_ok()
                    && crc32c::crc32c_append(header.crc(), &self.copy) == crc;
                if whole { Look::Message { next } } else { Look::Corrupt }
            }
            _ => Look::Corrupt,
        }
    }
}

/// The reader's view of the entry it expects.
enum Look {
    Corrupt,
    Pad { next: u64 },
    Message { next: u64 },
}

/// The low and the high half of a word.
fn halves(word: &AtomicU64) -> (u32, u32) {
    let halves: [u32; 2] = bytemuck::cast(word.load(Ordering::Acquire));
    (u32::from_le(halves[0]), u32::from_le(halves[1]))
}

#[cfg(test)]
mod tests;
