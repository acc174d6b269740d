//! A real etcd for a test; shared by the tests of several packages.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_meta::MetaStore;
use rustix::process::{Pid, Signal, kill_process};

/// How long etcd may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// An etcd of one member, of this test alone.
pub struct Etcd {
    child: Child,
    clients: String,
    peers: String,
    directory: tempfile::TempDir,
}

impl Etcd {
    /// `None`, and a note that says so, where etcd is not installed.
    pub fn start(test: &str) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            skipped(test, "etcd is not installed");
            return None;
        }
        // Somebody else may take a port between its choice and its use.
        let end = Instant::now() + UP_WITHIN;
        while Instant::now() < end {
            let [clients, peers] =
                [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
            let directory = tempfile::tempdir().unwrap();
            let child = run(&clients, &peers, directory.path().to_owned());
            let mut etcd = Self { child, clients, peers, directory };
            if etcd.is_up_before(end) {
                return Some(etcd);
            }
        }
        panic!("etcd does not come up");
    }

    /// Whether it answers; not if it has ended.
    fn is_up_before(&mut self, end: Instant) -> bool {
        let store = self.open("ready");
        while Instant::now() < end && self.child.try_wait().unwrap().is_none() {
            if store.get("ready").is_ok() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    /// `host:port` of its clients.
    pub fn address(&self) -> &str {
        &self.clients
    }

    /// The store under a prefix of its own.
    pub fn open(&self, prefix: &str) -> Arc<dyn MetaStore> {
        halfmoon_meta::open(&format!("etcd://{}/{prefix}", self.clients)).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, with what it had, where it was.
    pub fn start_again(&mut self) {
        self.child = run(&self.clients, &self.peers, self.directory.path().to_owned());
        assert!(self.is_up_before(Instant::now() + UP_WITHIN), "etcd does not come back");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn run(clients: &str, peers: &str, directory: PathBuf) -> Child {
    let [clients, peers] = [clients, peers].map(|address| format!("http://{address}"));
    Command::new("etcd")
        .args(["--name", "one", "--initial-cluster", &format!("one={peers}")])
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .arg("--data-dir")
        .arg(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Notes that a test cannot run here: it must not look as if it had passed.
fn skipped(test: &str, why: &str) {
    if let Ok(path) = std::env::var("HALFMOON_SKIP_FILE") {
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}
