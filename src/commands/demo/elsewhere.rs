//! The demo on a cluster that somebody else runs, perhaps on several machines.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_bench::chaos::Plan;
use halfmoon_bench::cluster::{Carried, Cluster, Gateways, Joining, Part, wait_until_up};
use halfmoon_bench::demo;
use halfmoon_bench::partition::Way;
use halfmoon_bench::report::{self, Provenance};
use halfmoon_meta::{MetaStore, cluster, nodes};
use halfmoon_wire::{NodeId, Role};

use super::{BASELINES, UP_WITHIN, conclude, options, provenance, say};
use crate::cli::Demo;
use crate::commands::show::print;

/// A cluster whose nodes are not ours.
struct Elsewhere {
    meta: Arc<dyn MetaStore>,
    /// Those that were there in the beginning.
    engines: Vec<NodeId>,
}

pub(super) fn run(arguments: &Demo, meta: &str) -> anyhow::Result<ExitCode> {
    let mut options = options(arguments)?;
    options.faults = Plan::default();
    let (begin, json) = (Instant::now(), arguments.json);
    let say = move |line: String| say(begin, json, &line);
    let cluster = Elsewhere::open(meta)?;
    let engines: Vec<String> = cluster.engines.iter().map(NodeId::to_string).collect();
    say(format!("the cluster at {meta} has the engines {}", engines.join(", ")));
    say(BASELINES.into());
    let gateways = Arc::new(Gateways::new(Arc::new(cluster)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let binary = std::env::current_exe()?;
    let outcomes = runtime.block_on(async {
        tokio::select! {
            outcomes = async {
                wait_until_up(&gateways, UP_WITHIN).await?;
                demo::run(Arc::clone(&gateways), &binary, &options, &say).await
            } => outcomes,
            () = crate::stop::wait_for_signal() => Err(anyhow::anyhow!("interrupted")),
        }
    })?;
    let provenance = Provenance {
        host: "the cluster's own, not known here".into(),
        transport: "as its nodes were told".into(),
        durability: cluster_durability(&*halfmoon_meta::open(meta)?)?.into(),
        ..provenance(&options, arguments, None)
    };
    std::fs::create_dir_all(&arguments.output)?;
    let page = report::write(&arguments.output, &outcomes, &provenance)?;
    if json {
        print(&report::json(&outcomes, &provenance).to_string());
    } else {
        conclude(&outcomes, None, None, &page.display().to_string(), begin);
    }
    let passes = report::verdict(&outcomes).passes();
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cluster_durability(meta: &dyn MetaStore) -> anyhow::Result<&'static str> {
    Ok(match cluster::read(meta)?.durability {
        halfmoon_meta::Durability::Flush => "flush: two of three before an acknowledgement",
        halfmoon_meta::Durability::MemoryQuorum => "memory of two of three",
    })
}

impl Elsewhere {
    fn open(meta: &str) -> anyhow::Result<Self> {
        let meta = halfmoon_meta::open(meta)?;
        let is_engine = |entry: &nodes::NodeEntry| entry.role() == Role::Engine;
        let mut engines: Vec<NodeId> = nodes::list(&*meta)?
            .iter()
            .filter(|entry| is_engine(entry))
            .map(|e| e.node())
            .collect();
        engines.sort_unstable();
        anyhow::ensure!(
            !engines.is_empty(),
            "no engine runs in this cluster; `halfmoon node list --meta META` shows who does"
        );
        Ok(Self { meta, engines })
    }
}

/// What is refused, and why.
fn not_ours<R>() -> anyhow::Result<R> {
    anyhow::bail!("the nodes of this cluster belong to somebody else")
}

impl Cluster for Elsewhere {
    fn engines(&self) -> usize {
        self.engines.len()
    }

    fn gateway(&self, engine: usize) -> Option<SocketAddr> {
        nodes::find(&*self.meta, Role::Engine, *self.engines.get(engine)?).ok()??.gateway
    }

    fn kill_for(&self, _part: Part, _down: Duration) -> anyhow::Result<()> {
        not_ours()
    }

    fn pause(&self, _part: Part) -> anyhow::Result<u32> {
        not_ours()
    }

    fn resume(&self, _pid: u32) -> anyhow::Result<()> {
        not_ours()
    }

    fn cut(&self, _part: Part, _way: Way) -> anyhow::Result<bool> {
        Ok(false)
    }

    fn mend(&self) {}

    fn lose_storage(&self, _index: usize) -> anyhow::Result<u32> {
        not_ours()
    }

    fn replace_storage(&self, _old: u32) -> anyhow::Result<u32> {
        not_ours()
    }

    fn joining(&self, node: u32) -> anyhow::Result<Joining> {
        Ok(Joining::of(&cluster::read(&*self.meta)?, NodeId(node)))
    }

    fn carried(&self) -> Option<Carried> {
        None
    }

    fn kill_process(&self, _pid: u32) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::STORAGE;

    #[test]
    fn a_cluster_without_engines_is_refused_and_none_of_its_nodes_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let address = folder.path().join("meta").display().to_string();
        let meta = halfmoon_meta::open(&address).unwrap();
        cluster::create(&*meta, 7, halfmoon_meta::Durability::Flush, &STORAGE).unwrap();
        assert!(Elsewhere::open(&address).is_err());
        let elsewhere = Elsewhere { meta, engines: vec![NodeId(21)] };
        assert_eq!(
            (elsewhere.engines(), elsewhere.gateway(0), elsewhere.gateway(1)),
            (1, None, None)
        );
        assert!(elsewhere.kill(Part::Engine(0)).is_err() && !elsewhere.kill_process(1));
    }
}
