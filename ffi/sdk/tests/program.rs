//! The example program, run as a process: described, started by hand, and served by an engine.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::Command;

use halfmoon::testing::{Ended, FakeEngine, ProcessLaunch};

/// The example lies beside the directory of this test.
fn counter() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/counter");
    assert!(program.exists(), "cargo builds the examples with the tests: {program:?}");
    program
}

#[test]
fn a_program_started_by_hand_says_what_to_do() {
    let output = Command::new(counter()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("halfmoon deploy"), "{text}");
}

#[test]
fn a_program_describes_itself() {
    let output = Command::new(counter()).env(halfmoon::DESCRIBE_ENV, "1").output().unwrap();
    assert!(output.status.success());
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(manifest["functions"][1]["name"], "look");
    assert_eq!(manifest["functions"][1]["read_only"], true);
}

#[test]
fn a_program_serves_its_engine() {
    let mut engine = FakeEngine::new(ProcessLaunch(|| Command::new(counter()))).unwrap();
    for n in 1..=3 {
        let count = Ended::Returned(n.to_string().into_bytes());
        assert_eq!(engine.invoke("count", b"visits").unwrap(), count);
    }
    assert_eq!(engine.invoke("look", b"visits").unwrap(), Ended::Returned(b"3".to_vec()));
    assert_eq!(engine.object("counters", b"visits"), Some(&b"3"[..]));
}

#[test]
fn a_bad_descriptor_is_an_error_with_a_name() {
    let run = |fd: &str| {
        let mut command = Command::new(counter());
        command.env("HALFMOON_CHANNEL_FD", fd).env("HALFMOON_DOORBELL_FD", "1");
        command.output().unwrap()
    };
    for fd in ["x", "900", "2", "-1"] {
        let output = run(fd);
        assert_eq!(output.status.code(), Some(69), "{fd}");
        assert!(output.stderr.starts_with(b"halfmoon: "), "{fd}");
    }
}
