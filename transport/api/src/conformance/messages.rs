//! Tests of messages over lanes.

use std::sync::Arc;

use super::{
    Node, RING_BYTES, Raw, Seen, Site, join, node_and_stranger, own_greeting, pair, until,
};
use crate::contract::{
    Access, DownReason, LaneId, Occurrence, RemoteSpan, Source, Token, Transport,
};
use crate::endpoint::greeting::{self, Greeting};
use crate::endpoint::{LANE_VERSION, SendError};
use crate::mailbox::{self, Placement, RingWriter};
use crate::memory::{self, HeapMemory, Memory};

/// Where the extent is in an inbound region.
const EXTENT_AT: u64 = (crate::endpoint::EXTENT * memory::WORD) as u64;

/// Where the ring begins in it.
const HEAD_BYTES: u64 = crate::endpoint::HEAD_BYTES as u64;

/// Writes an entry that a ring's writer has placed, and says that it is there.
fn place<T: Transport>(
    raw: &mut Raw<T>,
    lane: LaneId,
    heard: &Greeting<'_>,
    writer: &mut RingWriter,
    (placed, entry): (&Placement, &[u8]),
) {
    writer.commit(placed);
    let extent = writer.extent_due().expect("there is an entry").to_le_bytes();
    for (offset, bytes) in [(HEAD_BYTES + placed.offset, entry), (EXTENT_AT, &extent)] {
        let to = RemoteSpan { region: heard.region, offset };
        raw.site.transport.post_write(lane, to, Source::bytes(bytes), None).expect("posted");
    }
}

fn message(n: usize) -> Vec<u8> {
    let limit = mailbox::max_message_bytes(RING_BYTES) + 1;
    let len = if n.is_multiple_of(10) { n * 977 % limit } else { n * 37 % 300 };
    (0..len).map(|at| ((at + n * 13) % 253).to_le_bytes()[0]).collect()
}

/// T2, and the ring over it, which wraps many times.
pub fn messages_of_all_sizes_arrive_whole_and_in_order<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = pair(&mut world);
    let count = 1500;
    let mut next = 0;
    until("all messages", || {
        while next < count {
            let bytes = message(next);
            let (first, second) = bytes.split_at(bytes.len() / 3);
            match a.endpoint.send(to_b, &[first, second]) {
                Ok(()) => next += 1,
                Err(error) => {
                    assert_eq!(error, SendError::Full);
                    break;
                }
            }
        }
        a.turn();
        b.turn();
        b.seen.len() == count
    });
    for (n, seen) in b.seen.iter().enumerate() {
        assert_eq!(*seen, Seen::Message(to_a, message(n)), "message {n}");
    }
    let limit = mailbox::max_message_bytes(RING_BYTES);
    let refused = a.endpoint.send(to_b, &[&vec![0; limit + 1]]);
    assert_eq!(refused, Err(SendError::TooLong { len: limit + 1, limit }));
}

/// Longer than what any transport takes in one turn, so that its ring is looked at in between.
pub fn a_message_that_arrives_in_pieces_is_not_taken_for_corrupt<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let mut a = Node::new(world(), b"a");
    let mut b = Node::with_ring(world(), b"b", mailbox::DEFAULT_RING_BYTES);
    let address = b.endpoint.listen(b.address).expect("it listens");
    let (to_b, to_a) = join(&mut a, &mut b, &address);
    let bytes = vec![3; a.endpoint.max_message_bytes(to_b)];
    assert!(bytes.len() > 1_000_000);
    for round in 1..=8 {
        a.endpoint.send(to_b, &[&bytes]).expect("there is room");
        until("the message", || {
            a.turn();
            b.turn();
            b.seen.len() == round
        });
    }
    assert!(b.seen.iter().all(|seen| *seen == Seen::Message(to_a, bytes.clone())));
}

/// Both sides hear the other's.
pub fn hellos_are_exchanged<T: Transport>(mut world: impl FnMut() -> Site<T>) {
    let (mut a, mut b) = (Node::new(world(), b"I am a"), Node::new(world(), b""));
    let address = b.endpoint.listen(b.address).expect("it listens");
    let to_b = a.endpoint.dial(&address).expect("it dials");
    until("both sides up", || {
        a.turn();
        b.turn();
        a.up().is_some() && b.up().is_some()
    });
    assert_eq!(a.seen, [Seen::Up(to_b, Vec::new(), true)]);
    assert!(matches!(&b.seen[..], [Seen::Up(_, hello, false)] if hello == b"I am a"));
}

/// T1 between writes and messages.
pub fn a_write_is_in_place_before_the_message_after_it<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = pair(&mut world);
    let landing = Arc::new(HeapMemory::new(300 << 10));
    let region = b.endpoint.expose(landing.clone(), Access::Any).expect("it is exposed");
    for round in 0..20u8 {
        let bytes = vec![round + 1; 300 << 10];
        let to = RemoteSpan { region, offset: 0 };
        let token = Some(Token(u64::from(round)));
        a.endpoint.write(to_b, to, Source::bytes(&bytes), token).expect("it is posted");
        a.endpoint.send(to_b, &[b"it is there"]).expect("it is sent");
        until("the message", || {
            a.turn();
            b.turn();
            !b.seen.is_empty()
        });
        assert_eq!(b.seen, [Seen::Message(to_a, b"it is there".to_vec())]);
        b.seen.clear();
        let mut got = Vec::new();
        memory::append_out(landing.words(), 0, bytes.len(), &mut got).expect("it is in bounds");
        assert!(got == bytes, "the message came before the write");
    }
    until("all completions", || {
        a.turn();
        b.turn();
        a.seen.len() == 20
    });
    assert_eq!(a.seen, (0..20).map(|token| Seen::Written(to_b, token)).collect::<Vec<_>>());
}

/// Nothing that was taken is lost, and what was refused fits when room is told.
pub fn a_full_lane_tells_when_there_is_room<T: Transport>(mut world: impl FnMut() -> Site<T>) {
    let ((mut a, to_b), (mut b, to_a)) = pair(&mut world);
    let bytes = vec![5; 3000];
    let mut sent = 0;
    // The peer does not read, so its ring fills up.
    let refused = loop {
        match a.endpoint.send(to_b, &[&bytes]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, SendError::Full);
    assert!(sent <= RING_BYTES / bytes.len());
    for _ in 0..3 {
        a.turn();
    }
    assert!(a.seen.is_empty(), "there is no room before the peer reads");
    until("room", || {
        a.turn();
        b.turn();
        a.seen == [Seen::Room(to_b)]
    });
    a.endpoint.send(to_b, &[&bytes]).expect("there is room");
    until("all messages", || {
        a.turn();
        b.turn();
        b.seen.len() == sent + 1
    });
    assert!(b.seen.iter().all(|seen| *seen == Seen::Message(to_a, bytes.clone())));
}

/// As dialled and as accepted.
pub fn a_peer_of_another_version_is_told_apart_on_both_sides<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let mut other = own_greeting();
    other[4..6].copy_from_slice(&(LANE_VERSION + 1).to_le_bytes());
    let wrong = DownReason::WrongVersion { ours: LANE_VERSION, theirs: LANE_VERSION + 1 };
    let (mut node, _, mut raw, _, heard) = node_and_stranger(&mut world, &other);
    assert_eq!(heard[4..6], LANE_VERSION.to_le_bytes(), "the other side learns ours as well");
    until("the end of the accepted lane", || {
        node.turn();
        raw.turn();
        !node.seen.is_empty()
    });
    assert!(matches!(&node.seen[..], [Seen::Down(_, reason)] if *reason == wrong));

    let mut raw = Raw::new(world());
    let address = raw.site.transport.listen(raw.site.address).expect("it listens");
    let mut node = Node::new(world(), b"node");
    let lane = node.endpoint.dial(&address).expect("it dials");
    until("the end of the dialled lane", || {
        node.turn();
        raw.turn();
        if let Some(Occurrence::Incoming { lane }) =
            raw.take(|seen| matches!(seen, Occurrence::Incoming { .. }))
        {
            raw.site.transport.greet(lane, &other);
        }
        !node.seen.is_empty()
    });
    assert_eq!(node.seen, [Seen::Down(lane, wrong)]);
}

/// Greetings that are none, too short, too long, or damaged.
pub fn a_stranger_is_turned_away<T: Transport>(mut world: impl FnMut() -> Site<T>) {
    let mut damaged = own_greeting();
    *damaged.last_mut().expect("it is not empty") ^= 1;
    for own in [&b"hello there"[..], b"", &[0; 8 << 10], &damaged] {
        let (mut node, address, mut raw, lane, _) = node_and_stranger(&mut world, own);
        until("the end of the lane", || {
            node.turn();
            raw.turn();
            raw.is_down(lane)
        });
        assert!(node.seen.is_empty(), "a stranger is no news: {:?}", node.seen);
        let mut friend = Node::new(world(), b"friend");
        join(&mut friend, &mut node, &address);
    }
}

/// An entry at the right position whose check fails, and garbage of all kinds.
pub fn a_peer_that_scribbles_over_its_ring_loses_its_lane_and_nobody_else_does<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    for damage in [0, 8, 12, 16, 20, 24, 30] {
        let (mut node, address, mut raw, lane, heard) =
            node_and_stranger(&mut world, &own_greeting());
        until("the lane of the stranger", || {
            node.turn();
            raw.turn();
            node.up().is_some()
        });
        node.seen.clear();
        let mut friend = Node::new(world(), b"friend");
        let (to_node, from_friend) = join(&mut friend, &mut node, &address);
        let heard = greeting::parse(&heard).expect("it is a greeting");
        let mut writer = RingWriter::new(heard.ring_bytes, heard.epoch);
        let placed = writer.place(&[b"a message"]).expect("it fits");
        let mut entry = placed.header.to_vec();
        entry.extend(b"a message");
        entry[damage] ^= 0x40;
        place(&mut raw, lane, &heard, &mut writer, (&placed, &entry));
        until("the end of the lane", || {
            node.turn();
            raw.turn();
            matches!(node.seen.last(), Some(Seen::Down(..)))
        });
        assert!(
            matches!(&node.seen[..], [Seen::Down(_, DownReason::Corrupt)]),
            "damage at {damage}: {:?}",
            node.seen
        );
        node.seen.clear();
        friend.endpoint.send(to_node, &[b"unharmed"]).expect("it is sent");
        until("the message of the other", || {
            friend.turn();
            node.turn();
            !node.seen.is_empty()
        });
        assert_eq!(node.seen, [Seen::Message(from_friend, b"unharmed".to_vec())]);
    }
}

/// The peer claims to have read what was never sent.
pub fn a_credit_that_cannot_be_kills_the_lane<T: Transport>(mut world: impl FnMut() -> Site<T>) {
    for credit in [1, RING_BYTES as u64 - 8, RING_BYTES as u64 + 8, u64::MAX] {
        let (mut node, _, mut raw, lane, heard) = node_and_stranger(&mut world, &own_greeting());
        let heard = greeting::parse(&heard).expect("it is a greeting");
        let to = RemoteSpan { region: heard.region, offset: 0 };
        let word = credit.to_le_bytes();
        raw.site.transport.post_write(lane, to, Source::bytes(&word), None).expect("posted");
        until("the end of the lane", || {
            node.turn();
            raw.turn();
            matches!(node.seen.last(), Some(Seen::Down(..)))
        });
        let down = node.seen.last();
        assert!(matches!(down, Some(Seen::Down(_, DownReason::Corrupt))), "{credit}: {down:?}");
    }
}

/// The peer claims to have placed what does not fit, or takes back what it placed.
pub fn an_extent_that_cannot_be_kills_the_lane<T: Transport>(mut world: impl FnMut() -> Site<T>) {
    for extent in [1, RING_BYTES as u64 - 8, 2 * RING_BYTES as u64 + 8, u64::MAX] {
        let (mut node, _, mut raw, lane, heard) = node_and_stranger(&mut world, &own_greeting());
        let heard = greeting::parse(&heard).expect("it is a greeting");
        let to = RemoteSpan { region: heard.region, offset: EXTENT_AT };
        let word = extent.to_le_bytes();
        raw.site.transport.post_write(lane, to, Source::bytes(&word), None).expect("posted");
        until("the end of the lane", || {
            node.turn();
            raw.turn();
            matches!(node.seen.last(), Some(Seen::Down(..)))
        });
        let down = node.seen.last();
        assert!(matches!(down, Some(Seen::Down(_, DownReason::Corrupt))), "{extent}: {down:?}");
    }
}

/// An entry that was written and never said to be there.
pub fn a_message_counts_only_once_its_sender_says_that_it_is_there<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let (mut node, _, mut raw, lane, heard) = node_and_stranger(&mut world, &own_greeting());
    let heard = greeting::parse(&heard).expect("it is a greeting");
    let mut writer = RingWriter::new(heard.ring_bytes, heard.epoch);
    let placed = writer.place(&[b"messages"]).expect("it fits");
    let entry = [&placed.header[..], b"messages"].concat();
    let to = RemoteSpan { region: heard.region, offset: HEAD_BYTES };
    let source = Source::bytes(&entry);
    raw.site.transport.post_write(lane, to, source, Some(Token(1))).expect("posted");
    until("the completion", || {
        node.turn();
        raw.turn();
        raw.take(|seen| matches!(seen, Occurrence::Completed { .. })).is_some()
    });
    node.turn();
    assert!(!node.seen.iter().any(|seen| matches!(seen, Seen::Message(..))), "{:?}", node.seen);
    place(&mut raw, lane, &heard, &mut writer, (&placed, &entry));
    until("the message", || {
        node.turn();
        raw.turn();
        matches!(node.seen.last(), Some(Seen::Message(_, bytes)) if bytes == b"messages")
    });
}

/// All but the last word arrives.
pub fn a_peer_that_dies_in_the_middle_of_a_message_delivers_nothing_of_it<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let (mut node, _, mut raw, lane, heard) = node_and_stranger(&mut world, &own_greeting());
    let heard = greeting::parse(&heard).expect("it is a greeting");
    let writer = RingWriter::new(heard.ring_bytes, heard.epoch);
    let body = [9; 256];
    let placed = writer.place(&[&body]).expect("it fits");
    let mut entry = placed.header.to_vec();
    entry.extend(&body[..248]);
    let to = RemoteSpan { region: heard.region, offset: HEAD_BYTES };
    raw.site.transport.post_write(lane, to, Source::bytes(&entry), None).expect("posted");
    raw.site.transport.flush();
    (raw.site.rest)();
    drop(raw);
    until("the end of the lane", || {
        node.turn();
        matches!(node.seen.last(), Some(Seen::Down(..)))
    });
    assert!(!node.seen.iter().any(|seen| matches!(seen, Seen::Message(..))), "{:?}", node.seen);
}

/// Without a flush between them.
pub fn a_message_that_was_sent_before_a_close_still_arrives<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = pair(&mut world);
    a.endpoint.send(to_b, &[b"the last"]).expect("it is sent");
    a.endpoint.close(to_b);
    until("the end of the lane", || {
        a.turn();
        b.turn();
        matches!(b.seen.last(), Some(Seen::Down(..)))
    });
    assert_eq!(b.seen[0], Seen::Message(to_a, b"the last".to_vec()));
}

/// The transport gives the slot of a lane to the next one, before the end of the first was polled.
pub fn the_end_of_a_lane_is_told_although_another_takes_its_place_at_once<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let (mut a, mut b) = (Node::new(world(), b"a"), Node::new(world(), b"b"));
    let address = b.endpoint.listen(b.address).expect("it listens");
    for _ in 0..3 {
        let (to_b, _) = join(&mut a, &mut b, &address);
        a.endpoint.close(to_b);
        let next = a.endpoint.dial(&address).expect("it dials");
        until("the end of the first and the next that is up", || {
            a.turn();
            b.turn();
            a.seen.contains(&Seen::Down(to_b, DownReason::Closed)) && a.up() == Some(next)
        });
        a.endpoint.close(next);
        until("the end of the next", || {
            a.turn();
            b.turn();
            a.seen.contains(&Seen::Down(next, DownReason::Closed))
        });
        a.seen.clear();
        b.seen.clear();
    }
}
