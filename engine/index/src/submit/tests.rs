use halfmoon_wire::{Message, NewRecord, Origin};

use super::*;

const ENGINE: NodeId = NodeId(9);
const LIFE: Incarnation = Incarnation(2);

fn append(submissions: &mut Submissions, token: u64) -> LocalId {
    let tags = [Tag(1)];
    let append = NewAppend { floor: SeqNum(3), conditions: &[], tags: &tags, payload: b"payload" };
    submissions.submit(token, &append).unwrap()
}

/// Sends everything that is to be sent; returns (epoch, local) of each message.
fn send(submissions: &mut Submissions, now_ns: u64) -> Vec<(u64, u64)> {
    let mut sent = Vec::new();
    while let Some(bytes) = submissions.next_to_send(now_ns) {
        let Message::Append { epoch, append } = Message::parse(bytes).unwrap() else {
            panic!("not an append")
        };
        sent.push((epoch.0, append.local.0));
        submissions.sent(now_ns);
    }
    sent
}

fn apply(submissions: &mut Submissions, seq: u64, engine: NodeId, life: Incarnation, local: u64) {
    let origin = Origin { engine, incarnation: life, local: LocalId(local) };
    record(submissions, seq, origin, RecordKind::Data, b"");
}

fn record(s: &mut Submissions, seq: u64, origin: Origin, kind: RecordKind, payload: &[u8]) {
    let mut bytes = Vec::new();
    let (seq, floor) = (SeqNum(seq), SeqNum::MAX);
    let epoch = Epoch(1);
    NewRecord { seq, epoch, time_ns: 0, origin, floor, kind, tags: &[], payload }
        .encode(&mut bytes);
    s.applied(&RecordRef::parse(&bytes).unwrap());
}

fn answers(submissions: &mut Submissions) -> Vec<(u64, Outcome)> {
    std::iter::from_fn(|| submissions.poll_answer().map(|a| (a.token, a.outcome))).collect()
}

fn in_epoch(epoch: u64) -> Submissions {
    let mut submissions = Submissions::new(ENGINE, LIFE);
    submissions.enter(Epoch(epoch));
    submissions.opened();
    submissions
}

fn conflict(winner: u64) -> Refusal {
    Refusal::Conflict { condition: 0, winner: SeqNum(winner) }
}

#[test]
fn an_append_is_answered_by_its_own_record_alone() {
    let mut s = in_epoch(1);
    append(&mut s, 50);
    assert_eq!(send(&mut s, 0), [(1, 1)]);
    apply(&mut s, 1, NodeId(8), LIFE, 1);
    apply(&mut s, 2, ENGINE, Incarnation(1), 1);
    apply(&mut s, 3, ENGINE, LIFE, 2);
    assert_eq!(answers(&mut s), []);
    apply(&mut s, 4, ENGINE, LIFE, 1);
    assert_eq!(answers(&mut s), [(50, Outcome::At(SeqNum(4)))]);
    assert_eq!(s.answered(), LocalId(1));
    apply(&mut s, 5, ENGINE, LIFE, 1);
    assert_eq!(answers(&mut s), []);
    assert_eq!(s.unanswered(), 0);
}

#[test]
fn nothing_is_sent_before_the_epoch_is_open() {
    let mut s = Submissions::new(ENGINE, LIFE);
    append(&mut s, 50);
    assert_eq!(send(&mut s, 0), []);
    s.enter(Epoch(4));
    assert_eq!(send(&mut s, 0), []);
    s.opened();
    assert_eq!(send(&mut s, 0), [(4, 1)]);
    assert_eq!(send(&mut s, 0), []);
}

#[test]
fn a_new_epoch_resubmits_exactly_what_the_log_lacks_in_order() {
    let mut s = in_epoch(1);
    for token in 0..4 {
        append(&mut s, token);
    }
    assert_eq!(send(&mut s, 0), [(1, 1), (1, 2), (1, 3), (1, 4)]);
    // 1 is refused, 3 is in the recovered log: "not higher than the highest" would drop 1 and 2.
    s.refused(Epoch(1), LocalId(1), conflict(9), 0);
    s.enter(Epoch(2));
    assert_eq!(send(&mut s, 0), []);
    apply(&mut s, 5, ENGINE, LIFE, 3);
    assert_eq!(s.answered(), LocalId(0), "1 and 2 are not");
    append(&mut s, 4);
    s.opened();
    assert_eq!(send(&mut s, 0), [(2, 1), (2, 2), (2, 4), (2, 5)]);
}

#[test]
fn a_lost_lane_resends_what_has_no_verdict() {
    let mut s = in_epoch(1);
    for token in 0..3 {
        append(&mut s, token);
    }
    send(&mut s, 0);
    s.refused(Epoch(1), LocalId(2), conflict(9), 0);
    s.lane_lost();
    assert_eq!(send(&mut s, 0), [(1, 1), (1, 3)]);
}

#[test]
fn a_loser_is_answered_once_its_winner_is_applied() {
    let mut s = in_epoch(1);
    append(&mut s, 50);
    send(&mut s, 0);
    s.refused(Epoch(1), LocalId(1), conflict(9), 0);
    s.settle(SeqNum(8), SeqNum(0));
    assert_eq!(answers(&mut s), []);
    s.settle(SeqNum(9), SeqNum(0));
    assert_eq!(answers(&mut s), [(50, Outcome::Refused(conflict(9)))]);
}

#[test]
fn a_verdict_of_an_old_epoch_is_void() {
    let mut s = in_epoch(1);
    append(&mut s, 50);
    send(&mut s, 0);
    s.refused(Epoch(1), LocalId(1), conflict(9), 0);
    s.enter(Epoch(2));
    s.opened();
    s.settle(SeqNum(9), SeqNum(0));
    assert_eq!(answers(&mut s), []);
    assert_eq!(send(&mut s, 0), [(2, 1)]);
    s.refused(Epoch(1), LocalId(1), conflict(9), 0);
    s.refused(Epoch(1), LocalId(1), Refusal::Invalid, 0);
    s.settle(SeqNum(9), SeqNum(0));
    assert_eq!(answers(&mut s), [], "a late verdict of the old sequencer");
    apply(&mut s, 10, ENGINE, LIFE, 1);
    assert_eq!(answers(&mut s), [(50, Outcome::At(SeqNum(10)))]);
}

#[test]
fn a_conflict_without_a_winner_and_a_gap_are_answered_at_once() {
    let mut s = in_epoch(1);
    append(&mut s, 50);
    append(&mut s, 51);
    send(&mut s, 0);
    let gap = Refusal::Gap { condition: 0, length: 2 };
    s.refused(Epoch(1), LocalId(2), gap, 0);
    s.refused(Epoch(1), LocalId(1), conflict(0), 0);
    let expected = [(51, Outcome::Refused(gap)), (50, Outcome::Refused(conflict(0)))];
    assert_eq!(answers(&mut s), expected);
}

#[test]
fn nobody_acts_on_a_safe_point_that_is_not_applied() {
    let mut s = in_epoch(1);
    append(&mut s, 50);
    send(&mut s, 0);
    let gone = Refusal::RootGone { safe_point: SeqNum(7) };
    s.refused(Epoch(1), LocalId(1), gone, 0);
    s.settle(SeqNum(20), SeqNum(6));
    assert_eq!(answers(&mut s), []);
    s.settle(SeqNum(21), SeqNum(7));
    assert_eq!(answers(&mut s), [(50, Outcome::Refused(gone))]);
}

#[test]
fn what_was_refused_for_lack_of_room_is_sent_again_after_a_pause() {
    let mut s = in_epoch(1);
    append(&mut s, 50);
    send(&mut s, 100);
    s.refused(Epoch(1), LocalId(1), Refusal::Overloaded, 100);
    assert_eq!(answers(&mut s), []);
    assert_eq!(s.next_retry_ns(), Some(100 + PAUSE_FIRST_NS));
    assert_eq!(send(&mut s, 99 + PAUSE_FIRST_NS), []);
    assert_eq!(send(&mut s, 100 + PAUSE_FIRST_NS), [(1, 1)]);
    let mut now = 0;
    for _ in 0..20 {
        s.refused(Epoch(1), LocalId(1), Refusal::Overloaded, now);
        let at = s.next_retry_ns().unwrap();
        assert!(at - now <= PAUSE_MAX_NS);
        now = at;
        assert_eq!(send(&mut s, now), [(1, 1)]);
    }
    apply(&mut s, 4, ENGINE, LIFE, 1);
    assert_eq!(answers(&mut s).len(), 1);
    assert_eq!(s.next_to_send(u64::MAX), None);
}

#[test]
fn an_eviction_ends_everything_once_its_record_is_applied() {
    let mut s = in_epoch(1);
    append(&mut s, 50);
    append(&mut s, 51);
    send(&mut s, 0);
    s.refused(Epoch(1), LocalId(2), Refusal::Evicted, 0);
    s.settle(SeqNum(4), SeqNum(4));
    assert_eq!(answers(&mut s), [], "the eviction may yet be lost");
    let evict = |incarnation| Evict {
        engine: ENGINE,
        incarnation,
        heir: NodeId(8),
        heir_incarnation: Incarnation(1),
    };
    let origin = Origin::default();
    let earlier = evict(Incarnation(1)).to_bytes();
    record(&mut s, 5, origin, RecordKind::Evict, &earlier);
    assert!(!s.is_evicted());
    record(&mut s, 6, origin, RecordKind::Evict, &evict(LIFE).to_bytes());
    assert!(s.is_evicted());
    let refused = Outcome::Refused(Refusal::Evicted);
    assert_eq!(answers(&mut s), [(50, refused), (51, refused)]);
    let none = NewAppend { floor: SeqNum::MAX, conditions: &[], tags: &[], payload: b"" };
    assert_eq!(s.submit(52, &none), Err(SubmitError::Evicted));
}

#[test]
fn limits_are_return_values() {
    let mut s = in_epoch(1);
    let floor = SeqNum::MAX;
    let long = vec![0; limits::RECORD_MAX_BYTES];
    let append = NewAppend { floor, conditions: &[], tags: &[], payload: &long };
    assert!(matches!(s.submit(1, &append), Err(SubmitError::TooLarge { .. })));
    let tags = vec![Tag(1); limits::TAGS_MAX + 1];
    let append = NewAppend { floor, conditions: &[], tags: &tags, payload: b"" };
    assert!(matches!(s.submit(1, &append), Err(SubmitError::TooLarge { .. })));
    let append = NewAppend { floor, conditions: &[], tags: &[], payload: b"" };
    for token in 0..IN_FLIGHT_MAX as u64 {
        s.submit(token, &append).unwrap();
    }
    assert_eq!(s.submit(0, &append), Err(SubmitError::Full));
    send(&mut s, 0);
    apply(&mut s, 1, ENGINE, LIFE, 1);
    assert!(s.submit(0, &append).is_ok());
}
