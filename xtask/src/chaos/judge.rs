//! What is wrong with what clients were told, beside what the audit of the application finds: the
//! order in which things were sold.

use std::collections::BTreeMap;
use std::time::Duration;

use super::audit::{Row, Told};
use super::load::Event;

/// Which item a row is of, and which of its places.
type Of = fn(&Row) -> (u32, u32);

/// Places that were sold in an order in which they cannot have been: somebody had been told of a
/// later one before somebody else even asked for what was sold to them earlier.
pub(super) fn out_of_order(events: &[Event]) -> Vec<String> {
    let mut wrong = Vec::new();
    let kinds: [(&str, Of); 2] =
        [("hotel", |row| (row.hotel, row.room)), ("flight", |row| (row.flight, row.seat))];
    for (what, of) in kinds {
        // Places are numbered by how many are left: the highest is sold first.
        let mut sold: BTreeMap<u32, Vec<(u32, &Event)>> = BTreeMap::new();
        for event in events {
            if let Told::Reserved(row) = &event.told {
                let (item, place) = of(row);
                sold.entry(item).or_default().push((place, event));
            }
        }
        for (item, mut sales) in sold {
            sales.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
            let mut asked_last = (Duration::ZERO, 0);
            for (place, event) in sales {
                if event.ended.is_some_and(|ended| ended < asked_last.0) {
                    wrong.push(format!(
                        "{what} {item}: reservation {} was answered with place {place} before \
                         reservation {} was asked for, which was sold an earlier one",
                        event.number, asked_last.1
                    ));
                }
                asked_last = asked_last.max((event.began, event.number));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize, began: u64, ended: u64, room: u32) -> Event {
        // Each on a flight of its own.
        let flight = u32::try_from(number).unwrap();
        let told = Told::Reserved(Row { hotel: 1, room, flight, seat: 100 });
        let [began, ended] = [began, ended].map(Duration::from_millis);
        Event { number, began, ended: Some(ended), told, refused: None }
    }

    #[test]
    fn who_was_answered_before_another_asked_was_sold_the_earlier_place() {
        let right = [event(0, 0, 10, 100), event(1, 20, 30, 99), event(2, 25, 40, 98)];
        assert!(out_of_order(&right).is_empty());
        let at_once = [event(0, 0, 10, 99), event(1, 5, 30, 100)];
        assert!(out_of_order(&at_once).is_empty(), "they overlap: either may be first");
        let wrong = [event(0, 0, 10, 99), event(1, 20, 30, 100)];
        assert_eq!(out_of_order(&wrong).len(), 1);
    }

    #[test]
    fn one_without_an_answer_may_have_been_sold_at_any_time() {
        let mut unknown = event(0, 0, 10, 99);
        unknown.ended = None;
        assert!(out_of_order(&[unknown, event(1, 20, 30, 100)]).is_empty());
    }
}
