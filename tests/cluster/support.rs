//! A cluster of real processes for a test, and requests to it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use halfmoon_bench::http::{Call, Client, Reply, RequestError};
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

/// The `halfmoon` command of this build.
pub const HALFMOON: &str = env!("CARGO_BIN_EXE_halfmoon");

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A `halfmoon dev` with everything it started.
pub struct Dev {
    process: Child,
    log: PathBuf,
    pub engines: Vec<SocketAddr>,
}

/// An example of this build.
pub fn example(name: &str) -> String {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    program.to_str().unwrap().to_owned()
}

/// Notes that a test cannot run here: it must not look as if it had passed.
pub fn skip(test: &str, why: &str) {
    if let Some(file) = std::env::var_os("HALFMOON_SKIP_FILE") {
        let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}

/// The command with arguments, its output taken.
pub fn halfmoon(arguments: &[&str]) -> Output {
    Command::new(HALFMOON).args(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Dev {
    /// Starts a cluster in `data` and waits until it says that it is up.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    pub fn start_with(data: &Path, arguments: &[&str]) -> Self {
        Self::start_by(Command::new(HALFMOON), data, arguments)
    }

    /// Starts it by a command that takes what `halfmoon` takes.
    pub fn start_by(mut halfmoon: Command, data: &Path, arguments: &[&str]) -> Self {
        let log = data.with_extension("log");
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut process = halfmoon
            .args(["dev", "--port", "0", "--data-dir"])
            .arg(data)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut engines = Vec::new();
        for line in lines {
            let line = line.unwrap();
            if let Some((_, address)) = line.split_once("http://") {
                engines.push(address.parse().unwrap());
            }
            if line.starts_with("next:") {
                return Self { process, log, engines };
            }
        }
        process.wait().unwrap();
        let log = std::fs::read_to_string(log).unwrap_or_default();
        panic!("the cluster did not come up:\n{log}");
    }

    /// SIGKILL to every process of the cluster at once, workers included.
    pub fn kill_everything(mut self) {
        kill_process_group(self.pid(), Signal::KILL).unwrap();
        self.process.wait().unwrap();
    }

    /// SIGTERM, and whether it ended as it should.
    pub fn stop(self) -> bool {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.ended_well()
    }

    /// Waits for the end of the command; whether it ended as it should.
    pub fn ended_well(mut self) -> bool {
        self.process.wait().unwrap().success()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap()
    }

    /// What the cluster has said on standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the cluster has said something.
    pub fn until_said(&self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(what)) {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "{what:?} was never said:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Address of the first engine, as `--server` takes it.
    pub fn server(&self) -> String {
        self.engines[0].to_string()
    }

    /// Makes the functions of a binary available.
    pub fn deploy(&self, binary: &str) {
        let output = halfmoon(&["deploy", binary, "--server", &self.server()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// Invokes a function, whichever engine answers.
    pub async fn invoke(
        &self,
        function: &str,
        input: &Value,
        key: Option<&str>,
    ) -> Result<Reply, RequestError> {
        let headers: Vec<(&str, &str)> =
            key.map(|key| ("idempotency-key", key)).into_iter().collect();
        let path = format!("/v1/functions/{function}/invoke");
        let call = Call {
            method: Method::POST,
            path: &path,
            headers: &headers,
            body: Bytes::from(input.to_string()),
            timeout: PATIENCE,
        };
        Client::new(self.engines[0]).send(call).await
    }

    /// Invokes a function that must succeed, and its JSON result.
    pub async fn result(&self, function: &str, input: &Value, key: Option<&str>) -> Value {
        let reply = self.invoke(function, input, key).await.unwrap();
        assert_eq!(reply.status, 200, "{function}: {}", text(&reply.body));
        serde_json::from_slice(&reply.body).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            kill_process_group(group, Signal::KILL).ok();
        }
        self.process.wait().ok();
    }
}

/// A directory for one test.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        // On the disk of the build, not in /tmp, which is memory on many machines.
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A value shared between tasks of one thread.
pub type Shared<T> = Arc<std::sync::Mutex<T>>;
