//! Ids that nobody else has.

use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of 128-bit numbers that are never given twice: a secret seed and a counter.
#[derive(Debug)]
pub struct Draw {
    seed: [u8; 32],
    next: AtomicU64,
}

impl Draw {
    /// Seeds it from the operating system.
    pub fn new() -> std::io::Result<Self> {
        let mut seed = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Ok(Self::seeded(seed))
    }

    /// With a given seed.
    #[must_use]
    pub fn seeded(seed: [u8; 32]) -> Self {
        Self { seed, next: AtomicU64::new(0) }
    }

    /// The next number.
    pub fn draw(&self) -> u128 {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::keyed_hash(&self.seed, &index.to_le_bytes());
        hash.as_bytes().iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte))
    }
}

/// 128 bits of a cryptographic hash: by which inputs are compared.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> u128 {
    let hash = blake3::hash(bytes);
    hash.as_bytes().iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_drawn_twice() {
        let draw = Draw::seeded([7; 32]);
        let drawn: std::collections::BTreeSet<u128> = (0..1000).map(|_| draw.draw()).collect();
        assert_eq!(drawn.len(), 1000);
        assert_ne!(Draw::new().unwrap().draw(), Draw::new().unwrap().draw());
    }
}
