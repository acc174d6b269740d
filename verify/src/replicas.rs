//! Whether the replicas' logs are one log.
//!
//! The reference is the log that a recovery would choose: its last record has the highest epoch, and
//! then it is the longest. Another replica may end earlier, and it may end with records of an older
//! epoch that the reference lacks: it was away when an epoch began, and cuts them when it hears of
//! it. But none of those may be on a quorum, and no two records of one epoch may claim one position.

use halfmoon_meta::ClusterInfo;
use halfmoon_storage::Inspection;
use serde::Serialize;

use crate::{Report, VerifyError};

/// One storage node's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Replica {
    /// The node.
    pub node: u32,
    /// It was running while its log was read.
    pub running: bool,
    /// The highest epoch that it has promised to obey.
    pub promised_epoch: u64,
    /// Files of its log.
    pub segments: u64,
    /// Last position of its log.
    pub end: u64,
    /// Up to here its log is the reference.
    pub agrees_to: u64,
    /// Records after that, of an older epoch: never acknowledged, and to be cut.
    pub stale_records: u64,
}

/// What a record is known by.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark {
    epoch: u64,
    hash: u64,
    opens: bool,
}

/// A replica's log, record by record.
struct Marks {
    first: u64,
    marks: Vec<Mark>,
}

impl Marks {
    fn read(node: &Inspection) -> Result<Self, VerifyError> {
        let mut read = Self { first: 1, marks: Vec::new() };
        node.records(|record| {
            if read.marks.is_empty() {
                read.first = record.seq().0;
            }
            let digest = blake3::hash(record.bytes());
            let hash = digest.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes);
            let opens = record.kind() == halfmoon_wire::RecordKind::Open;
            read.marks.push(Mark { epoch: record.epoch().0, hash, opens });
        })
        .map_err(VerifyError::Node)?;
        Ok(read)
    }

    fn at(&self, seq: u64) -> Option<Mark> {
        let index = seq.checked_sub(self.first)?;
        self.marks.get(usize::try_from(index).ok()?).copied()
    }

    fn end(&self) -> u64 {
        self.first + self.marks.len() as u64 - 1
    }

    fn rank(&self) -> (u64, u64) {
        (self.marks.last().map_or(0, |mark| mark.epoch), self.end())
    }
}

/// Compares; which of the nodes has the reference, if there is a log at all.
pub(crate) fn compare(
    nodes: &[Inspection],
    quorum: usize,
    info: Option<&ClusterInfo>,
    report: &mut Report,
) -> Result<Option<usize>, VerifyError> {
    let logs = nodes.iter().map(Marks::read).collect::<Result<Vec<_>, _>>()?;
    let best = (0..logs.len()).max_by_key(|index| logs[*index].rank());
    let Some(best) = best.filter(|best| !logs[*best].marks.is_empty()) else { return Ok(None) };
    let reference = &logs[best];
    for (node, log) in nodes.iter().zip(&logs) {
        let agrees_to = agreement(node.node().0, log, reference, report);
        report.replicas.push(Replica {
            node: node.node().0,
            running: node.is_running(),
            promised_epoch: node.promised().0,
            segments: node.segments() as u64,
            end: log.end(),
            agrees_to,
            stale_records: log.end().saturating_sub(agrees_to),
        });
    }
    let mut ends: Vec<u64> = report.replicas.iter().map(|replica| replica.agrees_to).collect();
    ends.sort_unstable_by(|a, b| b.cmp(a));
    report.end = reference.end();
    report.on_quorum = ends.get(quorum - 1).copied().unwrap_or(0);
    replaced(&logs, reference, quorum, report);
    if nodes.len() >= info.map_or(usize::MAX, |info| info.members.nodes().len()) {
        opened(reference, info, report);
    }
    notes(report);
    Ok(Some(best))
}

/// Up to where a log is the reference.
fn agreement(node: u32, log: &Marks, reference: &Marks, report: &mut Report) -> u64 {
    let first = log.first.max(reference.first);
    let mut agrees_to = first - 1;
    for seq in first..=log.end() {
        let (own, other) = (log.at(seq), reference.at(seq));
        if own == other {
            agrees_to = seq;
            continue;
        }
        if own.map(|own| own.epoch) == other.map(|other| other.epoch) {
            report.flaw(|| {
                format!("position {seq}: node {node} holds another record of the same epoch")
            });
        }
        break;
    }
    agrees_to
}

/// No record on a quorum may differ from the reference: it was acknowledged.
fn replaced(logs: &[Marks], reference: &Marks, quorum: usize, report: &mut Report) {
    let end = logs.iter().map(Marks::end).max().unwrap_or(0);
    for seq in reference.first..=end {
        let expected = reference.at(seq);
        for log in logs {
            let Some(own) = log.at(seq).filter(|own| Some(*own) != expected) else { continue };
            let holders = logs.iter().filter(|other| other.at(seq) == Some(own)).count();
            if holders >= quorum {
                return report.flaw(|| {
                    format!(
                        "position {seq}: a record of epoch {} is on a quorum, and the log of the \
                         latest epoch has another in its place",
                        own.epoch
                    )
                });
            }
        }
    }
}

/// What the metadata store says to be committed must be on a quorum.
fn opened(reference: &Marks, info: Option<&ClusterInfo>, report: &mut Report) {
    let committed = info.and_then(|info| info.members.committed_in()).map_or(0, |epoch| epoch.0);
    if committed == 0 {
        return;
    }
    let opening = reference.marks.iter().position(|mark| mark.opens && mark.epoch == committed);
    let held = opening.is_some_and(|index| reference.first + index as u64 <= report.on_quorum);
    // A record that was given up with the log's beginning is not missing.
    let given_up = reference.marks.first().is_some_and(|mark| mark.epoch > committed);
    if !held && !given_up {
        report.flaw(|| {
            format!("the opening record of epoch {committed} was committed, and is on no quorum")
        });
    }
}

fn notes(report: &mut Report) {
    let mut notes = Vec::new();
    for replica in &report.replicas {
        let Replica { node, agrees_to, stale_records, .. } = replica;
        if *stale_records > 0 {
            notes.push(format!(
                "node {node} holds {stale_records} records of an older epoch that were never \
                 acknowledged; it cuts them when it is back"
            ));
        } else if *agrees_to < report.end {
            notes.push(format!("node {node} lags {} records behind", report.end - agrees_to));
        }
    }
    report.notes.append(&mut notes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log whose records are of these epochs; `salt` makes it differ from another.
    fn log(epochs: &[u64], salt: u64) -> Marks {
        let mark = |(index, epoch): (usize, &u64)| Mark {
            epoch: *epoch,
            hash: index as u64 + 1000 * salt,
            opens: index == 0 || epochs[index - 1] != *epoch,
        };
        Marks { first: 1, marks: epochs.iter().enumerate().map(mark).collect() }
    }

    fn check(logs: &[Marks]) -> (Vec<u64>, Report) {
        let mut report = Report::default();
        let reference = logs.iter().max_by_key(|log| log.rank()).unwrap();
        let agree = |log| agreement(1, log, reference, &mut report);
        let agreed = logs.iter().map(agree).collect();
        replaced(logs, reference, 2, &mut report);
        (agreed, report)
    }

    #[test]
    fn a_replica_may_lag_and_may_hold_an_end_that_nobody_acknowledged() {
        let lags = log(&[1, 1], 0);
        let mut stale = log(&[1, 1, 1, 1], 0);
        stale.marks[3].hash = 99;
        let reference = log(&[1, 1, 1, 2, 2], 0);
        let (agreed, report) = check(&[lags, stale, reference]);
        assert_eq!(agreed, [2, 3, 5]);
        assert_eq!(report.flaws, 0, "{:?}", report.told);
    }

    #[test]
    fn one_position_of_one_epoch_has_one_record() {
        let (agreed, report) = check(&[log(&[1, 1], 0), log(&[1, 1, 1], 1)]);
        assert_eq!(agreed, [0, 3]);
        assert!(report.told[0].contains("another record of the same epoch"), "{:?}", report.told);
    }

    #[test]
    fn what_is_on_a_quorum_may_not_be_replaced_by_a_later_epoch() {
        // Two nodes hold position 3 of epoch 1; the log of epoch 2 has another in its place.
        let old = || log(&[1, 1, 1], 0);
        let (_, report) = check(&[old(), old(), log(&[1, 1, 2], 0)]);
        assert_eq!(report.flaws, 1);
        assert!(report.told[0].contains("is on a quorum"), "{:?}", report.told);
        let (_, report) = check(&[old(), log(&[1, 1, 2], 0), log(&[1, 1, 2], 0)]);
        assert_eq!(report.flaws, 0, "{:?}", report.told);
    }

    #[test]
    fn an_epoch_that_was_marked_committed_is_on_a_quorum() {
        let store_dir = tempfile::tempdir().unwrap();
        let store = halfmoon_meta::FileStore::open(store_dir.path()).unwrap();
        let members = [1, 2, 3].map(halfmoon_wire::NodeId);
        let durability = halfmoon_meta::Durability::Flush;
        halfmoon_meta::cluster::create(&store, 7, durability, &members).unwrap();
        let info = halfmoon_meta::cluster::mark_committed(&store, 1, halfmoon_wire::Epoch(2));
        let info = info.unwrap();
        let reference = log(&[1, 1, 2, 2], 0);
        for (on_quorum, flaws) in [(2, 1), (3, 0)] {
            let mut report = Report { on_quorum, ..Report::default() };
            opened(&reference, Some(&info), &mut report);
            assert_eq!(report.flaws, flaws, "on a quorum up to {on_quorum}");
        }
    }
}
