//! Virtual time, in ns since the beginning of a run.

/// A microsecond.
pub const MICRO: u64 = 1_000;
/// A millisecond.
pub const MILLI: u64 = 1_000_000;
/// A second.
pub const SECOND: u64 = 1_000_000_000;

/// What a machine takes for the time: it runs fast or slow, and began at some other time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Ahead of the true time, in ns.
    pub ahead_ns: u64,
    /// Parts in a million that it gains (or loses, when negative).
    pub drift_ppm: i64,
}

impl Clock {
    /// What it shows at a true time.
    #[must_use]
    pub fn local(self, now: u64) -> u64 {
        let gained = i128::from(now) * i128::from(self.drift_ppm) / 1_000_000;
        let shown = i128::from(now) + gained + i128::from(self.ahead_ns);
        u64::try_from(shown).unwrap_or(0)
    }

    /// The true time at which it shows this, or a little later.
    #[must_use]
    pub fn global(self, local: u64) -> u64 {
        let behind = i128::from(local) - i128::from(self.ahead_ns);
        let true_time = behind * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm)) + 1;
        u64::try_from(true_time).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_drifts_shows_what_is_waited_for_when_it_is_waited_for() {
        for drift_ppm in [-200, 0, 50, 300] {
            let clock = Clock { ahead_ns: 12 * SECOND, drift_ppm };
            for now in [0, 1, 999, 123_456_789, 3_600 * SECOND] {
                let shown = clock.local(now);
                assert!(clock.local(clock.global(shown)) >= shown);
                assert!(clock.global(shown) <= now + 2);
            }
        }
    }
}
