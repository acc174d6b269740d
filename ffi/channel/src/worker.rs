//! The worker's side of a channel: blocking, one thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use halfmoon_wire::DecodeError;
use rustix::process::Pid;

use crate::arena::{AllocError, Buffer};
use crate::bell::{self, Spin};
use crate::codec::{TooLong, scratch};
use crate::layout::{
    ENGINE_SLEEPS, LAYOUT_VERSION, Layout, LayoutError, TO_ENGINE, TO_WORKER, WORKER_SLEEPS,
};
use crate::limits::{ENTRY_MAX_BYTES, INLINE_MAX_BYTES, TEXT_MAX_BYTES};
use crate::message::{
    Data, EndReason, Finish, Level, Operation, Outcome, Refusal, Request, ToWorker,
};
use crate::ring::{Consumer, Producer, PushError, RingError};
use crate::sys::{self, Mapping};
use crate::view::{Draft, Landed, Views};
use crate::{CHANNEL_FD_ENV, DOORBELL_FD_ENV, SPIN_ENV};

/// The worker could not take up its channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// An environment variable is missing, or is not a number.
    #[error("the environment variable {name} is not a number: {value:?}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// Its value, if it has one.
        value: Option<String>,
    },
    /// A descriptor or the memory could not be used.
    #[error("cannot use the {what}: {source}")]
    Io {
        /// Which.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The memory is not a channel that this worker understands.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The first message could not be sent.
    #[error(transparent)]
    Hello(#[from] WorkerError),
}

/// The channel failed under the worker.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A name, key or text exceeds its limit. Nothing was sent, the channel is as before.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The engine wrote nonsense. The process must end.
    #[error("the engine broke its ring: {0}")]
    Ring(#[from] RingError),
    /// The engine sent a message that does not parse. The process must end.
    #[error("the engine sent a message that does not parse: {0}")]
    Message(#[from] DecodeError),
    /// The engine named a buffer outside its half. The process must end.
    #[error("the engine named a bad state buffer: {0:?}")]
    Buffer(Buffer),
    /// The engine is gone. The process must end.
    #[error("the engine is gone")]
    EngineGone,
}

/// Bytes in this process's own memory, aligned to eight so that they can be seen as numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlignedBytes {
    words: Box<[u64]>,
    len: usize,
}

impl AlignedBytes {
    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut words = bytemuck::allocation::zeroed_slice_box(bytes.len().div_ceil(8));
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, len: bytes.len() }
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

/// Bytes that came from the engine.
#[derive(Debug)]
pub enum Received {
    /// They were short and are this process's own.
    Owned(AlignedBytes),
    /// They lie in the arena.
    Landed(Landed),
}

impl std::ops::Deref for Received {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Landed(landed) => landed,
        }
    }
}

/// What the engine says.
#[derive(Debug)]
pub enum Incoming {
    /// Run a function.
    Invoke(Invocation),
    /// The answer to one request.
    Reply {
        /// Which.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// End the process.
    Shutdown,
}

/// One attempt of one instance; see [`crate::message::Invoke`].
#[derive(Debug)]
pub struct Invocation {
    /// The function's name.
    pub function: String,
    /// What is executed, however often it is attempted.
    pub instance: u128,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Milliseconds that the attempt has; 0 is without end.
    pub deadline_ms: u64,
    /// The input.
    pub input: Received,
}

/// How a request ended; see [`crate::message::Outcome`].
#[derive(Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "as in `Outcome`")]
pub enum Answer {
    Done,
    Value(Received),
    Absent,
    Committed,
    Conflict,
    Go,
    Time(u64),
    Instance(u128),
    Draw([u8; 32]),
    CalleeFailed(Received),
    Refused { code: Refusal, text: String },
    Ended(EndReason),
}

/// The worker's side of its channel.
#[derive(Debug)]
pub struct WorkerSide {
    mapping: Arc<Mapping>,
    doorbell: OwnedFd,
    to_engine: Producer,
    from_engine: Consumer,
    views: Rc<Views>,
    inbox: Box<[u8; ENTRY_MAX_BYTES]>,
    outbox: Vec<u8>,
    spin: Spin,
    /// Whose death is this process's; none if the engine is in this process.
    parent: Option<Pid>,
    last_id: u64,
}

/// How long a worker sleeps before it looks whether its engine still lives.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a worker sleeps before it looks again whether the engine has made room in the ring.
const ROOM_PATIENCE: Duration = Duration::from_micros(100);
/// Looks before sleeping where there are cores to spare.
const SPIN_DEFAULT: u32 = 2_000;
/// Machines with this many cores or fewer have none to spare.
const SMALL_MACHINE_CORES: usize = 2;

/// Opens the channel that this process was started with; none if it was started without one. `sdk`
/// names the caller and its version. To be called once.
///
/// The process is killed when its engine dies.
pub fn connect_from_env(sdk: &str) -> Result<Option<WorkerSide>, ConnectError> {
    let (Some(memory), Some(doorbell)) = (number(CHANNEL_FD_ENV)?, number(DOORBELL_FD_ENV)?) else {
        return Ok(None);
    };
    let parent = rustix::process::getppid();
    let io = |what| move |source: io::Error| ConnectError::Io { what, source };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| io("parent's death signal")(error.into()))?;
    let memory = sys::inherited(memory).map_err(io("channel's memory"))?;
    let doorbell = sys::inherited(doorbell).map_err(io("doorbell"))?;
    let mut worker = WorkerSide::open(&memory, doorbell, parent)?;
    worker.greet(sdk)?;
    Ok(Some(worker))
}

/// A descriptor's number from the environment; none if the variable is not there.
fn number(name: &'static str) -> Result<Option<RawFd>, ConnectError> {
    let Some(value) = std::env::var_os(name) else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    let value = value.to_str().map(str::to_owned);
    parsed.map(Some).ok_or(ConnectError::Environment { name, value })
}

/// How long to spin at most, in looks.
fn spin_max() -> u32 {
    let configured = std::env::var(SPIN_ENV).ok().and_then(|text| text.parse().ok());
    configured.unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if cores <= SMALL_MACHINE_CORES { 0 } else { SPIN_DEFAULT }
    })
}

impl WorkerSide {
    /// Opens a channel whose engine lives in this process: for tests.
    pub fn connect_in_process(
        memory: &OwnedFd,
        doorbell: OwnedFd,
        sdk: &str,
    ) -> Result<Self, ConnectError> {
        let mut worker = Self::open(memory, doorbell, None)?;
        worker.greet(sdk)?;
        Ok(worker)
    }

    fn open(
        memory: &OwnedFd,
        doorbell: OwnedFd,
        parent: Option<Pid>,
    ) -> Result<Self, ConnectError> {
        let mapping = Mapping::open(memory.as_fd())
            .map_err(|source| ConnectError::Io { what: "channel's memory", source })?;
        let layout = Layout::read(&mapping)?;
        let mapping = Arc::new(mapping);
        Ok(Self {
            doorbell,
            to_engine: Producer::new(Arc::clone(&mapping), TO_ENGINE),
            from_engine: Consumer::new(Arc::clone(&mapping), TO_WORKER),
            views: Views::new(Arc::clone(&mapping), layout),
            inbox: Box::new([0; ENTRY_MAX_BYTES]),
            outbox: scratch(),
            spin: Spin::new(spin_max()),
            parent,
            last_id: 0,
            mapping,
        })
    }

    fn greet(&mut self, sdk: &str) -> Result<(), WorkerError> {
        self.send(&Request::Hello { layout: LAYOUT_VERSION, sdk })
    }

    /// Sends an operation; returns the id under which its answer comes.
    pub fn ask(&mut self, operation: &Operation<'_>) -> Result<u64, WorkerError> {
        let id = self.last_id + 1;
        self.send(&Request::Ask { id, operation: *operation })?;
        self.last_id = id;
        Ok(id)
    }

    /// Sends a line of log. What exceeds the limit is cut off.
    pub fn log(&mut self, level: Level, text: &str) -> Result<(), WorkerError> {
        self.send(&Request::Log { level, text: cut(text) })
    }

    /// Says that the function crashed, and what is known about it; too long a text is cut off.
    pub fn crashed(&mut self, text: &str) -> Result<(), WorkerError> {
        self.send(&Request::Finish(Finish::Crashed { text: cut(text) }))
    }

    /// Says how the function ended.
    pub fn finish(&mut self, finish: &Finish<'_>) -> Result<(), WorkerError> {
        self.send(&Request::Finish(*finish))
    }

    /// A buffer to build a value in.
    pub fn draft(&self, len: usize) -> Result<Draft, AllocError> {
        self.views.draft(len)
    }

    /// Bytes as they can be sent. Short ones are inline; of long ones a copy is made, which must
    /// be kept until the answer has come.
    pub fn place(&self, bytes: &[u8]) -> Result<Option<Draft>, AllocError> {
        if bytes.len() <= INLINE_MAX_BYTES {
            return Ok(None);
        }
        let mut draft = self.draft(bytes.len())?;
        draft.copy_from_slice(bytes);
        Ok(Some(draft))
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), WorkerError> {
        while let Some(buffer) = self.views.released() {
            Request::Release(buffer).encode(&mut self.outbox)?;
            self.push()?;
        }
        request.encode(&mut self.outbox)?;
        self.push()?;
        if bell::must_wake(self.mapping.flag(ENGINE_SLEEPS)) {
            bell::ring(self.doorbell.as_fd());
        }
        Ok(())
    }

    /// Puts the outbox into the ring, waiting for room if need be.
    fn push(&mut self) -> Result<(), WorkerError> {
        loop {
            match self.to_engine.push(&self.outbox) {
                Ok(()) => return Ok(()),
                Err(PushError::Broken(error)) => return Err(error.into()),
                // The engine will read; a full ring is rare, so looking now and then will do.
                Err(PushError::Full) => {
                    bell::ring(self.doorbell.as_fd());
                    self.check_parent()?;
                    std::thread::sleep(ROOM_PATIENCE);
                }
            }
        }
    }

    /// The next message of the engine. Blocks until there is one.
    pub fn receive(&mut self) -> Result<Incoming, WorkerError> {
        loop {
            if let Some(len) = self.from_engine.pop(&mut self.inbox)? {
                return incoming(&self.views, ToWorker::decode(&self.inbox[..len])?);
            }
            self.wait()?;
        }
    }

    fn wait(&mut self) -> Result<(), WorkerError> {
        let ring = &self.from_engine;
        if self.spin.until(|| !ring.is_empty()) {
            return Ok(());
        }
        let sleeps = self.mapping.flag(WORKER_SLEEPS);
        if bell::prepare_sleep(sleeps, || ring.is_empty()) {
            bell::sleep(sleeps, PATIENCE);
            if ring.is_empty() {
                self.check_parent()?;
            }
        }
        Ok(())
    }

    /// The engine that started this process is its parent until it dies.
    fn check_parent(&self) -> Result<(), WorkerError> {
        match self.parent {
            Some(parent) if rustix::process::getppid() != Some(parent) => {
                Err(WorkerError::EngineGone)
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// As much of a text as a message may carry.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn incoming(views: &Rc<Views>, message: ToWorker<'_>) -> Result<Incoming, WorkerError> {
    Ok(match message {
        ToWorker::Invoke(invoke) => Incoming::Invoke(Invocation {
            function: invoke.function.to_owned(),
            instance: invoke.instance,
            attempt: invoke.attempt,
            deadline_ms: invoke.deadline_ms,
            input: received(views, invoke.input)?,
        }),
        ToWorker::Reply { id, outcome } => Incoming::Reply { id, answer: answer(views, outcome)? },
        ToWorker::Shutdown => Incoming::Shutdown,
    })
}

fn received(views: &Rc<Views>, data: Data<'_>) -> Result<Received, WorkerError> {
    match data {
        Data::Inline(bytes) => Ok(Received::Owned(AlignedBytes::copy_of(bytes))),
        Data::Shared(buffer) => {
            views.landed(buffer).map(Received::Landed).ok_or(WorkerError::Buffer(buffer))
        }
    }
}

fn answer(views: &Rc<Views>, outcome: Outcome<'_>) -> Result<Answer, WorkerError> {
    Ok(match outcome {
        Outcome::Done => Answer::Done,
        Outcome::Value(data) => Answer::Value(received(views, data)?),
        Outcome::Absent => Answer::Absent,
        Outcome::Committed => Answer::Committed,
        Outcome::Conflict => Answer::Conflict,
        Outcome::Go => Answer::Go,
        Outcome::Time(ns) => Answer::Time(ns),
        Outcome::Instance(id) => Answer::Instance(id),
        Outcome::Draw(bytes) => Answer::Draw(bytes),
        Outcome::CalleeFailed(data) => Answer::CalleeFailed(received(views, data)?),
        Outcome::Refused { code, text } => Answer::Refused { code, text: text.to_owned() },
        Outcome::Ended(reason) => Answer::Ended(reason),
    })
}
