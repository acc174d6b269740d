//! What the attempts of one instance have done so far.

use std::collections::BTreeMap;

use crate::message::{EndReason, Refusal};

/// An outcome, as the journal keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "as in `Outcome`")]
pub enum Recorded {
    Done,
    /// A call that was begun, and how it ended.
    Begun(Box<Self>),
    Value(Vec<u8>),
    CalleeFailed(Vec<u8>),
    Absent,
    Committed,
    Conflict,
    Go,
    Time(u64),
    Instance(u128),
    Draw([u8; 32]),
    Refused(Refusal, String),
    Ended(EndReason),
}

/// The operations of an instance and their outcomes, in order.
#[derive(Default, Debug)]
pub struct Journal {
    entries: Vec<(String, Recorded)>,
    next: usize,
    draws: u64,
    /// Index of the entry of each request of this attempt.
    indices: BTreeMap<u64, usize>,
}

impl Journal {
    /// An attempt begins.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
        self.draws = 0;
        self.indices.clear();
        // A transaction that was not committed begins anew.
        let begun = self.entries.iter().rposition(|(what, _)| what == "TxnBegin");
        let ended =
            self.entries.iter().rposition(|(what, _)| what == "TxnCommit" || what == "TxnAbort");
        if let Some(begun) = begun.filter(|begun| ended.is_none_or(|ended| ended < *begun)) {
            self.entries.truncate(begun);
        }
        // A side effect whose result was not recorded is made again.
        if let Some((_, Recorded::Go)) = self.entries.last() {
            self.entries.pop();
        }
    }

    /// The entry of an earlier attempt at this place, if there is one.
    pub(super) fn replay(&mut self, id: u64) -> Option<(usize, &str, &Recorded)> {
        let index = self.next;
        let (described, recorded) = self.entries.get(index)?;
        self.next += 1;
        if matches!(recorded, Recorded::Draw(_)) {
            self.draws += 1;
        }
        self.indices.insert(id, index);
        Some((index, described, recorded))
    }

    pub(super) fn record(&mut self, id: u64, described: String, recorded: Recorded) {
        self.indices.insert(id, self.entries.len());
        self.entries.push((described, recorded));
        self.next = self.entries.len();
    }

    /// How the call ended that the request `id` began.
    pub(super) fn begun(&self, id: u64) -> Recorded {
        let entry = self.indices.get(&id).and_then(|index| self.entries.get(*index));
        match entry {
            Some((_, Recorded::Begun(ended))) => (**ended).clone(),
            Some(_) | None => {
                Recorded::Refused(Refusal::NoSuchCall, "no such call is outstanding".to_owned())
            }
        }
    }

    /// The side effect that was begun last has this result: later attempts find it at once.
    pub(super) fn side_effect(&mut self, result: Vec<u8>) {
        if let Some((_, recorded @ Recorded::Go)) = self.entries.last_mut() {
            *recorded = Recorded::Value(result);
        }
    }

    pub(super) fn draw(&mut self, instance: u128) -> Recorded {
        let mut bytes = [0; 32];
        let [low, high] = bytemuck::cast::<u128, [u64; 2]>(instance);
        let seed = mix(low ^ mix(high) ^ mix(self.draws));
        for (chunk, lane) in bytes.chunks_exact_mut(8).zip(1_u64..) {
            chunk.copy_from_slice(&mix(seed ^ lane).to_le_bytes());
        }
        self.draws += 1;
        Recorded::Draw(bytes)
    }
}

/// A bijection that spreads bits.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
