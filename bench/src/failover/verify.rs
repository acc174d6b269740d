//! Reads the whole log back, and compares it with what was acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use halfmoon_meta::MetaStore;
use halfmoon_wire::{NodeId, RecordKind, RecordRef, Role, SeqNum};
use serde::Serialize;

use super::Started;
use crate::log::{LogBench, TAG};

/// How long reading the log may take.
const READ_WITHIN: Duration = Duration::from_secs(300);

/// What the log shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Findings {
    /// Appends that were acknowledged.
    pub acknowledged: u64,
    /// Of these, ones that the log does not have at the place that was told.
    pub lost: u64,
    /// Appends, acknowledged or not, that the log has more than once.
    pub doubled: u64,
    /// Appends without an answer.
    pub unknown: u64,
    /// Of these, ones that are in the log.
    pub unknown_present: u64,
    /// Records of the log, of whatever kind.
    pub records: u64,
}

/// What was found of one append: how often, and where first.
type Found = BTreeMap<u64, (u64, SeqNum)>;

/// Reads the log as `node`, which only reads, and compares.
pub fn verify(
    meta: Arc<dyn MetaStore>,
    node: NodeId,
    started: &[Started],
) -> anyhow::Result<Findings> {
    let mut reader = LogBench::dial(meta, node, Role::Observer)?;
    let found: Rc<RefCell<Found>> = Rc::default();
    let records = Rc::new(Cell::new(0));
    let (noted, counted) = (Rc::clone(&found), Rc::clone(&records));
    reader.driver.log().on_apply(move |record| {
        counted.set(counted.get() + 1);
        note(&mut noted.borrow_mut(), &record);
    });
    let log = reader.driver.log();
    reader.run(READ_WITHIN, async move {
        let tail = log.tail().await?;
        log.wait_applied(tail).await
    })??;
    let found = found.borrow();
    let mut findings = compare(started, &found);
    findings.records = records.get();
    Ok(findings)
}

fn note(found: &mut Found, record: &RecordRef<'_>) {
    let is_ours = record.kind() == RecordKind::Data && record.tags().any(|at| at.tag() == TAG);
    // A shorter one than any of a run was the probe of a client that joined.
    let number = record.payload().first_chunk::<8>().filter(|_| is_ours);
    let Some(number) = number.filter(|_| record.payload().get(8) == Some(&super::FILLER)) else {
        return;
    };
    let (count, _) = found.entry(u64::from_le_bytes(*number)).or_insert((0, record.seq()));
    *count += 1;
}

fn compare(started: &[Started], found: &Found) -> Findings {
    let mut findings = Findings::default();
    for one in started {
        let (count, seq) = found.get(&one.number).copied().unwrap_or((0, SeqNum::ZERO));
        findings.doubled += u64::from(count > 1);
        match one.place() {
            Some(told) => {
                findings.acknowledged += 1;
                findings.lost += u64::from(count == 0 || seq != told);
            }
            None => {
                findings.unknown += 1;
                findings.unknown_present += u64::from(count > 0);
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(number: u64, seq: Option<u64>) -> Started {
        Started { number, due_ns: 0, answer: seq.map(|seq| (0, SeqNum(seq))) }
    }

    #[test]
    fn what_is_missing_elsewhere_or_twice_is_told_apart() {
        let all = [
            started(0, Some(5)),
            started(1, Some(6)),
            started(2, Some(7)),
            started(3, Some(8)),
            started(4, None),
            started(5, None),
            started(6, None),
        ];
        let found = [(0, (1, 5)), (1, (1, 9)), (3, (2, 8)), (5, (1, 10)), (6, (2, 11))];
        let found = found.map(|(number, (count, seq))| (number, (count, SeqNum(seq)))).into();
        let expected = Findings {
            acknowledged: 4,
            lost: 2,
            doubled: 2,
            unknown: 3,
            unknown_present: 2,
            records: 0,
        };
        assert_eq!(compare(&all, &found), expected);
    }
}
