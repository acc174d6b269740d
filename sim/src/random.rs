//! Seeded generators, one per concern, so that a change in how one is used leaves the others alone.

/// What a generator is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Concern {
    /// What kind of run it is.
    Plan = 1,
    /// Delays and failures of the network.
    Network,
    /// Delays and failures of disks.
    Disk,
    /// Failures of the metadata store.
    Meta,
    /// Which nodes fail, and when.
    Crash,
    /// Clocks and the pace of nodes.
    Clock,
    /// What clients do.
    Workload,
}

/// SplitMix64: small, quick, and good enough to choose faults with.
#[derive(Clone, Debug)]
pub struct Random(u64);

/// Chances are given in so many.
pub const MILLION: u64 = 1_000_000;

impl Random {
    /// The generator of one concern of one seed. `salt` tells several of one concern apart.
    #[must_use]
    pub fn new(seed: u64, concern: Concern, salt: u64) -> Self {
        let mut random = Self(seed ^ (concern as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        let own = random.draw() ^ salt.wrapping_mul(0xa076_1d64_78bd_642f);
        Self(own)
    }

    /// 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 when that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let wide = u128::from(self.draw()) * u128::from(limit);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// A number from `low` to `high`, both included.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// Whether something happens that has `per_million` chances in a million.
    pub fn chance(&mut self, per_million: u64) -> bool {
        per_million > 0 && self.below(MILLION) < per_million
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.index(of.len()))
    }

    /// A duration from `low` to `high`, short ones being more likely: the sum of faults is in the
    /// tail.
    pub fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low);
        let first = self.below(span + 1);
        low + self.below(first + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concerns_and_salts_have_streams_of_their_own() {
        let first = |concern, salt| Random::new(7, concern, salt).draw();
        assert_eq!(first(Concern::Disk, 1), first(Concern::Disk, 1));
        assert_ne!(first(Concern::Disk, 1), first(Concern::Disk, 2));
        assert_ne!(first(Concern::Disk, 1), first(Concern::Network, 1));
        let mut random = Random::new(1, Concern::Plan, 0);
        assert!((0..1000).all(|_| (3..=9).contains(&random.within(3, 9))));
        let hits = (0..10_000).filter(|_| random.chance(MILLION / 4)).count();
        assert!((2200..2800).contains(&hits), "{hits}");
    }
}
