//! The engine's side of a channel: non-blocking, allocation-free after [`EngineSide::create`], and
//! trusting nothing that the worker can write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;

use halfmoon_wire::DecodeError;

use crate::arena::{AllocError, Arena, BadBuffer, Buffer, Extents};
use crate::bell::{self, Doorbell};
use crate::codec::{TooLong, is_release, scratch};
use crate::layout::{ENGINE_SLEEPS, LAYOUT_VERSION, Layout, TO_ENGINE, TO_WORKER, WORKER_SLEEPS};
use crate::limits::{ARENA_BYTES_DEFAULT, ENTRY_MAX_BYTES, INLINE_MAX_BYTES, OUTSTANDING_MAX};
use crate::message::{Data, Finish, Invoke, Operation, Outcome, Request, ToWorker};
use crate::ring::{Consumer, Producer, PushError, RingError};
use crate::sys::{self, Mapping};
use crate::{CHANNEL_FD_ENV, DOORBELL_FD_ENV};

/// The worker broke the channel's rules: kill it, attempt its instance again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// It wrote over its rings.
    #[error("the worker broke its ring: {0}")]
    Ring(#[from] RingError),
    /// It sent a message that does not parse.
    #[error("the worker sent a message that does not parse: {0}")]
    Message(#[from] DecodeError),
    /// It named a state buffer that it may not name.
    #[error("the worker broke the rules for state buffers: {0}")]
    Buffer(#[from] BadBuffer),
    /// It was built for another layout.
    #[error("the worker was built for layout {theirs}, this engine speaks {LAYOUT_VERSION}")]
    Version {
        /// The worker's.
        theirs: u32,
    },
    /// It said something at the wrong time.
    #[error("the worker broke the rules: {0}")]
    Rules(&'static str),
    /// It has not read its ring, which has room for every reply it may expect.
    #[error("the worker does not read its ring")]
    Deaf,
}

/// Something was not sent to the worker.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// A part of the message exceeds its limit: the sender's mistake.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A state buffer in the message is not one that this side allocated: the sender's mistake.
    #[error(transparent)]
    Buffer(#[from] BadBuffer),
    /// No buffer could be had for the value.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// An invocation runs already: the sender's mistake.
    #[error("the worker runs one invocation at a time")]
    Busy,
    /// A reply to nothing: the sender's mistake.
    #[error("no request is unanswered")]
    NotAsked,
    /// The worker's mistake: kill it.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// How a channel is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChannelConfig {
    /// Size of the arena in bytes; each side has a half of it. A half that is smaller than the
    /// longest value of a table cannot hold that value.
    pub arena_bytes: usize,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self { arena_bytes: ARENA_BYTES_DEFAULT }
    }
}

/// Where a message from a worker is copied to before it is parsed. One per thread is enough.
#[derive(Debug)]
pub struct Inbox(Box<[u8; ENTRY_MAX_BYTES]>);

impl Default for Inbox {
    fn default() -> Self {
        Self(Box::new([0; ENTRY_MAX_BYTES]))
    }
}

/// The engine's side of the channel to one worker.
///
/// ```text
/// create ─▶ inherit(&mut command), spawn ─▶ loop {
///     invoke ─▶ poll_request* ─▶ reply* ─▶ poll_request = Finish
/// }
/// before sleeping: prepare_sleep; after: awake
/// ```
#[derive(Debug)]
pub struct EngineSide {
    mapping: Arc<Mapping>,
    memory_fd: Arc<OwnedFd>,
    doorbell: Doorbell,
    to_worker: Producer,
    from_worker: Consumer,
    layout: Layout,
    arena: Arc<Arena>,
    extents: Extents,
    outbox: Vec<u8>,
    state: State,
}

/// Which rules apply to what the worker says next.
#[derive(Debug)]
struct State {
    greeted: bool,
    busy: bool,
    last_id: u64,
    unanswered: usize,
}

impl EngineSide {
    /// Makes the shared memory of a new worker, which will ring `doorbell`.
    pub fn create(config: &ChannelConfig, doorbell: &Doorbell) -> io::Result<Self> {
        let layout = Layout::new(config.arena_bytes);
        let (fd, mapping) = Mapping::create(layout.total_bytes())?;
        layout.write(&mapping);
        let mapping = Arc::new(mapping);
        Ok(Self {
            memory_fd: Arc::new(fd),
            doorbell: doorbell.clone(),
            to_worker: Producer::new(Arc::clone(&mapping), TO_WORKER),
            from_worker: Consumer::new(Arc::clone(&mapping), TO_ENGINE),
            arena: Arc::new(Arena::new(Arc::clone(&mapping), layout)),
            extents: Extents::engine_half(layout),
            outbox: scratch(),
            state: State { greeted: false, busy: false, last_id: 0, unanswered: 0 },
            layout,
            mapping,
        })
    }

    /// Prepares `command` to start this channel's worker: environment, descriptors, and that the
    /// worker is killed when the *thread* that spawns it ends.
    pub fn inherit(&self, command: &mut Command) {
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        sys::inherit(command, vec![Arc::clone(&self.memory_fd), self.doorbell.owned()]);
    }

    /// The descriptors that the worker inherits under the numbers in [`EngineSide::environment`]:
    /// its memory and its doorbell. Both are closed on exec until the spawner says otherwise.
    #[must_use]
    pub fn spawn_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.memory_fd.as_fd(), self.doorbell.as_fd()]
    }

    /// The environment variables that tell the worker about its channel.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 2] {
        use std::os::fd::AsRawFd;
        let [memory, doorbell] = self.spawn_fds().map(|fd| fd.as_raw_fd().to_string());
        [(CHANNEL_FD_ENV, memory), (DOORBELL_FD_ENV, doorbell)]
    }

    /// The doorbell that this worker rings.
    #[must_use]
    pub const fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// True once the worker has said hello.
    #[must_use]
    pub const fn is_greeted(&self) -> bool {
        self.state.greeted
    }

    /// True from an invocation to its finish.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.state.busy
    }

    /// Requests that the worker waits for.
    #[must_use]
    pub const fn unanswered(&self) -> usize {
        self.state.unanswered
    }

    /// State buffers of the engine's half that are in use. Above 0 after a finish, the function
    /// holds on to values beyond its invocation; its worker is to be replaced when that grows.
    #[must_use]
    pub const fn buffers_in_use(&self) -> usize {
        self.extents.count()
    }
}

/// Messages.
impl EngineSide {
    /// The next message of the worker, if there is one. Never blocks. `Release` is handled inside
    /// and never returned.
    ///
    /// After an error the channel is of no more use: kill the worker.
    pub fn poll_request<'a>(
        &mut self,
        inbox: &'a mut Inbox,
    ) -> Result<Option<Request<'a>>, ChannelError> {
        let Some(len) = self.pop_past_releases(inbox)? else { return Ok(None) };
        let request = Request::decode(&inbox.0[..len])?;
        self.check(&request)?;
        Ok(Some(request))
    }

    /// The next message that is not a release.
    fn pop_past_releases(&mut self, inbox: &mut Inbox) -> Result<Option<usize>, ChannelError> {
        // Bounded, so that a flood of releases does not keep the engine here.
        for _ in 0..RELEASES_PER_POLL_MAX {
            let Some(len) = self.from_worker.pop(&mut inbox.0)? else { return Ok(None) };
            let message = &inbox.0[..len];
            if !is_release(message) {
                return Ok(Some(len));
            }
            if let Request::Release(buffer) = Request::decode(message)? {
                self.extents.give_back(buffer)?;
            }
        }
        Ok(None)
    }

    /// Applies the rules of the conversation.
    fn check(&mut self, request: &Request<'_>) -> Result<(), ChannelError> {
        let is_hello = matches!(request, Request::Hello { .. });
        if is_hello == self.state.greeted {
            return Err(ChannelError::Rules("hello comes first, and once"));
        }
        match *request {
            Request::Hello { layout: LAYOUT_VERSION, .. } => self.state.greeted = true,
            Request::Hello { layout, .. } => return Err(ChannelError::Version { theirs: layout }),
            Request::Ask { id, ref operation } => self.check_ask(id, operation)?,
            Request::Log { .. } | Request::Release(_) => {}
            Request::Finish(ref finish) => self.check_finish(finish)?,
        }
        Ok(())
    }

    fn check_ask(&mut self, id: u64, operation: &Operation<'_>) -> Result<(), ChannelError> {
        if !self.state.busy {
            return Err(ChannelError::Rules("nothing is asked outside an invocation"));
        }
        if self.state.last_id.checked_add(1) != Some(id) {
            return Err(ChannelError::Rules("ids ascend by one"));
        }
        if self.state.unanswered == OUTSTANDING_MAX {
            return Err(ChannelError::Rules("too many requests are unanswered"));
        }
        self.state.last_id = id;
        self.state.unanswered += 1;
        match *operation {
            Operation::Call { input, .. }
            | Operation::CallBegin { input, .. }
            | Operation::Spawn { input, .. } => self.check_data(input),
            Operation::Write { value: Some(value), .. } => self.check_data(value),
            Operation::SideEffectDone { result } => self.check_data(result),
            Operation::Write { value: None, .. }
            | Operation::Read { .. }
            | Operation::TxnBegin
            | Operation::TxnCommit
            | Operation::TxnAbort
            | Operation::Join { .. }
            | Operation::SideEffectBegin
            | Operation::Fence
            | Operation::Now
            | Operation::Random => Ok(()),
        }
    }

    fn check_finish(&mut self, finish: &Finish<'_>) -> Result<(), ChannelError> {
        if !self.state.busy {
            return Err(ChannelError::Rules("nothing finishes outside an invocation"));
        }
        if self.state.unanswered != 0 {
            return Err(ChannelError::Rules("every request is answered before the finish"));
        }
        self.state.busy = false;
        match *finish {
            Finish::Returned(data) | Finish::Failed(data) => self.check_data(data),
            Finish::Unwound | Finish::Crashed { .. } => Ok(()),
        }
    }

    /// What the worker sends lies in its half of the arena.
    fn check_data(&self, data: Data<'_>) -> Result<(), ChannelError> {
        match data {
            Data::Inline(_) => Ok(()),
            Data::Shared(buffer) => {
                let half = (self.layout.engine_bytes(), self.layout.arena_bytes());
                let fits = buffer.lies_in(half.0, half.1);
                if fits { Ok(()) } else { Err(BadBuffer(buffer).into()) }
            }
        }
    }

    /// Starts an invocation. One runs at a time; it may be sent before the worker's hello.
    pub fn invoke(&mut self, invoke: &Invoke<'_>) -> Result<(), SendError> {
        if self.state.busy {
            return Err(SendError::Busy);
        }
        self.give(invoke.input)?;
        self.send(&ToWorker::Invoke(*invoke))?;
        self.state.busy = true;
        Ok(())
    }

    /// Answers a request. A state buffer in the outcome is the worker's from here on; it comes
    /// back by itself. (Data in the *worker's* half cannot be sent back: copy it.)
    pub fn send_reply(&mut self, id: u64, outcome: &Outcome<'_>) -> Result<(), SendError> {
        if self.state.unanswered == 0 {
            return Err(SendError::NotAsked);
        }
        if let Outcome::Value(data) | Outcome::CalleeFailed(data) = *outcome {
            self.give(data)?;
        }
        self.send(&ToWorker::Reply { id, outcome: *outcome })?;
        self.state.unanswered -= 1;
        Ok(())
    }

    /// Answers a request with a value that lies in the engine's own memory: inline if it is short,
    /// else copied to a state buffer.
    pub fn send_value(&mut self, id: u64, value: &[u8]) -> Result<(), SendError> {
        let data = self.place(value)?;
        self.send_reply(id, &Outcome::Value(data))
    }

    /// Asks the worker to end itself when it is idle.
    pub fn send_shutdown(&mut self) -> Result<(), SendError> {
        self.send(&ToWorker::Shutdown)
    }

    fn give(&mut self, data: Data<'_>) -> Result<(), BadBuffer> {
        match data {
            Data::Inline(_) => Ok(()),
            Data::Shared(buffer) => self.extents.give(buffer),
        }
    }

    fn send(&mut self, message: &ToWorker<'_>) -> Result<(), SendError> {
        message.encode(&mut self.outbox)?;
        match self.to_worker.push(&self.outbox) {
            Ok(()) => {}
            Err(PushError::Full) => return Err(ChannelError::Deaf.into()),
            Err(PushError::Broken(ring)) => return Err(ChannelError::Ring(ring).into()),
        }
        let sleeps = self.mapping.flag(WORKER_SLEEPS);
        if bell::must_wake(sleeps) {
            bell::wake(sleeps);
        }
        Ok(())
    }
}

/// State buffers.
impl EngineSide {
    /// A buffer for a value that is about to land: `buffer.offset` bytes into
    /// [`EngineSide::region`].
    ///
    /// It must not be freed while anything may still be written to it.
    pub fn alloc(&mut self, len: usize) -> Result<Buffer, AllocError> {
        self.extents.alloc(len)
    }

    /// The value turned out to be shorter.
    pub fn trim(&mut self, buffer: Buffer, len: usize) -> Result<Buffer, BadBuffer> {
        self.extents.trim(buffer, len)
    }

    /// Gives back a buffer that was not sent to the worker.
    pub fn free(&mut self, buffer: Buffer) -> Result<(), BadBuffer> {
        self.extents.free(buffer)
    }

    /// Bytes as they can be sent: themselves if they are short, else a buffer with a copy.
    pub fn place<'a>(&mut self, bytes: &'a [u8]) -> Result<Data<'a>, AllocError> {
        if bytes.len() <= INLINE_MAX_BYTES {
            return Ok(Data::Inline(bytes));
        }
        let buffer = self.extents.alloc(bytes.len())?;
        self.arena.fill(buffer, bytes);
        Ok(Data::Shared(buffer))
    }

    /// Copies data of the worker's to the end of `into`.
    ///
    /// The worker can change its buffers at any time: check and use the copy, not the original.
    pub fn copy_out(&self, data: Data<'_>, into: &mut Vec<u8>) -> Result<(), ChannelError> {
        match data {
            Data::Inline(bytes) => into.extend_from_slice(bytes),
            Data::Shared(buffer) => {
                let before = into.len();
                into.resize(before + buffer.len_bytes(), 0);
                self.arena.copy_out(buffer, &mut into[before..])?;
            }
        }
        Ok(())
    }

    /// The arena, to be exposed to the network.
    #[must_use]
    pub fn region(&self) -> Arc<Arena> {
        Arc::clone(&self.arena)
    }
}

/// Sleeping.
impl EngineSide {
    /// Before the engine sleeps: from here on the worker rings the doorbell. False if a message is
    /// there already; then do not sleep.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        let sleeps = self.mapping.flag(ENGINE_SLEEPS);
        bell::prepare_sleep(sleeps, || self.from_worker.is_empty())
    }

    /// After the engine slept: the worker need not ring.
    pub fn awake(&self) {
        self.mapping.flag(ENGINE_SLEEPS).store(0, std::sync::atomic::Ordering::Relaxed);
    }

    /// True if the worker has sent something that was not taken yet.
    #[must_use]
    pub fn has_request(&self) -> bool {
        !self.from_worker.is_empty()
    }

    /// True if the worker says that it sleeps. For display: a worker may say anything.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.mapping.flag(WORKER_SLEEPS).load(std::sync::atomic::Ordering::Relaxed) != 0
    }
}

/// Releases that one poll handles before it returns to its caller.
const RELEASES_PER_POLL_MAX: usize = 1024;
