//! One file per command.

mod bench;
mod demo;
mod deploy;
mod dev;
mod invoke;
mod show;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::roles;

/// Runs the command; its exit code, unless it fails with an error to be printed.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Demo(options) => demo::run(options, cli.verbose),
        Command::Dev(options) => dev::run(&options, cli.verbose),
        Command::Deploy(options) => deploy::run(&options),
        Command::Invoke(options) => invoke::run(&options),
        Command::Functions(target) => show::functions(&target),
        Command::Status(target) => show::status(&target),
        Command::Bench(what) => bench::run(&what, cli.verbose),
        Command::Run(options) => roles::run(&options),
    }
}
