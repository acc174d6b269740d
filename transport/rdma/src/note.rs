//! Notes: what the two ends of an RDMA lane say to each other beside the writes.
//!
//! A note is a message of the adapter (send and receive). It arrives after all writes that were posted
//! before it, and when it is received, their bytes are in place: that is what the specification
//! promises, and it promises nothing of the kind to whoever merely looks at memory. So a note ends
//! every batch of writes. It also ends the receiver's sleep.
//!
//! ```text
//! 0  kind      4   4  notes taken  4   8  signalled writes posted  8
//! 16 signalled writes in place  8   24 region  4   28 rkey  4   32 address  8   40 length  8
//! ```

/// Bytes of a note: few enough for every adapter to take them inline.
pub(crate) const NOTE_BYTES: usize = 48;

/// What a note says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Say {
    /// Nothing but what every note says: writes came before it, or notes were taken.
    Writes,
    /// The first note of either side, after its first write: the lane works in this direction.
    Hello,
    /// Where a region is, and the key to it.
    Exposed { region: u32, rkey: u32, address: u64, len: u64 },
    /// A region is no longer to be written to.
    Withdrawn { region: u32 },
    /// All writes to a withdrawn region came before this note.
    Left { region: u32 },
    /// Where is this region?
    Where { region: u32 },
    /// The layer above wants to write outside a region.
    Beyond { region: u32 },
}

/// A note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    pub(crate) say: Say,
    /// How many notes the sender has taken on this lane, modulo 2^32: it has room for so many more.
    pub(crate) taken: u32,
    /// How many signalled writes it has posted on this lane before this note.
    pub(crate) signalled: u64,
    /// Of how many signalled writes of the other side it knows that they are in place.
    pub(crate) placed: u64,
}

impl Note {
    pub(crate) fn encode(self) -> [u8; NOTE_BYTES] {
        let (kind, region, rkey, address, len) = match self.say {
            Say::Writes => (0, 0, 0, 0, 0),
            Say::Hello => (1, 0, 0, 0, 0),
            Say::Exposed { region, rkey, address, len } => (2, region, rkey, address, len),
            Say::Withdrawn { region } => (3, region, 0, 0, 0),
            Say::Left { region } => (4, region, 0, 0, 0),
            Say::Where { region } => (5, region, 0, 0, 0),
            Say::Beyond { region } => (6, region, 0, 0, 0),
        };
        let mut bytes = [0; NOTE_BYTES];
        bytes[..4].copy_from_slice(&u32::to_le_bytes(kind));
        bytes[4..8].copy_from_slice(&self.taken.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.signalled.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.placed.to_le_bytes());
        bytes[24..28].copy_from_slice(&u32::to_le_bytes(region));
        bytes[28..32].copy_from_slice(&u32::to_le_bytes(rkey));
        bytes[32..40].copy_from_slice(&u64::to_le_bytes(address));
        bytes[40..].copy_from_slice(&u64::to_le_bytes(len));
        bytes
    }

    /// `None`: these bytes are no note.
    pub(crate) fn parse(bytes: &[u8; NOTE_BYTES]) -> Option<Self> {
        let (kind, rest) = bytes.split_first_chunk()?;
        let (taken, rest) = rest.split_first_chunk()?;
        let (signalled, rest) = rest.split_first_chunk()?;
        let (placed, rest) = rest.split_first_chunk()?;
        let (region, rest) = rest.split_first_chunk()?;
        let (rkey, rest) = rest.split_first_chunk()?;
        let (address, rest) = rest.split_first_chunk()?;
        let (len, _) = rest.split_first_chunk()?;
        let (region, rkey) = (u32::from_le_bytes(*region), u32::from_le_bytes(*rkey));
        let (address, len) = (u64::from_le_bytes(*address), u64::from_le_bytes(*len));
        let say = match u32::from_le_bytes(*kind) {
            0 => Say::Writes,
            1 => Say::Hello,
            2 => Say::Exposed { region, rkey, address, len },
            3 => Say::Withdrawn { region },
            4 => Say::Left { region },
            5 => Say::Where { region },
            6 => Say::Beyond { region },
            _ => return None,
        };
        Some(Self {
            say,
            taken: u32::from_le_bytes(*taken),
            signalled: u64::from_le_bytes(*signalled),
            placed: u64::from_le_bytes(*placed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_as_it_was_and_noise_is_refused() {
        for say in [
            Say::Writes,
            Say::Hello,
            Say::Exposed { region: 7, rkey: 8, address: 1 << 40, len: 9 },
            Say::Withdrawn { region: 7 },
            Say::Left { region: 7 },
            Say::Where { region: 7 },
            Say::Beyond { region: 7 },
        ] {
            let note = Note { say, taken: 3, signalled: 1 << 35, placed: 1 << 36 };
            assert_eq!(Note::parse(&note.encode()), Some(note));
        }
        assert_eq!(Note::parse(&[9; NOTE_BYTES]), None);
    }
}
