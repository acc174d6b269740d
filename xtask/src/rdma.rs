//! `cargo xtask rdma`: the RDMA transport with real verbs, on a machine that has no adapter.
//!
//! A kernel with Soft-RoCE runs in an emulated machine (qemu without hardware help, so that it runs
//! in virtual machines and containers too). The emulated machine sees this machine's files, read
//! only, so what was built here runs there as it is. It says whether verbs code is right; how fast
//! it is says nothing.

mod cluster;
mod image;
mod machine;
mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::run::{Tally, cargo, has, target};
use crate::test;
use machine::{Ended, Machine};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose names contain this
    filter: Option<String>,
    /// Only the whole cluster: the demo, and the demo while the device is removed
    #[arg(long, conflicts_with = "filter")]
    whole: bool,
    /// Only a cluster on two machines, joined by a wire: the demo, kills on both, and what is on the
    /// disks in the end. Takes some minutes, and is no part of what CI runs
    #[arg(long, conflicts_with_all = ["filter", "whole"])]
    two_machines: bool,
    /// Run this shell script in the machine instead of the tests; `/mnt` is its folder
    #[arg(long, conflicts_with_all = ["filter", "whole", "two_machines"])]
    script: Option<PathBuf>,
}

/// How long the machine may take for all tests, or for a script.
const TIME: Duration = Duration::from_secs(400);

/// Programs that are needed, and the packages that have them on Debian.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
    ("rdma", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("pkg-config", "pkg-config"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("strip", "binutils"),
];

/// Files that are needed, and the packages that have them on Debian.
const FILES: &[(&str, &str)] = &[
    ("/bin/busybox", "busybox-static"),
    ("/etc/libibverbs.d/rxe.driver", "ibverbs-providers"),
    ("/usr/include/infiniband/verbs.h", "libibverbs-dev"),
    ("/usr/include/rdma/rdma_cma.h", "librdmacm-dev"),
];

/// Runs what was asked for.
pub(crate) fn command(arguments: &Arguments) -> anyhow::Result<Tally> {
    let tally = match &arguments.script {
        Some(script) => with_machine("a script", |machine| {
            let ended = machine.run(script, &[], TIME)?;
            Ok(Tally::of(ended.status == Some(0)))
        })?,
        None if arguments.two_machines => wire::run()?,
        None if arguments.whole => with_machine("a cluster over Soft-RoCE", cluster::run)?,
        None if arguments.filter.is_none() => run()?,
        None => with_machine("RDMA over Soft-RoCE", |machine| {
            tests(machine, arguments.filter.as_deref())
        })?,
    };
    tally.print_skipped();
    println!("{tally}");
    Ok(tally)
}

/// Every test that needs an adapter, and a whole cluster.
pub(crate) fn run() -> anyhow::Result<Tally> {
    println!("$ rdma");
    with_machine("RDMA over Soft-RoCE", |machine| {
        let mut tally = tests(machine, None)?;
        tally.add(cluster::run(machine)?);
        Ok(tally)
    })
}

fn tests(machine: &Machine, filter: Option<&str>) -> anyhow::Result<Tally> {
    let programs = build_tests()?;
    let script = machine.share().join("tests.sh");
    std::fs::write(&script, script_of(&programs, filter))?;
    let Ended { status, lines } = machine.run(&script, &[], TIME)?;
    let mut tally = test::cargo_tally(&lines);
    if status != Some(0) && tally.failed == 0 {
        println!("the machine ended before its tests did");
        tally.failed = 1;
    }
    Ok(tally)
}

/// Makes a machine and hands it over, or says why there is none.
fn with_machine(
    name: &str,
    run: impl FnOnce(&Machine) -> anyhow::Result<Tally>,
) -> anyhow::Result<Tally> {
    if let Some(why) = missing() {
        return Ok(Tally::skip(name, why));
    }
    let folder = target().join("rdma");
    match image::prepare(&folder)? {
        Ok(image) => run(&Machine::new(image, &folder)?),
        Err(why) => Ok(Tally::skip(name, why)),
    }
}

/// What this machine lacks.
fn missing() -> Option<String> {
    let program = PROGRAMS.iter().find(|(program, _)| !has(program)).copied();
    let file = FILES.iter().find(|(file, _)| !Path::new(file).exists()).copied();
    program.or(file).map(|(what, package)| format!("{what} is missing (package {package})"))
}

/// Builds the tests of the transport with verbs; the programs.
fn build_tests() -> anyhow::Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--no-run", "--package", "halfmoon-rdma"]);
    command.args(["--features", "verbs", "--tests", "--message-format", "json"]);
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    anyhow::ensure!(output.status.success(), "the tests of halfmoon-rdma do not build");
    let text = String::from_utf8(output.stdout).context("cargo's messages are no text")?;
    let mut programs = Vec::new();
    for line in text.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        programs.extend(message["executable"].as_str().map(PathBuf::from));
    }
    anyhow::ensure!(!programs.is_empty(), "halfmoon-rdma has no tests");
    Ok(programs)
}

/// A shell script that makes a device and runs the programs on it.
fn script_of(programs: &[PathBuf], filter: Option<&str>) -> String {
    let mut script = format!("{DEVICE}\nstatus=0\n");
    for program in programs {
        let filter = filter.unwrap_or_default();
        script += &format!(
            "HALFMOON_TEST_RDMA=10.9.0.1 timeout 300 {} --test-threads 1 {filter} || status=1\n",
            program.display(),
        );
    }
    script + "exit $status\n"
}

/// One Soft-RoCE device, on an address of the machine. The wait is for the address of the link
/// itself, which the kernel first has to see to be unique.
const DEVICE: &str = "set -e
ip link add v0 type veth peer name v1
ip addr add 10.9.0.1/24 dev v0
ip link set v0 up
ip link set v1 up
sleep 1
rdma link add rxe0 type rxe netdev v0
set +e";

/// Runs a program and says why it did not succeed.
fn tried(command: &mut std::process::Command) -> anyhow::Result<Result<String, String>> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Some are where only administrators look.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => {
            let said = text(&output.stderr);
            let last = said.lines().last().unwrap_or("no reason given");
            Err(format!("{program}: {last}"))
        }
    })
}
