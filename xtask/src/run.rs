//! Running other programs, and counting what came of it.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

/// What came of a number of checks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What could not run here, and why: `name: why`.
    pub(crate) skipped: Vec<String>,
}

impl Tally {
    /// One check that passed or failed.
    pub(crate) fn of(ok: bool) -> Self {
        Self { passed: u64::from(ok), failed: u64::from(!ok), skipped: vec![] }
    }

    /// One check that could not run here.
    pub(crate) fn skip(name: &str, why: impl std::fmt::Display) -> Self {
        Self { passed: 0, failed: 0, skipped: vec![format!("{name}: {why}")] }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }

    pub(crate) fn print_skipped(&self) {
        for skipped in &self.skipped {
            println!("skipped: {skipped}");
        }
    }
}

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The `cargo` that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Says which command runs, in a line of its own.
pub(crate) fn announce(command: &Command) {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let program = words.first().map_or("", |word| word.rsplit('/').next().unwrap_or(word));
    println!("$ {program} {}", words.get(1..).unwrap_or_default().join(" "));
}

/// Runs a command with our output as its own; whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> anyhow::Result<bool> {
    announce(command);
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status();
    Ok(status.with_context(|| format!("cannot run {program}"))?.success())
}

/// Which of a program's outputs is wanted.
#[derive(Clone, Copy)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// Runs a command, passes its output through, and keeps the lines of one of its outputs.
pub(crate) fn tee(command: &mut Command, output: Output) -> anyhow::Result<(bool, Vec<String>)> {
    announce(command);
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null());
    match output {
        Output::Stdout => command.stdout(Stdio::piped()),
        Output::Stderr => command.stderr(Stdio::piped()),
    };
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let lines = match output {
        Output::Stdout => child.stdout.take().map(pass_through).transpose()?,
        Output::Stderr => child.stderr.take().map(pass_through).transpose()?,
    };
    Ok((child.wait()?.success(), lines.unwrap_or_default()))
}

fn pass_through(from: impl Read) -> anyhow::Result<Vec<String>> {
    let mut reader = BufReader::new(from);
    let mut lines = Vec::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("{text}");
        lines.push(text);
        line.clear();
    }
    Ok(lines)
}

/// Whether a program is on the path.
pub(crate) fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        || Path::new("/usr/sbin").join(program).is_file()
}

/// What `cargo metadata` says.
pub(crate) fn metadata() -> anyhow::Result<serde_json::Value> {
    let output = cargo().args(["metadata", "--format-version", "1", "--locked"]).output()?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")
}
