//! `halfmoon dev`: a whole cluster on this machine.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_bench::cluster::{Cluster, Gateways, wait_until_up};
use halfmoon_meta::cluster;

use crate::cli::{Dev, Durability, PassedOn};
use crate::commands::show::print;
use crate::layout::{EnginePorts, Layout};
use crate::supervisor::{Options, Supervisor};
use crate::{notify, roles, stop};

/// How long the cluster may take to come up before that is reported as an error.
const UP_WITHIN: Duration = Duration::from_secs(60);

impl From<Durability> for halfmoon_meta::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Flush => Self::Flush,
            Durability::MemoryQuorum => Self::MemoryQuorum,
        }
    }
}

pub(crate) fn run(options: &Dev, passed_on: PassedOn) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let layout = Layout::new(options.machine.data_dir.clone())?;
    let founded =
        layout.found(options.machine.durability.into(), options.machine.meta.as_deref())?;
    let ports = EnginePorts::new(options.port, options.machine.engines)?;
    ports.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if options.in_process {
        let roles = roles::InProcess::start(&layout, founded, &options.machine, ports)?;
        runtime.block_on(serve(begin, roles.cluster(), &layout, options))?;
        roles.stop()?;
    } else {
        let supervised = Options {
            ports,
            standbys: options.machine.standbys,
            spares: options.machine.spares,
            replace_after_s: options.machine.replace_after_s,
            segment_mib: options.machine.segment_mib,
            log_table_mib: options.machine.log_table_mib,
            passed_on,
            relays: false,
            log_files: false,
        };
        let supervisor = Supervisor::start(layout.clone(), founded, supervised)?;
        runtime.block_on(serve(begin, supervisor.cluster(), &layout, options))?;
        supervisor.stop();
    }
    print("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Says where the cluster is once it is up, and waits for the request to stop.
async fn serve(
    begin: Instant,
    cluster: Arc<dyn Cluster>,
    layout: &Layout,
    options: &Dev,
) -> anyhow::Result<()> {
    let gateways = Gateways::new(cluster);
    tokio::select! {
        up = wait_until_up(&gateways, UP_WITHIN) => up?,
        () = stop::wait_for_signal() => return Ok(()),
    }
    let engines = gateways.cluster().engines();
    let standbys = if options.in_process { 0 } else { options.machine.standbys };
    let members = cluster::read(&*layout.open()?)?.members.nodes().len();
    let spares = match options.machine.spares {
        0 => String::new(),
        spares => format!(" ({spares} spare)"),
    };
    print(&format!(
        "halfmoon is up after {:.2} s: 1 sequencer ({standbys} standing by), {members} storage \
         nodes{spares}, {engines} engines",
        begin.elapsed().as_secs_f64()
    ));
    for engine in 0..engines {
        if let Some(address) = gateways.cluster().gateway(engine) {
            print(&format!("  engine {engine}: http://{address}"));
        }
    }
    if let Some(why) = halfmoon_rdma::lacking(options.machine.transport.into()) {
        print(&format!("  no RDMA here ({why}): nodes talk over TCP"));
    }
    let durability = match options.machine.durability {
        Durability::Flush => "flushed on two of three disks before it is acknowledged",
        Durability::MemoryQuorum => "acknowledged from the memory of two of three nodes",
    };
    print(&format!("  state: {} ({durability})", layout.root().display()));
    print("next: halfmoon deploy ./your-binary, then halfmoon invoke NAME '{…}'; Ctrl-C stops");
    notify::ready();
    stop::wait_for_signal().await;
    notify::stopping();
    Ok(())
}
