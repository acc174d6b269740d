//! Keeps the nodes of a cluster on one machine running as child processes.

mod parts;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use halfmoon_bench::cluster::{Carried, Cluster};
use halfmoon_bench::partition::Relays;
use halfmoon_meta::cluster;
use halfmoon_wire::NodeId;

use crate::cli::{PassedOn, Transport};
use crate::layout::{self, EnginePorts, Founded, Layout};
use crate::{lanes, notify, roles};

/// How often dead children are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A child that lived shorter than this is started again only after a pause.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// The pause, doubled for each short life in a row, up to 2⁶ of it.
const PAUSE: Duration = Duration::from_millis(50);
/// Pause before a sequencer is started again while others stand by: it is not needed at once, and on a
/// small machine whoever takes over from it has better use for the processors.
const SEQUENCER_PAUSE: Duration = Duration::from_secs(1);
/// Short lives in a row after which a node is given up.
const SHORT_LIVES_MAX: u32 = 20;
/// How often it is looked who is a member of the log.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// How long children may take to end in order before they are killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What a child is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Storage,
    Sequencer,
    Engine,
}

struct Node {
    kind: Kind,
    id: NodeId,
    http: SocketAddr,
    child: Option<Child>,
    started: Instant,
    not_before: Instant,
    /// It is down by order until then.
    held_until: Instant,
    short_lives: u32,
    /// It was replaced: it is ended by then, and started no more.
    leaves_by: Option<Instant>,
}

struct Shared {
    binary: PathBuf,
    layout: Layout,
    founded: Founded,
    options: Options,
    /// Where nodes listen. Their adapter may be gone when they are started again.
    listen: SocketAddr,
    nodes: Mutex<Nodes>,
    /// In front of the nodes that others dial, if those are to be cut off.
    relays: Option<Relays>,
}

struct Nodes {
    by_id: BTreeMap<NodeId, Node>,
    /// What the lanes of processes that have ended carried.
    carried_before: Carried,
    stopping: bool,
}

/// A cluster of child processes. Dropping it kills what is left of them.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    watcher: Option<std::thread::JoinHandle<()>>,
}

/// How the children are to be run.
pub(crate) struct Options {
    pub(crate) ports: EnginePorts,
    /// Sequencers that stand by.
    pub(crate) standbys: u32,
    /// Storage nodes that are no members.
    pub(crate) spares: u32,
    /// Seconds after which a storage node that is gone is replaced; 0: never.
    pub(crate) replace_after_s: u32,
    /// MiB of a segment of a storage node's logs.
    pub(crate) segment_mib: u32,
    /// MiB of the tables of the log.
    pub(crate) log_table_mib: u32,
    pub(crate) passed_on: PassedOn,
    /// Nodes dial each other through relays, so that they can be cut off.
    pub(crate) relays: bool,
    /// Children log to `NODE.log` instead of to this process's standard error.
    pub(crate) log_files: bool,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Sequencer => "sequencer",
            Self::Engine => "engine",
        }
    }
}

impl Supervisor {
    /// Starts all nodes; they find each other by the metadata store.
    pub(crate) fn start(
        layout: Layout,
        founded: Founded,
        options: Options,
    ) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("cannot tell where this program lies")?;
        let storage = layout.storage_nodes(&*founded.meta, options.spares)?;
        let mut by_id: BTreeMap<_, _> =
            storage.into_iter().map(|id| (id, Node::new(Kind::Storage, id, ANY))).collect();
        let standbys = (0..options.standbys).map(layout::standby);
        for id in [layout::SEQUENCER].into_iter().chain(standbys) {
            by_id.insert(id, Node::new(Kind::Sequencer, id, ANY));
        }
        for (id, http) in options.ports.engines() {
            by_id.insert(id, Node::new(Kind::Engine, id, http));
        }
        let carried_before = Carried::default();
        let nodes = Mutex::new(Nodes { by_id, carried_before, stopping: false });
        let relays = options.relays.then(Relays::start).transpose()?;
        let listen = roles::listen(None, options.passed_on.transport.unwrap_or(Transport::Auto))?;
        let shared = Shared { binary, layout, founded, options, listen, nodes, relays };
        let shared = Arc::new(shared);
        let watched = Arc::clone(&shared);
        let watcher = std::thread::Builder::new().name("supervisor".into()).spawn(move || {
            let mut follow_at = Instant::now() + FOLLOW_EVERY;
            while watched.look() {
                if follow_at <= Instant::now() {
                    watched.follow();
                    follow_at = Instant::now() + FOLLOW_EVERY;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(Self { shared, watcher: Some(watcher) })
    }

    /// The cluster, as benchmarks see it.
    pub(crate) fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::clone(&self.shared) as Arc<dyn Cluster>
    }

    /// Asks every child to end, engines first, and waits for them.
    pub(crate) fn stop(mut self) {
        self.end(STOP_WITHIN);
    }

    fn end(&mut self, within: Duration) {
        self.shared.lock().stopping = true;
        if let Some(watcher) = self.watcher.take()
            && watcher.join().is_err()
        {
            tracing::error!("the supervisor's thread ended by a panic");
        }
        let deadline = Instant::now() + within;
        let in_charge = self.shared.in_charge();
        let mut nodes = self.shared.lock();
        // Who stands by ends before the one in charge, or it would take over from it.
        let stands_by = |node: &Node| node.kind == Kind::Sequencer && Some(node.id) != in_charge;
        let groups: [&dyn Fn(&Node) -> bool; 4] = [
            &|node| node.kind == Kind::Engine,
            &stands_by,
            &|node| node.kind == Kind::Sequencer,
            &|node| node.kind == Kind::Storage,
        ];
        for is_next in groups {
            let mut ending: Vec<&mut Child> = nodes
                .by_id
                .values_mut()
                .filter(|node| is_next(node))
                .filter_map(|node| node.child.as_mut())
                .collect();
            // A child that serves a supervisor ends when its standard input does.
            for child in &mut ending {
                drop(child.stdin.take());
            }
            for child in ending {
                end_child(child, deadline);
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if self.watcher.is_some() {
            self.end(Duration::ZERO);
        }
    }
}

/// Waits for a child that was asked to end, and kills it when it takes too long.
fn end_child(child: &mut Child, deadline: Instant) {
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Ok(Some(_)) | Err(_) => return,
        }
    }
    tracing::warn!(pid = child.id(), "did not end in time, killing it");
    if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
        tracing::error!(%error, pid = child.id(), "cannot be killed");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what is not running. `false`: it is over.
    fn look(&self) -> bool {
        let mut nodes = self.lock();
        if nodes.stopping {
            return false;
        }
        nodes.by_id.retain(|_, node| !self.has_left(node));
        let sequencers = nodes.by_id.values().filter(|node| node.kind == Kind::Sequencer).count();
        let Nodes { by_id, carried_before, .. } = &mut *nodes;
        for node in by_id.values_mut() {
            if let Some(child) = &mut node.child {
                let ended = child.try_wait();
                if let Ok(Some(_)) = ended
                    && let Some(carried) = self.carried_by(node)
                {
                    carried_before.add(carried.ended());
                }
                match ended {
                    Ok(None) => continue,
                    Ok(Some(status)) => node.ended(&status.to_string()),
                    Err(error) => node.ended(&error.to_string()),
                }
                if node.kind == Kind::Sequencer && sequencers > 1 {
                    node.not_before = node.not_before.max(Instant::now() + SEQUENCER_PAUSE);
                }
            }
            let is_due = Instant::now() >= node.not_before && node.leaves_by.is_none();
            if is_due && node.short_lives < SHORT_LIVES_MAX {
                match self.spawn(node) {
                    Ok(child) => node.child = Some(child),
                    Err(error) => node.ended(&format!("{error:#}")),
                }
            }
        }
        true
    }

    /// Runs a node for every member and every spare; ends those that have no part in the log any more.
    fn follow(&self) {
        let meta = &*self.founded.meta;
        let looked = cluster::read(meta)
            .and_then(|info| Ok((info, self.layout.storage_nodes(meta, self.options.spares)?)));
        let (info, wanted) = match looked {
            Ok(looked) => looked,
            Err(error) => return tracing::debug!(%error, "who is a member is not known"),
        };
        let mut nodes = self.lock();
        for id in &wanted {
            nodes.by_id.entry(*id).or_insert_with(|| {
                tracing::info!("storage {id} is to run here");
                Node::new(Kind::Storage, *id, ANY)
            });
        }
        let is_leaving = |node: &&mut Node| {
            let is_wanted = info.has_part(node.id) || wanted.contains(&node.id);
            node.kind == Kind::Storage && node.leaves_by.is_none() && !is_wanted
        };
        for node in nodes.by_id.values_mut().filter(is_leaving) {
            tracing::info!(
                "storage {} was replaced and ends; its directory is of no more use: {}",
                node.id,
                self.layout.node(node.kind.name(), node.id).display()
            );
            node.leaves_by = Some(Instant::now() + STOP_WITHIN);
            if let Some(child) = &mut node.child {
                drop(child.stdin.take());
            }
        }
    }

    /// Whether a node that was replaced has ended; one that takes too long is killed.
    fn has_left(&self, node: &mut Node) -> bool {
        let (Some(by), Some(child)) = (node.leaves_by, &mut node.child) else {
            return node.leaves_by.is_some();
        };
        if by <= Instant::now()
            && let Err(error) = child.kill()
        {
            tracing::error!(%error, pid = child.id(), "cannot be killed");
        }
        !matches!(child.try_wait(), Ok(None))
    }

    /// What the lanes of a node carry.
    fn carried_by(&self, node: &Node) -> Option<Carried> {
        let process = node.child.as_ref()?.id();
        lanes::read(&self.layout.node(node.kind.name(), node.id), process)
    }

    /// The sequencer that took the last epoch.
    fn in_charge(&self) -> Option<NodeId> {
        Some(cluster::read(&*self.founded.meta).ok()?.holder?.node())
    }

    fn spawn(&self, node: &mut Node) -> anyhow::Result<Child> {
        node.started = Instant::now();
        let directory = self.layout.node(node.kind.name(), node.id);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let mut command = Command::new(&self.binary);
        command
            .args(["run", "--role", node.kind.name(), "--until-stdin-ends"])
            .args(["--node", &node.id.to_string(), "--http", &node.http.to_string()])
            .args(["--segment-mib", &self.options.segment_mib.to_string()])
            .args(["--log-table-mib", &self.options.log_table_mib.to_string()])
            .arg("--data-dir")
            .arg(&directory)
            .arg("--meta")
            .arg(self.layout.meta()?)
            .args(self.options.passed_on.arguments())
            .args(node.is_standby().then_some("--standby"))
            // Who started this process is told by it alone when all are ready.
            .env_remove(notify::SOCKET)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        if node.kind == Kind::Sequencer {
            command.args(["--replace-after-s", &self.options.replace_after_s.to_string()]);
        }
        let mut listen = self.listen;
        if let (Some(relays), Kind::Sequencer | Kind::Storage) = (&self.relays, node.kind) {
            let place = relays.place(node.id).context("no relay to be had")?;
            listen = place.listen;
            command.args(["--advertise", &place.advertise.to_string()]);
        }
        command.args(["--listen", &listen.to_string()]);
        if self.options.log_files {
            command.stderr(log_file(&directory.with_extension("log"))?);
        }
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.relays.iter().for_each(|relays| relays.runs(node.id, child.id()));
        Ok(child)
    }
}

fn log_file(path: &Path) -> anyhow::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Any port of this machine.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Node {
    fn new(kind: Kind, id: NodeId, http: SocketAddr) -> Self {
        let now = Instant::now();
        Self {
            kind,
            id,
            http,
            child: None,
            started: now,
            not_before: now,
            held_until: now,
            short_lives: 0,
            leaves_by: None,
        }
    }

    fn is_standby(&self) -> bool {
        self.kind == Kind::Sequencer && self.id != layout::SEQUENCER
    }

    fn running(&mut self) -> anyhow::Result<&mut Child> {
        self.child.as_mut().context("the node is not running")
    }

    fn ended(&mut self, how: &str) {
        self.child = None;
        if self.started.elapsed() < SHORT_LIFE {
            self.short_lives += 1;
        } else {
            self.short_lives = 0;
        }
        let pause = if self.short_lives < 2 { Duration::ZERO } else { PAUSE };
        let rested = Instant::now() + pause * 2u32.pow(self.short_lives.min(6));
        self.not_before = rested.max(self.held_until);
        let (kind, node) = (self.kind.name(), self.id);
        if self.short_lives >= SHORT_LIVES_MAX {
            tracing::error!(
                "{kind} {node} ended ({how}) as soon as it was started, {SHORT_LIVES_MAX} times; \
                 given up"
            );
        } else {
            tracing::warn!("{kind} {node} ended ({how}), starting it again");
        }
    }
}
