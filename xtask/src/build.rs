//! The program, right and with a planted fault.

use std::fs;
use std::path::PathBuf;

use crate::run::{cargo, succeeds, target};

/// Builds the program with the profile of the tests, which have built most of it already.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    build(&[])
}

/// Builds the program with a reactor that never asks for durability, and puts it aside.
pub(crate) fn without_flushes() -> anyhow::Result<PathBuf> {
    let program = build(&["--features", "halfmoon-reactor/planted-no-flush"])?;
    let aside = target().join("debug/halfmoon-without-flushes");
    fs::copy(program, &aside)?;
    Ok(aside)
}

fn build(features: &[&str]) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "halfmoon-cli"]);
    command.args(["--package", "halfmoon-reactor", "--bin", "halfmoon"]).args(features);
    anyhow::ensure!(succeeds(&mut command)?, "halfmoon does not build");
    Ok(target().join("debug/halfmoon"))
}
