//! One run: a cluster comes up, clients reserve, faults come and go, and all of it is judged.

mod driver;
mod verdict;

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use super::cluster::{self, Cluster, Place};
use super::load::{CLIENTS, Gateways, History, Load};
use super::net::{self, Net};
use super::plan::{self, ENGINES, Fault, Node};
use super::{Options, abilities};
use crate::run::target;
use driver::Driver;

/// How long the cluster may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// Pause between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Characters that are shown of what a node has said last.
const LAST_WORDS_MAX: usize = 120;
/// Load after etcd is back and the sequencer was killed: enough for its succession.
const AFTER_OUTAGE: Duration = Duration::from_secs(8);

/// Says what happens, and when.
pub(super) struct Clock(Instant);

impl Clock {
    fn say(&self, what: &str) {
        println!("[{:>6.2} s] {what}", self.0.elapsed().as_secs_f64());
    }
}

/// Runs all of it, in the namespaces that this process is in; whether nothing was wrong.
pub(super) fn run(options: &Options) -> anyhow::Result<bool> {
    let seed = options.seed.context("the seed was drawn outside")?;
    let clock = Clock(Instant::now());
    let etcd = options.uses_etcd();
    let nodes: Vec<Node> = Node::all(etcd).collect();
    let (able, way, _) = abilities(etcd);
    let (faults, lasting) = match options.etcd_outage.map(Duration::from_secs) {
        Some(outage) => {
            let faults = plan::outage(outage);
            let last = faults.last().map_or(Duration::ZERO, |fault| fault.at);
            (faults, last + AFTER_OUTAGE)
        }
        None => (plan::draw(seed, options.lasting(), able), options.lasting()),
    };
    println!(
        "chaos: seed {seed}, {} faults in {} s; 3 storage nodes, 2 sequencers, 2 engines, each in a \
         network of its own; metadata in {}",
        faults.len(),
        lasting.as_secs(),
        if etcd { "etcd, in another" } else { "a directory" }
    );
    let folder = cluster::folder(seed);
    fs::create_dir_all(&folder)?;
    let net = Net::make(&nodes)?;
    let program = own_copy(&folder)?;
    let place = Place { folder: folder.clone(), program, way, faketime: cluster::faketime(), etcd };
    let run = Run { nodes, faults, lasting, clock, outage: options.etcd_outage.is_some() };
    let judged = Cluster::found(place, &run.nodes).and_then(|cluster| run.carry_out(cluster, net));
    let wrong = match judged {
        Ok(wrong) => wrong,
        Err(error) => vec![format!("{error:#}")],
    };
    let count = run.faults.len();
    if wrong.is_empty() {
        fs::remove_dir_all(&folder).ok();
        println!("chaos {count} faults, passed");
        return Ok(true);
    }
    for wrong in &wrong {
        println!("WRONG: {wrong}");
    }
    let meta = if etcd { "etcd" } else { "directory" };
    let how = options.etcd_outage.map_or_else(
        || format!("--seed {seed} --seconds {}", options.seconds),
        |outage| format!("--etcd-outage {outage}"),
    );
    println!("logs, disks and history: {}", folder.display());
    println!("chaos {count} faults, FAILED: cargo xtask chaos --meta {meta} {how}");
    Ok(false)
}

/// The program, where nobody builds another over it.
fn own_copy(folder: &Path) -> anyhow::Result<std::path::PathBuf> {
    let program = folder.join("halfmoon");
    fs::copy(target().join("debug/halfmoon"), &program).context("halfmoon is not built")?;
    Ok(program)
}

/// What is to happen.
struct Run {
    nodes: Vec<Node>,
    faults: Vec<Fault>,
    lasting: Duration,
    clock: Clock,
    /// It is about etcd alone.
    outage: bool,
}

/// What has happened.
struct Happened {
    history: History,
    /// When each fault began and ended.
    faults: Vec<(plan::What, Duration, Duration)>,
    /// The epoch in which the last sequencer was killed.
    epoch_of_kill: Option<u64>,
}

impl Run {
    fn carry_out(&self, mut cluster: Cluster, net: Net) -> anyhow::Result<Vec<String>> {
        let gateways = Gateways::new(ENGINES.map(net::gateway).to_vec());
        for node in &self.nodes {
            cluster.start(*node)?;
        }
        until_up(&mut cluster, &gateways)?;
        gateways.deploy(&cluster.place().program, UP_WITHIN)?;
        self.clock.say("up, with the travel application");
        let (over, history) = (AtomicBool::new(false), Mutex::new(History::default()));
        let load = Load::new(&gateways, &over, &history);
        let mut driver = Driver::new(&mut cluster, net, &gateways, &self.clock, &self.nodes);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| load.run());
            }
            let outcome = driver.carry_out(&self.faults, self.lasting, load.began);
            over.store(true, Ordering::Release);
            outcome
        })?;
        let (faults, epoch_of_kill) = (driver.done, driver.epoch_of_kill);
        let history = history.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.clock.say("no more faults, no more requests");
        verdict::judge(self, cluster, &gateways, Happened { history, faults, epoch_of_kill })
    }
}

/// Until both engines say that they are ready.
fn until_up(cluster: &mut Cluster, gateways: &Gateways) -> anyhow::Result<()> {
    let end = Instant::now() + UP_WITHIN;
    let is_up = || {
        let replies = gateways.each("/healthz");
        replies.iter().all(|reply| reply.as_ref().is_some_and(|reply| reply.status == 200))
    };
    while !is_up() {
        anyhow::ensure!(Instant::now() < end, "the cluster does not come up; its logs say why");
        cluster.look()?;
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// What each engine says of itself; nothing of one that does not answer.
fn statuses(gateways: &Gateways) -> Vec<Option<Value>> {
    let replies = gateways.each("/v1/status").into_iter();
    let parsed = replies.map(|reply| {
        let reply = reply.filter(|reply| reply.status == 200)?;
        serde_json::from_slice(&reply.body).ok()
    });
    parsed.collect()
}

/// The highest epoch that an engine knows.
fn epoch(statuses: &[Option<Value>]) -> Option<u64> {
    statuses.iter().flatten().filter_map(|status| status["epoch"].as_u64()).max()
}

/// How a node ended, with the last that it said.
fn last_words(cluster: &Cluster, node: Node, status: ExitStatus) -> String {
    let log = cluster.place().folder.join(format!("{node}.log"));
    let log = fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let mut last = log.lines().last().unwrap_or("it said nothing").to_owned();
    if last.chars().count() > LAST_WORDS_MAX {
        last = last.chars().take(LAST_WORDS_MAX).chain(['…']).collect();
    }
    format!("{node} has ended by itself ({status}): {last}")
}
