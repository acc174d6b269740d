//! `cargo xtask sim`: a whole cluster from one seed, again and again, in the simulator.

use std::process::Command;

use anyhow::Context as _;

use crate::run::{announce, cargo};

/// Seeds that `ci` runs.
const CI_SEEDS: u64 = 300;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many seeds; one when only --seed is given, else 200
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// Only runs that are about this: log, bulk or functions
    #[arg(long)]
    scenario: Option<String>,
    /// Plant every known bug in turn; each has to be found
    #[arg(long)]
    mutants: bool,
    /// Runs at once
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// What the nodes say, with the virtual time, on the standard error
    #[arg(long)]
    verbose: bool,
    /// One JSON object on the standard output, in place of text
    #[arg(long)]
    json: bool,
}

/// Runs seeds; whether none found anything wrong. Its output is the simulator's own.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.mutants {
        return mutants();
    }
    let mut command = simulator(&[]);
    if let Some(scenario) = &arguments.scenario {
        command.args(["--scenario", scenario]);
    }
    for (name, value) in [("--seeds", arguments.seeds), ("--seed", arguments.seed)] {
        if let Some(value) = value {
            command.args([name.to_owned(), value.to_string()]);
        }
    }
    command.args(["--jobs".to_owned(), arguments.jobs.to_string()]);
    for (name, is_set) in [("--verbose", arguments.verbose), ("--json", arguments.json)] {
        if is_set {
            command.arg(name);
        }
    }
    succeeds(&mut command, !arguments.json)
}

/// Plants every bug of the list; whether each was found.
fn mutants() -> anyhow::Result<bool> {
    let mut command = simulator(&["--features", "mutants"]);
    command.arg("--mutants");
    succeeds(&mut command, true)
}

/// The seeds that have to pass before a change lands.
pub(crate) fn few() -> anyhow::Result<bool> {
    let mut command = simulator(&[]);
    command.args(["--seeds".to_owned(), CI_SEEDS.to_string(), "--jobs".to_owned(), "2".to_owned()]);
    succeeds(&mut command, true)
}

fn simulator(features: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "halfmoon-sim"]);
    command.args(features).arg("--");
    // Memory of a ring that is never used is never touched: glibc gives zeroed pages only for what
    // it maps by itself.
    command.env("MALLOC_MMAP_THRESHOLD_", "131072");
    command
}

fn succeeds(command: &mut Command, say: bool) -> anyhow::Result<bool> {
    if say {
        announce(command);
    }
    Ok(command.status().context("cannot run cargo")?.success())
}
