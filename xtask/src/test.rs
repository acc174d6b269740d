//! `cargo xtask test`: everything that this machine can run.

use std::fs;

use anyhow::Context as _;

use crate::run::{Output, Tally, cargo, has, target, tee};
use crate::{chaos, power, rdma, run};

/// Tests that find that they cannot run here append a line `name: why` to the file that this
/// variable names, and return. They are counted as skipped, not as passed.
const SKIP_FILE: &str = "HALFMOON_SKIP_FILE";

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Only tests whose names contain this; leaves the layers out that are no unit tests
    filter: Option<String>,
    /// Only this package; leaves the layers out that are no unit tests
    #[arg(long, short)]
    package: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Tally> {
    let mut tally = cargo_tests(arguments)?;
    if arguments.filter.is_none() {
        tally.add(doc_tests(arguments)?);
    }
    if arguments.filter.is_none() && arguments.package.is_none() {
        tally.add(power::run(power::LOSSES)?);
        tally.add(chaos::short()?);
        tally.add(rdma::run()?);
    }
    Ok(tally)
}

fn packages(arguments: &Arguments) -> Vec<String> {
    match &arguments.package {
        Some(package) => vec!["--package".to_owned(), package.clone()],
        None => vec!["--workspace".to_owned()],
    }
}

/// Unit and integration tests, by nextest where it is installed.
fn cargo_tests(arguments: &Arguments) -> anyhow::Result<Tally> {
    fs::create_dir_all(target())?;
    let skip_file = target().join(format!("skipped-{}", std::process::id()));
    fs::write(&skip_file, "").with_context(|| format!("cannot write {}", skip_file.display()))?;
    let nextest = has("cargo-nextest");
    let mut command = cargo();
    command.args(if nextest { &["nextest", "run"][..] } else { &["test", "--no-fail-fast"] });
    command.args(packages(arguments)).env(SKIP_FILE, &skip_file);
    // Doctests are a step of their own: nextest has none.
    if !nextest {
        command.args(["--lib", "--bins", "--tests", "--examples"]);
    }
    command.args(&arguments.filter);
    let output = if nextest { Output::Stderr } else { Output::Stdout };
    let (ok, lines) = tee(&mut command, output)?;
    let mut tally = if nextest { nextest_tally(&lines) } else { cargo_tally(&lines) };
    if !ok && tally.failed == 0 {
        tally.failed = 1;
    }
    for line in fs::read_to_string(&skip_file)?.lines() {
        tally.passed = tally.passed.saturating_sub(1);
        tally.skipped.push(line.to_owned());
    }
    fs::remove_file(&skip_file)?;
    Ok(tally)
}

fn doc_tests(arguments: &Arguments) -> anyhow::Result<Tally> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--doc", "--no-fail-fast"]).args(packages(arguments));
    // Packages without a library have no doctests, and cargo takes it as an error to name one.
    if let Some(package) = &arguments.package
        && !has_library(package)?
    {
        return Ok(Tally::default());
    }
    let (ok, lines) = tee(&mut command, Output::Stdout)?;
    let mut tally = cargo_tally(&lines);
    if !ok && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

fn has_library(package: &str) -> anyhow::Result<bool> {
    let metadata = run::metadata()?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let found = packages.iter().find(|found| found["name"] == package);
    let targets = found.and_then(|found| found["targets"].as_array());
    Ok(targets.into_iter().flatten().any(|target| target["kind"][0] == "lib"))
}

/// Reads nextest's last line, `Summary [ 1.2s] 24 tests run: 23 passed (1 slow), 1 failed, 2
/// skipped`, and what it says of each failure.
fn nextest_tally(lines: &[String]) -> Tally {
    let mut tally = Tally::default();
    let Some(line) = lines.iter().rev().find(|line| line.trim_start().starts_with("Summary ["))
    else {
        return tally;
    };
    let counts = line.split_once("run:").map_or("", |(_, counts)| counts);
    for part in counts.split(',') {
        let mut words = part.split_whitespace();
        let count = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match words.next() {
            Some("passed") => tally.passed += count,
            Some("failed" | "timed" | "exec") => tally.failed += count,
            _ => {}
        }
    }
    tally
}

/// Adds up libtest's lines, `test result: ok. 13 passed; 0 failed; 1 ignored; …`.
pub(crate) fn cargo_tally(lines: &[String]) -> Tally {
    let mut tally = Tally::default();
    for line in lines {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            continue;
        };
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let count = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => tally.passed += count,
                Some("failed") => tally.failed += count,
                _ => {}
            }
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_summaries_are_understood() {
        let lines = |text: &str| vec!["noise".to_owned(), text.to_owned()];
        let nextest = "     Summary [   1.2s] 27 tests run: 23 passed (1 slow), 3 failed, 1 timed \
                       out, 2 skipped";
        assert_eq!(
            nextest_tally(&lines(nextest)),
            Tally { passed: 23, failed: 4, skipped: vec![] }
        );
        let libtest = "test result: FAILED. 12 passed; 1 failed; 0 ignored; 0 measured; 3 filtered \
                       out; finished in 0.47s";
        let two = [lines(libtest), lines(libtest)].concat();
        assert_eq!(cargo_tally(&two), Tally { passed: 24, failed: 2, skipped: vec![] });
        assert_eq!(nextest_tally(&lines("")), Tally::default());
    }
}
