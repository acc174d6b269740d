//! `cargo xtask chaos`: a cluster of real processes, each in a network of its own, under faults that
//! are drawn from a seed.
//!
//! The faults are a function of the seed; what the processes make of them is not, as they are real.

#[path = "../../bench/src/audit.rs"]
#[expect(unreachable_pub, reason = "the audit that the demo has, which is public there")]
mod audit;
mod cluster;
mod guard;
mod judge;
mod load;
mod net;
mod plan;
mod run;

use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::build;
use crate::run::{Tally, has};
use crate::volume::{Way, is_root};
use plan::Able;

/// How long faults happen, in seconds, unless said otherwise.
const SECONDS: u64 = 75;
/// The same when this is one of many tests.
const SECONDS_AMONG_TESTS: u64 = 30;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    step: Option<Step>,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, clap::Args)]
struct Options {
    /// How long faults happen
    #[arg(long, default_value_t = SECONDS, value_parser = clap::value_parser!(u64).range(5..=86_400))]
    seconds: u64,
    /// What the faults are drawn from [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Where the cluster's metadata lies [default: etcd, where it is installed]
    #[arg(long)]
    meta: Option<Meta>,
    /// In place of faults from a seed: etcd is killed, and started again after so many seconds; then
    /// the sequencer in charge is killed
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    etcd_outage: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Meta {
    /// A process in a namespace of its own, that can be cut off and killed like the nodes.
    Etcd,
    /// A directory, which all nodes reach whatever is cut.
    Directory,
}

#[derive(clap::Subcommand)]
enum Step {
    /// The run itself, which `chaos` starts in namespaces of its own
    #[command(hide = true)]
    Inside(Options),
}

/// Runs all of it, or the step that was asked for.
pub(crate) fn command(arguments: &Arguments) -> anyhow::Result<Tally> {
    match &arguments.step {
        Some(Step::Inside(options)) => run::run(options).map(Tally::of),
        None => {
            let tally = in_namespaces(&arguments.options)?;
            tally.print_skipped();
            Ok(tally)
        }
    }
}

/// A short one, among the other tests.
pub(crate) fn short() -> anyhow::Result<Tally> {
    println!("$ chaos");
    let (seed, meta, etcd_outage) = (None, None, None);
    in_namespaces(&Options { seconds: SECONDS_AMONG_TESTS, seed, meta, etcd_outage })
}

/// Runs it in a network and with mounts of its own, which go when it ends.
fn in_namespaces(options: &Options) -> anyhow::Result<Tally> {
    if let Some(why) = missing(options) {
        return Ok(Tally::skip("chaos", why));
    }
    build::program()?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).arg(std::env::current_exe()?).args(["chaos", "inside"]);
    command.args(["--seconds", &options.seconds.to_string()]);
    command.args(["--seed", &options.seed.map_or_else(fresh_seed, Ok)?.to_string()]);
    if let Some(meta) = options.meta {
        command.args(["--meta", if meta == Meta::Etcd { "etcd" } else { "directory" }]);
    }
    if let Some(outage) = options.etcd_outage {
        command.args(["--etcd-outage", &outage.to_string()]);
    }
    let status = command.stdin(Stdio::null()).status().context("cannot run unshare")?;
    let mut tally = Tally::of(status.success());
    tally.skipped = abilities(options.uses_etcd()).2;
    Ok(tally)
}

fn fresh_seed() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Why it cannot run on this machine.
fn missing(options: &Options) -> Option<String> {
    if !is_root() {
        return Some("network namespaces and mounts need root".to_owned());
    }
    let programs = ["unshare", "nsenter", "ip", "mount"];
    if let Some(program) = programs.into_iter().find(|program| !has(program)) {
        return Some(format!("no {program} here; install util-linux, mount and iproute2"));
    }
    let wants_etcd = options.meta == Some(Meta::Etcd) || options.etcd_outage.is_some();
    if wants_etcd && !has_etcd() {
        return Some("no etcd here; install etcd-server".to_owned());
    }
    let tried = ["--net", "--mount", "ip", "link", "add", "bridge", "type", "bridge"];
    let output = Command::new("unshare").args(tried).stdin(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (!output.status.success()).then(|| format!("no network of its own can be had: {said}"))
}

fn has_etcd() -> bool {
    has("etcd") && has("setpriv")
}

impl Options {
    fn uses_etcd(&self) -> bool {
        self.meta.map_or_else(has_etcd, |meta| meta == Meta::Etcd)
    }

    fn lasting(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// What this machine can do, how it does it, and what it cannot do.
fn abilities(etcd: bool) -> (Able, Option<Way>, Vec<String>) {
    let mut skipped = Vec::new();
    if !etcd && !has_etcd() {
        skipped.push("chaos, metadata out of reach: no etcd here; install etcd-server".to_owned());
    }
    let (rated, plain) = (Way::Rated.missing(), Way::FileSystem.missing());
    let way = match (&rated, &plain) {
        (None, _) => Some(Way::Rated),
        (Some(why), None) => {
            skipped.push(format!("chaos, slow disks: {why}"));
            Some(Way::FileSystem)
        }
        (Some(why), Some(_)) => {
            skipped.push(format!("chaos, slow and full disks: {why}"));
            None
        }
    };
    let clock_step = cluster::faketime().is_some();
    if !clock_step {
        skipped.push("chaos, clock steps: no libfaketime here; install it".to_owned());
    }
    let full_disk = way.is_some() && has("fallocate");
    (Able { etcd, full_disk, slow_disk: way == Some(Way::Rated), clock_step }, way, skipped)
}
