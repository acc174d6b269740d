//! Runs roles: one in this process until it is asked to stop, or all of them as threads.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use halfmoon_bench::cluster::{Carried, Cluster, Joining, Part};
use halfmoon_bench::partition::Way;
use halfmoon_meta::{Durability, MetaStore, cluster, nodes};
use halfmoon_rdma::Choice;
use halfmoon_reactor::Polling;
use halfmoon_transport::TrafficGauge;
use halfmoon_wire::{NodeId, Role};

use crate::cli::{Machine, RoleName, Run, Transport};
use crate::lanes::{self, LanesFile};
use crate::layout::{self, EnginePorts, Founded, Layout};
use crate::{notify, stop};

/// Runs one role in the foreground.
pub(crate) fn run(options: &Run) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    stop::on_request(options.until_stdin_ends, move || {
        asked.store(true, Ordering::Release);
        notify::stopping();
    })?;
    let meta = halfmoon_meta::open(&options.meta)?;
    let place = Place {
        node: NodeId(options.node),
        data_dir: options.data_dir.clone(),
        listen: listen(options.listen, options.transport)?,
        advertise: options.advertise,
        http: options.http,
        segment_mib: options.segment_mib,
        log_table_mib: options.log_table_mib,
        is_standby: options.standby,
        suspect_ms: options.suspect_ms,
        replace_after_s: options.replace_after_s,
        transport: options.transport.into(),
        polling: options.polling.polling(),
    };
    if notify::is_wanted() {
        tell_when_ready(Arc::clone(&meta), options.role.into(), place.node, Arc::clone(&stop))?;
    }
    run_role(options.role, place, meta, stop)?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// How often it is looked whether a role serves.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A role publishes its address in the metadata store once it serves: that is when the service
/// manager is told that it is ready.
fn tell_when_ready(
    meta: Arc<dyn MetaStore>,
    role: Role,
    node: NodeId,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let before = nodes::find(&*meta, role, node)?;
    std::thread::Builder::new().name("ready".into()).spawn(move || {
        while !stop.load(Ordering::Acquire) {
            match nodes::find(&*meta, role, node) {
                Ok(Some(entry)) if Some(&entry) != before.as_ref() => return notify::ready(),
                Ok(_) => std::thread::sleep(LOOK_EVERY),
                Err(error) => {
                    return tracing::warn!(%error, "the service manager is not told of readiness");
                }
            }
        }
    })?;
    Ok(())
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Sequencer => Self::Sequencer,
            RoleName::Storage => Self::Storage,
            RoleName::Engine => Self::Engine,
        }
    }
}

/// What was asked for; else any port of this machine only, or of its adapter where RDMA is asked for.
pub(crate) fn listen(
    asked: Option<SocketAddr>,
    transport: Transport,
) -> anyhow::Result<SocketAddr> {
    match (asked, transport) {
        (Some(asked), _) => Ok(asked),
        (None, Transport::Rdma) => {
            let adapter = halfmoon_rdma::address().map_err(anyhow::Error::msg)?;
            Ok(SocketAddr::new(adapter, 0))
        }
        (None, Transport::Auto | Transport::Tcp) => {
            Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))
        }
    }
}

impl From<Transport> for Choice {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Tcp => Self::Tcp,
            Transport::Rdma => Self::Rdma,
        }
    }
}

/// Where a node is and what it listens on.
struct Place {
    node: NodeId,
    data_dir: PathBuf,
    listen: SocketAddr,
    /// What others are told instead: where this node takes lanes or, as an engine, requests.
    advertise: Option<SocketAddr>,
    http: SocketAddr,
    segment_mib: u32,
    log_table_mib: u32,
    is_standby: bool,
    suspect_ms: u32,
    replace_after_s: u32,
    transport: Choice,
    polling: Polling,
}

fn run_role(
    role: RoleName,
    place: Place,
    meta: Arc<dyn MetaStore>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let Place { node, data_dir, listen, http, segment_mib, log_table_mib, .. } = place;
    let traffic = Arc::<TrafficGauge>::default();
    let _lanes = LanesFile::start(&data_dir, Arc::clone(&traffic))?;
    match role {
        RoleName::Sequencer => {
            let mut config = halfmoon_sequencer::Config::new(meta, node, listen.to_string());
            (config.is_standby, config.suspect_ms) = (place.is_standby, place.suspect_ms);
            config.replace_after = Duration::from_secs(place.replace_after_s.into());
            config.places_max = (u64::from(log_table_mib) << 20) / halfmoon_sequencer::PLACE_BYTES;
            (config.transport, config.advertise) = (place.transport, place.advertise);
            config.reactor.spin = place.polling.spin();
            config.traffic = traffic;
            halfmoon_sequencer::run(config, stop).context("the sequencer ended")
        }
        RoleName::Storage => {
            let info = cluster::read(&*meta)?;
            let mut role = halfmoon_storage::RoleConfig::new(data_dir, node, info.id());
            role.segment_bytes = u64::from(segment_mib) << 20;
            role.state_segment_bytes = role.segment_bytes;
            role.durability = match info.durability {
                Durability::Flush => halfmoon_storage::Durability::Flush,
                Durability::MemoryQuorum => halfmoon_storage::Durability::MemoryQuorum,
            };
            let mut config = halfmoon_storage::Config::new(role, meta, listen.to_string());
            (config.transport, config.advertise) = (place.transport, place.advertise);
            config.spin = place.polling.spin();
            config.traffic = traffic;
            halfmoon_storage::run(config, &stop).context("the storage node ended")
        }
        RoleName::Engine => {
            let mut config =
                halfmoon_engine::Config::new(meta, node, data_dir, listen.to_string(), http);
            (config.transport, config.advertise) = (place.transport, place.advertise);
            config.reactor.spin = place.polling.spin();
            config.traffic = traffic;
            halfmoon_engine::run(config, stop).context("the engine ended")
        }
    }
}

/// All roles of a cluster as threads of this process.
pub(crate) struct InProcess {
    stop: Arc<AtomicBool>,
    /// Engines first: that is the order in which they are to end.
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
    cluster: Arc<Threads>,
}

struct Threads {
    founded: Founded,
    engines: u32,
    /// Of all nodes.
    directories: Vec<PathBuf>,
}

impl InProcess {
    /// Starts them.
    pub(crate) fn start(
        layout: &Layout,
        founded: Founded,
        machine: &Machine,
        ports: EnginePorts,
    ) -> anyhow::Result<Self> {
        let engines = machine.engines;
        let Machine { segment_mib, log_table_mib, .. } = *machine;
        let listen = listen(None, machine.transport)?;
        let stop = Arc::new(AtomicBool::new(false));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (mut threads, mut directories) = (Vec::new(), Vec::new());
        let mut start = |role: RoleName, name: &str, node: NodeId, http: SocketAddr| {
            let data_dir = layout.node(name, node);
            std::fs::create_dir_all(&data_dir)
                .with_context(|| format!("cannot make {}", data_dir.display()))?;
            directories.push(data_dir.clone());
            let meta = layout.open()?;
            // Threads of one process die together: nobody stands by.
            let (is_standby, suspect_ms) = (false, halfmoon_sequencer::SUSPECT_MS_DEFAULT);
            let place = Place {
                node,
                data_dir,
                listen,
                advertise: None,
                http,
                segment_mib,
                log_table_mib,
                is_standby,
                suspect_ms,
                replace_after_s: machine.replace_after_s,
                transport: machine.transport.into(),
                polling: machine.polling.polling(),
            };
            let stop = Arc::clone(&stop);
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{node}"))
                .spawn(move || run_role(role, place, meta, stop))?;
            threads.push(thread);
            anyhow::Ok(())
        };
        for (node, http) in ports.engines() {
            start(RoleName::Engine, "engine", node, http)?;
        }
        start(RoleName::Sequencer, "sequencer", layout::SEQUENCER, any)?;
        for node in layout.storage_nodes(&*founded.meta, machine.spares)? {
            start(RoleName::Storage, "storage", node, any)?;
        }
        Ok(Self { stop, threads, cluster: Arc::new(Threads { founded, engines, directories }) })
    }

    /// The cluster, as benchmarks see it. Its parts cannot be killed one by one.
    pub(crate) fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::clone(&self.cluster) as Arc<dyn Cluster>
    }

    /// Ends all of them, and tells of the first that ended badly.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Release);
        let mut outcome = Ok(());
        for thread in self.threads {
            let ended = thread.join().unwrap_or_else(|_| anyhow::bail!("a role panicked"));
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl Cluster for Threads {
    fn engines(&self) -> usize {
        self.engines as usize
    }

    fn gateway(&self, engine: usize) -> Option<SocketAddr> {
        let id = layout::engine(u32::try_from(engine).ok()?);
        nodes::find(&*self.founded.meta, Role::Engine, id).ok()??.gateway
    }

    fn kill_for(&self, part: Part, _down: Duration) -> anyhow::Result<()> {
        anyhow::bail!("{part:?} is a thread of this process and cannot be killed by itself")
    }

    fn pause(&self, part: Part) -> anyhow::Result<u32> {
        anyhow::bail!("{part:?} is a thread of this process and cannot be stopped by itself")
    }

    fn resume(&self, pid: u32) -> anyhow::Result<()> {
        anyhow::bail!("process {pid} was not stopped")
    }

    fn cut(&self, _part: Part, _way: Way) -> anyhow::Result<bool> {
        Ok(false)
    }

    fn mend(&self) {}

    fn lose_storage(&self, index: usize) -> anyhow::Result<u32> {
        anyhow::bail!("{:?} is a thread of this process and cannot be lost", Part::Storage(index))
    }

    fn replace_storage(&self, old: u32) -> anyhow::Result<u32> {
        anyhow::bail!("storage node {old} is a thread of this process and cannot be replaced")
    }

    fn joining(&self, node: u32) -> anyhow::Result<Joining> {
        Ok(Joining::of(&cluster::read(&*self.founded.meta)?, NodeId(node)))
    }

    fn carried(&self) -> Option<Carried> {
        let mut all = Carried::default();
        for directory in &self.directories {
            lanes::read(directory, std::process::id()).into_iter().for_each(|one| all.add(one));
        }
        Some(all)
    }

    fn kill_process(&self, _pid: u32) -> bool {
        false
    }
}
