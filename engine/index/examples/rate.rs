//! How many appends per second one thread takes through submission, hold-back, commit and index:
//! `cargo run --release -p halfmoon-index --example rate`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a tool")]

use std::time::Instant;

use halfmoon_index::{Limits, NewAppend, Submissions, View};
use halfmoon_wire::{
    Epoch, Incarnation, Message, NewRecord, NodeId, Open, Origin, RecordKind, SeqNum, Tag, TagPos,
};

const DEPTH: u64 = 128;
const APPENDS: u64 = 1_000_000;
const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

fn main() {
    let (engine, life, epoch) = (NodeId(9), Incarnation(1), Epoch(1));
    let mut view = View::new(Limits::default());
    let mut submissions = Submissions::new(engine, life);
    view.enter(epoch, SeqNum(1), &MEMBERS).unwrap();
    submissions.enter(epoch);
    let mut stream = Vec::new();
    let mut record = NewRecord {
        seq: SeqNum(1),
        epoch,
        time_ns: 0,
        origin: Origin::default(),
        floor: SeqNum::MAX,
        kind: RecordKind::Open,
        tags: &[],
        payload: &Open { members: MEMBERS.to_vec() }.to_bytes(),
    };
    record.encode(&mut stream);
    view.extend(epoch, SeqNum(1), &stream).unwrap();
    record.kind = RecordKind::Data;
    let (payload, begin, mut answered, mut ordering) = ([7; 256], Instant::now(), 0, 0);
    let mut submitted = 0;
    while answered < APPENDS {
        for token in 0..DEPTH {
            let tags = [Tag((1 << 40) + submitted), Tag(3)];
            let append =
                NewAppend { floor: SeqNum(1), conditions: &[], tags: &tags, payload: &payload };
            submissions.submit(token, &append).unwrap();
            submitted += 1;
        }
        let mark = record.seq;
        view.watermark(epoch, NodeId(1), mark);
        view.watermark(epoch, NodeId(2), mark);
        view.apply(usize::MAX, |record| submissions.applied(record)).unwrap();
        submissions.opened();
        stream.clear();
        let since = Instant::now();
        let first = record.seq.next();
        while let Some(bytes) = submissions.next_to_send(0) {
            let Message::Append { append, .. } = Message::parse(bytes).unwrap() else { return };
            record.seq = record.seq.next();
            record.origin = Origin { engine, incarnation: life, local: append.local };
            let at = |(tag, position): (&Tag, u64)| TagPos::new(*tag, position);
            let tags: Vec<_> = append.tags.iter().zip([0, append.local.0 - 1]).map(at).collect();
            NewRecord { tags: &tags, payload: append.payload, ..record }.encode(&mut stream);
            submissions.sent(0);
        }
        ordering += since.elapsed().as_nanos();
        view.extend(epoch, first, &stream).unwrap();
        view.trim_cache();
        while submissions.poll_answer().is_some() {
            answered += 1;
        }
    }
    let total = begin.elapsed().as_nanos();
    let own = (total - ordering) / u128::from(APPENDS);
    println!("{own} ns per append on the engine's side, {DEPTH} in flight, 256 B");
}
