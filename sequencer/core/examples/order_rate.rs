//! Appends judged and encoded per second, on one thread: what the ordering core alone can do.
//!
//! `cargo run --release -p halfmoon-order --example order_rate`
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a measurement")]

use std::time::Instant;

use halfmoon_order::{Order, Verdict, Window};
use halfmoon_wire::{
    Append, Condition, Epoch, Incarnation, LocalId, Message, NodeId, RecordKind, SeqNum, Tag,
    append_view,
};

const APPENDS: u64 = 1_000_000;
const STEPS: u64 = 8;
const PAYLOAD_BYTES: usize = 256;

fn main() {
    let plain = |_: u64| (vec![], vec![]);
    // Steps of short-lived instances, each at the next position of its own stream, with a write to
    // one of many objects: what a function's write looks like.
    let step = |n: u64| {
        let tag = Tag((n / STEPS).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let object = Tag((n % 50_000 + 1).wrapping_mul(0xd134_2543_de82_ef95));
        (vec![Condition::Length { tag, length: n % STEPS }], vec![tag, object])
    };
    measure("without tags", plain);
    measure("conditional step and object", step);
}

fn measure(name: &str, shape: impl Fn(u64) -> (Vec<Condition>, Vec<Tag>)) {
    let payload = [7; PAYLOAD_BYTES];
    let messages: Vec<Vec<u8>> = (0..APPENDS)
        .map(|n| {
            let (conditions, tags) = shape(n);
            let (local, kind, floor) = (LocalId(n + 1), RecordKind::Data, SeqNum::MAX);
            let append = Append { local, kind, floor, conditions, tags, payload: &payload };
            Message::Append { epoch: Epoch(1), append }.to_bytes()
        })
        .collect();
    let mut order = Order::new(Epoch(1));
    let mut window = Window::new(64 << 20, SeqNum(1));
    let start = Instant::now();
    for (n, bytes) in (1u64..).zip(&messages) {
        let Some(Ok((_, append))) = append_view(bytes) else { return };
        let verdict = order.append(n, NodeId(1), Incarnation(1), &append, &mut window);
        assert_eq!(verdict, Verdict::Ordered(SeqNum(n)));
        // As in life: what is committed may leave the window, what is answered is forgotten.
        if n % 128 == 0 {
            order.committed(SeqNum(n));
            order.answered(NodeId(1), Incarnation(1), LocalId(n));
            window.release(SeqNum(n));
        }
    }
    let elapsed = start.elapsed();
    let each = elapsed.as_nanos() / u128::from(APPENDS);
    println!(
        "{name}: {PAYLOAD_BYTES} B records, {each} ns each, {:.2} M/s",
        f64::from(u32::try_from(APPENDS).unwrap_or(u32::MAX)) / elapsed.as_secs_f64() / 1e6
    );
}
