//! Prints how many 256 B messages a second go to another process and come back: `cargo run
//! --release -p halfmoon-tcp --example message_rate`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use halfmoon_reactor::{Options, Reactor, SharedReactor};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{Endpoint, EndpointOptions, Event, LaneId};

const MESSAGES: usize = 500_000;
const BYTES: usize = 256;

fn end() -> (SharedReactor, Endpoint<Tcp>) {
    let reactor = Reactor::shared(Options::default()).unwrap();
    let endpoint = Endpoint::new(Tcp::new(reactor.clone()), EndpointOptions::new(Vec::new()));
    (reactor, endpoint)
}

/// Sends everything back, until the lane goes down.
fn echo() {
    let (reactor, mut endpoint) = end();
    println!("{}", endpoint.listen("127.0.0.1:0").unwrap());
    let (mut back, mut lane, mut over) = (Vec::new(), None, false);
    while !over {
        let turn = endpoint.poll(&mut |event| match event {
            Event::Message { bytes, .. } => back.extend_from_slice(bytes),
            Event::Up { lane: up, .. } => lane = Some(up),
            Event::Down { .. } => over = true,
            Event::Written { .. } | Event::Room { .. } => {}
        });
        if let Some(lane) = lane {
            for message in back.chunks(BYTES) {
                endpoint.send(lane, &[message]).unwrap();
            }
        }
        back.clear();
        endpoint.flush();
        let wait = if turn.more { Duration::ZERO } else { Duration::from_secs(1) };
        reactor.borrow_mut().wait(wait).unwrap();
    }
}

/// Messages a second with so many on their way.
fn rate(reactor: &SharedReactor, endpoint: &mut Endpoint<Tcp>, lane: LaneId, depth: usize) -> f64 {
    let (mut sent, mut received) = (0, 0);
    let start = Instant::now();
    while received < MESSAGES {
        while sent < MESSAGES && sent - received < depth {
            endpoint.send(lane, &[&[7; BYTES]]).unwrap();
            sent += 1;
        }
        endpoint.flush();
        reactor.borrow_mut().wait(Duration::from_secs(1)).unwrap();
        endpoint.poll(&mut |event| match event {
            Event::Message { .. } => received += 1,
            Event::Up { .. } | Event::Down { .. } | Event::Written { .. } | Event::Room { .. } => {}
        });
    }
    MESSAGES as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("echo") {
        return echo();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("echo")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let (reactor, mut endpoint) = end();
    let lane = endpoint.dial(address.trim()).unwrap();
    while !endpoint.is_up(lane) {
        reactor.borrow_mut().wait(Duration::from_secs(1)).unwrap();
        endpoint.poll(&mut |_| {});
    }
    for depth in [1, 128, 1024] {
        let rate = rate(&reactor, &mut endpoint, lane, depth);
        println!("{depth} on their way: {rate:.0}/s there and back");
    }
    endpoint.close(lane);
    endpoint.flush();
    reactor.borrow_mut().wait(Duration::ZERO).unwrap();
    drop(endpoint);
    child.wait().unwrap();
}
