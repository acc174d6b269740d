//! Prints D and F of this machine: `cargo run --release -p halfmoon-tcp --example floor`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]
use std::time::Duration;

fn p50(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn main() {
    for backend in [halfmoon_reactor::Backend::Uring, halfmoon_reactor::Backend::Poll] {
        let options = halfmoon_reactor::Options { backend: Some(backend), ..Default::default() };
        let delays = halfmoon_tcp::floor::one_way_delays(5000, Duration::ZERO, options).unwrap();
        println!("D {backend:?}: {:?}", p50(delays));
    }
    let dir = std::env::current_dir().unwrap();
    let writes = halfmoon_reactor::floor::durable_writes(&dir, 3, 500, Duration::ZERO).unwrap();
    println!("F (2nd of 3): {:?}", p50(writes.into_iter().map(|round| round[1]).collect()));
}
