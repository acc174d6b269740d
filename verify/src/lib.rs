//! Checks what a cluster has on its disks, without the cluster and without trusting it.
//!
//! | what | where |
//! |---|---|
//! | every batch and record is whole, in its place, and follows the one before | `halfmoon-storage`'s scan |
//! | the replicas' logs are one log | `replicas.rs` |
//! | positions, epochs, tags, ids, evictions and safe points are in order | `halfmoon_order::LogAudit` |
//! | roots, runs, steps and ends are what the protocols write | `halfmoon_protocol::audit::StepAudit` |
//! | values that records name are there; replicas' values are the same | `state.rs` |
//!
//! A *flaw* is something that no crash and no loss of power explains. What one does explain (a node
//! that lags, a write that reached one replica and was never acknowledged) is counted, as a note.

#![forbid(unsafe_code)]

mod replicas;
mod state;

use std::path::{Path, PathBuf};

use halfmoon_meta::ClusterInfo;
use halfmoon_order::LogAudit;
use halfmoon_protocol::audit::{StepAudit, StoredValue};
use halfmoon_storage::{Inspection, NodeError};
use halfmoon_wire::{RecordKind, SeqNum};
use serde::Serialize;

pub use replicas::Replica;
pub use state::StateReport;

/// Flaws that are told one by one; the rest is only counted.
const FLAWS_TOLD_MAX: usize = 100;

/// Why a check came to no end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is nothing to check.
    #[error("no storage node's directory was found in {}", path.display())]
    NoNodes {
        /// Where.
        path: PathBuf,
    },
    /// Directories of two clusters.
    #[error("{} belongs to another cluster than the directories before it", path.display())]
    OtherCluster {
        /// Whose.
        path: PathBuf,
    },
    /// A directory cannot be read. A log that is damaged is a flaw, and no such error.
    #[error(transparent)]
    Node(NodeError),
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Report {
    /// Flaws; zero is what one wants to see.
    pub flaws: u64,
    /// The first of them, in words.
    pub told: Vec<String>,
    /// What a crash explains, and what was not checked, in words.
    pub notes: Vec<String>,
    /// The nodes.
    pub replicas: Vec<Replica>,
    /// The last position of the log.
    pub end: u64,
    /// The last position that a quorum holds.
    pub on_quorum: u64,
    /// Records checked.
    pub records: u64,
    /// Epochs.
    pub epochs: u64,
    /// Sub-streams.
    pub tags: u64,
    /// Engine incarnations that were taken out.
    pub evictions: u64,
    /// Roots with an Init.
    pub roots: u64,
    /// Of these, without an end.
    pub unfinished_roots: u64,
    /// Instances with steps.
    pub instances: u64,
    /// Steps.
    pub steps: u64,
    /// The state store; `None` when it was not looked at.
    pub state: Option<StateReport>,
}

impl Report {
    pub(crate) fn flaw(&mut self, what: impl FnOnce() -> String) {
        self.flaws += 1;
        if self.told.len() < FLAWS_TOLD_MAX {
            self.told.push(what());
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        self.notes.push(what);
    }
}

/// Checks the storage nodes in `dirs`, all of one cluster. `info` is what the metadata store says of
/// it, if that is at hand; `progress` is told what is looked at.
///
/// # Errors
/// When something cannot be looked at. Everything that is wrong is in the report.
pub fn verify(
    dirs: &[PathBuf],
    info: Option<&ClusterInfo>,
    progress: impl FnMut(&str),
) -> Result<Report, VerifyError> {
    check(dirs, info, true, progress)
}

/// As [`verify`], of a cluster on which no functions have run: the payloads of its records are no steps.
///
/// # Errors
/// As [`verify`].
pub fn verify_without_steps(
    dirs: &[PathBuf],
    info: Option<&ClusterInfo>,
    progress: impl FnMut(&str),
) -> Result<Report, VerifyError> {
    check(dirs, info, false, progress)
}

fn check(
    dirs: &[PathBuf],
    info: Option<&ClusterInfo>,
    has_steps: bool,
    mut progress: impl FnMut(&str),
) -> Result<Report, VerifyError> {
    let mut report = Report::default();
    let mut nodes: Vec<Inspection> = Vec::new();
    for dir in dirs {
        progress(&format!("reading the log in {}", dir.display()));
        match open(dir, &mut report)? {
            Some(node) if nodes.first().is_some_and(|first| first.cluster() != node.cluster()) => {
                return Err(VerifyError::OtherCluster { path: dir.clone() });
            }
            Some(node) if info.is_some_and(|info| !info.has_part(node.node())) => {
                // What it holds counts for nothing, and it may have ended long ago.
                report.note(format!("node {} is no member any more: not looked at", node.node()));
            }
            found => nodes.extend(found),
        }
    }
    if nodes.is_empty() && report.flaws == 0 {
        let path = dirs.first().cloned().unwrap_or_default();
        return Err(VerifyError::NoNodes { path });
    }
    let quorum = quorum(info, dirs.len(), &nodes, &mut report);
    progress("comparing the replicas' logs");
    let Some(reference) = replicas::compare(&nodes, quorum, info, &mut report)? else {
        return Ok(report);
    };
    progress("auditing the log");
    let stored = audit(&nodes[reference], has_steps, &mut report)?;
    progress("comparing the replicas' state");
    state::compare(&nodes, quorum, &stored, &mut report)?;
    Ok(report)
}

fn open(dir: &Path, report: &mut Report) -> Result<Option<Inspection>, VerifyError> {
    match Inspection::open(dir) {
        Ok(node) => {
            if node.is_running() {
                report.note(format!("node {} runs: its state was not looked at", node.node()));
            }
            if !node.has_state() {
                report.note(format!("node {} has not copied all of the state yet", node.node()));
            }
            Ok(Some(node))
        }
        Err(error @ (NodeError::Corrupt { .. } | NodeError::IdentityDamaged { .. })) => {
            report.flaw(|| error.to_string());
            Ok(None)
        }
        Err(error) => Err(VerifyError::Node(error)),
    }
}

/// How many nodes make a quorum of the members.
fn quorum(
    info: Option<&ClusterInfo>,
    dirs: usize,
    nodes: &[Inspection],
    report: &mut Report,
) -> usize {
    let Some(info) = info else { return dirs / 2 + 1 };
    for member in info.members.nodes() {
        if !nodes.iter().any(|node| node.node() == member) {
            report.note(format!("node {member} is a member, and was not looked at"));
        }
    }
    info.members.quorum()
}

/// Reads one log as its auditors see it; the values of the state store that it names.
fn audit(
    node: &Inspection,
    has_steps: bool,
    report: &mut Report,
) -> Result<Vec<StoredValue>, VerifyError> {
    let (mut log, mut steps, mut stored) = (LogAudit::default(), StepAudit::default(), Vec::new());
    let (mut whole, mut first) = (true, true);
    let on_quorum = report.on_quorum;
    node.records(|record| {
        let seq = record.seq();
        if std::mem::take(&mut first) {
            whole = seq == SeqNum(1);
        }
        log.record(record, |flaw| report.flaw(|| format!("record {seq}: {flaw}")));
        // Of a log without its beginning nobody can tell whether an Init is missing.
        if has_steps && whole && record.kind() == RecordKind::Data {
            steps.record(
                record,
                |flaw| report.flaw(|| format!("record {seq}: {flaw}")),
                |value| {
                    if seq.0 <= on_quorum {
                        stored.push(value);
                    }
                },
            );
        }
    })
    .map_err(VerifyError::Node)?;
    if !whole {
        report.note("the log's beginning was given up: steps were not checked".to_owned());
    }
    let (counts, of_steps) = (log.counts(), steps.counts());
    report.records = counts.records;
    report.epochs = counts.epochs;
    report.tags = counts.tags;
    report.evictions = counts.evictions;
    report.roots = of_steps.roots;
    report.unfinished_roots = of_steps.unfinished;
    report.instances = of_steps.instances;
    report.steps = of_steps.steps;
    Ok(stored)
}
