//! A whole cluster in a directory, as a user starts it, for tests that take things away from it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::http;

/// How long a cluster may take until it is up, also after a loss of power on a slow disk.
const UP_MAX: Duration = Duration::from_secs(60);
/// How long the clients may take to get as many answers as a round needs.
const ROUND_MAX: Duration = Duration::from_secs(120);
/// The status of an answer that says "not yet".
const STILL_RUNNING: u16 = 202;
/// Clients that ask at once.
const CLIENTS: usize = 4;
/// Hotels and flights of the travel application.
const HOTELS: usize = 80;
/// Parts in which its tables are filled.
const POPULATE_PARTS: usize = 8;
/// Reservations that are looked up at once.
const INSPECT: usize = 100;

/// A program, with all its children, that is killed when this is dropped.
pub(crate) struct Victim {
    child: Child,
}

impl Victim {
    /// Starts it in a process group of its own, so that its children can be killed with it.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let child = command.process_group(0).stdin(Stdio::null()).spawn()?;
        Ok(Self { child })
    }

    pub(crate) fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let mut kill = Command::new("kill");
        // When it has ended by itself there is nobody to kill, and that is fine.
        let _gone = kill.args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _status = self.child.wait();
    }
}

/// A running cluster.
pub(crate) struct Cluster {
    victim: Victim,
    gateways: Vec<SocketAddr>,
}

impl Cluster {
    /// Starts it on what `data` holds, and waits until it is up.
    pub(crate) fn start(program: &Path, data: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(["dev", "--port", "0", "--segment-mib", "4", "--data-dir"]).arg(data);
        // After a loss of power its nodes have much to complain about.
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut victim = Victim::start(&mut command)?;
        let lines = lines(victim.output().context("no output")?);
        let began = Instant::now();
        let mut gateways = Vec::new();
        loop {
            let line = match lines.recv_timeout(UP_MAX.saturating_sub(began.elapsed())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    anyhow::bail!("the cluster is not up after {} s", UP_MAX.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("the cluster ended before it was up")
                }
            };
            if let Some((_, address)) = line.split_once(": http://") {
                gateways.push(address.trim().parse().context(line.clone())?);
            }
            // The line after the last gateway.
            if line.trim_start().starts_with("state:") {
                anyhow::ensure!(!gateways.is_empty(), "the cluster names no gateway");
                return Ok(Self { victim, gateways });
            }
        }
    }

    fn client(&self) -> Client<'_> {
        Client { gateways: &self.gateways }
    }

    /// Deploys the travel application, which the program holds, and fills its tables.
    pub(crate) fn deploy(&self, program: &Path) -> anyhow::Result<()> {
        let path = "/v1/deploy?namespace=travel&protocol=halfmoon-read";
        let reply = http::post(self.client().first(), path, "deploy", &std::fs::read(program)?)?;
        anyhow::ensure!(reply.status == 200, "not deployed: {}", reply.text());
        for part in 0..POPULATE_PARTS {
            let body = json!({ "part": part, "atomic": true });
            self.client().invoke("populate", &format!("populate-{part}"), &body)?;
        }
        Ok(())
    }
}

/// Reads a program's output to its end, so that it is never blocked by us.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens any more once the cluster is up.
            let _unheard = sender.send(line);
        }
    });
    receiver
}

#[derive(Clone, Copy)]
struct Client<'a> {
    gateways: &'a [SocketAddr],
}

impl Client<'_> {
    fn first(self) -> SocketAddr {
        self.of(0)
    }

    fn of(self, number: usize) -> SocketAddr {
        self.gateways[number % self.gateways.len()]
    }

    /// Calls a function; what it returned.
    fn invoke(self, function: &str, key: &str, input: &Value) -> anyhow::Result<Value> {
        let path = format!("/v1/functions/travel.{function}/invoke");
        let number = key.bytes().map(usize::from).sum();
        let body = input.to_string();
        let began = Instant::now();
        loop {
            let reply = http::post(self.of(number), &path, key, body.as_bytes())?;
            // "Still running" is an answer, and asking again with the same key is how to wait.
            if reply.status == STILL_RUNNING && began.elapsed() < ROUND_MAX {
                continue;
            }
            anyhow::ensure!(reply.status == 200, "{function}: {}: {}", reply.status, reply.text());
            return Ok(serde_json::from_slice(&reply.body)?);
        }
    }

    fn reserve(self, number: usize) -> anyhow::Result<Value> {
        let id = id(number);
        let (hotel, flight) = (number % HOTELS, (number / 7) % HOTELS);
        let input =
            json!({ "op": "reserve", "id": id, "hotel": hotel, "flight": flight, "atomic": true });
        let mut reply = self.invoke("frontend", &id, &input)?;
        Ok(reply["row"].take())
    }
}

fn id(number: usize) -> String {
    format!("reservation-{number}")
}

/// What clients were told, over the life of a data directory.
#[derive(Default)]
pub(crate) struct Told {
    /// The number of the next reservation.
    next: usize,
    /// What each acknowledged reservation was answered.
    replies: BTreeMap<usize, Value>,
}

impl Told {
    /// How many reservations were acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.replies.len()
    }

    /// Lets clients reserve, and calls `crash` in the middle of it, after `answers` answers.
    pub(crate) fn reserve_until(
        &mut self,
        cluster: Cluster,
        answers: usize,
        crash: impl FnOnce(Victim) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Cluster { victim, gateways } = cluster;
        let next = AtomicUsize::new(self.next);
        let crashed = AtomicBool::new(false);
        let replies = Mutex::new(BTreeMap::new());
        let work = || {
            let client = Client { gateways: &gateways };
            while !crashed.load(Ordering::SeqCst) {
                let number = next.fetch_add(1, Ordering::SeqCst);
                // Without an answer it may or may not have happened; the audit leaves it alone.
                if let Ok(reply) = client.reserve(number)
                    && let Ok(mut replies) = replies.lock()
                {
                    replies.insert(number, reply);
                }
            }
        };
        let count = || replies.lock().map_or(0, |replies| replies.len());
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(work);
            }
            let began = Instant::now();
            while count() < answers && began.elapsed() < ROUND_MAX {
                std::thread::sleep(Duration::from_millis(1));
            }
            let enough = count() >= answers;
            let result = crash(victim);
            crashed.store(true, Ordering::SeqCst);
            anyhow::ensure!(enough, "{} answers in {} s", count(), ROUND_MAX.as_secs());
            result
        })?;
        self.next = next.into_inner();
        self.replies.extend(replies.into_inner().unwrap_or_default());
        Ok(())
    }

    /// Compares with what the cluster says now: how many acknowledged reservations are not there, or
    /// are not what their clients were told, in the state or when they ask again.
    pub(crate) fn missing(&self, cluster: &Cluster) -> anyhow::Result<usize> {
        let client = cluster.client();
        let numbers: Vec<usize> = self.replies.keys().copied().collect();
        let mut missing = BTreeSet::new();
        for (index, numbers) in numbers.chunks(INSPECT).enumerate() {
            let ids: Vec<String> = numbers.iter().copied().map(id).collect();
            let key = format!("inspect-{}-{index}", self.next);
            let found = client.invoke("inspect", &key, &json!({ "ids": ids, "atomic": true }))?;
            for number in numbers {
                let row = found["rows"].get(id(*number)).unwrap_or(&Value::Null);
                missing.extend((self.replies.get(number) != Some(row)).then_some(*number));
            }
        }
        for number in numbers.iter().rev().take(INSPECT) {
            let again = client.reserve(*number)?;
            missing.extend((self.replies.get(number) != Some(&again)).then_some(*number));
        }
        Ok(missing.len())
    }
}
