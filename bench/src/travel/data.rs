//! The data set: made by a formula, so that every node and client knows it without asking.

use serde::{Deserialize, Serialize};

use super::Criterion;

/// Hotels.
pub const HOTELS: u32 = 80;
/// Flights.
pub const FLIGHTS: u32 = 80;
/// Users.
pub const USERS: u32 = 501;
/// Requests that it takes to populate the tables; each writes one part of every table.
pub const POPULATE_PARTS: u32 = 8;

/// Where a hotel is, as `geo` keeps it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) hotel: u32,
    pub(super) lat: f64,
    pub(super) lon: f64,
}

/// What a hotel costs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Rate {
    pub(super) hotel: u32,
    pub(super) price_cents: u32,
    pub(super) room: String,
}

/// What a hotel says of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Profile {
    pub(super) hotel: u32,
    pub(super) name: String,
    pub(super) phone: String,
    pub(super) stars: u32,
    pub(super) description: String,
}

/// A hotel in the list that recommendations are made from.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Candidate {
    pub(super) hotel: u32,
    pub(super) price_cents: u32,
    pub(super) distance_m: u32,
    pub(super) stars: u32,
}

/// SplitMix64's finaliser: spreads consecutive numbers evenly.
#[must_use]
pub const fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

pub(super) fn place(hotel: u32) -> (f64, f64) {
    (37.7 + f64::from(hotel / 10) * 0.02, -122.5 + f64::from(hotel % 10) * 0.02)
}

pub(super) fn places() -> Vec<Place> {
    (0..HOTELS)
        .map(|hotel| {
            let (lat, lon) = place(hotel);
            Place { hotel, lat, lon }
        })
        .collect()
}

fn price_cents(hotel: u32) -> u32 {
    8_000 + hotel * 317 % 20_000
}

fn stars(hotel: u32) -> u32 {
    1 + hotel % 5
}

pub(super) fn rate(hotel: u32) -> Rate {
    Rate { hotel, price_cents: price_cents(hotel), room: "double, breakfast".to_owned() }
}

pub(super) fn profile(hotel: u32) -> Profile {
    Profile {
        hotel,
        name: format!("Hotel Number {hotel}"),
        phone: format!("+1 415 555 {hotel:04}"),
        stars: stars(hotel),
        description: "A quiet house with a view, ten minutes from the station. ".repeat(3),
    }
}

pub(super) fn candidates() -> Vec<Candidate> {
    (0..HOTELS)
        .map(|hotel| Candidate {
            hotel,
            price_cents: price_cents(hotel),
            distance_m: 200 + hotel * 613 % 9_000,
            stars: stars(hotel),
        })
        .collect()
}

impl Criterion {
    /// The best `count` candidates.
    pub(super) fn best(self, mut candidates: Vec<Candidate>, count: usize) -> Vec<u32> {
        candidates.sort_by_key(|candidate| match self {
            Self::Price => candidate.price_cents,
            Self::Distance => candidate.distance_m,
            Self::Stars => u32::MAX - candidate.stars,
        });
        candidates.truncate(count);
        candidates.into_iter().map(|candidate| candidate.hotel).collect()
    }
}

pub(super) fn password(user: u32) -> String {
    format!("pass-{}", mixed(u64::from(user)) % 100_000)
}

/// What is stored of a password. (A demo: a real one would use a slow, salted hash.)
pub(super) fn digest(user: u32, password: &str) -> u64 {
    password.bytes().fold(mixed(u64::from(user)), |digest, byte| mixed(digest ^ u64::from(byte)))
}
