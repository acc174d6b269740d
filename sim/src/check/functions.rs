//! Checker 2: functions. Every reply, and what is left at the end, is that of a run in which each
//! root ran once, alone, at its place in the log.
//!
//! - A root has one reply, whoever asks, however often it was attempted.
//! - A transfer's place is the record that committed it. In the order of these places, each transfer
//!   finds exactly what the one before it left.
//! - No audit finds money gone or made.
//! - Every increment of a counter finds another number, and together they find all of them.
//! - A root's own object reads as it was written last, by whoever reads it below that root.

use std::collections::BTreeMap;
use std::rc::Rc;

use halfmoon_wire::{InstanceId, SeqNum};

use super::Judge;
use crate::shared::Shared;

const ONE_REPLY: &str = "a root has one reply";
const SERIAL: &str = "transactions are as if one after the other, in the order of the log";
const MONEY: &str = "money is neither made nor lost";
const COUNT: &str = "every increment counts once";
const OWN: &str = "an object reads as it was written last";
const FINAL: &str = "what is left is what all roots together have done";

/// What a root was asked to do, as far as its reply can be judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deed {
    Transfer { from: u8, to: u8, amount: i64 },
    Audit,
    Increment { counter: u8 },
    Workflow { first: u8, second: u8 },
}

/// Everything that was asked of functions, and what was answered.
pub(crate) struct Ledger {
    shared: Rc<Shared>,
    judge: Judge,
    roots: BTreeMap<InstanceId, Entry>,
    /// Accounts, and what each has at first.
    accounts: (u8, i64),
    counters: u8,
    gave_up: i64,
}

struct Entry {
    deed: Deed,
    reply: Option<(Vec<i64>, SeqNum)>,
}

impl Ledger {
    pub(crate) fn new(
        shared: Rc<Shared>,
        judge: Judge,
        accounts: (u8, i64),
        counters: u8,
        gave_up: i64,
    ) -> Self {
        Self { shared, judge, roots: BTreeMap::new(), accounts, counters, gave_up }
    }

    /// Roots that have a reply.
    pub(crate) fn replied(&self) -> u64 {
        self.roots.values().filter(|entry| entry.reply.is_some()).count() as u64
    }

    /// Roots without one.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = InstanceId> + '_ {
        self.roots.iter().filter(|(_, entry)| entry.reply.is_none()).map(|(id, _)| *id)
    }

    /// A client asks for a root.
    pub(crate) fn asked(&mut self, root: InstanceId, deed: Deed) {
        self.roots.insert(root, Entry { deed, reply: None });
    }

    /// Somebody is told how a root has ended.
    pub(crate) fn told(&mut self, root: InstanceId, reply: &[i64], cursor: SeqNum) {
        let Some(entry) = self.roots.get_mut(&root) else { return };
        match &entry.reply {
            Some((first, at)) if (first.as_slice(), *at) != (reply, cursor) => {
                let what = format!("{root} is told {reply:?} at {cursor}, after {first:?} at {at}");
                self.object(ONE_REPLY, what);
            }
            Some(_) => {}
            None => {
                entry.reply = Some((reply.to_vec(), cursor));
                let deed = entry.deed;
                self.judge_alone(root, deed, reply);
            }
        }
    }

    /// What can be said of a reply by itself.
    fn judge_alone(&self, root: InstanceId, deed: Deed, reply: &[i64]) {
        match (deed, reply) {
            (_, [gave_up]) if *gave_up == self.gave_up => {}
            (Deed::Audit, balances) => {
                let total: i64 = balances.iter().sum();
                let expected = i64::from(self.accounts.0) * self.accounts.1;
                if total != expected {
                    self.object(MONEY, format!("{root} adds up {balances:?} to {total}"));
                }
            }
            (Deed::Workflow { .. }, [_, first, second, _, last]) => {
                if (*first, *second, *last) != (1, 2, 2) {
                    self.object(OWN, format!("{root} wrote 1, then 2, and is told {reply:?}"));
                }
            }
            (Deed::Transfer { .. }, [_, _]) | (Deed::Increment { .. }, [_]) => {}
            _ => self.object(ONE_REPLY, format!("{root} is told {reply:?}, which makes no sense")),
        }
    }

    /// All has ended, and this is what is left: counters, then accounts.
    pub(crate) fn closed(&self, left: &[i64]) {
        let mut counted = self.counted();
        let mut expected = Vec::new();
        for counter in 0..self.counters {
            let mut found = counted.remove(&counter).unwrap_or_default();
            found.sort_unstable();
            if !found.iter().copied().eq(1..=found.len() as i64) {
                self.object(COUNT, format!("increments of counter {counter} found {found:?}"));
            }
            expected.push(found.len() as i64);
        }
        expected.extend(self.replay());
        if left != expected {
            self.object(FINAL, format!("{left:?} is left, and not {expected:?}"));
        }
    }

    /// What increments have found, by counter.
    fn counted(&self) -> BTreeMap<u8, Vec<i64>> {
        let mut counted: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
        for Entry { deed, reply } in self.roots.values() {
            let Some((reply, _)) = reply else { continue };
            match (deed, reply.as_slice()) {
                (Deed::Increment { counter }, [found]) => {
                    counted.entry(*counter).or_default().push(*found);
                }
                (Deed::Workflow { first, second }, [one, _, _, other, _]) => {
                    counted.entry(*first).or_default().push(*one);
                    counted.entry(*second).or_default().push(*other);
                }
                _ => {}
            }
        }
        for found in counted.values_mut() {
            found.retain(|found| *found != self.gave_up);
        }
        counted
    }

    /// Makes all transfers again, in the order of their records; what is on the accounts then.
    fn replay(&self) -> Vec<i64> {
        let mut transfers: Vec<_> = self
            .roots
            .iter()
            .filter_map(|(root, entry)| match (entry.deed, &entry.reply) {
                (Deed::Transfer { from, to, amount }, Some((reply, at))) => {
                    let [source, target] = reply.first_chunk::<2>().copied()?;
                    Some((*at, *root, (from, to, amount), (source, target)))
                }
                _ => None,
            })
            .collect();
        transfers.sort_unstable();
        let (count, first) = self.accounts;
        let mut accounts = vec![first; usize::from(count)];
        for (at, root, (from, to, amount), told) in transfers {
            accounts[usize::from(from)] -= amount;
            accounts[usize::from(to)] += amount;
            let found = (accounts[usize::from(from)], accounts[usize::from(to)]);
            if found != told {
                let what = format!("{root} moved {amount} at {at}: told {told:?}, not {found:?}");
                self.object(SERIAL, what);
            }
        }
        accounts
    }

    fn object(&self, rule: &'static str, what: String) {
        self.judge.object(self.shared.now(), rule, what);
    }
}
