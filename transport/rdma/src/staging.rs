//! Room in registered memory for bytes on their way: a ring of which pieces are taken in order and
//! given back in the same order. A piece never wraps.

/// Bookkeeping of the ring; positions count bytes since the beginning and never wrap.
#[derive(Debug)]
pub(crate) struct Staging {
    size: u64,
    taken: u64,
    given_back: u64,
}

impl Staging {
    pub(crate) const fn new(size: u64) -> Self {
        Self { size, taken: 0, given_back: 0 }
    }

    /// Where a piece of `len` bytes begins, if there is room for it: its offset.
    pub(crate) fn take(&mut self, len: usize) -> Option<usize> {
        if self.given_back == self.taken {
            // Nothing is held, so the next piece may as well begin at the beginning.
            self.taken = self.taken.next_multiple_of(self.size);
            self.given_back = self.taken;
        }
        let start = self.start(len as u64)?;
        self.taken = start + len as u64;
        usize::try_from(start % self.size).ok()
    }

    /// How long a piece can be now, if it is to be at least `least` long.
    pub(crate) fn longest(&self, least: usize) -> usize {
        if self.given_back == self.taken {
            return usize::try_from(self.size).unwrap_or(usize::MAX);
        }
        let to_end = self.size - self.taken % self.size;
        let free = self.size - (self.taken - self.given_back);
        let here = to_end.min(free);
        // What is left at the end of the ring may be too little while there is room at its beginning.
        let there = free.saturating_sub(to_end);
        let longest = if here >= least as u64 { here } else { there };
        usize::try_from(longest).unwrap_or(usize::MAX)
    }

    /// All that was taken so far.
    pub(crate) const fn position(&self) -> u64 {
        self.taken
    }

    /// Gives back all that was taken before `position`.
    pub(crate) fn give_back(&mut self, position: u64) {
        self.given_back = self.given_back.max(position.min(self.taken));
    }

    fn start(&self, len: u64) -> Option<u64> {
        let to_end = self.size - self.taken % self.size;
        let start = if len <= to_end { self.taken } else { self.taken + to_end };
        (len <= self.size && start + len <= self.given_back + self.size).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn pieces_never_overlap_and_room_comes_back_in_order() {
        let mut staging = Staging::new(64);
        let mut held: VecDeque<(u64, usize, usize)> = VecDeque::new();
        let mut state = 7u64;
        let mut refused = 0;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let len = 1 + (state >> 33) as usize % 40;
            let longest = staging.longest(len);
            match staging.take(len) {
                Some(at) => {
                    assert!(len <= longest && at + len <= 64);
                    let apart = |&(_, other, size): &(u64, usize, usize)| {
                        at + len <= other || other + size <= at
                    };
                    assert!(held.iter().all(apart), "{held:?} and {len} at {at}");
                    held.push_back((staging.position(), at, len));
                }
                None => {
                    refused += 1;
                    assert!(longest < len);
                    let (position, ..) = held.pop_front().expect("what is empty has room");
                    staging.give_back(position);
                }
            }
        }
        assert!(refused > 1000);
    }

    #[test]
    fn what_is_empty_takes_a_piece_of_its_size() {
        let mut staging = Staging::new(64);
        staging.take(10).unwrap();
        assert_eq!(staging.take(64), None);
        staging.give_back(staging.position());
        assert_eq!((staging.longest(64), staging.take(64)), (64, Some(0)));
        assert_eq!((staging.longest(1), staging.take(1)), (0, None));
    }
}
