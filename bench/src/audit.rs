//! The audit: pure book-keeping. What clients were told, against what the state says.
//!
//! Every reservation takes one room of a hotel and one seat of a flight, writes one row under the
//! request's own id, and is followed by one order, processed asynchronously. So, whatever was
//! killed: rooms and seats gone = rows there, each room and seat sold once, each acknowledged row
//! there as it was told, one order a row, processed once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Rooms of a hotel, and seats of a flight, at the start.
pub const CAPACITY: u32 = 100;

/// A reservation's row, and what the client is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Which hotel.
    pub hotel: u32,
    /// The room, numbered by how many were left.
    pub room: u32,
    /// Which flight.
    pub flight: u32,
    /// The seat, numbered by how many were left.
    pub seat: u32,
}

/// How a request for a reservation ended, as its client saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// Reserved, as in the row.
    Reserved(Row),
    /// Refused: no room or no seat left.
    Full,
    /// No answer: it may have happened.
    Unknown,
}

/// What the state says after the run.
#[derive(Clone, Default, Debug)]
pub struct Snapshot {
    /// Rooms left per hotel.
    pub rooms_left: BTreeMap<u32, u32>,
    /// Seats left per flight.
    pub seats_left: BTreeMap<u32, u32>,
    /// Rows by request.
    pub rows: BTreeMap<String, Row>,
    /// How often each request's order was processed.
    pub orders: BTreeMap<String, u32>,
}

/// What the audit found.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Findings {
    /// Rows and processed orders that are there.
    pub effects: u64,
    /// Effects that were acknowledged, or that another effect proves, and that are not there.
    pub lost: u64,
    /// Effects that are there more than once.
    pub doubled: u64,
    /// Replies that contradict the state.
    pub contradicted: u64,
    /// The first few findings, in words.
    pub examples: Vec<String>,
}

/// Findings that are told in words.
const EXAMPLES_MAX: usize = 8;

impl Findings {
    /// Whether nothing was lost, doubled or contradicted.
    #[must_use]
    pub const fn clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.contradicted == 0
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text);
        }
    }

    fn lose(&mut self, count: u32, text: String) {
        self.lost += u64::from(count);
        self.example(text);
    }

    fn double(&mut self, count: u32, text: String) {
        self.doubled += u64::from(count);
        self.example(text);
    }
}

/// Compares what was told with the state.
#[must_use]
pub fn audit(told: &BTreeMap<String, Told>, state: &Snapshot) -> Findings {
    let mut found = Findings::default();
    for (request, told) in told {
        check_reply(request, told, state.rows.get(request), &mut found);
    }
    for (request, row) in &state.rows {
        found.effects += 1;
        check_order(request, row, state.orders.get(request).copied().unwrap_or(0), &mut found);
    }
    let sold = |of: fn(&Row) -> (u32, u32)| {
        let mut sold: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for row in state.rows.values() {
            let (item, place) = of(row);
            sold.entry(item).or_default().push(place);
        }
        sold
    };
    check_capacity("hotel", &state.rooms_left, &sold(|row| (row.hotel, row.room)), &mut found);
    check_capacity("flight", &state.seats_left, &sold(|row| (row.flight, row.seat)), &mut found);
    found
}

fn check_reply(request: &str, told: &Told, row: Option<&Row>, found: &mut Findings) {
    match (told, row) {
        (Told::Reserved(_), None) => {
            found.lose(1, format!("{request}: acknowledged, but its row is not there"));
        }
        (Told::Reserved(told), Some(row)) if told != row => {
            found.contradicted += 1;
            found.example(format!("{request}: told {told:?}, but the row says {row:?}"));
        }
        (Told::Full, Some(row)) => {
            found.contradicted += 1;
            found.example(format!("{request}: told that all is taken, but there is {row:?}"));
        }
        (Told::Reserved(_), Some(_)) | (Told::Full | Told::Unknown, _) => {}
    }
}

fn check_order(request: &str, row: &Row, processed: u32, found: &mut Findings) {
    found.effects += u64::from(processed > 0);
    match processed {
        0 => found.lose(1, format!("{request}: {row:?} is there, but its order was not processed")),
        1 => {}
        times => {
            found.double(times - 1, format!("{request}: its order was processed {times} times"));
        }
    }
}

fn check_capacity(
    what: &str,
    left: &BTreeMap<u32, u32>,
    sold: &BTreeMap<u32, Vec<u32>>,
    found: &mut Findings,
) {
    for (item, left) in left {
        let places = sold.get(item).map_or(&[][..], Vec::as_slice);
        let rows = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let gone = CAPACITY.saturating_sub(*left);
        if gone > rows {
            found.double(gone - rows, format!("{what} {item}: {gone} places gone for {rows} rows"));
        } else if gone < rows {
            found.lose(rows - gone, format!("{what} {item}: {gone} places gone for {rows} rows"));
        }
        let distinct = places.iter().collect::<BTreeSet<_>>().len();
        if distinct < places.len() {
            let twice = u32::try_from(places.len() - distinct).unwrap_or(u32::MAX);
            found.double(twice, format!("{what} {item}: {twice} places were sold twice"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(room: u32) -> Row {
        Row { hotel: 1, room, flight: 2, seat: room }
    }

    fn good() -> (BTreeMap<String, Told>, Snapshot) {
        let told = [("a", row(100)), ("b", row(99))]
            .map(|(id, row)| (id.to_owned(), Told::Reserved(row)))
            .into();
        let state = Snapshot {
            rooms_left: [(1, 98)].into(),
            seats_left: [(2, 98)].into(),
            rows: [("a".to_owned(), row(100)), ("b".to_owned(), row(99))].into(),
            orders: [("a".to_owned(), 1), ("b".to_owned(), 1)].into(),
        };
        (told, state)
    }

    #[test]
    fn a_run_without_damage_is_clean() {
        let (told, state) = good();
        let found = audit(&told, &state);
        assert!(found.clean(), "{found:?}");
        assert_eq!(found.effects, 4);
    }

    #[test]
    fn an_acknowledged_reservation_without_a_row_is_lost() {
        let (told, mut state) = good();
        state.rows.remove("a");
        let found = audit(&told, &state);
        assert_eq!((found.lost, found.doubled), (1, 2), "{found:?}");
    }

    #[test]
    fn a_room_taken_twice_for_one_row_is_doubled() {
        let (told, mut state) = good();
        state.rooms_left.insert(1, 97);
        assert_eq!(audit(&told, &state).doubled, 1);
    }

    #[test]
    fn a_room_sold_to_two_requests_is_doubled_and_its_decrement_lost() {
        let (mut told, mut state) = good();
        told.insert("c".to_owned(), Told::Reserved(row(99)));
        state.rows.insert("c".to_owned(), row(99));
        state.orders.insert("c".to_owned(), 1);
        let found = audit(&told, &state);
        assert_eq!((found.lost, found.doubled), (2, 2), "{found:?}");
    }

    #[test]
    fn an_order_processed_twice_is_doubled_and_one_never_processed_is_lost() {
        let (told, mut state) = good();
        state.orders.insert("a".to_owned(), 2);
        state.orders.remove("b");
        let found = audit(&told, &state);
        assert_eq!((found.lost, found.doubled), (1, 1));
    }

    #[test]
    fn a_reply_that_differs_from_the_row_is_a_contradiction() {
        let (mut told, state) = good();
        told.insert("a".to_owned(), Told::Reserved(row(50)));
        told.insert("b".to_owned(), Told::Full);
        assert_eq!(audit(&told, &state).contradicted, 2);
    }

    #[test]
    fn an_unknown_outcome_may_be_either() {
        let (mut told, state) = good();
        told.insert("a".to_owned(), Told::Unknown);
        told.insert("zz".to_owned(), Told::Unknown);
        assert!(audit(&told, &state).clean());
    }
}
