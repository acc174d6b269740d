//! `halfmoon doctor`: whether a host is set up for RDMA, io_uring and durable writes.
//!
//! Checks are functions from what the kernel says in files to findings; [`files`] reads the files.

mod disk;
mod files;
mod host;
mod rdma;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use self::files::Files;
use crate::cli::Doctor;
use crate::commands::show::print;
use crate::layout::Layout;

/// How it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Grade {
    /// As it should be.
    Ok,
    /// It works; it could be better, or is worth knowing.
    Note,
    /// Something does not work, or costs much.
    Problem,
}

/// What a check has found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    check: &'static str,
    grade: Grade,
    found: String,
    /// What to change, with the command or the setting.
    change: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, grade: Grade::Ok, found: found.into(), change: None }
    }

    fn note(check: &'static str, found: impl Into<String>, change: impl Into<String>) -> Self {
        let change = Some(change.into()).filter(|change: &String| !change.is_empty());
        Self { check, grade: Grade::Note, found: found.into(), change }
    }

    fn problem(check: &'static str, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self { check, grade: Grade::Problem, found: found.into(), change: Some(change.into()) }
    }

    fn lines(&self) -> Vec<String> {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Note => "note",
            Grade::Problem => "PROBLEM",
        };
        let change = self.change.iter().map(|change| format!("{:>25}change: {change}", ""));
        let first = format!("{grade:<8}{:<17}{}", self.check, self.found);
        std::iter::once(first).chain(change).collect()
    }
}

pub(crate) fn run(options: &Doctor) -> anyhow::Result<ExitCode> {
    let files = Files::new(Path::new("/"));
    let devices = rdma::devices(&files);
    let mut findings = rdma::findings(&devices, &rdma::library(), options.listen);
    findings.extend(rdma::congestion(&files, &devices));
    findings.extend(host::findings(&files, rdma::matters(&devices)));
    findings.push(host::ring());
    let place = nearest(Layout::new(options.data_dir.clone())?.root());
    findings.extend(disk::findings(&files, &place));
    let problems = findings.iter().filter(|found| found.grade == Grade::Problem).count();
    if options.json {
        print(&json!({ "problems": problems, "findings": findings }).to_string());
    } else {
        findings.iter().flat_map(Finding::lines).for_each(|line| print(&line));
        print(&summary(problems));
    }
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(problems: usize) -> String {
    match problems {
        0 => "no problems; docs/operating/rdma.md explains each line".to_owned(),
        1 => "1 problem; docs/operating/rdma.md explains each line".to_owned(),
        many => format!("{many} problems; docs/operating/rdma.md explains each line"),
    }
}

/// The directory, or the first above it that is there.
fn nearest(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|place| place.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_what_to_change_is_another() {
        let found = Finding::problem("memlock", "8 MiB", "ulimit -l unlimited");
        let change = "                         change: ulimit -l unlimited";
        assert_eq!(found.lines(), ["PROBLEM memlock          8 MiB", change]);
        assert_eq!(Finding::note("clock", "hpet", "").lines(), ["note    clock            hpet"]);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_tried_where_it_will_be() {
        let here = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&here.path().join("a/b")), here.path());
    }
}
