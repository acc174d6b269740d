//! `halfmoon demo`: the main job.

mod elsewhere;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use halfmoon_bench::chaos::{Nodes, Plan};
use halfmoon_bench::cluster::{Carried, Gateways, wait_until_up};
use halfmoon_bench::demo::{self, Options, Outcome, Protocol};
use halfmoon_bench::report::{self, Provenance};
use halfmoon_verify::Report;
use serde_json::json;

use crate::cli::{Demo, PassedOn, Transport, log_table_mib_usual};
use crate::commands::{show::print, verify};
use crate::layout::{EnginePorts, Layout};
use crate::supervisor::{self, Supervisor};

/// How long the cluster may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// What is different under two of the protocols.
const BASELINES: &str = "under boki and unlogged, which have no transactions, a reservation is a write \
    to the hotel and then one to the flight, and no two clients share a row";

pub(crate) fn run(arguments: Demo, passed_on: PassedOn) -> anyhow::Result<ExitCode> {
    if let Some(meta) = &arguments.cluster {
        return elsewhere::run(&arguments, meta);
    }
    let options = options(&arguments)?;
    let begin = Instant::now();
    let json = arguments.json;
    let say = move |line: String| say(begin, json, &line);
    say("starting 2 sequencers (one stands by), 3 storage nodes and 2 engines as processes of this \
         machine"
        .into());
    say(BASELINES.into());
    if let Some(why) = halfmoon_rdma::lacking(arguments.transport.into()) {
        say(format!("no RDMA here ({why}): nodes talk over TCP"));
    }
    let state = arguments.output.join("state");
    remove(&state)?;
    let layout = Layout::new(Some(state.clone()))?;
    let founded = layout.found(halfmoon_meta::Durability::Flush, None)?;
    let supervised = supervisor::Options {
        ports: EnginePorts::new(0, 2)?,
        standbys: 1,
        spares: u32::from(arguments.chaos),
        replace_after_s: 0,
        segment_mib: arguments.segment_mib,
        log_table_mib: log_table_mib_usual(),
        passed_on,
        relays: relays(&arguments),
        log_files: true,
    };
    let supervisor = Supervisor::start(layout.clone(), founded, supervised)?;
    let gateways = Arc::new(Gateways::new(supervisor.cluster()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let binary = std::env::current_exe().context("cannot tell where this program lies")?;
    let outcomes = runtime.block_on(async {
        tokio::select! {
            outcomes = async {
                wait_until_up(&gateways, UP_WITHIN).await?;
                say(format!("the cluster is up after {:.2} s", begin.elapsed().as_secs_f64()));
                demo::run(Arc::clone(&gateways), &binary, &options, &say).await
            } => outcomes,
            () = crate::stop::wait_for_signal() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    drop(runtime);
    let cluster = supervisor.cluster();
    supervisor.stop();
    // Only now, when the nodes have noted the last of it.
    let carried = cluster.carried();
    let outcomes = outcomes
        .with_context(|| format!("the logs of all nodes are in {}/*.log", state.display()))?;
    let provenance = provenance(&options, &arguments, carried);
    let page = report::write(&arguments.output, &outcomes, &provenance)?;
    let disks = arguments.chaos.then(|| verify::cluster(&layout, |line| say(line.into())));
    let disks = disks.transpose()?;
    let is_sound = disks.as_ref().is_none_or(|report| report.flaws == 0);
    let passes = report::verdict(&outcomes).passes() && is_sound;
    if passes {
        remove(&state)?;
    }
    if arguments.json {
        let mut object = report::json(&outcomes, &provenance);
        object["flaws_on_disks"] = json!(disks.map(|report| report.flaws));
        print(&object.to_string());
    } else {
        conclude(&outcomes, disks.as_ref(), carried, &page.display().to_string(), begin);
    }
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The last lines: the table, the damage without logging, the report's place, the verdict.
fn conclude(
    outcomes: &[Outcome],
    disks: Option<&Report>,
    carried: Option<Carried>,
    page: &str,
    begin: Instant,
) {
    let verdict = report::verdict(outcomes);
    print("");
    print(report::table(outcomes).trim_end());
    for example in outcomes
        .iter()
        .filter(|outcome| outcome.protocol.is_logged())
        .flat_map(|outcome| &outcome.findings.examples)
    {
        print(&format!("  damaged: {example}"));
    }
    report::other_faults(outcomes).iter().for_each(|line| print(line));
    if let Some(report) = disks {
        report.told.iter().for_each(|flaw| print(&format!("  FLAW on a disk: {flaw}")));
        print(&format!(
            "disks of {} storage nodes: {} records, flaws {}",
            report.replicas.len(),
            report.records,
            report.flaws
        ));
    }
    match verdict.unlogged_damage {
        Some(0) => print(
            "unlogged: NO damage was found, so these kills prove nothing; the run counts as failed",
        ),
        Some(damage) => print(&format!(
            "unlogged: {damage} effects lost or doubled by the same kills: this is what logging is for"
        )),
        None => {}
    }
    carried.into_iter().for_each(|carried| print(&carried.described()));
    print(&format!("report: {page} ({:.0} s)", begin.elapsed().as_secs_f64()));
    print(&format!("lost {}, doubled {}", verdict.lost, verdict.doubled));
}

#[expect(clippy::print_stderr, reason = "progress, apart from what the command prints")]
fn say(begin: Instant, json: bool, line: &str) {
    let line = format!("[{:>5.1} s] {line}", begin.elapsed().as_secs_f64());
    if json || std::io::stdout().is_terminal() {
        eprintln!("{line}");
    } else {
        print(&line);
    }
}

fn remove(directory: &std::path::Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", directory.display())),
    }
}

fn options(arguments: &Demo) -> anyhow::Result<Options> {
    let mut protocols = Vec::new();
    for name in &arguments.protocols {
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
        protocols.push(protocol.with_context(|| {
            let known = Protocol::ALL.map(Protocol::name).join(", ");
            format!("no protocol is called {name}; there are {known}")
        })?);
    }
    if protocols.is_empty() {
        protocols.extend(Protocol::ALL);
    }
    anyhow::ensure!(arguments.rate > 0.0, "--rate must be above 0");
    let tenth = |n: u32| if arguments.quick { n.div_ceil(10) } else { n };
    Ok(Options {
        protocols,
        slices: arguments.slices,
        slice: if arguments.quick {
            Duration::from_secs(1)
        } else {
            Duration::from_secs(arguments.seconds)
        },
        rate_per_s: arguments.rate,
        reservations: tenth(arguments.reservations),
        reservations_per_s: 40.0,
        faults: plan(arguments),
    })
}

/// Whether nodes dial each other through relays. What goes through one goes over TCP.
fn relays(arguments: &Demo) -> bool {
    arguments.chaos && arguments.transport != Transport::Rdma
}

/// What happens to the cluster under each protocol.
fn plan(arguments: &Demo) -> Plan {
    let (quick, chaos) = (arguments.quick, arguments.chaos);
    // As many are stopped as are cut off.
    let away = match (chaos, quick) {
        (false, _) => Nodes::default(),
        (true, true) => Nodes { engines: 1, storage: 1, sequencers: 1 },
        (true, false) => Nodes { engines: 1, storage: 1, sequencers: 2 },
    };
    Plan {
        workers: if quick { 2 } else { 20 },
        kills: Nodes {
            engines: if quick { 1 } else { 2 },
            storage: 1,
            sequencers: if chaos && !quick { 3 } else { 1 },
        },
        stops: away,
        cuts: if relays(arguments) { away } else { Nodes::default() },
        replacements: u32::from(chaos),
        pause: Duration::from_millis(900),
    }
}

/// What the nodes of this machine talk over.
const fn carrier(transport: Transport, through_relays: bool) -> &'static str {
    match transport {
        Transport::Auto | Transport::Tcp if through_relays => {
            "tcp, loopback, through relays that can cut nodes off"
        }
        // Nodes listen on the loopback address, which few adapters have.
        Transport::Auto => "rdma where the loopback address has a device, else tcp, loopback",
        Transport::Tcp => "tcp, loopback",
        Transport::Rdma => "rdma, else tcp, on an adapter of this machine",
    }
}

fn provenance(options: &Options, arguments: &Demo, carried: Option<Carried>) -> Provenance {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Provenance {
        version: format!("halfmoon {}", env!("CARGO_PKG_VERSION")),
        host: format!("Linux {}, {cpus} processors, all roles on them", kernel.trim()),
        transport: carrier(arguments.transport, relays(arguments)).into(),
        carried,
        durability: "flush: two of three before an acknowledgement".into(),
        load: format!(
            "mix at {} requests/s in slices of {} s, alternating; reservations at {}/s",
            options.rate_per_s,
            options.slice.as_secs(),
            options.reservations_per_s
        ),
    }
}
