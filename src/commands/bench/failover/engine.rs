//! `halfmoon bench failover --role engine`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use halfmoon_bench::cluster::Gateways;
use halfmoon_bench::failover::{
    self, Death, EngineOptions, EngineOutcome, EngineRun, median_and_worst,
};
use serde_json::json;

use crate::cli::{BenchFailover, DeathName, PassedOn};
use crate::commands::bench::with_directory;
use crate::commands::show::print;
use crate::layout::{EnginePorts, Layout};
use crate::supervisor::Supervisor;

/// Reservations per second unless said otherwise.
const RATE_PER_S: u32 = 150;

pub(super) fn run(options: &BenchFailover, passed_on: PassedOn) -> anyhow::Result<ExitCode> {
    let outcome = with_directory(options.data_dir.as_ref(), |directory| {
        measure(options, passed_on, directory)
    })?;
    if options.json {
        print(&as_json(options, &outcome).to_string());
    } else {
        show(options, &outcome);
    }
    let is_well = outcome.findings.clean();
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rate(options: &BenchFailover) -> u32 {
    options.rate.unwrap_or(RATE_PER_S)
}

fn measure(
    options: &BenchFailover,
    passed_on: PassedOn,
    directory: &Path,
) -> anyhow::Result<EngineOutcome> {
    let layout = Layout::new(Some(directory.join("state")))?;
    let supervisor = super::supervise(&layout, options, EnginePorts::new(0, 2)?, passed_on)?;
    let binary = std::env::current_exe().context("cannot tell where this program lies")?;
    let wanted = EngineOptions {
        runs: options.runs,
        rate_per_s: rate(options),
        death: match options.how {
            DeathName::Kill => Death::Kill,
            DeathName::Stop => Death::Stop,
        },
    };
    let say = |number: u32, run: &EngineRun| {
        if !options.json {
            print(&format!(
                "{number:>5} {:>6} {:>11.1} {:>12.1}",
                run.roots, run.evicted_ms, run.takeover_ms
            ));
        }
    };
    if !options.json {
        print("  run  roots  evicted ms  takeover ms");
    }
    let outcome =
        drive(&supervisor, &binary, &wanted, &say).with_context(|| super::logs(&layout))?;
    supervisor.stop();
    Ok(outcome)
}

fn drive(
    supervisor: &Supervisor,
    binary: &Path,
    wanted: &EngineOptions,
    say: &dyn Fn(u32, &EngineRun),
) -> anyhow::Result<EngineOutcome> {
    let gateways = Arc::new(Gateways::new(supervisor.cluster()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            outcome = failover::run_engines(gateways, binary, wanted, say) => outcome,
            () = crate::stop::wait_for_signal() => Err(anyhow::anyhow!("interrupted")),
        }
    })
}

const fn what(options: &BenchFailover) -> &'static str {
    match options.how {
        DeathName::Kill => "engine killed",
        DeathName::Stop => "engine stopped, and later resumed,",
    }
}

fn show(options: &BenchFailover, outcome: &EngineOutcome) {
    let EngineOutcome { runs, acknowledged, unknown, findings } = outcome;
    let (median, worst) = median_and_worst(runs.iter().map(|run| run.takeover_ms));
    let (evicted, evicted_worst) = median_and_worst(runs.iter().map(|run| run.evicted_ms));
    let roots: u64 = runs.iter().map(|run| run.roots).sum();
    print(&format!(
        "{} {} times under {} reservations/s, with {roots} roots unfinished there in all",
        what(options),
        runs.len(),
        rate(options)
    ));
    print(&format!(
        "until the last of its roots had ended: median {median:.1} ms, worst {worst:.1} ms"
    ));
    print(&format!(
        "of that until the engine was out of the log: median {evicted:.1} ms, worst \
         {evicted_worst:.1} ms"
    ));
    for example in &findings.examples {
        print(&format!("  damaged: {example}"));
    }
    print(&format!(
        "{acknowledged} reservations acknowledged, {unknown} without an answer; durability: flush; \
         all roles on this machine"
    ));
    print(&format!("lost {}, doubled {}", findings.lost, findings.doubled));
}

fn as_json(options: &BenchFailover, outcome: &EngineOutcome) -> serde_json::Value {
    let EngineOutcome { runs, acknowledged, unknown, findings } = outcome;
    let (takeover_median_ms, takeover_worst_ms) =
        median_and_worst(runs.iter().map(|run| run.takeover_ms));
    let (evicted_median_ms, evicted_worst_ms) =
        median_and_worst(runs.iter().map(|run| run.evicted_ms));
    json!({
        "what": what(options),
        "rate_per_s": rate(options),
        "standbys": options.standbys,
        "takeover_median_ms": takeover_median_ms,
        "takeover_worst_ms": takeover_worst_ms,
        "evicted_median_ms": evicted_median_ms,
        "evicted_worst_ms": evicted_worst_ms,
        "roots_taken_over": runs.iter().map(|run| run.roots).sum::<u64>(),
        "acknowledged": acknowledged,
        "unknown": unknown,
        "lost": findings.lost,
        "doubled": findings.doubled,
        "contradicted": findings.contradicted,
        "runs": runs,
        "durability": "flush",
        "transport": "tcp",
    })
}
