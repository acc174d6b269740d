//! `halfmoon bench failover --role storage --replace`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use halfmoon_bench::failover::{self, Findings, ReplaceOptions, Replaced, TABLE, verify};
use halfmoon_bench::log::LogBench;
use halfmoon_storage::{Inspection, StateItem};
use halfmoon_wire::NodeId;
use serde_json::json;

use super::failover::rate;
use super::{BENCH_NODE, READER_NODE, with_directory};
use crate::cli::{BenchFailover, Durability, PassedOn, SEGMENT_MIB, log_table_mib_usual};
use crate::commands::show::print;
use crate::commands::verify as disks;
use crate::layout::{EnginePorts, Layout};
use crate::supervisor::{self, Supervisor};

/// All that was found.
struct Measured {
    replaced: Replaced,
    findings: Findings,
    report: halfmoon_verify::Report,
    /// Values on the new member's disk.
    values_on_new: u64,
}

impl Measured {
    /// Whether nothing is lost, doubled or damaged, and the new member has everything.
    fn is_well(&self) -> bool {
        let Self { replaced, findings, report, values_on_new } = self;
        let damaged = findings.lost + findings.doubled + replaced.values_damaged + report.flaws;
        damaged == 0 && *values_on_new == replaced.values
    }
}

pub(super) fn run(options: &BenchFailover, passed_on: PassedOn) -> anyhow::Result<ExitCode> {
    let measured = with_directory(options.data_dir.as_ref(), |directory| {
        measure(options, passed_on, directory)
    })?;
    if options.json {
        print(&as_json(options, &measured).to_string());
    } else {
        show(options, &measured);
    }
    Ok(if measured.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(
    options: &BenchFailover,
    passed_on: PassedOn,
    directory: &Path,
) -> anyhow::Result<Measured> {
    let say = |text: String| {
        if !options.json {
            print(&text);
        }
    };
    let layout = Layout::new(Some(directory.join("state")))?;
    let founded = layout.found(Durability::Flush.into(), None)?;
    let supervised = supervisor::Options {
        ports: EnginePorts::new(0, 0)?,
        standbys: options.standbys,
        spares: 1,
        replace_after_s: 0,
        segment_mib: SEGMENT_MIB,
        log_table_mib: log_table_mib_usual(),
        passed_on,
        relays: false,
        log_files: true,
    };
    let supervisor = Supervisor::start(layout.clone(), founded, supervised)?;
    let logs = || format!("the nodes' logs are in {}/*.log", layout.root().display());
    let mut bench = LogBench::join(layout.open()?, BENCH_NODE).with_context(logs)?;
    let wanted = ReplaceOptions {
        rate_per_s: rate(options),
        size_bytes: options.size as usize,
        state_mib: options.state_mib,
    };
    let mut started = Vec::new();
    let cluster = supervisor.cluster();
    let replaced =
        failover::replace(&mut bench, &cluster, &wanted, &mut started, &say).with_context(logs)?;
    say("reading the log back …".to_owned());
    let findings = verify(layout.open()?, READER_NODE, &started).with_context(logs)?;
    drop(bench);
    supervisor.stop();
    let (dirs, info) = disks::of(&layout)?;
    let looks = |doing: &str| say(format!("{doing} …"));
    let report = halfmoon_verify::verify_without_steps(&dirs, Some(&info), looks)?;
    let values_on_new = values_on(&layout.node("storage", NodeId(replaced.new)))?;
    Ok(Measured { replaced, findings, report, values_on_new })
}

/// Values of the benchmark on a disk.
fn values_on(directory: &Path) -> anyhow::Result<u64> {
    let mut count = 0;
    Inspection::open(directory)?.state(|item| {
        if let StateItem::Version { object, .. } = item {
            count += u64::from(object.table == TABLE);
        }
    })?;
    Ok(count)
}

fn show(options: &BenchFailover, measured: &Measured) {
    let Measured { replaced, findings, report, values_on_new } = measured;
    print("phase    lasted s   appends   p50 ms   p99 ms   max ms   gap ms");
    for phase in &replaced.phases {
        print(&format!(
            "{:<8} {:>8.1} {:>9} {:>8.2} {:>8.2} {:>8.1} {:>8.1}",
            phase.name,
            phase.lasted_s,
            phase.appends,
            phase.p50_ms,
            phase.p99_ms,
            phase.latency_max_ms,
            phase.gap_ms
        ));
    }
    print(&format!(
        "storage node {} lost its disk under {} appends/s, and {} took its place; {} MiB of state \
         copied",
        replaced.old,
        rate(options),
        replaced.new,
        options.state_mib
    ));
    print(&format!(
        "state: {} values, {} damaged, {values_on_new} on the new member's disk; durability: flush; all \
         roles on this machine",
        replaced.values, replaced.values_damaged
    ));
    report.told.iter().for_each(|flaw| print(&format!("FLAW: {flaw}")));
    print(&format!(
        "disks of {} storage nodes: {} records, on a quorum up to {}, flaws {}",
        report.replicas.len(),
        report.records,
        report.on_quorum,
        report.flaws
    ));
    print(&format!(
        "{} acknowledged, {} without an answer ({} of them in the log)",
        findings.acknowledged, findings.unknown, findings.unknown_present
    ));
    print(&format!("lost {}, doubled {}", findings.lost, findings.doubled));
}

fn as_json(options: &BenchFailover, measured: &Measured) -> serde_json::Value {
    let Measured { replaced, findings, report, values_on_new } = measured;
    let phases: serde_json::Map<String, serde_json::Value> =
        replaced.phases.iter().map(|phase| (phase.name.to_owned(), json!(phase))).collect();
    json!({
        "what": "storage node lost its disk, and was replaced",
        "rate_per_s": rate(options),
        "size_bytes": options.size,
        "standbys": options.standbys,
        "state_bytes": u64::from(options.state_mib) << 20,
        "old": replaced.old,
        "new": replaced.new,
        "phases": phases,
        "values": replaced.values,
        "values_damaged": replaced.values_damaged,
        "values_on_new_member": values_on_new,
        "acknowledged": findings.acknowledged,
        "unknown": findings.unknown,
        "unknown_present": findings.unknown_present,
        "lost": findings.lost,
        "doubled": findings.doubled,
        "flaws_on_disks": report.flaws,
        "durability": "flush",
        "transport": "tcp",
    })
}
