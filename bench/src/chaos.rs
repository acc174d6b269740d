//! Kills: workers, engines, storage nodes and sequencers, by SIGKILL, while a load runs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::cluster::{Gateways, Part};
use crate::http::Call;

/// How many of what to kill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Workers; every other one is aimed at one that runs a reservation.
    pub workers: u32,
    /// Engines.
    pub engines: u32,
    /// Storage nodes.
    pub storage: u32,
    /// Sequencers, each the one in charge at that time.
    pub sequencers: u32,
    /// Pause between two kills.
    pub pause: Duration,
}

/// How many were killed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Kills {
    /// Workers, aimed ones included.
    pub workers: u32,
    /// Workers that were running a reservation.
    pub aimed: u32,
    /// Engines.
    pub engines: u32,
    /// Storage nodes.
    pub storage: u32,
    /// Sequencers.
    pub sequencers: u32,
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
/// Pause between two looks.
const AIM_PAUSE: Duration = Duration::from_millis(2);

impl Kills {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.workers + self.engines + self.storage + self.sequencers
    }
}

/// Carries out the plan against the functions of `namespace`; `told` hears of each kill.
pub async fn carry_out(
    plan: Plan,
    gateways: Arc<Gateways>,
    namespace: String,
    told: impl Fn(&Kills) + Send,
) -> Kills {
    let mut kills = Kills::default();
    let steps = plan.workers.max(1);
    for step in 0..steps {
        tokio::time::sleep(plan.pause).await;
        kill_worker(&gateways, &namespace, step % 2 == 0, step as usize, &mut kills).await;
        told(&kills);
        // The others are spread evenly between the kills of workers.
        if due(step, steps, plan.engines, kills.engines) {
            let engine = kills.engines as usize % gateways.cluster().engines();
            kills.engines += u32::from(kill(&gateways, Part::Engine(engine)));
            told(&kills);
        }
        if due(step, steps, plan.storage, kills.storage) {
            kills.storage += u32::from(kill(&gateways, Part::Storage(kills.storage as usize % 3)));
            told(&kills);
        }
        // Somewhat before, so that not everything dies at once.
        if due(step + SEQUENCERS_BEFORE, steps, plan.sequencers, kills.sequencers) {
            kills.sequencers += u32::from(kill(&gateways, Part::Sequencer));
            told(&kills);
        }
    }
    kills
}

/// Whether, after `step` of `steps`, another of `wanted` kills is due when `done` were made.
const fn due(step: u32, steps: u32, wanted: u32, done: u32) -> bool {
    done < wanted && (step + 1) * (wanted + 1) >= (done + 1) * steps
}

fn kill(gateways: &Gateways, part: Part) -> bool {
    match gateways.cluster().kill(part) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, ?part, "could not be killed");
            false
        }
    }
}

async fn kill_worker(
    gateways: &Gateways,
    namespace: &str,
    aimed: bool,
    turn: usize,
    kills: &mut Kills,
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
                kills.workers += 1;
                kills.aimed += u32::from(inside);
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
