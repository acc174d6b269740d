//! What the sides of a lane say to each other first.
//!
//! ```text
//! 0  magic "HMLN"      4   8  length of the hello   2 (at 6)
//! 4  version           2   8  inbound region        4
//! 12 epoch of its ring 4   16 bytes of its ring     8
//! 24 hello …               CRC32C of all before     4
//! ```
//!
//! Magic and version stay where they are in every version to come.

use crate::contract::{DownReason, RegionId};
use crate::mailbox;

/// The version of greeting, frames and rings. Both sides must speak the same.
pub const LANE_VERSION: u16 = 2;

/// Most bytes of a role's hello.
pub const MAX_HELLO_BYTES: usize = 4 << 10;

const MAGIC: [u8; 4] = *b"HMLN";
const FIXED_BYTES: usize = 24;
const CRC_BYTES: usize = 4;

/// A greeting that was checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Greeting<'a> {
    pub(crate) region: RegionId,
    pub(crate) epoch: u32,
    pub(crate) ring_bytes: usize,
    pub(crate) hello: &'a [u8],
}

pub(crate) fn encode(region: RegionId, epoch: u32, ring_bytes: usize, hello: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED_BYTES + hello.len() + CRC_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(LANE_VERSION.to_le_bytes());
    // The endpoint admits no longer hello than MAX_HELLO_BYTES.
    bytes.extend(u16::try_from(hello.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(region.0.to_le_bytes());
    bytes.extend(epoch.to_le_bytes());
    bytes.extend((ring_bytes as u64).to_le_bytes());
    bytes.extend(hello);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Greeting<'_>, DownReason> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(DownReason::NotHalfmoon)?;
    let (version, _) = rest.split_first_chunk().ok_or(DownReason::NotHalfmoon)?;
    let theirs = u16::from_le_bytes(*version);
    if theirs != LANE_VERSION {
        return Err(DownReason::WrongVersion { ours: LANE_VERSION, theirs });
    }
    fields(bytes).ok_or(DownReason::Corrupt)
}

fn fields(bytes: &[u8]) -> Option<Greeting<'_>> {
    let (body, crc) = bytes.split_last_chunk()?;
    if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
        return None;
    }
    let (_, rest) = body.split_at_checked(6)?;
    let (len, rest) = rest.split_first_chunk()?;
    let (region, rest) = rest.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (ring_bytes, hello) = rest.split_first_chunk()?;
    let ring_bytes = usize::try_from(u64::from_le_bytes(*ring_bytes)).ok()?;
    let fits = mailbox::is_ring_size(ring_bytes)
        && hello.len() == usize::from(u16::from_le_bytes(*len))
        && hello.len() <= MAX_HELLO_BYTES;
    fits.then(|| Greeting {
        region: RegionId(u32::from_le_bytes(*region)),
        epoch: u32::from_le_bytes(*epoch),
        ring_bytes,
        hello,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_greeting_comes_back_as_it_was() {
        let bytes = encode(RegionId(7), 3, 8192, b"engine 1");
        let greeting = parse(&bytes).unwrap();
        let expected =
            Greeting { region: RegionId(7), epoch: 3, ring_bytes: 8192, hello: b"engine 1" };
        assert_eq!(greeting, expected);
    }

    #[test]
    fn another_version_is_told_apart_from_garbage() {
        let mut bytes = encode(RegionId(7), 3, 8192, b"");
        bytes[4] = 9;
        let wrong = DownReason::WrongVersion { ours: LANE_VERSION, theirs: 9 };
        assert_eq!(parse(&bytes), Err(wrong));
        assert_eq!(parse(b"GET / HTTP/1.1"), Err(DownReason::NotHalfmoon));
        assert_eq!(parse(b"HMLN"), Err(DownReason::NotHalfmoon));
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_passes(at in 6usize..36, flip in 1u8..=255) {
            let mut bytes = encode(RegionId(7), 3, 8192, b"engine 1");
            bytes[at] ^= flip;
            prop_assert_eq!(parse(&bytes), Err(DownReason::Corrupt));
        }
    }
}
