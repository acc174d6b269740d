//! Engines die, or are stopped, while functions run on them: until all that ran there has ended, and
//! whether it has happened, once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::{BEFORE, Death, SETTLE};
use crate::audit::{Findings, Told, audit};
use crate::cluster::{Gateways, Part, wait_until_up};
use crate::demo::{self, Protocol, Stream, ToldSoFar};
use crate::takeover::{life, until_taken_over};

/// Clients; each sends its next reservation when the last was answered, and they start together, so
/// that many run at once.
const CLIENTS: u32 = 32;
/// Roots that should be unfinished on an engine when it dies.
const AIM_AT_ROOTS: u64 = 4;
/// How long such a moment is waited for.
const AIM_FOR: Duration = Duration::from_secs(2);
/// How long a take-over may take.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(60);
/// How long the cluster may take to come up, and an engine to come back.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// How often, and under which load.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// How often an engine dies.
    pub runs: u32,
    /// Reservations per second, at most, all clients together.
    pub rate_per_s: u32,
    /// How it dies.
    pub death: Death,
}

/// One death of an engine.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EngineRun {
    /// Roots that others had to end.
    pub roots: u64,
    /// From the death to the moment when the engine was out of the log, as the heir saw it.
    pub evicted_ms: f64,
    /// From the death to the end of the last of these roots.
    pub takeover_ms: f64,
}

/// What all of them came to.
#[derive(Clone, Debug)]
pub struct EngineOutcome {
    /// One for each death.
    pub runs: Vec<EngineRun>,
    /// Reservations that were acknowledged.
    pub acknowledged: u64,
    /// Reservations without an answer.
    pub unknown: u64,
    /// What the audit found.
    pub findings: Findings,
}

/// Has engines of a cluster die, in turn. `say` gets every run, with its number from 1.
pub async fn run(
    gateways: Arc<Gateways>,
    binary: &Path,
    options: &EngineOptions,
    say: &dyn Fn(u32, &EngineRun),
) -> anyhow::Result<EngineOutcome> {
    let protocol = Protocol::HalfmoonRead;
    let binary = Bytes::from(std::fs::read(binary).context("cannot read the function binary")?);
    wait_until_up(&gateways, UP_WITHIN).await?;
    demo::deploy(&gateways, protocol, binary).await?;
    demo::populate(&gateways, protocol).await?;
    let (told, going) = (ToldSoFar::default(), Arc::new(AtomicBool::new(true)));
    let mut clients = tokio::task::JoinSet::new();
    let seed = demo::fresh_seed();
    for client in 0..CLIENTS {
        let stream = Stream {
            gateways: Arc::clone(&gateways),
            protocol,
            client,
            seed,
            told: Arc::clone(&told),
            killing: Arc::clone(&going),
            wanted: 0,
            pause: Duration::from_secs_f64(f64::from(CLIENTS) / f64::from(options.rate_per_s)),
        };
        clients.spawn(stream.run());
    }
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        tokio::time::sleep(BEFORE).await;
        let engine = number as usize % gateways.cluster().engines();
        let run = die(&gateways, engine, options.death).await;
        let run = run.with_context(|| format!("run {number}"))?;
        say(number, &run);
        runs.push(run);
        wait_until_up(&gateways, UP_WITHIN).await?;
        tokio::time::sleep(SETTLE).await;
    }
    going.store(false, Ordering::Release);
    while clients.join_next().await.is_some() {}
    let told: BTreeMap<String, Told> =
        std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    let snapshot = demo::settled_snapshot(&gateways, protocol, &told).await?;
    let count = |is: fn(&Told) -> bool| told.values().filter(|told| is(told)).count() as u64;
    Ok(EngineOutcome {
        runs,
        acknowledged: count(|told| *told != Told::Unknown),
        unknown: count(|told| *told == Told::Unknown),
        findings: audit(&told, &snapshot),
    })
}

/// Has an engine die in the middle of work, and waits until all of that has ended.
async fn die(gateways: &Gateways, engine: usize, death: Death) -> anyhow::Result<EngineRun> {
    let aim_until = Instant::now() + AIM_FOR;
    let life = loop {
        let found = life(gateways, engine).await;
        match found {
            Some((life, roots)) if roots >= AIM_AT_ROOTS || Instant::now() > aim_until => {
                break life;
            }
            _ => anyhow::ensure!(Instant::now() < aim_until + AIM_FOR, "the engine says nothing"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let part = Part::Engine(engine);
    let stopped = match death {
        Death::Kill => {
            gateways.cluster().kill(part)?;
            None
        }
        Death::Stop => Some(gateways.cluster().pause(part)?),
    };
    let died = Instant::now();
    let over = until_taken_over(gateways, life, TAKEN_OVER_WITHIN).await;
    let takeover = died.elapsed();
    if let Some(pid) = stopped {
        gateways.cluster().resume(pid)?;
    }
    let over = over.with_context(|| {
        format!("its roots have not ended elsewhere after {} s", TAKEN_OVER_WITHIN.as_secs())
    })?;
    let took = Duration::from_micros(over.took_us.unwrap_or(0));
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    Ok(EngineRun {
        roots: over.roots,
        evicted_ms: ms(takeover.saturating_sub(took)),
        takeover_ms: ms(takeover),
    })
}
