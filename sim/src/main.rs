//! Runs seeds of the simulated world, and says what came of them.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

#[cfg(feature = "mutants")]
mod mutants;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use halfmoon_sim::plan::Scenario;
use halfmoon_sim::{Report, run, run_about};

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(2);

#[derive(Parser)]
#[command(name = "halfmoon-sim", about = "Runs a whole cluster from one seed, again and again")]
struct Arguments {
    /// How many seeds; one when only --seed is given, else 200
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// Only runs that are about this
    #[arg(long)]
    scenario: Option<Scenario>,
    /// Runs at once
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// Plants every known bug in turn; each has to be found
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// Plants this bug
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<String>,
    /// What the nodes of the first seed say, with the virtual time, on the standard error
    #[arg(long)]
    verbose: bool,
    /// One JSON object on the standard output, in place of text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or(1);
    let seeds = arguments.seeds.unwrap_or(if arguments.seed.is_some() { 1 } else { 200 });
    #[cfg(feature = "mutants")]
    if arguments.mutants {
        return mutants::all();
    }
    #[cfg(feature = "mutants")]
    if let Some(name) = &arguments.mutant {
        return mutants::one(name, arguments.seed.unwrap_or(1), arguments.seeds);
    }
    if arguments.verbose {
        listen();
    }
    let begun = Instant::now();
    let report = all(first, seeds, &arguments);
    let wall = begun.elapsed();
    if arguments.json {
        println!("{}", report.to_json(wall));
    } else {
        println!("{}", report.to_text(wall));
        println!("seeds {}, violations {}", report.seeds, report.violations.len());
    }
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What has to be said again to replay a run that was about something.
fn about(scenario: Option<Scenario>) -> String {
    scenario.map_or_else(String::new, |of| format!(" --scenario {of:?}").to_lowercase())
}

/// Shows what nodes say, as it happens in virtual time.
fn listen() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("debug"))
        .with_timer(VirtualTime)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(
        &self,
        out: &mut tracing_subscriber::fmt::format::Writer<'_>,
    ) -> std::fmt::Result {
        write!(out, "{:>9.3} ms", halfmoon_sim::now_ns() as f64 / 1e6)
    }
}

/// Runs all seeds; says how far it is while it does.
fn all(first: u64, seeds: u64, arguments: &Arguments) -> Report {
    let (jobs, scenario) = (arguments.jobs.max(1), arguments.scenario);
    let (next, done) = (AtomicU64::new(first), AtomicBool::new(false));
    let report = Mutex::new(Report::default());
    let lock = || report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first.saturating_add(seeds) {
                            return;
                        }
                        let outcome = match scenario {
                            Some(scenario) => run_about(scenario, seed),
                            None => run(seed),
                        };
                        if let Some(violation) = &outcome.violation {
                            eprintln!("seed {seed}: {violation}");
                            eprintln!("replay: cargo xtask sim --seed {seed}{}", about(scenario));
                        }
                        lock().add(seed, &outcome);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut said = Instant::now();
            while !done.load(Ordering::Relaxed) {
                thread::park_timeout(Duration::from_millis(50));
                if said.elapsed() >= PROGRESS {
                    said = Instant::now();
                    let report = lock();
                    let found = report.violations.len();
                    eprintln!("{} of {seeds} seeds, {found} violations", report.seeds);
                }
            }
        });
        for worker in workers {
            if worker.join().is_err() {
                let seed = next.load(Ordering::Relaxed).saturating_sub(jobs);
                lock().panicked(seed, next.load(Ordering::Relaxed));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
