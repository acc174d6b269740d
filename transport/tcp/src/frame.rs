//! Frames: what a TCP stream between two nodes consists of.
//!
//! ```text
//! 0  region  4   4  kind 1, zero 3   8  offset in the region, or count of an ack  8
//! 16 length  4   20 zero  4          24 body …
//! ```
//!
//! The region of a greeting is the one that it offers, or 0; its offset is the lane version.

/// Bytes of a frame before its body.
pub(crate) const HEADER_BYTES: usize = 24;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The first frame of either side.
    Greeting,
    /// A write.
    Write,
    /// A write whose completion is to be told.
    Signalled,
    /// So many signalled writes are in place.
    Ack,
}

/// A frame's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) region: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.region.to_le_bytes());
        bytes[4] = match self.kind {
            Kind::Greeting => b'G',
            Kind::Write => b'W',
            Kind::Signalled => b'S',
            Kind::Ack => b'A',
        };
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// `None`: these bytes are no header.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let kind = match bytes[4] {
            b'G' => Kind::Greeting,
            b'W' => Kind::Write,
            b'S' => Kind::Signalled,
            b'A' => Kind::Ack,
            _ => return None,
        };
        if bytes[5..8] != [0; 3] || bytes[20..24] != [0; 4] {
            return None;
        }
        let (region, rest) = bytes.split_first_chunk()?;
        let (offset, rest) = rest[4..].split_first_chunk()?;
        let (len, _) = rest.split_first_chunk()?;
        Some(Self {
            kind,
            region: u32::from_le_bytes(*region),
            offset: u64::from_le_bytes(*offset),
            len: u32::from_le_bytes(*len),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_and_noise_is_refused() {
        let header = Header { kind: Kind::Signalled, region: 7, offset: 1 << 40, len: 99 };
        let mut bytes = header.encode();
        assert_eq!(Header::parse(&bytes), Some(header));
        bytes[4] = b'?';
        assert_eq!(Header::parse(&bytes), None);
        bytes[4] = b'W';
        bytes[21] = 1;
        assert_eq!(Header::parse(&bytes), None);
    }
}
