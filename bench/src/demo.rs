//! The main job: travel reservations under each protocol, latency first, then an audited stream of
//! reservations while parts of the cluster are killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::audit::{Findings, Row, Snapshot, Told, audit};
use crate::chaos::{Faults, Plan, carry_out};
use crate::cluster::Gateways;
use crate::http::{Call, Reply};
use crate::load::{Measured, Schedule, open_loop};
use crate::takeover::Watch;
use crate::travel::{self, FLIGHTS, HOTELS, Request};

/// A protocol as the demo runs it: one namespace each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Reads append nothing.
    HalfmoonRead,
    /// Writes append nothing.
    HalfmoonWrite,
    /// Symmetric logging.
    Boki,
    /// No logging: what retries do without it.
    Unlogged,
}

/// How long and how hard.
#[derive(Clone, Debug)]
pub struct Options {
    /// Protocols, in the order of each slice.
    pub protocols: Vec<Protocol>,
    /// Slices per protocol.
    pub slices: u32,
    /// How long one slice lasts.
    pub slice: Duration,
    /// Requests of the mix per second.
    pub rate_per_s: f64,
    /// Audited reservations per protocol, at least.
    pub reservations: u32,
    /// Audited reservations per second, all clients together.
    pub reservations_per_s: f64,
    /// What happens to the cluster under each protocol.
    pub faults: Plan,
}

/// What one protocol came to.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub protocol: Protocol,
    /// Latencies of the mix, one per slice.
    pub slices: Vec<Measured>,
    /// Requests of the mix and of the audited stream.
    pub requests: u64,
    /// Appends of the mix's requests.
    pub appends: u64,
    /// Reservations that were acknowledged.
    pub acknowledged: u64,
    /// What happened to the cluster.
    pub faults: Faults,
    /// For each engine that died with unfinished roots: until all of them had ended, in ms.
    pub takeovers_ms: Vec<f64>,
    /// What the audit found.
    pub findings: Findings,
    /// What clients were told of reservations: those of the mix count in the audit, too.
    told: ToldSoFar,
}

/// Clients of the audited stream; each sends its next reservation when the last was answered.
const CLIENTS: u32 = 8;
/// How long a client asks again for the answer of one reservation.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long the audit waits for asynchronous orders.
const ORDERS_WITHIN: Duration = Duration::from_secs(45);
/// Requests and orders that one inspection asks for.
const INSPECT_MAX: usize = 100;

impl Protocol {
    /// All four, the baselines last.
    pub const ALL: [Self; 4] =
        [Self::HalfmoonRead, Self::HalfmoonWrite, Self::Boki, Self::Unlogged];

    /// Its name in options, tables and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfmoonRead => "halfmoon-read",
            Self::HalfmoonWrite => "halfmoon-write",
            Self::Boki => "boki",
            Self::Unlogged => "unlogged",
        }
    }

    /// Whether a reservation is one transaction. Under the baselines, which have none, it is a
    /// write to the hotel and then one to the flight, and no two clients share a row.
    #[must_use]
    pub const fn has_transactions(self) -> bool {
        matches!(self, Self::HalfmoonRead | Self::HalfmoonWrite)
    }

    /// Whether effects must be exactly once.
    #[must_use]
    pub const fn is_logged(self) -> bool {
        !matches!(self, Self::Unlogged)
    }
}

/// Runs the demo on a cluster that is up. `say` gets a line of progress now and then.
pub async fn run(
    gateways: Arc<Gateways>,
    binary: &std::path::Path,
    options: &Options,
    say: &(dyn Fn(String) + Send + Sync),
) -> anyhow::Result<Vec<Outcome>> {
    let binary = Bytes::from(std::fs::read(binary).context("cannot read the function binary")?);
    let mut outcomes = BTreeMap::new();
    for &protocol in &options.protocols {
        deploy(&gateways, protocol, binary.clone()).await?;
        populate(&gateways, protocol).await?;
        say(format!("{}: deployed and populated", protocol.name()));
        outcomes.insert(protocol, Outcome::new(protocol));
    }
    drop(binary);
    for &protocol in &options.protocols {
        let told = outcomes.get(&protocol).map(|o| Arc::clone(&o.told)).unwrap_or_default();
        mix(&gateways, protocol, Duration::from_secs(1), options.rate_per_s, &told).await;
    }
    gateways.cluster().carried().into_iter().for_each(|carried| say(carried.described()));
    for slice in 1..=options.slices {
        for &protocol in &options.protocols {
            let told = outcomes.get(&protocol).map(|o| Arc::clone(&o.told)).unwrap_or_default();
            let (measured, appends) =
                mix(&gateways, protocol, options.slice, options.rate_per_s, &told).await;
            say(format!(
                "mix, slice {slice} of {}: {:<14} p50 {:>6} µs, p99 {:>6} µs, {} failed",
                options.slices,
                protocol.name(),
                measured.latency_us.value_at_quantile(0.5),
                measured.latency_us.value_at_quantile(0.99),
                measured.failed,
            ));
            if let Some(outcome) = outcomes.get_mut(&protocol) {
                outcome.requests += measured.succeeded;
                outcome.appends += appends;
                outcome.slices.push(measured);
            }
        }
    }
    for &protocol in &options.protocols {
        let outcome = outcomes.get_mut(&protocol).context("every protocol has an outcome")?;
        chaos(&gateways, options, outcome, say).await?;
        gateways.cluster().carried().into_iter().for_each(|carried| say(carried.described()));
    }
    Ok(options.protocols.iter().filter_map(|p| outcomes.remove(p)).collect())
}

impl Outcome {
    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            slices: Vec::new(),
            requests: 0,
            appends: 0,
            acknowledged: 0,
            faults: Faults::default(),
            takeovers_ms: Vec::new(),
            findings: Findings::default(),
            told: ToldSoFar::default(),
        }
    }

    /// The slices together.
    #[must_use]
    pub fn latency(&self) -> Measured {
        let mut all = Measured::new();
        for slice in &self.slices {
            all.merge(slice);
        }
        all
    }

    /// Appends per request of the mix.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53, for a ratio")]
    pub fn appends_per_request(&self) -> f64 {
        let requests: u64 = self.slices.iter().map(|slice| slice.succeeded).sum();
        if requests == 0 { 0.0 } else { self.appends as f64 / requests as f64 }
    }
}

pub(crate) async fn deploy(
    gateways: &Gateways,
    protocol: Protocol,
    binary: Bytes,
) -> anyhow::Result<()> {
    let name = protocol.name();
    let path = format!("/v1/deploy?namespace={name}&protocol={name}");
    let call = Call {
        method: Method::POST,
        path: &path,
        headers: &[("content-type", "application/octet-stream")],
        body: binary,
        timeout: Duration::from_secs(60),
    };
    let reply = gateways
        .until_answered(call, Duration::from_secs(90))
        .await
        .with_context(|| format!("no engine took the deployment under {name}"))?;
    anyhow::ensure!(
        reply.status.is_success(),
        "deploying under {name} failed: {}",
        String::from_utf8_lossy(&reply.body)
    );
    Ok(())
}

pub(crate) async fn populate(gateways: &Gateways, protocol: Protocol) -> anyhow::Result<()> {
    for part in 0..travel::POPULATE_PARTS {
        let function = format!("{}.populate", protocol.name());
        let key = format!("populate-{part}");
        let headers = [("idempotency-key", key.as_str())];
        gateways
            .invoke(
                &function,
                &json!({ "part": part, "atomic": protocol.has_transactions() }),
                &headers,
                Duration::from_secs(60),
            )
            .await
            .with_context(|| format!("populating under {}", protocol.name()))?;
    }
    Ok(())
}

/// One slice of the mix, open loop. Returns latencies and the appends of all requests.
async fn mix(
    gateways: &Arc<Gateways>,
    protocol: Protocol,
    duration: Duration,
    rate_per_s: f64,
    told: &ToldSoFar,
) -> (Measured, u64) {
    let path: Arc<str> = format!("/v1/functions/{}.frontend/invoke", protocol.name()).into();
    let appends = Arc::new(AtomicU64::new(0));
    let seed = fresh_seed();
    let measured = open_loop(Schedule::lasting(duration, rate_per_s), |index| {
        let (gateways, path, appends, told) =
            (Arc::clone(gateways), Arc::clone(&path), Arc::clone(&appends), Arc::clone(told));
        async move {
            let request = travel::mix(seed.wrapping_add(index), protocol.has_transactions());
            let key = format!("mix-{seed:x}-{index}");
            let keyed = [("idempotency-key", key.as_str())];
            let headers = if matches!(request, Request::Reserve { .. }) { &keyed[..] } else { &[] };
            let call = Call {
                method: Method::POST,
                path: &path,
                headers,
                body: Bytes::from(serde_json::to_vec(&request).unwrap_or_default()),
                timeout: Duration::from_secs(30),
            };
            let answer = gateways.once(call).await;
            if let Request::Reserve { id, .. } = request {
                let how = answer.as_ref().map_or(Told::Unknown, told_by);
                told.lock().unwrap_or_else(PoisonError::into_inner).insert(id, how);
            }
            match answer {
                Ok(reply) if reply.status == 200 => {
                    let count = reply.header("halfmoon-appends").and_then(|n| n.parse().ok());
                    appends.fetch_add(count.unwrap_or(0), Ordering::Relaxed);
                    true
                }
                Ok(reply) => {
                    tracing::warn!(status = %reply.status, body = ?reply.body, "mix");
                    false
                }
                Err(error) => {
                    tracing::warn!(%error, "mix");
                    false
                }
            }
        }
    })
    .await;
    (measured, appends.load(Ordering::Relaxed))
}

/// Differs between runs, so that keys do.
pub(crate) fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

pub(crate) type ToldSoFar = Arc<Mutex<BTreeMap<String, Told>>>;

async fn chaos(
    gateways: &Arc<Gateways>,
    options: &Options,
    outcome: &mut Outcome,
    say: &(dyn Fn(String) + Send + Sync),
) -> anyhow::Result<()> {
    let protocol = outcome.protocol;
    let told = Arc::clone(&outcome.told);
    let before = told.lock().unwrap_or_else(PoisonError::into_inner).len();
    let killing = Arc::new(AtomicBool::new(true));
    let mut clients = tokio::task::JoinSet::new();
    let seed = fresh_seed();
    for client in 0..CLIENTS {
        let stream = Stream {
            gateways: Arc::clone(gateways),
            protocol,
            client,
            seed,
            told: Arc::clone(&told),
            killing: Arc::clone(&killing),
            wanted: options.reservations.div_ceil(CLIENTS),
            pause: Duration::from_secs_f64(f64::from(CLIENTS) / options.reservations_per_s),
        };
        clients.spawn(stream.run());
    }
    let progress = |faults: &Faults| {
        let done = told.lock().unwrap_or_else(PoisonError::into_inner).len() - before;
        let (name, faults) = (protocol.name(), faults.described());
        say(format!("kills under {name:<14} {faults}; {done} reservations answered"));
    };
    let name = protocol.name().to_owned();
    let mut watch = Watch::new(Arc::clone(gateways));
    let faults = carry_out(options.faults, Arc::clone(gateways), name, progress, &mut watch).await;
    outcome.takeovers_ms = watch.ended_ms().await;
    killing.store(false, Ordering::Release);
    while clients.join_next().await.is_some() {}
    outcome.faults = faults?;
    let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    outcome.requests += (told.len() - before) as u64;
    outcome.acknowledged =
        told.values().filter(|told| matches!(told, Told::Reserved(_))).count() as u64;
    let snapshot = settled_snapshot(gateways, protocol, &told).await?;
    outcome.findings = audit(&told, &snapshot);
    if !outcome.takeovers_ms.is_empty() {
        let all: Vec<String> =
            outcome.takeovers_ms.iter().map(|ms| format!("{ms:.0} ms")).collect();
        say(format!("what ran on an engine that died had ended after {}", all.join(", ")));
    }
    say(format!(
        "audit of {:<14} {} acknowledged, {} effects, lost {}, doubled {}, contradicted {}",
        protocol.name(),
        outcome.acknowledged,
        outcome.findings.effects,
        outcome.findings.lost,
        outcome.findings.doubled,
        outcome.findings.contradicted,
    ));
    Ok(())
}

/// One client of the audited stream.
pub(crate) struct Stream {
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) protocol: Protocol,
    pub(crate) client: u32,
    pub(crate) seed: u64,
    pub(crate) told: ToldSoFar,
    pub(crate) killing: Arc<AtomicBool>,
    pub(crate) wanted: u32,
    pub(crate) pause: Duration,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    row: Option<Row>,
}

/// What a reply tells of a reservation.
fn told_by(reply: &Reply) -> Told {
    if reply.status != 200 {
        tracing::warn!(status = %reply.status, body = ?reply.body, "reservation");
        return Told::Unknown;
    }
    match serde_json::from_slice(&reply.body) {
        Ok(Answer { row: Some(row) }) => Told::Reserved(row),
        Ok(Answer { row: None }) => Told::Full,
        Err(_) => Told::Unknown,
    }
}

impl Stream {
    /// Sends reservations until there are enough *and* nothing is killed any more.
    pub(crate) async fn run(self) {
        let mut index = 0;
        while index < self.wanted || self.killing.load(Ordering::Acquire) {
            let begin = tokio::time::Instant::now();
            let id = format!("r{:x}-{}-{index}", self.seed, self.client);
            let told = self.reserve(&id, index).await;
            self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(id, told);
            tokio::time::sleep_until(begin + self.pause).await;
            index += 1;
        }
    }

    async fn reserve(&self, id: &str, index: u32) -> Told {
        let atomic = self.protocol.has_transactions();
        let (hotel, flight) = if atomic {
            let spread = travel::mixed(u64::from(index) << 32 | u64::from(self.client));
            let pick = |bits: u64, of: u32| u32::try_from(bits % u64::from(of)).unwrap_or(0);
            (pick(spread, HOTELS), pick(spread >> 32, FLIGHTS))
        } else {
            let own = HOTELS / CLIENTS;
            let row = self.client * own + index % own;
            (row, row)
        };
        let request = Request::Reserve { id: id.to_owned(), hotel, flight, atomic };
        let path = format!("/v1/functions/{}.frontend/invoke", self.protocol.name());
        let call = Call {
            method: Method::POST,
            path: &path,
            headers: &[("idempotency-key", id)],
            body: Bytes::from(serde_json::to_vec(&request).unwrap_or_default()),
            timeout: Duration::from_secs(15),
        };
        match self.gateways.until_answered(call, ANSWER_WITHIN).await {
            Some(reply) => told_by(&reply),
            None => Told::Unknown,
        }
    }
}

/// The state, once every row's order was processed, or the wait for that was long enough.
pub(crate) async fn settled_snapshot(
    gateways: &Gateways,
    protocol: Protocol,
    told: &BTreeMap<String, Told>,
) -> anyhow::Result<Snapshot> {
    let end = tokio::time::Instant::now() + ORDERS_WITHIN;
    loop {
        let snapshot = snapshot(gateways, protocol, told).await?;
        let settled = snapshot.rows.keys().all(|id| snapshot.orders.contains_key(id));
        if settled || tokio::time::Instant::now() > end {
            return Ok(snapshot);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn snapshot(
    gateways: &Gateways,
    protocol: Protocol,
    told: &BTreeMap<String, Told>,
) -> anyhow::Result<Snapshot> {
    #[derive(Deserialize)]
    struct Part {
        rooms_left: BTreeMap<u32, u32>,
        seats_left: BTreeMap<u32, u32>,
        rows: BTreeMap<String, Row>,
        orders: BTreeMap<String, u32>,
    }
    let function = format!("{}.inspect", protocol.name());
    let headers = [("halfmoon-consistency", "linearizable")];
    let within = Duration::from_secs(60);
    let mut whole = Snapshot::default();
    let mut add = |answer: Value| -> anyhow::Result<()> {
        let part: Part = serde_json::from_value(answer)?;
        whole.rooms_left.extend(part.rooms_left);
        whole.seats_left.extend(part.seats_left);
        whole.rows.extend(part.rows);
        whole.orders.extend(part.orders);
        Ok(())
    };
    let atomic = protocol.has_transactions();
    let capacity = json!({ "capacity": true, "atomic": atomic });
    add(gateways.invoke(&function, &capacity, &headers, within).await?)?;
    let ids: Vec<&String> = told.keys().collect();
    for ids in ids.chunks(INSPECT_MAX) {
        let some = json!({ "ids": ids, "atomic": atomic });
        add(gateways.invoke(&function, &some, &headers, within).await?)?;
    }
    Ok(whole)
}
