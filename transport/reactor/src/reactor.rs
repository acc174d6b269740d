//! The reactor: one backend, several users, one place to wait.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::op::{Done, Op};
use crate::poll::Poll;
use crate::uring::Uring;
use crate::waker::Waker;

/// How a reactor works and waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Use this backend instead of the best there is.
    pub backend: Option<Backend>,
    /// Look for completions so long before sleeping; a wait that is not longer never sleeps. Zero where
    /// processors are shared: a spinning thread takes the time of the one that it waits for.
    pub spin: Duration,
}

/// How a node waits for work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polling {
    /// It looks for it without a pause, and never sleeps.
    Busy,
    /// It looks for 50 µs, then sleeps.
    Adaptive,
    /// It sleeps at once.
    Sleeping,
}

impl Polling {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Busy, Self::Adaptive, Self::Sleeping];

    /// As flags and reports name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Adaptive => "adaptive",
            Self::Sleeping => "sleeping",
        }
    }

    /// The time before it sleeps.
    #[must_use]
    pub const fn spin(self) -> Duration {
        match self {
            Self::Busy => Duration::MAX,
            Self::Adaptive => Duration::from_micros(50),
            Self::Sleeping => Duration::ZERO,
        }
    }
}

/// What does the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// io_uring.
    Uring,
    /// `poll` and plain system calls.
    Poll,
}

/// Why there is no reactor, or why it stopped working.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// The kernel refuses what every backend needs.
    #[error("the kernel refuses an event descriptor: {0}")]
    Event(io::Error),
    /// io_uring was asked for by name and is refused.
    #[error(
        "io_uring is refused ({0}); see `sysctl kernel.io_uring_disabled`, or leave the choice open"
    )]
    Uring(io::Error),
    /// Waiting failed.
    #[error("waiting for completions failed: {0}")]
    Wait(io::Error),
}

/// One user of a shared reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserId(u32);

/// Something that happens without an operation of the ring: a network adapter writes its completions
/// into memory, and makes a descriptor readable only if it was asked to.
pub trait Watch {
    /// Whether there is something to take. Called often; takes no system call.
    fn ready(&mut self) -> bool;

    /// The thread is about to sleep: asks for the descriptor, which an operation waits for, to be
    /// readable when something comes. Returns whether something has come already.
    fn arm(&mut self) -> bool;
}

/// A reactor that several parts of one thread use.
pub type SharedReactor = Rc<RefCell<Reactor>>;

enum Engine {
    Uring(Box<Uring>),
    Poll(Poll),
}

/// Starts operations, waits, and hands out completions.
pub struct Reactor {
    engine: Engine,
    queues: Vec<VecDeque<Done>>,
    waiting: usize,
    waker: Waker,
    spin: Duration,
    watched: Vec<Rc<RefCell<dyn Watch>>>,
}

/// The user that watches the waker.
const SELF: u32 = 0;

/// Most operations that are worked on at once; what is started beyond is done with an error.
pub const MAX_IN_FLIGHT: usize = 1 << 14;

impl Backend {
    /// In words, for a person.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Poll => "poll and plain system calls (io_uring is refused here)",
        }
    }
}

impl Reactor {
    /// A reactor for this thread.
    pub fn new(options: Options) -> Result<Self, ReactorError> {
        let engine = match options.backend {
            Some(Backend::Poll) => Engine::Poll(Poll::default()),
            Some(Backend::Uring) => {
                Engine::Uring(Box::new(Uring::new().map_err(ReactorError::Uring)?))
            }
            None => match Uring::new() {
                Ok(ring) => Engine::Uring(Box::new(ring)),
                Err(error) => {
                    tracing::warn!(%error, "io_uring is refused, going on with poll");
                    Engine::Poll(Poll::default())
                }
            },
        };
        let waker = Waker::new().map_err(ReactorError::Event)?;
        let queues = vec![VecDeque::new()];
        let (spin, watched) = (options.spin, Vec::new());
        let mut reactor = Self { engine, queues, waiting: 0, waker, spin, watched };
        reactor.watch_waker();
        Ok(reactor)
    }

    /// The same, to be shared.
    pub fn shared(options: Options) -> Result<SharedReactor, ReactorError> {
        Ok(Rc::new(RefCell::new(Self::new(options)?)))
    }

    /// What does the work.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match self.engine {
            Engine::Uring(_) => Backend::Uring,
            Engine::Poll(_) => Backend::Poll,
        }
    }

    /// Ends this reactor's sleep from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// A queue of completions of one's own.
    pub fn register(&mut self) -> UserId {
        self.queues.push(VecDeque::new());
        UserId(u32::try_from(self.queues.len() - 1).expect("a handful of users"))
    }

    /// Looks at something whenever it would sleep otherwise. What is watched must not use the reactor
    /// while it is looked at.
    pub fn watch(&mut self, watch: Rc<RefCell<dyn Watch>>) {
        self.watched.push(watch);
    }

    /// Starts an operation; its [`Done`] carries the token. What cannot be started is done at once,
    /// with the error.
    pub fn start(&mut self, user: UserId, token: u64, op: Op) {
        self.start_for(user.0, token, op);
    }

    /// The next completion of a user.
    pub fn take(&mut self, user: UserId) -> Option<Done> {
        let done = self.queues[user.0 as usize].pop_front()?;
        self.waiting -= 1;
        Some(done)
    }

    /// Hands what was started to the kernel and collects what has completed. Never waits.
    pub fn turn(&mut self) -> Result<(), ReactorError> {
        self.enter(None)
    }

    /// Like `turn`, but when there is nothing to take, sleeps until there is, or a [`Waker`] is
    /// used, at most so long. One system call, or none.
    pub fn wait(&mut self, at_most: Duration) -> Result<(), ReactorError> {
        // A wake-up ends this wait also if it came before, and whatever else this wait notices.
        if self.waker.take() || self.waiting > 0 || at_most.is_zero() || self.is_ready() {
            return self.enter(None);
        }
        let spin = self.spin.min(at_most);
        if !spin.is_zero() && self.spin_for(spin)? || spin == at_most {
            return Ok(());
        }
        let at_most = at_most - spin;
        let allowed = self.waker.prepare_sleep() && !self.arm();
        let done = self.enter(allowed.then_some(at_most));
        self.waker.slept();
        self.waker.take();
        done
    }

    /// Looks for completions without sleeping; returns whether there is something to do.
    fn spin_for(&mut self, time: Duration) -> Result<bool, ReactorError> {
        let end = Instant::now() + time;
        loop {
            self.enter(None)?;
            if self.waker.take() || self.waiting > 0 || self.is_ready() {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    fn is_ready(&self) -> bool {
        self.watched.iter().any(|watched| watched.borrow_mut().ready())
    }

    /// Arms what is watched, until something has come already: then there is no sleep.
    fn arm(&self) -> bool {
        self.watched.iter().any(|watched| watched.borrow_mut().arm())
    }

    fn start_for(&mut self, user: u32, token: u64, op: Op) {
        let refusal = if !op.is_sound() {
            Some(io::ErrorKind::InvalidInput)
        } else if self.in_flight() >= MAX_IN_FLIGHT {
            Some(io::ErrorKind::ResourceBusy)
        } else {
            None
        };
        if let Some(kind) = refusal {
            self.ended(user, Done { token, op, result: Err(kind.into()) });
            return;
        }
        match &mut self.engine {
            Engine::Uring(ring) => ring.start(user, token, op),
            Engine::Poll(poll) => poll.start(user, token, op),
        }
    }

    fn in_flight(&self) -> usize {
        match &self.engine {
            Engine::Uring(ring) => ring.in_flight(),
            Engine::Poll(poll) => poll.in_flight(),
        }
    }

    fn ended(&mut self, user: u32, done: Done) {
        self.queues[user as usize].push_back(done);
        self.waiting += 1;
    }

    fn enter(&mut self, wait: Option<Duration>) -> Result<(), ReactorError> {
        let (queues, waiting) = (&mut self.queues, &mut self.waiting);
        let mut woken = false;
        let take = |user: u32, done: Done| {
            if user == SELF {
                woken = true;
            } else {
                queues[user as usize].push_back(done);
                *waiting += 1;
            }
        };
        match &mut self.engine {
            Engine::Uring(ring) => {
                ring.enter(wait).map_err(ReactorError::Wait)?;
                ring.reap(take);
            }
            Engine::Poll(poll) => {
                poll.enter(wait).map_err(ReactorError::Wait)?;
                poll.reap(take);
            }
        }
        if woken {
            self.waker.empty();
            self.watch_waker();
        }
        Ok(())
    }

    fn watch_waker(&mut self) {
        let event = self.waker.event().clone();
        self.start_for(SELF, 0, Op::Readable(event));
    }
}

/// Opens a file for direct I/O; where the file system refuses that, for buffered I/O. The flag says
/// whether it is direct.
pub fn open_direct(path: &Path, create: bool) -> io::Result<(File, bool)> {
    let open = |flags| {
        OpenOptions::new().read(true).write(true).create(create).custom_flags(flags).open(path)
    };
    match open(libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok((open(0)?, false)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
