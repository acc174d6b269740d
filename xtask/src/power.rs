//! `cargo xtask power`: loss of power in the middle of writes.
//!
//! Killing a process loses nothing that it wrote: the page cache outlives it. So what is said to be
//! durable is tried on devices that do forget ([`volume::Way`]). Before anything else is believed,
//! a small writer shows that each device forgets what was not flushed, and keeps what was.

mod volume;
mod writer;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::run::Tally;
use volume::{Victim, Volume, Way};
use writer::{FILE, Mode};

/// Blocks that are acknowledged before the power goes; the writer goes on writing meanwhile.
const ACKNOWLEDGED: usize = 100;

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    step: Option<Step>,
}

#[derive(clap::Subcommand)]
enum Step {
    /// The small writer, which `power` starts on the device
    #[command(hide = true)]
    Write(writer::Arguments),
}

/// Runs all of it, or the step that was asked for.
pub(crate) fn command(arguments: Arguments) -> anyhow::Result<Tally> {
    match arguments.step {
        Some(Step::Write(arguments)) => writer::run(&arguments).map(|()| Tally::default()),
        None => {
            let tally = run()?;
            tally.print_skipped();
            println!("{tally}");
            Ok(tally)
        }
    }
}

/// What must come of a writer's acknowledged blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    /// At least one is gone: else the device would not show a missing flush.
    Lost,
}

/// What each device must do with each kind of write. A shut down file system keeps direct writes to
/// blocks that exist already, flushed or not: that is why there is a second way.
const EXPECTED: &[(Way, Mode, Fate)] = &[
    (Way::FileSystem, Mode::BufferedSync, Fate::Kept),
    (Way::FileSystem, Mode::Buffered, Fate::Lost),
    (Way::FileSystem, Mode::DirectSync, Fate::Kept),
    (Way::Device, Mode::BufferedSync, Fate::Kept),
    (Way::Device, Mode::Buffered, Fate::Lost),
    (Way::Device, Mode::DirectSync, Fate::Kept),
    (Way::Device, Mode::Direct, Fate::Lost),
];

/// Every check that this machine can run.
pub(crate) fn run() -> anyhow::Result<Tally> {
    println!("$ power");
    let mut tally = Tally::default();
    for (way, mode, fate) in EXPECTED {
        let name = format!("power loss by {way}, {mode} writes");
        if let Some(why) = way.missing() {
            tally.add(Tally::skip(&name, why));
            continue;
        }
        let result = writer_loses_power(*way, *mode).and_then(|lost| {
            let as_expected = (lost > 0) == (*fate == Fate::Lost);
            anyhow::ensure!(as_expected, "{lost} acknowledged blocks are missing");
            Ok(lost)
        });
        match &result {
            Ok(lost) => println!("{name}: {lost} of the acknowledged blocks lost, as expected"),
            Err(error) => println!("{name}: FAILED: {error:#}"),
        }
        tally.add(Tally::of(result.is_ok()));
    }
    Ok(tally)
}

/// Lets the writer write, takes its power away, and counts the acknowledged blocks that are gone.
fn writer_loses_power(way: Way, mode: Mode) -> anyhow::Result<usize> {
    let mut volume = Volume::create(way)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["power", "write", "--mode", &mode.to_string(), "--file"]);
    command.arg(volume.data().join(FILE)).stdout(Stdio::piped());
    let mut victim = Victim::start(&mut command)?;
    let output = victim.output().context("the writer has no output")?;
    let mut lines = BufReader::new(output).lines();
    let mut acknowledged = 0;
    while acknowledged < ACKNOWLEDGED {
        let line = lines.next().context("the writer ended early")??;
        acknowledged += usize::from(line == "acknowledged");
    }
    volume.lose_power(victim)?;
    // What it could still say before it died counts: it had been told that the block is written.
    acknowledged += lines.map_while(Result::ok).filter(|line| line == "acknowledged").count();
    volume.restore()?;
    missing(&volume.data().join(FILE), acknowledged)
}

fn missing(file: &Path, acknowledged: usize) -> anyhow::Result<usize> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let there = |number: &usize| writer::has_block(&bytes, *number);
    Ok((0..acknowledged).filter(|number| !there(number)).count())
}
