//! One file per command.

mod bench;
mod config;
mod demo;
mod deploy;
mod dev;
mod doctor;
mod invoke;
mod node;
mod show;
mod verify;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::config::Origins;
use crate::roles;

/// Runs the command; its exit code, unless it fails with an error to be printed.
pub(crate) fn run(cli: Cli, origins: &Origins) -> anyhow::Result<ExitCode> {
    let passed_on = cli.passed_on();
    match cli.command {
        Command::Demo(options) => demo::run(options, passed_on),
        Command::Dev(options) => dev::run(&options, passed_on),
        Command::Deploy(options) => deploy::run(&options),
        Command::Invoke(options) => invoke::run(&options),
        Command::Functions(target) => show::functions(&target),
        Command::Status(target) => show::status(&target),
        Command::Node(options) => node::run(&options),
        Command::Config(options) => config::run(&options, cli.log.as_deref(), origins),
        Command::Verify(options) => verify::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Bench(what) => bench::run(&what, passed_on),
        Command::Run(options) => roles::run(&options),
    }
}
