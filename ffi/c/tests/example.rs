//! The C example, compiled against the header and the library, and run by an engine in memory.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use halfmoon::testing::{Ended, FakeEngine, ProcessLaunch};

/// Compiles the example into `folder`.
fn compiled(folder: &Path) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The library lies beside this test, as cargo has built it for it.
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap().join("libhalfmoon_c.a");
    assert!(library.exists(), "cargo builds the library with its tests: {library:?}");
    let program = folder.join("counter");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(compiler)
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(package.join("include"))
        .arg(package.join("../examples/c/counter.c"))
        .arg(library)
        .args(["-lpthread", "-ldl", "-lm"])
        .status()
        .expect("a C compiler is there");
    assert!(status.success());
    program
}

fn returned(text: &str) -> Ended {
    Ended::Returned(text.as_bytes().to_vec())
}

#[test]
fn the_c_example_counts_exactly_once() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled(folder.path());
    let mut engine = FakeEngine::new(ProcessLaunch(move || Command::new(&program))).unwrap();
    engine.declare_table("counters");
    engine.declare_table("receipts");
    assert_eq!(engine.invoke("look", b"a").unwrap(), returned("0"));
    assert_eq!(engine.invoke("count", b"a").unwrap(), returned("1"));
    engine.conflict_next(2);
    assert_eq!(engine.invoke("count", b"a").unwrap(), returned("2"));
    assert_eq!(engine.invoke("count", b"").unwrap(), Ended::Failed(b"name a counter".to_vec()));
    for (index, wanted) in (0..9).zip((4..).step_by(2)) {
        let before = engine.attempts();
        engine.interrupt_at(index);
        assert_eq!(engine.invoke("twice", b"a").unwrap(), returned(&wanted.to_string()));
        // Three callees and the function, and one attempt more: its own or a callee's.
        assert_eq!(engine.attempts(), before + 5, "broken off at {index}");
    }
}

#[test]
fn the_c_example_describes_itself_and_refuses_to_run_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled(folder.path());
    let described = Command::new(&program).env("HALFMOON_DESCRIBE", "1").output().unwrap();
    assert!(described.status.success());
    let manifest = String::from_utf8(described.stdout).unwrap();
    assert!(manifest.starts_with("{\"sdk\":\"c "), "{manifest}");
    assert!(manifest.contains("{\"name\":\"look\",\"read_only\":true,"), "{manifest}");
    let by_hand = Command::new(&program).output().unwrap();
    assert_eq!(by_hand.status.code(), Some(64));
}
