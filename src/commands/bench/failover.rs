//! `halfmoon bench failover`.

mod engine;
mod storage;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use halfmoon_bench::failover::{
    self, Death, Findings, Options, Run, Victim, median_and_worst, verify,
};
use halfmoon_bench::log::LogBench;
use serde_json::json;

use super::{BENCH_NODE, READER_NODE, with_directory};
use crate::cli::{
    BenchFailover, DeathName, Durability, PassedOn, SEGMENT_MIB, VictimName, log_table_mib_usual,
};
use crate::commands::show::print;
use crate::layout::{EnginePorts, Layout};
use crate::supervisor::{self, Supervisor};

/// Appends started per second unless said otherwise.
const RATE_PER_S: u32 = 10_000;

pub(super) fn run(options: &BenchFailover, passed_on: PassedOn) -> anyhow::Result<ExitCode> {
    if options.replace {
        anyhow::ensure!(options.role == VictimName::Storage, "--replace goes with --role storage");
        return super::replace::run(options, passed_on);
    }
    if options.role == VictimName::Engine {
        return engine::run(options, passed_on);
    }
    let measured = with_directory(options.data_dir.as_ref(), |directory| {
        measure(options, passed_on, directory)
    });
    let (runs, findings) = measured?;
    if options.json {
        print(&as_json(options, &runs, &findings).to_string());
    } else {
        show(options, &runs, &findings);
    }
    let is_well = findings.lost == 0 && findings.doubled == 0;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where to look when something went wrong.
fn logs(layout: &Layout) -> String {
    format!("the nodes' logs are in {}/*.log", layout.root().display())
}

/// Starts a cluster for a benchmark.
fn supervise(
    layout: &Layout,
    options: &BenchFailover,
    ports: EnginePorts,
    passed_on: PassedOn,
) -> anyhow::Result<Supervisor> {
    let founded = layout.found(Durability::Flush.into(), None)?;
    let supervised = supervisor::Options {
        ports,
        standbys: options.standbys,
        spares: 0,
        replace_after_s: 0,
        segment_mib: SEGMENT_MIB,
        log_table_mib: log_table_mib_usual(),
        passed_on,
        relays: false,
        log_files: true,
    };
    Supervisor::start(layout.clone(), founded, supervised)
}

fn measure(
    options: &BenchFailover,
    passed_on: PassedOn,
    directory: &Path,
) -> anyhow::Result<(Vec<Run>, Findings)> {
    let say = |text: &str| {
        if !options.json {
            print(text);
        }
    };
    let layout = Layout::new(Some(directory.join("state")))?;
    let supervisor = supervise(&layout, options, EnginePorts::new(0, 0)?, passed_on)?;
    let logs = || logs(&layout);
    let mut bench = LogBench::join(layout.open()?, BENCH_NODE).with_context(logs)?;
    let cluster = supervisor.cluster();
    let wanted = wanted(options);
    let (mut runs, mut started) = (Vec::new(), Vec::new());
    say(if wanted.victim == Victim::Storage { storage::HEADER } else { HEADER });
    for number in 0..options.runs {
        let run = failover::run(&mut bench, &cluster, &wanted, number, &mut started)
            .with_context(|| format!("run {}; {}", number + 1, logs()))?;
        say(&line(number + 1, &run));
        runs.push(run);
    }
    say("reading the log back …");
    let findings = verify(layout.open()?, READER_NODE, &started).with_context(logs)?;
    drop(bench);
    supervisor.stop();
    Ok((runs, findings))
}

/// Appends started per second.
pub(super) fn rate(options: &BenchFailover) -> u32 {
    options.rate.unwrap_or(RATE_PER_S)
}

fn wanted(options: &BenchFailover) -> Options {
    Options {
        runs: options.runs,
        rate_per_s: rate(options),
        size_bytes: options.size as usize,
        victim: match options.role {
            VictimName::Sequencer | VictimName::Engine => Victim::Sequencer,
            VictimName::Storage => Victim::Storage,
        },
        death: match options.how {
            DeathName::Kill => Death::Kill,
            DeathName::Stop => Death::Stop,
        },
        standbys: options.standbys,
    }
}

const HEADER: &str = "  run   gap ms  end ms  before ms  latency max ms  p99 before ms  p99 after ms  \
                      acknowledged  unknown";

fn line(number: u32, run: &Run) -> String {
    if let Some(phases) = &run.phases {
        return storage::line(number, run, phases);
    }
    format!(
        "{number:>5} {:>8.1} {:>7.1} {:>10.1} {:>15.1} {:>14.2} {:>13.2} {:>13} {:>8}",
        run.gap_ms,
        run.gap_end_ms,
        run.gap_before_ms,
        run.latency_max_ms,
        run.p99_before_ms,
        run.p99_after_ms,
        run.acknowledged,
        run.unknown
    )
}

fn show(options: &BenchFailover, runs: &[Run], findings: &Findings) {
    let (median, worst) = median_and_worst(runs.iter().map(|run| run.gap_ms));
    let (latency, latency_worst) = median_and_worst(runs.iter().map(|run| run.latency_max_ms));
    print(&format!(
        "{} {} times under {} appends/s: gap median {median:.1} ms, worst {worst:.1} ms",
        what(options),
        runs.len(),
        rate(options)
    ));
    if options.role == VictimName::Storage {
        storage::show(runs);
    }
    print(&format!(
        "longest latency from the scheduled start: median {latency:.1} ms, worst {latency_worst:.1} ms"
    ));
    print(&format!(
        "{} acknowledged, {} without an answer ({} of them in the log); durability: flush; all roles \
         on this machine",
        findings.acknowledged, findings.unknown, findings.unknown_present
    ));
    print(&format!("lost {}, doubled {}", findings.lost, findings.doubled));
}

const fn what(options: &BenchFailover) -> &'static str {
    match (options.role, options.how) {
        (VictimName::Engine, _) => "engine",
        (VictimName::Sequencer, DeathName::Kill) => "sequencer killed",
        (VictimName::Sequencer, DeathName::Stop) => "sequencer stopped, and later resumed,",
        (VictimName::Storage, DeathName::Kill) => "storage node killed",
        (VictimName::Storage, DeathName::Stop) => "storage node stopped, and later resumed,",
    }
}

fn as_json(options: &BenchFailover, runs: &[Run], findings: &Findings) -> serde_json::Value {
    let (gap_median_ms, gap_worst_ms) = median_and_worst(runs.iter().map(|run| run.gap_ms));
    let (before_median_ms, before_worst_ms) =
        median_and_worst(runs.iter().map(|run| run.gap_before_ms));
    let (latency_max_median_ms, latency_max_worst_ms) =
        median_and_worst(runs.iter().map(|run| run.latency_max_ms));
    let (p99_after_median_ms, p99_after_worst_ms) =
        median_and_worst(runs.iter().map(|run| run.p99_after_ms));
    let (p99_before_median_ms, _) = median_and_worst(runs.iter().map(|run| run.p99_before_ms));
    let mut all = json!({
        "what": what(options),
        "rate_per_s": rate(options),
        "size_bytes": options.size,
        "standbys": options.standbys,
        "gap_median_ms": gap_median_ms,
        "gap_worst_ms": gap_worst_ms,
        "gap_before_median_ms": before_median_ms,
        "gap_before_worst_ms": before_worst_ms,
        "latency_max_median_ms": latency_max_median_ms,
        "latency_max_worst_ms": latency_max_worst_ms,
        "p99_before_median_ms": p99_before_median_ms,
        "p99_after_median_ms": p99_after_median_ms,
        "p99_after_worst_ms": p99_after_worst_ms,
        "acknowledged": findings.acknowledged,
        "unknown": findings.unknown,
        "unknown_present": findings.unknown_present,
        "lost": findings.lost,
        "doubled": findings.doubled,
        "runs": runs,
        "durability": "flush",
        "transport": "tcp",
    });
    if options.role == VictimName::Storage {
        all["storage"] = storage::as_json(runs);
    }
    all
}
