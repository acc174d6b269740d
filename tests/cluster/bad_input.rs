//! What is wrong gets a clear error, and harms nobody else.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::{Dev, HALFMOON, PATIENCE, Scratch, block_on, halfmoon, text};

#[test]
fn an_unknown_function_is_named_together_with_ones_that_exist() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    dev.deploy(HALFMOON);
    let output = halfmoon(&["invoke", "serch", "{}", "--server", &dev.server()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("serch") && said.contains("search"), "{said}");
}

#[test]
fn malformed_http_is_refused_and_others_are_served() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    dev.deploy(HALFMOON);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for noise in ["\0\0\0\0\r\n\r\n", "POST / HTTP/9.9\r\n\r\n", "GET\r\n\r\n", &long] {
        let mut stream = TcpStream::connect(dev.engines[0]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may close before it has read all of it.
        stream.write_all(noise.as_bytes()).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert!(answer.is_empty() || text(&answer).starts_with("HTTP/1.1 4"), "{}", text(&answer));
    }
    block_on(async {
        assert_eq!(dev.result("order", &json!({"id": "a"}), None).await, json!(1));
    });
}

#[test]
fn something_that_is_no_function_binary_is_not_deployed() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    let file = scratch.path("nonsense");
    std::fs::write(&file, "this is no executable").unwrap();
    let output = halfmoon(&["deploy", file.to_str().unwrap(), "--server", &dev.server()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("not deployed"), "{}", text(&output.stderr));
    let output = halfmoon(&["deploy", "/bin/true", "--server", &dev.server()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let said = text(&output.stderr);
    assert!(said.contains("/bin/true") && said.contains("halfmoon::serve"), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let scratch = Scratch::new();
    let file = scratch.path("file");
    std::fs::write(&file, "").unwrap();
    let under = file.join("data");
    let output = halfmoon(&["dev", "--port", "0", "--data-dir", under.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("--data-dir") && said.contains("file/data"), "{said}");
}

#[test]
fn a_command_without_a_cluster_says_how_to_start_one() {
    let scratch = Scratch::new();
    let data = scratch.path("nothing");
    let output = halfmoon(&["status", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("halfmoon dev"), "{}", text(&output.stderr));
}
