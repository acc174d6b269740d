//! One batch: what one flush makes durable, or nothing of it.
//!
//! A batch proves three things about itself. That it is whole: a CRC over header and body. That it
//! is *here*: log and segment are under that CRC, so bytes of another file, and of an earlier life of
//! this file, do not pass. And that it follows the batch before it: that one's CRC is under it too,
//! so a suffix that was half overwritten does not read as a log. See docs/formats/segment.md.

use bytemuck::{Pod, Zeroable};
use halfmoon_wire::{Epoch, SeqNum, broken};

use crate::limits::BLOCK_BYTES;

/// Bytes of a batch before its body.
pub const BATCH_HEADER_BYTES: usize = size_of::<Header>();

/// A log: drawn at random when a node's directory is made, and different for its log and its state
/// log, so that no file passes for one of another's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogId(pub u64);

/// A segment of a log, ascending from 1 and never used again, whatever file holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentId(pub u64);

/// What a batch says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum BatchKind {
    /// The first of a segment; the body is a checkpoint.
    Start = 1,
    /// The first of a life of the node: what an earlier life left behind it does not continue it.
    Open = 2,
    /// Records, from `first` to `last`.
    Records = 3,
    /// The log ends at `last` from here on; what followed is void.
    Cut = 4,
    /// Nothing older than `epoch` is served.
    Promise = 5,
    /// All up to `last` is no longer needed; segments that hold nothing else may go.
    Trim = 6,
    /// Nothing; says that what lies before it is durable.
    Mark = 7,
}

/// The fields of a batch that its writer chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchInfo {
    /// What it says.
    pub kind: BatchKind,
    /// The epoch of the stream, or the one promised.
    pub epoch: Epoch,
    /// First position (0 where there is none).
    pub first: SeqNum,
    /// Last position.
    pub last: SeqNum,
}

/// Where a batch stands in its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its log.
    pub log: LogId,
    /// Its segment.
    pub segment: SegmentId,
    /// Its number, dense over all segments, from 1.
    pub number: u64,
    /// Which life of the node wrote it.
    pub life: u64,
    /// Batches up to this number were durable when it was laid out.
    pub durable: u64,
    /// CRC of the batch before it; 0 before the first.
    pub previous: u32,
}

/// A whole batch in borrowed bytes: its own checksum matches. Whether it continues a chain is for
/// the reader to compare.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Its place.
    pub place: Place,
    /// Its fields.
    pub info: BatchInfo,
    /// Its checksum: `previous` of the next.
    pub crc: u32,
    /// Its body.
    pub body: &'a [u8],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: u32,
    crc: u32,
    version: u16,
    kind: u16,
    body_len: u32,
    log: u64,
    segment: u64,
    number: u64,
    life: u64,
    durable: u64,
    epoch: u64,
    first: u64,
    last: u64,
    previous: u32,
    pad: u32,
}

const MAGIC: u32 = 0x4253_4d48; // "HMSB"
const VERSION: u16 = 1;

/// Bytes that a batch takes on disk.
#[must_use]
pub const fn batch_bytes(body_len: usize) -> usize {
    (BATCH_HEADER_BYTES + body_len).next_multiple_of(BLOCK_BYTES)
}

/// Writes a batch to the front of `out`, padding included, and returns its checksum.
///
/// # Panics
/// If `out` is shorter than [`batch_bytes`] or the body is over the limit: the layout has measured.
pub(crate) fn encode(place: &Place, info: &BatchInfo, body: &[u8], out: &mut [u8]) -> u32 {
    let total = batch_bytes(body.len());
    let mut header = Header {
        magic: MAGIC,
        crc: 0,
        version: VERSION,
        kind: info.kind as u16,
        body_len: u32::try_from(body.len()).expect("a body is at most BATCH_BODY_MAX_BYTES"),
        log: place.log.0,
        segment: place.segment.0,
        number: place.number,
        life: place.life,
        durable: place.durable,
        epoch: info.epoch.0,
        first: info.first.0,
        last: info.last.0,
        previous: place.previous,
        pad: 0,
    };
    header.crc = checksum(bytemuck::bytes_of(&header), body);
    let (head, rest) = out[..total].split_at_mut(BATCH_HEADER_BYTES);
    head.copy_from_slice(bytemuck::bytes_of(&header));
    let (text, padding) = rest.split_at_mut(body.len());
    text.copy_from_slice(body);
    padding.fill(0);
    header.crc
}

impl<'a> Batch<'a> {
    /// The batch at the front of `bytes`, if a whole one of this segment is there.
    #[must_use]
    pub fn parse(log: LogId, segment: SegmentId, bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..BATCH_HEADER_BYTES)?;
        let header: Header = bytemuck::pod_read_unaligned(head);
        let ours = header.magic == MAGIC
            && header.version == VERSION
            && header.log == log.0
            && header.segment == segment.0;
        if !ours {
            return None;
        }
        let body_end = BATCH_HEADER_BYTES.checked_add(header.body_len as usize)?;
        let body = bytes.get(BATCH_HEADER_BYTES..body_end)?;
        if checksum(head, body) != header.crc && !broken!(TornBatchAccepted) {
            return None;
        }
        Some(Self {
            place: Place {
                log,
                segment,
                number: header.number,
                life: header.life,
                durable: header.durable,
                previous: header.previous,
            },
            info: BatchInfo {
                kind: BatchKind::parse(header.kind)?,
                epoch: Epoch(header.epoch),
                first: SeqNum(header.first),
                last: SeqNum(header.last),
            },
            crc: header.crc,
            body,
        })
    }

    /// Bytes that it takes on disk.
    #[must_use]
    pub const fn disk_bytes(&self) -> usize {
        batch_bytes(self.body.len())
    }
}

impl BatchKind {
    const fn parse(kind: u16) -> Option<Self> {
        Some(match kind {
            1 => Self::Start,
            2 => Self::Open,
            3 => Self::Records,
            4 => Self::Cut,
            5 => Self::Promise,
            6 => Self::Trim,
            7 => Self::Mark,
            _ => return None,
        })
    }
}

/// Over the header with its own field left out, and the body.
fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let (magic, rest) = header.split_at(4);
    let crc = crc32c::crc32c_append(crc32c::crc32c(magic), &rest[4..]);
    crc32c::crc32c_append(crc, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(segment: u64) -> Place {
        Place {
            log: LogId(5),
            segment: SegmentId(segment),
            number: 3,
            life: 2,
            durable: 1,
            previous: 77,
        }
    }

    fn bytes() -> Vec<u8> {
        let mut out = vec![0xff; batch_bytes(5000)];
        let info = BatchInfo {
            kind: BatchKind::Records,
            epoch: Epoch(4),
            first: SeqNum(9),
            last: SeqNum(12),
        };
        encode(&place(1), &info, &[7; 5000], &mut out);
        out
    }

    #[test]
    fn a_batch_comes_back_as_it_was() {
        let bytes = bytes();
        let batch = Batch::parse(LogId(5), SegmentId(1), &bytes).unwrap();
        assert_eq!(batch.place, place(1));
        assert_eq!(batch.info.last, SeqNum(12));
        assert_eq!(batch.body, &[7; 5000]);
        assert_eq!(batch.disk_bytes(), 2 * BLOCK_BYTES);
    }

    #[test]
    fn a_batch_passes_only_in_its_own_log_and_segment() {
        let bytes = bytes();
        assert!(Batch::parse(LogId(6), SegmentId(1), &bytes).is_none());
        assert!(Batch::parse(LogId(5), SegmentId(2), &bytes).is_none());
    }

    #[test]
    fn a_batch_with_any_bit_flipped_does_not_pass() {
        let good = bytes();
        for bit in (0..BATCH_HEADER_BYTES * 8).chain((0..5000 * 8).step_by(97)) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::parse(LogId(5), SegmentId(1), &bytes).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn no_prefix_of_a_batch_passes() {
        let bytes = bytes();
        for len in 0..BATCH_HEADER_BYTES + 5000 {
            assert!(Batch::parse(LogId(5), SegmentId(1), &bytes[..len]).is_none());
        }
    }
}
