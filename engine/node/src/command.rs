//! What the gateway's threads ask of the hot thread, and what it answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use halfmoon_wire::{InstanceId, SeqNum};
use tokio::sync::oneshot;

use crate::manifest::{Deploy, Manifest, Protocol, Version};
use crate::names::FunctionName;

/// Commands that may wait for the hot thread; beyond that a request is answered 503.
pub const COMMANDS_MAX: usize = 8 * 1024;

/// What a root's reads may be older than.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// What this engine has applied; bounded by the lease on the log's tail.
    #[default]
    Sequential,
    /// Nothing that was written before the request came.
    Linearizable,
}

/// When the caller is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// When the root has ended.
    Result,
    /// When the root is sure to run, whatever is killed.
    Accepted,
}

/// Run a function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invoke {
    /// The root: from the client's key, or drawn.
    pub id: InstanceId,
    /// The id is from a key.
    pub keyed: bool,
    /// What to run.
    pub function: FunctionName,
    /// Its input.
    pub input: Vec<u8>,
    /// How fresh its reads are.
    pub consistency: Consistency,
    /// At least this much of the log is seen.
    pub cursor: SeqNum,
    /// When to answer.
    pub wait: Wait,
    /// When the caller stops waiting. A root with effects runs on.
    pub deadline: Instant,
}

/// Make a binary's functions available.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeployBinary {
    /// Where its names go.
    pub namespace: String,
    /// As the client asked; the namespace's own, or `auto`, when it did not.
    pub protocol: Option<Protocol>,
    /// What the binary says about itself.
    pub manifest: Manifest,
    /// Its hash.
    pub version: Version,
    /// Its bytes.
    pub binary: Arc<[u8]>,
}

/// Appends of one root's tree, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Appends {
    /// Init records that stand alone.
    pub init: u64,
    /// Steps, fences left out.
    pub steps: u64,
    /// Empty steps.
    pub fences: u64,
    /// Finish records.
    pub finish: u64,
}

/// How a root ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The function returned this.
    Returned(Vec<u8>),
    /// The function returned an error.
    Failed(String),
    /// It was cancelled.
    Cancelled,
}

/// The answer to [`Invoke`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Invoked {
    /// It has ended.
    Ended {
        /// How.
        ended: Ended,
        /// The root's place in the log at its end: a lower bound for requests that must see what
        /// it wrote.
        cursor: SeqNum,
        /// Appends before this answer, by all attempts on this engine.
        appends: Appends,
    },
    /// It is sure to run.
    Accepted,
    /// It goes on, elsewhere or for longer than the caller waits.
    Running,
    /// It may run, or never: that is not known now.
    Unsure(String),
    /// It was tried too often.
    Parked {
        /// The last attempt's error.
        error: String,
    },
    /// It was given up without a trace: sending the request again is safe.
    GaveUp {
        /// Why.
        error: String,
    },
    /// The key was used before with another input.
    KeyReused,
    /// The request asks for more of the log than there is.
    BeyondTail {
        /// What it asks for.
        cursor: SeqNum,
        /// Where the log ends.
        tail: SeqNum,
    },
    /// There is no such function; these are like it.
    Unknown(Vec<String>),
    /// The engine has no room.
    Overloaded(String),
    /// The engine cannot serve now.
    Unavailable(String),
}

/// What is known of a root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RootStatus {
    /// Nothing of it is here or in the log: another engine may run it and has logged nothing yet,
    /// it left no trace, or it was folded away.
    Unknown,
    /// It goes on.
    Running {
        /// What it runs, where known.
        function: Option<String>,
        /// Attempts so far, on this engine.
        attempts: u32,
        /// Whether this engine runs it.
        here: bool,
        /// Why its last attempt did not end, or what the present one waits for, where known.
        trouble: Option<String>,
    },
    /// It has ended.
    Ended {
        /// How.
        ended: Ended,
        /// Its place in the log at its end.
        cursor: SeqNum,
    },
    /// It was tried too often on this engine; it can be resumed.
    Parked {
        /// What it runs.
        function: String,
        /// Attempts so far.
        attempts: u32,
        /// The last attempt's error.
        error: String,
    },
    /// The engine cannot tell now.
    Unavailable(String),
}

/// The answer to a deployment.
pub type Deployed = Result<(SeqNum, Deploy), DeployFailed>;

/// Why a deployment was not made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeployFailed {
    /// It breaks a rule of the registry.
    Refused(String),
    /// The cluster cannot take it now; whether it was made is unknown.
    Unavailable(String),
}

/// A command, with where its answer goes.
#[derive(Debug)]
pub enum Command {
    /// Run a function.
    Invoke(Box<Invoke>, oneshot::Sender<Invoked>),
    /// Tell about a root.
    Status(InstanceId, oneshot::Sender<RootStatus>),
    /// Take a parked root up again. Whether it was parked here.
    Resume(InstanceId, oneshot::Sender<bool>),
    /// Ask for a root to be cancelled.
    Cancel(InstanceId, oneshot::Sender<Result<(), String>>),
    /// Make a binary's functions available.
    Deploy(Box<DeployBinary>, oneshot::Sender<Deployed>),
    /// A document about this engine.
    Show(Document, oneshot::Sender<serde_json::Value>),
}

/// What can be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Document {
    /// Functions in their current versions.
    Functions,
    /// Declared tables.
    Tables,
    /// The engine: log, roots, workers, lanes.
    Engine,
}

/// The way from the gateway's threads to the hot thread.
pub struct Commands {
    queue: ArrayQueue<Command>,
    wake: Box<dyn Fn() + Send + Sync>,
    ready: AtomicBool,
}

impl Commands {
    /// An empty queue; `wake` ends the hot thread's sleep.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            queue: ArrayQueue::new(COMMANDS_MAX),
            wake: Box::new(wake),
            ready: AtomicBool::new(false),
        })
    }

    /// Hands a command over; gives it back when there is no room.
    pub fn push(&self, command: Command) -> Result<(), Command> {
        self.queue.push(command)?;
        (self.wake)();
        Ok(())
    }

    /// Takes the oldest command.
    #[must_use]
    pub fn pop(&self) -> Option<Command> {
        self.queue.pop()
    }

    /// Whether functions can be run: the engine has seen the log up to its tail.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Says so, or that no more requests are taken.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands").field("waiting", &self.queue.len()).finish_non_exhaustive()
    }
}

impl Appends {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.init + self.steps + self.fences + self.finish
    }
}
