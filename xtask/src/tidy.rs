//! `cargo xtask tidy`: rules of this repository that no compiler checks.

mod docs;
mod licence;
mod packages;
mod source;
mod text;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::run::{self, Tally};

/// A file of the repository.
pub(crate) struct TextFile {
    /// Its path, from the root of the workspace.
    path: String,
    text: String,
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    path: String,
    /// From 1; 0 when the file as a whole is meant.
    line: usize,
    what: String,
}

impl Violation {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

/// Checks everything; counts as one check.
pub(crate) fn run() -> anyhow::Result<Tally> {
    println!("$ tidy");
    let files = files()?;
    let metadata = run::metadata()?;
    let mut violations = packages::check(&metadata, &files)?;
    violations.extend(licence::check(&metadata)?);
    for file in &files {
        violations.extend(text::check(file));
        if file.path.ends_with(".rs") {
            violations.extend(source::check(file));
        }
    }
    violations.extend(docs::check(&metadata, &files)?);
    for Violation { path, line, what } in &violations {
        if *line == 0 {
            println!("{path}: {what}");
        } else {
            println!("{path}:{line}: {what}");
        }
    }
    println!("tidy: {} files, {} violations", files.len(), violations.len());
    Ok(Tally::of(violations.is_empty()))
}

/// All text files that git knows or would take.
fn files() -> anyhow::Result<Vec<TextFile>> {
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = command.output().context("cannot run git")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut files = Vec::new();
    for path in String::from_utf8(output.stdout)?.split_terminator('\0') {
        // A file that was deleted and not yet committed, and what is no text, has nothing to check.
        let Ok(bytes) = fs::read(PathBuf::from(path)) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(TextFile { path: path.to_owned(), text });
        }
    }
    Ok(files)
}
