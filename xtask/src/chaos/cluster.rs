//! The processes of the cluster: started, killed, stopped, and started again when they have ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::guard::Guard;
use super::net::{self, PORT};
use super::plan::{ETCD, Node, STORAGE};
use crate::run::target;
use crate::volume::{Volume, Way, call, wait_until};

/// Pause before a node that has ended is started again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the first start may take, on a slow machine.
const FOUNDED_WITHIN: Duration = Duration::from_secs(90);
/// How long a node may take to end when it is asked to.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// MiB of a segment: small, so that a full disk is noticed and segments end often.
const SEGMENT_MIB: &str = "1";
/// Sizes by which a disk is filled, in KiB.
const BALLAST_KIB: [u32; 6] = [1 << 18, 1 << 14, 1 << 10, 1 << 6, 1 << 2, 1];
/// Where Debian's libfaketime is, below the library folder.
const FAKETIME: &str = "faketime/libfaketime.so.1";

/// Where things lie, and what there is.
pub(super) struct Place {
    /// The folder of this run.
    pub(super) folder: PathBuf,
    /// The program under test.
    pub(super) program: PathBuf,
    /// What each storage node's file system is on; `None`: all on the folder's.
    pub(super) way: Option<Way>,
    /// The library that shifts a process's clock.
    pub(super) faketime: Option<PathBuf>,
    pub(super) etcd: bool,
}

impl Place {
    /// Where the cluster's data directory is.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The address of the metadata store.
    pub(super) fn meta(&self) -> String {
        if self.etcd {
            format!("etcd://{}/chaos", net::gateway(ETCD))
        } else {
            self.data().join("meta").display().to_string()
        }
    }

    fn clock(&self, node: Node) -> PathBuf {
        self.folder.join(format!("{node}.clock"))
    }
}

/// Where the library is that shifts clocks, if it is installed.
pub(super) fn faketime() -> Option<PathBuf> {
    let folders =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    folders.into_iter().map(|folder| Path::new(folder).join(FAKETIME)).find(|path| path.exists())
}

struct Process {
    node: Node,
    child: Option<Child>,
    /// When it was found to have ended.
    ended: Instant,
    /// So many faults keep it down.
    held: u32,
}

/// All of them, with the disks of the storage nodes.
pub(super) struct Cluster {
    place: Place,
    processes: Vec<Process>,
    disks: Vec<(Node, Volume)>,
    /// The last to go.
    _guard: Guard,
    /// Nodes that ended and were not killed, and how.
    pub(super) ended: Vec<(Node, ExitStatus)>,
}

impl Cluster {
    /// Makes the disks and the metadata store, and founds a cluster there. Its nodes do not run yet.
    pub(super) fn found(place: Place, nodes: &[Node]) -> anyhow::Result<Self> {
        let mut disks = Vec::new();
        for node in STORAGE.into_iter().filter(|_| place.way.is_some()) {
            let folder = place.folder.join(format!("disk-{node}"));
            let way = place.way.context("a way was found")?;
            disks
                .push((node, Volume::create_at(way, folder, place.data().join(node.to_string()))?));
        }
        fs::create_dir_all(place.data())?;
        let mounts: Vec<PathBuf> = disks.iter().flat_map(|(_, disk)| disk.mounts()).collect();
        let guard = Guard::start(&mounts)?;
        let now = Instant::now();
        let process = |node: &Node| Process { node: *node, child: None, ended: now, held: 0 };
        let processes = nodes.iter().map(process).collect();
        let mut cluster = Self { place, processes, disks, _guard: guard, ended: Vec::new() };
        if cluster.place.etcd {
            cluster.start(ETCD)?;
            wait_until("etcd takes connections", || {
                std::net::TcpStream::connect_timeout(&net::gateway(ETCD), PAUSE).is_ok()
            })?;
        }
        cluster.be_founded()?;
        Ok(cluster)
    }

    /// The cluster that `halfmoon dev` starts is founded, with nodes of the same names.
    fn be_founded(&self) -> anyhow::Result<()> {
        let log = File::create(self.place.folder.join("founding.log"))?;
        let mut dev = Command::new(&self.place.program);
        dev.args(["dev", "--port", "0", "--segment-mib", SEGMENT_MIB, "--data-dir"]);
        dev.arg(self.place.data());
        if self.place.etcd {
            dev.args(["--meta", &self.place.meta()]);
        }
        let mut dev = dev
            .stdin(Stdio::null())
            .stdout(File::create(self.place.folder.join("founding.out"))?)
            .stderr(log)
            .spawn()?;
        let said = || fs::read_to_string(self.place.folder.join("founding.out"));
        let deadline = Instant::now() + FOUNDED_WITHIN;
        while !said().is_ok_and(|said| said.contains("next:")) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(dev.id(), "TERM");
        let status = dev.wait()?;
        anyhow::ensure!(Instant::now() < deadline, "the cluster is not up in time to be founded");
        anyhow::ensure!(status.success(), "halfmoon dev ended with {status}");
        Ok(())
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    fn process(&mut self, node: Node) -> anyhow::Result<&mut Process> {
        self.processes.iter_mut().find(|one| one.node == node).context("no such node")
    }

    /// Starts a node, unless it runs or is kept down.
    pub(super) fn start(&mut self, node: Node) -> anyhow::Result<()> {
        let command = if node == ETCD { self.etcd() } else { self.halfmoon(node) }?;
        let process = self.process(node)?;
        if process.child.is_none() && process.held == 0 {
            let mut command = command;
            process.child = Some(command.spawn().context("cannot run nsenter")?);
        }
        Ok(())
    }

    fn log(&self, node: Node) -> anyhow::Result<File> {
        let path = self.place.folder.join(format!("{node}.log"));
        Ok(File::options().create(true).append(true).open(path)?)
    }

    fn halfmoon(&self, node: Node) -> anyhow::Result<Command> {
        let (place, address) = (&self.place, net::address(node));
        let data = place.data().join(node.to_string());
        let mut command = net::inside(node);
        command
            .arg(&place.program)
            .args(["run", "--until-stdin-ends", "--role", node.role()])
            .args(["--node", &node.id().to_string(), "--segment-mib", SEGMENT_MIB])
            .args(["--listen", &format!("{address}:0"), "--http", &format!("{address}:{PORT}")])
            .args(["--meta", &place.meta(), "--data-dir"])
            .arg(data)
            // Its end is the end of the node, however this process ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(self.log(node)?);
        if let Some(faketime) = &place.faketime {
            let clock = place.clock(node);
            if !clock.exists() {
                fs::write(&clock, "+0\n")?;
            }
            command
                .env("LD_PRELOAD", faketime)
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Ok(command)
    }

    fn etcd(&self) -> anyhow::Result<Command> {
        let (clients, own) = (net::gateway(ETCD), net::address(ETCD));
        let (clients, peers) = (format!("http://{clients}"), format!("http://{own}:2380"));
        let mut command = net::inside(ETCD);
        command
            .args(["setpriv", "--pdeathsig", "KILL", "etcd", "--name", "one"])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("one={peers}"), "--data-dir"])
            .arg(self.place.folder.join("etcd"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log(ETCD)?);
        Ok(command)
    }

    /// Kills a node and keeps it down.
    pub(super) fn kill(&mut self, node: Node) -> anyhow::Result<()> {
        let process = self.process(node)?;
        process.held += 1;
        if let Some(mut child) = process.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Takes back one [`Self::kill`].
    pub(super) fn release(&mut self, node: Node) -> anyhow::Result<()> {
        let process = self.process(node)?;
        process.held = process.held.saturating_sub(1);
        self.start(node)
    }

    /// Stops a node; its process, for [`Self::resume`].
    pub(super) fn pause(&mut self, node: Node) -> anyhow::Result<Option<u32>> {
        let pid = self.process(node)?.child.as_ref().map(Child::id);
        if let Some(pid) = pid {
            signal(pid, "STOP");
        }
        Ok(pid)
    }

    /// Lets a node go on, if it still is that process.
    pub(super) fn resume(&mut self, node: Node, pid: Option<u32>) -> anyhow::Result<()> {
        let now = self.process(node)?.child.as_ref().map(Child::id);
        if let Some(pid) = now.filter(|now| Some(*now) == pid) {
            signal(pid, "CONT");
        }
        Ok(())
    }

    fn disk(&self, node: Node) -> anyhow::Result<&Volume> {
        let found = self.disks.iter().find(|(of, _)| *of == node);
        found.map(|(_, disk)| disk).context("the node has no disk of its own")
    }

    pub(super) fn set_rate(&self, node: Node, bits_per_s: Option<u64>) -> anyhow::Result<()> {
        self.disk(node)?.set_rate(bits_per_s)
    }

    /// Takes every block of a node's file system.
    pub(super) fn fill(&self, node: Node) -> anyhow::Result<()> {
        let folder = self.disk(node)?.data().join("ballast");
        fs::create_dir_all(&folder)?;
        for kib in BALLAST_KIB {
            let take = |number: u32| {
                let size = format!("{kib}KiB");
                let file = folder.join(format!("{kib}-{number}"));
                call(Command::new("fallocate").args(["-l", &size]).arg(file)).is_ok()
            };
            let mut number = 0;
            while take(number) {
                number += 1;
            }
        }
        Ok(())
    }

    /// Gives the blocks back.
    pub(super) fn make_room(&self, node: Node) -> anyhow::Result<()> {
        match fs::remove_dir_all(self.disk(node)?.data().join("ballast")) {
            // Another fault of this kind has ended.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }

    /// Puts a node's wall clock ahead, or back.
    pub(super) fn set_clock(&self, node: Node, by_s: i64) -> anyhow::Result<()> {
        let fresh = self.place.folder.join("clock-fresh");
        fs::write(&fresh, format!("{by_s:+}\n"))?;
        Ok(fs::rename(fresh, self.place.clock(node))?)
    }

    /// Starts again what has ended by itself; says what that was.
    pub(super) fn look(&mut self) -> anyhow::Result<Option<(Node, ExitStatus)>> {
        let mut found = None;
        let mut due = Vec::new();
        for process in &mut self.processes {
            if let Some(child) = &mut process.child
                && found.is_none()
                && let Some(status) = child.try_wait()?
            {
                (process.child, process.ended) = (None, Instant::now());
                found = Some((process.node, status));
            } else if process.child.is_none() && process.ended.elapsed() > PAUSE {
                due.push(process.node);
            }
        }
        for node in due {
            self.start(node)?;
        }
        self.ended.extend(found);
        Ok(found)
    }

    /// Asks all nodes but the metadata store to end, engines first, and waits for that. Those that did
    /// not end are killed; who they are.
    pub(super) fn stop(&mut self) -> anyhow::Result<Vec<Node>> {
        let mut late = Vec::new();
        for role in ["engine", "sequencer", "storage"] {
            let ending = self.processes.iter_mut().filter(|one| one.node.role() == role);
            for process in ending {
                let Some(mut child) = process.child.take() else { continue };
                drop(child.stdin.take());
                if !has_ended(&mut child)? {
                    late.push(process.node);
                    child.kill()?;
                    let node = process.node;
                    anyhow::ensure!(has_ended(&mut child)?, "{node} cannot be killed");
                }
            }
        }
        Ok(late)
    }

    /// Whether what the nodes have on their disks is sound, by `halfmoon verify`; else what it said.
    pub(super) fn verify(&self) -> anyhow::Result<Result<String, String>> {
        let output = Command::new(&self.place.program)
            .args(["verify", "--data-dir"])
            .arg(self.place.data())
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        fs::write(self.place.folder.join("verify.out"), format!("{said}{complaint}"))?;
        Ok(if output.status.success() { Ok(said) } else { Err(said + &complaint) })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if let Some(child) = &mut process.child {
                // One that has ended by itself cannot be killed, and need not be.
                let _ended = child.kill();
                // And one that waits for its disk must not be waited for.
                let _status = child.try_wait();
            }
        }
    }
}

/// Whether a process has ended, or does so soon.
fn has_ended(child: &mut Child) -> anyhow::Result<bool> {
    let deadline = Instant::now() + STOP_WITHIN;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// Sends a signal; a process that has gone takes none.
fn signal(pid: u32, name: &str) {
    let mut kill = Command::new("kill");
    let _gone = kill.args([format!("-{name}"), pid.to_string()]).stderr(Stdio::null()).status();
}

/// A folder for a run, on the disk of the build.
pub(super) fn folder(seed: u64) -> PathBuf {
    target().join(format!("chaos-{seed}-{}", std::process::id()))
}
