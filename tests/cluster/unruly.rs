//! Functions that misbehave harm nobody but their own caller, who is told.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Dev, HALFMOON, Scratch, block_on, example, halfmoon, text};

/// What the command says of a call that fails.
fn complaint(dev: &Dev, arguments: &[&str]) -> String {
    let mut all = vec!["invoke", "--server"];
    let server = dev.server();
    all.push(&server);
    all.extend(arguments);
    let output = halfmoon(&all);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

/// A cluster with the functions of the example, and how often `count` was called.
struct Unruly {
    dev: Dev,
    counted: u64,
}

impl Unruly {
    fn start(scratch: &Scratch) -> Self {
        let dev = Dev::start(&scratch.path("data"));
        dev.deploy(&example("unruly"));
        Self { dev, counted: 0 }
    }

    /// Others are served, by the same engine, and nothing of theirs is lost.
    fn others_are_served(&mut self) {
        self.counted += 1;
        let output = halfmoon(&["invoke", "count", "others", "--server", &self.dev.server()]);
        assert_eq!(text(&output.stdout), format!("{}\n", self.counted), "{}", text(&output.stderr));
    }
}

#[test]
fn a_worker_that_crashes_in_the_middle_is_replaced_and_its_effect_happens_once() {
    let scratch = Scratch::new();
    let mut unruly = Unruly::start(&scratch);
    let marker = scratch.path("marker");
    let marker = marker.to_str().unwrap();
    for times in [1, 2] {
        let output = halfmoon(&["invoke", "crash_once", marker, "--server", &unruly.dev.server()]);
        assert_eq!(text(&output.stdout), format!("{times}\n"), "{}", text(&output.stderr));
    }
    assert!(std::fs::exists(marker).unwrap(), "it did crash");
    unruly.others_are_served();
}

#[test]
fn a_worker_that_always_crashes_is_given_up_and_its_caller_is_told() {
    let scratch = Scratch::new();
    let mut unruly = Unruly::start(&scratch);
    let said = complaint(&unruly.dev, &["crash"]);
    assert!(said.contains("SIGABRT") && said.contains("no effect"), "{said}");
    unruly.others_are_served();
}

#[test]
fn a_worker_that_never_answers_is_killed_at_its_time_and_its_caller_is_told() {
    let scratch = Scratch::new();
    let mut unruly = Unruly::start(&scratch);
    block_on(async {
        let hang = unruly.dev.invoke("hang", &Value::Null, None).await.unwrap();
        assert_eq!(hang.status, 503, "{}", text(&hang.body));
        assert!(text(&hang.body).contains("1000 ms"), "{}", text(&hang.body));
    });
    unruly.others_are_served();
}

#[test]
fn a_caller_that_waits_less_than_its_function_takes_hears_that_it_still_runs() {
    let scratch = Scratch::new();
    let mut unruly = Unruly::start(&scratch);
    let server = unruly.dev.server();
    let output = halfmoon(&["invoke", "hang", "--timeout", "0", "--server", &server]);
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("running as "), "{}", text(&output.stdout));
    unruly.others_are_served();
}

#[test]
fn a_worker_that_scribbles_over_its_rings_is_killed_and_its_caller_is_told() {
    let scratch = Scratch::new();
    let mut unruly = Unruly::start(&scratch);
    let said = complaint(&unruly.dev, &["scribble"]);
    assert!(said.contains("ring") && said.contains("no effect"), "{said}");
    unruly.others_are_served();
}

#[test]
fn what_is_larger_than_it_may_be_is_refused_with_the_limit() {
    let scratch = Scratch::new();
    let mut unruly = Unruly::start(&scratch);
    let said = complaint(&unruly.dev, &["grow", &((16 << 20) + 1).to_string()]);
    assert!(said.contains("16777216"), "{said}");
    unruly.others_are_served();
    let said = complaint(&unruly.dev, &["shout", &(64 << 20).to_string()]);
    assert!(said.contains("result"), "{said}");
    unruly.others_are_served();
    let long = "k".repeat(2000);
    let said = complaint(&unruly.dev, &["count", &long]);
    assert!(said.contains("2000") && said.contains("1024"), "{said}");
    unruly.others_are_served();
}

#[test]
fn an_input_that_is_larger_than_it_may_be_is_refused_with_what_to_do_instead() {
    let scratch = Scratch::new();
    let mut unruly = Unruly::start(&scratch);
    let input = scratch.path("input");
    std::fs::write(&input, vec![b'a'; (8 << 20) + 1]).unwrap();
    let output = Command::new(HALFMOON)
        .args(["invoke", "count", "-", "--server", &unruly.dev.server()])
        .stdin(File::open(&input).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("8388608") && said.contains("pass its key"), "{said}");
    unruly.others_are_served();
    // The engine has the same limit, whoever asks.
    let mut stream = std::net::TcpStream::connect(unruly.dev.engines[0]).unwrap();
    let head = "POST /v1/functions/count/invoke HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n", (8 << 20) + 1).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("8388608"), "{answer}");
    write_and_invoke(&unruly.dev, &input, 8 << 20);
    unruly.others_are_served();
}

/// An input of so many bytes reaches the function.
fn write_and_invoke(dev: &Dev, input: &Path, bytes: usize) {
    std::fs::write(input, vec![b'1'; bytes]).unwrap();
    let output = Command::new(HALFMOON)
        .args(["invoke", "measure", "-", "--server", &dev.server()])
        .stdin(File::open(input).unwrap())
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), format!("{bytes}\n"), "{}", text(&output.stderr));
}
