//! The `halfmoon` command: a cluster on one machine, its roles, and what users do with them.

#![forbid(unsafe_code)]

mod census;
mod cli;
mod client;
mod commands;
mod config;
mod lanes;
mod layout;
mod logging;
mod notify;
mod roles;
mod stop;
mod supervisor;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // An engine runs this binary as a function worker of the demo's application: a function binary
    // like any other, told by its environment.
    if is_function_binary() {
        halfmoon::serve(halfmoon_bench::travel::app());
    }
    let ran = config::parse().and_then(|(cli, origins)| {
        let wanted = cli.command.logs_to_stderr();
        logging::start(cli.verbose, wanted, cli.log.as_deref(), cli.command.node());
        commands::run(cli, &origins)
    });
    match ran {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Whether an engine has started this process for its functions, or asks what they are.
fn is_function_binary() -> bool {
    [halfmoon::DESCRIBE_ENV, "HALFMOON_CHANNEL_FD"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

#[expect(clippy::print_stderr, reason = "the last word of a command goes to the person who ran it")]
fn complain(error: &anyhow::Error) {
    eprintln!("halfmoon: {error:#}");
}
