//! `halfmoon bench`: measurements on a cluster that the command starts itself.

mod failover;
mod replace;
mod transport;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use halfmoon_bench::log::{Floors, IDLE_EVERY, LogBench, Point, floors};
use halfmoon_wire::NodeId;
use serde_json::json;

use crate::cli::{Bench, BenchLog, PassedOn, SEGMENT_MIB, log_table_mib_usual};
use crate::commands::show::print;
use crate::layout::{EnginePorts, Layout};
use crate::supervisor::{Options, Supervisor};

/// The benchmark's own id among the engines.
const BENCH_NODE: NodeId = NodeId(99);
/// The id of who reads the log in the end.
const READER_NODE: NodeId = NodeId(98);
/// The depth and size whose rate has a name of its own in the JSON.
const NAMED: (usize, usize) = (128, 256);

pub(crate) fn run(what: &Bench, passed_on: PassedOn) -> anyhow::Result<ExitCode> {
    match what {
        Bench::Log(options) => log(options, passed_on),
        Bench::Failover(options) => failover::run(options, passed_on),
        Bench::Transport(options) => transport::run(options),
    }
}

/// Does something in the directory, or in one that is there until it has succeeded.
fn with_directory<R>(
    directory: Option<&PathBuf>,
    act: impl FnOnce(&Path) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let place = match directory {
        Some(directory) => directory.clone(),
        // Here, not in /tmp: that is memory on many machines, and a flush of memory costs nothing.
        None => std::env::current_dir()?.join(format!("halfmoon-bench-{}", std::process::id())),
    };
    std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let result = act(&place);
    if directory.is_none() && result.is_ok() {
        std::fs::remove_dir_all(&place).ok();
    }
    result
}

fn log(options: &BenchLog, passed_on: PassedOn) -> anyhow::Result<ExitCode> {
    let measured = with_directory(options.data_dir.as_ref(), |directory| {
        measure(options, passed_on, directory)
    });
    let measured = measured?;
    if options.json {
        print(&as_json(options, &measured).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    show(options, &measured);
    Ok(ExitCode::SUCCESS)
}

/// One append at a time, beside the floors measured at the same pace.
struct Single {
    floors: Floors,
    append: Point,
}

struct Measured {
    /// On a schedule, slowly: everything is asleep before each.
    idle: Single,
    /// Each as soon as the one before is acknowledged.
    back_to_back: Single,
    points: Vec<Point>,
}

impl Single {
    #[expect(clippy::cast_precision_loss, reason = "a latency in µs, for a ratio")]
    fn ratio(&self) -> f64 {
        self.append.p50_us as f64 / self.floors.append_us()
    }
}

fn measure(options: &BenchLog, passed_on: PassedOn, directory: &Path) -> anyhow::Result<Measured> {
    let say = |text: &str| {
        if !options.json {
            print(text);
        }
    };
    let both = || anyhow::Ok((floors(directory, IDLE_EVERY)?, floors(directory, Duration::ZERO)?));
    say("measuring the floors D and F …");
    let before = both()?;
    let layout = Layout::new(Some(directory.join("state")))?;
    let founded = layout.found(options.durability.into(), None)?;
    let supervised = Options {
        ports: EnginePorts::new(0, 0)?,
        standbys: options.standbys,
        spares: 0,
        replace_after_s: 0,
        segment_mib: SEGMENT_MIB,
        log_table_mib: log_table_mib_usual(),
        passed_on,
        relays: false,
        log_files: true,
    };
    let supervisor = Supervisor::start(layout.clone(), founded, supervised)?;
    let lasting = Duration::from_secs(options.seconds);
    let mut bench = LogBench::join(layout.open()?, BENCH_NODE)
        .with_context(|| format!("the nodes' logs are in {}/*.log", layout.root().display()))?;
    say("measuring appends one at a time …");
    let idle = bench.idle(NAMED.1, lasting)?;
    let back_to_back = bench.peak(1, NAMED.1, lasting)?;
    let mut points = Vec::new();
    for size in &options.size {
        for depth in &options.depth {
            say(&format!("measuring {size} bytes, {depth} in flight …"));
            points.push(bench.peak(*depth, *size, lasting)?);
        }
    }
    drop(bench);
    supervisor.stop();
    say("measuring the floors again …");
    let after = both()?;
    Ok(Measured {
        idle: Single { floors: before.0.between(after.0), append: idle },
        back_to_back: Single { floors: before.1.between(after.1), append: back_to_back },
        points,
    })
}

fn as_json(options: &BenchLog, measured: &Measured) -> serde_json::Value {
    let Measured { idle, back_to_back, points } = measured;
    let named = points.iter().find(|point| (point.depth, point.size_bytes) == NAMED);
    json!({
        "d_us": idle.floors.d_us,
        "f_us": idle.floors.f_us,
        "floor_us": idle.floors.append_us(),
        "idle_p50_us": idle.append.p50_us,
        "idle_p99_us": idle.append.p99_us,
        "idle_ratio": idle.ratio(),
        "back_to_back": {
            "d_us": back_to_back.floors.d_us,
            "f_us": back_to_back.floors.f_us,
            "floor_us": back_to_back.floors.append_us(),
            "p50_us": back_to_back.append.p50_us,
            "p99_us": back_to_back.append.p99_us,
            "ratio": back_to_back.ratio(),
        },
        "rate_256b_128_per_s": named.map(|point| point.rate_per_s),
        "points": points,
        "standbys": options.standbys,
        "durability": options.durability.name(),
        "transport": "tcp",
    })
}

fn show(options: &BenchLog, measured: &Measured) {
    print("one append at a time   D µs   F µs   3D+F   p50 µs   p99 µs   p50 / (3D+F)");
    for (name, single) in
        [("idle, on a schedule", &measured.idle), ("back to back", &measured.back_to_back)]
    {
        print(&format!(
            "{name:<21} {:>6.0} {:>6.0} {:>6.0} {:>8} {:>8} {:>14.2}",
            single.floors.d_us,
            single.floors.f_us,
            single.floors.append_us(),
            single.append.p50_us,
            single.append.p99_us,
            single.ratio()
        ));
    }
    print("  bytes  in flight   appends/s   p50 µs   p99 µs");
    for point in &measured.points {
        print(&format!(
            "{:>7} {:>10} {:>11.0} {:>8} {:>8}",
            point.size_bytes, point.depth, point.rate_per_s, point.p50_us, point.p99_us
        ));
    }
    print(&format!(
        "durability: {}; transport: tcp; standbys: {}; all roles on this machine",
        options.durability.name(),
        options.standbys
    ));
}
