//! `halfmoon verify`: whether what is on the disks is sound.

use std::path::PathBuf;
use std::process::ExitCode;

use halfmoon_meta::{ClusterInfo, MemberSet, disks};
use halfmoon_verify::Report;
use halfmoon_wire::NodeId;

use crate::cli::Verify;
use crate::commands::show::print;
use crate::layout::Layout;

pub(crate) fn run(options: &Verify) -> anyhow::Result<ExitCode> {
    let (dirs, info) = what(options)?;
    let report = halfmoon_verify::verify(&dirs, info.as_ref(), |doing| {
        if !options.json {
            print(&format!("{doing} …"));
        }
    })?;
    if options.json {
        print(&serde_json::to_string(&report)?);
    } else {
        show(&report);
    }
    Ok(if report.flaws == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the storage nodes of the cluster in a data directory have on their disks.
pub(crate) fn cluster(layout: &Layout, progress: impl FnMut(&str)) -> anyhow::Result<Report> {
    let (dirs, info) = of(layout)?;
    Ok(halfmoon_verify::verify(&dirs, Some(&info), progress)?)
}

/// The directories to look at, and what the metadata store says of their cluster.
fn what(options: &Verify) -> anyhow::Result<(Vec<PathBuf>, Option<ClusterInfo>)> {
    if !options.nodes.is_empty() {
        return Ok((options.nodes.clone(), None));
    }
    let (dirs, info) = of(&Layout::new(options.data_dir.clone())?)?;
    Ok((dirs, Some(info)))
}

/// The directories of those who hold a cluster's log, and what the metadata store says of it.
pub(crate) fn of(layout: &Layout) -> anyhow::Result<(Vec<PathBuf>, ClusterInfo)> {
    let meta = layout.open()?;
    let (info, used) = (halfmoon_meta::cluster::read(&*meta)?, disks::list(&*meta)?);
    // Whoever has a part in the log and has begun to hold some. Who was replaced has none.
    let mut nodes: Vec<NodeId> = info.recovery_sets().flat_map(MemberSet::nodes).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.retain(|node| {
        used.contains(node) || layout.node("storage", *node).join("identity").exists()
    });
    Ok((nodes.into_iter().map(|node| layout.node("storage", node)).collect(), info))
}

fn show(report: &Report) {
    print("node  epoch promised  segments  log ends at  agrees to  stale");
    for replica in &report.replicas {
        print(&format!(
            "{:>4}  {:>14}  {:>8}  {:>11}  {:>9}  {:>5}",
            replica.node,
            replica.promised_epoch,
            replica.segments,
            replica.end,
            replica.agrees_to,
            replica.stale_records
        ));
    }
    print(&format!(
        "log: {} records, {} epochs, {} tags, {} evictions; on a quorum up to {}",
        report.records, report.epochs, report.tags, report.evictions, report.on_quorum
    ));
    print(&format!(
        "steps: {} roots ({} unfinished), {} instances, {} steps",
        report.roots, report.unfinished_roots, report.instances, report.steps
    ));
    if let Some(state) = &report.state {
        print(&format!(
            "state on {} nodes: {} cells ({} not on a quorum), {} versions ({} named by records), \
             {} bases, {} binaries",
            state.nodes,
            state.cells,
            state.cells_behind,
            state.versions,
            state.versions_named,
            state.bases,
            state.binaries
        ));
    }
    for note in &report.notes {
        print(&format!("note: {note}"));
    }
    for flaw in &report.told {
        print(&format!("FLAW: {flaw}"));
    }
    let untold = report.flaws - report.told.len() as u64;
    if untold > 0 {
        print(&format!("… and {untold} more"));
    }
    print(&format!("flaws {}", report.flaws));
}
