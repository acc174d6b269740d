//! An engine in memory, so that functions can be exercised without a cluster.
//!
//! It keeps state in a map, runs callees on workers of their own, and keeps a journal for each
//! instance: an attempt that is made again is answered from the journal, as by a real engine. It
//! can break attempts off and make transactions conflict, on request.

mod journal;
mod launch;
mod outcome;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

pub use journal::{Journal, Recorded};
pub use launch::{Launch, ProcessLaunch, Running, ThreadLaunch};

use self::outcome::{Tried, called, describe, finished, send};
use crate::engine::{ChannelConfig, ChannelError, EngineSide, Inbox, SendError};
use crate::message::{EndReason, Invoke, Level, Operation, Refusal, Request};
use crate::{Doorbell, RingError};

/// How an instance ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The function returned this.
    Returned(Vec<u8>),
    /// The function returned an error.
    Failed(Vec<u8>),
}

/// Why an instance did not end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FakeError {
    /// The worker could not be started, or waited for.
    #[error("cannot run the worker: {0}")]
    Io(#[from] io::Error),
    /// The worker broke the rules.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Something could not be sent to it.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It died or panicked in every attempt; this is known about the last.
    #[error("attempted {attempts} times, the last one: {text}")]
    Parked {
        /// How often.
        attempts: u32,
        /// The last failure.
        text: String,
    },
    /// An attempt did something else than the one before it.
    #[error("operation {index} was {recorded} in an earlier attempt and is {now} in this one")]
    NotDeterministic {
        /// Which operation.
        index: usize,
        /// What it was.
        recorded: String,
        /// What it is.
        now: String,
    },
    /// It took too long.
    #[error("no answer from the worker in {ATTEMPT_PATIENCE:?}")]
    TimedOut,
}

/// How long an attempt may take.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(30);
/// How long the fake engine sleeps before it looks whether the worker lives.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// Attempts of an instance before it is parked.
const ATTEMPTS_MAX: u32 = 4;
/// The time at the beginning of the log, in ns since 1970.
const TIME_AT_START_NS: u64 = 1_700_000_000_000_000_000;

/// Table and key.
type Object = (String, Vec<u8>);
type Objects = BTreeMap<Object, Vec<u8>>;

struct Host {
    side: EngineSide,
    running: Box<dyn Running>,
}

/// An engine in memory.
pub struct FakeEngine {
    launch: Box<dyn Launch>,
    doorbell: Doorbell,
    config: ChannelConfig,
    idle: Vec<Host>,
    inbox: Inbox,
    objects: Objects,
    tables: Option<BTreeSet<String>>,
    lines: Vec<(Level, String)>,
    detached: Vec<Work>,
    instances: u128,
    interrupt_after: Option<usize>,
    conflicts: u32,
    attempts: u32,
    steps: u64,
}

/// An instance to run.
struct Work {
    function: String,
    input: Vec<u8>,
    instance: u128,
}

/// One attempt under way.
struct Attempt<'a> {
    journal: &'a mut Journal,
    instance: u128,
    /// Buffered writes while a transaction is open.
    buffered: Option<BTreeMap<Object, Option<Vec<u8>>>>,
    is_over: bool,
    /// Operations of this attempt so far.
    asked: usize,
}

impl FakeEngine {
    /// An engine that starts its workers by `launch`.
    pub fn new(launch: impl Launch + 'static) -> io::Result<Self> {
        Ok(Self {
            launch: Box::new(launch),
            doorbell: Doorbell::new()?,
            config: ChannelConfig::default(),
            idle: Vec::new(),
            inbox: Inbox::default(),
            objects: Objects::new(),
            tables: None,
            lines: Vec::new(),
            detached: Vec::new(),
            instances: 0,
            interrupt_after: None,
            conflicts: 0,
            attempts: 0,
            steps: 0,
        })
    }

    /// From here on only declared tables exist.
    pub fn declare_table(&mut self, name: &str) {
        self.tables.get_or_insert_default().insert(name.to_owned());
    }

    /// The value of an object.
    #[must_use]
    pub fn object(&self, table: &str, key: &[u8]) -> Option<&[u8]> {
        self.objects.get(&(table.to_owned(), key.to_vec())).map(Vec::as_slice)
    }

    /// Sets the value of an object.
    pub fn set_object(&mut self, table: &str, key: &[u8], value: &[u8]) {
        self.objects.insert((table.to_owned(), key.to_vec()), value.to_vec());
    }

    /// What functions have logged.
    #[must_use]
    pub fn lines(&self) -> &[(Level, String)] {
        &self.lines
    }

    /// Attempts made so far, of all instances.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Breaks the next attempt off at its operation number `index`, from 0, before it has any
    /// effect. The attempt after it runs to its end.
    pub fn interrupt_at(&mut self, index: usize) {
        self.interrupt_after = Some(index);
    }

    /// Lets the next `count` commits meet a conflict.
    pub fn conflict_next(&mut self, count: u32) {
        self.conflicts = count;
    }

    /// Runs a function until it ends, and everything that it starts.
    pub fn invoke(&mut self, function: &str, input: &[u8]) -> Result<Ended, FakeError> {
        let instance = self.next_instance();
        let work = Work { function: function.to_owned(), input: input.to_vec(), instance };
        let ended = self.run(&work)?;
        while let Some(work) = self.detached.pop() {
            self.run(&work)?;
        }
        Ok(ended)
    }

    const fn next_instance(&mut self) -> u128 {
        self.instances += 1;
        self.instances
    }

    fn run(&mut self, work: &Work) -> Result<Ended, FakeError> {
        let mut journal = Journal::default();
        let mut text = String::new();
        for attempt in 1..=ATTEMPTS_MAX {
            self.attempts += 1;
            let mut host = self.host()?;
            match self.attempt(&mut host, work, attempt, &mut journal)? {
                Tried::Ended(ended) => {
                    self.idle.push(host);
                    return Ok(ended);
                }
                Tried::Unwound => self.idle.push(host),
                Tried::Lost(why) => text = why,
            }
        }
        Err(FakeError::Parked { attempts: ATTEMPTS_MAX, text })
    }

    fn host(&mut self) -> Result<Host, FakeError> {
        if let Some(host) = self.idle.pop() {
            return Ok(host);
        }
        let side = EngineSide::create(&self.config, &self.doorbell)?;
        let running = self.launch.launch(&side)?;
        Ok(Host { side, running })
    }

    fn attempt(
        &mut self,
        host: &mut Host,
        work: &Work,
        number: u32,
        journal: &mut Journal,
    ) -> Result<Tried, FakeError> {
        let input = host.side.place(&work.input).map_err(SendError::from)?;
        let (function, instance) = (work.function.as_str(), work.instance);
        let deadline_ms = 0;
        host.side.invoke(&Invoke { function, instance, attempt: number, deadline_ms, input })?;
        journal.rewind();
        let mut attempt = Attempt { journal, instance, buffered: None, is_over: false, asked: 0 };
        let end = Instant::now() + ATTEMPT_PATIENCE;
        // The inbox leaves while callees of this attempt may need one.
        let mut inbox = std::mem::take(&mut self.inbox);
        let tried = loop {
            match host.side.poll_request(&mut inbox)? {
                Some(request) => {
                    if let Some(tried) = self.handle(host, &mut attempt, request)? {
                        break tried;
                    }
                }
                None if !host.running.is_alive() && !host.side.has_request() => {
                    break Tried::Lost("the worker died".to_owned());
                }
                None if Instant::now() > end => return Err(FakeError::TimedOut),
                None => self.wait(&host.side),
            }
        };
        self.inbox = inbox;
        Ok(tried)
    }

    fn wait(&self, side: &EngineSide) {
        if side.prepare_sleep() {
            let mut fds = [PollFd::from_borrowed_fd(self.doorbell.as_fd(), PollFlags::IN)];
            // Interrupted is as good as woken.
            _ = rustix::event::poll(&mut fds, Some(&LOOK_AGAIN));
            self.doorbell.drain();
            side.awake();
        }
    }

    fn handle(
        &mut self,
        host: &mut Host,
        attempt: &mut Attempt<'_>,
        request: Request<'_>,
    ) -> Result<Option<Tried>, FakeError> {
        match request {
            Request::Hello { .. } | Request::Release(_) => Ok(None),
            Request::Log { level, text } => {
                self.lines.push((level, text.to_owned()));
                Ok(None)
            }
            Request::Finish(finish) => finished(host, finish).map(Some),
            Request::Ask { id, operation } => {
                let recorded = self.answer(host, attempt, id, &operation)?;
                send(host, id, &recorded)?;
                Ok(None)
            }
        }
    }

    fn answer(
        &mut self,
        host: &Host,
        attempt: &mut Attempt<'_>,
        id: u64,
        operation: &Operation<'_>,
    ) -> Result<Recorded, FakeError> {
        let index = attempt.asked;
        attempt.asked += 1;
        if attempt.is_over || self.interrupt_after == Some(index) {
            self.interrupt_after = None;
            attempt.is_over = true;
            return Ok(Recorded::Ended(EndReason::Restart));
        }
        if let Operation::SideEffectDone { result } = *operation {
            let mut bytes = Vec::new();
            host.side.copy_out(result, &mut bytes)?;
            attempt.journal.side_effect(bytes);
            return Ok(Recorded::Done);
        }
        let described = describe(host, operation)?;
        if let Some((index, before, recorded)) = attempt.journal.replay(id) {
            let recorded = recorded.clone();
            if before != described {
                let recorded = before.to_owned();
                return Err(FakeError::NotDeterministic { index, recorded, now: described });
            }
            return Ok(recorded);
        }
        let recorded = self.execute(host, attempt, operation)?;
        // A side effect leaves no trace before its result is recorded, nor a body before its commit.
        if recorded != Recorded::Go && attempt.buffered.is_none() {
            self.steps += 1;
        }
        attempt.journal.record(id, described, recorded.clone());
        Ok(recorded)
    }

    fn execute(
        &mut self,
        host: &Host,
        attempt: &mut Attempt<'_>,
        operation: &Operation<'_>,
    ) -> Result<Recorded, FakeError> {
        let mut bytes = Vec::new();
        Ok(match *operation {
            Operation::Read { table, key } => self.read(attempt, table, key),
            Operation::Write { table, key, value } => {
                if let Some(value) = value {
                    host.side.copy_out(value, &mut bytes)?;
                }
                self.write(attempt, table, key, value.map(|_| bytes))
            }
            Operation::TxnBegin => {
                attempt.buffered = Some(BTreeMap::new());
                Recorded::Done
            }
            Operation::TxnCommit => self.commit(attempt),
            Operation::TxnAbort => {
                attempt.buffered = None;
                Recorded::Committed
            }
            Operation::Call { function, input } | Operation::CallBegin { function, input } => {
                host.side.copy_out(input, &mut bytes)?;
                let work = self.work(function, bytes);
                let ended = self.run(&work)?;
                if matches!(operation, Operation::Call { .. }) {
                    called(ended)
                } else {
                    Recorded::Begun(Box::new(called(ended)))
                }
            }
            Operation::Join { call } => attempt.journal.begun(call),
            Operation::Spawn { function, input } => {
                host.side.copy_out(input, &mut bytes)?;
                let work = self.work(function, bytes);
                let instance = work.instance;
                self.detached.push(work);
                Recorded::Instance(instance)
            }
            Operation::SideEffectBegin => Recorded::Go,
            // `answer` has recorded a result before it came here.
            Operation::SideEffectDone { .. } | Operation::Fence => Recorded::Done,
            Operation::Now => Recorded::Time(TIME_AT_START_NS + self.steps),
            Operation::Random => attempt.journal.draw(attempt.instance),
        })
    }

    fn work(&mut self, function: &str, input: Vec<u8>) -> Work {
        Work { function: function.to_owned(), input, instance: self.next_instance() }
    }

    fn unknown(&self, table: &str) -> Option<Recorded> {
        let known = self.tables.as_ref().is_none_or(|tables| tables.contains(table));
        let text = format!("no table {table} is declared");
        (!known).then_some(Recorded::Refused(Refusal::UnknownTable, text))
    }

    fn read(&self, attempt: &Attempt<'_>, table: &str, key: &[u8]) -> Recorded {
        if let Some(refused) = self.unknown(table) {
            return refused;
        }
        let object = (table.to_owned(), key.to_vec());
        let own = attempt.buffered.as_ref().and_then(|writes| writes.get(&object));
        let value = own.map_or_else(|| self.objects.get(&object), Option::as_ref);
        value.map_or(Recorded::Absent, |value| Recorded::Value(value.clone()))
    }

    fn write(
        &mut self,
        attempt: &mut Attempt<'_>,
        table: &str,
        key: &[u8],
        value: Option<Vec<u8>>,
    ) -> Recorded {
        if let Some(refused) = self.unknown(table) {
            return refused;
        }
        let object = (table.to_owned(), key.to_vec());
        match &mut attempt.buffered {
            Some(writes) => {
                writes.insert(object, value);
            }
            None => self.apply(object, value),
        }
        Recorded::Done
    }

    fn apply(&mut self, object: Object, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.objects.insert(object, value),
            None => self.objects.remove(&object),
        };
    }

    fn commit(&mut self, attempt: &mut Attempt<'_>) -> Recorded {
        let writes = attempt.buffered.take().unwrap_or_default();
        if self.conflicts > 0 {
            self.conflicts -= 1;
            return Recorded::Conflict;
        }
        for (object, value) in writes {
            self.apply(object, value);
        }
        Recorded::Committed
    }
}

impl From<RingError> for FakeError {
    fn from(error: RingError) -> Self {
        Self::Channel(error.into())
    }
}
