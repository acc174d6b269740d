//! Tests of lanes without messages.

use std::io;
use std::sync::Arc;

use super::{Raw, Site, TURNS, raw_join, raw_pair, until};
use crate::contract::{
    Access, DownReason, LaneId, Occurrence, PostError, RegionId, RemoteSpan, Source, Token,
    Transport,
};
use crate::memory::{self, HeapMemory, Memory};

/// Exposes fresh memory to a lane.
fn expose<T: Transport>(
    raw: &mut Raw<T>,
    lane: LaneId,
    len_bytes: usize,
) -> (Arc<HeapMemory>, RegionId) {
    let memory = Arc::new(HeapMemory::new(len_bytes));
    let region = raw.site.transport.expose(memory.clone(), Access::Lane(lane));
    (memory, region.expect("it is exposed"))
}

fn read(memory: &HeapMemory, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    memory::append_out(memory.words(), offset, len, &mut bytes).expect("it is in bounds");
    bytes
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31 + seed * 7) % 251).to_le_bytes()[0]).collect()
}

/// Copies bytes into memory to be sent from there.
fn source(bytes: &[u8]) -> Source<'static> {
    let memory = Arc::new(HeapMemory::new(bytes.len()));
    memory::copy_in(memory.words(), 0, bytes).expect("it is in bounds");
    Source::Memory { memory, offset: 0, len: bytes.len() }
}

fn post<T: Transport>(
    raw: &mut Raw<T>,
    lane: LaneId,
    to: (RegionId, u64),
    source: Source<'_>,
    token: Option<u64>,
) {
    let to = RemoteSpan { region: to.0, offset: to.1 };
    let posted = raw.site.transport.post_write(lane, to, source, token.map(Token));
    posted.expect("it is posted");
}

/// T1, with small and large writes to the same bytes.
pub fn writes_are_applied_and_complete_in_the_order_they_were_posted<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let (landing, region) = expose(&mut b, to_a, 64 << 10);
    let (mut latest, mut completed) = (0, Vec::new());
    for round in 1..=200usize {
        let value = (round as u64).to_le_bytes();
        match round % 4 {
            0 => {
                let mut large = pattern(round, 40 << 10);
                large[..8].copy_from_slice(&value);
                post(&mut a, to_b, (region, 0), source(&large), Some(round as u64));
            }
            _ => post(&mut a, to_b, (region, 0), Source::bytes(&value), Some(round as u64)),
        }
        let turns = usize::from(round.is_multiple_of(16));
        for _ in 0..turns {
            a.turn();
            b.turn();
            let now = landing.words()[0].load(std::sync::atomic::Ordering::Acquire);
            assert!(u64::from_le(now) >= latest, "an earlier write came after a later one");
            latest = u64::from_le(now);
        }
    }
    until("all completions", || {
        a.turn();
        b.turn();
        while let Some(Occurrence::Completed { token, .. }) =
            a.take(|seen| matches!(seen, Occurrence::Completed { .. }))
        {
            completed.push(token.0);
        }
        completed.len() == 200
    });
    assert_eq!(completed, (1..=200).collect::<Vec<_>>());
    assert_eq!(read(&landing, 0, 8), 200u64.to_le_bytes());
    assert_eq!(read(&landing, 8, (40 << 10) - 8), pattern(200, 40 << 10)[8..]);
}

/// T3.
pub fn a_completion_means_that_the_bytes_are_in_place<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let (landing, region) = expose(&mut b, to_a, (4 << 20) + 8);
    // The last is more than any transport takes in one turn.
    for (round, len) in [1, 8, 300, 16 << 10, 200 << 10, 4 << 20].into_iter().enumerate() {
        let bytes = pattern(round, len);
        post(&mut a, to_b, (region, 3), source(&bytes), Some(9));
        until("the completion", || {
            a.turn();
            let done = a.take(|seen| matches!(seen, Occurrence::Completed { .. })).is_some();
            if !done {
                b.turn();
            }
            done
        });
        assert!(read(&landing, 3, len) == bytes, "completed and not in place");
    }
}

/// Sizes around every limit that a transport may have, at odd addresses.
pub fn a_large_write_lands_exactly_where_it_was_sent<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let size = (1 << 20) + 64;
    for (len, offset) in [(1 << 20, 13), (1 << 20, 0), (16 << 10, 5), ((16 << 10) - 1, 8), (0, 7)] {
        let (landing, region) = expose(&mut b, to_a, size);
        let bytes = pattern(len, len);
        for source in [source(&bytes), Source::bytes(&bytes)] {
            post(&mut a, to_b, (region, offset), source, Some(1));
        }
        until("both completions", || {
            a.turn();
            b.turn();
            a.seen.len() == 2
        });
        a.seen.clear();
        let at = usize::try_from(offset).expect("small");
        let mut expected = vec![0; size];
        expected[at..at + len].copy_from_slice(&bytes);
        assert!(read(&landing, 0, size) == expected, "{len} bytes at {offset}");
    }
}

/// T5.
pub fn posting_neither_blocks_nor_completes_and_a_full_lane_says_so<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let (landing, region) = expose(&mut b, to_a, 1 << 20);
    let (bytes, to) = (pattern(1, 1 << 20), RemoteSpan { region, offset: 0 });
    let mut posted = 0;
    let mut full = false;
    // The peer does nothing meanwhile, so what the lane takes is what it queues.
    while !full && posted < TURNS {
        let token = Some(Token(posted as u64));
        match a.site.transport.post_write(to_b, to, Source::bytes(&bytes), token) {
            Ok(()) => posted += 1,
            Err(error) => {
                assert_eq!(error, PostError::Full);
                full = true;
            }
        }
        assert!(read(&landing, 0, 8) == [0; 8], "applied within the call that posted it");
    }
    assert!(full && posted > 0 && !a.site.transport.has_room(to_b));
    let mut completed = 0;
    until("room, and all completions", || {
        a.turn();
        b.turn();
        completed +=
            usize::from(a.take(|seen| matches!(seen, Occurrence::Completed { .. })).is_some());
        completed == posted
    });
    assert!(a.site.transport.has_room(to_b));
}

/// T4.
pub fn the_first_failure_kills_the_lane_and_what_had_not_completed_stays_unknown<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let (_landing, region) = expose(&mut b, to_a, 64);
    post(&mut a, to_b, (region, 0), Source::bytes(&[1; 8]), Some(1));
    a.site.transport.flush();
    drop(b);
    until("the end of the lane", || {
        a.turn();
        a.is_down(to_b)
    });
    let to = RemoteSpan { region, offset: 0 };
    let posted = a.site.transport.post_write(to_b, to, Source::bytes(&[1]), Some(Token(2)));
    assert_eq!(posted, Err(PostError::Dead));
    assert!(!a.site.transport.has_room(to_b));
    for _ in 0..10 {
        a.turn();
    }
    let downs = a.seen.iter().filter(|seen| matches!(seen, Occurrence::Down { .. })).count();
    assert_eq!(downs, 1, "a lane dies once");
    assert!(matches!(a.seen.last(), Some(Occurrence::Down { .. })), "and nothing comes after it");
}

/// A close is no failure of what came before it.
pub fn what_was_posted_before_a_close_still_arrives<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let (landing, region) = expose(&mut b, to_a, 200 << 10);
    let bytes = pattern(3, 200 << 10);
    post(&mut a, to_b, (region, 0), source(&bytes), None);
    a.site.transport.close(to_b, DownReason::Closed);
    until("the end of the lane on both sides", || {
        a.turn();
        b.turn();
        a.is_down(to_b) && b.is_down(to_a)
    });
    assert_eq!(a.seen, [Occurrence::Down { lane: to_b, reason: DownReason::Closed }]);
    assert_eq!(b.seen, [Occurrence::Down { lane: to_a, reason: DownReason::PeerClosed }]);
    assert!(read(&landing, 0, bytes.len()) == bytes);
}

/// Small and large, each on a lane of its own beside one that goes on.
pub fn a_write_out_of_bounds_is_not_applied_in_any_part_and_kills_only_its_lane<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let mut b = Raw::new(world());
    let address = b.site.transport.listen(b.site.address).expect("it listens");
    let mut good = Raw::new(world());
    let (good_to_b, good_to_a) = raw_join(&mut good, &mut b, &address);
    let (unharmed, region) = expose(&mut b, good_to_a, 64);
    for (len, offset) in [(8, 60), (100 << 10, 1), (1, u64::MAX), (1, 64)] {
        let mut bad = Raw::new(world());
        let (to_b, to_a) = raw_join(&mut bad, &mut b, &address);
        let (landing, region) = expose(&mut b, to_a, 64);
        post(&mut bad, to_b, (region, offset), Source::bytes(&pattern(1, len)), None);
        until("the end of the lane", || {
            bad.turn();
            b.turn();
            b.is_down(to_a)
        });
        let down = b.take(|seen| matches!(seen, Occurrence::Down { .. }));
        assert_eq!(down, Some(Occurrence::Down { lane: to_a, reason: DownReason::OutOfBounds }));
        assert_eq!(read(&landing, 0, 64), [0; 64]);
    }
    post(&mut good, good_to_b, (region, 0), Source::bytes(&[7; 8]), Some(1));
    until("a completion on the other lane", || {
        good.turn();
        b.turn();
        good.take(|seen| matches!(seen, Occurrence::Completed { .. })).is_some()
    });
    assert_eq!(read(&unharmed, 0, 8), [7; 8]);
}

/// Regions belong to lanes.
pub fn a_region_of_another_lane_or_of_none_is_forbidden<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let mut b = Raw::new(world());
    let address = b.site.transport.listen(b.site.address).expect("it listens");
    let mut good = Raw::new(world());
    let (_, good_to_a) = raw_join(&mut good, &mut b, &address);
    let (landing, others) = expose(&mut b, good_to_a, 64);
    for region in [others, RegionId(0), RegionId(99_999)] {
        let mut bad = Raw::new(world());
        let (to_b, to_a) = raw_join(&mut bad, &mut b, &address);
        post(&mut bad, to_b, (region, 0), Source::bytes(&[1; 8]), None);
        until("the end of the lane", || {
            bad.turn();
            b.turn();
            b.is_down(to_a)
        });
        b.seen.clear();
    }
    assert_eq!(read(&landing, 0, 64), [0; 64]);
}

/// Small and large.
pub fn a_write_to_a_withdrawn_region_is_dropped_and_the_lane_lives<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let (landing, region) = expose(&mut b, to_a, 256 << 10);
    b.site.transport.withdraw(region);
    for len in [8, 16 << 10, 200 << 10] {
        post(&mut a, to_b, (region, 0), Source::bytes(&pattern(1, len)), Some(1));
    }
    until("all completions", || {
        a.turn();
        b.turn();
        a.seen.len() == 3
    });
    assert!(read(&landing, 0, 256 << 10).iter().all(|byte| *byte == 0));
    assert!(b.seen.is_empty() && b.site.transport.has_room(to_a));
}

/// The region goes while writes to it are under way.
pub fn a_withdrawal_among_writes_costs_no_lane_and_in_the_end_nothing_more_lands<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let ((mut a, to_b), (mut b, to_a)) = raw_pair(&mut world);
    let (landing, region) = expose(&mut b, to_a, 256 << 10);
    let count = 24;
    for round in 1..=count {
        let bytes = [u8::try_from(round).expect("small")].repeat(200 << 10);
        post(&mut a, to_b, (region, 0), source(&bytes), Some(round));
    }
    until("the first of the writes", || {
        a.turn();
        b.turn();
        read(&landing, 0, 1) != [0]
    });
    b.site.transport.withdraw(region);
    until("all completions, and the end of what holds the memory", || {
        a.turn();
        b.turn();
        a.seen.len() as u64 == count && Arc::strong_count(&landing) == 1
    });
    let before = read(&landing, 0, 256 << 10);
    post(&mut a, to_b, (region, 0), Source::bytes(&[99; 64]), Some(count + 1));
    until("the completion of the last", || {
        a.turn();
        b.turn();
        a.seen.len() as u64 == count + 1
    });
    assert!(read(&landing, 0, 256 << 10) == before, "something came after the end");
    assert!(a.seen.iter().all(|seen| matches!(seen, Occurrence::Completed { .. })));
    assert!(b.seen.is_empty() && b.site.transport.has_room(to_a));
}

/// Nobody listens where somebody did before.
pub fn an_address_where_nobody_listens_takes_the_lane_down<T: Transport>(
    mut world: impl FnMut() -> Site<T>,
) {
    let mut b = world();
    let address = b.transport.listen(b.address).expect("it listens");
    drop(b);
    let mut a = Raw::new(world());
    let lane = a.site.transport.dial(&address).expect("it dials");
    until("the refusal", || {
        a.turn();
        a.is_down(lane)
    });
    let reason = DownReason::Unreachable(io::ErrorKind::ConnectionRefused);
    assert_eq!(a.seen, [Occurrence::Down { lane, reason }]);
}
