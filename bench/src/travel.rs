//! Travel reservation: eleven functions (and two helpers of the audit), after the application of
//! the published evaluation.
//!
//! ```text
//! frontend ─┬─ search ─┬─ geo          one value: where the hotels are
//!           │          ├─ rate         one value a hotel
//!           │          └─ profile      one value a hotel
//!           ├─ recommendation ─ profile
//!           ├─ user                    checks a password
//!           └─ reserve ─┬─ hotel       rooms: asks, or takes one
//!                       ├─ flight      seats: asks, or takes one
//!                       └┄ order       asynchronous: processes the order, once
//! ```
//!
//! A reservation is one transaction over the hotel's row, the flight's row and its own row, where
//! there are transactions. Under the baselines `hotel` takes a room, `flight` takes a seat, and then
//! the row is written; no two clients share a hotel or flight there.

mod data;
mod functions;

use serde::{Deserialize, Serialize};

pub use data::{FLIGHTS, HOTELS, POPULATE_PARTS, USERS, mixed};
pub use functions::app;

/// What a client asks of `frontend`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Hotels near a place, with rates and profiles.
    Search {
        /// Degrees north.
        lat: f64,
        /// Degrees east.
        lon: f64,
    },
    /// Hotels by price, distance or stars.
    Recommend {
        /// What to order by.
        by: Criterion,
    },
    /// Name and password.
    Login {
        /// Who.
        user: u32,
        /// What they typed.
        password: String,
    },
    /// A room and a seat.
    Reserve {
        /// The client's id of this reservation: the key of its row.
        id: String,
        /// Which hotel.
        hotel: u32,
        /// Which flight.
        flight: u32,
        /// By one transaction.
        atomic: bool,
    },
}

/// What recommendations are ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Cheapest first.
    Price,
    /// Nearest to the centre first.
    Distance,
    /// Most stars first.
    Stars,
}

/// The request of the mix with this number: 90 % search, 9 % login, 0.5 % recommendation and 0.5 %
/// reservation.
#[must_use]
pub fn mix(number: u64, atomic: bool) -> Request {
    let random = mixed(number);
    let pick = |shift: u32, of: u32| u32::try_from((random >> shift) % u64::from(of)).unwrap_or(0);
    match pick(0, 1000) {
        0..900 => {
            let (lat, lon) = data::place(pick(12, HOTELS));
            // As a client would send them: so many digits as make sense.
            let digits = |degrees: f64| (degrees * 1000.0).round() / 1000.0;
            Request::Search { lat: digits(lat + 0.001), lon: digits(lon - 0.001) }
        }
        900..990 => {
            let user = pick(12, USERS);
            Request::Login { user, password: data::password(user) }
        }
        990..995 => Request::Recommend {
            by: [Criterion::Price, Criterion::Distance, Criterion::Stars][pick(12, 3) as usize],
        },
        _ => Request::Reserve {
            id: format!("mix-{number:x}"),
            hotel: pick(12, HOTELS),
            flight: pick(32, FLIGHTS),
            atomic,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_has_the_published_shares() {
        let mut counts = [0u32; 4];
        for number in 0..20_000 {
            counts[match mix(number, true) {
                Request::Search { .. } => 0,
                Request::Login { .. } => 1,
                Request::Recommend { .. } => 2,
                Request::Reserve { .. } => 3,
            }] += 1;
        }
        let close = |count: u32, share: f64| (f64::from(count) / 20_000.0 - share).abs() < 0.01;
        assert!(close(counts[0], 0.9) && close(counts[1], 0.09), "{counts:?}");
        assert!(close(counts[2], 0.005) && close(counts[3], 0.005), "{counts:?}");
    }

    #[test]
    fn a_request_survives_its_journey_as_json() {
        for number in 0..2000 {
            let request = mix(number, number % 2 == 0);
            let bytes = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&bytes).unwrap(), request);
        }
    }
}
