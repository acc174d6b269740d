//! The tests that every transport passes: one or more for each rule of
//! [`contract`](crate::contract), with peers that break them, and for messages over it.
//!
//! A transport's tests call [`conformance_tests!`](crate::conformance_tests) with an expression
//! that makes a world: a closure that makes endpoints which can reach each other. Nothing here
//! looks at a clock; what never comes is given up after [`TURNS`].

pub mod lanes;
pub mod messages;

use crate::carrier::Carrier;
use crate::contract::{LaneId, Occurrence, Transport};
use crate::endpoint::{Endpoint, EndpointOptions, Event, greeting};
use crate::mailbox::MIN_RING_BYTES;

/// Turns after which a test gives up.
pub const TURNS: usize = 20_000;

/// The address that is listened on where every address does.
pub const ADDRESS: &str = "127.0.0.1:0";

/// One end, and what lets time pass for it.
pub struct Site<T> {
    /// The transport.
    pub transport: T,
    /// Waits for something to happen, for a short time.
    pub rest: Box<dyn FnMut()>,
    /// Where it listens; its peers reach it there.
    pub address: &'static str,
    /// What its lanes go over, as it says itself.
    pub carrier: Option<Carrier>,
}

/// Makes a test of every rule. The expression makes a `FnMut() -> Site<_>`.
#[macro_export]
macro_rules! conformance_tests {
    ($world:expr) => {
        $crate::conformance_tests!(@each $world, lanes:
            writes_are_applied_and_complete_in_the_order_they_were_posted,
            a_completion_means_that_the_bytes_are_in_place,
            a_large_write_lands_exactly_where_it_was_sent,
            posting_neither_blocks_nor_completes_and_a_full_lane_says_so,
            the_first_failure_kills_the_lane_and_what_had_not_completed_stays_unknown,
            what_was_posted_before_a_close_still_arrives,
            a_write_out_of_bounds_is_not_applied_in_any_part_and_kills_only_its_lane,
            a_region_of_another_lane_or_of_none_is_forbidden,
            a_write_to_a_withdrawn_region_is_dropped_and_the_lane_lives,
            a_withdrawal_among_writes_costs_no_lane_and_in_the_end_nothing_more_lands,
            an_address_where_nobody_listens_takes_the_lane_down,
        );
        $crate::conformance_tests!(@each $world, messages:
            messages_of_all_sizes_arrive_whole_and_in_order,
            a_message_that_arrives_in_pieces_is_not_taken_for_corrupt,
            hellos_are_exchanged,
            a_write_is_in_place_before_the_message_after_it,
            a_full_lane_tells_when_there_is_room,
            a_peer_of_another_version_is_told_apart_on_both_sides,
            a_stranger_is_turned_away,
            a_peer_that_scribbles_over_its_ring_loses_its_lane_and_nobody_else_does,
            a_credit_that_cannot_be_kills_the_lane,
            an_extent_that_cannot_be_kills_the_lane,
            a_message_counts_only_once_its_sender_says_that_it_is_there,
            a_peer_that_dies_in_the_middle_of_a_message_delivers_nothing_of_it,
            a_message_that_was_sent_before_a_close_still_arrives,
            the_end_of_a_lane_is_told_although_another_takes_its_place_at_once,
        );
    };
    (@each $world:expr, $part:ident: $($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                $crate::conformance::$part::$name($world);
            }
        )*
    };
}

/// Lets turns pass until `done`.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..TURNS {
        if done() {
            return;
        }
    }
    panic!("it never came: {what}");
}

/// A transport without an endpoint over it: it can do what no endpoint would.
struct Raw<T> {
    site: Site<T>,
    seen: Vec<Occurrence>,
}

impl<T: Transport> Raw<T> {
    fn new(site: Site<T>) -> Self {
        Self { site, seen: Vec::new() }
    }

    fn turn(&mut self) {
        self.site.transport.poll(&mut self.seen);
        self.site.transport.flush();
        (self.site.rest)();
    }

    fn take(&mut self, wanted: impl Fn(&Occurrence) -> bool) -> Option<Occurrence> {
        let index = self.seen.iter().position(wanted)?;
        Some(self.seen.remove(index))
    }

    fn is_down(&self, lane: LaneId) -> bool {
        self.seen.iter().any(|o| matches!(o, Occurrence::Down { lane: l, .. } if *l == lane))
    }
}

/// Two transports with a lane between them that is up.
fn raw_pair<T: Transport>(
    world: &mut impl FnMut() -> Site<T>,
) -> ((Raw<T>, LaneId), (Raw<T>, LaneId)) {
    let (mut a, mut b) = (Raw::new(world()), Raw::new(world()));
    let address = b.site.transport.listen(b.site.address).expect("it listens");
    let (to_b, to_a) = raw_join(&mut a, &mut b, &address);
    ((a, to_b), (b, to_a))
}

/// A lane from `a` to where `b` listens.
fn raw_join<T: Transport>(a: &mut Raw<T>, b: &mut Raw<T>, address: &str) -> (LaneId, LaneId) {
    let to_b = a.site.transport.dial(address).expect("it dials");
    a.site.transport.greet(to_b, b"from a");
    let mut to_a = None;
    until("both greetings", || {
        a.turn();
        b.turn();
        if let Some(Occurrence::Incoming { lane }) =
            b.take(|seen| matches!(seen, Occurrence::Incoming { .. }))
        {
            b.site.transport.greet(lane, b"from b");
            to_a = Some(lane);
        }
        [&*a, &*b]
            .iter()
            .all(|end| end.seen.iter().any(|seen| matches!(seen, Occurrence::Greeted { .. })))
    });
    let to_a = to_a.expect("who greets has come in");
    let heard = a.take(|seen| matches!(seen, Occurrence::Greeted { .. }));
    assert_eq!(heard, Some(Occurrence::Greeted { lane: to_b, greeting: b"from b".to_vec() }));
    let heard = b.take(|seen| matches!(seen, Occurrence::Greeted { .. }));
    assert_eq!(heard, Some(Occurrence::Greeted { lane: to_a, greeting: b"from a".to_vec() }));
    assert_eq!(a.site.transport.carrier(to_b), a.site.carrier);
    assert_eq!(b.site.transport.carrier(to_a), b.site.carrier);
    (to_b, to_a)
}

/// What an endpoint saw, kept.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Up(LaneId, Vec<u8>, bool),
    Message(LaneId, Vec<u8>),
    Written(LaneId, u64),
    Room(LaneId),
    Down(LaneId, crate::contract::DownReason),
}

/// An endpoint with a small ring.
struct Node<T> {
    endpoint: Endpoint<T>,
    rest: Box<dyn FnMut()>,
    seen: Vec<Seen>,
    address: &'static str,
    carrier: Option<Carrier>,
}

/// Ring size of nodes: a message may have 4 KiB.
const RING_BYTES: usize = 4 * MIN_RING_BYTES;

impl<T: Transport> Node<T> {
    fn new(site: Site<T>, hello: &[u8]) -> Self {
        Self::with_ring(site, hello, RING_BYTES)
    }

    fn with_ring(site: Site<T>, hello: &[u8], ring_bytes: usize) -> Self {
        let options = EndpointOptions { hello: hello.to_vec(), ring_bytes };
        let Site { transport, rest, address, carrier } = site;
        Self {
            endpoint: Endpoint::new(transport, options),
            rest,
            seen: Vec::new(),
            address,
            carrier,
        }
    }

    fn turn(&mut self) {
        let seen = &mut self.seen;
        self.endpoint.poll(&mut |event| {
            seen.push(match event {
                Event::Up { lane, hello, dialled } => Seen::Up(lane, hello.to_vec(), dialled),
                Event::Message { lane, bytes } => Seen::Message(lane, bytes.to_vec()),
                Event::Written { lane, token } => Seen::Written(lane, token.0),
                Event::Room { lane } => Seen::Room(lane),
                Event::Down { lane, reason } => Seen::Down(lane, reason),
            });
        });
        (self.rest)();
    }

    fn up(&self) -> Option<LaneId> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Up(lane, ..) => Some(*lane),
            Seen::Message(..) | Seen::Written(..) | Seen::Room(_) | Seen::Down(..) => None,
        })
    }
}

/// Two endpoints with a lane between them; `seen` of both is empty.
fn pair<T: Transport>(
    world: &mut impl FnMut() -> Site<T>,
) -> ((Node<T>, LaneId), (Node<T>, LaneId)) {
    let (mut a, mut b) = (Node::new(world(), b"a"), Node::new(world(), b"b"));
    let address = b.endpoint.listen(b.address).expect("it listens");
    let (to_b, to_a) = join(&mut a, &mut b, &address);
    ((a, to_b), (b, to_a))
}

fn join<T: Transport>(a: &mut Node<T>, b: &mut Node<T>, address: &str) -> (LaneId, LaneId) {
    a.endpoint.dial(address).expect("it dials");
    until("a lane that is up", || {
        a.turn();
        b.turn();
        a.up().is_some() && b.up().is_some()
    });
    let lanes = (a.up().expect("seen"), b.up().expect("seen"));
    assert_eq!(a.endpoint.transport().carrier(lanes.0), a.carrier);
    assert_eq!(b.endpoint.transport().carrier(lanes.1), b.carrier);
    a.seen.clear();
    b.seen.clear();
    lanes
}

/// An endpoint, and a raw transport that has learned from its greeting where its ring is.
fn node_and_stranger<T: Transport>(
    world: &mut impl FnMut() -> Site<T>,
    own: &[u8],
) -> (Node<T>, String, Raw<T>, LaneId, Vec<u8>) {
    let (mut node, mut raw) = (Node::new(world(), b"node"), Raw::new(world()));
    let address = node.endpoint.listen(node.address).expect("it listens");
    let lane = raw.site.transport.dial(&address).expect("it dials");
    raw.site.transport.greet(lane, own);
    let mut heard = None;
    until("the greeting of the node", || {
        node.turn();
        raw.turn();
        let greeted = raw.take(|seen| matches!(seen, Occurrence::Greeted { .. }));
        if let Some(Occurrence::Greeted { greeting, .. }) = greeted {
            heard = Some(greeting);
        }
        heard.is_some()
    });
    (node, address, raw, lane, heard.expect("seen"))
}

/// A greeting like that of an endpoint, of a region that is not there.
fn own_greeting() -> Vec<u8> {
    greeting::encode(crate::contract::RegionId(1), 1, RING_BYTES, b"stranger")
}
