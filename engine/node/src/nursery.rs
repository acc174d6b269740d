//! A thread that starts worker processes, reads what they print, buries them, and writes binaries
//! to disk: all that would hold up the hot thread.
//!
//! Workers are killed by the kernel when this thread ends, as it is their parent.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::{fs, io};

use halfmoon_channel::EngineSide;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit};

use crate::binaries::{Binaries, StoreError};
use crate::manifest::Version;
use crate::pool::WorkerId;

/// Bytes of one line that a worker prints; longer ones are cut.
const LINE_MAX_BYTES: usize = 2048;
/// Bytes read from one worker's pipe at a time.
const READ_BYTES: usize = 16 * 1024;
/// Bytes that one worker may print while it runs one invocation; the rest is counted and dropped.
const PRINTED_MAX_BYTES: usize = 64 * 1024;
/// How often starting a binary that is still being written by somebody else is tried.
const BUSY_TRIES_MAX: u32 = 20;
/// Environment that workers get from the engine's own, for what they print.
const ENVIRONMENT: [&str; 6] =
    ["PATH", "LANG", "TZ", "RUST_LOG", "RUST_BACKTRACE", "HALFMOON_SPIN"];

/// What a worker runs, for what it prints.
pub(crate) type Label = Arc<Mutex<String>>;

/// Who looks after workers. Nothing of it blocks; what becomes of it is told by [`Care::poll`].
pub(crate) trait Care {
    /// Starts a worker of the program at `path`, which takes up the channel.
    fn spawn(&self, id: WorkerId, path: PathBuf, side: &EngineSide, label: Label);

    /// Ends a worker.
    fn kill(&self, id: WorkerId);

    /// Puts a binary on disk.
    fn store(&self, version: Version, binary: Vec<u8>);

    /// What has happened since the last call.
    fn poll(&self) -> Option<Event>;
}

/// What the thread is asked to do.
enum Order {
    Spawn { id: WorkerId, command: Command, label: Label },
    Kill(WorkerId),
    Store { version: Version, binary: Vec<u8> },
    Stop,
}

/// What has happened.
#[derive(Debug)]
pub(crate) enum Event {
    Started { id: WorkerId, pid: u32 },
    NotStarted { id: WorkerId, error: io::Error },
    Exited { id: WorkerId, status: Option<ExitStatus> },
    Stored { version: Version, outcome: Result<PathBuf, StoreError> },
}

/// The handle to the thread.
pub(crate) struct Nursery {
    orders: Sender<Order>,
    bell: Arc<OwnedFd>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

struct Ward {
    orders: Receiver<Order>,
    bell: Arc<OwnedFd>,
    events: Sender<Event>,
    wake: Box<dyn Fn() + Send>,
    binaries: Binaries,
    children: BTreeMap<WorkerId, Nursling>,
}

struct Nursling {
    child: Child,
    pidfd: OwnedFd,
    output: Output,
    errors: Output,
    label: Label,
}

/// One pipe of a worker.
struct Output {
    pipe: Option<fs::File>,
    line: Vec<u8>,
    printed: usize,
    last_label: String,
}

impl Nursery {
    /// Starts the thread; `wake` is called after each event.
    pub(crate) fn start(binaries: Binaries, wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = Arc::new(rustix::event::eventfd(0, flags)?);
        let (orders, ordered) = channel();
        let (told, events) = channel();
        let ward = Ward {
            orders: ordered,
            bell: Arc::clone(&bell),
            events: told,
            wake: Box::new(wake),
            binaries,
            children: BTreeMap::new(),
        };
        let thread =
            std::thread::Builder::new().name("nursery".to_owned()).spawn(move || ward.run())?;
        Ok(Self { orders, bell, events, thread: Some(thread) })
    }

    /// Asks for something. Never blocks.
    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::error!("the thread that starts workers has ended");
        }
        // Full means that it was rung already.
        rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).ok();
    }
}

impl Care for Nursery {
    fn spawn(&self, id: WorkerId, path: PathBuf, side: &EngineSide, label: Label) {
        let mut command = Command::new(path);
        command.env_clear();
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        side.inherit(&mut command);
        self.order(Order::Spawn { id, command, label });
    }

    fn kill(&self, id: WorkerId) {
        self.order(Order::Kill(id));
    }

    fn store(&self, version: Version, binary: Vec<u8>) {
        self.order(Order::Store { version, binary });
    }

    fn poll(&self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that starts workers has panicked");
        }
    }
}

impl Ward {
    fn run(mut self) {
        // Inherited by every child: no set-user-id program raises it above this process.
        if let Err(error) = rustix::thread::set_no_new_privs(true) {
            tracing::warn!(%error, "workers run without no_new_privs");
        }
        while self.obey() {
            self.wait();
            self.look_after();
        }
        for nursling in self.children.values_mut() {
            nursling.kill();
        }
        for nursling in self.children.values_mut() {
            nursling.child.wait().ok();
        }
    }

    /// Carries out all orders; false after the last.
    fn obey(&mut self) -> bool {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Spawn { id, command, label } => self.spawn(id, command, label),
                Order::Kill(id) => {
                    if let Some(nursling) = self.children.get_mut(&id) {
                        nursling.kill();
                    }
                }
                Order::Store { version, binary } => {
                    let outcome = self.binaries.store(version, &binary);
                    self.tell(Event::Stored { version, outcome });
                }
                Order::Stop => return false,
            }
        }
        true
    }

    fn tell(&self, event: Event) {
        // The other side only goes away when the engine ends.
        self.events.send(event).ok();
        (self.wake)();
    }

    fn spawn(&mut self, id: WorkerId, command: Command, label: Label) {
        match Nursling::start(command, label) {
            Ok(nursling) => {
                let pid = nursling.child.id();
                self.children.insert(id, nursling);
                self.tell(Event::Started { id, pid });
            }
            Err(error) => self.tell(Event::NotStarted { id, error }),
        }
    }

    fn wait(&self) {
        let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN)];
        for nursling in self.children.values() {
            fds.push(PollFd::new(&nursling.pidfd, PollFlags::IN));
            for output in [&nursling.output, &nursling.errors] {
                if let Some(pipe) = &output.pipe {
                    fds.push(PollFd::new(pipe, PollFlags::IN));
                }
            }
        }
        // Interrupted: looks around once more.
        rustix::event::poll(&mut fds, None).ok();
        let mut count = [0; 8];
        rustix::io::read(&self.bell, &mut count).ok();
    }

    fn look_after(&mut self) {
        let mut gone = Vec::new();
        for (id, nursling) in &mut self.children {
            let Nursling { output, errors, label, .. } = nursling;
            output.read(label, false);
            errors.read(label, true);
            match nursling.child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => gone.push((*id, Some(status))),
                Err(error) => {
                    tracing::error!(%error, "cannot wait for a worker");
                    gone.push((*id, None));
                }
            }
        }
        for (id, status) in gone {
            self.children.remove(&id);
            self.tell(Event::Exited { id, status });
        }
    }
}

impl Nursling {
    fn start(mut command: Command, label: Label) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tries = 0;
        let mut child = loop {
            match command.spawn() {
                // Another thread forked while the binary was being written, and holds it open
                // until its own exec.
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy
                        && tries < BUSY_TRIES_MAX =>
                {
                    tries += 1;
                    std::thread::sleep(std::time::Duration::from_millis(1 << tries.min(6)));
                }
                other => break other?,
            }
        };
        let watched = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
            .and_then(|pid| {
                limit(pid);
                Ok(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)
            });
        let pidfd = match watched {
            Ok(pidfd) => pidfd,
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                return Err(error);
            }
        };
        let output = Output::new(child.stdout.take().map(OwnedFd::from))?;
        let errors = Output::new(child.stderr.take().map(OwnedFd::from))?;
        Ok(Self { child, pidfd, output, errors, label })
    }

    fn kill(&mut self) {
        // It is not reaped yet, so the pid is its own; a dead one takes the signal in vain.
        self.child.kill().ok();
    }
}

/// What a worker may use.
fn limit(pid: Pid) {
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, 1024)] {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        if let Err(error) = rustix::process::prlimit(Some(pid), resource, limit) {
            tracing::debug!(%error, ?resource, "cannot limit a worker");
        }
    }
}

impl Output {
    fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            set_nonblocking(pipe.as_fd())?;
        }
        let pipe = pipe.map(fs::File::from);
        Ok(Self { pipe, line: Vec::new(), printed: 0, last_label: String::new() })
    }

    fn read(&mut self, label: &Label, is_error: bool) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut bytes = [0; READ_BYTES];
        match pipe.read(&mut bytes) {
            Ok(0) => {
                self.pipe = None;
                self.print(label, is_error);
            }
            Ok(len) => {
                for byte in bytes.iter().take(len) {
                    if *byte == b'\n' {
                        self.print(label, is_error);
                    } else if self.line.len() < LINE_MAX_BYTES {
                        self.line.push(*byte);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
    }

    fn print(&mut self, label: &Label, is_error: bool) {
        if self.line.is_empty() {
            return;
        }
        let label = label.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if label != self.last_label {
            self.printed = 0;
            self.last_label = label;
        }
        let within = self.printed < PRINTED_MAX_BYTES;
        self.printed += self.line.len();
        let (text, running) = (String::from_utf8_lossy(&self.line), self.last_label.as_str());
        if within && is_error {
            tracing::warn!(target: "worker", running, "{text}");
        } else if within {
            tracing::info!(target: "worker", running, "{text}");
        }
        if within && self.printed >= PRINTED_MAX_BYTES {
            tracing::warn!(target: "worker", running, "it prints too much; the rest is dropped");
        }
        self.line.clear();
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (Nursery, Receiver<()>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let (wake, woken) = channel();
        let binaries = Binaries::open(directory.path()).unwrap();
        let nursery = Nursery::start(binaries, move || {
            wake.send(()).ok();
        });
        (nursery.unwrap(), woken, directory)
    }

    fn next(nursery: &Nursery, woken: &Receiver<()>) -> Event {
        woken.recv().unwrap();
        nursery.poll().unwrap()
    }

    fn spawn(nursery: &Nursery, id: u64, program: &str, argument: &str) {
        let mut command = Command::new(program);
        command.arg(argument);
        nursery.order(Order::Spawn { id: WorkerId(id), command, label: Label::default() });
    }

    #[test]
    fn a_killed_worker_is_buried_and_the_others_live() {
        let (nursery, woken, _directory) = fixture();
        spawn(&nursery, 1, "sleep", "1000");
        spawn(&nursery, 2, "sleep", "1000");
        assert!(matches!(next(&nursery, &woken), Event::Started { id: WorkerId(1), .. }));
        let Event::Started { id: WorkerId(2), pid } = next(&nursery, &woken) else { panic!() };
        nursery.order(Order::Kill(WorkerId(1)));
        let Event::Exited { id: WorkerId(1), status } = next(&nursery, &woken) else { panic!() };
        assert!(!status.unwrap().success());
        let other = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        assert!(rustix::process::test_kill_process(other).is_ok());
        drop(nursery);
        assert!(rustix::process::test_kill_process(other).is_err(), "it ends with its engine");
    }

    #[test]
    fn one_that_ends_by_itself_is_noticed() {
        let (nursery, woken, _directory) = fixture();
        spawn(&nursery, 1, "sh", "/dev/null");
        assert!(matches!(next(&nursery, &woken), Event::Started { .. }));
        let Event::Exited { status, .. } = next(&nursery, &woken) else { panic!() };
        assert!(status.unwrap().success());
    }

    #[test]
    fn a_program_that_is_not_there_does_not_start() {
        let (nursery, woken, _directory) = fixture();
        spawn(&nursery, 1, "/nonexistent", "");
        assert!(matches!(next(&nursery, &woken), Event::NotStarted { .. }));
    }
}
