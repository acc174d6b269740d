//! `halfmoon bench`: measurements on a cluster that the command starts itself.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use halfmoon_bench::log::{Floors, LogBench, Point, floors};
use halfmoon_wire::NodeId;
use serde_json::json;

use crate::cli::{Bench, BenchLog, Durability, SEGMENT_MIB};
use crate::commands::show::print;
use crate::layout::Layout;
use crate::supervisor::{Options, Supervisor};

/// The benchmark's own id among the engines.
const BENCH_NODE: NodeId = NodeId(99);
/// The depth and size whose rate has a name of its own in the JSON.
const NAMED: (usize, usize) = (128, 256);

pub(crate) fn run(what: &Bench, verbose: u8) -> anyhow::Result<ExitCode> {
    match what {
        Bench::Log(options) => log(options, verbose),
    }
}

fn log(options: &BenchLog, verbose: u8) -> anyhow::Result<ExitCode> {
    let directory = match &options.data_dir {
        Some(directory) => directory.clone(),
        // Here, not in /tmp: that is memory on many machines, and a flush of memory costs nothing.
        None => std::env::current_dir()?.join(format!("halfmoon-bench-{}", std::process::id())),
    };
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let measured = measure(options, verbose, &directory);
    if options.data_dir.is_none() {
        std::fs::remove_dir_all(&directory).ok();
    }
    let (floors, idle, points) = measured?;
    if options.json {
        print(&as_json(options, &floors, &idle, &points).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    show(options, &floors, &idle, &points);
    Ok(ExitCode::SUCCESS)
}

fn measure(
    options: &BenchLog,
    verbose: u8,
    directory: &std::path::Path,
) -> anyhow::Result<(Floors, Point, Vec<Point>)> {
    let say = |text: &str| {
        if !options.json {
            print(text);
        }
    };
    say("measuring the floors D and F …");
    let before = floors(directory)?;
    let layout = Layout::new(Some(directory.join("state")))?;
    let meta = layout.found(options.durability.into())?;
    let supervised =
        Options { engines: 0, port: 0, segment_mib: SEGMENT_MIB, verbose, log_files: true };
    let supervisor = Supervisor::start(layout.clone(), meta, &supervised)?;
    let lasting = Duration::from_secs(options.seconds);
    let mut bench = LogBench::join(layout.open()?, BENCH_NODE)
        .with_context(|| format!("the nodes' logs are in {}/*.log", layout.root().display()))?;
    say("measuring idle appends …");
    let idle = bench.idle(NAMED.1, lasting)?;
    let mut points = Vec::new();
    for size in &options.size {
        for depth in &options.depth {
            say(&format!("measuring {size} bytes, {depth} in flight …"));
            points.push(bench.peak(*depth, *size, lasting)?);
        }
    }
    drop(bench);
    supervisor.stop();
    let after = floors(directory)?;
    // Machines drift: the floors from before and after, together, are the run's.
    let floors = Floors {
        d_us: f64::midpoint(before.d_us, after.d_us),
        f_us: f64::midpoint(before.f_us, after.f_us),
    };
    Ok((floors, idle, points))
}

fn as_json(
    options: &BenchLog,
    floors: &Floors,
    idle: &Point,
    points: &[Point],
) -> serde_json::Value {
    let named = points.iter().find(|point| (point.depth, point.size_bytes) == NAMED);
    json!({
        "d_us": floors.d_us,
        "f_us": floors.f_us,
        "floor_us": floor(floors),
        "idle_p50_us": idle.p50_us,
        "idle_p99_us": idle.p99_us,
        "idle_ratio": ratio(floors, idle),
        "rate_256b_128_per_s": named.map(|point| point.rate_per_s),
        "points": points,
        "durability": durability(options.durability),
        "transport": "tcp",
    })
}

fn show(options: &BenchLog, floors: &Floors, idle: &Point, points: &[Point]) {
    print(&format!(
        "D {:.0} µs (one-way delay), F {:.0} µs (one flush, 2nd of 3): floor 3D + F = {:.0} µs",
        floors.d_us,
        floors.f_us,
        floor(floors)
    ));
    print(&format!(
        "idle append: p50 {} µs, p99 {} µs, {:.2} × the floor",
        idle.p50_us,
        idle.p99_us,
        ratio(floors, idle)
    ));
    print("  bytes  in flight   appends/s   p50 µs   p99 µs");
    for point in points {
        print(&format!(
            "{:>7} {:>10} {:>11.0} {:>8} {:>8}",
            point.size_bytes, point.depth, point.rate_per_s, point.p50_us, point.p99_us
        ));
    }
    print(&format!(
        "durability: {}; transport: tcp; all roles on this machine",
        durability(options.durability)
    ));
}

fn floor(floors: &Floors) -> f64 {
    3.0 * floors.d_us + floors.f_us
}

#[expect(clippy::cast_precision_loss, reason = "a latency in µs, for a ratio")]
fn ratio(floors: &Floors, idle: &Point) -> f64 {
    idle.p50_us as f64 / floor(floors)
}

const fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::Flush => "flush",
        Durability::MemoryQuorum => "memory-quorum",
    }
}
