//! Clients that reserve through all gateways, and what each of them was told, and when.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::audit::{Row, Snapshot, Told};
use super::plan::Random;
use crate::http::{Reply, Request, send};

/// Clients that ask at once.
pub(super) const CLIENTS: usize = 6;
/// Pause of a client between two reservations.
const BETWEEN: Duration = Duration::from_millis(60);
/// How long one gateway may take to answer before another is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the gateway is told of that, in ms: a little less, so that it can still say so.
const DEADLINE_MS: &str = "2500";
/// Pause before another gateway is asked.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a client asks for one reservation while faults happen, before it gives up on the answer.
const GIVE_UP: Duration = Duration::from_secs(4);
/// Longest filler of a request, in bytes: logs grow by it.
const FILLER_MAX: u64 = 30_000;
/// Hotels and flights of the travel application.
const HOTELS: usize = 80;
/// Parts in which its tables are filled.
const POPULATE_PARTS: usize = 8;
/// Reservations that are looked up at once.
const INSPECT: usize = 100;

/// The gateways of a cluster.
pub(super) struct Gateways {
    addresses: Vec<SocketAddr>,
    turn: AtomicUsize,
}

/// How a request to run a function went.
enum Answer {
    /// The function has returned this.
    Result(Value),
    /// No answer, or none that is final.
    NotYet,
    /// The answer is final, and is not a result.
    Refused(String),
}

impl Gateways {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, turn: AtomicUsize::new(0) }
    }

    fn next(&self) -> SocketAddr {
        self.addresses[self.turn.fetch_add(1, Ordering::Relaxed) % self.addresses.len()]
    }

    /// Asks every gateway; what each says, or nothing.
    pub(super) fn each(&self, path: &str) -> Vec<Option<Reply>> {
        let request = Request { method: "GET", path, headers: &[], body: b"", patience: PATIENCE };
        self.addresses.iter().map(|to| send(*to, &request).ok()).collect()
    }

    /// Asks one gateway, once.
    fn once(&self, function: &str, headers: &[(&str, &str)], input: &Value) -> Answer {
        let path = format!("/v1/functions/travel.{function}/invoke");
        let body = input.to_string();
        let headers = [headers, &[("halfmoon-deadline-ms", DEADLINE_MS)]].concat();
        let request = Request {
            method: "POST",
            path: &path,
            headers: &headers,
            body: body.as_bytes(),
            patience: PATIENCE,
        };
        // Without an answer it may or may not have happened.
        let Ok(reply) = send(self.next(), &request) else { return Answer::NotYet };
        match reply.status {
            200 => serde_json::from_slice(&reply.body).map_or(Answer::NotYet, Answer::Result),
            // The second: parked, or given up after too many attempts, for want of parts of the
            // cluster as it may be.
            202 | 408 | 429 | 500.. => Answer::NotYet,
            status => Answer::Refused(format!("{function}: {status}: {}", reply.text())),
        }
    }

    /// Asks one gateway after the other, until the function has returned something.
    pub(super) fn invoke(
        &self,
        function: &str,
        headers: &[(&str, &str)],
        input: &Value,
        within: Duration,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            match self.once(function, headers, input) {
                Answer::Result(value) => return Ok(value),
                Answer::NotYet => std::thread::sleep(AGAIN),
                Answer::Refused(why) => anyhow::bail!(why),
            }
        }
        anyhow::bail!("{function} did not end within {} s", within.as_secs())
    }

    /// Deploys the travel application, which the program holds, and fills its tables.
    pub(super) fn deploy(&self, program: &Path, within: Duration) -> anyhow::Result<()> {
        let binary = std::fs::read(program)?;
        let request = Request {
            method: "POST",
            path: "/v1/deploy?namespace=travel&protocol=halfmoon-read",
            headers: &[],
            body: &binary,
            patience: within,
        };
        let reply = send(self.next(), &request).context("not deployed")?;
        anyhow::ensure!(reply.status == 200, "not deployed: {}", reply.text());
        for part in 0..POPULATE_PARTS {
            let key = format!("populate-{part}");
            let input = json!({ "part": part, "atomic": true });
            self.invoke("populate", &[("idempotency-key", &key)], &input, within)?;
        }
        Ok(())
    }

    /// What the state says of these reservations.
    pub(super) fn inspect(&self, ids: &[String], within: Duration) -> anyhow::Result<Snapshot> {
        let headers = [("halfmoon-consistency", "linearizable")];
        let mut whole = Snapshot::default();
        let mut add = |input: Value| -> anyhow::Result<()> {
            let mut part = self.invoke("inspect", &headers, &input, within)?;
            let mut take = |name: &str| part[name].take();
            let (rooms, seats) = (take("rooms_left"), take("seats_left"));
            whole.rooms_left.extend(serde_json::from_value::<BTreeMap<u32, u32>>(rooms)?);
            whole.seats_left.extend(serde_json::from_value::<BTreeMap<u32, u32>>(seats)?);
            whole.rows.extend(serde_json::from_value::<BTreeMap<String, Row>>(take("rows"))?);
            whole.orders.extend(serde_json::from_value::<BTreeMap<String, u32>>(take("orders"))?);
            Ok(())
        };
        add(json!({ "capacity": true, "atomic": true }))?;
        for ids in ids.chunks(INSPECT) {
            add(json!({ "ids": ids, "atomic": true }))?;
        }
        Ok(whole)
    }
}

/// One reservation, as its client saw it.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) number: usize,
    /// When it was first asked for, after the start of the load.
    pub(super) began: Duration,
    /// When there was an answer.
    pub(super) ended: Option<Duration>,
    pub(super) told: Told,
    /// An answer that no request of this load may get.
    pub(super) refused: Option<String>,
}

/// All reservations.
#[derive(Default)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
}

/// The load: shared by its clients.
pub(super) struct Load<'a> {
    pub(super) gateways: &'a Gateways,
    pub(super) began: Instant,
    /// No more reservations are begun.
    pub(super) over: &'a AtomicBool,
    pub(super) history: &'a Mutex<History>,
    next: AtomicUsize,
}

pub(super) fn id(number: usize) -> String {
    format!("reservation-{number}")
}

fn told(mut answer: Value) -> Told {
    match serde_json::from_value(answer["row"].take()) {
        Ok(Some(row)) => Told::Reserved(row),
        Ok(None) => Told::Full,
        Err(_) => Told::Unknown,
    }
}

/// What a reservation asks for, always the same for the same number.
fn input(number: usize) -> Value {
    let mut random = Random(number as u64);
    let mut pick = |of: usize| random.below(of as u64);
    let (hotel, flight) = (pick(HOTELS), pick(HOTELS));
    // Most are small, some make the log grow.
    let filler = if pick(4) == 0 { random.below(FILLER_MAX) } else { 0 };
    let filler = "x".repeat(usize::try_from(filler).unwrap_or(0));
    json!({
        "op": "reserve", "id": id(number), "hotel": hotel, "flight": flight, "atomic": true,
        "filler": filler,
    })
}

impl<'a> Load<'a> {
    pub(super) fn new(
        gateways: &'a Gateways,
        over: &'a AtomicBool,
        history: &'a Mutex<History>,
    ) -> Self {
        Self { gateways, began: Instant::now(), over, history, next: AtomicUsize::new(0) }
    }

    /// One client: reserves until the load is over.
    pub(super) fn run(&self) {
        while !self.over.load(Ordering::Acquire) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let event = self.reserve(number);
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            history.events.push(event);
            drop(history);
            std::thread::sleep(BETWEEN);
        }
    }

    fn reserve(&self, number: usize) -> Event {
        let began = self.began.elapsed();
        let (key, input) = (id(number), input(number));
        let mut event = Event { number, began, ended: None, told: Told::Unknown, refused: None };
        while self.began.elapsed() < began + GIVE_UP {
            match self.gateways.once("frontend", &[("idempotency-key", &key)], &input) {
                Answer::Result(value) => {
                    event.ended = Some(self.began.elapsed());
                    event.told = told(value);
                    break;
                }
                Answer::NotYet => std::thread::sleep(AGAIN),
                Answer::Refused(why) => {
                    event.refused = Some(why);
                    break;
                }
            }
        }
        event
    }
}

/// Asks again for a reservation without an answer, until there is one.
pub(super) fn ask_again(
    gateways: &Gateways,
    number: usize,
    within: Duration,
) -> anyhow::Result<Told> {
    let key = id(number);
    gateways.invoke("frontend", &[("idempotency-key", &key)], &input(number), within).map(told)
}
