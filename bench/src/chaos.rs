//! Faults while a load runs: workers, engines, storage nodes and sequencers that are killed, or stopped
//! for so long that the others take them for dead and then go on, or cut off from them; disks that are
//! lost, with their replacement.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Gateways, Joining, Part};
use crate::http::Call;
use crate::partition::Way;
use crate::takeover::Watch;

/// How many of what; usually nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Workers to kill; every other one is aimed at one that runs a reservation.
    pub workers: u32,
    /// Nodes to kill.
    pub kills: Nodes,
    /// Nodes to stop, and to let go on when the others have given them up.
    pub stops: Nodes,
    /// Nodes that cannot hear the others, or cannot be heard, or neither, for as long.
    pub cuts: Nodes,
    /// Storage nodes that lose their disk and are replaced.
    pub replacements: u32,
    /// Pause between two kills of workers.
    pub pause: Duration,
}

/// How many nodes of each role.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Nodes {
    /// Engines.
    pub engines: u32,
    /// Storage nodes.
    pub storage: u32,
    /// Sequencers, each the one in charge at that time.
    pub sequencers: u32,
}

/// What was done.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Faults {
    /// Workers that were killed, aimed ones included.
    pub workers: u32,
    /// Workers that were running a reservation.
    pub aimed: u32,
    /// Nodes that were killed.
    pub kills: Nodes,
    /// Nodes that were stopped, and went on.
    pub stops: Nodes,
    /// Nodes that were cut off, and then not any more.
    pub cuts: Nodes,
    /// Storage nodes that lost their disk, and whose successor has all of it.
    pub replaced: u32,
}

/// A worker in an engine's status.
#[derive(Clone, Debug, Deserialize)]
struct Worker {
    pid: u32,
    #[serde(default)]
    function: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    workers: Vec<Worker>,
}

/// How long to look for a worker inside a reservation before taking any worker.
const AIM_FOR: Duration = Duration::from_secs(3);
/// So many kills of workers a sequencer dies before others would.
const SEQUENCERS_BEFORE: u32 = 2;
/// So many a node is stopped before others would die.
const STOPS_BEFORE: u32 = 1;
/// So many a node is cut off after others would die.
const CUTS_AFTER: u32 = 1;
/// Storage nodes of a cluster.
const STORAGE_NODES: usize = 3;
/// Pause between two looks.
const AIM_PAUSE: Duration = Duration::from_millis(2);

/// How long a node is stopped, or cut off, beyond what it takes the others to give it up: an engine's
/// lease, a request to the state store, the silence of a sequencer.
const ENGINE_AWAY: Duration = Duration::from_secs(3);
const STORAGE_AWAY: Duration = Duration::from_secs(3);
const SEQUENCER_AWAY: Duration = Duration::from_millis(1500);
/// How long a spare may take to be there: the one before may just have been used.
const SPARE_WITHIN: Duration = Duration::from_secs(60);
/// How long a new member may take to copy the state.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
/// Pause between two looks at that.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Nodes {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.engines + self.storage + self.sequencers
    }
}

impl Faults {
    /// All that were killed.
    #[must_use]
    pub const fn killed(&self) -> u32 {
        self.workers + self.kills.total()
    }

    /// In words.
    #[must_use]
    pub fn described(&self) -> String {
        let Self { workers, aimed, kills, stops, cuts, replaced } = *self;
        let Nodes { engines, storage, sequencers } = kills;
        let mut text = format!(
            "{workers:>2} workers ({aimed} inside a reservation), {engines} engines, {storage} storage, \
             {sequencers} sequencers"
        );
        for (what, nodes) in [("stopped", stops), ("cut off", cuts)] {
            if nodes.total() > 0 {
                let Nodes { engines, storage, sequencers } = nodes;
                text += &format!(
                    "; {what}: {engines} engines, {storage} storage, {sequencers} sequencers"
                );
            }
        }
        if replaced > 0 {
            text += &format!("; disks lost and replaced: {replaced}");
        }
        text
    }
}

/// Carries out the plan against the functions of `namespace`; `told` hears of each fault, and `watch`
/// of each engine that dies.
///
/// # Errors
/// When a storage node could not be replaced.
pub async fn carry_out(
    plan: Plan,
    gateways: Arc<Gateways>,
    namespace: String,
    told: impl Fn(&Faults) + Send,
    watch: &mut Watch,
) -> anyhow::Result<Faults> {
    let cluster = Arc::clone(gateways.cluster());
    let mut done = Faults::default();
    let steps = plan.workers.max(1);
    let mut way = 0;
    for step in 0..steps {
        tokio::time::sleep(plan.pause).await;
        if plan.workers > 0 {
            kill_worker(&gateways, &namespace, step % 2 == 0, step as usize, &mut done).await;
            told(&done);
        }
        // The others are spread evenly between the kills of workers; those of sequencers and the stops
        // somewhat before and after, so that not everything happens at once.
        let engine = |turn: u32| Part::Engine(turn as usize % cluster.engines());
        let storage = |turn: u32| Part::Storage(turn as usize % STORAGE_NODES);
        let Faults { kills, stops, cuts, .. } = &mut done;
        for (part, made, wanted, ahead) in [
            (engine(kills.engines), &mut kills.engines, plan.kills.engines, 0),
            (storage(kills.storage), &mut kills.storage, plan.kills.storage, 0),
            (Part::Sequencer, &mut kills.sequencers, plan.kills.sequencers, SEQUENCERS_BEFORE),
        ] {
            if due(step + ahead, steps, wanted, *made) {
                watch.dies(part).await;
                *made += u32::from(kill(&*cluster, part));
            }
        }
        for (part, made, wanted, lasting) in [
            (engine(stops.engines + 1), &mut stops.engines, plan.stops.engines, ENGINE_AWAY),
            (storage(stops.storage + 1), &mut stops.storage, plan.stops.storage, STORAGE_AWAY),
            (Part::Sequencer, &mut stops.sequencers, plan.stops.sequencers, SEQUENCER_AWAY),
        ] {
            if due(step + STOPS_BEFORE, steps, wanted, *made) {
                watch.dies(part).await;
                *made += u32::from(stop(&cluster, part, lasting).await);
            }
        }
        for (part, made, wanted, lasting) in [
            (engine(cuts.engines), &mut cuts.engines, plan.cuts.engines, ENGINE_AWAY),
            (storage(cuts.storage + 2), &mut cuts.storage, plan.cuts.storage, STORAGE_AWAY),
            (Part::Sequencer, &mut cuts.sequencers, plan.cuts.sequencers, SEQUENCER_AWAY),
        ] {
            if step >= CUTS_AFTER && due(step - CUTS_AFTER, steps, wanted, *made) {
                watch.dies(part).await;
                *made += u32::from(cut(&cluster, part, Way::by_turn(way), lasting).await);
                way += 1;
            }
        }
        if due(step, steps, plan.replacements, done.replaced) {
            replace(&*cluster, (done.replaced as usize + 2) % STORAGE_NODES).await?;
            done.replaced += 1;
        }
        told(&done);
    }
    Ok(done)
}

/// Whether, after `step` of `steps`, another of `wanted` kills is due when `done` were made.
const fn due(step: u32, steps: u32, wanted: u32, done: u32) -> bool {
    done < wanted && (step + 1) * (wanted + 1) >= (done + 1) * steps
}

fn kill(cluster: &dyn Cluster, part: Part) -> bool {
    match cluster.kill(part) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, ?part, "could not be killed");
            false
        }
    }
}

/// A process that is stopped. It goes on at the latest when this is dropped.
struct Stopped {
    cluster: Arc<dyn Cluster>,
    pid: u32,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.resume(self.pid) {
            tracing::warn!(%error, "could not be resumed");
        }
    }
}

async fn stop(cluster: &Arc<dyn Cluster>, part: Part, lasting: Duration) -> bool {
    match cluster.pause(part) {
        Ok(pid) => {
            let stopped = Stopped { cluster: Arc::clone(cluster), pid };
            tokio::time::sleep(lasting).await;
            drop(stopped);
            true
        }
        Err(error) => {
            tracing::warn!(%error, ?part, "could not be stopped");
            false
        }
    }
}

/// Somebody who is cut off: not longer than this lives.
struct CutOff(Arc<dyn Cluster>);

impl Drop for CutOff {
    fn drop(&mut self) {
        self.0.mend();
    }
}

async fn cut(cluster: &Arc<dyn Cluster>, part: Part, way: Way, lasting: Duration) -> bool {
    match cluster.cut(part, way) {
        Ok(true) => {
            let cut_off = CutOff(Arc::clone(cluster));
            tokio::time::sleep(lasting).await;
            drop(cut_off);
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::warn!(%error, ?part, "could not be cut off");
            false
        }
    }
}

/// Has a storage node lose its disk, and waits until another has everything in its place.
async fn replace(cluster: &dyn Cluster, index: usize) -> anyhow::Result<()> {
    let old = cluster.lose_storage(index)?;
    let end = tokio::time::Instant::now() + SPARE_WITHIN;
    let new = loop {
        match cluster.replace_storage(old) {
            Ok(new) => break new,
            Err(error) if tokio::time::Instant::now() > end => {
                return Err(error).with_context(|| format!("storage node {old} was not replaced"));
            }
            Err(error) => tracing::debug!(%error, "not replaced yet"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let end = tokio::time::Instant::now() + WHOLE_WITHIN;
    while cluster.joining(new)? != Joining::Whole {
        anyhow::ensure!(
            tokio::time::Instant::now() < end,
            "storage node {new} has not copied the state within {WHOLE_WITHIN:?}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn kill_worker(
    gateways: &Gateways,
    namespace: &str,
    aimed: bool,
    turn: usize,
    done: &mut Faults,
) {
    let end = tokio::time::Instant::now() + AIM_FOR;
    loop {
        let aiming = aimed && tokio::time::Instant::now() < end;
        for step in 0..gateways.cluster().engines() {
            let workers = workers(gateways, (turn + step) % gateways.cluster().engines()).await;
            let victim = workers.iter().find(|worker| match &worker.function {
                Some(function) => is_reservation(function, namespace),
                None => !aiming,
            });
            let victim = victim.or_else(|| if aiming { None } else { workers.first() });
            if let Some(worker) = victim
                && gateways.cluster().kill_process(worker.pid)
            {
                let inside =
                    worker.function.as_deref().is_some_and(|f| is_reservation(f, namespace));
                done.workers += 1;
                done.aimed += u32::from(inside);
                return;
            }
        }
        if tokio::time::Instant::now() > end + AIM_FOR {
            tracing::warn!("no worker was found to kill");
            return;
        }
        tokio::time::sleep(AIM_PAUSE).await;
    }
}

/// Functions in which a reservation's effects are made.
fn is_reservation(function: &str, namespace: &str) -> bool {
    function
        .strip_prefix(namespace)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|name| matches!(name, "reserve" | "hotel" | "flight" | "order"))
}

async fn workers(gateways: &Gateways, engine: usize) -> Vec<Worker> {
    let Some(client) = gateways.client(engine) else { return Vec::new() };
    let call = Call {
        method: Method::GET,
        path: "/v1/status",
        headers: &[],
        body: Bytes::new(),
        timeout: Duration::from_secs(1),
    };
    match client.send(call).await {
        Ok(reply) => serde_json::from_slice::<Status>(&reply.body)
            .map(|status| status.workers)
            .unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_of_engines_and_storage_are_spread_over_those_of_workers() {
        let steps_of = |wanted| {
            let mut done = 0;
            let made = |step: &u32| {
                let now = due(*step, 20, wanted, done);
                done += u32::from(now);
                now
            };
            (0..20).filter(made).collect::<Vec<_>>()
        };
        assert_eq!(steps_of(2), [6, 13]);
        assert_eq!(steps_of(1), [9]);
    }

    #[test]
    fn only_functions_of_the_namespace_that_make_effects_are_aimed_at() {
        assert!(is_reservation("boki.reserve", "boki"));
        assert!(!is_reservation("boki.search", "boki"));
        assert!(!is_reservation("unlogged.reserve", "boki"));
    }
}
