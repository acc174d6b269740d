use halfmoon_wire::{Message, Records, Tag, append_view};
use proptest::prelude::*;

use super::*;

const ENGINE: NodeId = NodeId(7);
const LIFE: Incarnation = Incarnation(3);

/// An append under test; its record joins `tags` under `conditions`.
#[derive(Clone, Debug)]
struct Request {
    engine: u32,
    incarnation: u64,
    local: u64,
    floor: SeqNum,
    conditions: Vec<Condition>,
    tags: Vec<u64>,
}

fn request(local: u64, conditions: &[Condition], tags: &[u64]) -> Request {
    let (conditions, tags) = (conditions.to_vec(), tags.to_vec());
    Request { engine: ENGINE.0, incarnation: LIFE.0, local, floor: SeqNum::MAX, conditions, tags }
}

fn length(tag: u64, length: u64) -> Condition {
    Condition::Length { tag: Tag(tag), length }
}

fn nothing_after(tag: u64, after: u64) -> Condition {
    Condition::NothingAfter { tag: Tag(tag), after: SeqNum(after) }
}

fn conflict(condition: u16, winner: u64) -> Verdict {
    Verdict::Refused(Refusal::Conflict { condition, winner: SeqNum(winner) })
}

/// A machine with its stream, fed by whole messages.
struct Machine {
    order: Order,
    window: Window,
}

impl Machine {
    /// An epoch whose log is the records of `log`.
    fn rebuilt(epoch: u64, log: &[Vec<u8>]) -> Self {
        let first = log.first().map_or(SeqNum(1), |bytes| RecordRef::parse(bytes).unwrap().seq());
        let mut machine =
            Self { order: Order::new(Epoch(epoch)), window: Window::new(1 << 30, first) };
        for bytes in log {
            machine.order.replay(&RecordRef::parse(bytes).unwrap()).unwrap();
            machine.window.push_encoded(bytes);
        }
        machine.order.open(0, &Open { members: vec![] }, &mut machine.window);
        machine
    }

    fn append(&mut self, request: &Request) -> Verdict {
        let append = halfmoon_wire::Append {
            local: LocalId(request.local),
            kind: RecordKind::Data,
            floor: request.floor,
            conditions: request.conditions.clone(),
            tags: request.tags.iter().copied().map(Tag).collect(),
            payload: b"payload",
        };
        let bytes = Message::Append { epoch: self.order.epoch(), append }.to_bytes();
        let (_, view) = append_view(&bytes).unwrap().unwrap();
        let (engine, incarnation) = (NodeId(request.engine), Incarnation(request.incarnation));
        self.order.append(9, engine, incarnation, &view, &mut self.window)
    }

    /// The bytes of each record from `from` on.
    fn log(&self, from: SeqNum) -> Vec<Vec<u8>> {
        let (mut log, mut at) = (Vec::new(), from);
        while let Some(span) = self.window.span(at, 1 << 20) {
            log.extend(Records::new(span.records).map(|record| record.unwrap().bytes().to_vec()));
            at = span.next;
        }
        log
    }
}

#[test]
fn a_refused_append_is_judged_afresh_when_it_comes_again() {
    let mut machine = Machine::rebuilt(1, &[]);
    machine.append(&request(1, &[length(5, 0)], &[5]));
    assert_eq!(machine.append(&request(2, &[length(5, 0)], &[5])), conflict(0, 2));
    machine.append(&request(3, &[], &[6]));
    // The winner is lost with its epoch, and id 3 is not: 2 is below the highest id in the log.
    let log = machine.log(SeqNum(1));
    let other = Machine::rebuilt(2, &log[..1]).append(&request(3, &[], &[6]));
    assert_eq!(other, Verdict::Ordered(SeqNum(3)));
    let mut later = Machine::rebuilt(2, &log[..1]);
    later.append(&request(3, &[], &[6]));
    assert_eq!(later.append(&request(2, &[length(5, 0)], &[5])), Verdict::Ordered(SeqNum(4)));
    assert_eq!(later.append(&request(2, &[length(5, 0)], &[5])), Verdict::Duplicate);
    assert_eq!(later.append(&request(3, &[], &[6])), Verdict::Duplicate);
}

#[test]
fn the_first_condition_that_fails_is_named_with_the_record_that_stands_there() {
    let mut machine = Machine::rebuilt(1, &[]);
    for local in 1..=5 {
        machine.append(&request(local, &[], &[5]));
    }
    machine.append(&request(6, &[], &[8]));
    let ask = |machine: &mut Machine, conditions: &[Condition], tags: &[u64]| {
        machine.append(&request(9, conditions, tags))
    };
    assert_eq!(ask(&mut machine, &[length(5, 2), nothing_after(8, 0)], &[5]), conflict(0, 4));
    assert_eq!(ask(&mut machine, &[length(5, 5), nothing_after(8, 0)], &[5]), conflict(1, 7));
    assert_eq!(ask(&mut machine, &[nothing_after(5, 3)], &[]), conflict(0, 6));
    assert_eq!(ask(&mut machine, &[length(9, 1)], &[5]), conflict(0, 0), "an Init to come");
    let gap = Refusal::Gap { condition: 0, length: 5 };
    assert_eq!(ask(&mut machine, &[length(5, 6)], &[5]), Verdict::Refused(gap));
    let good = [length(5, 5), nothing_after(8, 7), length(9, 0)];
    assert_eq!(ask(&mut machine, &good, &[5, 9]), Verdict::Ordered(SeqNum(8)));
}

#[test]
fn an_append_that_fails_changes_nothing() {
    let mut machine = Machine::rebuilt(1, &[]);
    let before = machine.order.tail();
    machine.append(&request(1, &[length(6, 1)], &[5, 6, 7]));
    assert_eq!((machine.order.tail(), machine.order.table_sizes()), (before, (0, 0)));
    assert_eq!(machine.append(&request(1, &[length(5, 0)], &[5])), Verdict::Ordered(SeqNum(2)));
}

#[test]
fn nothing_of_an_evicted_incarnation_is_ordered_and_the_next_one_is_free() {
    let mut machine = Machine::rebuilt(1, &[]);
    machine.append(&request(1, &[], &[5]));
    let evict = Evict {
        engine: ENGINE,
        incarnation: LIFE,
        heir: NodeId(8),
        heir_incarnation: Incarnation(1),
    };
    machine.order.evict(0, &evict, &mut machine.window);
    let mut rebuilt = Machine::rebuilt(2, &machine.log(SeqNum(1)));
    for machine in [&mut machine, &mut rebuilt] {
        assert_eq!(machine.append(&request(2, &[], &[5])), Verdict::Refused(Refusal::Evicted));
        let older = Request { incarnation: LIFE.0 - 1, ..request(2, &[], &[5]) };
        assert_eq!(machine.append(&older), Verdict::Refused(Refusal::Evicted));
        assert_eq!(machine.order.lives(), [(NodeId(8), Incarnation(1))]);
        let newer = Request { incarnation: LIFE.0 + 1, ..request(1, &[], &[5]) };
        assert!(matches!(machine.append(&newer), Verdict::Ordered(_)));
    }
}

#[test]
fn a_root_below_the_safe_point_is_gone_once_that_is_committed_and_not_before() {
    let mut machine = Machine::rebuilt(1, &[]);
    for local in 1..=9 {
        machine.append(&request(local, &[], &[5]));
    }
    let gone = Verdict::Refused(Refusal::RootGone { safe_point: SeqNum(6) });
    let record = machine.order.advance(0, SeqNum(6), &mut machine.window).unwrap();
    assert_eq!(machine.order.advance(0, SeqNum(6), &mut machine.window), None, "it only grows");
    let old = |local| Request { floor: SeqNum(5), ..request(local, &[], &[5]) };
    assert!(matches!(machine.append(&old(10)), Verdict::Ordered(_)), "not committed");
    machine.order.committed(record.prev());
    assert!(matches!(machine.append(&old(11)), Verdict::Ordered(_)), "not committed");
    machine.order.committed(record);
    assert_eq!(machine.append(&old(12)), gone);
    let of_root = Request { floor: SeqNum(6), ..request(12, &[nothing_after(7, 5)], &[5]) };
    assert_eq!(machine.append(&of_root), gone);
    let of_none = request(12, &[nothing_after(7, 5)], &[5]);
    assert!(matches!(machine.append(&of_none), Verdict::Ordered(_)), "it belongs to no root");
    let fine = Request { floor: SeqNum(6), ..request(13, &[nothing_after(7, 6)], &[5]) };
    assert!(matches!(machine.append(&fine), Verdict::Ordered(_)));
}

#[test]
fn a_new_epoch_orders_nothing_below_the_safe_point_of_the_log_that_it_found() {
    let mut machine = Machine::rebuilt(1, &[]);
    for local in 1..=9 {
        machine.append(&request(local, &[], &[5]));
    }
    let record = machine.order.advance(0, SeqNum(6), &mut machine.window).unwrap();
    machine.order.committed(record);
    // Its opening record is not committed yet.
    let mut next = Machine::rebuilt(2, &machine.log(SeqNum(1)));
    let of_old = Request { floor: SeqNum(5), ..request(10, &[], &[5]) };
    let gone = Verdict::Refused(Refusal::RootGone { safe_point: SeqNum(6) });
    assert_eq!(next.append(&of_old), gone);
    let fine = Request { floor: SeqNum(6), ..request(10, &[], &[5]) };
    assert!(matches!(next.append(&fine), Verdict::Ordered(_)));
}

#[test]
fn a_machine_rebuilt_after_a_trim_gives_the_same_positions() {
    let mut machine = Machine::rebuilt(1, &[]);
    for local in 1..=9 {
        machine.append(&request(local, &[], &[5]));
    }
    let record = machine.order.advance(0, SeqNum(7), &mut machine.window).unwrap();
    machine.order.committed(record);
    let mut rebuilt = Machine::rebuilt(2, &machine.log(SeqNum(6)));
    machine.order.trim(SeqNum(6));
    for machine in [&mut machine, &mut rebuilt] {
        assert_eq!(machine.append(&request(10, &[length(5, 8)], &[5])), conflict(0, 10));
        assert!(matches!(machine.append(&request(10, &[length(5, 9)], &[5])), Verdict::Ordered(_)));
    }
}

#[test]
fn time_in_the_log_never_goes_back() {
    let mut machine = Machine::rebuilt(1, &[]);
    machine.order.advance(50, SeqNum(1), &mut machine.window);
    machine.append(&request(1, &[], &[5]));
    let mut later = Machine::rebuilt(2, &machine.log(SeqNum(1)));
    later.append(&request(2, &[], &[5]));
    let times: Vec<_> = later
        .log(SeqNum(1))
        .iter()
        .map(|bytes| RecordRef::parse(bytes).unwrap().time_ns())
        .collect();
    assert_eq!(times, [0, 50, 50, 50, 50]);
}

#[test]
fn a_full_window_refuses_and_takes_the_append_later() {
    let mut machine = Machine::rebuilt(1, &[]);
    machine.window = Window::new(0, SeqNum(2));
    let payload = vec![0; 200 * 1024];
    let append = |local| halfmoon_wire::Append {
        local: LocalId(local),
        kind: RecordKind::Data,
        floor: SeqNum::MAX,
        conditions: vec![],
        tags: vec![Tag(1)],
        payload: &payload,
    };
    let send = |machine: &mut Machine, local| {
        let bytes = Message::Append { epoch: Epoch(1), append: append(local) }.to_bytes();
        let view = append_view(&bytes).unwrap().unwrap().1;
        machine.order.append(0, ENGINE, LIFE, &view, &mut machine.window)
    };
    let mut local = 1;
    while matches!(send(&mut machine, local), Verdict::Ordered(_)) {
        local += 1;
    }
    assert_eq!(send(&mut machine, local), Verdict::Refused(Refusal::Overloaded));
    machine.window.release(machine.order.tail());
    assert!(matches!(send(&mut machine, local), Verdict::Ordered(_)));
}

#[test]
fn beyond_the_limit_of_places_only_what_has_no_tag_is_ordered() {
    let mut machine = Machine::rebuilt(1, &[]);
    machine.order.limit_places(3);
    assert!(matches!(machine.append(&request(1, &[], &[5, 6])), Verdict::Ordered(_)));
    let two = machine.append(&request(2, &[], &[5, 7]));
    assert_eq!(two, Verdict::Refused(Refusal::Overloaded), "it does not fit whole");
    assert!(matches!(machine.append(&request(3, &[], &[5])), Verdict::Ordered(_)));
    let one = machine.append(&request(4, &[], &[5]));
    assert_eq!(one, Verdict::Refused(Refusal::Overloaded));
    assert_eq!(machine.append(&request(3, &[], &[5])), Verdict::Duplicate, "known as before");
    assert!(matches!(machine.append(&request(4, &[], &[])), Verdict::Ordered(_)));
    let log = machine.log(SeqNum(1));
    let mut again = Machine::rebuilt(2, &log);
    again.order.limit_places(3);
    let two = again.append(&request(2, &[], &[5, 7]));
    assert_eq!(two, Verdict::Refused(Refusal::Overloaded), "what is in the log counts");
}

#[test]
fn a_damaged_log_is_not_replayed() {
    let mut machine = Machine::rebuilt(4, &[]);
    machine.append(&request(1, &[], &[5]));
    machine.append(&request(2, &[], &[5]));
    let log = machine.log(SeqNum(1));
    let record = |index: usize| RecordRef::parse(&log[index]).unwrap();
    let mut order = Order::new(Epoch(5));
    order.replay(&record(0)).unwrap();
    let hole = order.replay(&record(2)).unwrap_err();
    assert!(matches!(hole, ReplayError::NotContiguous { expected: SeqNum(2), .. }), "{hole}");
    let own = Order::new(Epoch(4)).replay(&record(0)).unwrap_err();
    assert!(matches!(own, ReplayError::EpochWentBack { .. }), "{own}");
}

/// The log as a plain list, judged by looking through it.
struct Model {
    log: Vec<Entry>,
    /// First record that the tables of tags know, and those of engines.
    start: u64,
    base: u64,
    floor: u64,
}

#[derive(Clone, Debug)]
enum Entry {
    Data { engine: u32, incarnation: u64, local: u64, tags: Vec<(u64, u64)> },
    Evict { engine: u32, incarnation: u64 },
    Other,
}

impl Model {
    fn entries(&self, from: u64) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        (1..).zip(&self.log).collect::<Vec<_>>().into_iter().filter(move |(seq, _)| *seq >= from)
    }

    /// The records of a tag, newest first: (position, seq).
    fn of_tag(&self, tag: u64) -> Vec<(u64, u64)> {
        let find = |entry: &Entry| match entry {
            Entry::Data { tags, .. } => tags.iter().find(|(t, _)| *t == tag).map(|(_, p)| *p),
            Entry::Evict { .. } | Entry::Other => None,
        };
        self.entries(self.start)
            .rev()
            .filter_map(|(seq, entry)| Some((find(entry)?, seq)))
            .collect()
    }

    fn length(&self, tag: u64) -> u64 {
        self.of_tag(tag).first().map_or(0, |(position, _)| position + 1)
    }

    fn judge(&self, request: &Request) -> Verdict {
        let mut duplicate = false;
        for (_, entry) in self.entries(self.base) {
            match entry {
                Entry::Evict { engine, incarnation }
                    if *engine == request.engine && *incarnation >= request.incarnation =>
                {
                    return Verdict::Refused(Refusal::Evicted);
                }
                Entry::Data { engine, incarnation, local, .. } => {
                    duplicate |= (*engine, *incarnation, *local)
                        == (request.engine, request.incarnation, request.local);
                }
                Entry::Evict { .. } | Entry::Other => {}
            }
        }
        if duplicate {
            return Verdict::Duplicate;
        }
        let gone = Verdict::Refused(Refusal::RootGone { safe_point: SeqNum(self.floor) });
        let least = if request.floor == SeqNum::MAX { self.start - 1 } else { self.floor };
        let is_gone = |condition: &Condition| match condition {
            Condition::NothingAfter { after, .. } => after.0 < least,
            Condition::Length { .. } => false,
        };
        if request.floor.0 < least || request.conditions.iter().any(is_gone) {
            return gone;
        }
        for (index, condition) in (0..).zip(&request.conditions) {
            let tag = condition.tag().0;
            match condition {
                Condition::Length { length, .. } if self.length(tag) > *length => {
                    let mut expected = self.length(tag);
                    for (position, seq) in self.of_tag(tag) {
                        expected -= 1;
                        if position != expected {
                            return gone;
                        }
                        if position == *length {
                            return conflict(index, seq);
                        }
                    }
                    return gone;
                }
                Condition::Length { length, .. } if self.length(tag) < *length => {
                    return if request.tags.contains(&tag) {
                        let length = self.length(tag);
                        Verdict::Refused(Refusal::Gap { condition: index, length })
                    } else {
                        conflict(index, 0)
                    };
                }
                Condition::NothingAfter { after, .. } => match self.of_tag(tag).first() {
                    Some((_, seq)) if *seq > after.0 => return conflict(index, *seq),
                    Some(_) | None => {}
                },
                Condition::Length { .. } => {}
            }
        }
        Verdict::Ordered(SeqNum(self.log.len() as u64 + 1))
    }

    fn apply(&mut self, request: &Request) {
        let mut tags: Vec<(u64, u64)> = Vec::new();
        for tag in &request.tags {
            tags.push((*tag, self.length(*tag)));
        }
        let Request { engine, incarnation, local, .. } = *request;
        self.log.push(Entry::Data { engine, incarnation, local, tags });
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(Request),
    Evict(u32, u64),
    /// Percent of the tail.
    SafePoint(u64),
    Commit(u64),
    Trim(u64),
    /// A new epoch from the first so many percent of what is not committed, trimmed up to so many
    /// percent of what may be.
    Failover(u64, u64),
}

fn ops() -> impl Strategy<Value = Op> {
    let condition = prop_oneof![
        (0u64..4, 0u64..4).prop_map(|(tag, n)| length(tag, n)),
        (0u64..4, 0u64..40).prop_map(|(tag, after)| nothing_after(tag, after)),
    ];
    let append = (
        (1u32..3, 1u64..3, 1u64..12),
        prop_oneof![3 => Just(SeqNum::MAX), 2 => (0u64..40).prop_map(SeqNum)],
        prop::collection::vec(condition, 0..3),
        prop::collection::vec(0u64..4, 0..3),
    )
        .prop_map(|((engine, incarnation, local), floor, conditions, tags)| {
            Op::Append(Request { engine, incarnation, local, floor, conditions, tags })
        });
    prop_oneof![
        40 => append,
        1 => (1u32..3, 1u64..3).prop_map(|(engine, life)| Op::Evict(engine, life)),
        4 => (0u64..=100).prop_map(Op::SafePoint),
        4 => (0u64..=100).prop_map(Op::Commit),
        2 => (0u64..=100).prop_map(Op::Trim),
        2 => (0u64..=100, 0u64..=100).prop_map(|(keep, trim)| Op::Failover(keep, trim)),
    ]
}

/// The machine and the model, side by side.
struct Pair {
    machine: Machine,
    model: Model,
    committed: u64,
    epoch: u64,
    /// (record, safe point), in order.
    safe_points: Vec<(u64, u64)>,
}

impl Pair {
    fn tail(&self) -> u64 {
        self.model.log.len() as u64
    }

    fn commit(&mut self, up_to: u64) {
        self.committed = self.committed.max(up_to);
        self.machine.order.committed(SeqNum(self.committed));
        let counted = self.safe_points.iter().filter(|(record, _)| *record <= self.committed);
        self.model.floor = counted.map(|(_, p)| *p).max().unwrap_or(0).max(self.model.floor);
    }

    fn failover(&mut self, keep: u64, trim: u64) {
        let keep = self.committed + (self.tail() - self.committed) * keep / 100;
        // Storage trims whole segments, so its log may reach further back than the tables did.
        let start = (self.model.floor * trim / 100).max(self.model.base);
        let log = self.machine.log(SeqNum(start));
        let kept = usize::try_from(keep + 1 - start).unwrap();
        self.epoch += 1;
        self.machine = Machine::rebuilt(self.epoch, &log[..kept]);
        self.model.log.truncate(usize::try_from(keep).unwrap());
        self.model.log.push(Entry::Other);
        (self.model.start, self.model.base) = (start, start);
        self.model.floor = if start > 1 { start } else { 0 };
        self.safe_points.retain(|(record, _)| *record <= keep && *record >= start);
        self.committed = 0;
        let opening = self.tail();
        self.commit(opening);
    }

    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Append(request) => {
                let expected = self.model.judge(&request);
                let verdict = self.machine.append(&request);
                prop_assert_eq!(verdict, expected, "{:?}", request);
                if matches!(verdict, Verdict::Ordered(_)) {
                    self.model.apply(&request);
                }
            }
            Op::Evict(engine, incarnation) => {
                self.model.log.push(Entry::Evict { engine, incarnation });
                let (heir, heir_incarnation) = (NodeId(9), Incarnation(1));
                let (engine, incarnation) = (NodeId(engine), Incarnation(incarnation));
                let evict = Evict { engine, incarnation, heir, heir_incarnation };
                self.machine.order.evict(0, &evict, &mut self.machine.window);
            }
            Op::SafePoint(percent) => {
                let to = self.committed * percent / 100;
                let machine = &mut self.machine;
                if machine.order.advance(0, SeqNum(to), &mut machine.window).is_some() {
                    self.model.log.push(Entry::Other);
                    self.safe_points.push((self.tail(), to));
                }
            }
            Op::Commit(percent) => self.commit(self.tail() * percent / 100),
            Op::Trim(percent) => {
                let start = (self.model.floor * percent / 100).max(1);
                self.machine.order.trim(SeqNum(start));
                self.model.start = self.model.start.max(start);
            }
            Op::Failover(keep, trim) => self.failover(keep, trim),
        }
        prop_assert_eq!(self.machine.order.tail().0, self.tail());
        prop_assert_eq!(self.machine.order.floor().0, self.model.floor);
        Ok(())
    }

    /// What is in the stream is what the model has ordered.
    fn compare_streams(&self) {
        for bytes in self.machine.log(self.machine.window.start()) {
            let record = RecordRef::parse(&bytes).unwrap();
            let entry = &self.model.log[usize::try_from(record.seq().0 - 1).unwrap()];
            if let Entry::Data { engine, incarnation, local, tags } = entry {
                let origin = record.origin();
                let found = (origin.engine.0, origin.incarnation.0, origin.local.0);
                assert_eq!(found, (*engine, *incarnation, *local));
                let found: Vec<_> =
                    record.tags().map(|place| (place.tag().0, place.position())).collect();
                assert_eq!(&found, tags);
            } else {
                assert!(record.kind() != RecordKind::Data);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_judges_as_a_list_looked_through_does(
        ops in prop::collection::vec(ops(), 0..120)
    ) {
        let model = Model { log: vec![Entry::Other], start: 1, base: 1, floor: 0 };
        let machine = Machine::rebuilt(1, &[]);
        let mut pair =
            Pair { machine, model, committed: 1, epoch: 1, safe_points: Vec::new() };
        for op in ops {
            pair.step(op)?;
        }
        pair.compare_streams();
    }
}
