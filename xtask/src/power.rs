//! `cargo xtask power`: loss of power in the middle of writes.
//!
//! Killing a process loses nothing that it wrote: the page cache outlives it. So what is said to be
//! durable is tried on devices that do forget ([`Way`]). Before anything else is believed,
//! a small writer shows that each device forgets what was not flushed, and keeps what was.

mod writer;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::build;
use crate::cluster::{Cluster, Told, Victim};
use crate::run::Tally;
use crate::volume::{Volume, Way};
use writer::{FILE, Mode};

/// Blocks that are acknowledged before the power goes; the writer goes on writing meanwhile.
const ACKNOWLEDGED: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    step: Option<Step>,
    /// How often a cluster under load loses power, by each way
    #[arg(long, default_value_t = LOSSES, value_parser = clap::value_parser!(u32).range(1..=100))]
    losses: u32,
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
            let tally = run(arguments.losses)?;
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

/// How often a cluster loses power in one check, unless said otherwise.
pub(crate) const LOSSES: u32 = 3;
/// How often a cluster without flushes may be lucky.
const LOSSES_UNFLUSHED: u32 = 10;

/// Every check that this machine can run.
pub(crate) fn run(losses: u32) -> anyhow::Result<Tally> {
    println!("$ power");
    let mut tally = devices()?;
    tally.add(clusters(losses)?);
    Ok(tally)
}

/// Whether a whole cluster keeps what it acknowledged, and whether this would be seen if not.
fn clusters(losses: u32) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    let ways: Vec<Way> = [Way::FileSystem, Way::Device]
        .into_iter()
        .filter(|way| {
            let why = way.missing();
            let name = format!("power loss by {way}, a cluster under load");
            tally.skipped.extend(why.as_ref().map(|why| format!("{name}: {why}")));
            why.is_none()
        })
        .collect();
    if ways.is_empty() {
        return Ok(tally);
    }
    // The one with the fault comes first: both builds write to the same place, and what is left
    // there is the right one.
    let unflushed = build::without_flushes()?;
    let program = build::program()?;
    for way in ways {
        let name = format!("power loss by {way}, a cluster under load");
        tally.add(report(&name, cluster_loses_power(way, &program, losses).and_then(kept)));
        if way == Way::Device {
            let name = format!("power loss by {way}, a cluster that does not flush");
            let audit = cluster_loses_power(way, &unflushed, LOSSES_UNFLUSHED);
            tally.add(report(&name, audit.and_then(noticed)));
        }
    }
    Ok(tally)
}

/// What came of a cluster's acknowledged reservations.
#[derive(Default)]
struct Audit {
    /// How often it lost power.
    losses: u32,
    acknowledged: usize,
    /// Of these, ones that are not there, or not as they were told.
    missing: usize,
    /// Why it did not come up again, or did not answer.
    broken: Option<anyhow::Error>,
}

fn kept(audit: Audit) -> anyhow::Result<String> {
    let Audit { losses, acknowledged, missing, broken } = audit;
    if let Some(error) = broken {
        return Err(error.context(format!("after loss of power number {losses}")));
    }
    anyhow::ensure!(
        missing == 0,
        "{missing} of {acknowledged} acknowledged reservations are missing after {losses} losses"
    );
    Ok(format!(
        "all nodes at once lost power {losses} times; {acknowledged} reservations acknowledged, 0 \
         missing"
    ))
}

/// A cluster that does not flush must lose something: a reservation, or so much that it does not
/// come up again.
fn noticed(audit: Audit) -> anyhow::Result<String> {
    let Audit { losses: _, acknowledged, missing, broken } = audit;
    if let Some(error) = broken {
        return Ok(format!("broken after {acknowledged} reservations, as expected ({error:#})"));
    }
    anyhow::ensure!(missing > 0, "none of {acknowledged} is missing: it would not be noticed");
    Ok(format!("{missing} of {acknowledged} acknowledged reservations lost, as expected"))
}

fn report(name: &str, result: anyhow::Result<String>) -> Tally {
    match &result {
        Ok(what) => println!("{name}: {what}"),
        Err(error) => println!("{name}: FAILED: {error:#}"),
    }
    Tally::of(result.is_ok())
}

/// Lets a cluster take reservations and lose power, so often, or until something is missing.
fn cluster_loses_power(way: Way, program: &Path, losses: u32) -> anyhow::Result<Audit> {
    let mut volume = Volume::create(way)?;
    let mut told = Told::default();
    let data = volume.data().join("cluster");
    let mut cluster = Cluster::start(program, &data)?;
    cluster.deploy(program)?;
    let mut audit = Audit::default();
    for round in 1..=losses {
        // After a different number of answers each time, so in a different place.
        let answers = 20 + 13 * round as usize;
        told.reserve_until(cluster, answers, |victim| volume.lose_power(victim))?;
        volume.restore()?;
        (audit.losses, audit.acknowledged) = (round, told.len());
        let again = Cluster::start(program, &data)
            .and_then(|cluster| Ok((told.missing(&cluster)?, cluster)));
        match again {
            Ok((0, next)) => cluster = next,
            Ok((missing, _)) => return Ok(Audit { missing, ..audit }),
            Err(error) => return Ok(Audit { broken: Some(error), ..audit }),
        }
    }
    Ok(audit)
}

/// Whether the devices themselves do what is expected of them.
fn devices() -> anyhow::Result<Tally> {
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
            Ok(format!("{lost} acknowledged blocks lost, as expected"))
        });
        tally.add(report(&name, result));
    }
    Ok(tally)
}

/// Lets the writer write, takes its power away, and counts the acknowledged blocks that are gone.
fn writer_loses_power(way: Way, mode: Mode) -> anyhow::Result<usize> {
    let mut volume = Volume::create(way)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["power", "write", "--mode", &mode.to_string(), "--file"]);
    command.arg(volume.data().join(FILE)).stdout(Stdio::piped());
    // It complains when its device is gone.
    command.stderr(Stdio::null());
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
