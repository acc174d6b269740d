//! Planted bugs: rules of the log, the state store and the protocols, broken one by one. A run that
//! ends in a panic has found its bug as well, so each has a process of its own.

use std::process::{Command, ExitCode, Stdio};

use halfmoon_protocol::broken::Broken as ProtocolRule;
use halfmoon_sim::run;
use halfmoon_wire::broken::Broken as Rule;

/// Seeds within which a planted bug has to be found.
const SEEDS_MAX: u64 = 2000;

/// Rules of the protocols that the functions of the simulated world depend on. The exhaustive tests
/// of the protocols know all of them.
const PROTOCOL_RULES: &[ProtocolRule] = &[
    ProtocolRule::UncheckedReads,
    ProtocolRule::AdoptedNothing,
    ProtocolRule::ReplyBeforeInit,
    ProtocolRule::IgnoredCursor,
];

/// Plants every bug in turn; says who found it. Succeeds if all were found.
pub(crate) fn all() -> ExitCode {
    let names = Rule::ALL.iter().map(|rule| format!("{rule:?}"));
    let names = names.chain(PROTOCOL_RULES.iter().map(|rule| format!("{rule:?}")));
    let (mut count, mut survived) = (0, 0);
    for name in names {
        count += 1;
        let found = match find(&name) {
            Ok(found) => found,
            Err(error) => {
                eprintln!("cannot run the simulator: {error}");
                return ExitCode::from(2);
            }
        };
        survived += u64::from(found.is_none());
        println!("{name}: {}", found.as_deref().unwrap_or("SURVIVED"));
    }
    println!("mutants {count}, survived {survived}");
    if survived == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What finds a planted bug, in a process of its own.
fn find(name: &str) -> std::io::Result<Option<String>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--mutant", name]).stderr(Stdio::null());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default().to_owned();
    Ok(match output.status.code() {
        Some(0) => None,
        Some(1) => Some(last),
        _ => Some(format!("{last}, which ends in a panic")),
    })
}

/// Plants one bug and runs seeds until one finds it. Succeeds if none does.
pub(crate) fn one(name: &str, first: u64, seeds: Option<u64>) -> ExitCode {
    let rule = Rule::ALL.iter().find(|rule| format!("{rule:?}") == name).copied();
    let protocol = PROTOCOL_RULES.iter().find(|rule| format!("{rule:?}") == name).copied();
    if rule.is_none() && protocol.is_none() {
        eprintln!("there is no rule {name}");
        return ExitCode::from(2);
    }
    halfmoon_wire::broken::set(rule);
    halfmoon_protocol::broken::set(protocol);
    for seed in first..first.saturating_add(seeds.unwrap_or(SEEDS_MAX)) {
        println!("seed {seed}");
        if let Some(violation) = run(seed).violation {
            println!("found by seed {seed}: {violation}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
