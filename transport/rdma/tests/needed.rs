//! A program with RDMA starts where libibverbs is not installed.
#![cfg(feature = "verbs")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use halfmoon_rdma::Rdma;

#[test]
fn the_program_does_not_need_the_libraries_to_start() {
    // The transport is part of this program.
    std::hint::black_box(Rdma::new as fn(_, _) -> _);
    let this = std::env::current_exe().unwrap();
    let output = Command::new("readelf").arg("-d").arg(this).output().expect("binutils");
    let text = String::from_utf8(output.stdout).unwrap();
    let needed: Vec<&str> = text.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.iter().any(|line| line.contains("libc.so")), "{text}");
    let of_rdma = |line: &&&str| line.contains("ibverbs") || line.contains("rdmacm");
    assert_eq!(needed.iter().find(of_rdma), None);
}
