//! A whole cluster over Soft-RoCE: the demo, with its kills and its audit; and the same while the
//! device is removed, after which it goes on over TCP.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::machine::{Ended, Machine};
use super::{DEVICE, tried};
use crate::run::{Tally, cargo, succeeds, target};

/// How long the machine may take for one demo, which takes a minute where nobody else uses the
/// processors.
const TIME: Duration = Duration::from_secs(600);

/// The demo: one protocol, few kills, and as many requests as emulated processors manage.
const DEMO: &str =
    "demo --transport rdma --quick --protocols halfmoon-read --segment-mib 4 --rate 20";

/// What the scripts call what nodes had written when the device was about to be removed.
const BEFORE: &str = "before the removal";

/// Runs both.
pub(super) fn run(machine: &Machine) -> anyhow::Result<Tally> {
    let program = program()?;
    fs::copy(&program, machine.share().join("halfmoon"))?;
    let mut tally = check(machine, "whole", &format!("{DEVICE}\n{WHOLE}"), stays_on_rdma)?;
    tally.add(check(machine, "removed", &format!("{DEVICE}\n{REMOVED}"), goes_on_over_tcp)?);
    Ok(tally)
}

/// The program with RDMA, as users build it: emulated processors have no time to lose. Without its
/// symbols: they are most of it, and the demo deploys it.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", "halfmoon-cli"]);
    command.args(["--features", "rdma", "--bin", "halfmoon"]);
    anyhow::ensure!(succeeds(&mut command)?, "halfmoon does not build with RDMA");
    let (built, bare) = (target().join("release/halfmoon"), target().join("rdma/halfmoon"));
    fs::create_dir_all(target().join("rdma"))?;
    let mut strip = Command::new("strip");
    tried(strip.arg("-o").arg(&bare).arg(&built))?.map_err(anyhow::Error::msg)?;
    Ok(bare)
}

fn check(
    machine: &Machine,
    name: &str,
    script: &str,
    judge: fn(&[String]) -> Result<(), String>,
) -> anyhow::Result<Tally> {
    println!("$ rdma: {name}");
    let file = machine.share().join(format!("{name}.sh"));
    fs::write(&file, script.replace("DEMO", DEMO))?;
    let Ended { status, lines } = machine.run(&file, &[], TIME)?;
    let verdict = match status {
        Some(0) => judge(&lines),
        Some(status) => Err(format!("the script ended with {status}")),
        None => Err("the machine ended before the script did".to_owned()),
    };
    if let Err(why) = &verdict {
        println!("rdma, {name}: {why}");
    }
    Ok(Tally::of(verdict.is_ok()))
}

/// The demo, and the logs if it fails.
const WHOLE: &str = include_str!("whole.sh");

/// The demo, while the device is removed.
const REMOVED: &str = include_str!("removed.sh");

/// What nodes have written over RDMA and over TCP, by the last line that begins so.
pub(super) fn figures(lines: &[String], begin: &str) -> Result<(u64, u64), String> {
    let found = lines.iter().rev().find_map(|line| {
        let rest = line.split_once(begin)?.1.strip_prefix(": ")?;
        let (rdma, rest) = rest.split_once(" bytes over RDMA, ")?;
        let tcp = rest.strip_suffix(" bytes over TCP")?;
        Some((rdma.parse().ok()?, tcp.parse().ok()?))
    });
    found.ok_or_else(|| format!("nobody said what went over which {begin}"))
}

/// What the demo says at its end.
const END: &str = "between nodes";

pub(super) fn clean(lines: &[String]) -> Result<(), String> {
    let is_clean = lines.iter().any(|line| line == "lost 0, doubled 0");
    is_clean.then_some(()).ok_or_else(|| "the audit is not clean".to_owned())
}

fn stays_on_rdma(lines: &[String]) -> Result<(), String> {
    clean(lines)?;
    match figures(lines, END)? {
        (0, _) => Err("nothing went over RDMA".to_owned()),
        (_, 0) => Ok(()),
        (_, tcp) => Err(format!("{tcp} bytes went over TCP, and there was a device")),
    }
}

fn goes_on_over_tcp(lines: &[String]) -> Result<(), String> {
    clean(lines)?;
    match (figures(lines, BEFORE)?, figures(lines, END)?) {
        ((0, _), _) => Err("nothing went over RDMA".to_owned()),
        ((_, 0), (_, 0)) => Err("nothing went over TCP when the device was gone".to_owned()),
        ((_, 0), _) => Ok(()),
        ((_, tcp), _) => Err(format!("{tcp} bytes went over TCP before the device was gone")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn bytes_over_tcp_while_there_is_a_device_fail_a_run_and_so_do_none_over_rdma() {
        let judged = |rdma: u64, tcp: u64| {
            stays_on_rdma(&lines(&format!(
                "[ 1.0 s] between nodes: 1 bytes over RDMA, 1 bytes over TCP\n\
                 between nodes: {rdma} bytes over RDMA, {tcp} bytes over TCP\nlost 0, doubled 0"
            )))
        };
        assert_eq!(judged(9, 0), Ok(()));
        assert!(judged(9, 1).is_err());
        assert!(judged(0, 0).is_err());
        assert!(stays_on_rdma(&lines("lost 0, doubled 0")).is_err());
    }

    #[test]
    fn a_removal_is_followed_by_bytes_over_tcp_and_preceded_by_none() {
        let judged = |before: u64, after: u64, verdict: &str| {
            goes_on_over_tcp(&lines(&format!(
                "before the removal: 5 bytes over RDMA, {before} bytes over TCP\n\
                 between nodes: 5 bytes over RDMA, {after} bytes over TCP\n{verdict}"
            )))
        };
        assert_eq!(judged(0, 7, "lost 0, doubled 0"), Ok(()));
        assert!(judged(7, 7, "lost 0, doubled 0").is_err());
        assert!(judged(0, 0, "lost 0, doubled 0").is_err());
        assert!(judged(0, 7, "lost 1, doubled 0").is_err());
    }
}
