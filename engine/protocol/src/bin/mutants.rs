//! Replays the broken variants of the protocols: one line each, and failure if one survives.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use halfmoon_protocol::check::mutants;

fn main() -> io::Result<ExitCode> {
    let mut out = io::stdout();
    let mut survived = 0;
    let verdicts = mutants::run(|verdict| {
        let line = match &verdict.caught {
            Ok(by) => format!("{}: caught by {by}", verdict.rule),
            Err(by) => {
                survived += 1;
                format!("{}: SURVIVED {by}", verdict.rule)
            }
        };
        // A closed pipe is noticed by the last line.
        drop(writeln!(out, "{line}"));
    });
    let mut out = io::stdout();
    for name in mutants::NOT_YET_BUILT {
        writeln!(out, "{name}: not yet built")?;
    }
    writeln!(out, "mutants {}, survived {survived}", verdicts.len())?;
    Ok(if survived == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
