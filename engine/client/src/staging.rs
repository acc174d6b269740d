//! Room in the region where a storage node takes large values of puts.

use halfmoon_transport::RegionId;

/// What pieces of room begin at multiples of, in bytes.
const ALIGN: u64 = 64;

/// A piece of the region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    pub(crate) offset: u64,
    len: u64,
    /// Which announcement of a region it belongs to.
    region: RegionId,
}

/// The region of one lane, and which of it is free.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) region: RegionId,
    len: u64,
    /// Free pieces, ascending, none touching the next.
    free: Vec<(u64, u64)>,
}

impl Staging {
    pub(crate) fn new(region: RegionId, len: u64) -> Self {
        let len = len / ALIGN * ALIGN;
        Self { region, len, free: vec![(0, len)] }
    }

    /// Whether a value of so many bytes ever fits.
    pub(crate) fn fits(&self, bytes: u32) -> bool {
        u64::from(bytes) <= self.len
    }

    /// Takes the first piece that is large enough.
    pub(crate) fn take(&mut self, bytes: u32) -> Option<Room> {
        let len = u64::from(bytes.max(1)).next_multiple_of(ALIGN);
        let index = self.free.iter().position(|(_, free)| *free >= len)?;
        let (offset, free) = self.free[index];
        if free == len {
            self.free.remove(index);
        } else {
            self.free[index] = (offset + len, free - len);
        }
        Some(Room { offset, len, region: self.region })
    }

    /// Gives a piece back. One of another region, of a lane that is gone, is nothing to this one.
    pub(crate) fn give(&mut self, room: Room) {
        if room.region != self.region {
            return;
        }
        let index = self.free.partition_point(|(offset, _)| *offset < room.offset);
        self.free.insert(index, (room.offset, room.len));
        if let Some((next, len)) = self.free.get(index + 1).copied()
            && room.offset + room.len == next
        {
            self.free[index].1 += len;
            self.free.remove(index + 1);
        }
        if index > 0 {
            let (before, len) = self.free[index - 1];
            if before + len == room.offset {
                self.free[index - 1].1 += self.free[index].1;
                self.free.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_never_overlap_and_all_of_them_come_back() {
        let mut staging = Staging::new(RegionId(1), 1000);
        let sizes = [100, 1, 64, 300, 200];
        let mut taken: Vec<_> = sizes.iter().map(|size| staging.take(*size).unwrap()).collect();
        for (index, room) in taken.iter().enumerate() {
            assert!(room.len >= u64::from(sizes[index]) && room.offset + room.len <= 1000);
            for other in &taken[index + 1..] {
                assert!(room.offset + room.len <= other.offset);
            }
        }
        assert_eq!(staging.take(500), None);
        assert!(staging.fits(900));
        taken.swap(0, 3);
        taken.swap(1, 4);
        for room in taken {
            staging.give(Room { region: RegionId(2), ..room });
            staging.give(room);
        }
        assert_eq!(staging.free, [(0, 960)]);
        assert!(!staging.fits(1000));
    }
}
