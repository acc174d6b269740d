//! Developer commands: `cargo xtask test`, `ci`, `tidy`, `mutants`, `power`, `rdma`, `chaos`, `sim`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod build;
mod chaos;
mod ci;
mod cluster;
mod http;
mod power;
mod rdma;
mod run;
mod sim;
mod test;
mod tidy;
mod volume;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::run::Tally;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Halfmoon")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test that this machine can run; name what is skipped, and why
    Test(test::Arguments),
    /// All that must pass before a change lands: format, lints, tidy, documentation, tests, mutants
    Ci(ci::Arguments),
    /// Check what the compiler does not: dependencies, purity, unsafe code, limits, licences, texts
    Tidy,
    /// Plant every known bug in the protocols; the exhaustive tests must catch each
    Mutants,
    /// Run a whole cluster in the simulator, once per seed: faults of all kinds, checked at every step
    Sim(sim::Arguments),
    /// Run a cluster of real processes, each in a network namespace, under faults drawn from a seed:
    /// kills, stops, partitions, slow and full disks, clocks; and audit every effect
    Chaos(chaos::Arguments),
    /// Lose power in the middle of writes, on devices that forget what they were not told to flush
    Power(power::Arguments),
    /// Run the tests of the RDMA transport on a Soft-RoCE device, in an emulated machine
    Rdma(rdma::Arguments),
}

fn main() -> ExitCode {
    let result = std::env::set_current_dir(run::root())
        .map_err(anyhow::Error::from)
        .and_then(|()| dispatch(Arguments::parse().command));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs a command; whether all went well.
fn dispatch(command: Command) -> anyhow::Result<bool> {
    let tally = match command {
        Command::Test(arguments) => {
            let tally = test::run(&arguments)?;
            tally.print_skipped();
            println!("{tally}");
            tally
        }
        Command::Ci(arguments) => return ci::run(&arguments),
        Command::Tidy => tidy::run()?,
        Command::Mutants => return ci::mutants(),
        Command::Sim(arguments) => return sim::run(&arguments),
        Command::Chaos(arguments) => chaos::command(&arguments)?,
        Command::Power(arguments) => power::command(arguments)?,
        Command::Rdma(arguments) => rdma::command(&arguments)?,
    };
    Ok(tally.failed == 0)
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {} skipped", skipped.len())
    }
}
