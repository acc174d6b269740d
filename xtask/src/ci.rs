//! `cargo xtask ci`: all that must pass before a change lands.

use anyhow::Context as _;

use crate::run::{self, Tally, announce, cargo, succeeds};
use crate::{sim, test, tidy};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Fail when anything had to be skipped: for machines that can run everything
    #[arg(long)]
    no_skips: bool,
}

/// Runs all of it, the quick checks first; whether all passed.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let mut tally = Tally::of(succeeds(cargo().args(["fmt", "--all", "--check"]))?);
    tally.add(tidy::run()?);
    tally.add(Tally::of(clippy()?));
    tally.add(Tally::of(documentation()?));
    tally.add(test::run(&test::Arguments::default())?);
    tally.add(Tally::of(sim::few()?));
    if has_mutants()? {
        tally.add(Tally::of(mutants()?));
    } else {
        tally.add(Tally::skip("mutants", "the package halfmoon-protocol has no such binary"));
    }
    tally.print_skipped();
    let skips_fail = arguments.no_skips && !tally.skipped.is_empty();
    if skips_fail {
        println!("{} were skipped, and --no-skips was given", tally.skipped.len());
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0 && !skips_fail)
}

fn clippy() -> anyhow::Result<bool> {
    succeeds(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn documentation() -> anyhow::Result<bool> {
    let mut command = cargo();
    command.args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-Dwarnings");
    succeeds(&mut command)
}

fn has_mutants() -> anyhow::Result<bool> {
    let metadata = run::metadata()?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let package = packages.iter().find(|package| package["name"] == "halfmoon-protocol");
    let targets = package.and_then(|package| package["targets"].as_array());
    Ok(targets.into_iter().flatten().any(|target| target["name"] == "mutants"))
}

/// Runs the exhaustive tests against every planted bug. Its output is the program's own; whether
/// every bug was caught.
pub(crate) fn mutants() -> anyhow::Result<bool> {
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "halfmoon-protocol"]);
    command.args(["--features", "mutants", "--bin", "mutants"]);
    announce(&command);
    Ok(command.status().context("cannot run cargo")?.success())
}
